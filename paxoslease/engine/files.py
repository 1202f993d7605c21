"""Open files, shared by everything that uses the same path."""

from __future__ import annotations

import os
import stat
import threading

from paxoslease.disk.direct import DirectFile, open_direct
from paxoslease.errors import StorageError


class Files:
    """Counts the users of each path; a file is closed when its last user has gone.

    Opening may block on a device that hangs, so it is done by the thread that asks, never by a
    runner. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, tuple[DirectFile, int]] = {}

    def hold(self, path: str) -> DirectFile:
        """Return the open file of a path. Raises DiskError, UnsuitableDevice."""
        with self._lock:
            found = self._open.get(path)
            if found is not None:
                self._open[path] = (found[0], found[1] + 1)
                return found[0]
        file = open_direct(path)
        with self._lock:
            other, users = self._open.get(path, (file, 0))
            self._open[path] = (other, users + 1)
        if other is not file:
            file.close()
        return other

    def hold_open(self, path: str) -> bool:
        """Use a file that is open already, without ever blocking; False when it is not."""
        with self._lock:
            found = self._open.get(path)
            if found is not None:
                self._open[path] = (found[0], found[1] + 1)
        return found is not None

    def held(self, path: str) -> DirectFile:
        """Return the open file of a path that the caller uses already; never blocks."""
        with self._lock:
            return self._open[path][0]

    def changed_paths(self) -> list[str]:
        """Return the paths that could not be opened again, or are of another file by now.

        May block, as opening does.
        """
        with self._lock:
            held = {path: file.fd for path, (file, _) in self._open.items()}
        changed: list[str] = []
        for path, fd in held.items():
            try:
                with open_direct(path) as again:
                    is_same = os.path.sameopenfile(again.fd, fd) or _device(again.fd) == _device(fd)
            except StorageError:
                is_same = False
            if not is_same:
                changed.append(path)
        return changed

    def drop(self, path: str) -> None:
        """Give up one use of a path."""
        with self._lock:
            file, users = self._open.pop(path)
            if users > 1:
                self._open[path] = (file, users - 1)
                return
        # The kernel keeps a reference for what may still be in flight.
        file.close()


def _device(fd: int) -> int:
    """Return the number of a block device, by whatever node it was opened; else a unique one."""
    found = os.fstat(fd)
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else -1 - fd
