"""The journal of a daemon, by itself: what is in the file at every moment, and when it fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Give a file system in memory with little room."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def _fill(directory: Path) -> None:
    """Leave no room in a file system."""
    with (directory / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


def _note(journal: Journal, key: str, size: int) -> None:
    journal._put(key, {"value": "x" * size})


def test_file_that_cannot_be_shortened_goes_on(small: Path) -> None:
    """Without room for a second file the first one stays, and is right."""
    path = str(small / "state")
    journal = Journal(path)
    journal.begin()
    _note(journal, "large", 100_000)
    for number in range(10):
        _note(journal, "changing", 50_000 + number)
    before = journal._written
    left = os.statvfs(small).f_bavail * 4096
    (small / "filler").write_bytes(bytes(left - 50_000))
    journal._limit = before
    _note(journal, "last", 1000)
    assert journal._written > before
    noted = read_journal(path)
    assert noted is not None
    assert {"last", "changing", "large"} <= set(noted)
    assert not (small / "state.new").exists()


def test_file_that_failed_is_begun_again(small: Path) -> None:
    """What cannot be noted ends the file; as soon as there is room it is there again, whole."""
    path = str(small / "state")
    journal = Journal(path)
    journal.begin()
    _note(journal, "first", 10)
    _fill(small)
    for number in range(10):
        _note(journal, f"n{number}", 1000)
    assert read_journal(path) is None
    (small / "filler").unlink()
    journal._tried -= 1.0
    _note(journal, "last", 10)
    noted = read_journal(path)
    assert noted is not None
    assert {"first", "n0", "n9", "last"} <= set(noted)
    journal.close()
    assert not os.path.exists(path)


def test_file_that_cannot_be_removed_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is out of date is not left to be believed, nor is it an error of who notes something."""
    path = str(tmp_path / "state")
    journal = Journal(path)
    journal.begin()

    def refused(*_: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patched:
        for name in ("write", "unlink", "open"):
            patched.setattr(f"paxoslease.daemon.journal.os.{name}", refused)
        _note(journal, "first", 10)
    assert read_journal(path) is None


def test_restarted_daemon_goes_on_without_a_file(small: Path) -> None:
    """There are leases to be seen to; whoever finds clients and no file after that gives up."""
    path = str(small / "state")
    _fill(small)
    journal = Journal(path, {"s4c53": SPACE})
    with pytest.raises(OSError, match="No space"):
        journal.begin()
    journal.begin_anyhow()
    (small / "filler").unlink()
    journal._tried -= 1.0
    _note(journal, "last", 10)
    assert set(read_journal(path) or ()) == {"s4c53", "last"}
