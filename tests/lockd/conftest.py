"""What many tests of the lock daemon begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lockd.rig import LockDaemon, our_daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LockDaemon]:
    """Give a running daemon."""
    with our_daemon(tmp_path) as started:
        yield started


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Give an empty disk image."""
    path = tmp_path / "disk.img"
    path.touch()
    return path
