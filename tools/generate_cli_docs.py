"""Write docs/cli.md from the definition of the command line.

    python tools/generate_cli_docs.py [--check]

With --check nothing is written: exit code 1 when the file is not what would be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from paxoslease.cli.exits import EXIT_HELP
from paxoslease.cli.main import build_parser

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"

_HEAD = """# The command `paxoslease`

Made by `tools/generate_cli_docs.py` from the definition of the command line; do not edit.

Lockspaces and resources are named `NAME:PATH` or `NAME:PATH:OFFSET`, places `PATH` or
`PATH:OFFSET`. Offsets and sizes are bytes, or end in K, M, G or T (powers of 1024). A colon that
belongs to a name or a path is written `\\:`.

Reports go to standard output, errors and warnings to standard error, an error as one line and a
hint. With `--json` the report, or the error with all its fields, is JSON on standard output, also
when the command line cannot be understood.
"""


def document() -> str:
    """Return the whole page."""
    parser = build_parser()
    parts = [_HEAD, "## Exit codes\n", "| code | meaning |\n|---|---|\n" + _exit_rows() + "\n"]
    for command in _commands(parser):
        parts.append(_section(command))
    return "\n".join(parts).rstrip() + "\n"


def _exit_rows() -> str:
    rows = [line.split(None, 1) for line in EXIT_HELP.splitlines()[1:]]
    return "\n".join(f"| {code} | {_cell(meaning)} |" for code, meaning in rows)


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of all commands that can be run, in the order of the help."""
    subs = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in subs:
        for choice in action._choices_actions:
            child = action.choices[choice.dest]
            child.description = child.description or (choice.help or "").capitalize() + "."
            yield from _commands(child)
    if not subs:
        yield parser


def _section(parser: argparse.ArgumentParser) -> str:
    lines = [f"## `{parser.prog}`\n", f"{parser.description}\n", "```text", _usage(parser), "```\n"]
    rows = [_row(action) for action in parser._actions if action.dest != "help"]
    if rows:
        lines += ["| argument | meaning |\n|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage, one argument a line: how argparse breaks it depends on its version."""
    lines = [parser.prog]
    for action in parser._actions:
        if action.dest != "help":
            is_optional = action.option_strings and not action.required
            lines.append(f"    [{_name(action)}]" if is_optional else f"    {_name(action)}")
    return "\n".join(lines)


def _name(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else action.dest
    if not action.option_strings:
        return {"?": f"[{value}]", "+": f"{value} ..."}.get(str(action.nargs), value)
    option = ", ".join(action.option_strings)
    return option if action.nargs == 0 else f"{option} {value}"


def _row(action: argparse.Action) -> str:
    meaning = (action.help or "") % {**vars(action), "prog": ""} if action.help else ""
    return f"| `{_cell(_name(action))}` | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    """Write the page, or compare it."""
    wanted = document()
    if sys.argv[1:] == ["--check"]:
        if not TARGET.exists() or TARGET.read_text() != wanted:
            sys.stderr.write(f"{TARGET} is out of date: run `python {sys.argv[0]}`\n")
            return 1
        return 0
    TARGET.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
