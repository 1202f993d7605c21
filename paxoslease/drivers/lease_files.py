"""Automatic leases: a file per disk, and a file for the lockspace they all belong to.

The files, their names and what is in them are those of libvirt's sanlock plugin, so that hosts with
either can share a directory. They are made under another name and get their own by link(2): a file
that has its name is complete, and of two hosts that make one at once, one wins.

Source: spec/lock-drivers.md 12.2 and 12.4.
"""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import stat
import tempfile
from collections.abc import Callable
from typing import Final, NamedTuple

from paxoslease.client import Connection
from paxoslease.errors import ConfigError
from paxoslease.wire.sanlock import Disk, Lockspace, Resource

DISKS_LOCKSPACE: Final = b"__LIBVIRT__DISKS__"
_CHUNK: Final = 1 << 20
_ALIGN_MAX: Final = 8 << 20


def lease_name(disk_path: str) -> str:
    """Return the name of a disk's lease: the MD5 of its path as written, in hexadecimal."""
    return hashlib.md5(os.fsencode(disk_path), usedforsecurity=False).hexdigest()


class Access(NamedTuple):
    """Who may use the files; -1 leaves the owner or group as it is."""

    uid: int = -1
    gid: int = -1

    @property
    def mode(self) -> int:
        """Return the permissions of a file."""
        return 0o660 if self.gid >= 0 else 0o600

    def give(self, fd: int) -> None:
        """Change the owner of an open file."""
        if self.uid >= 0 or self.gid >= 0:
            os.fchown(fd, self.uid, self.gid)


def access_of(user: str | None, group: str | None) -> Access:
    """Return the access for names, or numbers written as +N. Raises ConfigError."""
    try:
        uid = _number(user, lambda name: pwd.getpwnam(name).pw_uid)
        gid = _number(group, lambda name: grp.getgrnam(name).gr_gid)
    except KeyError as error:
        raise ConfigError("user or group", str(error.args[0])) from None
    return Access(uid, gid)


def _number(name: str | None, look_up: Callable[[str], int]) -> int:
    if not name:
        return -1
    if name.startswith("+") and name[1:].isdecimal():
        return int(name[1:])
    return look_up(name)


def ensure_lockspace(
    daemon: Connection, directory: str, access: Access, io_timeout: int
) -> Lockspace:
    """Make the lockspace of automatic leases if it is not there; host_id is for the caller.

    Raises DaemonError, OSError.
    """
    path = os.path.join(directory, os.fsdecode(DISKS_LOCKSPACE))

    def write(place: bytes) -> None:
        space = Lockspace(DISKS_LOCKSPACE, disk=Disk(place))
        daemon.write_lockspace(space, io_timeout)

    if not _make(daemon, path, access, write):
        _correct_access(path, access)
    return Lockspace(DISKS_LOCKSPACE, disk=Disk(os.fsencode(path)))


def ensure_lease(daemon: Connection, directory: str, access: Access, name: str) -> str:
    """Make the lease file of a name if it is not there; returns its path. Errors as above."""
    path = os.path.join(directory, name)

    def write(place: bytes) -> None:
        daemon.write_resource(Resource(DISKS_LOCKSPACE, name.encode(), (Disk(place),)))

    _make(daemon, path, access, write)
    return path


def _make(daemon: Connection, path: str, access: Access, write: Callable[[bytes], None]) -> bool:
    """Make and format a file unless it is there; True when this call made it."""
    if os.path.lexists(path):
        return False
    directory, name = os.path.split(path)
    fd, place = tempfile.mkstemp(prefix=f".{name}.", suffix=".new", dir=directory)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            os.fchmod(fd, access.mode)
            access.give(fd)
            size = daemon.align(os.fsencode(place))
            if not 0 < size <= _ALIGN_MAX:
                raise OSError(errno.EPROTO, f"the daemon wants an area of {size} bytes", place)
            for _ in range(0, size, _CHUNK):
                file.write(bytes(min(_CHUNK, size)))
            os.fsync(fd)
        write(os.fsencode(place))
        try:
            os.link(place, path)
        except FileExistsError:
            return False
        _sync_directory(directory)
        return True
    finally:
        os.unlink(place)


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _correct_access(path: str, access: Access) -> None:
    """Give a file that was there the owner that is configured, as libvirt does."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        return
    if access.uid not in (-1, found.st_uid) or access.gid not in (-1, found.st_gid):
        os.chown(path, access.uid, access.gid)
    if access.gid >= 0 and stat.S_IMODE(found.st_mode) != access.mode:
        os.chmod(path, access.mode)
