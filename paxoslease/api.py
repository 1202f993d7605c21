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
from typing import Any, NamedTuple, Protocol

from paxoslease.disk.layout import check_name
from paxoslease.engine import index
from paxoslease.engine.host import Membership, open_membership
from paxoslease.engine.leases import Holding, Lost
from paxoslease.engine.operation import microseconds, now_us
from paxoslease.engine.processes import Wishes
from paxoslease.engine.watchdog import open_watchdog
from paxoslease.errors import ConfigError
from paxoslease.handles import Guarded, Lease
from paxoslease.protocol.hosts import HostRow
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


class HasPid(Protocol):
    """Anything with a pid, such as subprocess.Popen."""

    @property
    def pid(self) -> int:
        """Return the process's number."""
        ...


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


class Lockspace:
    """This host's membership in a lockspace. Leaving its `with` block leaves the lockspace.

    lost: set when the membership fails; every lease of it is lost then.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._left = False
        self.lost: Lost = membership.leases.lost

    @property
    def name(self) -> str:
        """Return the lockspace's name."""
        return self._membership.lockspace.decode("utf-8", "surrogateescape")

    @property
    def path(self) -> str:
        """Return the path of the device or file that the lockspace lies on."""
        return self._membership.member.space.area.path

    @property
    def offset(self) -> int:
        """Return where on it the lockspace begins, in bytes."""
        return self._membership.member.space.area.offset

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
        holding = self._membership.leases.start_acquire(
            raw,
            places,
            shared=shared,
            wait_us=microseconds(wait),
            want=Want(lver=lver, num_hosts=num_hosts),
        )
        return self._acquired([holding])[0]

    def lease_many(
        self, wanted: Iterable[WantedLease], *, shared: bool = False, wait: float | None = 0
    ) -> list[Lease]:
        """Acquire several leases with their I/O in flight together: all, or none.

        Raises the first error in the order of `wanted`; what was acquired is released then.
        """
        holdings: list[Holding] = []
        try:
            for name, path, offset in wanted:
                raw = check_name("resource name", name)
                holdings.append(
                    self._membership.leases.start_acquire(
                        raw,
                        [(os.fspath(path), offset)],
                        shared=shared,
                        wait_us=microseconds(wait),
                    )
                )
        except BaseException:
            self._give_up(holdings)
            raise
        return self._acquired(holdings)

    def _acquired(self, holdings: list[Holding]) -> list[Lease]:
        """Wait for what is being acquired: all of it, or what was had is given back."""
        try:
            for holding in holdings:
                assert holding.operation is not None
                holding.operation.result()
            return [Lease(self._membership, holding) for holding in holdings]
        except BaseException:
            self._give_up(holdings)
            raise

    def _give_up(self, holdings: list[Holding]) -> None:
        """Release what nobody wants any more; what comes of it is awaited, its errors are told."""
        leases = self._membership.leases
        ends = [leases.give_up(holding) for holding in holdings if not holding.lost.is_set()]
        for end in ends:
            if end is not None:
                end.exception()

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
        process: int | HasPid,
        *,
        killpath: Sequence[str] = (),
        killpath_pid: bool = False,
        sigterm_ok: bool = True,
        sigkill_ok: bool = True,
    ) -> Guarded:
        """Have a process (a pid, or what has one) stopped when the lockspace fails or is left.

        When it fails: first its killpath program or SIGTERM, then, while there is still time before
        the watchdog, SIGKILL. When it is left: SIGKILL. sigterm_ok, sigkill_ok: False has the other
        signal sent instead. killpath_pid: give the program the pid as its last argument.

        Raises ConfigError when there is no such process, LockspaceFailed.
        """
        pid = process if isinstance(process, int) else process.pid
        wishes = Wishes(tuple(killpath), killpath_pid, sigterm_ok, sigkill_ok)
        return Guarded(self._membership, self._membership.guard(pid, wishes))

    def leave(self, *, timeout: float | None = None) -> None:
        """Kill guarded processes, release all leases and free the host id.

        What the leases guard has stopped before. When the membership has failed nothing is written,
        and other hosts wait until this one is dead. Raises TimeoutError after `timeout` s; leave
        again then.
        """
        if not self._left:
            self._membership.leave(timeout)
            self._left = True

    def __enter__(self) -> Lockspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


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

    The first error is raised, and what was joined is left. A KeyboardInterrupt is raised when that
    is done, which takes up to two io_timeouts; a second one is raised at once. Raises as join.
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
    except BaseException as error:
        for membership in memberships:
            membership.abandon_join()
        if not isinstance(error, Exception):
            # The process is about to end, and would leave records behind that look used.
            for membership in memberships:
                membership.await_abandoned()
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
