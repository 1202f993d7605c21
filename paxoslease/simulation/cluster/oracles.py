"""What must hold in every simulated run, checked as it happens.

- Never two users of one exclusive lease at the same true instant, never one beside shared users.
- The version of an exclusive grant is larger than that of every grant before; a shared grant's is
  larger than that of every exclusive grant before.
- A reader of the LVB sees what was last written under the lease, or what somebody was writing when
  it was cut short.
- A host writes its own sectors, leaders and LVBs, nothing else; its block never goes back (M3), and
  RELEASED is final for its version (M19).
- A lease that was released is not held any more according to the disk.

A host uses a lease from the moment its acquisition returns until it is about to call release, or
is stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from paxoslease.disk.layout import Area
from paxoslease.disk.records import (
    HOST_SECTOR_BYTES,
    LEADER_BYTES,
    HostSector,
    Where,
    parse_host_sector,
    unpack_leader,
)

if TYPE_CHECKING:
    from paxoslease.protocol.leases import Lease
    from paxoslease.simulation.cluster.driver import Flight
    from paxoslease.simulation.cluster.hosts import Host


class Violation(Exception):
    """A rule was broken. `rule` is its short name."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Use:
    """Somebody's use of a lease. `number` is that of the process; above 0."""

    __slots__ = ("host", "lease", "lver", "number", "resource", "shared", "since", "task")

    def __init__(
        self, number: int, host: Host, resource: Watched, lease: Any, shared: bool, since: int
    ) -> None:
        self.number = number
        self.host = host
        self.resource = resource
        self.lease: Lease = lease
        self.lver: int = lease.lver
        self.shared = shared
        self.since = since
        self.task: Any = None


class Watched:
    """What the oracles know of one resource.

    lvbs: what its LVB may be; empty: anything. A value that is being written as part of a release
    must be there as soon as somebody else has the lease, unless the writer was cut short.
    """

    __slots__ = (
        "_goes_on",
        "_written",
        "exclusive_lver",
        "granted_at",
        "grants",
        "index",
        "lvbs",
        "lver",
        "name",
        "users",
    )

    def __init__(self, index: int, name: bytes) -> None:
        self.index = index
        self.name = name
        self.users: list[Use] = []
        self.lver = 0
        self.exclusive_lver = 0
        self.grants = 0
        self.granted_at = 0
        self.lvbs: set[bytes] = set()
        self._written: bytes | None = None
        self._goes_on: Callable[[], bool] = bool

    def writing(self, data: bytes, goes_on: Callable[[], bool]) -> None:
        """Note that a release begins to write the LVB; `goes_on` tells whether it still runs."""
        self._written = data
        self._goes_on = goes_on

    def gave_up_writing(self) -> None:
        """Note that nobody knows whether the LVB was written."""
        if self._written is not None:
            if self.lvbs:  # else it may be anything, and stays so
                self.lvbs.add(self._written)
            self._written = None

    def settle_lvb(self) -> None:
        """Work out what the LVB may be, at the moment of a new grant."""
        if self._written is not None and self._goes_on():
            self.lvbs = {self._written}
            self._written = None
        self.gave_up_writing()


class Oracle:
    """Watches all resources and every write of a run."""

    def __init__(self, space: Area, areas: dict[str, list[Area]], hosts: int) -> None:
        self._space = space
        self._areas = areas
        self._hosts = hosts
        self.checks_blocks = True
        # A late write of a life that is long over has put an old generation over a newer one. No
        # user is endangered, but leases of the newer one look owned by a live host from then on.
        self.is_rolled_back = False

    # -- users -----------------------------------------------------------------------------------

    def granted(self, use: Use, now: int) -> None:
        """Check a grant against everybody who uses the lease now, and its version."""
        watched = use.resource
        _together(use, watched)
        floor = watched.exclusive_lver if use.shared else watched.lver
        if use.lver <= floor:
            raise Violation(
                "fencing",
                f"{use.host.label} was granted {watched.name.decode()} in version {use.lver} "
                f"after version {floor}",
            )
        watched.lver = max(watched.lver, use.lver)
        if not use.shared:
            watched.exclusive_lver = use.lver
        watched.users.append(use)
        watched.settle_lvb()
        watched.grants += 1
        watched.granted_at = now

    def changed(self, use: Use, shared: bool) -> None:
        """Check a use whose mode becomes another, without a new version."""
        watched = use.resource
        if use in watched.users:
            watched.users.remove(use)
            use.shared = shared
            _together(use, watched)
            watched.users.append(use)

    def converted(self, use: Use, lease: Any, now: int) -> None:
        """Check a conversion that has returned."""
        use.lease = lease
        if not lease.shared and use in use.resource.users:
            use.resource.users.remove(use)
            use.shared = False
            use.lver = lease.lver
            self.granted(use, now)

    def ended(self, use: Use) -> None:
        """Note that a user has stopped."""
        if use in use.resource.users:
            use.resource.users.remove(use)

    def saw_lvb(self, use: Use, data: bytes) -> None:
        """Check what a holder read from the LVB."""
        watched = use.resource
        if watched.lvbs and data not in watched.lvbs:
            raise Violation(
                "lvb",
                f"{use.host.label} read {_short(data)} under version {use.lver} of "
                f"{watched.name.decode()}, written was one of "
                f"{sorted(_short(d) for d in watched.lvbs)}",
            )
        watched.lvbs = {data}

    def released(self, lease: Any, disks: dict[str, Any]) -> None:
        """Check that a lease whose release was acknowledged is free according to most disks."""
        areas = lease.claim.resource.disks
        free = sum(_is_free(lease, area, disks[area.path]) for area in areas)
        if 2 * free <= len(areas):
            raise Violation(
                "release",
                f"host {lease.claim.host_id} released version {lease.lver} of "
                f"{lease.claim.resource.name.decode()}, but the disk says that it is held",
            )

    # -- writes ----------------------------------------------------------------------------------

    def landing(self, flight: Flight, offset: int, data: bytes) -> None:
        """Check a sector that is about to reach a disk."""
        disk = flight.disk
        host_id = flight.host.host_id
        space = self._space
        if disk.path == space.path and 0 <= offset - space.offset < space.sizes.align_size:
            if offset != space.delta(host_id):
                raise Violation("foreign", f"host {host_id} writes the delta lease at {offset}")
            old, new = (unpack_leader(d[:LEADER_BYTES]) for d in (disk.sector(offset), data))
            if new.owner_generation < old.owner_generation:
                self.is_rolled_back = True
            return
        for area in self._areas[disk.path]:
            if 0 <= offset - area.offset < area.sizes.align_size:
                self._landing_in(area, flight, offset, data)
                return
        raise Violation("outside", f"host {host_id} writes {disk.path}:{offset}")

    def _landing_in(self, area: Area, flight: Flight, offset: int, data: bytes) -> None:
        host_id = flight.host.host_id
        if offset in (area.offset, area.lvb):
            return
        if offset != area.host_sector(host_id):
            raise Violation("foreign", f"host {host_id} writes {area.path}:{offset}")
        if not self.checks_blocks:
            return
        old = _block(area, offset, flight.disk.sector(offset))
        new = _block(area, offset, data)
        if _goes_back(old, new):
            raise Violation("block", f"host {host_id} writes {new} over {old}")


def _short(data: bytes) -> str:
    return data.rstrip(b"\0").decode("ascii", "backslashreplace")


def _together(use: Use, watched: Watched) -> None:
    for other in watched.users:
        if not (use.shared and other.shared):
            kinds = " and ".join("shared" if u.shared else "exclusive" for u in (other, use))
            raise Violation(
                "exclusion",
                f"{other.host.label} (version {other.lver}) and {use.host.label} (version "
                f"{use.lver}) both use {watched.name.decode()}: {kinds}",
            )


def _block(area: Area, offset: int, data: bytes) -> HostSector:
    return parse_host_sector(data[:HOST_SECTOR_BYTES], Where(area.path, offset))


def _goes_back(old: HostSector, new: HostSector) -> bool:
    if new.lver != old.lver:
        return new.lver < old.lver
    return (new.mbal, new.bal, new.released) < (old.mbal, old.bal, old.released) or (
        new.bal < old.bal or (old.released and not new.released)
    )


def _is_free(lease: Any, area: Area, disk: Any) -> bool:
    leader = unpack_leader(disk.sector(area.offset)[:LEADER_BYTES])
    owner = (leader.owner_id, leader.owner_generation)
    ours = (lease.leader.owner_id, lease.leader.owner_generation)
    if leader.lver != lease.lver or leader.timestamp == 0 or owner != ours:
        return True
    offset = area.host_sector(lease.claim.host_id)
    return _block(area, offset, disk.sector(offset)).released
