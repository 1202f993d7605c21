"""What a host does with a resource lease: take it exclusively or shared, convert it, give it back.

A host that holds a lease shared has a mode block in its own sector and owns nothing in the leader.
To get there it wins the lease exclusively for a moment (SHORT_HOLD). A host that wants it
exclusively meets the mode blocks in the sectors that its ballot reads, after it has won.

Order of writes (rule M23): first the mode block, in a sector without RELEASED, then the free
leader, then RELEASED. So at every moment either the leader or the mode block keeps others out.

Source: spec/algorithms.md 6.5, 6.7, 7 and 8; rules M3, M8, M10, M16, M23.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from paxoslease.disk.records import HostSector, Leader, pad_name
from paxoslease.errors import (
    DecisionStale,
    LeaseHeld,
    LeaseShared,
    LeaseUnsupported,
    LostRace,
    PaxosleaseError,
    ReleaseRefused,
    StorageError,
)
from paxoslease.protocol.disks import (
    Ballot,
    Claim,
    read_at,
    read_ballot,
    read_leader,
    write_at,
    write_own,
)
from paxoslease.protocol.effects import Membership, Now, Protocol, Random, Sleep, Standing
from paxoslease.protocol.liveness import NO_SIGHTING, Sighting, has_let_go, judge
from paxoslease.protocol.paxos import ANYTHING, Owned, Want, acquire
from paxoslease.protocol.settle import (
    free_leader,
    settle_release,
    shelf_life,
    write_released,
    write_unshared,
)
from paxoslease.timing import SECOND_US

RECENT_VERSIONS = 24
SHARED_RETRIES = 40


class Lease(NamedTuple):
    """A lease that this host holds.

    leader: the leader record of the version that was won; `lver` is the fencing token.
    own: the own host sector as last written. shared: in which mode it is held.
    rivals: how many other hosts went for one of the last versions; took_us: how long the
    acquisition took. Both are for taking turns (contention.py).
    """

    claim: Claim
    leader: Leader
    own: HostSector
    shared: bool
    rivals: int = 0
    took_us: int = 0

    @property
    def lver(self) -> int:
        return self.leader.lver


def acquire_exclusive(
    claim: Claim, want: Want = ANYTHING, sighting: Sighting = NO_SIGHTING
) -> Protocol[Lease]:
    """Acquire a lease exclusively; never waits for an owner.

    Raises what paxos.acquire raises, and LeaseShared when live hosts hold it shared: the version
    that was won is given back then.
    """
    owned = yield from acquire(claim, want, sighting)
    live = yield from _live_sharers(owned)
    if live:
        yield from settle_release(owned.claim, owned.leader, owned.own)
        raise LeaseShared(claim.space.name, claim.resource.name, live)
    return _exclusive(owned, owned.own)


def _exclusive(owned: Owned, own: HostSector) -> Lease:
    rivals = len(recent_rivals(owned.ballot, owned.claim.host_id, owned.leader.lver))
    return Lease(owned.claim, owned.leader, own, False, rivals, owned.took_us)


def recent_rivals(ballot: Ballot, host_id: int, lver: int) -> tuple[int, ...]:
    """Return the other hosts that went for one of the last versions before `lver`."""
    recent = lver - RECENT_VERSIONS
    return tuple(sorted({h for h, s in ballot.hosts if h != host_id and recent < s.lver > 0}))


def _live_sharers(owned: Owned) -> Protocol[tuple[int, ...]]:
    """Return the hosts that hold the lease shared and may be alive (7.3, M10).

    A host took its mode block's place on disk before it freed the leader on which our ballot
    rests, so the ballot's last read shows every mode block that counts. Sectors of dead hosts are
    left as they are: a late clean-up would erase the block of a host that has rejoined (M3). An
    error in reading a delta lease counts as alive.
    """
    sharers = tuple(
        sorted(
            {
                (host_id, sector.shared_generation)
                for host_id, sector in owned.ballot.newest()
                if sector.shared_generation is not None and host_id != owned.claim.host_id
            }
        )
    )
    live: tuple[int, ...] = ()
    index = 0
    while index < len(sharers):
        host_id, generation = sharers[index]
        index += 1
        alive = yield from _may_be_alive(owned.claim, host_id, generation)
        if alive:
            live = (*live, host_id)
    return tuple(sorted(set(live)))


def _may_be_alive(claim: Claim, host_id: int, generation: int) -> Protocol[bool]:
    try:
        verdict = yield from judge(claim, host_id, generation)
    except PaxosleaseError:
        return True
    return not verdict.is_dead


def acquire_shared(
    claim: Claim, want: Want = ANYTHING, sighting: Sighting = NO_SIGHTING
) -> Protocol[Lease]:
    """Acquire a lease shared: win it for a moment, leave a mode block, free the leader (7.1).

    A host that is on the same way is waited for, for as long as `want` says. Raises what
    paxos.acquire raises, and ReleaseRefused when somebody took the lease although we are alive.
    """
    want = want._replace(short_hold=True)
    begun_us: int = yield Now()
    pause_us = 0
    tries = 0
    while True:
        busy: LeaseHeld | LostRace
        try:
            owned = yield from acquire(claim, want, sighting)
        except LeaseHeld as error:
            busy = error
            again = error.short_hold
        except LostRace as error:
            busy = error
            again = True
        else:
            break
        now_us: int = yield Now()
        tries += 1
        if not again or tries > SHARED_RETRIES or now_us - begun_us >= want.patience_us:
            raise busy
        del busy
        # For progress only: the other one holds the lease for the time of three writes.
        pause_us = min(SECOND_US, max(2 * pause_us, 1000))
        delay_us: int = yield Random(pause_us)
        yield Sleep(delay_us)
    return (yield from _make_shared(_exclusive(owned, owned.own)))


def _make_shared(lease: Lease) -> Protocol[Lease]:
    """Turn a lease that was won for a moment into a shared one, or give it up."""
    failure: PaxosleaseError | None = None
    own = lease.own
    try:
        own = yield from _write_mode_block(lease)
    except PaxosleaseError as error:
        failure = error
    if failure is not None:
        # The mode block may be there or not: give everything up, mode block included.
        yield from settle_release(lease.claim, lease.leader, own)
        raise failure
    return (yield from _free_for_sharers(lease, own))


def _write_mode_block(lease: Lease) -> Protocol[HostSector]:
    """Write the own sector with the mode block and without RELEASED, first of all (M23).

    Raises DecisionStale, DiskTimeout, DiskError, LockspaceFailed; the lease is exclusive still.
    """
    standing: Standing = yield Membership()
    own = lease.own._replace(shared_generation=standing.generation, released=False)
    shelf = yield from shelf_life(lease.claim)
    yield from write_own(lease.claim, own, shelf.not_after_us)
    return own


def _free_for_sharers(lease: Lease, own: HostSector) -> Protocol[Lease]:
    """Free the leader, then write RELEASED; `own` is the sector with our mode block (M23)."""
    refused = yield from free_leader(lease.claim, lease.leader)
    if refused is not None:
        yield from write_released(lease.claim, own._replace(shared_generation=None))
        raise refused
    own = yield from write_released(lease.claim, own)
    return lease._replace(own=own, shared=True)


def release(
    lease: Lease, *, lvb: bytes | None = None, new_name: bytes | None = None
) -> Protocol[ReleaseRefused | None]:
    """Give a lease back. The user of the lease has stopped before.

    `lvb` is written first if given, `new_name` renames the resource with the same write that frees
    it. Goes on until it is done or the membership is over (LockspaceFailed); returns a refusal
    when the disk says that the lease is another's, in which case only RELEASED was written.
    Raises LeaseUnsupported for an LVB that has no place.
    """
    if lease.shared:
        yield from release_shared(lease)
        return None
    if lvb is not None:
        yield from write_lvb(lease, lvb)
    name = None if new_name is None else pad_name(new_name)
    try:
        refused = yield from free_leader(lease.claim, lease.leader, name)
    except ReleaseRefused as gone:
        return gone  # deleted, or made anew: RELEASED would go into somebody else's resource
    yield from write_released(lease.claim, lease.own)
    return refused


def release_shared(lease: Lease) -> Protocol[None]:
    """Give up a shared lease: one write, without the mode block (7.2). Raises LockspaceFailed."""
    yield from write_unshared(lease.claim)


def convert_to_exclusive(lease: Lease, want: Want = ANYTHING) -> Protocol[Lease]:
    """Turn a shared lease into an exclusive one; on any error it stays shared (7.4).

    Every ballot write carries the mode block, so that the shared lease never disappears from the
    disk. Raises what paxos.acquire raises, and LeaseShared when other live hosts share it.
    """
    standing: Standing = yield Membership()
    want = want._replace(shared_generation=standing.generation)
    owned = yield from acquire(lease.claim, want)
    live = yield from _live_sharers(owned)
    if live:
        yield from settle_release(owned.claim, owned.leader, owned.own)
        raise LeaseShared(lease.claim.space.name, lease.claim.resource.name, live)
    own = owned.own._replace(shared_generation=None)
    shelf = yield from shelf_life(lease.claim)
    with suppress(StorageError, DecisionStale):
        # The lease is exclusive either way: the leader says so. A mode block that is still there
        # is our own and goes with the next write of the sector.
        yield from write_own(owned.claim, own, shelf.not_after_us)
    return _exclusive(owned, own)


def convert_to_shared(lease: Lease, *, lvb: bytes | None = None) -> Protocol[Lease]:
    """Turn an exclusive lease into a shared one (7.5).

    Its user goes on meanwhile, so nothing is given up on the way: when the mode block cannot be
    written the lease stays exclusive. Raises what write_lvb raises, DecisionStale, DiskError, and
    ReleaseRefused when somebody took the lease in spite of us being alive.
    """
    if lvb is not None:
        yield from write_lvb(lease, lvb)
    own = yield from _write_mode_block(lease)
    return (yield from _free_for_sharers(lease, own))


def read_lvb(claim: Claim) -> Protocol[bytes]:
    """Read the lock value block: one sector. Raises LeaseUnsupported, DiskTimeout, DiskError.

    It is on the first disk only. It bears no version, so of several copies, some of which a write
    had missed, nobody could tell the newest.
    """
    first, offset = _lvb_place(claim)
    return (yield from read_at(first, (offset,)))


def write_lvb(lease: Lease, data: bytes) -> Protocol[None]:
    """Write the lock value block of a lease held exclusively; shorter data is zero-padded.

    Raises LeaseUnsupported, DiskTimeout, DiskError, LockspaceFailed; the lease is held on.
    """
    claim, offset = _lvb_place(lease.claim)
    if len(data) > claim.sector_size:
        reason = f"an LVB of {len(data)} bytes does not fit into a sector of {claim.sector_size}"
        raise LeaseUnsupported(claim.space.name, claim.resource.name, reason)
    padded = data.ljust(claim.sector_size, b"\0")
    while True:
        shelf = yield from shelf_life(claim)
        try:
            yield from write_at(claim, (offset,), padded, shelf.not_after_us)
        except DecisionStale:
            continue  # paused before the write was submitted: ask again whether we may
        return


def _lvb_place(claim: Claim) -> tuple[Claim, int]:
    """Return the claim as it lies on its first disk, and where the block is there (9.7)."""
    first = claim.resource.disks[0]
    if first.lvb is None:
        reason = "an LVB has no place with 4096-byte sectors and less than 8 MiB"
        raise LeaseUnsupported(claim.space.name, claim.resource.name, reason)
    return claim._replace(resource=claim.resource._replace(disks=(first,))), first.lvb


class Owners(NamedTuple):
    """Who holds a lease according to the disk: (host id, generation) each."""

    leader: Leader
    exclusive: tuple[int, int] | None
    shared: tuple[tuple[int, int], ...]


def read_owners(claim: Claim) -> Protocol[Owners]:
    """Read who holds a lease (8). An owner that has let go is not reported as one.

    `claim.host_id` 0 reads as a bystander. Raises BadRecord, DiskTimeout, DiskError.
    """
    leader = yield from read_leader(claim)
    ballot = yield from read_ballot(claim, leader.num_hosts)
    leader = ballot.leader
    exclusive = None
    sector = ballot.sector_of(leader.owner_id)
    if not leader.is_free and not has_let_go(leader, sector, ballot.is_freed):
        exclusive = (leader.owner_id, leader.owner_generation)
    shared = {
        (host_id, sector.shared_generation)
        for host_id, sector in ballot.newest()
        if sector.shared_generation is not None
    }
    return Owners(leader, exclusive, tuple(sorted(shared)))
