"""Operations in threads: as many threads as are needed, and none left when the process executes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from paxoslease.lockd.work import Operation, Turn, Work, on_files, tasks

LIMIT_S = 20.0


_others: set[str] = set()


def threads() -> int:
    """Return how many threads there are that were not there when the test began."""
    return len(tasks() - _others)


@pytest.fixture(autouse=True)
def _count_anew() -> None:
    """Leave the threads of others out of account: earlier tests' and the runner's."""
    _others.clear()
    _others.update(tasks())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def test_many_calls_need_few_threads() -> None:
    """Thousands at once that come back: not a thread for each."""

    async def run() -> None:
        work = Work(lambda: None)
        results: list[int] = []
        most = 0

        def call(number: int) -> int:
            nonlocal most
            most = max(most, threads())
            return number

        for number in range(5000):
            work.start(on_files(lambda number=number: call(number)), results.append)
        await until(lambda: len(results) == 5000)
        assert sorted(results) == list(range(5000))
        assert most <= 64
        await until(lambda: threads() <= 4)
        work.end_threads()
        assert threads() == 0
        work.start(on_files(lambda: 1), results.append)
        await until(lambda: len(results) == 5001)
        work.end_threads()

    asyncio.run(run())


def test_calls_that_hang_keep_nobody_waiting() -> None:
    """However many hang, one that does not is done; and all when they go on."""

    async def run() -> None:
        work = Work(lambda: None)
        gate = threading.Event()
        results: list[object] = []
        for _ in range(200):
            work.start(on_files(gate.wait), results.append)
        for count in range(20):
            work.start(on_files(lambda: "quick"), results.append)
            await until(lambda count=count: len(results) > count)
        assert work.count == 200
        gate.set()
        await until(lambda: not work.count)
        await until(lambda: threads() <= 4)
        work.end_threads()
        assert results.count(True) == 200

    asyncio.run(run())


def test_turns() -> None:
    """Operations with one key go one after the other, those with another do not wait."""

    async def run() -> None:
        work = Work(lambda: None)
        gates = [threading.Event() for _ in range(3)]
        done: list[str] = []

        def operation(key: bytes, gate: threading.Event, name: str) -> Operation[str]:
            yield Turn((key,))
            yield from on_files(gate.wait)
            return name

        for number, gate in enumerate(gates[:2]):
            work.start(operation(b"one", gate, f"one {number}"), done.append)
        work.start(operation(b"other", gates[2], "other"), done.append)
        gates[1].set()
        gates[2].set()
        await until(lambda: done == ["other"])
        gates[0].set()
        await until(lambda: done == ["other", "one 0", "one 1"])
        work.end_threads()

    asyncio.run(run())


def test_no_threads_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system lets us have none, an operation is told so, and the next one tries again."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        work = Work(lambda: None)
        errors: list[int | None] = []

        def operation() -> Operation[None]:
            try:
                yield from on_files(lambda: None)
            except OSError as error:
                errors.append(error.errno)
            else:
                errors.append(None)

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            work.start(operation(), lambda _: None)
            await until(lambda: errors == [11])
        work.start(operation(), lambda _: None)
        await until(lambda: errors == [11, None])
        work.end_threads()

    asyncio.run(run())
