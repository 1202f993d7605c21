"""Who plays in a scenario: programs by name."""

from __future__ import annotations

from paxoslease.simulation.explorer.lives import Program, original, ours


def program(name: str) -> Program:
    """Return the program of that name: ours, original, or original/shared."""
    return {
        "ours": ours,
        "original": original,
        "original/shared": lambda: original(shared_too=True),
    }[name]()
