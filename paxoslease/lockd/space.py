"""The table of locks: lockspaces, the resources that are held in them, and who holds them.

Source: spec/lock-drivers.md 6. Mutual exclusion comes from POSIX record locks on byte 0 of a file,
taken with F_SETLK and so never waited for. They belong to this process and to the inode: the kernel
drops them when the process closes *any* descriptor of the file, whichever lock it was opened for.
Three rules follow.

1. A file is never opened while a resource of it is held, whatever its name: a link, `//` and
   `a/../b` are found out by device and inode, and answered with *busy*.
2. Between finding out and opening, a path may come to name another file. A descriptor that turns
   out to belong to a held file is parked with it and closed when it is released, not before.
3. Files that the daemon itself holds a lock on (its pid file) are reserved in the same way.

A lock file that was created for a lock is removed while the lock is held; whoever locks such a
file therefore looks afterwards whether it still is the one that the path names.

Everything here is called from one thread and never waits but for the file system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from paxoslease.lockd import failures
from paxoslease.wire.virtlock import AcquireFlag

_log = logging.getLogger(__name__)

_LOCK_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
# Each round means that another daemon released between our open and our lock.
_ROUNDS_MAX = 1000


class Identity(NamedTuple):
    """What a path names: only both numbers together are one file."""

    device: int
    inode: int


@dataclass(slots=True)
class Resource:
    """A resource that is held. `flags` are those of its first owner; `owners` are pids, counted."""

    name: bytes
    path: bytes
    descriptor: int
    identity: Identity
    flags: AcquireFlag
    owners: list[int]


@dataclass(slots=True)
class Lockspace:
    """Resources under one directory, or under none: `directory` is then empty."""

    directory: bytes
    resources: dict[bytes, Resource] = field(default_factory=dict)

    def path_of(self, name: bytes) -> bytes:
        """Return the file of a resource; names may walk out of the directory."""
        return self.directory + b"/" + name if self.directory else name


class LockTable:
    """All lockspaces of the daemon. Methods raise LockRefused, and then have changed nothing.

    Lockspaces are found by their directory, byte by byte; the empty one is always there.
    """

    def __init__(self) -> None:
        self.lockspaces: dict[bytes, Lockspace] = {b"": Lockspace(b"")}
        # By file: the descriptor that carries the lock, then those that are parked with it.
        self._descriptors: dict[Identity, list[int]] = {}

    # -- lockspaces

    def new_lockspace(self, directory: bytes) -> None:
        """Make a lockspace that must not be known."""
        if not directory:
            raise failures.default_lockspace_exists()
        if directory in self.lockspaces:
            raise failures.lockspace_exists(directory)
        self._make_lockspace(directory)

    def create_lockspace(self, directory: bytes) -> None:
        """Make a lockspace unless it is known."""
        if directory not in self.lockspaces:
            self._make_lockspace(directory)

    def _make_lockspace(self, directory: bytes) -> None:
        try:
            _make_directories(directory)
        except FileExistsError:
            raise failures.not_a_directory(directory) from None
        except OSError as error:
            raise failures.cannot_make_directory(directory, error) from None
        self.lockspaces[directory] = Lockspace(directory)

    def _lockspace(self, directory: bytes) -> Lockspace:
        try:
            return self.lockspaces[directory]
        except KeyError:
            raise failures.no_lockspace(directory) from None

    # -- resource files

    def create_resource(self, directory: bytes, name: bytes) -> None:
        """Make the file of a resource; one that exists will do."""
        lockspace = self._lockspace(directory)
        if name in lockspace.resources:
            raise failures.busy(name)
        path = lockspace.path_of(name)
        try:
            # Not to be blocked by a named pipe that nobody reads.
            flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK
            descriptor, _ = self._open(path, name, flags)
        except OSError as error:
            raise failures.cannot_create(path, error) from None
        os.close(descriptor)

    def delete_resource(self, directory: bytes, name: bytes) -> None:
        """Remove the file of a resource, if there is one."""
        lockspace = self._lockspace(directory)
        path = lockspace.path_of(name)
        if name in lockspace.resources or self._is_held(path):
            raise failures.busy(name)
        try:
            # No lock file is a device, and a system misses /dev/null badly.
            if _is_device(os.lstat(path).st_mode):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise failures.cannot_delete(path, error) from None

    # -- locks

    def acquire(self, directory: bytes, name: bytes, owner: int, flags: AcquireFlag) -> None:
        """Lock a resource for an owner; a shared one may have many, or one more than once."""
        lockspace = self._lockspace(directory)
        held = lockspace.resources.get(name)
        if held is None:
            resource = self._lock(lockspace.path_of(name), name, owner, flags)
            lockspace.resources[name] = resource
        elif held.flags & flags & AcquireFlag.SHARED:
            held.owners.append(owner)
        else:
            raise failures.busy(name)

    def release(self, directory: bytes, name: bytes, owner: int) -> None:
        """Take one share of a resource from its owner, and the lock off the file with the last."""
        lockspace = self._lockspace(directory)
        resource = lockspace.resources.get(name)
        if resource is None:
            raise failures.not_locked(name)
        if owner not in resource.owners:
            raise failures.not_owner(owner)
        resource.owners.remove(owner)
        if not resource.owners:
            self._drop(lockspace, resource)

    def release_owner(self, owner: int) -> int:
        """Release everything that an owner holds; return how many resources that were.

        All its shares are taken, not one of each as virtlockd does: its locks end with it.
        """
        count = 0
        for lockspace in self.lockspaces.values():
            for resource in list(lockspace.resources.values()):
                if owner not in resource.owners:
                    continue
                count += 1
                resource.owners = [other for other in resource.owners if other != owner]
                if not resource.owners:
                    self._drop(lockspace, resource)
        return count

    def held(self) -> Iterator[tuple[Lockspace, Resource]]:
        """Yield everything that is held."""
        for lockspace in self.lockspaces.values():
            for resource in lockspace.resources.values():
                yield lockspace, resource

    # -- from one image of the program to the next

    def descriptors(self) -> list[int]:
        """Return every descriptor that must stay open for the locks to stay."""
        return [descriptor for found in self._descriptors.values() for descriptor in found]

    def parked(self) -> list[int]:
        """Return the descriptors that no resource names but that must stay open."""
        named = {resource.descriptor for _, resource in self.held()}
        return [descriptor for descriptor in self.descriptors() if descriptor not in named]

    def park(self, descriptor: int) -> None:
        """Keep a descriptor open as long as its file is held; close it if it is not."""
        found = self._descriptors.get(identity_of(descriptor))
        if found is None:
            os.close(descriptor)
        elif descriptor not in found:
            found.append(descriptor)

    def adopt_lockspace(self, directory: bytes) -> None:
        """Know a lockspace that was made before."""
        self.lockspaces.setdefault(directory, Lockspace(directory))

    def adopt(self, directory: bytes, resource: Resource) -> None:
        """Take over a resource that is locked already, with its descriptor.

        The lock is asked for again, which changes nothing when it survived. Raises OSError when it
        did not and somebody else has it; the descriptor then is not taken over.
        """
        fcntl.lockf(resource.descriptor, _operation(resource.flags), 1, 0, os.SEEK_SET)
        self.lockspaces[directory].resources[resource.name] = resource
        # Two names of one file: virtlockd's own table may have them, and both descriptors must stay
        # until the last name is released.
        self._descriptors.setdefault(resource.identity, []).append(resource.descriptor)

    def reserve(self, descriptor: int) -> None:
        """Keep a file of the daemon itself from being locked, opened and closed by clients."""
        self._descriptors[identity_of(descriptor)] = [descriptor]

    # -- files

    def _open(self, path: bytes, name: bytes, flags: int) -> tuple[int, Identity]:
        """Open a file that is not held; OSError is the caller's to explain."""
        if self._is_held(path):
            raise failures.busy(name)
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, _LOCK_FILE_MODE)
        identity = identity_of(descriptor)
        if identity in self._descriptors:
            self._descriptors[identity].append(descriptor)
            raise failures.busy(name)
        return descriptor, identity

    def _is_held(self, path: bytes) -> bool:
        try:
            found = os.stat(path)
        except OSError:  # whatever is done with the path next says what is wrong with it
            return False
        return Identity(found.st_dev, found.st_ino) in self._descriptors

    def _lock(self, path: bytes, name: bytes, owner: int, flags: AcquireFlag) -> Resource:
        is_created = bool(flags & AcquireFlag.AUTOCREATE)
        for _ in range(_ROUNDS_MAX):
            try:
                creation = os.O_CREAT if is_created else 0
                descriptor, identity = self._open(path, name, os.O_RDWR | creation)
            except OSError as error:
                raise failures.cannot_open(path, error, creating=is_created) from None
            try:
                fcntl.lockf(descriptor, _operation(flags), 1, 0, os.SEEK_SET)
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise failures.busy(name) from None
                raise failures.cannot_lock(path, error) from None
            if not is_created or names_file(path, identity):
                self._descriptors[identity] = [descriptor]
                return Resource(name, path, descriptor, identity, flags, [owner])
            os.close(descriptor)
        raise failures.busy(name)

    def _drop(self, lockspace: Lockspace, resource: Resource) -> None:
        """Remove the file if it was made for the lock, then give up the lock: in this order."""
        del lockspace.resources[resource.name]
        sharers = [other for _, other in self.held() if other.identity == resource.identity]
        if sharers:  # taken over under two names: the lock is still needed
            return
        is_lock_file = not _is_device(os.fstat(resource.descriptor).st_mode)
        is_made = resource.flags & AcquireFlag.AUTOCREATE and is_lock_file
        if is_made and _is_ours_alone(resource):
            try:
                os.unlink(resource.path)
            except FileNotFoundError:
                _log.debug("lock_file_gone path=%r", resource.path)
            except OSError as error:
                _log.warning("lock_file_stays path=%r error=%s", resource.path, error)
        for descriptor in self._descriptors.pop(resource.identity):
            os.close(descriptor)


def identity_of(descriptor: int) -> Identity:
    """Return which file a descriptor belongs to."""
    found = os.fstat(descriptor)
    return Identity(found.st_dev, found.st_ino)


def names_file(path: bytes | os.PathLike[str], identity: Identity) -> bool:
    """Tell whether a path still names a file that was opened by it."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return identity == (found.st_dev, found.st_ino)


def _is_device(mode: int) -> bool:
    return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)


def _is_ours_alone(resource: Resource) -> bool:
    """Tell whether nobody else locks a resource's file, which makes its lock a write lock."""
    if not resource.flags & AcquireFlag.SHARED:
        return True
    try:
        exclusive = fcntl.LOCK_EX | fcntl.LOCK_NB
        fcntl.lockf(resource.descriptor, exclusive, 1, 0, os.SEEK_SET)
    except OSError:
        return False
    return True


def _operation(flags: AcquireFlag) -> int:
    kind = fcntl.LOCK_SH if flags & AcquireFlag.SHARED else fcntl.LOCK_EX
    return kind | fcntl.LOCK_NB


def _make_directories(path: bytes) -> None:
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
