"""Waiting for a lease that others want too: see its release soon, and take turns.

Nothing here decides who owns a lease; it only decides when to try. So every wait below is for
progress and fairness, never for safety.

Turns without a word on disk: a host's own sector names the version that it last tried for. Those
with older versions have waited longer. A host that finds the lease free lets as many slots pass as
there are hosts before it, where a slot is the time an acquisition takes here.

Source: spec/algorithms.md 6.2 (waiting), 13 (random sleeps are for progress only).
"""

from __future__ import annotations

from typing import NamedTuple

from paxoslease.disk.records import Leader
from paxoslease.errors import (
    LeaseHeld,
    LeaseShared,
    LostRace,
    PaxosleaseError,
    StorageError,
    WaitTimeout,
)
from paxoslease.protocol.delta import read_delta
from paxoslease.protocol.disks import Claim, read_ballot, read_leader
from paxoslease.protocol.effects import Now, Protocol, Random, Sleep
from paxoslease.protocol.leases import (
    RECENT_VERSIONS,
    Lease,
    acquire_exclusive,
    acquire_shared,
)
from paxoslease.protocol.liveness import NO_SIGHTING, Sighting
from paxoslease.protocol.paxos import ANYTHING, Want
from paxoslease.timing import SECOND_US

POLL_FLOOR_US = 500
POLL_CEILING_US = SECOND_US // 2
POLITE_WITHIN_US = 50_000
WINNER_PATIENCE_US = SECOND_US


class Turn(NamedTuple):
    """What a host remembers of its last use of a lease, to let others go first.

    released_us: when it gave the lease back; rivals: how many others were after it then; slot_us:
    how long an acquisition takes on this disk.
    """

    released_us: int = 0
    rivals: int = 0
    slot_us: int = 2_000


NO_TURN = Turn()


def turn_after(lease: Lease, released_us: int) -> Turn:
    """Return what to remember when a lease has been released."""
    return Turn(released_us, lease.rivals, max(1_000, 4 * lease.io_us))


class _Queue(NamedTuple):
    """A waiting host's idea of its place: hosts before it, and the version it was found at."""

    ahead: int
    lver: int


def acquire_waiting(
    claim: Claim,
    until_us: int | None,
    *,
    shared: bool = False,
    want: Want = ANYTHING,
    turn: Turn = NO_TURN,
) -> Protocol[Lease]:
    """Acquire a lease, waiting for its owner to release it or to be dead.

    until_us: own clock; None waits without limit. Raises WaitTimeout with the last obstacle,
    Cancelled, and every error that waiting does not mend.
    """
    begun_us: int = yield Now()
    sighting = NO_SIGHTING
    yield from _let_others_go(claim, turn, begun_us)
    while True:
        try:
            if shared:
                return (yield from acquire_shared(claim, want, sighting))
            return (yield from acquire_exclusive(claim, want, sighting))
        except (LeaseHeld, LeaseShared, LostRace) as error:
            busy: PaxosleaseError = error
        now_us: int = yield Now()
        if until_us is not None and now_us >= until_us:
            if until_us <= begun_us:
                raise busy
            raise WaitTimeout(claim.space.name, claim.resource.name, now_us - begun_us, busy)
        sighting = yield from _await_chance(claim, busy, until_us, sighting, turn.slot_us)


def _let_others_go(claim: Claim, turn: Turn, now_us: int) -> Protocol[None]:
    """Let rivals have the lease that we had a moment ago."""
    if turn.rivals and now_us - turn.released_us < POLITE_WITHIN_US:
        jitter_us: int = yield Random(turn.slot_us)
        yield Sleep(turn.rivals * turn.slot_us + jitter_us, cancellable=True)


def _await_chance(
    claim: Claim, busy: PaxosleaseError, until_us: int | None, sighting: Sighting, slot_us: int
) -> Protocol[Sighting]:
    """Watch the leader until it is free, its owner may be dead, or the time is over.

    Polls after an eighth of the time waited so far: a lease held for milliseconds is noticed
    within a fraction of one, one held for days costs two small reads a second. Returns the first
    moment at which the owner's present delta record was seen, for the judgement of its death.
    """
    begun_us: int = yield Now()
    queue = yield from _place_in_queue(claim)
    spread_us: int = yield Random(WINNER_PATIENCE_US)
    patience_us = WINNER_PATIENCE_US + spread_us
    checked_us = 0
    while True:
        now_us: int = yield Now()
        poll_us = min(POLL_CEILING_US, max(POLL_FLOOR_US, slot_us // 2, (now_us - begun_us) // 8))
        if isinstance(busy, LeaseHeld) and not busy.alive:
            poll_us = min(poll_us, max(1, busy.takeover_in_us))
        if until_us is not None:
            poll_us = max(1, min(poll_us, until_us - now_us))
        yield Sleep(poll_us, cancellable=True)
        leader = yield from read_leader(claim)
        now_us = yield Now()
        if until_us is not None and now_us >= until_us:
            return sighting
        if leader.is_free:
            if isinstance(busy, LostRace) and leader.lver < busy.lver:
                # The winner has still to write the leader. Another ballot would overtake it, and
                # the next one again; so it gets more time than the longest pause between ballots.
                if now_us - begun_us < patience_us:
                    continue
                return sighting
            if not isinstance(busy, LeaseShared):
                ahead = max(0, queue.ahead - (leader.lver - queue.lver))
                jitter_us: int = yield Random(slot_us // 2)
                yield Sleep(ahead * slot_us + jitter_us, cancellable=True)
            elif now_us - begun_us < POLL_CEILING_US:
                continue
            return sighting
        if isinstance(busy, LeaseShared) or (isinstance(busy, LostRace) and _moved(busy, leader)):
            return sighting
        if now_us - checked_us >= POLL_CEILING_US:
            checked_us = now_us
            sighting = yield from _look(claim, leader, sighting)
            if _is_due(busy, leader, begun_us, now_us):
                return sighting


def _moved(busy: LostRace, leader: Leader) -> bool:
    return (leader.owner_id, leader.lver) != (busy.host_id, busy.lver)


def _is_due(busy: PaxosleaseError, leader: Leader, begun_us: int, now_us: int) -> bool:
    """Tell whether it is time to judge the owner again: once a second, or when it may be dead."""
    if isinstance(busy, LeaseHeld) and not busy.alive and leader.owner_id == busy.host_id:
        return now_us - begun_us >= min(busy.takeover_in_us, SECOND_US)
    return now_us - begun_us >= SECOND_US


def _look(claim: Claim, leader: Leader, sighting: Sighting) -> Protocol[Sighting]:
    """Read the owner's delta lease; keep the moment at which its record was first seen so."""
    try:
        record = yield from read_delta(claim.space, leader.owner_id, claim.timing)
    except StorageError:
        return sighting
    now_us: int = yield Now()
    here = Sighting(leader.owner_id, record.owner_generation, record.timestamp, now_us)
    return sighting if sighting[:3] == here[:3] else here


def _place_in_queue(claim: Claim) -> Protocol[_Queue]:
    """Count the hosts that have waited longer than we have (one area read per wait)."""
    leader = yield from read_leader(claim)
    ballot = yield from read_ballot(claim, leader.num_hosts)
    mine = ballot.sector_of(claim.host_id).lver
    ahead = sum(
        1
        for host_id, sector in ballot.hosts
        if host_id not in (claim.host_id, leader.owner_id)
        and sector.lver
        and sector.lver + RECENT_VERSIONS > leader.lver
        and sector.lver < mine
    )
    return _Queue(ahead, leader.lver)
