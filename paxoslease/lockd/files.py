"""What the lock table does to files: each function may wait for a file system, and knows no table.

Source: spec/lock-drivers.md 6. The kernel drops a process's POSIX locks on a file when the process
closes *any* descriptor of that file. Nothing here closes a descriptor that was not given to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from paxoslease.wire.virtlock import AcquireFlag

_log = logging.getLogger(__name__)

_LOCK_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700


class Identity(NamedTuple):
    """What a path names: only both numbers together are one file."""

    device: int
    inode: int


def identity_of(descriptor: int) -> Identity:
    """Return which file a descriptor belongs to."""
    found = os.fstat(descriptor)
    return Identity(found.st_dev, found.st_ino)


def identity_at(path: bytes | os.PathLike[str]) -> Identity | None:
    """Return which file a path names, None when that cannot be told."""
    try:
        found = os.stat(path)
    except OSError:  # whatever is done with the path next says what is wrong with it
        return None
    return Identity(found.st_dev, found.st_ino)


def names_file(path: bytes | os.PathLike[str], identity: Identity) -> bool:
    """Tell whether a path still names a file that was opened by it."""
    return identity_at(path) == identity


def open_unless(
    path: bytes, flags: int, is_held: Callable[[Identity], bool]
) -> tuple[int | None, Identity | None]:
    """Open a file unless it is held; return its descriptor, None if it is, and which file it is.

    The file may come to be held, or the path to name a held one, at any moment: the caller looks
    again. An identity of None: it cannot be told, so the descriptor must never be closed.
    """
    named = identity_at(path)
    if named is not None and is_held(named):
        return None, named
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, _LOCK_FILE_MODE)
    try:
        return descriptor, identity_of(descriptor)
    except OSError as error:
        _log.error("descriptor_stays path=%r error=%s", path, error)
        return descriptor, None


def lock(descriptor: int, flags: AcquireFlag) -> None:
    """Lock the first byte, or have it locked already. Raises OSError when others have it."""
    kind = fcntl.LOCK_SH if flags & AcquireFlag.SHARED else fcntl.LOCK_EX
    fcntl.lockf(descriptor, kind | fcntl.LOCK_NB, 1, 0, os.SEEK_SET)


def is_locked(descriptor: int, flags: AcquireFlag) -> bool:
    """Tell whether this process has the lock. False, too, where only the file system knows.

    What the kernel notes for an open file is read without asking the file system.
    """
    kind = "READ" if flags & AcquireFlag.SHARED else "WRITE"
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    words = [line.split() for line in lines if line.startswith("lock:")]
    # lock: NUMBER: POSIX ADVISORY KIND PID DEVICE:INODE FIRST LAST
    return any((w[2], w[4], w[7:]) == ("POSIX", kind, ["0", "0"]) for w in words)


def remove_made(descriptor: int, flags: AcquireFlag, path: bytes, identity: Identity) -> None:
    """Remove a file that was made for a lock, while it is locked; not if others lock it too.

    What the path names meanwhile may be another one's lock file, and stays.
    """
    try:
        if _is_device(os.fstat(descriptor).st_mode) or not _is_locked_by_us_alone(
            descriptor, flags
        ):
            return
        if names_file(path, identity):
            os.unlink(path)
    except FileNotFoundError:
        _log.debug("lock_file_gone path=%r", path)
    except OSError as error:
        _log.warning("lock_file_stays path=%r error=%s", path, error)


def _is_locked_by_us_alone(descriptor: int, flags: AcquireFlag) -> bool:
    """Tell whether nobody else locks a file, which makes a shared lock a write lock."""
    if not flags & AcquireFlag.SHARED:
        return True
    try:
        lock(descriptor, AcquireFlag(0))
    except OSError:
        return False
    return True


def remove(path: bytes, identity: Identity | None) -> bool:
    """Remove a file; False when the path has come to name another one than before."""
    # No lock file is a device, and a system misses /dev/null badly.
    if _is_device(os.lstat(path).st_mode):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    if identity_at(path) != identity:
        return False
    os.unlink(path)
    return True


def close(descriptors: Iterable[int]) -> None:
    """Close descriptors, and with them all locks of this process on their files."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError as error:  # it is closed all the same
            _log.warning("close_failed descriptor=%d error=%s", descriptor, error)


def make_directories(path: bytes) -> None:
    """Make a directory and what is missing above it; FileExistsError when it is something else."""
    try:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        ends = [i for i, byte in enumerate(path) if byte == ord("/") and i > 0] + [len(path)]
    else:
        if not is_directory:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        return
    for end in ends:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path[:end], _DIRECTORY_MODE)
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _is_device(mode: int) -> bool:
    return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)
