"""The thread that runs protocols: answers, sleeps, cancelling, and what happens when it breaks."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paxoslease.disk.direct import open_direct
from paxoslease.engine.alarm import Alarm
from paxoslease.engine.operation import Context, now_us
from paxoslease.engine.runner import Runner
from paxoslease.errors import Cancelled, DiskError, LockspaceFailed
from paxoslease.protocol.effects import (
    Gather,
    Membership,
    Now,
    Protocol,
    Random,
    Read,
    Sleep,
    Write,
)
from tests.system.rig import wait_for

MS = 1000
SECOND = 1000 * MS


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner("test")
    yield made
    made.stop()


def sleeping(us: int, cancellable: bool = True) -> Protocol[int]:
    begun: int = yield Now()
    yield Sleep(us, cancellable)
    ended: int = yield Now()
    return ended - begun


def test_runs_protocols_side_by_side(runner: Runner) -> None:
    """Two hundred sleeps of a quarter of a second take no longer than one."""
    begun = now_us()
    operations = [runner.start(sleeping(250 * MS), {}) for _ in range(200)]
    for operation in operations:
        assert operation.result(10) >= 250 * MS
    assert now_us() - begun < 2 * SECOND


def test_sleeps_are_not_rounded_to_milliseconds(runner: Runner) -> None:
    """A sleep of a fifth of a millisecond can end within less than one."""
    best = min(runner.start(sleeping(200), {}).result(10) for _ in range(50))
    assert 200 <= best < 900


def test_cancels_at_cancellable_sleeps_only(runner: Runner) -> None:
    """A cancellation ends a cancellable sleep at once, and waits for the next one otherwise."""

    def stubborn() -> Protocol[str]:
        yield Sleep(100 * MS)
        try:
            yield Sleep(60 * SECOND, cancellable=True)
        except Cancelled:
            return "cancelled"
        return "slept"

    begun = now_us()
    first = runner.start(sleeping(60 * SECOND), {})
    second = runner.start(stubborn(), {})
    first.cancel()
    second.cancel()
    with pytest.raises(Cancelled):
        first.result(10)
    assert second.result(10) == "cancelled"
    assert 100 * MS <= now_us() - begun < 10 * SECOND


def test_reads_what_it_wrote(runner: Runner, tmp_path: Path) -> None:
    """Reads and writes reach the file, alone and gathered."""
    path = str(tmp_path / "file")
    Path(path).write_bytes(bytes(4096))

    def work() -> Protocol[Any]:
        yield Write(path, 512, b"a" * 512, SECOND, None)
        yield Gather((Write(path, 1024, b"b" * 512, SECOND, None),))
        return (yield Gather((Read(path, 512, 512, SECOND), Read(path, 1024, 512, SECOND))))

    with open_direct(path) as file:
        assert runner.start(work(), {path: file}).result(10) == (b"a" * 512, b"b" * 512)


@pytest.mark.parametrize("offset", [-512, (1 << 63) - 512, 1 << 63, 1 << 70])
def test_an_impossible_offset_is_an_error_of_one_effect(
    runner: Runner, tmp_path: Path, offset: int
) -> None:
    """An offset that no kernel takes is refused, and the thread goes on."""
    path = str(tmp_path / "file")
    Path(path).write_bytes(bytes(4096))

    def reading(at: int) -> Protocol[Any]:
        return (yield Read(path, at, 512, SECOND))

    with open_direct(path) as file:
        with pytest.raises(DiskError) as caught:
            runner.start(reading(offset), {path: file}).result(10)
        assert caught.value.code == -22
        assert runner.start(reading(0), {path: file}).result(10) == bytes(512)


def test_error_of_an_effect_is_thrown_into_the_protocol(runner: Runner) -> None:
    """What an effect fails with arrives at the line that asked, and at the caller otherwise."""

    def handling() -> Protocol[str]:
        try:
            yield Membership()
        except LockspaceFailed as error:
            return error.reason
        return ""

    def not_handling() -> Protocol[None]:
        yield Membership()

    def unknown() -> Protocol[None]:
        yield "nonsense"

    assert runner.start(handling(), {}).result(10) == "not joined"
    with pytest.raises(LockspaceFailed):
        runner.start(not_handling(), {}).result(10)
    with pytest.raises(KeyError):
        runner.start(unknown(), {}).result(10)
    assert runner.start(sleeping(1), {}).result(10) >= 1


def test_draws_below_the_bound(runner: Runner) -> None:
    """Random numbers lie below their bound; there is only one below 1."""

    def draw(below: int) -> Protocol[tuple[int, ...]]:
        drawn: tuple[int, ...] = ()
        while len(drawn) < 50:
            number = yield Random(below)
            drawn = (*drawn, number)
        return drawn

    assert set(runner.start(draw(3), {}).result(10)) == {0, 1, 2}
    assert set(runner.start(draw(0), {}).result(10)) == {0}


def test_every_waiter_and_callback_gets_the_result(runner: Runner) -> None:
    """Several threads can wait for one operation, and callbacks come once each."""
    operation = runner.start(sleeping(50 * MS), {})
    results: list[int] = []
    called: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(operation.result(10))) for _ in "abc"]
    operation.on_end(lambda ended: called.append(ended.result()))
    with pytest.raises(TimeoutError):
        operation.result(0.001)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    operation.on_end(lambda ended: called.append(ended.result()))
    wait_for(lambda: len(called) == 2)
    assert len({*results, *called}) == 1


def test_early_news_is_the_only_news(runner: Runner) -> None:
    """What a caller was told early stays, whatever the protocol comes to."""
    operation = runner.start(sleeping(50 * MS), {})
    operation.tell(None, TimeoutError("early"))
    with pytest.raises(TimeoutError, match="early"):
        operation.result(10)
    wait_for(lambda: not runner._running)
    with pytest.raises(TimeoutError, match="early"):
        operation.result(10)


def test_broken_thread_tells_everybody() -> None:
    """When a runner's thread breaks, who waits and who comes later gets an error at once."""
    runner = Runner("broken")
    waiting = runner.start(sleeping(60 * SECOND), {})

    def fail() -> None:
        raise ZeroDivisionError

    runner.post(fail)
    with pytest.raises(LockspaceFailed, match="broken has ended"):
        waiting.result(10)
    with pytest.raises(LockspaceFailed, match="broken has ended"):
        runner.start(sleeping(1), {}, Context()).result(10)


def test_alarm_of_the_past_is_due_at_once() -> None:
    """An alarm is readable as soon as its time has come, and not before."""
    alarm = Alarm()
    poll = select.poll()
    poll.register(alarm.fd, select.POLLIN)
    alarm.set(now_us() + 60 * SECOND)
    assert not poll.poll(0)
    alarm.set(1)
    assert poll.poll(1000)
    alarm.set(0)
    assert not poll.poll(0)
    alarm.close()
