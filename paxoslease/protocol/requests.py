"""Requests and events: how hosts talk to each other through the disk.

A *request* is a record beside a lease that asks its holder to give it up. A *mark* is a bit in the
sender's delta lease that asks a host to look; an *event* is a message in the same record. Both are
carried by the sender's renewals for about three of them, and receivers see them in theirs.

An event has no address but the marks beside it: whoever finds its bit set takes the event for its
own. So while an event is on the disk no other host is marked; those marks wait (`Advertiser`). An
event whose time is over is taken off the disk.

Nothing here relies on a message arriving: receivers may see one several times or never.

Source: spec/algorithms.md 9; spec/disk-format.md 4.3, 4.5 and 5.5; rule M15.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from paxoslease.disk.records import (
    FORCE,
    GRACEFUL,
    NO_REQUEST,
    Request,
    Where,
    bitmap_of,
    bitmap_of_hosts,
    hosts_of_bitmap,
    pack_request,
    parse_delta,
    parse_request,
)
from paxoslease.errors import ConfigError, EventBusy, HostIdInvalid, RequestRefused
from paxoslease.protocol.delta import Advertised, Lockspace
from paxoslease.protocol.disks import Claim, read_at, read_leader, write_at
from paxoslease.protocol.effects import Protocol, Read
from paxoslease.protocol.leases import Lease
from paxoslease.protocol.settle import shelf_life
from paxoslease.timing import Timing

# -- requests ----------------------------------------------------------------------------------


class Demand(IntEnum):
    """What a holder is asked to do with its lease."""

    NONE = 0
    FORCE = FORCE  # its process is to be killed
    GRACEFUL = GRACEFUL  # its process is to be told, by killpath or SIGTERM


class Asked(NamedTuple):
    """A request that was written: for which version, and the host to be marked."""

    owner_id: int
    lver: int


class Examined(NamedTuple):
    """What an examination found: what to do, and the record to be cleared afterwards."""

    demand: Demand
    request: Request


NOTHING_ASKED = Examined(Demand.NONE, NO_REQUEST)


def write_request(claim: Claim, mode: int, lver: int | None = None) -> Protocol[Asked | None]:
    """Ask the owner of a lease to give it up; None when the lease is free.

    mode: a Demand; any other number is written all the same, and ignored by the owner. lver: the
    version wanted, larger than the one held; None for the next. The caller marks the owner. Raises
    RequestRefused (-272 not larger, -273 a larger one is asked for already), BadRecord,
    DecisionStale, DiskTimeout, DiskError, LockspaceFailed.
    """
    shelf = yield from shelf_life(claim)
    leader = yield from read_leader(claim)
    if leader.is_free:
        return None
    wanted = leader.lver + 1 if lver is None else lver
    if leader.lver >= wanted:
        reason = f"version {wanted} is wanted, {leader.lver} is held"
        raise RequestRefused(claim.space.name, claim.resource.name, reason, -272)
    present = yield from read_request(claim)
    if present.lver > wanted:
        reason = f"version {wanted} is wanted, {present.lver} is asked for already"
        raise RequestRefused(claim.space.name, claim.resource.name, reason, -273)
    yield from _write(claim, NO_REQUEST._replace(lver=wanted, force_mode=mode), shelf.not_after_us)
    return Asked(leader.owner_id, wanted)


def clear_request(claim: Claim, only: Request | None = None) -> Protocol[bool]:
    """Clear a request; False when there is none, or another than `only`. Raises as write_request.

    A request that is written between our reading and our writing is lost; its sender asks again.
    """
    shelf = yield from shelf_life(claim)
    present = yield from read_request(claim)
    if (present.lver, present.force_mode) == (0, 0) or only not in (None, present):
        return False
    yield from _write(claim, NO_REQUEST, shelf.not_after_us)
    return True


def examine(lease: Lease) -> Protocol[Examined]:
    """Look whether somebody asks for a lease that this host holds.

    A shared lease has no single process that could be told, so requests on it are ignored (M15).
    After acting on the demand the caller clears the request: `clear_request(claim, found.request)`,
    or a stale record would kill the next holder. Raises BadRecord, DiskTimeout, DiskError.
    """
    if lease.shared:
        return NOTHING_ASKED
    request = yield from read_request(lease.claim)
    if request.force_mode not in (FORCE, GRACEFUL) or request.lver <= lease.lver:
        return NOTHING_ASKED
    return Examined(Demand(request.force_mode), request)


def read_request(claim: Claim) -> Protocol[Request]:
    """Read the request record. Raises BadRecord (-270, -271), DiskTimeout, DiskError."""
    data = yield from read_at(claim, _offsets(claim))
    area = claim.resource.disks[0]
    return parse_request(data, Where(area.path, area.request))


def _write(claim: Claim, request: Request, not_after_us: int) -> Protocol[None]:
    data = pack_request(request, claim.sector_size)
    yield from write_at(claim, _offsets(claim), data, not_after_us)


def _offsets(claim: Claim) -> tuple[int, ...]:
    return tuple(area.request for area in claim.resource.disks)


# -- what we advertise -------------------------------------------------------------------------


class HostEvent(NamedTuple):
    """An event: the generation of the host that it is for, its number and its data."""

    generation: int = 0
    event: int = 0
    data: int = 0


NO_EVENT = HostEvent()


class Advertiser(NamedTuple):
    """What the renewals of one membership tell others, and until when.

    marks: (host id, end) of the bits that are set; an end of 0 means: not yet on the disk.
    event: the event on the disk, for the hosts in `targets`, until event_end_us (0 as above).
    A state is never changed; each function returns the next one. Times are on the own clock.
    """

    lockspace: bytes
    own_id: int
    max_hosts: int
    bitmap_us: int
    marks: tuple[tuple[int, int], ...] = ()
    event: HostEvent = NO_EVENT
    targets: tuple[int, ...] = ()
    event_end_us: int = 0

    @property
    def everybody(self) -> tuple[int, ...]:
        """Return all host ids but our own."""
        return tuple(h for h in range(1, self.max_hosts + 1) if h != self.own_id)


def new_advertiser(space: Lockspace, own_id: int, timing: Timing) -> Advertiser:
    """Return the state of a membership that has nothing to tell."""
    return Advertiser(space.name, own_id, space.area.sizes.max_hosts, timing.bitmap_us)


def mark(state: Advertiser, host_id: int) -> Advertiser:
    """Ask a host to look at its leases' requests. Raises HostIdInvalid."""
    _check_host(state, host_id)
    if host_id == state.own_id:
        return state
    others = tuple(m for m in state.marks if m[0] != host_id)
    return state._replace(marks=(*others, (host_id, 0)))


def unmark(state: Advertiser, host_id: int) -> Advertiser:
    """Take back a host's bit, be it set for a mark or for the event."""
    marks = tuple(m for m in state.marks if m[0] != host_id)
    targets = tuple(h for h in state.targets if h != host_id)
    return state._replace(marks=marks, targets=targets)


def set_event(
    state: Advertiser, host_id: int, event: HostEvent, *, replace: bool = False
) -> Advertiser:
    """Send an event to a host, to all for host id 0; event number 0 takes the present one back.

    Raises EventBusy (-16) while a different event is advertised, unless `replace`; HostIdInvalid;
    ConfigError for numbers beyond 64 bits.
    """
    if host_id:
        _check_host(state, host_id)
    if not all(0 <= number < 1 << 64 for number in event):
        raise ConfigError("host event", f"{tuple(event)} does not fit into 64 bits each")
    if event.event == 0:
        return state._replace(event=NO_EVENT, targets=(), event_end_us=0)
    if state.event.event not in (0, event.event) and not replace:
        raise EventBusy(state.lockspace, state.event.event)
    wanted = state.everybody if host_id == 0 else tuple(h for h in (host_id,) if h != state.own_id)
    if state.event == event:
        wanted = tuple(sorted({*state.targets, *wanted}))
    return state._replace(event=event, targets=wanted, event_end_us=0)


def advertise(state: Advertiser, now_us: int) -> tuple[Advertiser, Advertised]:
    """Return what the renewal that is written now carries, and the state after it.

    The time of a mark or event starts with the first renewal that carries it, so that a delayed
    one is seen as long as any other.
    """
    if state.event.event and state.event_end_us and now_us > state.event_end_us:
        state = state._replace(event=NO_EVENT, targets=(), event_end_us=0)
    event_on = bool(state.event.event)
    marks: tuple[tuple[int, int], ...] = ()
    for host_id, end_us in state.marks:
        if event_on and host_id not in state.targets:
            marks = (*marks, (host_id, 0))  # waits until the event is over, then has its whole time
        elif not end_us or now_us <= end_us:
            marks = (*marks, (host_id, end_us or now_us + state.bitmap_us))
    state = state._replace(marks=marks)
    if event_on:
        state = state._replace(event_end_us=state.event_end_us or now_us + state.bitmap_us)
        return state, Advertised(bitmap_of_hosts(state.targets), *state.event)
    return state, Advertised(bitmap_of_hosts(tuple(h for h, _ in marks)) if marks else b"")


def _check_host(state: Advertiser, host_id: int) -> None:
    if not 1 <= host_id <= state.max_hosts:
        raise HostIdInvalid(state.lockspace, host_id, state.max_hosts)


# -- what we hear ------------------------------------------------------------------------------


class Heard(NamedTuple):
    """An event that another host sent us."""

    from_host_id: int
    from_generation: int
    event: HostEvent


class Attention(NamedTuple):
    """When each sender last made us examine our leases: (host id, own clock in us)."""

    examined: tuple[tuple[int, int], ...] = ()


def attend(
    state: Attention, senders: tuple[int, ...], now_us: int, timing: Timing
) -> tuple[Attention, bool]:
    """Decide whether the held leases are to be examined because these hosts marked us.

    At most once per sender while its mark may still be the same: examining costs one read per lease
    held.
    """
    fresh = tuple(e for e in state.examined if now_us - e[1] < timing.bitmap_us)
    known = {host_id for host_id, _ in fresh}
    new = tuple((host_id, now_us) for host_id in senders if host_id not in known)
    return Attention((*fresh, *new)), bool(new)


def read_event(
    space: Lockspace, sender: int, own_id: int, timing: Timing
) -> Protocol[Heard | None]:
    """Read the event of a host that marked us; None when there is none, or the mark is gone.

    Whether the event is for our generation is the receiver's to judge. Raises BadRecord,
    DiskTimeout, DiskError.
    """
    area = space.area
    offset = area.delta(sender)
    data = yield Read(area.path, offset, area.sector_size, timing.io_us)
    leader = parse_delta(data, Where(area.path, offset), space.name)
    if leader.write_generation == 0 or own_id not in hosts_of_bitmap(bitmap_of(data)):
        return None
    event = HostEvent(leader.write_id, leader.write_generation, leader.write_timestamp)
    return Heard(sender, leader.owner_generation, event)
