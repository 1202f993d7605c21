"""Scenarios with real time, each told by hosts of the original or by ours on the same schedule.

Each function returns what happened as plain values, so that tests and mutants can judge it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from paxoslease.disk.layout import SIZES_512
from paxoslease.disk.records import (
    HostSector,
    Where,
    pack_host_sector,
    pack_leader,
    parse_host_sector,
    unpack_leader,
)
from paxoslease.errors import PaxosleaseError
from paxoslease.protocol import delta, membership
from paxoslease.protocol.contention import acquire_waiting
from paxoslease.protocol.effects import Protocol, ReadBallot, Write
from paxoslease.protocol.leases import acquire_exclusive, acquire_shared, release
from paxoslease.protocol.membership import Member
from paxoslease.protocol.paxos import Want
from paxoslease.simulation.cluster.staged import RESOURCE, SPACE, Job, Machine, Stage
from paxoslease.simulation.original import host_id as original_host_id, leases as original

LEASE = "lease"
LEADER = RESOURCE.disks[0].offset
AREA = RESOURCE.disks[0]


class Kind(NamedTuple):
    """Which hosts tell the story."""

    is_original: bool

    def live(self, member: Member) -> Protocol[None]:
        """Return the protocol that joins and renews."""
        return original_host_id.live(member) if self.is_original else membership.live(member)

    def take(self, machine: Machine, *, wait: bool = False) -> Protocol[Any]:
        """Return the protocol that acquires the lease exclusively."""
        if self.is_original:
            return original.acquire(machine.claim, wait=wait)
        if wait:
            return acquire_waiting(machine.claim, None)
        return acquire_exclusive(machine.claim)

    def give(self, lease: Any) -> Protocol[Any]:
        """Return the protocol that releases it."""
        return original.release(lease) if self.is_original else release(lease)


ORIGINAL = Kind(True)
OURS = Kind(False)


def join(machine: Machine, kind: Kind, name: bytes, *, within_s: float = 300) -> Job:
    """Join, and go on renewing; returns when the host id is had or the attempt failed."""
    job = machine.start(kind.live(machine.new_member(name)))
    member = machine.member
    machine.stage.run(within_s, lambda: job.is_done or member.held is not None)
    return job


def done(machine: Machine, protocol: Protocol[Any], within_s: float = 60) -> Any:
    """Run a protocol to its end; returns its result, or its error."""
    job = machine.start(protocol)
    machine.stage.run(within_s, job)
    if not job.is_done:
        return "still busy"
    return job.error if job.error is not None else job.result


class Succession(NamedTuple):
    """A lease that changes hands: when, from the first owner's last renewal, and clashes of use."""

    taken_after_s: float
    clashes: tuple[tuple[int, tuple[str, ...]], ...]


def restarted_daemon(kind: Kind) -> Succession:
    """15.2: a daemon is killed, its users live on, it is restarted under its host name."""
    stage = Stage(hosts=2, format_io_timeout=2)
    a, b = stage.machine(1, 2), stage.machine(2, 2)
    join(b, kind, b"host B")
    join(a, kind, b"host A")
    done(a, kind.take(a))
    a.use(LEASE)
    stage.run(10)
    assert a.member.held is not None
    renewed_s = a.member.held.renewed_us / 1e6 - 1000
    stage.run(0.5)
    a.kill_daemon()
    stage.run(0.5)
    a.start(kind.live(a.new_member(b"host A")))
    return _succeed(stage, b, kind, renewed_s)


def _succeed(stage: Stage, taker: Machine, kind: Kind, renewed_s: float) -> Succession:
    """Let another host ask for the lease every second until it gets it."""
    end_s = stage.now_us / 1e6 + 400
    while stage.now_us / 1e6 < end_s:
        lease = done(taker, kind.take(taker, wait=True), 400)
        if not isinstance(lease, PaxosleaseError | str):
            taker.use(LEASE)
            break
        stage.run(1)
    clashes = tuple((s, tuple(sorted(who))) for s, who in stage.clashes)
    return Succession(stage.now_us / 1e6 - renewed_s, clashes)


def longer_io_timeout_of_the_owner(kind: Kind) -> Succession:
    """15.4: owner with io_timeout 5; a host with io_timeout 1 joins and wants its lease at once."""
    stage = Stage(hosts=2, format_io_timeout=1)
    owner, taker = stage.machine(1, 5), stage.machine(2, 1)
    join(owner, kind, b"owner")
    done(owner, kind.take(owner))
    owner.use(LEASE)
    stage.run(20)
    assert owner.member.held is not None
    renewed_s = owner.member.held.renewed_us / 1e6 - 1000
    owner.kill_daemon()
    join(taker, kind, b"taker")
    return _succeed(stage, taker, kind, renewed_s)


class Race(NamedTuple):
    """Who had the same host id: for how long two at once (s), and what the attempts ended with."""

    both_s: float
    ends: tuple[str, ...]
    generations: tuple[int, ...]


def race_for_a_host_id(kind: Kind) -> Race:
    """15.4: lockspace formatted with io_timeout 1, two hosts with 10 race, one write takes 6 s."""
    stage = Stage(hosts=2, format_io_timeout=1)
    a, b = stage.machine(1, 10), stage.machine(1, 10)
    a.slow(Write, SPACE.area.delta(1), 6)
    jobs = [m.start(kind.live(m.new_member(name))) for m, name in ((a, b"A"), (b, b"B"))]
    both_us = 0
    step_us = 100_000
    for _ in range(600):
        stage.run(step_us / 1e6)
        believers = [m for m in (a, b) if m.member.held and not m.member.failure]
        alive = [m for m, job in zip((a, b), jobs, strict=True) if not job.is_done]
        both_us += step_us * (len(believers) == 2 and len(alive) == 2)
    ends = tuple("member" if not job.is_done else type(job.error).__name__ for job in jobs)
    generations = tuple(m.member.held.generation if m.member.held else 0 for m in (a, b))
    return Race(both_us / 1e6, ends, generations)


class Judged(NamedTuple):
    """What is made of a shared holder that lives: by the original's table, and by our acquire."""

    original_believes_alive: bool
    ours: str


def stalled_renewals_of_the_taker() -> Judged:
    """15.4: a taker with io_timeout 10 could not renew for 72 s; a sharer with 1 lives."""
    stage = Stage(hosts=2, format_io_timeout=1)
    sharer, taker = stage.machine(1, 1), stage.machine(2, 10)
    join(sharer, OURS, b"sharer")
    join(taker, OURS, b"taker")
    done(sharer, acquire_shared(sharer.claim))
    renewals = taker.member.renewals
    stage.run(60, lambda: taker.member.renewals > renewals + 1)
    taker.reads_fail = True
    stage.run(72)
    generation = sharer.member.held.generation if sharer.member.held else 0
    believes = original_host_id.believes_sharer_alive(
        taker.member.table.seen(1), generation, taker.local(), 60
    )
    end = done(taker, acquire_exclusive(taker.claim))
    return Judged(believes, type(end).__name__)


class Blocked(NamedTuple):
    """How two hosts fared with a lease that nobody uses any more."""

    first: str
    second: str


def committed_by_another(kind: Kind) -> Blocked:
    """15.5: B commits A's value, then A releases by the index code; can B have the lease?"""
    stage = Stage(hosts=2, format_io_timeout=1)
    a, b = stage.machine(1, 1), stage.machine(2, 1)
    join(a, kind, b"A")
    join(b, kind, b"B")
    # B begins when A has proposed itself; its number is larger, so it adopts that.
    of_a = a.start(kind.take(a))
    stage.run(30, lambda: block_of(stage, 1).bal != 0)
    a.slow(ReadBallot, LEADER, 0.5)  # the read of phase 2
    of_b = b.start(kind.take(b))
    stage.run(30, lambda: of_a.is_done and of_b.is_done)
    first = type(of_b.error).__name__ if of_b.error else "owner"
    lease = of_a.result
    if lease is None:
        return Blocked(first, f"A: {of_a.error}")
    if kind.is_original:
        done(a, original.release_index_lease(lease))
    else:
        done(a, release(lease))
    stage.run(5)
    end = done(b, kind.take(b))
    return Blocked(first, f"{end}" if isinstance(end, PaxosleaseError) else "owner")


def block_of(stage: Stage, host_id: int) -> HostSector:
    return parse_host_sector(stage.disk.sector(AREA.host_sector(host_id)), Where("", 0))


def newer_block_than_the_leader(kind: Kind) -> tuple[str, int]:
    """15.5: a stale leader write left a block whose lver is larger than the leader's plus one.

    Returns how an acquisition that had 30 s ended, and the version won.
    """
    stage = Stage(hosts=2, format_io_timeout=1)
    machine = stage.machine(1, 1)
    join(machine, kind, b"A")
    newer = HostSector(mbal=2002, bal=2002, inp=2, inp2=1, inp3=7, lver=3, released=True)
    stage.disk.sectors[AREA.host_sector(2)] = pack_host_sector(newer, SIZES_512.sector_size)
    lease = done(machine, kind.take(machine), 30)
    if isinstance(lease, PaxosleaseError | str):
        # ours finds the value of host 2, commits nothing for it and comes again
        lease = done(machine, kind.take(machine), 30)
    if isinstance(lease, PaxosleaseError | str):
        return str(lease), 0
    return "owner", lease.lver


class TooFew(NamedTuple):
    """num_hosts set below the own id: how that and the release ended; what another host gets."""

    acquire: str
    release: str
    other: str


def num_hosts_below_the_own_id(kind: Kind) -> TooFew:
    """15.5: host 2 sets num_hosts to 1 with its acquisition."""
    stage = Stage(hosts=2, format_io_timeout=1)
    one, two = stage.machine(1, 1), stage.machine(2, 1)
    join(one, kind, b"one")
    join(two, kind, b"two")
    if kind.is_original:  # it writes what it is told
        lease = done(two, kind.take(two))
        few = lease.leader._replace(num_hosts=1).sealed()
        stage.disk.sectors[LEADER] = pack_leader(few, SIZES_512.sector_size)
        lease = lease._replace(leader=few)
    else:
        lease = done(two, acquire_exclusive(two.claim, Want(num_hosts=1)))
    if isinstance(lease, PaxosleaseError):
        acquired = released = type(lease).__name__
    else:
        acquired, released = "owner", str(done(two, kind.give(lease)))
    end = done(one, kind.take(one))
    return TooFew(acquired, released, str(end) if isinstance(end, PaxosleaseError) else "owner")


def expired_membership() -> str:
    """Return what an acquisition gives after the expiry, while the renewal hangs in its write."""
    stage = Stage(hosts=1, format_io_timeout=1)
    machine = stage.machine(1, 1)
    join(machine, OURS, b"A")
    machine.start(membership.guard(machine.member))
    machine.slow(Write, SPACE.area.delta(1), 60)
    stage.run(15)
    end = done(machine, acquire_exclusive(machine.claim))
    return type(end).__name__


def value_of_an_earlier_life() -> str:
    """Return what ours gets of a lease whose owner took a value of its earlier life (15.9).

    The leader names generation 1 of a host of the original, written by its generation 2, which
    lives and believes that it holds the lease.
    """
    stage = Stage(hosts=2, format_io_timeout=1)
    first, other = stage.machine(1, 1), stage.machine(2, 1)
    join(first, ORIGINAL, b"first life")
    first.reset()
    join(first, ORIGINAL, b"first life")
    join(other, OURS, b"other")
    stage.run(10)
    lease = done(first, original.acquire(first.claim))
    earlier = lease.leader._replace(owner_generation=1).sealed()
    stage.disk.sectors[LEADER] = pack_leader(earlier, SIZES_512.sector_size)
    end = done(other, acquire_exclusive(other.claim))
    return type(end).__name__


def owner_has_moved_on() -> str:
    """Return what ours gets when the leader was rolled back to a version that its owner left.

    The owner lives and does not come back; its own block has the next version, RELEASED (M24).
    """
    stage = Stage(hosts=2, format_io_timeout=1)
    owner, other = stage.machine(1, 1), stage.machine(2, 1)
    join(owner, OURS, b"owner")
    join(other, OURS, b"other")
    lease = done(owner, acquire_exclusive(owner.claim))
    rolled_back = stage.disk.sector(LEADER)
    done(owner, release(lease))
    done(owner, release(done(owner, acquire_exclusive(owner.claim))))
    stage.disk.sectors[LEADER] = rolled_back
    for _ in range(3):
        end = done(other, acquire_exclusive(other.claim))
        if not isinstance(end, PaxosleaseError):
            return "owner"
    return type(end).__name__


def late_acknowledgement() -> Succession:
    """A renewal is on disk at once, acknowledged 6 s later; then the daemon is killed (M2)."""
    stage = Stage(hosts=2, format_io_timeout=1)
    a, b = stage.machine(1, 1, 10), stage.machine(2, 1, 10)
    join(b, OURS, b"B")
    join(a, OURS, b"A")
    done(a, acquire_exclusive(a.claim))
    a.use(LEASE)
    a.acknowledges_late = True
    a.slow(Write, SPACE.area.delta(1), 6)
    before = a.member.held
    stage.run(30, lambda: a.member.held is not before)
    assert a.member.held is not None
    a.kill_daemon()
    return _succeed(stage, b, OURS, a.member.held.renewed_us / 1e6 - 1000)


def leave_after_a_long_sleep() -> tuple[str, bool]:
    """A host without a watchdog slept; another has its host id by now; then it leaves (M13).

    Returns how that ended, and whether the successor's record still stands.
    """
    stage = Stage(hosts=1, format_io_timeout=1)
    sleeper, successor = stage.machine(1, 1, 10), stage.machine(1, 1, 10)
    join(sleeper, OURS, b"sleeper")
    sleeper.kill_daemon()
    sleeper.fires_us = 0
    join(successor, OURS, b"successor")
    held = sleeper.member.held
    assert held is not None
    end = done(sleeper, delta.release(SPACE, held, sleeper.timing))
    record = unpack_leader(stage.disk.sector(SPACE.area.delta(1)))
    return type(end).__name__, not record.is_free and record.owner_generation > held.generation


def lvb_after_a_long_sleep() -> tuple[str, bytes]:
    """A host without a watchdog sleeps just before it writes an LVB; others go on meanwhile.

    Returns how its release ended and what the LVB is then.
    """
    stage = Stage(hosts=2, format_io_timeout=1)
    sleeper, other = stage.machine(1, 1, 10), stage.machine(2, 1, 10)
    join(other, OURS, b"other")
    join(sleeper, OURS, b"sleeper")
    lease = done(sleeper, acquire_exclusive(sleeper.claim))
    assert AREA.lvb is not None
    sleeper.nap(Write, AREA.lvb, 60)
    job = sleeper.start(release(lease, lvb=b"stale"))
    for other_job in list(sleeper.jobs):
        if other_job is not job:
            other_job.is_alive = False
    sleeper.fires_us = 0
    lease = done(other, acquire_waiting(other.claim, None))
    done(other, release(lease, lvb=b"fresh"))
    stage.run(60, job)
    return type(job.error).__name__, stage.disk.sector(AREA.lvb)[:5]


# What must be true of each story when our hosts tell it.
STORIES: dict[str, Callable[[], bool]] = {
    "restarted daemon": lambda: restarted_daemon(OURS).clashes == (),
    "longer io_timeout of the owner": lambda: longer_io_timeout_of_the_owner(OURS).clashes == (),
    "race for a host id": lambda: race_for_a_host_id(OURS).both_s == 0,
    "stalled renewals": lambda: stalled_renewals_of_the_taker().ours == "LeaseShared",
    "committed by another": lambda: committed_by_another(OURS).second == "owner",
    "newer block": lambda: newer_block_than_the_leader(OURS)[0] == "owner",
    "expired membership": lambda: expired_membership() == "LockspaceFailed",
    "value of an earlier life": lambda: value_of_an_earlier_life() == "LeaseHeld",
    "owner has moved on": lambda: owner_has_moved_on() == "owner",
    "late acknowledgement": lambda: late_acknowledgement().clashes == (),
    "leave after a long sleep": lambda: leave_after_a_long_sleep()[1],
    "LVB after a long sleep": lambda: lvb_after_a_long_sleep()[1] == b"fresh",
    "num_hosts": lambda: num_hosts_below_the_own_id(OURS).other == "owner",
}
