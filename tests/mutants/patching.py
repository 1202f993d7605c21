"""Patches to the package: what they say, and a copy of the package with one applied.

A patch is a unified diff with a few lines of text before it, `word: value` each:

    rule: which rule or wait is taken out
    what: what is done instead
    check: what catches it, see checks.py
    shows: what then happens, for the table in docs/verification.md
    when: "always", or "long" when the check takes more than a few seconds

Hunks are found by their text, which must occur exactly once, not by their line numbers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
_MARKERS = {" ", "-", "+"}


class Hunk(NamedTuple):
    """A text in a file, and what comes in its place."""

    path: str
    old: str
    new: str


class Mutant(NamedTuple):
    """One patch."""

    name: str
    rule: str
    what: str
    check: str
    shows: str
    is_quick: bool
    hunks: tuple[Hunk, ...]


def read_mutant(path: Path) -> Mutant:
    """Read a patch file."""
    words: dict[str, list[str]] = {}
    hunks: list[Hunk] = []
    target = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("+++ "):
            target = line.split("\t")[0].removeprefix("+++ b/")
        elif line.startswith("@@"):
            hunks.append(Hunk(target, "", ""))
        elif hunks and line[:1] in _MARKERS and not line.startswith("--- "):
            path_, old, new = hunks[-1]
            text = line[1:] + "\n"
            hunks[-1] = Hunk(
                path_,
                old + (text if line[0] != "+" else ""),
                new + (text if line[0] != "-" else ""),
            )
        elif not target and ": " in line:
            word, value = line.split(": ", 1)
            words.setdefault(word, []).append(value)
    return Mutant(
        path.stem,
        words["rule"][0],
        words["what"][0],
        words["check"][0],
        words["shows"][0],
        words["when"][0] == "always",
        tuple(hunks),
    )


def mutants() -> list[Mutant]:
    """Return all patches, by name."""
    return [read_mutant(path) for path in sorted(HERE.glob("*.patch"))]


def apply(mutant: Mutant, directory: Path) -> None:
    """Put a copy of the package, mutated, into a directory."""
    shutil.copytree(ROOT / "paxoslease", directory / "paxoslease")
    for hunk in mutant.hunks:
        file = directory / hunk.path
        text = file.read_text(encoding="utf-8")
        found = text.count(hunk.old)
        assert found == 1, f"{mutant.name}: in {hunk.path} this occurs {found} times:\n{hunk.old}"
        file.write_text(text.replace(hunk.old, hunk.new), encoding="utf-8")
