"""Runs many protocols at once on one thread, over one asynchronous I/O context.

A protocol (protocol/effects.py) yields what it wants; the runner performs it and sends the answer.
All generators that can go on do so until each waits for something; then what they asked of the
disks is submitted together, and the thread sleeps until an I/O completes, a time is reached, or
somebody hands it work.

Threads: everything in a Runner belongs to its thread, except the mailbox (a deque and an eventfd),
through which others hand over operations and cancellations. Results leave through operations.

A thread that runs guards never gets an I/O: submitting one can block in the kernel, for as long as
a file system is frozen or a device's queue is full (docs/safety.md).
"""

from __future__ import annotations

import heapq
import logging
import os
import random
import select
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from paxoslease.disk.direct import BufferPool, DirectFile, shared_pool
from paxoslease.engine.alarm import Alarm
from paxoslease.engine.disks import BLOCKED, Disks, Ready
from paxoslease.engine.operation import BYSTANDER, Context, Operation, now_us
from paxoslease.errors import Cancelled, LockspaceFailed
from paxoslease.protocol.effects import (
    Gather,
    Landed,
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
    Write,
)

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Rest:
    """A request to a runner to stand still, and its answer. Thread-safe.

    holds_timers: what sleeps stays asleep, so that nothing new begins; else the runner rests only
    when nothing is left that it runs.
    """

    def __init__(self, *, holds_timers: bool) -> None:
        self.holds_timers = holds_timers
        self._reached = threading.Event()
        self._ended = threading.Event()

    def reach(self) -> None:
        """Say that the runner stands still, and stand still until the end."""
        self._reached.set()
        # Without a limit: guards run on another thread, and this one has nothing that hurries.
        self._ended.wait()

    def await_reached(self, timeout_s: float) -> bool:
        """Wait until the runner stands still, or the end; False when neither comes in time."""
        return self._reached.wait(max(0.0, timeout_s))

    @property
    def is_ended(self) -> bool:
        """Tell whether the runner is to go on."""
        return self._ended.is_set()

    def end(self) -> None:
        """Let the runner go on, or give the request up."""
        self._ended.set()
        self._reached.set()


class Runner:
    """One thread that runs protocols.

    name: the thread's name. depth: requests in flight in all; per_file: in one file.
    """

    def __init__(
        self,
        name: str,
        *,
        depth: int = 512,
        per_file: int = 32,
        pool: BufferPool | None = None,
    ) -> None:
        self._name = name
        self._mail: deque[Operation[Any] | Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_asleep = False
        self._broken: BaseException | None = None
        self._alarm = Alarm()
        self._ready: deque[Ready] = deque()
        self._disks = Disks(self._ready, depth, per_file, pool or shared_pool())
        self._timers: list[tuple[int, int, Operation[Any]]] = []
        self._serial = 0
        self._running: set[Operation[Any]] = set()
        self._watched: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(self._alarm.fd, select.POLLIN)
        self._is_stopping = False
        self._rest: Rest | None = None
        self._random = random.Random(os.urandom(16))
        self._handlers = self._make_handlers()
        _runners.add(self)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _make_handlers(self) -> dict[type, Callable[[Operation[Any], Any], Any]]:
        disks = self._disks
        return {
            Now: lambda operation, effect: now_us(),
            Random: self._draw,
            Sleep: self._sleep,
            Read: disks.ask,
            ReadBallot: disks.ask,
            ReadLockspace: disks.ask,
            Write: disks.ask,
            Landed: disks.landed,
            Gather: disks.gather,
            Membership: lambda operation, effect: operation.context.membership(now_us()),
            Observe: lambda operation, effect: operation.context.observe(effect.host_id),
            PetWatchdog: lambda operation, effect: operation.context.pet(effect),
            Notify: lambda operation, effect: operation.context.notify(operation, effect.event),
            Signal: lambda operation, effect: operation.context.signal(effect),
            RunKillpath: lambda operation, effect: operation.context.killpath(effect),
        }

    # -- for other threads ---------------------------------------------------------------------

    def start(
        self,
        protocol: Protocol[T],
        files: Mapping[str, DirectFile],
        context: Context = BYSTANDER,
    ) -> Operation[T]:
        """Run a protocol. `files` maps the paths in its effects to open files."""
        operation = Operation(self, protocol, files, context)
        self.post(operation)
        return operation

    def post(self, work: Operation[Any] | Callable[[], None]) -> None:
        """Have an operation run, or `work` called, on the runner's thread, soon."""
        self._mail.append(work)
        # The thread says that it goes to sleep before it looks into the mailbox for the last time.
        if self._is_asleep:
            os.eventfd_write(self._wake, 1)
        if self._broken is not None:
            self._refuse_mail()

    def rest(self, *, holds_timers: bool) -> Rest:
        """Have the thread stand still as soon as nothing is in flight, not even what timed out.

        While it stands still what is handed over waits. The caller ends the rest.
        """
        rest = Rest(holds_timers=holds_timers)

        def begin() -> None:
            self._rest = rest

        self.post(begin)
        return rest

    def end_rest(self, rest: Rest) -> None:
        """Let the thread go on."""
        rest.end()
        self.post(lambda: None)

    def cancel_all(self) -> None:
        """Cancel every operation that runs now."""

        def cancel() -> None:
            for operation in list(self._running):
                self.cancel_now(operation)

        self.post(cancel)

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing runs or waits to; exact only while the thread stands still."""
        return not (self._running or self._mail)

    def stop(self) -> None:
        """End the thread when no operation runs any more; waits for it."""

        def stop() -> None:
            self._is_stopping = True

        self.post(stop)
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_finished():
                self._read_mail()
                self._advance()
                self._stand_still()
                if not self._is_finished():
                    self._wait()
            self._disks.close()
        except BaseException as error:
            # The root of the thread: nothing can go on here, and everybody must know.
            _log.critical("runner_broken thread=%s", self._name, exc_info=True)
            self.abandon(error)

    def _is_finished(self) -> bool:
        return self._is_stopping and not (
            self._mail or self._running or self._ready or self._disks.has_requests
        )

    def _stand_still(self) -> None:
        """Stand still if somebody wants it and nothing is under way, until he does not any more."""
        rest = self._rest
        if rest is None:
            return
        is_quiet = not (self._mail or self._ready or self._disks.has_requests)
        if not rest.is_ended and is_quiet and (rest.holds_timers or not self._running):
            rest.reach()
        if rest.is_ended:
            self._rest = None

    def _read_mail(self) -> None:
        while self._mail:
            work = self._mail.popleft()
            if isinstance(work, Operation):
                self._running.add(work)
                self._ready.append(Ready(work, None, None))
            else:
                work()

    def abandon(self, error: BaseException) -> None:
        """End everything that runs, and whatever is still handed over, with an error."""
        self._broken = error
        for operation in list(self._running):
            self._refuse(operation)
        self._refuse_mail()

    def _refuse_mail(self) -> None:
        while self._mail:
            try:
                work = self._mail.popleft()
            except IndexError:  # the other thread was faster
                return
            if isinstance(work, Operation):
                self._refuse(work)

    def _refuse(self, operation: Operation[Any]) -> None:
        reason = f"internal error: {self._name} has ended: {self._broken!r}"
        operation.tell(None, LockspaceFailed(operation.context.lockspace, reason))

    def _wait(self) -> None:
        """Sleep until something happens, then take it in."""
        deadline_us = self._disks.next_deadline_us()
        if self._disks.is_open:
            when_us = self._next_timer_us()
            until_us = min(deadline_us, when_us) if deadline_us and when_us else 0
            self._is_asleep = True
            self._disks.wait(
                self._wake, 0 if self._mail else _left_s(until_us or deadline_us or when_us)
            )
            self._is_asleep = False
        else:
            self._poll_others()
        now = now_us()
        self._wake_up(now)
        if deadline_us and now >= deadline_us:
            # After a suspension, or a long wait for the processor, the answers may be there.
            self._disks.take()
            self._disks.expire(now)

    def _poll_others(self) -> None:
        """Sleep as a thread without disks does: its timer also runs while the host is suspended."""
        self._alarm.set(self._next_timer_us())
        self._is_asleep = True
        found = self._poll.poll(0 if self._mail else None)
        self._is_asleep = False
        for ready, _ in found:
            if ready == self._wake:
                os.eventfd_read(self._wake)
            elif ready in self._watched:
                self._poll.unregister(ready)
                self._watched.pop(ready)()

    def _advance(self) -> None:
        """Let every operation that can go on do so, then submit what they asked for."""
        ready = self._ready
        while True:
            while ready:
                self._step(*ready.popleft())
            self._disks.submit()
            if not ready:
                return

    def _step(self, operation: Operation[Any], answer: Any, error: BaseException | None) -> None:
        """Resume a protocol and perform its effects until one has to be waited for."""
        protocol = operation.protocol
        handlers = self._handlers
        while True:
            try:
                effect = protocol.send(answer) if error is None else protocol.throw(error)
            except StopIteration as end:
                self._running.discard(operation)
                operation.tell(end.value, None)
                return
            except BaseException as failure:
                # The root of the operation: its caller gets the error, whatever it is.
                self._running.discard(operation)
                operation.tell(None, failure)
                return
            error = None
            try:
                answer = handlers[type(effect)](operation, effect)
            except Exception as failure:
                error = failure
            else:
                if answer is BLOCKED:
                    return

    # -- time and chance -------------------------------------------------------------------------

    def _draw(self, operation: Operation[Any], effect: Random) -> int:
        return self._random.randrange(effect.below) if effect.below > 1 else 0

    def _sleep(self, operation: Operation[Any], effect: Sleep) -> Any:
        if effect.cancellable and operation.cancelled:
            operation.cancelled = False
            raise Cancelled
        if effect.duration_us <= 0:
            return None
        self._serial += 1
        operation.sleeping = self._serial
        operation.cancellable = effect.cancellable
        heapq.heappush(self._timers, (now_us() + effect.duration_us, self._serial, operation))
        return BLOCKED

    def _next_timer_us(self) -> int:
        """Return when the next sleep ends, 0 for never."""
        holds = self._rest is not None and self._rest.holds_timers
        return self._timers[0][0] if self._timers and not holds else 0

    def _wake_up(self, now: int) -> None:
        if self._rest is not None and self._rest.holds_timers:
            return
        timers = self._timers
        while timers and (timers[0][0] <= now or timers[0][2].sleeping != timers[0][1]):
            _, serial, operation = heapq.heappop(timers)
            if operation.sleeping == serial:
                operation.sleeping = 0
                self._ready.append(Ready(operation, None, None))

    def cancel_now(self, operation: Operation[Any]) -> None:
        """Cancel an operation; on the runner's thread only, see Operation.cancel."""
        if operation.sleeping and operation.cancellable:
            operation.sleeping = 0
            self._ready.append(Ready(operation, None, Cancelled()))
        else:
            operation.cancelled = True

    # -- other descriptors -----------------------------------------------------------------------

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` once when `fd` is readable; on the runner's thread only."""
        self._watched[fd] = callback
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop watching a descriptor, before it is closed; on the runner's thread only."""
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)


def _left_s(until_us: int) -> float | None:
    return max(0, until_us - now_us()) / 1_000_000 if until_us else None


_runners: weakref.WeakSet[Runner] = weakref.WeakSet()


def _abandon_after_fork() -> None:
    """Refuse in a child what only the parent's threads could do."""
    for runner in list(_runners):
        runner.abandon(RuntimeError("this process was forked from the one that runs it"))
    _runners.clear()


os.register_at_fork(after_in_child=_abandon_after_fork)
