"""Open files that several users share."""

from __future__ import annotations

from pathlib import Path

from paxoslease.engine.files import Files


def test_paths_that_lead_elsewhere_are_told(tmp_path: Path) -> None:
    """A file that was renamed, or replaced, could not be opened again by a successor."""
    files = Files()
    for name in ("kept", "renamed", "replaced"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
        files.hold(str(tmp_path / name))
    assert files.changed_paths() == []
    (tmp_path / "renamed").rename(tmp_path / "away")
    (tmp_path / "replaced").rename(tmp_path / "old")
    (tmp_path / "replaced").write_bytes(bytes(1 << 20))
    assert files.changed_paths() == [str(tmp_path / "renamed"), str(tmp_path / "replaced")]
    for name in ("kept", "renamed", "replaced"):
        files.drop(str(tmp_path / name))
