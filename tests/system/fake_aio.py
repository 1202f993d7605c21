"""An Aio that completes what a test tells it to complete, when it tells it to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from paxoslease.disk.direct import BufferPool, Completion, Request
from paxoslease.engine.disks import Disks, Ready
from paxoslease.engine.operation import Operation


class FakeAio:
    """Keeps requests until `finish`; the buffers are real."""

    def __init__(self) -> None:
        self.requests: dict[int, Request] = {}
        self.completed: list[Completion] = []
        self.abandoned: list[int] = []

    @property
    def in_flight(self) -> int:
        return len(self.requests)

    def fileno(self) -> int:
        return -1

    def submit(self, requests: Sequence[Request]) -> list[Completion]:
        for request in requests:
            request.buffer.in_flight = True
            self.requests[request.token] = request
        return []

    def abandon(self, token: int) -> None:
        self.abandoned.append(token)

    def finish(self, token: int, result: int | None = None) -> None:
        """Complete a request: all its bytes, or `result`."""
        request = self.requests.pop(token)
        request.buffer.in_flight = False
        self.completed.append(Completion(request, request.nbytes if result is None else result))

    def reap(self) -> list[Completion]:
        completed, self.completed = self.completed, []
        return completed


class Bench:
    """Disks over a FakeAio, and operations that are stepped by the test."""

    def __init__(self, per_file: int = 32) -> None:
        self.ready: deque[Ready] = deque()
        self.aio = FakeAio()
        self.disks = Disks(self.ready, 64, per_file, BufferPool(64 << 20))
        self.disks._aio = self.aio  # type: ignore[assignment]

    def operation(self, files: dict[str, Any]) -> Operation[None]:
        def nothing() -> Any:
            yield None

        return Operation(None, nothing(), files)  # type: ignore[arg-type]

    def answers(self) -> list[Any]:
        """Return what the operations got since the last call: answers and errors."""
        self.disks.take()
        got = [ready.answer if ready.error is None else ready.error for ready in self.ready]
        self.ready.clear()
        return got

    def ask(self, operation: Operation[None], effect: Any) -> int:
        """Ask and submit; returns the token that the kernel would have got, 0 if none."""
        known = set(self.aio.requests)
        self.disks.ask(operation, effect)
        self.disks.submit()
        new = set(self.aio.requests) - known
        return new.pop() if new else 0
