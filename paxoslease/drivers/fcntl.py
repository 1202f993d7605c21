"""The lock driver on POSIX record locks: libvirt's objects on virtlockd's socket.

The daemon, virtlockd or `paxoslease lockd`, holds the locks in the name of the owner. A disk is
locked itself, or a file that stands for it in a directory that all hosts share; which, is libvirt's
choice, name for name, so that hosts with either exclude each other. Locks are lost only when the
daemon ends otherwise than by restarting in place; then the kernel frees them at once.

Where libvirt's own plugin leaves locks behind after a refused acquire, this driver gives them back.

Source: spec/lock-drivers.md 5.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from uuid import uuid4

from paxoslease.drivers.base import (
    Connected,
    Disk,
    Driver,
    FailureAction,
    Mode,
    Owner,
    Registration,
    Resource,
    check_leases,
)
from paxoslease.drivers.errors import DaemonUnreachable, ResourceBusy, ResourceUnusable
from paxoslease.drivers.fcntl_watch import FcntlWatch
from paxoslease.errors import PaxosleaseError
from paxoslease.lockd.client import LockConnection, LockDaemonLost, LockRefused, Owner as LockOwner
from paxoslease.lockd.naming import Directories, ResourceName, name_of_disk, name_of_lease
from paxoslease.wire.virtlock import AcquireFlag, ErrorCode

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FcntlOptions:
    """The keys of qemu-lockd.conf, and where the daemon is.

    require_lease_for_disks: None for the opposite of auto_disk_leases. socket: None for virtlockd's
    own. daemon_timeout: s, how long one call may take.
    """

    auto_disk_leases: bool = True
    require_lease_for_disks: bool | None = None
    file_lockspace_dir: str | None = None
    lvm_lockspace_dir: str | None = None
    scsi_lockspace_dir: str | None = None
    socket: str | None = None
    daemon_timeout: int = 30


class _Wanted(NamedTuple):
    """A resource and what stands for it in the daemon."""

    resource: Resource
    lock: ResourceName


class _Registered(Connected[LockConnection]):
    """The owner's connection. At its end the daemon frees all locks and stops who had any."""


class FcntlDriver(Driver):
    """POSIX record locks on a shared file system, held by the lock daemon in an owner's name."""

    name = "fcntl"
    libvirt_name = "lockd"
    description = "POSIX record locks on a shared file system, through virtlockd or its like"
    Options = FcntlOptions

    def __init__(self, options: FcntlOptions) -> None:
        super().__init__(options)
        self._options = options
        self._directories = Directories(
            *(
                os.fsencode(directory or "")
                for directory in (
                    options.file_lockspace_dir,
                    options.lvm_lockspace_dir,
                    options.scsi_lockspace_dir,
                )
            )
        )

    # -- the host ------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the lockspaces that are configured. Raises DaemonUnreachable, ResourceUnusable."""
        if not self._options.auto_disk_leases:
            return
        for directory in self._directories.configured():
            with self._translated(f"lockspace {os.fsdecode(directory)}"), self._daemon() as daemon:
                daemon.create_lockspace(directory)

    def watch(self) -> FcntlWatch:
        """Return what tells of the daemon's end, which loses all locks."""
        return FcntlWatch(self._supervising)

    def _supervising(self) -> LockConnection:
        """Return a connection on which nothing more will be said.

        It is registered, because a virtlockd that restarts in place loses everything when one of
        its clients is not (spec/lock-drivers.md 7.5). The owner that it names is this process,
        which has no locks: its end changes nothing.
        """
        with self._translated("the lock daemon"):
            connection = self._daemon()
            try:
                connection.register(LockOwner(uuid4().bytes, b"supervisor", 1, os.getpid()))
                connection.restrict()
            except BaseException:
                connection.close()
                raise
        return connection

    # -- owners --------------------------------------------------------------------------------

    def _register(self, owner: Owner, action: FailureAction) -> Registration:
        del action  # the daemon cannot take a lock away, so it has none to carry out
        with self._translated(owner.name):
            connection = self._daemon()
            try:
                connection.register(_lock_owner(owner))
            except BaseException:
                connection.close()
                raise
        return _Registered(connection)

    def _restrict(self, registration: Registration) -> None:
        assert isinstance(registration, _Registered)
        with self._translated("the owner's connection"):
            registration.connection.restrict()

    def _acquire(
        self,
        owner: Owner,
        resources: Sequence[Resource],
        state: str | None,
        registration: Registration | None,
    ) -> None:
        del state  # there is none
        options = self._options
        check_leases(
            self.name, resources, options.auto_disk_leases, options.require_lease_for_disks
        )
        connection = registration.connection if isinstance(registration, _Registered) else None
        taken: list[_Wanted] = []
        try:
            with self._daemon_for(owner, connection) as daemon:
                for one in self._locks(resources):
                    self._acquire_one(daemon, one)
                    taken.append(one)
        except BaseException:
            self._take_back(owner, taken)
            raise

    def _acquire_one(self, daemon: LockConnection, one: _Wanted) -> None:
        try:
            daemon.acquire(*one.lock)
        except LockRefused as error:
            kind = ResourceBusy if error.is_busy else ResourceUnusable
            raise kind(self.name, str(one.resource), str(error), error.code) from None

    def _take_back(self, owner: Owner, taken: list[_Wanted]) -> None:
        """Release what an acquire had taken before it was refused, over a connection of its own."""
        if not taken:
            return
        try:
            with self._daemon_for(owner, None) as daemon:
                for one in taken:
                    self._release_one(daemon, one)
        except PaxosleaseError as error:
            _log.error("locks_left_behind guest=%s error=%s", owner.name, error)

    def _release(self, owner: Owner, resources: Sequence[Resource], want_state: bool) -> str | None:
        del want_state
        first: PaxosleaseError | None = None
        with self._daemon_for(owner, None) as daemon:
            for one in self._locks(resources):
                try:
                    self._release_one(daemon, one)
                except ResourceUnusable as error:
                    first = first or error
        if first is not None:
            raise first
        return None

    def _release_one(self, daemon: LockConnection, one: _Wanted) -> None:
        try:
            daemon.release(one.lock.lockspace, one.lock.name)
        except LockRefused as error:
            # Not locked, another's, or a lockspace that is not known: in no case the owner's.
            if not error.is_busy and error.failure.code != ErrorCode.INTERNAL_ERROR:
                raise ResourceUnusable(
                    self.name, str(one.resource), str(error), error.code
                ) from None

    def _inquire(self, owner: Owner) -> str | None:
        return None

    # -- from resources to locks ---------------------------------------------------------------

    def _locks(self, resources: Sequence[Resource]) -> Iterator[_Wanted]:
        for resource in resources:
            is_shared = resource.mode is Mode.SHARED
            path = os.fsencode(resource.path)
            if isinstance(resource, Disk):
                if self._options.auto_disk_leases:
                    lock = name_of_disk(path, self._directories, shared=is_shared)
                    yield _Wanted(resource, lock)
                continue
            space, key = os.fsencode(resource.lockspace), os.fsencode(resource.key)
            lock = name_of_lease(path, space, key, resource.offset)
            if is_shared:
                lock = lock._replace(flags=lock.flags | AcquireFlag.SHARED)
            yield _Wanted(resource, lock)

    # -- the daemon ----------------------------------------------------------------------------

    def _daemon(self) -> LockConnection:
        timeout_s = float(self._options.daemon_timeout)
        return LockConnection(self._options.socket, timeout_s=timeout_s)

    @contextmanager
    def _daemon_for(
        self, owner: Owner, connection: LockConnection | None
    ) -> Iterator[LockConnection]:
        """Yield the owner's connection, or one that speaks for it during this operation."""
        with self._translated(owner.name):
            if connection is not None:
                yield connection
                return
            with self._daemon() as daemon:
                daemon.register(_lock_owner(owner))
                yield daemon

    @contextmanager
    def _translated(self, subject: str) -> Iterator[None]:
        """Turn what the daemon says into this package's errors."""
        try:
            yield
        except LockDaemonLost as error:
            raise DaemonUnreachable(self.name, error.path, error.reason) from None
        except LockRefused as error:
            raise ResourceUnusable(self.name, subject, str(error), error.code) from None


def _lock_owner(owner: Owner) -> LockOwner:
    name = owner.name.encode("utf-8", "surrogateescape")
    return LockOwner(owner.uuid.bytes, name, owner.id, owner.pid)
