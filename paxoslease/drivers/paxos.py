"""The lock driver on disk-paxos leases: libvirt's objects on the lease daemon's socket.

Explicit leases are taken as they are. For disks, with automatic leases, a lease file per disk is
made in a directory that all hosts share. Any daemon that speaks sanlock's protocol will do.

Where libvirt's own plugin is careless, this driver is not: an owner that the daemon does not know
is an error and not a success; a state is not only looked at but demanded, so that a guest that was
paused does not run on after another one has had its disks; more than eight resources are taken in
several requests, and given back if one of them is refused; an acquire never waits for a host that
may be dead: that is the caller's business.

Source: spec/lock-drivers.md 12 and 13.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from paxoslease import channel
from paxoslease.client import Connection
from paxoslease.drivers import killpath
from paxoslease.drivers.base import (
    Connected,
    Disk,
    Driver,
    ExplicitLease,
    FailureAction,
    Mode,
    Owner,
    Registration,
    Resource,
    check_leases,
)
from paxoslease.drivers.errors import (
    DaemonUnreachable,
    OwnerUnknown,
    ResourceBusy,
    ResourceUnusable,
    StateInvalid,
    StateOutdated,
)
from paxoslease.drivers.lease_files import (
    DISKS_LOCKSPACE,
    access_of,
    ensure_lease,
    ensure_lockspace,
    lease_name,
)
from paxoslease.drivers.lease_state import HeldLease, Malformed, format_state, parse_state
from paxoslease.drivers.paxos_watch import PaxosWatch
from paxoslease.errors import ConfigError
from paxoslease.wire import sanlock as wire
from paxoslease.wire.numbers import meaning
from paxoslease.wire.sanlock import AcquireFlag, Command, ResourceFlag, RestrictFlag

_JOIN_TRIES: Final = 10
_OWNER_NAME_BYTES: Final = 47
_NAME_BYTES: Final = 47
_PATH_BYTES: Final = 1023

_NO_ANSWER = (channel.DaemonUnreachable, channel.DaemonBroken, channel.DaemonSilent)
_ESRCH: Final = -3
_EEXIST: Final = -17
_EINPROGRESS: Final = -115
_NOT_HELD: Final = -1
_NOT_TOLD: Final = -81  # a blank in a path: spec/wire-protocol.md 9.3
_GONE: Final = frozenset({_ESRCH, -25, -116})
_BUSY: Final = frozenset({-11, -16, _EEXIST, -117, -243, -244, -245, -246, -247})
_OUTDATED: Final = -240


@dataclass(frozen=True, slots=True)
class PaxosOptions:
    """The keys of qemu-sanlock.conf, and the daemon's run directory and patience.

    require_lease_for_disks: None for the opposite of auto_disk_leases. io_timeout: s, of the
    lockspace of automatic leases; 0 for the daemon's own. run_directory: None for $SANLOCK_RUN_DIR
    or /run/sanlock. daemon_timeout: s, how long any command but joining may take.
    """

    auto_disk_leases: bool = False
    disk_lease_dir: str = "/var/lib/libvirt/sanlock"
    host_id: int = 0
    require_lease_for_disks: bool | None = None
    io_timeout: int = 0
    user: str | None = None
    group: str | None = None
    run_directory: str | None = None
    daemon_timeout: int = 120


class _Wanted(NamedTuple):
    """A resource and the lease that stands for it."""

    resource: Resource
    lease: wire.Resource

    @property
    def key(self) -> tuple[str, str]:
        """Return lockspace and name as a state has them."""
        return os.fsdecode(self.lease.lockspace), os.fsdecode(self.lease.name)


class _Registered(Connected[Connection]):
    """The owner's connection. At its end the daemon releases all leases."""


class PaxosDriver(Driver):
    """Leases on shared disks, held by the lease daemon of this host in the name of the owner."""

    name = "paxos"
    libvirt_name = "sanlock"
    description = "disk-paxos leases on shared storage, through the lease daemon of this host"
    uses_state = True
    unsupported = {  # noqa: RUF012 - ClassVar in the base class
        FailureAction.IGNORE: "the lease daemon kills what goes on without its lease",
    }
    Options = PaxosOptions

    def __init__(self, options: PaxosOptions) -> None:
        super().__init__(options)
        if options.auto_disk_leases and options.host_id <= 0:
            raise ConfigError("host_id", "automatic disk leases need this host's id, 1 or more")
        self._options = options
        self._access = access_of(options.user, options.group)

    # -- the host ------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the lockspace of automatic leases, if there are any, and join it.

        Takes as long as joining does: two io_timeouts, or some minutes when this host id was used
        by another host name until recently. Raises DaemonUnreachable, ResourceUnusable.
        """
        if not self._options.auto_disk_leases:
            return
        directory = self._options.disk_lease_dir
        with self._translated("the lockspace of automatic leases"), self._daemon(None) as daemon:
            space = ensure_lockspace(daemon, directory, self._access, self._options.io_timeout)
            self._join(daemon, space._replace(host_id=self._options.host_id))

    def _join(self, daemon: Connection, space: wire.Lockspace) -> None:
        for left in range(_JOIN_TRIES - 1, -1, -1):
            try:
                daemon.add_lockspace(space, self._options.io_timeout)
            except channel.DaemonError as error:
                if error.result == _EEXIST:
                    return
                if error.result != _EINPROGRESS or not left:
                    raise
                daemon.inq_lockspace(space, wait=True)
            else:
                return

    def watch(self) -> PaxosWatch:
        """Return what tells of lost leases: the killpath of an owner, and the daemon's end."""
        try:
            return PaxosWatch(self._options.run_directory)
        except channel.DaemonUnreachable as error:
            raise self._unreachable(error) from None

    # -- owners --------------------------------------------------------------------------------

    def _register(self, owner: Owner, action: FailureAction) -> Registration:
        connection = self._daemon(float(self._options.daemon_timeout))
        try:
            with self._translated(owner.name, owner):
                connection.register()
                if action is not FailureAction.DEFAULT:
                    program, words = killpath.command(owner, action)
                    connection.killpath(program, words)
                # The registration has no answer of its own; this one comes after it.
                connection.inquire()
        except BaseException:
            connection.close()
            raise
        return _Registered(connection)

    def _restrict(self, registration: Registration) -> None:
        assert isinstance(registration, _Registered)
        with self._translated("the owner's connection"):
            registration.connection.restrict(RestrictFlag.ALL)

    def _acquire(
        self,
        owner: Owner,
        resources: Sequence[Resource],
        state: str | None,
        registration: Registration | None,
    ) -> None:
        options = self._options
        check_leases(
            self.name, resources, options.auto_disk_leases, options.require_lease_for_disks
        )
        versions = self._versions(state)
        connection = registration.connection if isinstance(registration, _Registered) else None
        with self._daemon_for(connection) as daemon:
            wanted = [_of_version(one, versions) for one in self._leases(resources, daemon)]
            pid = owner.pid if connection is None else wire.SELF
            taken: list[_Wanted] = []
            size = _batch_size(daemon, len(wanted))
            try:
                for at in range(0, len(wanted), size):
                    batch = wanted[at : at + size]
                    self._acquire_batch(daemon, owner, pid, batch, versions)
                    taken += batch
            except BaseException:
                self._release_batches(daemon, pid, taken)
                raise

    def _acquire_batch(
        self,
        daemon: Connection,
        owner: Owner,
        pid: int,
        batch: list[_Wanted],
        versions: dict[tuple[str, str], int],
    ) -> None:
        leases = [one.lease for one in batch]
        name = os.fsencode(owner.name)[:_OWNER_NAME_BYTES]
        try:
            daemon.acquire(leases, pid=pid, flags=AcquireFlag.OWNER_NOWAIT, owner_name=name)
        except _NO_ANSWER:
            raise
        except channel.DaemonError as error:
            if error.result in _GONE:
                raise OwnerUnknown(self.name, owner.pid) from None
            if error.result == _OUTDATED:
                one = self._outdated(daemon, batch, versions)
                version = versions[one.key]
                raise StateOutdated(self.name, str(one.resource), version) from None
            batch = _failed_of(error, batch)
            named = ", ".join(str(one.resource) for one in batch)
            why = meaning(error.result, Command.ACQUIRE)
            if error.result in _BUSY:
                busy = self._busy_of(daemon, batch) or named
                raise ResourceBusy(self.name, busy, why, error.result) from None
            raise ResourceUnusable(self.name, named, why, error.result) from None

    def _release(self, owner: Owner, resources: Sequence[Resource], want_state: bool) -> str | None:
        with self._translated(owner.name), self._daemon_for(None) as daemon:
            try:
                _, text = daemon.inquire(pid=owner.pid)
            except channel.DaemonError as error:
                if error.result in _GONE:
                    return None
                if error.result != _NOT_TOLD:
                    raise
                wanted = list(self._leases(resources, None))
                self._release_batches(daemon, owner.pid, wanted)
                return None
            held = {(one.lockspace, one.name): one for one in self._parsed(os.fsdecode(text))}
            wanted = [one for one in self._leases(resources, None) if one.key in held]
            self._release_batches(daemon, owner.pid, wanted)
            keys = {one.key for one in wanted}
        released = tuple(one for key, one in held.items() if key in keys)
        return format_state(released) or None

    def _inquire(self, owner: Owner) -> str | None:
        with self._translated(owner.name), self._daemon_for(None) as daemon:
            try:
                return os.fsdecode(daemon.inquire(pid=owner.pid)[1]) or None
            except channel.DaemonError as error:
                if error.result in _GONE:
                    return None
                raise

    def _release_batches(self, daemon: Connection, pid: int, wanted: list[_Wanted]) -> None:
        """Release leases; those that are not held any more are passed over."""
        for at in range(0, len(wanted), wire.RESOURCES_MAX):
            batch = wanted[at : at + wire.RESOURCES_MAX]
            try:
                daemon.release([one.lease for one in batch], pid=pid)
            except channel.DaemonError as error:
                if error.result != _NOT_HELD and error.result not in _GONE:
                    raise

    # -- from resources to leases --------------------------------------------------------------

    def _leases(self, resources: Sequence[Resource], maker: Connection | None) -> Iterator[_Wanted]:
        """Yield the leases of resources; with `maker`, lease files that are missing are made."""
        for resource in resources:
            flags = ResourceFlag.SHARED if resource.mode is Mode.SHARED else 0
            if isinstance(resource, ExplicitLease):
                space, name = os.fsencode(resource.lockspace), os.fsencode(resource.key)
                place = wire.Disk(os.fsencode(resource.path), resource.offset)
                _check_lengths(space, name, place.path)
                yield _Wanted(resource, wire.Resource(space, name, (place,), flags=flags))
            elif self._options.auto_disk_leases:
                yield self._disk_lease(resource, flags, maker)

    def _disk_lease(self, disk: Disk, flags: int, maker: Connection | None) -> _Wanted:
        directory, name = self._options.disk_lease_dir, lease_name(disk.path)
        path = os.path.join(directory, name)
        if maker is not None:
            with self._translated(str(disk)):
                ensure_lease(maker, directory, self._access, name)
        place = wire.Disk(os.fsencode(path))
        lease = wire.Resource(DISKS_LOCKSPACE, name.encode(), (place,), flags=flags)
        return _Wanted(disk, lease)

    def _versions(self, state: str | None) -> dict[tuple[str, str], int]:
        """Return which versions a state demands. Shared leases have none."""
        parsed = self._parsed(state or "")
        return {(one.lockspace, one.name): one.lver for one in parsed if one.lver is not None}

    def _parsed(self, state: str) -> tuple[HeldLease, ...]:
        try:
            return parse_state(state)
        except Malformed as error:
            raise StateInvalid(self.name, str(error)) from None

    # -- who is in the way ---------------------------------------------------------------------

    def _busy_of(self, daemon: Connection, batch: list[_Wanted]) -> str:
        """Return which of these are owned, and by which hosts, as far as it is told."""
        found = []
        for one in batch:
            try:
                _, owners = daemon.read_resource_owners(one.lease)
            except channel.DaemonError:
                continue  # only to name it: the refusal itself is told in any case
            if owners:
                hosts = ", ".join(str(host.host_id) for host in owners)
                found.append(f"{one.resource} (held by host {hosts})")
        return ", ".join(found)

    def _outdated(
        self, daemon: Connection, batch: list[_Wanted], versions: dict[tuple[str, str], int]
    ) -> _Wanted:
        """Return which of several resources has another version than a state demands."""
        demanded = [one for one in batch if one.key in versions]
        for one in demanded:
            try:
                found = daemon.read_resource(one.lease)
            except channel.DaemonError:
                continue  # only to name it
            if found.lver != versions[one.key]:
                return one
        return demanded[0]

    # -- the daemon ----------------------------------------------------------------------------

    def _daemon(self, timeout_s: float | None) -> Connection:
        return Connection(self._options.run_directory, timeout_s=timeout_s)

    @contextmanager
    def _daemon_for(self, connection: Connection | None) -> Iterator[Connection]:
        """Yield the owner's connection, or one for this operation only."""
        with self._translated("the leases"):
            if connection is not None:
                yield connection
                return
            with self._daemon(float(self._options.daemon_timeout)) as daemon:
                yield daemon

    def _unreachable(self, error: channel.DaemonUnreachable) -> DaemonUnreachable:
        return DaemonUnreachable(self.name, error.path, os.strerror(-error.result))

    @contextmanager
    def _translated(self, subject: str, owner: Owner | None = None) -> Iterator[None]:
        """Turn what the daemon or the file system says into this package's errors."""
        try:
            yield
        except channel.DaemonUnreachable as error:
            raise self._unreachable(error) from None
        except (channel.DaemonBroken, channel.DaemonSilent) as error:
            path = self._daemon(None).path
            raise DaemonUnreachable(self.name, path, str(error)) from None
        except channel.DaemonError as error:
            if owner is not None and error.result in _GONE:
                raise OwnerUnknown(self.name, owner.pid) from None
            raise ResourceUnusable(self.name, subject, str(error), error.result) from None
        except OSError as error:
            number = -(error.errno or 5)
            where = f": {error.filename}" if error.filename else ""
            reason = f"{error.strerror}{where}"
            raise ResourceUnusable(self.name, subject, reason, number) from None


def _batch_size(daemon: Connection, count: int) -> int:
    """Return how many leases may be asked for in one request. sanlock's daemon takes few."""
    if count <= wire.RESOURCES_MAX or daemon.protocol < wire.BATCH_VERSION:
        return wire.RESOURCES_MAX
    return wire.RELEASES_MAX


def _failed_of(error: channel.DaemonError, batch: list[_Wanted]) -> list[_Wanted]:
    """Return what a refusal is about: one resource if the daemon tells, else any of the batch."""
    if isinstance(error, channel.AcquireFailed) and error.resource is not None:
        return [one for one in batch if one.lease == error.resource] or batch
    return batch


def _of_version(one: _Wanted, versions: dict[tuple[str, str], int]) -> _Wanted:
    """Return a lease that demands the version of a state, if the state has it."""
    lver = versions.get(one.key)
    if lver is None:
        return one
    lease = one.lease._replace(lver=lver, flags=one.lease.flags | ResourceFlag.LVER)
    return one._replace(lease=lease)


def _check_lengths(space: bytes, name: bytes, path: bytes) -> None:
    for what, value, limit in (
        ("lockspace", space, _NAME_BYTES),
        ("key", name, _NAME_BYTES),
        ("path", path, _PATH_BYTES),
    ):
        if len(value) > limit:
            raise ConfigError(what, f"{len(value)} bytes are longer than {limit}")
