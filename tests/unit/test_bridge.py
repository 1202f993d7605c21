"""Calls that may block, on threads of their own."""

from __future__ import annotations

import asyncio
import errno
import threading

import pytest

from paxoslease.daemon import bridge
from paxoslease.daemon.bridge import in_thread, surely_in_thread
from paxoslease.daemon.refusal import Refusal


def test_what_has_to_be_done_does_not_wait_for_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are refused when too many hang; a lockspace is left all the same."""
    monkeypatch.setattr(bridge, "THREADS_MAX", 2)
    release = threading.Event()

    async def run() -> None:
        hanging = [asyncio.ensure_future(in_thread(release.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as refused:
            await in_thread(int)
        assert refused.value.number == -errno.EAGAIN
        assert await surely_in_thread(int) == 0
        release.set()
        await asyncio.wait(hanging)

    asyncio.run(run())


def test_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is refused, and does not count for ever; what has to be done waits."""
    start = threading.Thread.start
    failures = [RuntimeError("can't start new thread")] * 2
    monkeypatch.setattr(bridge, "_AGAIN_S", 0.01)

    def sometimes(thread: threading.Thread) -> None:
        if failures:
            raise failures.pop()
        start(thread)

    async def run() -> None:
        before = list(bridge._running)
        monkeypatch.setattr(threading.Thread, "start", sometimes)
        with pytest.raises(Refusal):
            await in_thread(int)
        assert bridge._running == before
        assert await surely_in_thread(int) == 0
        assert not failures

    asyncio.run(run())
