"""Resource leases: who owns version v of a resource is decided by Disk Paxos.

Every version `lver` of a resource is a consensus instance of its own. A host proposes itself in
its own sector (phase 1: a ballot number; phase 2: the number with a value), reads all sectors
after each write, adopts the value of the largest ballot that it finds, and starts again when it
meets a larger number. The value decided is an owner: (host id, generation, its seconds). The
winner writes it into the leader record, which is a hint for others where to begin; the truth is in
the sectors.

Invariants, beyond those of the paper:
  - a host's block never goes back to a smaller lver and never loses a value of the same lver (M3);
  - RELEASED is final for its version (M19); only a value of the own generation is ours (M20);
  - the leader on which an attempt rests is the one in every area read of its ballot (M4, M22);
  - nobody writes the leader for a host that lives (M21);
  - an attempt that wrote its block ends as owner or leaves RELEASED behind (M8).

An attempt returns one of the small values below instead of raising, because whatever ends it, what
it wrote must be brought to an end first.

Source: Gafni & Lamport 2003 (Disk Paxos); spec/algorithms.md 5, 6, 16 and 17.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from paxoslease.disk.layout import Sizes
from paxoslease.disk.records import NEVER_USED, SHORT_HOLD, HostSector, Leader
from paxoslease.errors import (
    BadRecord,
    DecisionStale,
    LeaseUnsupported,
    LostRace,
    PaxosleaseError,
    StorageError,
    WrongVersion,
)
from paxoslease.protocol.disks import (
    Ballot,
    Claim,
    read_ballot,
    read_leader,
    read_start,
    write_leader,
    write_own,
)
from paxoslease.protocol.effects import Membership, Now, Protocol, Random, Sleep, Standing
from paxoslease.protocol.liveness import NO_SIGHTING, Basis, Sighting, find_basis, has_let_go, judge
from paxoslease.protocol.settle import settle_release, write_released
from paxoslease.timing import SECOND_US

PAUSE_CEILING_US = SECOND_US
PAUSE_READS_MAX = 32  # ballots of two hosts pass each other after a few reads' time


class Want(NamedTuple):
    """What a caller wants of an exclusive acquisition.

    lver: only if the lease has this version now; None for any.
    num_hosts: written with the commit; None leaves it.
    short_hold: the lease is wanted only on the way to a shared one.
    shared_generation: our mode block to be carried along in every write (conversion, 7.4).
    patience_us: how long a shared acquisition waits in all for hosts that are on the same way.
    """

    lver: int | None = None
    num_hosts: int | None = None
    short_hold: bool = False
    shared_generation: int | None = None
    patience_us: int = 4 * SECOND_US


ANYTHING = Want()


class Owned(NamedTuple):
    """An exclusive lease that we own, and what its release needs.

    leader: the record as we wrote it; own: our host sector; ballot: the last area read; took_us:
    how long the attempt took that led here. `leader.lver` is the fencing token.
    """

    leader: Leader
    own: HostSector
    ballot: Ballot
    claim: Claim
    took_us: int


class Memory(NamedTuple):
    """What an acquisition remembers over its restarts (spec/algorithms.md 17, note b).

    lo: lower bound for v; m: largest ballot number seen; own: our sector as last written or read;
    wrote: whether we wrote it; io_us: how long the last area read took; pause_us: ceiling of the
    next random pause; begun_us: when the present attempt began.
    """

    lo: int = 0
    m: int = 0
    own: HostSector = NEVER_USED
    wrote: bool = False
    io_us: int = 0
    pause_us: int = 0
    begun_us: int = 0


class Go(IntEnum):
    """How a ballot goes on."""

    ON = 0
    REREAD = 1
    RESTART = 2
    LOST = 3


class Step(NamedTuple):
    """The result of one part of a ballot."""

    go: Go
    memory: Memory
    ballot: Ballot | None = None
    error: PaxosleaseError | None = None


class Instance(NamedTuple):
    """One consensus instance as this attempt sees it.

    v: the version; base: the leader on which it rests; basis: why it may; adopted: base says that
    version v is ours already, committed by another host (rule M5).
    """

    v: int
    base: Leader
    basis: Basis
    adopted: bool = False


def ballot_number(m: int, host_id: int, max_hosts: int) -> int:
    """Return the smallest number of this host above m: its residue is the host id (5)."""
    return host_id if m == 0 else m - m % max_hosts + max_hosts + host_id


def acquire(
    claim: Claim, want: Want = ANYTHING, sighting: Sighting = NO_SIGHTING
) -> Protocol[Owned]:
    """Acquire a lease exclusively; never waits for an owner.

    Raises LeaseHeld, LostRace, WrongVersion, LeaseUnsupported, BadRecord, DiskTimeout, DiskError,
    LockspaceFailed. After an error nothing of the attempt is left that could still make us owner,
    except after LockspaceFailed, when the failing host is reset or has left.
    """
    memory = Memory()
    while True:
        begun = yield from _begin(claim, want, sighting, memory)
        if isinstance(begun, Sizes):
            claim = resized(claim, begun)
            continue
        if isinstance(begun, Step):
            result: Owned | Step = begun
        else:
            instance, memory = begun
            result = yield from _ballots(claim, want, instance, memory)
        if isinstance(result, Owned):
            return result
        memory = result.memory
        if result.error is not None:
            if memory.wrote and not memory.own.released:
                yield from write_released(claim, memory.own)
            raise result.error
        memory = yield from pause(memory)


def resized(claim: Claim, sizes: Sizes) -> Claim:
    """Return the claim with the sizes that its leader record states."""
    disks = tuple(a._replace(sizes=sizes) for a in claim.resource.disks)
    return claim._replace(resource=claim.resource._replace(disks=disks))


def pause(memory: Memory) -> Protocol[Memory]:
    """Sleep at random, for longer the more often we met others.

    For progress only: two hosts that overtake each other again and again need different delays,
    and the right scale for them is how long the disk takes for a ballot's reads.
    """
    longest_us = min(PAUSE_CEILING_US, PAUSE_READS_MAX * memory.io_us)
    ceiling_us = min(longest_us, max(2 * memory.pause_us, 2 * memory.io_us))
    delay_us: int = yield Random(ceiling_us)
    yield Sleep(delay_us)
    return memory._replace(pause_us=ceiling_us)


def _begin(
    claim: Claim, want: Want, sighting: Sighting, memory: Memory
) -> Protocol[tuple[Instance, Memory] | Sizes | Step]:
    """Read the leader, then the own sector, and find out whether a ballot may start.

    Returns the sizes instead when the leader states others than assumed.
    """
    standing: Standing = yield Membership()
    begun_us: int = yield Now()
    memory = memory._replace(begun_us=begun_us)
    try:
        start = yield from read_start(claim)
        leader = start.leader
        if leader.sizes is not None and leader.sizes != claim.resource.disks[0].sizes:
            return leader.sizes
        memory = memory._replace(
            own=start.sector_of(claim.host_id),
            lo=max(memory.lo, max((sector.lver for _, sector in start.hosts), default=0)),
            m=max(memory.m, max((sector.mbal for _, sector in start.hosts), default=0)),
        )
        if want.lver is not None and leader.lver != want.lver:
            error = WrongVersion(claim.space.name, claim.resource.name, want.lver, leader.lver)
            return Step(Go.LOST, memory, None, error)
        basis = yield from find_basis(claim, leader, standing.generation, sighting, start.is_freed)
        if basis is not Basis.FREE:
            again = yield from read_leader(claim)
            if again != leader:
                return Step(Go.RESTART, memory)
        instance = Instance(max(leader.lver + 1, memory.lo), leader, basis)
        error2 = yield from _left_to_another(claim, instance, memory.own)
    except PaxosleaseError as error:
        return Step(Go.LOST, memory, None, error)
    if error2 is not None:
        return Step(Go.LOST, memory, None, error2)
    return instance, memory


def _left_to_another(
    claim: Claim, instance: Instance, own: HostSector
) -> Protocol[LostRace | None]:
    """Tell whether another live host is about to own this version, before a ballot disturbs it.

    Our block holds its value: a ballot of ours chose it, and was given up because that host lives
    (M21). Another ballot would end in the same way, after it had raised the number above which that
    host has to come. A host of the original comes nearer by one max_hosts in each of its tries
    (P7): it would never arrive, and nobody get the lease, where ours try again and again.

    Raises BadRecord, DiskTimeout, DiskError.
    """
    if own.lver != instance.v or not own.bal or own.inp in (0, claim.host_id):
        return None
    ballot = yield from read_ballot(claim, instance.base.num_hosts)
    best = _largest(instance.v, ballot)
    moved_on = any(sector.lver > instance.v for _, sector in ballot.hosts)
    if not best.bal or best.inp == claim.host_id or moved_on or ballot.leader != instance.base:
        return None
    may_help = yield from _may_write_for(claim, instance, best, ballot)
    if may_help is not Go.LOST:
        return None
    return _lost_to(claim, best.inp, best.inp2, instance.v, True)


def _ballots(
    claim: Claim, want: Want, instance: Instance, memory: Memory
) -> Protocol[Owned | Step]:
    """Run ballots for one version until it is decided, or must be given up or begun anew."""
    while True:
        standing: Standing = yield Membership()
        number = ballot_number(memory.m, claim.host_id, instance.base.max_hosts)
        keep = memory.own.lver == instance.v
        kept = memory.own if keep else NEVER_USED._replace(lver=instance.v)
        own = kept._replace(mbal=number, shared_generation=want.shared_generation)
        memory = memory._replace(own=own, m=number)
        step = yield from _phase(claim, want, standing, instance, memory)
        memory = step.memory
        if step.go is Go.ON:
            assert step.ballot is not None
            inp, inp2, inp3 = yield from _choose(claim, standing, instance.v, step.ballot)
            own = memory.own._replace(bal=number, inp=inp, inp2=inp2, inp3=inp3)
            memory = memory._replace(own=own)
            step = yield from _phase(claim, want, standing, instance, memory)
            memory = step.memory
        if step.go is Go.ON:
            assert step.ballot is not None
            result = yield from _commit(claim, want, instance, memory, step.ballot)
            if isinstance(result, Owned):
                return result
            step, memory = result, result.memory
        if step.go is not Go.REREAD:
            return step
        reread = yield from _reread(claim, standing, instance, memory)
        if isinstance(reread, Step):
            return reread
        instance = reread


def _phase(
    claim: Claim, want: Want, standing: Standing, instance: Instance, memory: Memory
) -> Protocol[Step]:
    """Write the own sector, read the area, and look for a reason not to go on."""
    now_us: int = yield Now()
    not_after_us = min(standing.expires_us, now_us + claim.timing.io_us)
    memory = memory._replace(wrote=True)
    try:
        yield from write_own(claim, memory.own, not_after_us)
        begin_us: int = yield Now()
        ballot = yield from read_ballot(claim, instance.base.num_hosts)
    except DecisionStale:
        # Nothing was submitted. The block on disk is an older one of ours, and the next ballot
        # writes a larger number over it.
        return Step(Go.REREAD, memory)
    except StorageError as error:
        return Step(Go.LOST, memory, None, error)
    end_us: int = yield Now()
    memory = memory._replace(io_us=end_us - begin_us)
    go, memory = _check(claim, instance, memory, ballot)
    if go is Go.REREAD and _overtaken(ballot, memory.own):
        memory = yield from pause(memory)
    if go is Go.ON and want.num_hosts is not None:
        highest = max((host_id for host_id, _ in ballot.hosts), default=0)
        if not highest <= want.num_hosts <= instance.base.max_hosts:
            reason = f"num_hosts {want.num_hosts} is not between {highest} and max_hosts"
            error2 = LeaseUnsupported(claim.space.name, claim.resource.name, reason)
            return Step(Go.LOST, memory, None, error2)
    return Step(go, memory, ballot)


def _overtaken(ballot: Ballot, own: HostSector) -> bool:
    return any(sector.mbal > own.mbal for _, sector in ballot.hosts)


def _check(claim: Claim, instance: Instance, memory: Memory, ballot: Ballot) -> tuple[Go, Memory]:
    """Judge an area read (spec/algorithms.md 17, check)."""
    own = memory.own
    largest_mbal = max((sector.mbal for _, sector in ballot.hosts), default=0)
    largest_lver = max((sector.lver for _, sector in ballot.hosts), default=0)
    memory = memory._replace(m=max(memory.m, largest_mbal), lo=max(memory.lo, largest_lver))
    leader = ballot.leader
    if leader.lver >= instance.v and not (instance.adopted and leader.lver == instance.v):
        return Go.REREAD, memory  # M4
    if leader != instance.base:  # M22
        return (Go.REREAD if instance.adopted else Go.RESTART), memory
    if (
        instance.basis is Basis.RELEASED
        and not instance.adopted
        and not has_let_go(instance.base, ballot.sector_of(instance.base.owner_id), ballot.is_freed)
    ):
        return Go.RESTART, memory  # M22
    if largest_lver > instance.v:
        return Go.RESTART, memory  # M12
    if largest_mbal > own.mbal:
        return Go.REREAD, memory
    return Go.ON, memory


def _choose(
    claim: Claim, standing: Standing, v: int, ballot: Ballot
) -> Protocol[tuple[int, int, int]]:
    """Return the value for phase 2: that of the largest ballot seen for v, else ourselves."""
    best = _largest(v, ballot)
    if best.bal:
        return best.value
    now_us: int = yield Now()
    return claim.host_id, standing.generation, max(1, now_us // SECOND_US)


def _largest(v: int, ballot: Ballot) -> HostSector:
    """Return the sector with the value of the largest ballot seen for v; its bal is 0 for none."""
    best = NEVER_USED
    for _, sector in ballot.hosts:
        if sector.lver == v and sector.inp and sector.bal > best.bal:
            best = sector
    return best


def _commit(
    claim: Claim, want: Want, instance: Instance, memory: Memory, ballot: Ballot
) -> Protocol[Owned | Step]:
    """Do what the decided value asks for: own it, help its owner, or begin the next version."""
    own = memory.own
    standing: Standing = yield Membership()
    begun_us: int = yield Now()
    ours = own.inp == claim.host_id
    if ours and (own.inp2 != standing.generation or own.released):  # M19, M20
        return Step(Go.RESTART, memory._replace(lo=max(memory.lo, instance.v + 1)))
    lost = Step(Go.LOST, memory, None, _lost_to(claim, own.inp, own.inp2, instance.v, True))
    if not ours:
        help_it = yield from _may_write_for(claim, instance, own, ballot)
        if help_it is not Go.ON:
            return lost if help_it is Go.LOST else Step(help_it, memory)
    flags = instance.base.flags
    if ours:
        flags = flags | SHORT_HOLD if want.short_hold else flags & ~SHORT_HOLD
    leader = instance.base._replace(
        lver=instance.v,
        owner_id=own.inp,
        owner_generation=own.inp2,
        timestamp=own.inp3,
        write_id=claim.host_id,
        write_generation=standing.generation,
        write_timestamp=begun_us // SECOND_US,
        num_hosts=instance.base.num_hosts if want.num_hosts is None else want.num_hosts,
        flags=flags,
    ).sealed()
    owned = Owned(leader, own, ballot, claim, begun_us - memory.begun_us)
    try:
        yield from write_leader(
            claim, leader, min(standing.expires_us, begun_us + claim.timing.io_us)
        )
    except DecisionStale:
        return Step(Go.REREAD, memory)
    except StorageError as error:
        failed = Step(Go.LOST, memory, None, error)
    else:
        return owned if ours else lost
    if ours:
        # Nobody can tell whether the leader was written, so we may be its owner: free it properly.
        own = yield from settle_release(claim, leader, own)
        failed = failed._replace(memory=memory._replace(own=own))
    return failed


def _may_write_for(
    claim: Claim, instance: Instance, own: HostSector, ballot: Ballot
) -> Protocol[Go]:
    """Tell whether the leader may be written for another host: only when it cannot do so (M21).

    A live owner finishes itself; our delayed write would roll the leader back (15.8). After the
    evidence the leader is read once more, because an area read is not atomic.
    """
    sector = ballot.sector_of(own.inp)
    over = sector.lver > instance.v or (
        sector.released and (sector.lver == instance.v or sector.is_zero_dblock)
    )
    try:
        if not over:
            verdict = yield from judge(claim, own.inp, own.inp2)
            over = verdict.is_dead
        if not over:
            return Go.LOST
        leader = yield from read_leader(claim)
    except StorageError:
        # Not to help is always allowed; the caller is told that the race is lost.
        return Go.LOST
    if leader == instance.base:
        return Go.ON
    return Go.REREAD if instance.adopted else Go.RESTART


def _reread(
    claim: Claim, standing: Standing, instance: Instance, memory: Memory
) -> Protocol[Instance | Step]:
    """Look at the leader again after a ballot that led nowhere (6.3 retry)."""
    try:
        leader = yield from read_leader(claim)
    except (StorageError, BadRecord) as error:
        return Step(Go.LOST, memory, None, error)
    if leader.lver == instance.v:
        if (leader.owner_id, leader.owner_generation) != (claim.host_id, standing.generation):
            error2 = _lost_to(claim, leader.owner_id, leader.owner_generation, leader.lver, False)
            return Step(Go.LOST, memory, None, error2)
        if memory.own.lver == instance.v and memory.own.released:
            return Step(Go.RESTART, memory._replace(lo=max(memory.lo, instance.v + 1)))  # M19
        return instance._replace(base=leader, adopted=True)  # M5
    if leader.lver > instance.v or leader != instance.base:
        return Step(Go.RESTART, memory)
    return instance


def _lost_to(claim: Claim, host_id: int, generation: int, lver: int, committed: bool) -> LostRace:
    return LostRace(claim.space.name, claim.resource.name, host_id, generation, lver, committed)
