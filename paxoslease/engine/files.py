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
            if found is not None and found[0].fd >= 0:
                self._open[path] = (found[0], found[1] + 1)
                return found[0]
        file = open_direct(path)
        with self._lock:
            other, users = self._open.get(path, (file, 0))
            if other.fd < 0:
                other.become(file)
            self._open[path] = (other, users + 1)
        if other is not file:
            file.close()
        return other

    def promise(self, path: str) -> DirectFile:
        """Return the file of a path, to be opened later if it is not open (`fulfil`); never blocks.

        What is asked of it before fails.
        """
        with self._lock:
            file, users = self._open.get(path) or (DirectFile(path, -1, 0, 0, is_block=False), 0)
            self._open[path] = (file, users + 1)
        return file

    def fulfil(self, path: str) -> None:
        """Open a file that was promised. Nothing to do when it is open, or was given up.

        Raises DiskError, UnsuitableDevice.
        """
        with self._lock:
            found = self._open.get(path)
        if found is None or found[0].fd >= 0:
            return
        file = open_direct(path)
        with self._lock:
            now = self._open.get(path)
            if now is not None and now[0].fd < 0:
                now[0].become(file)
        file.close()

    def hold_open(self, path: str) -> bool:
        """Use a file that is open already, without ever blocking; False when it is not."""
        with self._lock:
            found = self._open.get(path)
            if found is None or found[0].fd < 0:
                return False
            self._open[path] = (found[0], found[1] + 1)
        return True

    def is_open(self, path: str) -> bool:
        """Tell whether the file of a path is open."""
        with self._lock:
            found = self._open.get(path)
        return found is not None and found[0].fd >= 0

    def held(self, path: str) -> DirectFile:
        """Return the open file of a path that the caller uses already; never blocks."""
        with self._lock:
            return self._open[path][0]

    def changed_paths(self) -> list[str]:
        """Return the paths that could not be opened again, or are of another file by now.

        May block, as opening does.
        """
        with self._lock:
            # Copies, since they may be given up meanwhile.
            held = {
                path: os.dup(file.fd) if file.fd >= 0 else -1
                for path, (file, _) in self._open.items()
            }
        try:
            return [path for path, fd in held.items() if not _is_found_again(path, fd)]
        finally:
            for fd in held.values():
                if fd >= 0:
                    os.close(fd)

    def drop(self, path: str) -> None:
        """Give up one use of a path."""
        with self._lock:
            file, users = self._open.pop(path)
            if users > 1:
                self._open[path] = (file, users - 1)
                return
        # The kernel keeps a reference for what may still be in flight.
        file.close()


def _is_found_again(path: str, fd: int) -> bool:
    """Tell whether a path leads to the file that is open already."""
    if fd < 0:
        return False
    try:
        with open_direct(path) as again:
            return os.path.sameopenfile(again.fd, fd) or _device(again.fd) == _device(fd)
    except StorageError:
        return False


def _device(fd: int) -> int:
    """Return the number of a block device, by whatever node it was opened; else a unique one."""
    found = os.fstat(fd)
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else -1 - fd
