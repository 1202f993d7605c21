"""A host's process is replaced, by exec or after a crash, while what its leases guard runs on."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import paxoslease
from paxoslease import AdoptionRefused, BadState, LeaseHeld, LockspaceFailed, WatchdogError
from paxoslease.daemon import handover
from paxoslease.daemon.spaces import Stage
from paxoslease.engine import adoption
from paxoslease.engine.core import engine
from paxoslease.engine.host import Membership
from paxoslease.engine.processes import Wishes
from paxoslease.engine.state import (
    LeaseState,
    MembershipState,
    dump_lease,
    dump_membership,
    load_lease,
    load_membership,
)
from paxoslease.engine.watchdog import NoWatchdog, WdmdWatchdog
from paxoslease.protocol.effects import Protocol, Sleep
from paxoslease.protocol.outcome import Found
from tests.system.rig import (
    DEAD_S,
    IO_TIMEOUT,
    SPACE,
    Child,
    Disk,
    boottime,
    join,
    make_disk,
    wait_for,
)

NAME = SPACE.encode()
FAIL_S = 8 * IO_TIMEOUT

# Joins, takes r0 exclusively and r1 shared, notes both, and waits to be told what to do.
FIRST = """
import json
from paxoslease.engine import adoption
from paxoslease.engine.state import dump_lease, dump_membership
path, journal = sys.argv[1:]
space = join(path, 1, host_name="first")
membership = space._membership
leases = [
    space.lease("r0", path, offset=1 << 20),
    space.lease("r1", path, offset=2 << 20, shared=True),
]
def note():
    states = [dump_lease(membership.leases.snapshot(lease._holding)) for lease in leases]
    whole = {"space": dump_membership(membership.snapshot()), "leases": states}
    with open(journal, "w") as file:
        json.dump(whole, file)
note()
say("holding", space.generation, leases[0].fencing_token)
if sys.stdin.readline().strip() == "exec":
    unrest = adoption.Quiet().begin([membership], 1.0)
    assert not unrest, unrest
    note()
    os.execv(sys.executable, [sys.executable, "-c", os.environ["SECOND"], path, journal])
sys.stdin.readline()
"""

# Goes on with what was noted, and gives it back when it is told.
SECOND = """
import json, sys, time
from paxoslease.engine import adoption
from paxoslease.engine.state import load_lease, load_membership
from paxoslease.engine.watchdog import NoWatchdog
whole = json.load(open(sys.argv[2]))
state = load_membership(whole["space"])
membership = adoption.resume_membership(state, NoWatchdog(state.name))
holdings = [membership.leases.restore(load_lease(lease)) for lease in whole["leases"]]
membership.start_join()
membership.await_join(10)
while not membership.history:
    time.sleep(0.01)
print("resumed", membership.member.held.generation, state.is_final, flush=True)
sys.stdin.readline()
for holding in holdings:
    membership.leases.start_release(holding).result(10)
membership.leave(10)
print("left", flush=True)
"""


class Left:
    """What a process left behind that was killed while it held r0 exclusively and r1 shared."""

    def __init__(self, disk: Disk, journal: Path) -> None:
        self.disk = disk
        with Child(FIRST, disk.path, journal) as child:
            child.hear("holding")
            self.killed = boottime()
        whole = json.loads(journal.read_text())
        self.space: MembershipState = load_membership(whole["space"])
        self.leases: list[LeaseState] = [load_lease(lease) for lease in whole["leases"]]

    def resume(self) -> Membership:
        return adoption.resume_membership(self.space, NoWatchdog(NAME))


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return make_disk(tmp_path / "disk", resources=4)


@pytest.fixture
def left(disk: Disk, tmp_path: Path) -> Left:
    return Left(disk, tmp_path / "journal")


@pytest.fixture
def quiet() -> Iterator[adoption.Quiet]:
    """Give what brings the engine of this process to rest, and let it go on afterwards."""
    made = adoption.Quiet()
    yield made
    made.end()


# -- exec --------------------------------------------------------------------------------------


def test_exec_keeps_the_leases(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After exec the same process holds the same leases in the same generation, for longer than
    it takes others to believe it dead."""
    monkeypatch.setenv("SECOND", SECOND)
    with Child(FIRST, disk.path, tmp_path / "journal") as child, join(disk, 2) as other:
        assert child.hear("holding")[1:] == ["1", "1"]
        child.tell("exec")
        assert child.hear("resumed")[1:] == ["1", "True"]
        until = time.monotonic() + DEAD_S + 2
        while time.monotonic() < until:
            for number in (0, 1):
                with pytest.raises(paxoslease.PaxosleaseError):
                    disk.lease(other, number)
            with disk.lease(other, 1, shared=True):
                pass
            threading.Event().wait(0.5)
        child.tell()
        child.hear("left")
        assert child.end() == 0
        with disk.lease(other, 0) as lease:
            assert lease.fencing_token == 2
        with disk.lease(other, 1):
            pass


def test_exec_that_is_called_off(disk: Disk, quiet: adoption.Quiet) -> None:
    """While everything rests nothing is renewed; afterwards it is, as if nothing had been."""
    with join(disk, 1) as space:
        membership = space._membership
        wait_for(space.renewals)
        assert quiet.begin([membership], 1.0) == ()
        state = membership.snapshot()
        assert state.is_final
        before = len(space.renewals())
        threading.Event().wait(3 * IO_TIMEOUT)
        assert len(space.renewals()) == before
        assert membership.snapshot() == state
        quiet.end()
        wait_for(lambda: len(space.renewals()) > before)
        assert not membership.snapshot().is_final
        with disk.lease(space, 0):
            pass


def test_the_guard_does_not_rest(disk: Disk, quiet: adoption.Quiet) -> None:
    """Who rests for too long fails in time, and there is nothing to hand over any more."""
    with join(disk, 1) as space:
        lease = disk.lease(space, 0)
        assert quiet.begin([space._membership], 1.0) == ()
        renewed_us = space._membership.snapshot().renewed_us
        assert lease.lost.wait(FAIL_S + 1)
        assert boottime() * 1e6 <= renewed_us + (FAIL_S + 1) * 1e6
        with pytest.raises(LockspaceFailed):
            space._membership.snapshot()
        assert "failed" in space._membership.unrest
        quiet.end()
        lease.release()


def test_what_waits_is_cancelled_and_what_runs_is_waited_for(
    disk: Disk, quiet: adoption.Quiet
) -> None:
    """An acquisition that waits ends with Cancelled, a release that is under way is done."""
    with join(disk, 1) as space, join(disk, 2) as other:
        held = disk.lease(other, 0)
        mine = disk.lease(space, 1)
        place = disk.place(0)
        waiting = space._membership.leases.start_acquire(
            b"r0", [place], shared=False, wait_us=60_000_000
        )
        leases = space._membership.leases
        releasing = leases.start_release(mine._holding)
        assert quiet.begin([space._membership, other._membership], 2.0) == ()
        assert releasing.result(0) is None
        assert waiting.operation is not None
        assert isinstance(waiting.operation.exception(0), paxoslease.Cancelled)
        quiet.end()
        held.release()


def test_what_cannot_rest_is_reported(disk: Disk, quiet: adoption.Quiet) -> None:
    """A join that is under way cannot be handed over: everything goes on at once."""
    with join(disk, 1) as space:
        late = paxoslease.api._open(paxoslease.WantedLockspace(disk.path, SPACE, 2, io_timeout=1))
        late.start_join()
        (reason,) = quiet.begin([space._membership, late], 1.0)
        assert reason == f"{SPACE}: it is being joined"
        late.await_join(10)
        before = len(space.renewals())
        wait_for(lambda: len(space.renewals()) > before)
        late.leave(10)


def _slumber(duration_us: int) -> Protocol[None]:
    yield Sleep(duration_us)


def test_rest_that_is_ended_before_it_is_reached(disk: Disk, quiet: adoption.Quiet) -> None:
    """Who does not wait any more for everything to rest leaves nothing at rest behind."""
    with join(disk, 1) as space:
        busy = engine().requests.start(_slumber(400_000), {})
        unrest: list[tuple[str, ...]] = []
        beginning = threading.Thread(
            target=lambda: unrest.append(quiet.begin([space._membership], 2.0))
        )
        beginning.start()
        wait_for(lambda: quiet._rests)
        quiet.end()
        beginning.join(10)
        assert unrest == [("it is not wanted any more",)]
        assert busy.result(10) is None
        before = len(space.renewals())
        wait_for(lambda: len(space.renewals()) > before)
        assert not space._membership.snapshot().is_final


def test_rest_that_is_ended_before_it_is_begun(disk: Disk, quiet: adoption.Quiet) -> None:
    """The end may come first: the thread that was to begin had not been started yet."""
    with join(disk, 1) as space:
        quiet.end()
        assert quiet.begin([space._membership], 1.0) == ("it is not wanted any more",)
        before = len(space.renewals())
        wait_for(lambda: len(space.renewals()) > before)


class _Space:
    """A lockspace of a daemon, as far as a restart looks at it."""

    stage = Stage.JOINED
    is_dead = False

    def __init__(self, membership: Membership) -> None:
        self.membership = membership


class _Daemon:
    """A daemon, as far as a restart that is not carried out looks at it."""

    is_ending = False

    def __init__(self, membership: Membership) -> None:
        self.spaces = [_Space(membership)]


def test_restart_that_is_cancelled_while_things_come_to_rest(disk: Disk) -> None:
    """The task that restarts is cancelled at any moment: renewals go on."""

    async def cancelled(daemon: Any) -> None:
        restarting = asyncio.ensure_future(handover._execute(daemon, {}))
        await asyncio.sleep(0.2)
        restarting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await restarting

    with join(disk, 1) as space:
        busy = engine().requests.start(_slumber(600_000), {})
        asyncio.run(cancelled(_Daemon(space._membership)))
        assert busy.result(10) is None
        # Longer than the attempt would have waited: what it had begun must not be left at rest.
        before = boottime()
        wait_for(lambda: boottime() > before + handover.REST_S)
        before = len(space.renewals())
        wait_for(lambda: len(space.renewals()) > before)
        assert not space._membership.snapshot().is_final


# -- a crash -----------------------------------------------------------------------------------


def test_a_killed_process_is_followed_by_another(left: Left) -> None:
    """A second process holds on to what the first held, beyond the time of its death; then another
    host gets it without waiting."""
    with Child(SECOND, left.disk.path, left.disk.path.replace("disk", "journal")) as second:
        assert second.hear("resumed")[1:] == ["1", "False"]
        with join(left.disk, 2) as other:
            while boottime() < left.killed + DEAD_S + 2:
                with pytest.raises(LeaseHeld):
                    left.disk.lease(other, 0)
                threading.Event().wait(0.5)
            second.tell()
            second.hear("left")
            with left.disk.lease(other, 0) as lease:
                assert lease.fencing_token == 2


def test_too_late(left: Left) -> None:
    """Nothing is gone on with after `fail`: what used the leases is stopped, nothing written."""
    while boottime() < left.killed + FAIL_S:
        threading.Event().wait(0.1)
    content = Path(left.disk.path).read_bytes()
    user = subprocess.Popen(["sleep", "60"])
    membership = left.resume()
    holding = membership.leases.restore(left.leases[0])
    membership.guard(user.pid, Wishes())
    membership.start_join()
    with pytest.raises(AdoptionRefused, match="was not renewed"):
        membership.await_join(10)
    assert user.wait(10) < 0
    assert holding.lost.wait(1)
    membership.leave(10)
    assert Path(left.disk.path).read_bytes() == content


def test_another_life(left: Left) -> None:
    """A host id that was joined anew meanwhile is another's."""
    with join(left.disk, 1):
        membership = left.resume()
        with pytest.raises(paxoslease.LockspacePresent):
            membership.start_join()
        membership.abandon_join()
    membership = left.resume()
    membership.start_join()
    with pytest.raises(AdoptionRefused, match="left"):
        membership.await_join(10)
    membership.leave(10)


@pytest.mark.parametrize(
    ("number", "keep", "found", "holds"),
    [(0, False, Found.OURS, False), (0, True, Found.OURS, True), (1, True, Found.OURS, True)],
)
def test_what_was_under_way_is_settled(
    left: Left, number: int, keep: bool, found: Found, holds: bool
) -> None:
    """What became of a lease is found out, and it is held or given up accordingly."""
    membership = left.resume()
    membership.start_join()
    membership.await_join(10)
    state = left.leases[number]
    leases = membership.leases
    holding = leases.start_settle(
        state.name, state.places, before=state if keep else None, keep=keep
    )
    assert holding.operation is not None
    settled = holding.operation.result(10)
    assert settled.found is found
    assert (settled.lease is not None) is holds
    if holds:
        assert leases.snapshot(holding) == state
        leases.start_release(holding).result(10)
    else:
        assert holding.lost.is_set()
    again = leases.start_acquire(state.name, state.places, shared=False, wait_us=0)
    assert again.operation is not None
    again.operation.result(10)
    assert leases.check(again).lver == state.lver + 1
    membership.leave(10)


def test_what_does_not_fit(left: Left) -> None:
    """States of another boot, host or generation, and a watchdog that was not handed over."""
    with pytest.raises(BadState, match="boot"):
        adoption.resume_membership(left.space._replace(boot="other"), NoWatchdog(NAME))
    membership = left.resume()
    lease = left.leases[0]
    older = lease.leader._replace(owner_generation=9).sealed()
    for wrong in (lease._replace(lockspace=b"other"), lease._replace(leader=older)):
        with pytest.raises(BadState):
            membership.leases.restore(wrong)
    with pytest.raises(LockspaceFailed, match="not joined"):
        membership.leases.start_settle(lease.name, lease.places, before=lease, keep=True)
    membership.leases.restore(lease)
    with pytest.raises(paxoslease.LeaseBusy):
        membership.leases.restore(lease)
    membership.abandon_join()


def test_a_watchdog_that_was_not_handed_over(left: Left) -> None:
    """The host will be reset; until then nothing goes on, and what used the leases is stopped."""
    user = subprocess.Popen(["sleep", "60"])
    membership = adoption.resume_membership(left.space, WdmdWatchdog(NAME, 1, 60))
    holding = membership.leases.restore(left.leases[0])
    membership.guard(user.pid, Wishes())
    with pytest.raises(WatchdogError, match="handed over"):
        membership.start_join()
    assert user.wait(10) < 0
    assert holding.lost.wait(1)
    membership.leave(10)


def test_an_adoption_that_is_not_wanted(left: Left) -> None:
    """What was restored is stopped also if nobody goes on with the membership."""
    user = subprocess.Popen(["sleep", "60"])
    membership = left.resume()
    holding = membership.leases.restore(left.leases[0])
    membership.guard(user.pid, Wishes())
    reaper = threading.Thread(target=user.wait)
    reaper.start()
    membership.abandon_join()
    assert holding.lost.is_set()
    reaper.join()
    assert user.returncode < 0


def test_a_join_that_was_given_up_leaves_a_free_record(disk: Disk) -> None:
    """The next join of the host id takes no longer than the first; until it has settled, another
    join by this process is refused."""
    with pytest.raises(TimeoutError):
        join(disk, 3, timeout=0.5)
    with pytest.raises(paxoslease.LockspacePresent):
        join(disk, 3)

    def try_again() -> paxoslease.Lockspace | None:
        try:
            return join(disk, 3)
        except paxoslease.LockspacePresent:
            return None

    begun = time.monotonic()
    with wait_for(try_again) as space:
        assert time.monotonic() - begun < 2 * 2 * IO_TIMEOUT + 1
        assert space.generation == 2


def test_states_of_a_real_membership(left: Left) -> None:
    """What a process notes is what comes back."""
    assert load_membership(json.loads(json.dumps(dump_membership(left.space)))) == left.space
    for lease in left.leases:
        assert load_lease(json.loads(json.dumps(dump_lease(lease)))) == lease
    assert [lease.shared for lease in left.leases] == [False, True]
    assert not left.space.is_final
