"""The Python API: join a lockspace and hold leases in this process, without a daemon.

A lockspace and its leases are context managers. The process renews its host id on a thread of its
own; when it cannot do so in time, every lease's `lost` is set and the processes that were given to
`guard` are stopped, before any other host may take over.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from paxoslease.disk.layout import check_name
from paxoslease.engine import index
from paxoslease.engine.host import Lost, Membership, microseconds, open_membership
from paxoslease.engine.processes import Process
from paxoslease.engine.runner import Operation, now_us
from paxoslease.engine.watchdog import open_watchdog
from paxoslease.errors import ConfigError, LeaseLost, PaxosleaseError
from paxoslease.protocol import leases as protocol_leases
from paxoslease.protocol.hosts import HostRow
from paxoslease.protocol.leases import Owners
from paxoslease.protocol.membership import Renewed
from paxoslease.protocol.paxos import Want
from paxoslease.protocol.rindex import Rebuilt
from paxoslease.timing import (
    IO_TIMEOUT_DEFAULT_S,
    WATCHDOG_FIRE_TIMEOUT_DEFAULT_S,
    Timing,
    check_timing,
)

__all__ = [
    "Guarded",
    "Lease",
    "Lockspace",
    "Lost",
    "WantedLease",
    "WantedLockspace",
    "join",
    "join_many",
]

_HOST_NAME_BYTES = 47  # spec/disk-format.md 4.4


class WantedLease(NamedTuple):
    """One lease for `Lockspace.lease_many`: its name and where it is."""

    name: str
    path: str
    offset: int = 0


class WantedLockspace(NamedTuple):
    """One lockspace for `join_many`: the arguments of `join`."""

    path: str
    name: str
    host_id: int
    offset: int = 0
    host_name: str | None = None
    io_timeout: int = IO_TIMEOUT_DEFAULT_S
    watchdog: str = "none"
    watchdog_fire_timeout: int = WATCHDOG_FIRE_TIMEOUT_DEFAULT_S
    on_event: Callable[[Any], None] | None = None


class Lease:
    """A lease that this host holds. Leaving its `with` block releases it.

    lost: set when the lease is lost; whoever uses it must then stop at once.
    """

    def __init__(self, lockspace: Lockspace, name: bytes) -> None:
        self._lockspace = lockspace
        self._name = name
        holding = lockspace._membership.holding(name)
        assert holding.lease is not None
        self._held = holding
        self._lver = holding.lease.lver
        self._lvb: bytes | None = None
        self._released = False
        self.lost: Lost = holding.lost

    @property
    def name(self) -> str:
        """Return the resource's name."""
        return self._name.decode("utf-8", "surrogateescape")

    @property
    def fencing_token(self) -> int:
        """Return the version of the lease: it grows with every grant to any host (lver)."""
        return self._lver

    @property
    def shared(self) -> bool:
        """Tell whether the lease is held shared."""
        return bool(self._held.lease and self._held.lease.shared)

    def release(self, lvb: bytes | None = None, *, timeout: float | None = None) -> None:
        """Release the lease. What it guards has stopped before.

        `lvb` (or what set_lvb left) is written first. A lease that is lost is only forgotten here.
        Raises ReleaseRefused (the disk says that it is another's), DiskError when the LVB cannot be
        written (the lease is held on), TimeoutError.
        """
        if self._released:
            return
        membership = self._lockspace._membership
        try:
            operation = membership.start_release(self._name, self._lvb if lvb is None else lvb)
        except LeaseLost:
            membership.forget(self._name)
            self._released = True
            return
        refused = _wait(operation, timeout)
        self._released = True
        if refused is not None:
            raise refused

    def convert(self, *, shared: bool, timeout: float | None = None) -> None:
        """Turn the lease into a shared or an exclusive one.

        Raises LeaseShared when other hosts share it, LeaseHeld, LostRace, storage errors; the mode
        is unchanged then.
        """
        if shared == self.shared:
            return
        membership = self._lockspace._membership
        lvb = self._lvb if shared else None
        operation = membership.start_on_lease(
            self._name,
            (lambda lease: protocol_leases.convert_to_shared(lease, lvb=lvb))
            if shared
            else protocol_leases.convert_to_exclusive,
            keep=True,
        )
        self._lver = _wait(operation, timeout).lver
        if shared:
            self._lvb = None

    def read_lvb(self, *, timeout: float | None = None) -> bytes:
        """Read the lock value block: one sector, as the last holder left it."""
        operation = self._lockspace._membership.start_on_lease(
            self._name, lambda lease: protocol_leases.read_lvb(lease.claim)
        )
        data: bytes = _wait(operation, timeout)
        return data

    def set_lvb(self, data: bytes) -> None:
        """Set the lock value block to be written with the release (or conversion to shared)."""
        sector_size = self._held.lease.claim.sector_size if self._held.lease else 0
        if len(data) > sector_size:
            raise ConfigError("lvb", f"{len(data)} bytes do not fit into {sector_size}")
        self._lvb = data

    def owners(self, *, timeout: float | None = None) -> Owners:
        """Read from the disk who holds the lease."""
        operation = self._lockspace._membership.start_on_lease(
            self._name, lambda lease: protocol_leases.read_owners(lease.claim)
        )
        owners: Owners = _wait(operation, timeout)
        return owners

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Lockspace:
    """This host's membership in a lockspace. Leaving its `with` block leaves the lockspace.

    lost: set when the membership fails; every lease of it is lost then.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._left = False
        self.lost: Lost = membership.lost

    @property
    def name(self) -> str:
        """Return the lockspace's name."""
        return self._membership.lockspace.decode("utf-8", "surrogateescape")

    @property
    def host_id(self) -> int:
        """Return this host's id."""
        return self._membership.member.host_id

    @property
    def host_name(self) -> str:
        """Return this host's name."""
        return self._membership.member.host_name.decode("utf-8", "surrogateescape")

    @property
    def generation(self) -> int:
        """Return the generation of this host's life: it grows with every join of the id."""
        held = self._membership.member.held
        assert held is not None
        return held.generation

    @property
    def timing(self) -> Timing:
        """Return the time-outs in force."""
        return self._membership.member.timing

    def lease(
        self,
        name: str,
        path: str,
        *,
        offset: int = 0,
        shared: bool = False,
        wait: float | None = 0,
        lver: int | None = None,
        num_hosts: int | None = None,
    ) -> Lease:
        """Acquire a lease.

        wait: seconds to wait for another holder to release it or to be dead; 0 fails at once, None
        waits without limit. lver: only if it has this version now. num_hosts: the largest host id
        that may use the lease from now on.

        Raises LeaseHeld, LeaseShared, LostRace (another host has it), WaitTimeout, LeaseBusy (this
        host has it), WrongVersion, LeaseUnsupported, LockspaceFailed, and storage errors.
        """
        place = [(path, offset)]
        return self.lease_on_disks(
            name, place, shared=shared, wait=wait, lver=lver, num_hosts=num_hosts
        )

    def lease_on_disks(
        self,
        name: str,
        places: Sequence[tuple[str, int]],
        *,
        shared: bool = False,
        wait: float | None = 0,
        lver: int | None = None,
        num_hosts: int | None = None,
    ) -> Lease:
        """Acquire a lease on one to four disks, (path, offset) each; a majority of them decides."""
        if not 1 <= len(places) <= 4:
            raise ConfigError("disks", f"a lease lies on one to four disks, not {len(places)}")
        raw = check_name("resource name", name)
        operation = self._membership.start_acquire(
            raw,
            places,
            shared=shared,
            wait_us=microseconds(wait),
            want=Want(lver=lver, num_hosts=num_hosts),
        )
        try:
            operation.future.result()
        except BaseException:
            self._abandon(raw, operation)
            raise
        return Lease(self, raw)

    def lease_many(
        self, wanted: Iterable[WantedLease], *, shared: bool = False, wait: float | None = 0
    ) -> list[Lease]:
        """Acquire several leases with their I/O in flight together: all, or none.

        Raises the first error in the order of `wanted`; what was acquired is released then.
        """
        names: list[bytes] = []
        operations: list[Operation[Any]] = []
        try:
            for name, path, offset in wanted:
                raw = check_name("resource name", name)
                operations.append(
                    self._membership.start_acquire(
                        raw, [(path, offset)], shared=shared, wait_us=microseconds(wait)
                    )
                )
                names.append(raw)
            for operation in operations:
                operation.future.result()
        except BaseException:
            for raw, operation in zip(names, operations, strict=False):
                self._abandon(raw, operation)
            raise
        return [Lease(self, raw) for raw in names]

    def _abandon(self, name: bytes, operation: Operation[Any]) -> None:
        """End an acquisition that nobody wants any more; a lease that comes of it is released."""
        operation.cancel()

        def give_back(done: Any) -> None:
            if done.exception() is None:
                self._membership.start_release(name)

        operation.future.add_done_callback(give_back)

    def hosts(self) -> tuple[HostRow, ...]:
        """Return every host id that was ever used, and how it looks from here.

        Empty until the first renewal has been read, a moment after joining.
        """
        member = self._membership.member
        return member.table.rows(now_us(), member.timing.watchdog_fire_timeout)

    def renewals(self) -> tuple[Renewed, ...]:
        """Return the last renewals, oldest first: when, how long, and what went wrong."""
        return tuple(self._membership.history)

    def create(
        self,
        index_path: str,
        name: str,
        *,
        offset: int = 0,
        num_hosts: int = 0,
        wait: float | None = 0,
    ) -> int:
        """Create a resource in the index at `offset` of `index_path`; returns its offset there.

        Raises RindexError (the name is taken, the index is full), what a lease's acquisition raises
        for the index's own lease, storage errors.
        """
        return index.create(
            self._membership,
            index_path,
            name,
            offset=offset,
            num_hosts=num_hosts,
            until_us=_until(wait),
        )

    def delete(self, index_path: str, name: str, *, offset: int = 0, wait: float | None = 0) -> int:
        """Delete a resource from an index, unless somebody holds it; returns where it was."""
        return index.delete(
            self._membership, index_path, name, offset=offset, until_us=_until(wait)
        )

    def rebuild(self, index_path: str, *, offset: int = 0, wait: float | None = 0) -> Rebuilt:
        """Make an index anew from the resources that lie behind it."""
        return index.rebuild(self._membership, index_path, offset=offset, until_us=_until(wait))

    def guard(
        self,
        process: Any,
        *,
        killpath: Sequence[str] = (),
        killpath_pid: bool = False,
        sigterm_ok: bool = True,
        sigkill_ok: bool = True,
    ) -> Guarded:
        """Have a process (a pid or a subprocess.Popen) stopped when the lockspace fails.

        First its killpath program or SIGTERM, then, while there is still time before the watchdog,
        SIGKILL. Raises ConfigError when there is no such process.
        """
        pid = process if isinstance(process, int) else process.pid
        processes = self._membership.processes
        followed = processes.add(
            pid,
            killpath=killpath,
            killpath_pid=killpath_pid,
            allows_sigterm=sigterm_ok,
            allows_sigkill=sigkill_ok,
        )
        return Guarded(self._membership, followed)

    def leave(self, *, timeout: float | None = None) -> None:
        """Release all leases and free the host id.

        When the membership has failed nothing is written: other hosts wait until this one is dead.
        """
        if not self._left:
            self._left = True
            self._membership.leave(timeout)

    def __enter__(self) -> Lockspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Guarded:
    """A process that is stopped when its lockspace fails."""

    def __init__(self, membership: Membership, process: Process) -> None:
        self._membership = membership
        self._process = process

    @property
    def is_alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process.is_alive

    def close(self) -> None:
        """Stop following the process: it does not use leases any more."""
        self._membership.processes.remove(self._process)

    def __enter__(self) -> Guarded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def join(
    path: str,
    name: str,
    host_id: int,
    *,
    offset: int = 0,
    host_name: str | None = None,
    io_timeout: int = IO_TIMEOUT_DEFAULT_S,
    watchdog: str = "none",
    watchdog_fire_timeout: int = WATCHDOG_FIRE_TIMEOUT_DEFAULT_S,
    timeout: float | None = None,
    on_event: Callable[[Any], None] | None = None,
) -> Lockspace:
    """Join the lockspace at `offset` bytes of `path` as host `host_id`; returns when joined.

    A free id takes two io_timeouts, one held by a dead host `8 * io_timeout +
    watchdog_fire_timeout` and two io_timeouts more.

    host_name: at most 47 bytes reach the disk; must be unique per host and per life (default: a
    random uuid and the node name). watchdog: "none", "wdmd" or the path of a device. timeout: s;
    None waits without limit. on_event: called with each event of the membership (Joined, Renewed,
    Marked, Failed) on the renewal thread; it must not block.

    Raises HostIdInvalid, HostIdBusy, BadRecord (not this lockspace), WatchdogError, ConfigError,
    storage errors, TimeoutError.
    """
    wanted = WantedLockspace(
        path,
        name,
        host_id,
        offset,
        host_name,
        io_timeout,
        watchdog,
        watchdog_fire_timeout,
        on_event,
    )
    return join_many([wanted], timeout=timeout)[0]


def join_many(
    wanted: Sequence[WantedLockspace], *, timeout: float | None = None
) -> list[Lockspace]:
    """Join several lockspaces at once: all, or none.

    The first error is raised, and what was joined is left. Raises as join.
    """
    memberships: list[Membership] = []
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        for one in wanted:
            membership = _open(one)
            memberships.append(membership)
            membership.start_join()
        for membership in memberships:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            membership.await_join(left)
    except BaseException:
        for membership in memberships:
            membership.abandon_join()
        raise
    return [Lockspace(membership) for membership in memberships]


def _open(wanted: WantedLockspace) -> Membership:
    timing = check_timing(Timing(wanted.io_timeout, wanted.watchdog_fire_timeout))
    name = check_name("lockspace name", wanted.name)
    node = wanted.host_name or f"{uuid.uuid4()}.{os.uname().nodename}"[:_HOST_NAME_BYTES]
    host_name = check_name("host name", node)
    if len(host_name) > _HOST_NAME_BYTES:
        raise ConfigError("host name", f"only {_HOST_NAME_BYTES} bytes of it reach the disk")
    return open_membership(
        os.fspath(wanted.path),
        wanted.offset,
        name,
        wanted.host_id,
        host_name,
        timing,
        open_watchdog(wanted.watchdog, name, wanted.host_id, wanted.watchdog_fire_timeout),
        wanted.on_event,
    )


def _until(wait_s: float | None) -> int | None:
    wait_us = microseconds(wait_s)
    return wait_us if not wait_us else now_us() + wait_us


def _wait(operation: Operation[Any], timeout_s: float | None) -> Any:
    try:
        return operation.result(timeout_s)
    except PaxosleaseError as error:
        # Each waiter gets the error with a traceback of its own.
        raise error.with_traceback(None) from None
