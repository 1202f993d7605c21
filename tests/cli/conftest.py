"""What the tests of the command share: a lockspace on a file, and a device that falls ill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.ill_disk import IllDisk, ill_disk_on
from tests.cli.tool import make_space


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """Give a file with lockspace `vms` at 0 and resource `guest` at 1M."""
    path = tmp_path / "disk"
    make_space(path)
    return path


@pytest.fixture
def ill_disk(tmp_path: Path) -> Iterator[IllDisk]:
    """Give a loop device on a file of a FUSE file system, with what make_space makes."""
    backing = tmp_path / "backing"
    make_space(backing)
    with ill_disk_on(backing) as disk:
        yield disk
