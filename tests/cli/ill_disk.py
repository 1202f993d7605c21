"""A loop device that can be made to fail or hang, over a file system of faulty_fs.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.cli.faulty_fs import MODES
from tests.cli.tool import await_that
from tests.conftest import loop_device, run

ROOT = Path(__file__).parents[2]


class IllDisk(NamedTuple):
    """A loop device that can be made to fail or hang, and the file behind it."""

    device: str
    backing: Path
    mode_path: Path

    def set(self, mode: str) -> None:
        """Fall ill, or get well."""
        assert mode in MODES
        new = self.mode_path.with_suffix(".new")
        new.write_text(mode)
        new.rename(self.mode_path)


@contextmanager
def ill_disk_on(backing: Path) -> Iterator[IllDisk]:
    """Give such a device on a file; it is well at first. Raises SkipTest where that cannot be."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists() or shutil.which("fusermount3") is None:
        raise unittest.SkipTest("a device that fails needs root and FUSE (fusermount3)")
    if subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode != 0:
        raise unittest.SkipTest("there are no loop devices here")
    directory, mode = backing.with_name("fuse"), backing.with_name("mode")
    directory.mkdir()
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
        assert (directory / "disk").stat().st_size == backing.stat().st_size
        with loop_device(directory / "disk", 512) as device:
            disk = IllDisk(device, backing, mode)
            yield disk
            disk.set("good")
    finally:
        run("umount", "--lazy", str(directory))
        server.terminate()
        server.wait(20)
