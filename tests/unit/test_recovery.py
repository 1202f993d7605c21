"""The recovery ladder: who is told to stop when, and that nobody is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from paxoslease.errors import ConfigError, WatchdogError
from paxoslease.protocol.effects import PetWatchdog, RunKillpath, Signal, Sleep
from paxoslease.protocol.recovery import (
    ACTIONS_MAX,
    SIGKILL,
    SIGTERM,
    Cleared,
    Forced,
    GivenUp,
    Gone,
    Killpath,
    Ladder,
    LateRenewal,
    NoKillpath,
    Process,
    Recovery,
    Tick,
    Used,
    begin,
    recover,
    step,
)
from paxoslease.timing import SECOND_US, Timing
from tests.unit.drive import Desk

T = Timing(io_timeout=2)  # fails at 16 s, kills at 56 s: the observed schedule of the spec
S = SECOND_US


def schedule(ladder: Ladder, until_s: int = 80) -> list[tuple[int, Any]]:
    """Tick five times a second; return (second, action)."""
    done: list[tuple[int, Any]] = []
    for now_us in range(16 * S, until_s * S, S // 5):
        ladder, actions = step(ladder, Tick(now_us))
        done += [(now_us // S, action) for action in actions]
    return done


def test_sigterm_each_second_then_sigkill() -> None:
    """A process without killpath gets SIGTERM each second from `fail` on, SIGKILL 40 s later."""
    done = schedule(begin(b"ls", 0, T, (Process(5),)))
    assert done == [
        *((s, Signal(5, SIGTERM)) for s in range(16, 56)),
        *((s, Signal(5, SIGKILL)) for s in range(56, 80)),
    ]


def test_killpath_once_then_sigkill() -> None:
    """A process with a killpath is told by it once and has the rest of the grace for itself."""
    done = schedule(begin(b"ls", 0, T, (Process(5, Killpath.READY),)), 60)
    assert done == [(16, RunKillpath(5)), *((s, Signal(5, SIGKILL)) for s in range(56, 60))]


def test_a_killpath_that_cannot_be_started() -> None:
    """Then SIGTERM takes its place at once."""
    ladder, actions = step(begin(b"ls", 0, T, (Process(5, Killpath.READY),)), Tick(16 * S))
    assert actions == (RunKillpath(5),)
    ladder, _ = step(ladder, NoKillpath(5))
    assert step(ladder, Tick(16 * S + 1))[1] == (Signal(5, SIGTERM),)


@pytest.mark.parametrize(
    ("may_term", "may_kill", "first", "last"),
    [
        (True, False, Signal(5, SIGTERM), Signal(5, SIGTERM)),
        (False, True, Signal(5, SIGKILL), Signal(5, SIGKILL)),
        (False, False, None, None),
    ],
)
def test_restricted_processes(may_term: bool, may_kill: bool, first: Any, last: Any) -> None:
    """A process that must not get one signal gets the other, and none if it must not get either."""
    ladder = begin(b"ls", 0, T, (Process(5, may_term=may_term, may_kill=may_kill),))
    done = schedule(ladder)
    if first is None:
        assert done == []
    else:
        assert done[0] == (16, first)
        assert done[-1] == (79, last)


def test_a_removal_kills_at_once() -> None:
    """Forced, the ladder starts at SIGKILL; also in the middle of the gentle phase."""
    forced = begin(b"ls", 100 * S, T, (Process(5, Killpath.READY),), is_forced=True)
    assert step(forced, Tick(100 * S))[1] == (Signal(5, SIGKILL),)
    ladder, _ = step(begin(b"ls", 0, T, (Process(5),)), Tick(16 * S))
    ladder, _ = step(ladder, Forced())
    assert step(ladder, Tick(17 * S))[1] == (Signal(5, SIGKILL),)


def test_a_late_renewal_moves_the_limit() -> None:
    """The limit is counted from the last renewal, however late its answer; never backwards."""
    ladder = begin(b"ls", 0, T, (Process(5),))
    later, _ = step(ladder, LateRenewal(30 * S))
    assert later.kill_at_us == ladder.kill_at_us + 30 * S
    assert step(later, Tick(60 * S))[1] == (Signal(5, SIGTERM),)
    assert step(later, LateRenewal(10 * S))[0] == later


def test_a_late_start_skips_the_gentle_phase() -> None:
    """A host that slept past the limit kills at once."""
    ladder = begin(b"ls", 0, T, (Process(5, Killpath.READY),))
    assert step(ladder, Tick(57 * S))[1] == (Signal(5, SIGKILL),)


@pytest.mark.parametrize("number", [0, -1, -7])
def test_no_group_is_ever_signalled(number: int) -> None:
    """A process number that would mean a process group is refused (M15)."""
    with pytest.raises(ConfigError):
        begin(b"ls", 0, T, (Process(5), Process(number)))


PROCESSES = st.lists(
    st.builds(
        Process,
        st.integers(1, 5),
        st.sampled_from([Killpath.NONE, Killpath.READY]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=4,
    unique_by=lambda p: p.process,
)
EVENTS = st.lists(
    st.one_of(
        st.integers(0, 3 * S).map(Tick),  # steps forward
        st.integers(1, 5).map(Gone),
        st.integers(1, 5).map(NoKillpath),
        st.integers(0, 300 * S).map(LateRenewal),
        st.just(Forced()),
        st.booleans().map(Used),
    ),
    max_size=150,
)


@given(PROCESSES, EVENTS)
def test_whatever_happens(processes: list[Process], events: list[Any]) -> None:
    """At most one action per second and process and 100 in all, none to what is gone or forbidden,
    killpath once, and SIGKILL not before its time."""
    ladder = begin(b"ls", 0, T, tuple(processes))
    now_us = 16 * S
    last: dict[int, int] = {}
    count: dict[int, int] = {}
    gone: set[int] = set()
    failed: set[int] = set()
    for event in events:
        if isinstance(event, Tick):
            now_us += event.now_us
            event = Tick(now_us)
        if isinstance(event, Gone):
            gone.add(event.process)
        if isinstance(event, NoKillpath):
            failed.add(event.process)
        before = ladder
        ladder, actions = step(ladder, event)
        assert isinstance(event, Tick) or actions == ()
        for action in actions:
            number = action.process
            process = next(p for p in before.processes if p.process == number)
            assert number not in gone
            if number not in failed:
                assert now_us - last.get(number, -S) >= S
            last[number] = now_us
            count[number] = count.get(number, 0) + 1
            if isinstance(action, RunKillpath):
                assert process.killpath is Killpath.READY
            elif action.signal == SIGKILL:
                assert process.may_kill
                late = before.is_forced or now_us >= before.kill_at_us
                assert late or not process.may_term
            else:
                assert process.may_term
        assert {p.process for p in ladder.processes} == {p.process for p in processes} - gone
    assert all(n <= ACTIONS_MAX + (p in failed) for p, n in count.items())


def test_after_a_hundred_actions_a_process_is_left_to_the_watchdog() -> None:
    """There are 100 signals for one process, no more."""
    done = schedule(begin(b"ls", 0, T, (Process(5),)), 300)
    assert len(done) == ACTIONS_MAX


# -- the loop ----------------------------------------------------------------------------------


def test_the_loop_ends_when_everybody_is_gone() -> None:
    """Processes that end leave the ladder; then the watchdog is disarmed and that is told."""
    desk = Desk(now_us=16 * S)
    ends = {5: 20 * S, 6: 57 * S}
    desk.signals = lambda effect: desk.now_us < ends[effect.process]
    recovery = Recovery(begin(b"ls", 0, T, (Process(5, Killpath.READY), Process(6))))
    desk.run(recover(recovery))
    assert recovery.ladder.is_clear
    assert desk.log[-2] == PetWatchdog(b"ls", 0, 0)
    assert desk.notified == [Cleared()]
    assert 57 * S <= desk.now_us < 59 * S
    assert [e for e in desk.log if isinstance(e, PetWatchdog)] == [PetWatchdog(b"ls", 0, 0)]


def test_the_loop_turns_a_failed_killpath_into_sigterm() -> None:
    """If the killpath program cannot be started, SIGTERM follows at the next look."""
    desk = Desk(now_us=16 * S)
    desk.signals = lambda effect: isinstance(effect, Signal) and desk.now_us < 18 * S
    desk.run(recover(Recovery(begin(b"ls", 0, T, (Process(5, Killpath.READY),)))))
    acted = [e for e in desk.log if isinstance(e, Signal | RunKillpath)]
    assert acted[:2] == [RunKillpath(5), Signal(5, SIGTERM)]


def test_the_loop_never_disarms_while_a_process_is_left() -> None:
    """A process that cannot be killed keeps the watchdog armed for ever, and that is told once."""
    desk = Desk(now_us=16 * S)

    class EnoughError(Exception):
        """The test has seen enough."""

    def stop(effect: Any) -> None:
        if isinstance(effect, Sleep) and desk.now_us > 400 * S:
            raise EnoughError

    desk.after = stop
    with pytest.raises(EnoughError):
        desk.run(recover(Recovery(begin(b"ls", 0, T, (Process(5),)))))
    assert len([e for e in desk.log if isinstance(e, Signal)]) == ACTIONS_MAX
    assert desk.notified == [GivenUp(5)]
    assert not [e for e in desk.log if isinstance(e, PetWatchdog)]


def test_a_user_without_leases_holds_the_lockspace() -> None:
    """While the lockspace is marked as used it is not cleared, although nobody holds a lease."""
    desk = Desk(now_us=16 * S)
    recovery = Recovery(begin(b"ls", 0, T, ()))
    recovery.tell(Used(True))

    def release(effect: Any) -> None:
        if isinstance(effect, Sleep) and desk.now_us > 30 * S:
            recovery.tell(Used(False))

    desk.after = release
    desk.run(recover(recovery))
    assert desk.now_us > 30 * S
    assert desk.notified == [Cleared()]


def test_a_watchdog_that_cannot_be_disarmed_is_an_error() -> None:
    """Nothing is reported as cleared when the host is going to be reset."""
    desk = Desk()
    desk.fail = lambda effect: (
        WatchdogError(b"ls", "gone") if isinstance(effect, PetWatchdog) else None
    )
    with pytest.raises(WatchdogError):
        desk.run(recover(Recovery(begin(b"ls", 0, T, ()))))
    assert desk.notified == []


def test_first_kill_waits_for_no_pause() -> None:
    """SIGKILL comes when it is due, also less than a second after the last SIGTERM."""
    timing = Timing(1, 2)
    ladder = begin(b"space", 0, timing, (Process(7),))
    assert ladder.kill_at_us < timing.fail_us + 2 * S
    for now_us in (timing.fail_us, timing.fail_us + S):
        ladder, actions = step(ladder, Tick(now_us))
        assert actions == (Signal(7, SIGTERM),)
    ladder, actions = step(ladder, Tick(ladder.kill_at_us))
    assert actions == (Signal(7, SIGKILL),)
    ladder, actions = step(ladder, Tick(ladder.kill_at_us + 1))
    assert actions == ()
