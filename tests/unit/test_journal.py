"""The journal of a daemon, by itself: what is in the file at every moment, and when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paxoslease.daemon.journal import Journal, read_journal

SPACE: dict[str, Any] = {"number": 1, "membership": {"name": "4c53", "is_final": True}}


def test_no_membership_is_final_in_the_file(tmp_path: Path) -> None:
    """What an image hands over as final is renewed by the next one before that can note it.

    A third daemon, after a crash in between, must not take the renewed record for somebody else's.
    """
    path = str(tmp_path / "state")
    journal = Journal(path, {"s4c53": SPACE})
    journal.begin()
    noted = read_journal(path)
    assert noted is not None
    assert noted["s4c53"]["membership"] == {"name": "4c53", "is_final": False}
    assert journal.dump(is_final=True)["s4c53"]["membership"]["is_final"]
    assert not journal.dump()["s4c53"]["membership"]["is_final"]
