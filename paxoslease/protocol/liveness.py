"""Is the owner of a lease gone, has it let go, or is it there?

The judgement always ends with a fresh read of the owner's delta lease; the host table only says
since when that record has stood still. Nothing here waits: who wants to wait does so outside of an
attempt and asks again (`contention.py`).

Source: spec/algorithms.md 6.2, 6.4, 7.3; rules M9, M10, M24, M25.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from paxoslease.disk.records import HostSector, Leader, cut_name
from paxoslease.errors import LeaseHeld
from paxoslease.protocol.delta import read_delta
from paxoslease.protocol.disks import Claim, read_host_sector
from paxoslease.protocol.effects import HostSeen, Now, Observe, Protocol
from paxoslease.timing import SECOND_US, dead_us


class Basis(IntEnum):
    """Why an attempt may go on although the leader names an owner."""

    FREE = 0  # it names none, or an earlier life of ourselves
    DEAD = 1
    RELEASED = 2


class Sighting(NamedTuple):
    """A moment at which a host's delta record was seen with this generation and timestamp."""

    host_id: int
    generation: int
    timestamp: int
    at_us: int


NO_SIGHTING = Sighting(0, 0, 0, 0)


class Verdict(NamedTuple):
    """What is known of a host of some generation.

    is_dead: nothing of that generation can run any more.
    is_alive: it was seen to renew not long ago; a matter of words and of when to ask again only.
    still_us: how long its record has stood still, takeover_in_us: how much longer it must.
    """

    is_dead: bool
    is_alive: bool
    name: bytes
    still_us: int
    takeover_in_us: int
    sighting: Sighting


def judge(
    claim: Claim, host_id: int, generation: int, sighting: Sighting = NO_SIGHTING
) -> Protocol[Verdict]:
    """Judge a host of the lockspace by its delta lease on disk and by how long it stood still.

    Dead if the delta lease is free, has another owner or a larger generation: it can become so
    only through an orderly release, after which nothing runs, or after the owner stood still for
    `dead`. Otherwise dead if it stood still for more than `dead`, counted from a local moment at
    which the very record was visible; the io_timeout used is the largest of ours, the one on disk
    and any ever seen for that host (M9).

    Raises BadRecord, DiskTimeout, DiskError.
    """
    seen: HostSeen = yield Observe(host_id)
    record = yield from read_delta(claim.space, host_id, claim.timing)
    now_us: int = yield Now()
    name = cut_name(record.resource_name)
    here = Sighting(host_id, record.owner_generation, record.timestamp, now_us)
    if record.is_free or record.owner_id != host_id or record.owner_generation > generation:
        return Verdict(True, False, name, 0, 0, here)
    since = [here]
    if sighting[:3] == here[:3]:
        since.append(sighting)
    if seen.last_live_us and (seen.owner_id, seen.generation, seen.timestamp) == here[:3]:
        since.append(here._replace(at_us=seen.last_live_us))
    first = min(since, key=lambda s: s.at_us)
    still_us = now_us - first.at_us
    io_timeout = max(claim.timing.io_timeout, record.io_timeout, seen.io_max)
    needed_us = dead_us(io_timeout, claim.timing.watchdog_fire_timeout)
    is_dead = still_us > needed_us
    # It renews every two io_timeouts, and what is known of it may be as old as our own renewal.
    is_alive = not is_dead and still_us <= (3 * io_timeout + 1) * SECOND_US
    return Verdict(is_dead, is_alive, name, still_us, max(0, needed_us + 1 - still_us), first)


def owner_generation(leader: Leader) -> int:
    """Return the generation that owns a leader's lease.

    A leader whose writer is the owner in a later generation is of a host that took a value of its
    earlier life for its own (spec/algorithms.md 15.9): treat it as owned by the later (M25).
    """
    if leader.write_id == leader.owner_id:
        return max(leader.owner_generation, leader.write_generation)
    return leader.owner_generation


def has_let_go(leader: Leader, sector: HostSector, is_freed: bool = False) -> bool:
    """Tell whether the owner's own sector says that it gave up what the leader states.

    RELEASED counts when the leader was not written by the owner itself (6.4, M25), or when one of
    several disks shows that the owner freed this version (`is_freed`): RELEASED follows that write
    and is final (M19, M23), so what another disk shows is a commit that landed after its release.
    A block of a larger lver shows that the owner has moved on (M24).
    """
    if sector.lver > leader.lver:
        return True
    foreign = leader.write_id != leader.owner_id
    freed = is_freed and sector.lver == leader.lver
    later = leader.write_generation > leader.owner_generation
    return sector.released and (foreign or freed or later)


def find_basis(
    claim: Claim, leader: Leader, generation: int, sighting: Sighting, is_freed: bool = False
) -> Protocol[Basis]:
    """Return why a ballot may start on this leader; raise LeaseHeld when none may.

    is_freed: see has_let_go. Raises LeaseHeld, BadRecord, DiskTimeout, DiskError.
    Source: spec/algorithms.md 17, liveness().
    """
    if leader.is_free:
        return Basis.FREE
    if leader.owner_id == claim.host_id and leader.owner_generation <= generation:
        return Basis.FREE
    verdict = yield from judge(claim, leader.owner_id, owner_generation(leader), sighting)
    if verdict.is_dead:
        return Basis.DEAD
    sector = yield from read_host_sector(claim, leader.owner_id)
    if has_let_go(leader, sector, is_freed):
        return Basis.RELEASED
    raise held_by(claim, leader, verdict)


def held_by(claim: Claim, leader: Leader, verdict: Verdict) -> LeaseHeld:
    """Return the error that says who holds the lease, since when, and what it looks like."""
    return LeaseHeld(
        claim.space.name,
        claim.resource.name,
        leader.owner_id,
        verdict.name,
        leader.owner_generation,
        leader.lver,
        leader.timestamp,
        verdict.is_alive,
        verdict.still_us,
        verdict.takeover_in_us,
        leader.is_short_hold,
    )
