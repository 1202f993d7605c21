"""Delta leases: how a host acquires, renews and releases its host id in a lockspace.

A lockspace has one sector per host id. Its record names the owner (host id, generation, host name)
and carries a timestamp that the owner changes at every renewal; timestamp 0 means free. Nobody
compares a foreign timestamp with a clock: a host is judged by how long its record stands still.

Invariants:
  - the generation grows with every acquisition, so a record of an earlier life is recognised;
  - between reading a record and having written over it at most two I/O time-outs pass, so that a
    re-read after that time shows every competitor's write;
  - a record that was moved by others is never written again by this life.

Source: Chockler & Malkhi 2004 (light-weight leases); spec/algorithms.md 2, rules M1, M2, M9, M13,
M17.
"""

from __future__ import annotations

from typing import NamedTuple

from paxoslease.disk.layout import PROBE_BYTES, Area
from paxoslease.disk.records import (
    Leader,
    Where,
    check_delta_version,
    cut_name,
    overwrite_name,
    pack_leader,
    parse_delta,
    same_name,
    unpack_leader,
)
from paxoslease.errors import (
    Cancelled,
    DecisionStale,
    DiskTimeout,
    HostIdBusy,
    HostIdInvalid,
    LockspaceFailed,
    RenewalRefused,
    StorageError,
)
from paxoslease.protocol.effects import (
    Landed,
    LockspaceImage,
    Now,
    PetWatchdog,
    Protocol,
    Read,
    ReadLockspace,
    Sleep,
    Write,
)
from paxoslease.timing import SECOND_US, Timing, dead_us, delta_settle_us


class Lockspace(NamedTuple):
    """A lockspace as its members name it: `name` (1 to 48 bytes) and where its area is."""

    name: bytes
    area: Area


class Held(NamedTuple):
    """What a host knows of its own delta lease between two renewals.

    leader: the last record that we wrote, or tried to write.
    renewed_us: the timestamp of the last acknowledged record, on the own clock.
    certain: False when the last write timed out or failed; it may have landed or may land yet.
    """

    leader: Leader
    renewed_us: int
    certain: bool

    @property
    def host_id(self) -> int:
        return self.leader.owner_id

    @property
    def generation(self) -> int:
        return self.leader.owner_generation


class Advertised(NamedTuple):
    """What a host tells others in its renewals: bitmap and host event (spec/algorithms.md 9).

    bitmap: 256 bytes, or empty for no bit set.
    generation, event, data: the host event, zeros for none (disk-format 4.5).
    """

    bitmap: bytes = b""
    generation: int = 0
    event: int = 0
    data: int = 0


NOTHING_ADVERTISED = Advertised()


def open_lockspace(path: str, offset: int, name: bytes, timing: Timing) -> Protocol[Lockspace]:
    """Find out the sizes of the lockspace at a place.

    They are in the record of host 1. If that record is damaged they are taken from it all the same,
    so that no other host is kept out; whether the lockspace is the one named shows in the own
    record then.

    Raises BadRecord (not a lockspace, another name, impossible sizes), DiskTimeout, DiskError.
    """
    data = yield Read(path, offset, PROBE_BYTES, timing.io_us)
    leader = unpack_leader(data)
    where = Where(path, offset)
    check_delta_version(leader, where)
    if leader == leader.sealed():
        parse_delta(data, where, name)
    sizes = leader.sizes
    if sizes is None:
        found = f"{leader.sector_size} with flags {leader.flags:#x}"
        number = -230 if leader.sector_size in (512, 4096) else -225
        raise where.bad("delta lease", "sector_size", "a legal pair of sizes", found, number)
    return Lockspace(name, Area(path, offset, sizes))


def read_delta(space: Lockspace, host_id: int, timing: Timing) -> Protocol[Leader]:
    """Read and validate a host's delta lease. Raises BadRecord, DiskTimeout, DiskError."""
    area = space.area
    offset = area.delta(host_id)
    data = yield Read(area.path, offset, area.sector_size, timing.io_us)
    return parse_delta(data, Where(area.path, offset), space.name)


def acquire(
    space: Lockspace,
    host_id: int,
    host_name: bytes,
    timing: Timing,
    *,
    earlier_life_over: bool = False,
) -> Protocol[Held]:
    """Acquire a host id: take the record, wait until every competitor's write shows, re-read it.

    `host_name` must be unique per host and per life. `earlier_life_over` states that a record
    which bears our name is of a life that provably ended (rule M1); without it such a record is
    treated as another host's.

    Whoever cancels it after the record was written has to wait: it settles all the same, to free
    the record if it is ours. Left as it is it would look used, and the next join of the host id
    would wait for a host that never was.

    Raises HostIdInvalid, HostIdBusy, Cancelled, BadRecord, DiskTimeout, DiskError; after a
    cancellation also what `release` raises, when the record could not be freed.
    Source: spec/algorithms.md 2.1.
    """
    if not 1 <= host_id <= space.area.sizes.max_hosts:
        raise HostIdInvalid(space.name, host_id, space.area.sizes.max_hosts)
    name = host_name if earlier_life_over else None
    record = yield from _take(space, host_id, host_name, timing, name, None)
    now_us: int = yield Now()
    if 2 * (now_us - record.timestamp * SECOND_US) > timing.fail_us:
        # The wait was for contenders with a longer io_timeout and has used up our own time. The
        # record is ours by now and states our io_timeout, so a second round is short.
        record = yield from _take(space, host_id, host_name, timing, name, record)
    return Held(record, record.timestamp * SECOND_US, True)


def _take(
    space: Lockspace,
    host_id: int,
    host_name: bytes,
    timing: Timing,
    earlier_name: bytes | None,
    mine: Leader | None,
) -> Protocol[Leader]:
    """Take the record once and return it as written; one that is `mine` is not another host's.

    `earlier_name`: the name of a life of ours that is over, None for no such life.
    """
    asked_us: int = yield Now()
    found = yield from read_delta(space, host_id, timing)
    ours = found == mine or (
        earlier_name is not None and same_name(found.resource_name, earlier_name)
    )
    if not found.is_free and not ours:
        asked_us, found = yield from _outwait(space, host_id, found, timing)
    # Contenders know of each other only the record that all of them read. So its io_timeout limits
    # how late anybody's write may land, and nobody waits for less than that (M9, 15.4).
    limit_us = delta_settle_us(found.io_timeout or timing.io_timeout)
    settle_us = max(limit_us, delta_settle_us(timing.io_timeout))
    now_us: int = yield Now()
    record = found._replace(
        owner_id=host_id,
        owner_generation=found.owner_generation + 1,
        resource_name=overwrite_name(found.resource_name, host_name),
        timestamp=max(1, now_us // SECOND_US),
        io_timeout=timing.io_timeout & 0xFF,
    ).sealed()
    offset = space.area.delta(host_id)
    write = Write(
        space.area.path,
        offset,
        pack_leader(record, space.area.sector_size),
        timing.io_us,
        asked_us + limit_us,
    )
    try:
        yield write
    except DecisionStale:
        raise _busy(space, host_id, found) from None
    except DiskTimeout as error:
        ticket = error.ticket
    else:
        ticket = 0
    if ticket:
        # M7: nothing more is done to this sector from here until the write is back. If that is
        # too late for the contenders' waits, the check after it finds it.
        yield Landed(ticket)
    written_us: int = yield Now()
    if written_us - asked_us > limit_us:
        # A competitor may have re-read before our write landed (M9, spec/algorithms.md 15.4).
        raise _busy(space, host_id, found)
    # Safe because a competitor that read the record before our write has its own on disk within
    # the limit, or gives up (above).
    is_wanted = yield from _settle(settle_us, written_us)
    again = yield from read_delta(space, host_id, timing)
    if again != record:
        raise _busy(space, host_id, again)
    if not is_wanted:
        unused = Held(record, record.timestamp * SECOND_US, True)
        yield from release(space, unused, timing, is_armed=False)
        raise Cancelled
    return record


def _settle(settle_us: int, since_us: int) -> Protocol[bool]:
    """Wait for contenders' writes; False when it was cancelled, and waited for nevertheless."""
    try:
        yield Sleep(settle_us, cancellable=True)
    except Cancelled:
        is_wanted = False
    else:
        is_wanted = True
    if not is_wanted:
        now_us: int = yield Now()
        yield Sleep(max(0, since_us + settle_us - now_us))
    return is_wanted


def _outwait(
    space: Lockspace, host_id: int, found: Leader, timing: Timing
) -> Protocol[tuple[int, Leader]]:
    """Wait until a held record has stood still for so long that its owner is gone.

    Safe because the owner stopped granting `fail` after its last recorded timestamp and its
    watchdog reset it no later than the fire time-out after that; the wait is counted from our own
    reading of the record. It must protect resource leases too, because a new generation voids
    them without further wait (spec/algorithms.md 13).

    Returns the moment before the last read and the record then found, still or freed.
    Raises HostIdBusy as soon as the record moved, Cancelled.
    """
    started_us: int = yield Now()
    io_timeout = max(timing.io_timeout, found.io_timeout)
    while True:
        now_us: int = yield Now()
        left_us = started_us + dead_us(io_timeout, timing.watchdog_fire_timeout) + 1 - now_us
        yield Sleep(max(1, min(left_us, timing.io_us)), cancellable=True)
        asked_us: int = yield Now()
        again = yield from read_delta(space, host_id, timing)
        if again.is_free:
            return asked_us, again
        if again != found:
            raise _busy(space, host_id, again)
        if asked_us - started_us > dead_us(io_timeout, timing.watchdog_fire_timeout):
            return asked_us, again


def _busy(space: Lockspace, host_id: int, found: Leader) -> HostIdBusy:
    name = cut_name(found.resource_name)
    return HostIdBusy(space.name, host_id, name, found.owner_generation)


def renew(
    space: Lockspace, held: Held, timing: Timing, advertised: Advertised = NOTHING_ADVERTISED
) -> Protocol[tuple[Held, LockspaceImage]]:
    """Renew a host's delta lease once: read the area, prove our sector ours, write a new timestamp.

    Never retries; the caller judges from `renewed_us` when to give up, and goes on with
    `certain=False` after any failed effect once the write was yielded.

    Raises RenewalRefused (fatal), BadRecord of the own sector (fatal), DecisionStale, DiskTimeout,
    DiskError, WatchdogError. Source: Chockler & Malkhi 2004 (Renew); spec/algorithms.md 2.2.
    """
    image = yield from read_image(space, held.host_id, timing)
    renewed = yield from write_renewal(space, held, timing, image, advertised)
    return renewed, image


def read_image(space: Lockspace, host_id: int, timing: Timing) -> Protocol[LockspaceImage]:
    """Read the whole lockspace area. Raises DiskTimeout, DiskError.

    A renewal's read may take two I/O time-outs (spec/timing-and-recovery.md 2.1): giving up after
    one and asking again would only put a second read behind the first.
    """
    area = space.area
    image: LockspaceImage = yield ReadLockspace(
        area.path,
        area.offset,
        area.sector_size,
        area.sizes.align_size,
        space.name,
        host_id,
        2 * timing.io_us,
    )
    return image


def next_record(held: Held, now_us: int, timing: Timing, advertised: Advertised) -> Leader:
    """Return the record of the next renewal. Its timestamp always differs from the last (M17)."""
    return held.leader._replace(
        timestamp=max(now_us // SECOND_US, held.leader.timestamp + 1),
        io_timeout=timing.io_timeout & 0xFF,
        write_id=advertised.generation,
        write_generation=advertised.event,
        write_timestamp=advertised.data,
    ).sealed()


def write_renewal(
    space: Lockspace,
    held: Held,
    timing: Timing,
    image: LockspaceImage,
    advertised: Advertised = NOTHING_ADVERTISED,
) -> Protocol[Held]:
    """Check the own sector in a fresh image and write the next timestamp over it."""
    area = space.area
    offset = area.delta(held.host_id)
    found = parse_delta(image.own, Where(area.path, offset), space.name)
    check_own_record(space, held, found)
    now_us: int = yield Now()
    record = next_record(held, now_us, timing, advertised)
    # A timestamp that had to be pushed ahead of the clock must not lengthen the lease: renewed_us
    # never exceeds the moment before the write.
    renewed_us = min(record.timestamp * SECOND_US, now_us)
    yield Write(
        area.path,
        offset,
        pack_leader(record, area.sector_size, advertised.bitmap),
        timing.dead_us,  # giving up earlier would gain nothing (spec/timing-and-recovery.md 2.2)
        # After `fail` the membership is over for good: a host that wrote its record again later
        # could overwrite that of a successor which had waited for `dead` (M2).
        min(now_us + timing.io_us, held.renewed_us + timing.fail_us),
    )
    yield PetWatchdog(space.name, renewed_us, renewed_us + timing.fail_us)
    return Held(record, renewed_us, True)


def check_own_record(space: Lockspace, held: Held, found: Leader) -> None:
    """Raise RenewalRefused when the own record on disk is not what we wrote.

    While the last write is uncertain only the owner fields are compared, because either record
    may be on the disk.
    """
    ours = held.leader
    if (found.owner_id, found.owner_generation, found.resource_name) != (
        ours.owner_id,
        ours.owner_generation,
        ours.resource_name,
    ):
        raise RenewalRefused(space.name, held.host_id, True)
    if held.certain and found != ours:
        raise RenewalRefused(space.name, held.host_id, False)


def release(
    space: Lockspace, held: Held, timing: Timing, *, is_armed: bool = True
) -> Protocol[None]:
    """Free the host id: everybody may take this host's leases at once, so nothing may run on.

    The record is re-read and left alone when it is not the one last written, or when a successor
    might hold it by now (rule M13): a blind write could free or roll back its lease.

    is_armed: the watchdog is armed, and the caller disarms it afterwards. Where it is not (a join
    that nobody wants any more) it gets armed only while a write hangs.

    Returns, or raises, only when nothing of it is in flight any more.
    Raises LockspaceFailed when the lease must not be released, BadRecord, DiskTimeout, DiskError.
    """
    if not held.certain:
        raise LockspaceFailed(space.name, "its last renewal is uncertain, the host id stays taken")
    found = yield from read_delta(space, held.host_id, timing)
    check_own_record(space, held, found)
    # Until `fail` after our last renewal nobody may have taken the record; a write submitted
    # within that time has `dead - fail`, the watchdog's time, to land.
    not_after_us = held.renewed_us + timing.fail_us
    freed = held.leader._replace(timestamp=0).sealed()
    offset = space.area.delta(held.host_id)
    data = pack_leader(freed, space.area.sector_size)
    ticket = 0
    try:
        yield Write(space.area.path, offset, data, timing.io_us, not_after_us)
    except DiskTimeout as error:
        if not error.ticket:
            raise
        ticket = error.ticket
    if ticket:
        # M7: a "free" that lands after a successor took the record would void its leases at once.
        # So the watchdog must not be disarmed before it has landed.
        yield from _await_free(space, held, timing, ticket, is_armed)


def _await_free(
    space: Lockspace, held: Held, timing: Timing, ticket: int, is_armed: bool
) -> Protocol[None]:
    """Wait for a "free" that hangs, under an armed watchdog. Raises DiskError, WatchdogError."""
    if not is_armed:
        yield PetWatchdog(space.name, held.renewed_us, held.renewed_us + timing.fail_us)
    failure: StorageError | None = None
    try:
        yield Landed(ticket)
    except StorageError as error:
        failure = error
    if not is_armed:
        yield PetWatchdog(space.name, 0, 0)
    if failure is not None:
        raise failure
