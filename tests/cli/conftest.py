"""What the tests of the command share: a lockspace on a file, and a device that falls ill."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.faulty_fs import MODES
from tests.cli.tool import MIB, await_that, make_space
from tests.conftest import loop_device, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """Give a file with lockspace `vms` at 0 and resource `guest` at 1M."""
    path = tmp_path / "disk"
    make_space(path)
    return path


class IllDisk(NamedTuple):
    """A loop device that can be made to fail or hang, with what make_space makes on it."""

    device: str
    backing: Path
    mode_path: Path

    def set(self, mode: str) -> None:
        """Fall ill, or get well."""
        assert mode in MODES
        new = self.mode_path.with_suffix(".new")
        new.write_text(mode)
        new.rename(self.mode_path)


@pytest.fixture
def ill_disk(tmp_path: Path) -> Iterator[IllDisk]:
    """Give a loop device on a file of a FUSE file system."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists() or shutil.which("fusermount3") is None:
        pytest.skip("a device that fails needs root and FUSE (fusermount3)")
    if subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode != 0:
        pytest.skip("there are no loop devices here")
    directory = tmp_path / "fuse"
    directory.mkdir()
    backing, mode = tmp_path / "backing", tmp_path / "mode"
    make_space(backing)
    mode.write_text("good")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.faulty_fs", str(directory), str(backing), str(mode)],
        cwd=ROOT,
    )
    try:
        await_that(
            lambda: server.poll() is not None or (directory / "disk").exists(), "FUSE is mounted"
        )
        assert server.poll() is None
        assert (directory / "disk").stat().st_size == 2 * MIB
        with loop_device(directory / "disk", 512) as device:
            disk = IllDisk(device, backing, mode)
            yield disk
            disk.set("good")
    finally:
        run("umount", "--lazy", str(directory))
        server.terminate()
        server.wait(20)
