"""Scenarios of daemons that are replaced while the users of their leases live on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from paxoslease.errors import PaxosleaseError
from paxoslease.protocol.adoption import Legacy, resume
from paxoslease.protocol.contention import acquire_waiting
from paxoslease.protocol.delta import Held
from paxoslease.protocol.leases import acquire_exclusive, release
from paxoslease.protocol.membership import Joined
from paxoslease.protocol.outcome import settle_unknown
from paxoslease.simulation.cluster.staged import Job, Machine, Stage
from tests.sim.stories import LEASE, OURS, block_of, done, join


def _resumed(machine: Machine, noted: Held) -> Job:
    """Start a daemon that goes on with what its predecessor noted, and let it do so."""
    machine.events.clear()
    member = machine.new_member(b"A")
    job = machine.start(resume(member, Legacy(noted, False)))
    machine.stage.run(30, lambda: job.is_done or member.renewals > 0)
    return job


def _ended(machine: Machine, job: Job) -> str:
    """Return how a resumed life began: member again, or why not."""
    joined = any(isinstance(event, Joined) for event in machine.events)
    return "member" if joined else type(job.error).__name__


class Adopted(NamedTuple):
    """A lease whose holder's daemon was replaced: who used it at once, and when it changed hands.

    waited: others did not get it before it was released. got_after: they got it then.
    """

    clashes: tuple[tuple[int, tuple[str, ...]], ...]
    waited: bool
    got_after: bool


def adopted_in_time() -> Adopted:
    """A daemon is killed, its user lives on, its successor goes on 10 s later with an old note."""
    stage = Stage(hosts=2, format_io_timeout=2)
    a, b = stage.machine(1, 2, 10), stage.machine(2, 2, 10)
    join(b, OURS, b"B")
    join(a, OURS, b"A")
    noted = a.member.held
    assert noted is not None
    lease = done(a, acquire_exclusive(a.claim))
    a.use(LEASE)
    stage.run(60)
    a.kill_daemon()
    stage.run(10)
    _resumed(a, noted)
    job = b.start(acquire_waiting(b.claim, None))
    stage.run(200, job)
    waited = not job.is_done
    a.stop(LEASE)
    done(a, release(lease))
    stage.run(10, job)
    b.use(LEASE)
    clashes = tuple((s, tuple(sorted(who))) for s, who in stage.clashes)
    return Adopted(clashes, waited, job.is_done and job.error is None)


def adopted_too_late() -> str:
    """A daemon is killed on a host without a watchdog; another host takes its lease; then its
    successor comes. Returns how that one began."""
    stage = Stage(hosts=2, format_io_timeout=1)
    a, b = stage.machine(1, 1, 10), stage.machine(2, 1, 10)
    join(b, OURS, b"B")
    join(a, OURS, b"A")
    done(a, acquire_exclusive(a.claim))
    stage.run(10)
    noted = a.member.held
    assert noted is not None
    a.kill_daemon()
    a.fires_us = 0
    taken = done(b, acquire_waiting(b.claim, None), 100)
    assert not isinstance(taken, PaxosleaseError | str)
    return _ended(a, _resumed(a, noted))


def adopted_by_an_old_note() -> str:
    """A host leaves, another joins under its host id; then comes a daemon that knows of neither.

    Returns how that one began.
    """
    stage = Stage(hosts=1, format_io_timeout=1)
    a, other = stage.machine(1, 1, 10), stage.machine(1, 1, 10)
    other.local = a.local  # type: ignore[method-assign]
    life = join(a, OURS, b"A")
    noted = a.member.held
    assert noted is not None
    a.member.leave()
    stage.run(10, life)
    join(other, OURS, b"other")
    stage.run(1)
    return _ended(a, _resumed(a, noted))


def adopted_in_a_ballot() -> str:
    """A daemon is killed when its value stands on the disk; its successor settles what it left.

    Returns what another host gets then.
    """
    stage = Stage(hosts=2, format_io_timeout=1)
    a, b = stage.machine(1, 1, 10), stage.machine(2, 1, 10)
    join(b, OURS, b"B")
    join(a, OURS, b"A")
    a.start(acquire_exclusive(a.claim))
    stage.run(30, lambda: block_of(stage, 1).bal != 0)
    noted = a.member.held
    assert noted is not None
    a.kill_daemon()
    stage.run(1)
    _resumed(a, noted)
    done(a, settle_unknown(a.claim, None, keep=False))
    end: Any = None
    for _ in range(3):
        end = done(b, acquire_exclusive(b.claim))
        if not isinstance(end, PaxosleaseError):
            return "owner"
    return type(end).__name__


# What must be true of each.
ADOPTIONS: dict[str, Callable[[], bool]] = {
    "adopted in time": lambda: adopted_in_time() == Adopted((), True, True),
    "adopted too late": lambda: adopted_too_late() == "AdoptionRefused",
    "adopted by an old note": lambda: adopted_by_an_old_note() == "AdoptionRefused",
    "adopted in a ballot": lambda: adopted_in_a_ballot() == "owner",
}
