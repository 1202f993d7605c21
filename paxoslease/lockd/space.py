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

A file system may take any time for each step, so everything that touches files is an operation (see
`work`): others go on meanwhile, and each finds the table as it is between two steps.

4. A file is reserved from the moment in which it is known which one was opened until all its
   descriptors are closed, so rules 1 and 2 hold for what is not locked yet and not closed yet.
   Who meets a file that is in use by an operation, by whatever name, tries again when that is over.
5. Operations on one resource take turns. What is said about it is said after what was asked first.
6. No lock is had that nobody knows of. An acquire goes on until the file system has answered, and
   only then enters the resource into the table, in the same step in which it looks whether its
   owner has left and whether the one that asked is still there to be told; if not, the lock is
   given up at once. What leaves before that step is noticed by it, what leaves after it finds the
   resource in the table. A release, once begun, is carried out whoever has left.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from paxoslease.lockd import failures, files
from paxoslease.lockd.files import Identity, identity_of
from paxoslease.lockd.work import Operation, Turn, Until, on_files
from paxoslease.wire.virtlock import AcquireFlag

# Each round means that another daemon released between our open and our lock.
_ROUNDS_MAX = 1000


@dataclass(slots=True)
class Resource:
    """A resource that is held. `flags` are those of its first owner; `owners` are pids, counted."""

    name: bytes
    path: bytes
    descriptor: int
    identity: Identity
    flags: AcquireFlag
    owners: list[int]

    def lock(self) -> bool:
        """Lock the file; False when that keeps nobody out, since its path names it no more.

        Whoever gives up the lock of a file that was made for it removes the file first. May wait
        for the file system.
        """
        files.lock(self.descriptor, self.flags)
        is_made = self.flags & AcquireFlag.AUTOCREATE
        return not is_made or files.names_file(self.path, self.identity)

    def remove_file(self) -> None:
        """Remove the file, which was made for the lock. May wait for the file system."""
        files.remove_made(self.descriptor, self.flags, self.path, self.identity)


@dataclass(slots=True)
class Lockspace:
    """Resources under one directory, or under none: `directory` is then empty."""

    directory: bytes
    resources: dict[bytes, Resource] = field(default_factory=dict)

    def path_of(self, name: bytes) -> bytes:
        """Return the file of a resource; names may walk out of the directory."""
        return self.directory + b"/" + name if self.directory else name


@dataclass(slots=True, eq=False)
class _Claim:
    """An acquire under way. `has_left`: its owner's end has been noticed meanwhile."""

    owner: int
    has_left: bool = False


def _anybody() -> bool:
    return True


class LockTable:
    """All lockspaces of the daemon. Operations raise LockRefused, and then have changed nothing.

    Lockspaces are found by their directory, byte by byte; the empty one is always there.
    """

    def __init__(self) -> None:
        self.lockspaces: dict[bytes, Lockspace] = {b"": Lockspace(b"")}
        # By file that is reserved: the descriptor that carries the lock, then those parked with it.
        self._descriptors: dict[Identity, list[int]] = {}
        # How many resources hold a file: more than one only where virtlockd granted two names.
        self._name_counts: Counter[Identity] = Counter()
        # Those files that an operation uses, which are held by nobody yet or no more.
        self._in_use: set[Identity] = set()
        self._claims: list[_Claim] = []

    # -- lockspaces

    def new_lockspace(self, directory: bytes) -> Operation[None]:
        """Make a lockspace that must not be known."""
        if not directory:
            raise failures.default_lockspace_exists()
        yield Turn((directory,))
        if directory in self.lockspaces:
            raise failures.lockspace_exists(directory)
        yield from self._make_lockspace(directory)

    def create_lockspace(self, directory: bytes) -> Operation[None]:
        """Make a lockspace unless it is known."""
        yield Turn((directory,))
        if directory not in self.lockspaces:
            yield from self._make_lockspace(directory)

    def _make_lockspace(self, directory: bytes) -> Operation[None]:
        try:
            yield from on_files(lambda: files.make_directories(directory))
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

    def create_resource(self, directory: bytes, name: bytes) -> Operation[None]:
        """Make the file of a resource; one that exists will do."""
        lockspace = self._lockspace(directory)
        yield Turn((directory, name))
        if name in lockspace.resources:
            raise failures.busy(name)
        path = lockspace.path_of(name)
        try:
            # Not to be blocked by a named pipe that nobody reads.
            flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK
            _, identity = yield from self._open(path, name, flags)
        except OSError as error:
            raise failures.cannot_create(path, error) from None
        yield from self._let_go(identity)

    def delete_resource(self, directory: bytes, name: bytes) -> Operation[None]:
        """Remove the file of a resource, if there is one."""
        lockspace = self._lockspace(directory)
        yield Turn((directory, name))
        if name in lockspace.resources:
            raise failures.busy(name)
        path = lockspace.path_of(name)
        while True:
            identity = yield from on_files(lambda: files.identity_at(path))
            if identity not in self._descriptors:
                break
            yield from self._meet(identity, name)
        if identity is not None:
            self._reserve(identity)
        try:
            is_same = yield from on_files(lambda: files.remove(path, identity))
        except FileNotFoundError:
            is_same = True
        except OSError as error:
            raise failures.cannot_delete(path, error) from None
        finally:
            if identity is not None:
                yield from self._let_go(identity)
        if not is_same:
            raise failures.busy(name)

    # -- locks

    def acquire(
        self,
        directory: bytes,
        name: bytes,
        owner: int,
        flags: AcquireFlag,
        is_there: Callable[[], bool] = _anybody,
    ) -> Operation[None]:
        """Lock a resource for an owner; a shared one may have many, or one more than once.

        is_there: tells whether the one that asks still waits for the answer.
        """
        lockspace = self._lockspace(directory)
        claim = _Claim(owner)

        def check_is_wanted() -> None:
            if claim.has_left or not is_there():
                raise failures.cannot_lock(path, OSError(errno.ESRCH, os.strerror(errno.ESRCH)))

        path = lockspace.path_of(name)
        self._claims.append(claim)
        try:
            yield Turn((directory, name))
            check_is_wanted()
            held = lockspace.resources.get(name)
            if held is None:
                held = yield from self._lock(path, name, flags)
                self._enter(lockspace, held)
                self._in_use.remove(held.identity)
            elif not held.flags & flags & AcquireFlag.SHARED:
                raise failures.busy(name)
            try:
                check_is_wanted()
            except failures.LockRefused:
                yield from self._drop_unowned(lockspace, held)
                raise
            held.owners.append(owner)
        finally:
            self._claims.remove(claim)

    def release(self, directory: bytes, name: bytes, owner: int) -> Operation[None]:
        """Take one share of a resource from its owner, and the lock off the file with the last."""
        lockspace = self._lockspace(directory)
        yield Turn((directory, name))
        resource = lockspace.resources.get(name)
        if resource is None:
            raise failures.not_locked(name)
        if owner not in resource.owners:
            raise failures.not_owner(owner)
        resource.owners.remove(owner)
        yield from self._drop_unowned(lockspace, resource)

    def release_owner(self, owner: int) -> list[Operation[None]]:
        """Release everything that an owner holds; return what remains to be done for each resource.

        All its shares are taken, not one of each as virtlockd does: its locks end with it. What is
        being acquired for it will not be had.
        """
        for claim in self._claims:
            claim.has_left = claim.has_left or claim.owner == owner
        drops = []
        for lockspace, resource in self.held():
            if owner in resource.owners:
                resource.owners = [other for other in resource.owners if other != owner]
                drops.append(self._in_turn(lockspace, resource))
        return drops

    def _in_turn(self, lockspace: Lockspace, resource: Resource) -> Operation[None]:
        yield Turn((lockspace.directory, resource.name))
        if lockspace.resources.get(resource.name) is resource:
            yield from self._drop_unowned(lockspace, resource)

    def held(self) -> Iterator[tuple[Lockspace, Resource]]:
        """Yield everything that is held."""
        for lockspace in self.lockspaces.values():
            for resource in lockspace.resources.values():
                yield lockspace, resource

    def concerns(self, owner: int) -> bool:
        """Tell whether an owner holds anything, or is about to."""
        return any(claim.owner == owner for claim in self._claims) or any(
            owner in resource.owners for _, resource in self.held()
        )

    # -- from one image of the program to the next

    def descriptors(self) -> list[int]:
        """Return every descriptor that must stay open for the locks to stay."""
        return [descriptor for found in self._descriptors.values() for descriptor in found]

    def parked(self) -> list[tuple[int, Identity]]:
        """Return the descriptors that no resource names but that must stay open."""
        named = {resource.descriptor for _, resource in self.held()}
        return [
            (descriptor, identity)
            for identity, found in self._descriptors.items()
            for descriptor in found
            if descriptor not in named
        ]

    def park(self, descriptor: int, identity: Identity) -> None:
        """Keep a descriptor open as long as its file is held; close it if it is not."""
        found = self._descriptors.get(identity)
        if found is None:
            os.close(descriptor)
        elif descriptor not in found:
            found.append(descriptor)

    def adopt_lockspace(self, directory: bytes) -> None:
        """Know a lockspace that was made before."""
        self.lockspaces.setdefault(directory, Lockspace(directory))

    def adopt(self, directory: bytes, resource: Resource) -> None:
        """Take over a resource that is locked already, with its descriptor.

        Raises OSError when the lock did not survive and somebody else has it; the descriptor then
        is not taken over. Asking the file system, which may hang, is avoided where possible.
        """
        if not files.is_locked(resource.descriptor, resource.flags):
            files.lock(resource.descriptor, resource.flags)
        self._enter(self.lockspaces[directory], resource)
        # Two names of one file: virtlockd's own table may have them, and both descriptors must stay
        # until the last name is released.
        self._descriptors.setdefault(resource.identity, []).append(resource.descriptor)

    def reserve(self, descriptor: int) -> None:
        """Keep a file of the daemon itself from being locked, opened and closed by clients."""
        self._descriptors[identity_of(descriptor)] = [descriptor]

    # -- files

    def _open(self, path: bytes, name: bytes, flags: int) -> Operation[tuple[int, Identity]]:
        """Open a file that is not held, and reserve it; OSError is the caller's to explain."""
        # Looked up in another thread, which saves a descriptor, and then again here, which counts.
        is_held = self._descriptors.__contains__
        for _ in range(_ROUNDS_MAX):
            descriptor, identity = yield from on_files(
                lambda: files.open_unless(path, flags, is_held)
            )
            if descriptor is not None and identity is None:
                self._descriptors[_unknown(descriptor)] = [descriptor]
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            assert identity is not None
            if identity in self._descriptors:
                if descriptor is not None:
                    self._descriptors[identity].append(descriptor)
                yield from self._meet(identity, name)
            elif descriptor is not None:
                self._reserve(identity, descriptor)
                return descriptor, identity
        raise failures.busy(name)

    def _meet(self, identity: Identity, name: bytes) -> Operation[None]:
        """Wait for the operation that uses a file; if there is none the file is held: refuse."""
        if identity not in self._in_use:
            raise failures.busy(name)
        yield Until(lambda: identity not in self._in_use)

    def _reserve(self, identity: Identity, *descriptors: int) -> None:
        """Let an operation use a file until it is held, or let go."""
        self._descriptors[identity] = [*descriptors]
        self._in_use.add(identity)

    def _let_go(self, identity: Identity) -> Operation[None]:
        """Close everything of a file, and what is parked with it meanwhile."""
        self._in_use.add(identity)
        found = self._descriptors[identity]
        while found:
            closing = found.copy()
            found.clear()
            yield from on_files(lambda closing=closing: files.close(closing))  # type: ignore[misc]
        del self._descriptors[identity]
        self._in_use.remove(identity)

    def _lock(self, path: bytes, name: bytes, flags: AcquireFlag) -> Operation[Resource]:
        """Open and lock a file for nobody yet."""
        is_made = bool(flags & AcquireFlag.AUTOCREATE)
        for _ in range(_ROUNDS_MAX):
            try:
                creation = os.O_CREAT if is_made else 0
                descriptor, identity = yield from self._open(path, name, os.O_RDWR | creation)
            except OSError as error:
                raise failures.cannot_open(path, error, creating=is_made) from None
            resource = Resource(name, path, descriptor, identity, flags, [])
            try:
                is_named = yield from on_files(resource.lock)
            except OSError as error:
                yield from self._let_go(identity)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise failures.busy(name) from None
                raise failures.cannot_lock(path, error) from None
            if is_named:
                return resource
            yield from self._let_go(identity)
        raise failures.busy(name)

    def _enter(self, lockspace: Lockspace, resource: Resource) -> None:
        lockspace.resources[resource.name] = resource
        self._name_counts[resource.identity] += 1

    def _drop_unowned(self, lockspace: Lockspace, resource: Resource) -> Operation[None]:
        """If nobody owns a resource any more, give up its lock, and remove a file made for it."""
        if resource.owners:
            return
        del lockspace.resources[resource.name]
        self._name_counts[resource.identity] -= 1
        if self._name_counts[resource.identity]:  # taken over under two names: still needed
            return
        del self._name_counts[resource.identity]
        self._in_use.add(resource.identity)
        if resource.flags & AcquireFlag.AUTOCREATE:
            yield from on_files(resource.remove_file)
        yield from self._let_go(resource.identity)


def _unknown(descriptor: int) -> Identity:
    """Return what stands for a file of which nothing is known but that it is open."""
    return Identity(-1, descriptor)
