"""Compare two plays of one script, step by step."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

from tests.daemon.stage import Observation

SLOWER_S: Final = 6.0  # what a daemon may take longer than the other: two busy cores


def differences(
    one: str, ones: Sequence[Observation], two: str, others: Sequence[Observation]
) -> str:
    """Return what differs between two plays as readable text, empty when nothing does.

    `one` and `two` are the kinds of daemon that were used. A step with a meant difference is held
    to what each kind is to show, so that it fails as well when a kind ceases to differ.
    """
    found: list[str] = []
    if [note.step for note in ones] != [note.step for note in others]:
        found.append(f"the steps differ: {one} played {len(ones)}, {two} {len(others)}")
    by_step = {note.step: note for note in others}
    for note in ones:
        other = by_step.get(note.step)
        if other is None:
            found.append(f"{note.step}: {two} never came to it")
        elif note.differs is None:
            found += _diff(note.step, one, note.lines, two, other.lines)
        else:
            for kind, seen in ((one, note), (two, other)):
                meant = note.differs.real if kind == "real" else note.differs.ours
                what = f"{note.step} (meant to differ: {note.differs.why})"
                found += _diff(what, f"{kind} as written", tuple(meant), kind, seen.lines)
        if other and not note.differs and other.took_s > note.took_s + SLOWER_S:
            found.append(f"{note.step}: {two} took {other.took_s:.1f} s, {one} {note.took_s:.1f} s")
    return "\n".join(found)


def shown_difference(
    step: str, one: str, lines: tuple[str, ...], two: str, others: tuple[str, ...]
) -> str:
    """Return what differs between two observations, empty when nothing does."""
    return "\n".join(_diff(step, one, lines, two, others))


def _diff(
    step: str, one: str, lines: tuple[str, ...], two: str, others: tuple[str, ...]
) -> list[str]:
    if lines == others:
        return []
    shown = difflib.ndiff(list(lines), list(others))
    body = [line.rstrip() for line in shown if not line.startswith("  ")]
    return [f"{step}  (-{one} +{two})", *("    " + line for line in body)]
