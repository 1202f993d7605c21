"""Waiting for a lease that others want too: see its release soon, and take turns.

Nothing here decides who owns a lease; it only decides when to try. So every wait below is for
progress and fairness, never for safety.

Turns without a word on disk: a host remembers the last version that it was granted. The number of
versions since then is its age, and of W contenders in turn each has another one. A host that finds
the lease free lets W - 1 - age slots pass, where a slot is the time an acquisition takes here; so
the one that has waited longest starts at once, and the one that had it last starts last. W is the
number of hosts whose sectors show that they tried for one of the last versions.

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
from paxoslease.protocol.disks import Ballot, Claim, read_ballot, read_leader
from paxoslease.protocol.effects import Now, Protocol, Random, Sleep
from paxoslease.protocol.leases import (
    Lease,
    acquire_exclusive,
    acquire_shared,
    recent_rivals,
)
from paxoslease.protocol.liveness import NO_SIGHTING, Sighting
from paxoslease.protocol.paxos import ANYTHING, Want
from paxoslease.timing import SECOND_US

POLL_FLOOR_US = 500
POLL_CEILING_US = SECOND_US // 2
POLITE_WITHIN_US = 50_000
SLOT_CEILING_US = SECOND_US // 4
LOOKS_BEFORE_BALLOT = 4
WINNER_PATIENCE_US = SECOND_US


class Turn(NamedTuple):
    """What a host remembers of its last use of a lease, to let others go first.

    lver: the version it was granted, 0 for none; released_us: when it gave the lease back; rivals:
    how many others were after it; slot_us: how long an acquisition takes here; is_crowded: some of
    the rivals lost their last race, so the order is disturbed.
    """

    lver: int = 0
    released_us: int = 0
    rivals: int = 0
    slot_us: int = 2_000
    is_crowded: bool = False

    def slots_at(self, lver: int) -> int:
        """Return how many slots to let pass when the lease is free at this version."""
        age = lver - self.lver if self.lver else self.rivals
        return max(0, min(self.rivals, self.rivals - age))


NO_TURN = Turn()


def turn_after(lease: Lease, released_us: int, before: Turn = NO_TURN) -> Turn:
    """Return what to remember when a lease has been released; `before`: of the use before it."""
    # Bounded, or one hang of the disk would make everybody wait for a lease that is free.
    slot_us = min(SLOT_CEILING_US, max(1_000, (3 * before.slot_us + lease.took_us) // 4))
    return Turn(lease.lver, released_us, lease.rivals, slot_us)


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
    busy: PaxosleaseError | None = None
    may_try = True
    if turn.rivals and until_us != begun_us and begun_us - turn.released_us < POLITE_WITHIN_US:
        may_try = False  # others wait for what we had a moment ago
    while True:
        if may_try:
            try:
                if shared:
                    return (yield from acquire_shared(claim, want, sighting))
                return (yield from acquire_exclusive(claim, want, sighting))
            except (LeaseHeld, LeaseShared, LostRace) as error:
                busy = error
        now_us: int = yield Now()
        if busy is not None and until_us is not None and now_us >= until_us:
            if until_us <= begun_us:
                raise busy
            raise WaitTimeout(claim.space.name, claim.resource.name, now_us - begun_us, busy)
        may_try = True
        sighting = yield from _await_chance(claim, busy, until_us, sighting, turn)


def _await_chance(
    claim: Claim,
    busy: PaxosleaseError | None,
    until_us: int | None,
    sighting: Sighting,
    turn: Turn,
) -> Protocol[Sighting]:
    """Watch the leader until it is free, its owner may be dead, or the time is over.

    Polls after an eighth of the time for which the lease has been held: one held for milliseconds
    is noticed within a fraction of one, one held for days costs two small reads a second. Returns
    the first moment at which the owner's present delta record was seen, for judging its death.
    """
    begun_us: int = yield Now()
    turn = yield from _count_rivals(claim, turn)
    spread_us: int = yield Random(WINNER_PATIENCE_US)
    patience_us = WINNER_PATIENCE_US + spread_us
    poll_us = max(POLL_FLOOR_US, turn.slot_us // 4)
    checked_us = 0
    lver, since_us = 0, begun_us
    while True:
        now_us: int = yield Now()
        if isinstance(busy, LeaseHeld) and not busy.alive:
            due_us = begun_us + busy.takeover_in_us
        else:
            due_us = now_us + POLL_CEILING_US
        pause_us = max(poll_us, (now_us - since_us) // 8)
        pause_us = min(pause_us, POLL_CEILING_US, max(due_us - now_us, POLL_FLOOR_US))
        if until_us is not None:
            pause_us = max(1, min(pause_us, until_us - now_us))
        yield Sleep(pause_us, cancellable=True)
        leader = yield from read_leader(claim)
        now_us = yield Now()
        if until_us is not None and now_us >= until_us:
            return sighting
        if leader.lver != lver:
            lver, since_us = leader.lver, now_us
        if leader.is_free:
            if isinstance(busy, LostRace) and leader.lver < busy.lver:
                # The winner has still to write the leader. Another ballot would overtake it, and
                # the next one again; so it gets more time than the longest pause between ballots.
                if now_us - begun_us < patience_us:
                    continue
                return sighting
            if isinstance(busy, LeaseShared):
                if now_us - begun_us < POLL_CEILING_US:
                    continue
                return sighting
            mine = yield from _take_turn(claim, turn, leader)
            if mine:
                return sighting
            continue
        if isinstance(busy, LeaseShared) or (isinstance(busy, LostRace) and _moved(busy, leader)):
            return sighting
        # Whoever has others before it need not look before they have had their turns.
        poll_us = max(POLL_FLOOR_US, turn.slot_us // 4, turn.slots_at(leader.lver) * turn.slot_us)
        if _is_due(busy, leader, begun_us, now_us):
            return sighting
        if now_us - checked_us >= POLL_CEILING_US:
            checked_us = now_us
            sighting = yield from _look(claim, leader, sighting)


def _take_turn(claim: Claim, turn: Turn, leader: Leader) -> Protocol[bool]:
    """Let those before us begin, then see whether the lease is still free and nobody goes for it.

    Two ballots at once cost more than a slot, and the larger host id wins them. So whoever is not
    the first looks at all sectors before it begins: a block of a newer version without RELEASED is
    a host on its way. It is given a few slots; after that it counts as gone.
    """
    slots = turn.slots_at(leader.lver)
    is_overdue = turn.rivals > 0 and (not turn.lver or leader.lver - turn.lver > turn.rivals)
    has_to_look = slots > 0 or turn.is_crowded or is_overdue
    spread_us: int = yield Random(turn.slot_us // 2 if turn.rivals > 1 and not is_overdue else 0)
    yield Sleep(slots * turn.slot_us + spread_us, cancellable=True)
    looks = 0
    while has_to_look and looks < LOOKS_BEFORE_BALLOT:
        # Mostly the lease is gone by now, which a small read shows.
        again = yield from read_leader(claim)
        if again != leader:
            return False
        ballot = yield from read_ballot(claim, leader.num_hosts)
        if ballot.leader != leader:
            return False
        if not _somebody_tries(ballot, claim.host_id):
            return True
        looks += 1
        yield Sleep(turn.slot_us, cancellable=True)
    return True


def _somebody_tries(ballot: Ballot, host_id: int) -> bool:
    return any(
        sector.lver > ballot.leader.lver and not sector.released
        for other, sector in ballot.hosts
        if other != host_id
    )


def _moved(busy: LostRace, leader: Leader) -> bool:
    return (leader.owner_id, leader.lver) != (busy.host_id, busy.lver)


def _is_due(busy: PaxosleaseError | None, leader: Leader, begun_us: int, now_us: int) -> bool:
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


def _count_rivals(claim: Claim, turn: Turn) -> Protocol[Turn]:
    """Count the hosts that went for one of the last versions (one area read per wait)."""
    leader = yield from read_leader(claim)
    ballot = yield from read_ballot(claim, leader.num_hosts)
    rivals = recent_rivals(ballot, claim.host_id, leader.lver)
    is_crowded = any(ballot.sector_of(rival).inp != rival for rival in rivals)
    return turn._replace(rivals=len(rivals), is_crowded=is_crowded)
