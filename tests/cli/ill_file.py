"""A file that can be made to fail or hang, on a file system of faulty_fs.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

from tests.cli.faulty_fs import MODES
from tests.cli.tool import await_that

ROOT = Path(__file__).parents[2]


class FuseMissing(unittest.SkipTest):
    """There is no FUSE here, or we are not root."""


def require_fuse() -> None:
    """Raise FuseMissing when there can be no file system of ours."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists() or shutil.which("fusermount3") is None:
        raise FuseMissing("a disk that fails needs root and FUSE (fusermount3)")


class IllFile:
    """Such a file, well at first, over another one; `path` is there until `close`.

    directory: where the file system is mounted and its mode is kept. Raises FuseMissing.
    """

    def __init__(self, directory: Path, backing: Path) -> None:
        require_fuse()
        self._mode = directory / "mode"
        self._where = directory / "ill"
        self._where.mkdir()
        self.path = self._where / "disk"
        self.become("good")
        words = [str(self._where), str(backing), str(self._mode)]
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.faulty_fs", *words], cwd=ROOT
        )
        try:
            await_that(self._is_mounted, "the file system is mounted")
            assert self._server.poll() is None
            assert self.path.stat().st_size == backing.stat().st_size
        except BaseException:
            self.close()
            raise

    def _is_mounted(self) -> bool:
        return self._server.poll() is not None or os.path.ismount(self._where)

    def become(self, mode: str) -> None:
        """Fall ill, or get well."""
        assert mode in MODES
        new = Path(f"{self._mode}.new")
        new.write_text(mode)
        new.rename(self._mode)

    def close(self) -> None:
        """Get well and go."""
        self.become("good")
        subprocess.run(["umount", "--lazy", str(self._where)], check=True)
        # It would go on as long as a mount namespace that somebody made meanwhile.
        self._server.terminate()
        self._server.wait(20)
