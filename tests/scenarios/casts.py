"""Who plays in a scenario: programs by name."""

from __future__ import annotations

from paxoslease.simulation.explore_lives import Program, ours
from paxoslease.simulation.original import original


def program(name: str) -> Program:
    """Return the program of that name: ours, original, or original/shared."""
    return {
        "ours": ours,
        "original": original,
        "original/shared": lambda: original(shared_too=True),
    }[name]()
