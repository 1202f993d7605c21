"""The form of most client actions: a line before, and a line with `done` and the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from paxoslease.cli.sanlock.output import say
from paxoslease.client import DaemonError

INVALID: Final = -22


def missing(action: str) -> DaemonError:
    """Return the error for an action whose arguments are not complete."""
    return DaemonError(action, INVALID)


def result_of(work: Callable[[], int | None]) -> int:
    """Return the result of something that the daemon does: what it returns, or the refusal."""
    try:
        return work() or 0
    except DaemonError as error:
        return error.code


def step(action: bytes, work: Callable[[], int | None], about: bytes = b"") -> int:
    """Announce an action, do it, and print and return its result."""
    say(action + about)
    result = result_of(work)
    say(b"%b done %d" % (action, result))
    return result
