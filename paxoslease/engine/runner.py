"""Runs many protocols at once on one thread, over one asynchronous I/O context.

A protocol (protocol/effects.py) yields what it wants; the runner performs it and sends the answer.
All generators that can go on do so until each waits for something; then what they asked of the
disks is submitted together, and the thread sleeps until an I/O completes, a time is reached, or
somebody hands it work.

Threads: everything in a Runner belongs to its thread, except the mailbox (a deque and an eventfd),
through which others hand over operations and cancellations. Results leave through futures.

Safety: a request that timed out keeps its buffer until the kernel gives it back; a write that timed
out is remembered as "stuck", and nothing is submitted over it until it has landed (rule M7). The
clock is CLOCK_BOOTTIME, which runs on while the host is suspended (M18).
"""

from __future__ import annotations

import heapq
import logging
import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, Generic, TypeVar

from paxoslease.disk.areas import delta_columns, nonzero_host_sectors
from paxoslease.disk.direct import (
    Aio,
    Buffer,
    BufferPool,
    Completion,
    DirectFile,
    Request,
    shared_pool,
)
from paxoslease.disk.layout import ballot_bytes, check_sizes
from paxoslease.disk.records import LEADER_BYTES
from paxoslease.errors import (
    Cancelled,
    DecisionStale,
    DiskError,
    DiskTimeout,
    LockspaceFailed,
    PaxosleaseError,
)
from paxoslease.protocol.effects import (
    UNSEEN,
    BallotImage,
    Gather,
    HostSeen,
    Landed,
    LockspaceImage,
    Membership,
    Notify,
    Now,
    Observe,
    PetWatchdog,
    Protocol,
    Random,
    Read,
    ReadBallot,
    ReadLockspace,
    RunKillpath,
    Signal,
    Sleep,
    Standing,
    Write,
)

T = TypeVar("T")
_log = logging.getLogger(__name__)
_BLOCKED: Final = object()
_EMSGSIZE: Final = 90
_BYTES_IN_FLIGHT: Final = 16 << 20


def now_us() -> int:
    """Return the time of the effect Now: microseconds of CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Context:
    """What the effects that are not about disks and time mean for one operation.

    The engine's host.py has one per membership; this one is for operations without any (formatting,
    reading as a bystander). Called on the runner's thread; must not block.
    """

    lockspace = b""

    def membership(self, now: int) -> Standing:
        """Answer Membership."""
        raise LockspaceFailed(self.lockspace, "not joined")

    def observe(self, host_id: int) -> HostSeen:
        """Answer Observe."""
        return UNSEEN

    def pet(self, effect: PetWatchdog) -> None:
        """Perform PetWatchdog."""
        raise LockspaceFailed(self.lockspace, "not joined")

    def notify(self, operation: Operation[Any], event: Any) -> None:
        """Perform Notify."""
        _log.info("notified event=%r", event)

    def signal(self, effect: Signal) -> bool:
        """Perform Signal."""
        raise LockspaceFailed(self.lockspace, "no processes are tracked here")

    def killpath(self, effect: RunKillpath) -> bool:
        """Perform RunKillpath."""
        raise LockspaceFailed(self.lockspace, "no processes are tracked here")


BYSTANDER: Final = Context()


class Operation(Generic[T]):
    """A protocol that is being run. `future` gets its result or its error.

    The runner's thread owns everything but `future` and `cancel`.
    """

    __slots__ = (
        "_runner",
        "cancelled",
        "context",
        "files",
        "future",
        "gathered",
        "missing",
        "protocol",
        "sleeping",
    )

    def __init__(
        self,
        runner: Runner,
        protocol: Protocol[T],
        files: Mapping[str, DirectFile],
        context: Context,
    ) -> None:
        self._runner = runner
        self.protocol = protocol
        self.files = files
        self.context = context
        self.future: Future[T] = Future()
        self.cancelled = False
        self.sleeping = 0  # the timer that would wake a cancellable sleep
        self.gathered: list[Any] | None = None
        self.missing = 0

    def cancel(self) -> None:
        """Ask the protocol to end at its next cancellable sleep. Any thread may call it."""
        self._runner.post(lambda: self._runner.cancel_now(self))

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the result. Raises the protocol's error, TimeoutError."""
        return self.future.result(timeout_s)


class _Pending:
    """One I/O that an operation waits for, or has given up waiting for."""

    __slots__ = ("effect", "file", "nbytes", "operation", "slot", "submitted", "waiter")

    def __init__(
        self, operation: Operation[Any], effect: Any, file: DirectFile, nbytes: int, slot: int
    ) -> None:
        self.operation: Operation[Any] | None = operation  # None: timed out, nobody waits
        self.effect = effect
        self.file = file
        self.nbytes = nbytes
        self.slot = slot  # place in a Gather, -1 outside of one
        self.submitted = False
        self.waiter: Operation[Any] | None = None  # waits in Landed


class Runner:
    """One thread that runs protocols. `name` is the thread's name."""

    def __init__(self, name: str, *, depth: int = 256, pool: BufferPool | None = None) -> None:
        self._pool = pool or shared_pool()
        self._depth = depth
        self._mail: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ready: deque[tuple[Operation[Any], Any, BaseException | None]] = deque()
        self._queue: deque[int] = deque()
        self._bytes = 0
        self._pending: dict[int, _Pending] = {}
        self._stuck: dict[int, tuple[str, int, int]] = {}
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._live_timers: set[int] = set()
        self._serial = 0
        self._running = 0
        self._stopping = False
        self._random = random.Random(os.urandom(16))
        self._handlers: dict[type, Callable[[Operation[Any], Any], Any]] = {
            Now: lambda operation, effect: now_us(),
            Random: self._draw,
            Sleep: self._sleep,
            Read: self._io,
            ReadBallot: self._io,
            ReadLockspace: self._io,
            Write: self._io,
            Landed: self._landed,
            Gather: self._gather,
            Membership: lambda operation, effect: operation.context.membership(now_us()),
            Observe: lambda operation, effect: operation.context.observe(effect.host_id),
            PetWatchdog: lambda operation, effect: operation.context.pet(effect),
            Notify: lambda operation, effect: operation.context.notify(operation, effect.event),
            Signal: lambda operation, effect: operation.context.signal(effect),
            RunKillpath: lambda operation, effect: operation.context.killpath(effect),
        }
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # -- for other threads ---------------------------------------------------------------------

    def start(
        self,
        protocol: Protocol[T],
        files: Mapping[str, DirectFile],
        context: Context = BYSTANDER,
    ) -> Operation[T]:
        """Run a protocol. `files` maps the paths in its effects to open files."""
        operation = Operation(self, protocol, files, context)
        self.post(lambda: self._begin(operation))
        return operation

    def post(self, work: Callable[[], None]) -> None:
        """Have `work` called on the runner's thread, soon."""
        self._mail.append(work)
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """End the thread when no operation runs any more; waits for it."""

        def stop() -> None:
            self._stopping = True

        self.post(stop)
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        aio = Aio(self._depth)
        poll = select.poll()
        poll.register(aio.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._is_finished():
            while self._mail:
                self._mail.popleft()()
            self._advance(aio)
            if self._mail or self._is_finished():
                continue
            for fd, _ in poll.poll(self._patience_ms()):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._take(aio.reap())
            self._fire()
        aio.close()

    def _is_finished(self) -> bool:
        return self._stopping and not self._running and not self._pending

    def _patience_ms(self) -> float | None:
        while self._timers and self._timers[0][1] not in self._live_timers:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, (self._timers[0][0] - now_us()) / 1000)

    def _fire(self) -> None:
        now = now_us()
        while self._timers and self._timers[0][0] <= now:
            _, serial, action = heapq.heappop(self._timers)
            if serial in self._live_timers:
                self._live_timers.discard(serial)
                action()

    def _advance(self, aio: Aio) -> None:
        """Let every operation that can go on do so, then submit what they asked for."""
        while True:
            while self._ready:
                self._step(*self._ready.popleft())
            if self._queue:
                self._submit(aio)
            if not self._ready:
                return

    def _begin(self, operation: Operation[Any]) -> None:
        self._running += 1
        self._ready.append((operation, None, None))

    def _step(self, operation: Operation[Any], answer: Any, error: BaseException | None) -> None:
        """Resume a protocol and perform its effects until one has to be waited for."""
        protocol = operation.protocol
        handlers = self._handlers
        while True:
            try:
                effect = protocol.send(answer) if error is None else protocol.throw(error)
            except StopIteration as end:
                self._end(operation, end.value, None)
                return
            except BaseException as failure:
                # The root of the operation: its caller gets the error, whatever it is.
                self._end(operation, None, failure)
                return
            error = None
            try:
                answer = handlers[type(effect)](operation, effect)
            except PaxosleaseError as failure:
                error = failure
            else:
                if answer is _BLOCKED:
                    return

    def _end(self, operation: Operation[Any], result: Any, error: BaseException | None) -> None:
        self._running -= 1
        if operation.future.done():
            return  # its caller was told earlier that the end does not get through to the disk
        if error is not None:
            operation.future.set_exception(error)
        else:
            operation.future.set_result(result)

    # -- time ----------------------------------------------------------------------------------

    def _at(self, when_us: int, action: Callable[[], None]) -> int:
        self._serial += 1
        self._live_timers.add(self._serial)
        heapq.heappush(self._timers, (when_us, self._serial, action))
        return self._serial

    def _draw(self, operation: Operation[Any], effect: Random) -> int:
        return self._random.randrange(effect.below) if effect.below > 1 else 0

    def _sleep(self, operation: Operation[Any], effect: Sleep) -> Any:
        if effect.cancellable and operation.cancelled:
            operation.cancelled = False
            raise Cancelled
        if effect.duration_us <= 0:
            return None

        def wake() -> None:
            operation.sleeping = 0
            self._ready.append((operation, None, None))

        timer = self._at(now_us() + effect.duration_us, wake)
        if effect.cancellable:
            operation.sleeping = timer
        return _BLOCKED

    def cancel_now(self, operation: Operation[Any]) -> None:
        """Cancel an operation; on the runner's thread only, see Operation.cancel."""
        if operation.sleeping:
            self._live_timers.discard(operation.sleeping)
            operation.sleeping = 0
            self._ready.append((operation, None, Cancelled()))
        else:
            operation.cancelled = True

    # -- disks ---------------------------------------------------------------------------------

    def _io(self, operation: Operation[Any], effect: Any) -> Any:
        self._prepare(operation, effect, -1)
        return _BLOCKED

    def _prepare(self, operation: Operation[Any], effect: Any, slot: int) -> None:
        """Queue one request. Raises DecisionStale, DiskTimeout (over a stuck write), DiskError."""
        file = operation.files.get(effect.path)
        if file is None:
            raise DiskError(effect.path, effect.offset, "open", 2, "it was not opened before")
        is_write = type(effect) is Write
        nbytes = _length(effect)
        now = now_us()
        if is_write:
            if effect.not_after_us is not None and now > effect.not_after_us:
                raise DecisionStale(operation.context.lockspace, now - effect.not_after_us)
            if self._stuck and self._is_over_stuck(effect.path, effect.offset, nbytes):
                raise DiskTimeout(effect.path, effect.offset, "write", effect.timeout_us)
        self._serial += 1
        token = self._serial
        self._pending[token] = _Pending(operation, effect, file, nbytes, slot)
        self._queue.append(token)
        self._live_timers.add(token)
        heapq.heappush(
            self._timers, (now + effect.timeout_us, token, lambda: self._time_out(token))
        )

    def _submit(self, aio: Aio) -> None:
        """Give the kernel what is queued, as far as depth and memory allow.

        The time-out runs since the request was asked for, so a queue behind a disk that hangs ends
        by itself; what a time-out left with the kernel does not count against the others.
        """
        batch: list[Request] = []
        room = self._depth - aio.in_flight
        while self._queue and len(batch) < room:
            token = self._queue[0]
            pending = self._pending[token]
            if self._bytes and self._bytes + pending.nbytes > _BYTES_IN_FLIGHT:
                break
            self._queue.popleft()
            effect = pending.effect
            is_write = type(effect) is Write
            if is_write and effect.not_after_us is not None:
                late_us = now_us() - effect.not_after_us
                if late_us > 0:
                    self._withdraw(token, partial(_stale, late_us))
                    continue
            buffer = self._pool.take(pending.nbytes)
            if is_write:
                buffer.view[:] = effect.data
            pending.submitted = True
            self._bytes += pending.nbytes
            batch.append(
                Request(token, pending.file, is_write, effect.offset, buffer, pending.nbytes)
            )
        if batch:
            self._take(aio.submit(batch))

    def _withdraw(self, token: int, error_of: Callable[[Operation[Any]], PaxosleaseError]) -> None:
        """End a request that was never given to the kernel."""
        pending = self._pending.pop(token)
        self._live_timers.discard(token)
        operation = pending.operation
        assert operation is not None
        self._answer(operation, pending.slot, None, error_of(operation))

    def _is_over_stuck(self, path: str, offset: int, nbytes: int) -> bool:
        return any(
            path == p and offset < end and begin < offset + nbytes
            for p, begin, end in self._stuck.values()
        )

    def _time_out(self, token: int) -> None:
        """Tell an operation that its I/O did not end in time; the I/O itself goes on."""
        pending = self._pending[token]
        operation, effect = pending.operation, pending.effect
        assert operation is not None
        if not pending.submitted:
            self._queue.remove(token)
            name = "write" if type(effect) is Write else "read"
            self._withdraw(
                token, lambda _: DiskTimeout(effect.path, effect.offset, name, effect.timeout_us)
            )
            return
        pending.operation = None
        self._bytes -= pending.nbytes
        ticket = 0
        if type(effect) is Write:
            ticket = token
            self._stuck[token] = (effect.path, effect.offset, effect.offset + len(effect.data))
        name = "write" if ticket else "read"
        _log.warning("io_timeout operation=%s path=%s offset=%d", name, effect.path, effect.offset)
        error = DiskTimeout(effect.path, effect.offset, name, effect.timeout_us, ticket)
        self._answer(operation, pending.slot, None, error)

    def _take(self, completions: list[Completion]) -> None:
        for request, result in completions:
            pending = self._pending.pop(request.token)
            self._live_timers.discard(request.token)
            effect = pending.effect
            error = None
            if result != request.nbytes:
                error = _failure(effect, request.is_write, result)
            operation = pending.operation
            if operation is None:
                self._stuck.pop(request.token, None)
                request.buffer.release()
                if pending.waiter is not None:
                    self._ready.append((pending.waiter, None, error))
                continue
            self._bytes -= request.nbytes
            answer = None
            if error is None and not request.is_write:
                answer = _read_answer(effect, request.buffer)
            request.buffer.release()
            self._answer(operation, pending.slot, answer, error)

    def _answer(
        self, operation: Operation[Any], slot: int, answer: Any, error: PaxosleaseError | None
    ) -> None:
        if slot < 0:
            self._ready.append((operation, answer, error))
            return
        gathered = operation.gathered
        assert gathered is not None
        gathered[slot] = answer if error is None else error
        operation.missing -= 1
        if operation.missing == 0:
            operation.gathered = None
            self._ready.append((operation, tuple(gathered), None))

    def _gather(self, operation: Operation[Any], effect: Gather) -> Any:
        operation.gathered = results = [None] * len(effect.effects)
        operation.missing = len(results)
        for slot, one in enumerate(effect.effects):
            try:
                self._prepare(operation, one, slot)
            except PaxosleaseError as error:
                results[slot] = error  # type: ignore[call-overload]
                operation.missing -= 1
        if operation.missing:
            return _BLOCKED
        operation.gathered = None
        return tuple(results)

    def _landed(self, operation: Operation[Any], effect: Landed) -> Any:
        pending = self._pending.get(effect.ticket)
        if pending is None:
            return None
        pending.waiter = operation
        return _BLOCKED


def _stale(late_us: int, operation: Operation[Any]) -> DecisionStale:
    return DecisionStale(operation.context.lockspace, late_us)


def _length(effect: Any) -> int:
    kind = type(effect)
    if kind is Write:
        return len(effect.data)
    if kind is Read:
        return int(effect.length)
    if kind is ReadBallot:
        align = 1 << 20 if effect.sector_size == 512 else 8 << 20
        sizes = check_sizes(effect.sector_size, align)
        return ballot_bytes(sizes, effect.num_hosts)
    return int(effect.align_size)


def _read_answer(effect: Any, buffer: Buffer) -> Any:
    kind = type(effect)
    view = buffer.view
    if kind is Read:
        return bytes(view)
    if kind is ReadBallot:
        hosts = nonzero_host_sectors(view, effect.sector_size, effect.num_hosts)
        return BallotImage(bytes(view[:LEADER_BYTES]), hosts)
    own = (effect.host_id - 1) * effect.sector_size
    sizes = check_sizes(effect.sector_size, effect.align_size)
    columns = delta_columns(view, sizes, effect.space_name, effect.host_id)
    return LockspaceImage(bytes(view[own : own + effect.sector_size]), columns)


def _failure(effect: Any, is_write: bool, result: int) -> DiskError:
    """Return the error for an I/O that did not move all its bytes."""
    operation = "write" if is_write else "read"
    if result < 0:
        return DiskError(effect.path, effect.offset, operation, -result, os.strerror(-result))
    reason = f"only {result} bytes lie there: the area goes beyond the end"
    return DiskError(effect.path, effect.offset, operation, _EMSGSIZE, reason)
