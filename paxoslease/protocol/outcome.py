"""What became of an operation whose host died over it, and bringing that to an end.

A daemon that was killed while it acquired, converted or released a lease leaves a disk on which
anything from nothing to all of it has happened. Its successor (adoption.py) has the same host id
and generation, so others take what is there for the doing of a live host: an unfinished ballot may
still be completed in our name, and a leader that names us blocks everybody for ever.

Why what is done here is right. All writes of the predecessor have landed (adoption.py), so this is
the situation after a timed-out write that came back (M7): read what is there, then go on as the
operation itself would after an error. In our own sector, of version v, one of these is found:

  - *RELEASED, or never used.* The version is over, by a release or by a lost attempt, and stays so
    (M19). Every way to RELEASED has dealt with the leader before (M8, M23); only a mode block may
    be left, which is taken away unless it is to be kept.
  - *Not RELEASED, and the leader names us for v*, or we are known to have held v: ours. The leader
    is freed, then RELEASED is written (M23), as in a release; nobody can take the version after v
    before one of them is visible, so this rolls nothing back.
  - *Not RELEASED, and the leader does not name us for v*: a ballot that may still be decided for
    us. RELEASED is written beside the ballot's value, as at the end of a lost attempt (M8): whoever
    completes v for us finds that we have let go, and goes on with the version after it.

A conversion has a user that goes on. A mode block of our generation says that the shared lease is
in place, whichever way the conversion went: shared is what both ways have in common, so what is
beside it is given up as above and the lease is shared. Without one the lease is exclusive if the
leader, or what is known, says that version v is ours; else it is another's.

Source: spec/algorithms.md 6.6, 7.4, 7.5, 16; rules M3, M7, M8, M19, M23.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from paxoslease.disk.records import HostSector, Leader
from paxoslease.errors import BadRecord, StorageError
from paxoslease.protocol.disks import Claim, read_start
from paxoslease.protocol.effects import Membership, Protocol, Standing
from paxoslease.protocol.leases import Lease
from paxoslease.protocol.paxos import resized
from paxoslease.protocol.settle import (
    Retry,
    pause_before_retry,
    settle_release,
    write_released,
)


class Found(Enum):
    """What the disk said of an operation that was cut short."""

    NOTHING = "nothing of it is there"
    OVER = "it had been given up"
    BALLOT = "a ballot was under way"
    OURS = "the lease was ours"
    FOREIGN = "the lease is another's"
    GONE = "the resource is not there any more"


class Settled(NamedTuple):
    """How it ended: what was found, and the lease that this host holds now, if it does."""

    found: Found
    lease: Lease | None = None


class _Seen(NamedTuple):
    """The disk at the beginning: the claim with the sizes found, the leader, the own sector."""

    claim: Claim
    leader: Leader
    own: HostSector
    standing: Standing


def settle_unknown(claim: Claim, before: Lease | None, *, keep: bool) -> Protocol[Settled]:
    """Bring a lease to a known state after an operation on it whose outcome is unknown.

    before: the lease as it was held when the operation began, None when it was not. keep: it has a
    user that goes on (a conversion), so it is given up only as far as the conversion would; else
    all of it is. Without `keep` nothing is held afterwards.

    Goes on until it is done or the membership is over (LockspaceFailed). Notifies Unsettled once
    when the disk does not take it. Raises BadRecord for a damaged resource.
    """
    assert before is not None or not keep
    seen = yield from _look(claim)
    if seen is None:
        return Settled(Found.GONE)
    held = _owned_version(seen, before)
    found = _judge(seen, held, before, keep)
    if before is not None and keep and found is Found.OURS:
        if seen.own.shared_generation == seen.standing.generation:
            own = yield from _let_go(seen, held, seen.own)
            return Settled(found, Lease(seen.claim, before.leader, own, True))
        assert held is not None
        return Settled(found, Lease(seen.claim, held, seen.own, False))
    yield from _let_go(seen, held, seen.own._replace(shared_generation=None))
    return Settled(Found.FOREIGN if keep else found)


def _look(claim: Claim) -> Protocol[_Seen | None]:
    """Read the leader, then the own sector; None when the resource is not there any more."""
    retry = Retry()
    while True:
        standing: Standing = yield Membership()
        failure: StorageError
        try:
            start = yield from read_start(claim)
            leader = start.leader
            if leader.sizes is not None and leader.sizes != claim.resource.disks[0].sizes:
                claim = resized(claim, leader.sizes)
                continue
            own = start.sector_of(claim.host_id)
            return _Seen(claim, leader, own, standing)
        except BadRecord as error:
            if error.field in ("magic", "space_name", "resource_name"):
                return None
            raise
        except StorageError as error:
            failure = error
        retry = yield from pause_before_retry(retry, failure, claim)
        del failure


def _owned_version(seen: _Seen, before: Lease | None) -> Leader | None:
    """Return the leader record of the own sector's version if that is known to be ours."""
    leader, own = seen.leader, seen.own
    us = (seen.claim.host_id, seen.standing.generation)
    if not own.lver:
        return None
    if leader.lver == own.lver and (leader.owner_id, leader.owner_generation) == us:
        return leader
    if leader.lver >= own.lver:
        return None
    if before is None:
        return None
    if before.lver == own.lver and not before.shared:
        return before.leader  # rolled back since (15.8): a release writes it as free all the same
    if before.shared and own.shared_generation is None and own.value[:2] == us:
        # Only a conversion that had won takes the mode block away; the leader was rolled back.
        return _as_committed(leader, own, us)
    return None


def _as_committed(base: Leader, own: HostSector, us: tuple[int, int]) -> Leader:
    """Return the leader record that we wrote for the version and value of our own sector."""
    return base._replace(
        lver=own.lver,
        owner_id=own.inp,
        owner_generation=own.inp2,
        timestamp=own.inp3,
        write_id=us[0],
        write_generation=us[1],
        write_timestamp=own.inp3,
    ).sealed()


def _judge(seen: _Seen, held: Leader | None, before: Lease | None, keep: bool) -> Found:
    """Say what there is. OURS: an exclusive lease, or a shared one."""
    own, leader = seen.own, seen.leader
    shares = own.shared_generation == seen.standing.generation
    was_ours = before is not None and not before.shared and before.lver == own.lver
    if was_ours and held is None:
        # Nobody but us can have ended that version: a release frees the leader first, a conversion
        # leaves a mode block before. Even then nobody else is the owner of that version.
        has_ended = own.released or shares or not keep
        if leader.lver == own.lver or not has_ended:
            return Found.FOREIGN
    if shares or (held is not None and not own.released and not held.is_free):
        return Found.OURS
    if not own.lver and not own.mbal:
        return Found.NOTHING
    is_over = own.released or was_ours or (held is not None and held.is_free)
    return Found.OVER if is_over else Found.BALLOT


def _let_go(seen: _Seen, held: Leader | None, own: HostSector) -> Protocol[HostSector]:
    """Give up the version of the own sector; `own` is that sector with the mode block to keep."""
    if not seen.own.released and seen.own.lver:
        if held is not None:
            return (yield from settle_release(seen.claim, held, own))
        return (yield from write_released(seen.claim, own))
    if own != seen.own:
        return (yield from write_released(seen.claim, own))
    return own
