"""A model of the original: how it gets and keeps a host id, and what it makes of its host table.

Literally spec/algorithms.md 2, 3 and 4, bugs included (15.2, 15.4). Only tests use it. Written from
the specification alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from paxoslease.disk.records import overwrite_name, pack_leader, same_name
from paxoslease.errors import PaxosleaseError, StorageError
from paxoslease.protocol.delta import Held, Lockspace, read_delta, read_image
from paxoslease.protocol.effects import (
    HostSeen,
    Notify,
    Now,
    PetWatchdog,
    Protocol,
    Sleep,
    Write,
)
from paxoslease.protocol.membership import Failed, Joined, Member
from paxoslease.timing import SECOND_US, Timing, dead_us, fail_us

BUSY = -262
_RETRY_US = SECOND_US // 2


@dataclass(eq=False)
class OriginalJoinError(PaxosleaseError):
    """The original could not join: `status` is its number."""

    status: int
    template = "the original returns {status} when it joins"


def acquire(space: Lockspace, host_id: int, name: bytes, timing: Timing) -> Protocol[Held]:
    """Acquire a host id (2.1). Raises OriginalJoinError, StorageError."""
    found = yield from read_delta(space, host_id, timing)
    d = found.io_timeout or timing.io_timeout
    if not found.is_free and not same_name(found.resource_name, name):
        yield Sleep(dead_us(d, timing.watchdog_fire_timeout))
        again = yield from read_delta(space, host_id, timing)
        if again != found and not again.is_free:
            raise OriginalJoinError(BUSY)
        found = again
    now_us: int = yield Now()
    record = found._replace(
        timestamp=now_us // SECOND_US,
        io_timeout=timing.io_timeout,
        owner_id=host_id,
        owner_generation=found.owner_generation + 1,
        resource_name=overwrite_name(found.resource_name, name),
    ).sealed()
    data = pack_leader(record, space.area.sector_size)
    yield Write(space.area.path, space.area.delta(host_id), data, timing.io_us, None)
    yield Sleep(2 * d * SECOND_US)
    again = yield from read_delta(space, host_id, timing)
    if again != record:
        raise OriginalJoinError(BUSY)
    return Held(record, record.timestamp * SECOND_US, True)


def live(member: Member) -> Protocol[None]:
    """Join and renew (2.2) until the lease fails. Raises OriginalJoinError, StorageError."""
    held = yield from acquire(member.space, member.host_id, member.host_name, member.timing)
    fail = member.timing.fail_us
    member.held = held
    yield PetWatchdog(member.space.name, held.renewed_us, held.renewed_us + fail)
    yield Notify(Joined(held))
    while True:
        now_us: int = yield Now()
        if now_us - held.renewed_us >= fail:
            member.fail("not renewed in time", None)
            yield Notify(member.failure)
            return
        try:
            held = yield from _renew(member, held)
        except StorageError:
            yield Sleep(_RETRY_US)
            continue
        member.held = held
        yield PetWatchdog(member.space.name, held.renewed_us, held.renewed_us + fail)
        yield Sleep(member.timing.renewal_us + _RETRY_US)


def _renew(member: Member, held: Held) -> Protocol[Held]:
    """Renew once; the host table gets what was read. Raises OriginalJoinError, StorageError."""
    space, timing = member.space, member.timing
    image = yield from read_image(space, held.host_id, timing)
    found = yield from read_delta(space, held.host_id, timing)
    if found != held.leader:
        member.fail("its delta lease was changed by others", None)
        yield Notify(Failed("its delta lease was changed by others", None))
        raise OriginalJoinError(BUSY)
    now_us: int = yield Now()
    member.table.update(image.columns, now_us)
    record = held.leader._replace(timestamp=now_us // SECOND_US).sealed()
    data = pack_leader(record, space.area.sector_size)
    yield Write(space.area.path, space.area.delta(held.host_id), data, timing.dead_us, None)
    return Held(record, record.timestamp * SECOND_US, True)


def believes_sharer_alive(h: HostSeen, generation: int, now_us: int, watchdog: int) -> bool:
    """Tell what the original makes of a shared holder: it looks at its host table only (3, 7.3)."""
    if not h.last_check_us:
        return True
    if h.timestamp == 0 or h.generation > generation:
        return False
    return now_us - (h.last_live_us or h.first_check_us) <= dead_us(h.io_timeout, watchdog)


assert fail_us(1) == 8 * SECOND_US
