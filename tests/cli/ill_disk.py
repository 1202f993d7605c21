"""A loop device that can be made to fail or hang."""

from __future__ import annotations

import subprocess
import unittest
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.cli.ill_file import IllFile
from tests.conftest import loop_device


class IllDisk(NamedTuple):
    """A loop device on a file that can be made to fail or hang, and the file behind that."""

    device: str
    backing: Path
    file: IllFile

    def set(self, mode: str) -> None:
        """Fall ill, or get well."""
        self.file.become(mode)


@contextmanager
def ill_disk_on(backing: Path) -> Iterator[IllDisk]:
    """Give such a device on a file; it is well at first. Raises SkipTest where that cannot be."""
    if subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode != 0:
        raise unittest.SkipTest("there are no loop devices here")
    with (
        closing(IllFile(backing.parent, backing)) as file,
        loop_device(file.path, 512) as device,
    ):
        yield IllDisk(device, backing, file)
        file.become("good")
