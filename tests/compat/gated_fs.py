"""A file system of several files that are one disk, each file the way of one host to it.

Run as a program: `python -m tests.compat.gated_fs DIRECTORY BACKING FROM TO NAME...`. Every file
NAME shows the bytes of BACKING. A read or write that begins at FROM or above and below TO is
announced on stdout and, while its file is gated, waits for a word on stdin before anything happens.

Announcements are lines of JSON: {"id", "file", "verb", "offset", "size"} when an I/O has arrived,
{"id", "done", "data"} when it has taken effect (hex, the first sector) or was dropped (null).
Orders: {"gate": file, "on": bool}, {"pass": id}, {"drop": id} (fails without effect).
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import sys
import threading
from collections.abc import Callable
from typing import Any

import mfusepy

SHOWN_BYTES = 512


class GatedDisk(mfusepy.Operations):  # type: ignore[misc]
    """The operations of the file system; the kernel calls them from several threads."""

    use_ns = True

    def __init__(self, backing: str, zone: range, names: list[str]) -> None:
        self._fd = os.open(backing, os.O_RDWR)
        self._zone = zone
        self._names = names
        self._gated: set[str] = set()
        self._ids = itertools.count(1)
        self._word = threading.Condition()
        self._waiting: dict[int, bool | None] = {}

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path[1:] not in self._names:
            raise mfusepy.FuseOSError(errno.ENOENT)
        size = os.fstat(self._fd).st_size
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._names]

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self._do(path, "read", offset, size, lambda: os.pread(self._fd, size, offset))

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        def write() -> bytes:
            os.pwrite(self._fd, data, offset)
            return data

        return len(self._do(path, "write", offset, len(data), write))

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def _do(self, path: str, verb: str, offset: int, size: int, work: Callable[[], bytes]) -> bytes:
        if offset not in self._zone:
            return work()
        number = next(self._ids)
        with self._word:
            self._say(id=number, file=path[1:], verb=verb, offset=offset, size=size)
            if path[1:] in self._gated:
                self._waiting[number] = None
                self._word.wait_for(lambda: self._waiting[number] is not None)
                if not self._waiting.pop(number):
                    self._say(id=number, done=False, data=None)
                    raise mfusepy.FuseOSError(errno.EIO)
            # Under the lock, so what is announced is in the order of effects.
            data = work()
            self._say(id=number, done=True, data=data[:SHOWN_BYTES].hex())
        return data

    @staticmethod
    def _say(**event: object) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    def obey(self) -> None:
        """Carry out orders until stdin ends; then nothing is held back any more."""
        for line in sys.stdin:
            order = json.loads(line)
            with self._word:
                if "gate" in order:
                    (self._gated.add if order["on"] else self._gated.discard)(order["gate"])
                else:
                    verb, number = next(iter(order.items()))
                    self._waiting[number] = verb == "pass"
                self._word.notify_all()
        with self._word:
            self._gated.clear()
            self._waiting = dict.fromkeys(self._waiting, True)
            self._word.notify_all()


def main() -> None:
    """Serve until unmounted."""
    directory, backing, low, high, *names = sys.argv[1:]
    disk = GatedDisk(backing, range(int(low), int(high)), names)
    threading.Thread(target=disk.obey, daemon=True).start()
    mfusepy.FUSE(disk, directory, foreground=True, direct_io=True)


if __name__ == "__main__":
    main()
