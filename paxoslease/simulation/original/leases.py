"""A model of the original: resource leases as spec/algorithms.md 5 to 7 describes them, literally.

It is what our hosts share a disk with, bugs included (spec/algorithms.md 15); it exists for the
explorer, the simulated cluster and tests, and yields the same effects as our own protocols. Errors
are the original's numbers. Written from the specification alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from paxoslease.disk.records import (
    NEVER_USED,
    SHORT_HOLD,
    HostSector,
    Leader,
    Where,
    pack_host_sector,
    pack_leader,
    parse_host_sector,
    parse_paxos,
)
from paxoslease.errors import BadRecord, PaxosleaseError, StorageError
from paxoslease.protocol.delta import read_delta
from paxoslease.protocol.disks import Claim
from paxoslease.protocol.effects import (
    BallotImage,
    HostSeen,
    Membership,
    Now,
    Observe,
    Protocol,
    Random,
    Read,
    ReadBallot,
    Sleep,
    Standing,
    Write,
)
from paxoslease.timing import SECOND_US, dead_us

HELD = -243
LOST = -244
COMMITTED_OTHER = -245
DYING = -247
READ_FAILED = -210
WRITE_FAILED = -211
NEWER_VERSION = -212
LARGER_NUMBER = -213
_ROUND_AGAIN = (NEWER_VERSION, LARGER_NUMBER)


@dataclass(eq=False)
class OriginalError(PaxosleaseError):
    """An operation of the original ended with `status`."""

    status: int
    template = "the original returns {status}"


class OriginalLease(NamedTuple):
    """A lease that a host of the original holds: the leader it wrote or accepted, its dblock."""

    claim: Claim
    leader: Leader
    own: HostSector

    @property
    def lver(self) -> int:
        return self.leader.lver


class _Run(NamedTuple):
    """Where 6.1 and 6.2 lead: run a ballot (re-reading the leader or not), restart, or an error."""

    status: int = 0
    restart: bool = False
    reread: bool = False


class _Outcome(NamedTuple):
    """A ballot's end: 0 and the dblock with the value committed, or an error."""

    status: int
    own: HostSector
    retract: bool = False


def acquire(claim: Claim, *, wait: bool = False) -> Protocol[OriginalLease]:
    """Acquire exclusively (6); `wait` for an owner that may be dead. Raises OriginalError."""
    standing: Standing = yield Membership()
    own = NEVER_USED
    while True:
        leader, largest = yield from _read_all(claim)
        run = yield from _may_run(claim, standing, leader, wait)
        if run.status:
            raise OriginalError(run.status)
        if run.restart:
            continue
        mbal = _first_number(largest, claim.host_id, leader.max_hosts)
        v = leader.lver + 1
        reread = run.reread
        while True:
            if reread:
                current = yield from _read_leader(claim)
                if current.lver == v:
                    if _owner(current) == (claim.host_id, standing.generation):
                        return OriginalLease(claim, current, own)
                    raise OriginalError(LOST)
                if current.lver > v or current != leader:
                    break
            reread = True
            outcome = yield from _ballot(claim, standing, v, mbal, leader.num_hosts)
            own = outcome.own
            if outcome.status in _ROUND_AGAIN:
                delay_us: int = yield Random(SECOND_US)
                yield Sleep(delay_us)
                mbal += leader.max_hosts
                continue
            if outcome.status:
                if outcome.retract:
                    yield from _retract(claim, standing, None)
                raise OriginalError(outcome.status)
            return (yield from _commit(claim, standing, leader, v, own))


def _first_number(m: int, host_id: int, max_hosts: int) -> int:
    return host_id if m == 0 else m - m % max_hosts + max_hosts + host_id


def _owner(leader: Leader) -> tuple[int, int]:
    return leader.owner_id, leader.owner_generation


def _read_leader(claim: Claim) -> Protocol[Leader]:
    area = claim.resource.disks[0]
    try:
        data = yield Read(area.path, area.offset, area.sector_size, claim.timing.io_us)
        return _parse_leader(claim, data)
    except StorageError as error:
        raise OriginalError(error.code) from None


def _parse_leader(claim: Claim, data: bytes) -> Leader:
    return parse_paxos(data, claim.where(0), claim.space.name, claim.resource.name, claim.host_id)


def _read_all(claim: Claim) -> Protocol[tuple[Leader, int]]:
    """Read the whole area (6.1): the leader, and the largest mbal of any dblock."""
    area = claim.resource.disks[0]
    everything = area.sizes.max_hosts
    try:
        image: BallotImage = yield ReadBallot(
            area.path, area.offset, area.sector_size, everything, claim.timing.io_us
        )
        leader = _parse_leader(claim, image.leader)
        sectors = [parse_host_sector(data, claim.where(0)) for _, data in image.hosts]
    except StorageError as error:
        raise OriginalError(error.code) from None
    return leader, max((sector.mbal for sector in sectors), default=0)


def _may_run(claim: Claim, standing: Standing, leader: Leader, wait: bool) -> Protocol[_Run]:
    """Decide from the leader and its owner's delta lease whether to run a ballot (6.1, 6.2)."""
    o, g = _owner(leader)
    if leader.timestamp == 0 or (o == claim.host_id and g <= standing.generation):
        return _Run()
    h: HostSeen = yield Observe(o)
    wait_start: int = yield Now()
    seen_timestamp = 0
    if h.last_check_us and h.last_live_us and (h.owner_id, h.generation) == (o, g):
        wait_start, seen_timestamp = h.last_live_us, h.timestamp
    needed_us = dead_us(h.io_timeout or claim.timing.io_timeout, claim.timing.watchdog_fire_timeout)
    while True:
        try:
            x = yield from read_delta(claim.space, o, claim.timing)
        except StorageError as error:
            return _Run(error.code)
        if x.timestamp == 0 or x.owner_id != o or x.owner_generation > g:
            return _Run(reread=True)
        if seen_timestamp == 0:
            seen_timestamp = x.timestamp
        else:
            alive = h.last_live_us != 0 and h.last_check_us == h.last_live_us
            if x.timestamp != seen_timestamp or alive:
                return (yield from _owner_alive(claim, leader))
            now_us: int = yield Now()
            if now_us - wait_start > needed_us:
                return _Run(reread=True)
            if not wait:
                return _Run(DYING)
        yield Sleep(SECOND_US)
        again = yield from _read_leader(claim)
        if again != leader:
            return _Run(restart=True)


def _owner_alive(claim: Claim, leader: Leader) -> Protocol[_Run]:
    """Look for the RELEASED flag of a live owner whose leader another host wrote (6.4)."""
    if leader.write_id != leader.owner_id:
        area = claim.resource.disks[0]
        offset = area.host_sector(leader.owner_id)
        try:
            data = yield Read(area.path, offset, area.sector_size, claim.timing.io_us)
            sector = parse_host_sector(data, Where(area.path, offset))
        except StorageError as error:
            return _Run(error.code)
        if sector.released:
            return _Run(reread=True)
    return _Run(HELD)


def _ballot(
    claim: Claim, standing: Standing, v: int, mbal: int, num_hosts: int
) -> Protocol[_Outcome]:
    """Run one ballot (5)."""
    own = HostSector(mbal=mbal, lver=v)
    status, best = yield from _phase(claim, own, num_hosts)
    if status:
        return _Outcome(status, own)
    inp, inp2, inp3 = best.value
    if not best.bal:
        now_us: int = yield Now()
        inp, inp2, inp3 = claim.host_id, standing.generation, now_us // SECOND_US
    own = own._replace(bal=mbal, inp=inp, inp2=inp2, inp3=inp3)
    status, best = yield from _phase(claim, own, num_hosts)
    return _Outcome(status, own, status in (READ_FAILED, WRITE_FAILED))


def _phase(claim: Claim, own: HostSector, num_hosts: int) -> Protocol[tuple[int, HostSector]]:
    """Write the own dblock and read the area; return a status and the best block for the value."""
    failed = yield from _write_own(claim, own)
    if failed:
        return WRITE_FAILED, NEVER_USED
    area = claim.resource.disks[0]
    try:
        image: BallotImage = yield ReadBallot(
            area.path, area.offset, area.sector_size, num_hosts, claim.timing.io_us
        )
    except StorageError:
        return READ_FAILED, NEVER_USED
    best = NEVER_USED
    for _, data in image.hosts:
        try:
            sector = parse_host_sector(data, claim.where(0))
        except BadRecord:
            continue  # the original passes over a damaged block (P4)
        if sector.lver < own.lver:
            continue
        if sector.lver > own.lver:
            return NEWER_VERSION, NEVER_USED
        if sector.mbal > own.mbal:
            return LARGER_NUMBER, NEVER_USED
        if sector.inp and sector.bal > best.bal:
            best = sector
    return 0, best


def _write_own(claim: Claim, sector: HostSector) -> Protocol[bool]:
    """Write the own host sector; return whether that failed."""
    area = claim.resource.disks[0]
    data = pack_host_sector(sector, area.sector_size)
    offset = area.host_sector(claim.host_id)
    try:
        yield Write(area.path, offset, data, claim.timing.io_us, None)
    except StorageError:
        return True
    return False


def _commit(
    claim: Claim, standing: Standing, leader: Leader, v: int, own: HostSector
) -> Protocol[OriginalLease]:
    """Write the leader for the value that the ballot committed, whoever it is (6.3)."""
    now_us: int = yield Now()
    new = leader._replace(
        lver=v,
        owner_id=own.inp,
        owner_generation=own.inp2,
        timestamp=own.inp3,
        write_id=claim.host_id,
        write_generation=standing.generation,
        write_timestamp=now_us // SECOND_US,
        flags=leader.flags & ~SHORT_HOLD if own.inp == claim.host_id else leader.flags,
    ).sealed()
    failure = yield from _write_leader(claim, new)
    if failure:
        yield from _retract(claim, standing, new)
        raise OriginalError(failure)
    if own.inp != claim.host_id:
        raise OriginalError(COMMITTED_OTHER)
    return OriginalLease(claim, new, own)


def _write_leader(claim: Claim, leader: Leader) -> Protocol[int]:
    """Write the leader record; return 0 or an error."""
    area = claim.resource.disks[0]
    data = pack_leader(leader, area.sector_size)
    try:
        yield Write(area.path, area.offset, data, claim.timing.io_us, None)
    except StorageError as error:
        return error.code
    return 0


def fail_shared(claim: Claim) -> Protocol[None]:
    """Leave behind what a failed shared attempt does: a zero dblock with RELEASED (7.1)."""
    yield from _write_own(claim, HostSector(released=True))


def _retract(claim: Claim, standing: Standing, last: Leader | None) -> Protocol[None]:
    """Give up what may have become ours by a failed write (6.6)."""
    yield from _write_own(claim, HostSector(released=True))
    yield from _free_leader(claim, standing, last)


def release(lease: OriginalLease) -> Protocol[PaxosleaseError | None]:
    """Release an exclusive lease (6.7); after a time-out tried until something else comes back."""
    claim = lease.claim
    standing: Standing = yield Membership()
    while True:
        yield from _write_own(claim, lease.own._replace(released=True))
        status = yield from _free_leader(claim, standing, lease.leader)
        if status != -202:
            return OriginalError(status) if status else None
        yield Sleep(2 * claim.timing.io_us)


def release_index_lease(lease: OriginalLease) -> Protocol[int]:
    """Release as the index code does: without RELEASED (10, 15.5). Returns 0 or an error."""
    standing: Standing = yield Membership()
    return (yield from _free_leader(lease.claim, standing, lease.leader))


def _free_leader(claim: Claim, standing: Standing, last: Leader | None) -> Protocol[int]:
    """Free the leader record if it still is the one remembered (6.7 from "cur = R A S" on)."""
    try:
        current = yield from _read_leader(claim)
    except OriginalError as error:
        return error.status
    if current.write_id != claim.host_id:
        return 0
    last = current if last is None else last
    if current.lver != last.lver:
        return -250
    if current.timestamp == 0 or _owner(current) != (claim.host_id, standing.generation):
        return -251
    if current != last:
        return -251
    now_us: int = yield Now()
    free = current._replace(
        timestamp=0,
        flags=current.flags & ~SHORT_HOLD,
        write_id=claim.host_id,
        write_generation=standing.generation,
        write_timestamp=now_us // SECOND_US,
    ).sealed()
    return (yield from _write_leader(claim, free))
