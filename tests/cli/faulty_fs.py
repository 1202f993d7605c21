"""A file system with one file, `disk`, that falls ill when told to.

Run as a program: `python -m tests.cli.faulty_fs DIRECTORY BACKING MODE`. The file MODE says, at any
time, how the disk is: one of MODES. What hangs, hangs until MODE says something else.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import mfusepy

MODES = (
    "good", "read-error", "write-error",
    "read-hang", "write-hang", "open-hang", "close-hang", "stat-hang",
)  # fmt: skip


class FaultyDisk(mfusepy.Operations):  # type: ignore[misc]
    """The operations of the file system."""

    use_ns = True

    def __init__(self, backing: str, mode: str) -> None:
        self.fd = os.open(backing, os.O_RDWR)
        self.mode_path = Path(mode)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path != "/disk":
            raise mfusepy.FuseOSError(errno.ENOENT)
        self._suffer("stat")
        size = os.fstat(self.fd).st_size
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", "disk"]

    def open(self, path: str, flags: int) -> int:
        self._suffer("open")
        return 0

    def flush(self, path: str, fh: int) -> None:
        self._suffer("close")

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._suffer("read")
        return os.pread(self.fd, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._suffer("write")
        return os.pwrite(self.fd, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(self.fd)
        return 0

    def _suffer(self, verb: str) -> None:
        while self.mode_path.read_text() == f"{verb}-hang":
            time.sleep(0.02)
        if self.mode_path.read_text() == f"{verb}-error":
            raise mfusepy.FuseOSError(errno.EIO)


def main() -> None:
    """Serve until unmounted."""
    directory, backing, mode = sys.argv[1:]
    mfusepy.FUSE(FaultyDisk(backing, mode), directory, foreground=True, direct_io=True)


if __name__ == "__main__":
    main()
