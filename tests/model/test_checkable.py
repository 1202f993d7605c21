"""The protocols keep the rules that make a generator's position and locals its whole state."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import paxoslease
from paxoslease.simulation.original import leases as original

ROOT = Path(paxoslease.__file__).parent
FILES = [*sorted((ROOT / "protocol").glob("*.py")), Path(original.__file__)]
FORBIDDEN = (ast.For, ast.AsyncFor, ast.With, ast.AsyncWith, ast.ExceptHandler)
# contextlib.suppress of named errors has no state that a key could miss.
ALLOWED = ("with suppress(",)


def faults(tree: ast.AST) -> list[str]:
    """Return every yield that leaves something on the interpreter's stack, as line and reason."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Yield | ast.YieldFrom):
            continue
        parent = parents[node]
        if not isinstance(parent, ast.Expr | ast.Assign | ast.AnnAssign | ast.Return):
            found.append(f"line {node.lineno}: in the middle of a {type(parent).__name__}")
        above = parent
        while not isinstance(above, ast.FunctionDef | ast.Lambda):
            if isinstance(above, FORBIDDEN) and not ast.unparse(above).startswith(ALLOWED):
                found.append(f"line {node.lineno}: inside {type(above).__name__}")
            if isinstance(above, ast.Try) and node in {
                n for statement in above.finalbody for n in ast.walk(statement)
            }:
                found.append(f"line {node.lineno}: inside finally")
            above = parents[above]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_yield_leaves_something_on_the_stack(path: Path) -> None:
    """No yield stands in a for loop, a with, a handler, or the middle of an expression."""
    assert faults(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("for x in y:\n  yield x", "inside For"),
        ("with y:\n  yield 1", "inside With"),
        ("a = f((yield 1))", "in the middle of a Call"),
        ("try:\n  pass\n except E:\n  yield 1", "inside ExceptHandler"),
        ("try:\n  pass\n finally:\n  yield 1", "inside finally"),
    ],
)
def test_the_lint_sees_what_is_forbidden(body: str, fault: str) -> None:
    """The lint is not blind."""
    text = "def f():\n " + body
    assert fault in "\n".join(faults(ast.parse(text)))


@pytest.mark.parametrize("body", ["yield 1", "x = yield 1", "return (yield from g())"])
def test_the_lint_lets_plain_yields_pass(body: str) -> None:
    """What the rules allow is allowed."""
    assert faults(ast.parse("def f():\n " + body)) == []
