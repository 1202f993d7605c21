"""Operations on files that may hang, of which none keeps another waiting.

An operation is a generator. It runs in the loop's thread, where the tables are, and yields what it
wants done: `OnFiles`, a function that touches files and nothing else, is called in a thread that
may wait for as long as the file system does, and the operation goes on with its result; `Turn`
lets it go on when every earlier operation with the same key has ended. So nothing in a table
changes but between two yields, and one that waits costs a thread, not the daemon.

Nothing is ever given up half done: no operation has a time limit, and none is cancelled. What a
file system answers late is answered to the operation that asked, which then decides again.

Threads share the process's locks and descriptors. They must have ended before the process executes
another program: Linux before 5.11 drops the locks of a process that does so with several threads.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")
Key: TypeAlias = tuple[bytes, ...]

_log = logging.getLogger(__name__)

# So many threads there are before any call waits for one, and so many stay idle after a burst.
_IDLE_MAX: Final = 4
# So many there are at the most while calls come back.
_MOVING_MAX: Final = 64
_PATIENCE_S: Final = 0.02
_THREADS_END_LIMIT_S: Final = 1.0
_LOOK_AGAIN_S: Final = 0.001


class OnFiles(NamedTuple):
    """Call a function that may wait for a file system; sent is its result, or thrown its error."""

    function: Callable[[], object]


class Turn(NamedTuple):
    """Wait until no earlier operation has this key. Asked for once, before anything else."""

    key: Key


class Until(NamedTuple):
    """Wait until an operation has made this true; it may be false again when this one goes on."""

    condition: Callable[[], bool]


Step: TypeAlias = OnFiles | Turn | Until
Operation: TypeAlias = Generator[Step, Any, T]


def on_files(function: Callable[[], T]) -> Operation[T]:
    """Return what a function returns that may wait for a file system; raises what it raises."""
    result: T = yield OnFiles(function)
    return result


class _Running:
    """An operation under way."""

    def __init__(self, operation: Operation[T], done: Callable[[T], None]) -> None:
        self.operation = operation
        self.done: Callable[[Any], None] = done
        self.key: Key | None = None


class Work:
    """All operations under way. Belongs to the loop's thread.

    settled: called whenever none is left.
    """

    def __init__(self, settled: Callable[[], None]) -> None:
        self.count = 0
        self._others = tasks()
        self._settled = settled
        self._loop = asyncio.get_running_loop()
        self._threads = _Threads(self._loop)
        self._turns: dict[Key, deque[_Running]] = {}
        self._blocked: list[tuple[Callable[[], bool], _Running]] = []

    def start(self, operation: Operation[T], done: Callable[[T], None]) -> None:
        """Begin an operation, and end it if it need not wait; `done` is given its result.

        Raises what it raises before it waits for the first time. What it raises later is the loop's
        to report, and `done` is not called.
        """
        self.count += 1
        self._go_on(_Running(operation, done), None, None)

    def _go_on(self, one: _Running, result: object, error: Exception | None) -> None:
        """Let an operation go on until it waits again."""
        try:
            step = one.operation.throw(error) if error else one.operation.send(result)
            while isinstance(step, Turn) and self._has_turn(one, step.key):
                step = one.operation.send(None)
        except StopIteration as end:
            self._end(one)
            one.done(end.value)
        except BaseException:
            self._end(one)
            raise
        else:
            if isinstance(step, OnFiles):
                self._threads.call(step.function, partial(self._go_on, one))
            elif isinstance(step, Until):
                self._blocked.append((step.condition, one))
        finally:
            self._unblock()

    def _unblock(self) -> None:
        """Let those go on who wait for what is true now."""
        blocked, self._blocked = self._blocked, []
        for condition, one in blocked:
            if condition():
                self._loop.call_soon(self._go_on, one, None, None)
            else:
                self._blocked.append((condition, one))

    def _has_turn(self, one: _Running, key: Key) -> bool:
        assert one.key is None, "one turn for one operation"
        one.key = key
        waiting = self._turns.setdefault(key, deque())
        waiting.append(one)
        return waiting[0] is one

    def _end(self, one: _Running) -> None:
        self.count -= 1
        if one.key is not None:
            waiting = self._turns[one.key]
            assert waiting.popleft() is one
            if waiting:
                self._loop.call_soon(self._go_on, waiting[0], None, None)
            else:
                del self._turns[one.key]
        if not self.count:
            self._loop.call_soon(self._look_whether_settled)

    def _look_whether_settled(self) -> None:
        if not self.count:
            self._settled()

    def end_threads(self) -> None:
        """End all threads, when no operation is under way; they come back when they are needed.

        Raises OSError when the process still has more threads after that than it began with.
        """
        assert not self.count
        self._threads.end()
        end_s = time.monotonic() + _THREADS_END_LIMIT_S
        # Not join(): a thread that was joined may still share the table of descriptors.
        while tasks() - self._others:
            if time.monotonic() > end_s:
                raise OSError(errno.EBUSY, "a thread does not end")
            time.sleep(_LOOK_AGAIN_S)


def tasks() -> set[str]:
    """Return the kernel's numbers of this process's threads."""
    return set(os.listdir("/proc/self/task"))


class _Threads:
    """A few threads, and more when calls wait for them. Counted in the loop's thread only.

    Calls that take long are many only if a file system hangs or is slow. While none comes back,
    there is no limit to the threads: each call may be the one that can be answered.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[tuple[Callable[[], object], _Outcome] | None]
        self._jobs = queue.SimpleQueue()
        self._thread_count = 0
        self._call_count = 0
        self._back_count = 0
        self._look: asyncio.TimerHandle | None = None

    def call(self, function: Callable[[], object], outcome: _Outcome) -> None:
        """Call a function in a thread; then give its result, or its error, to the loop's."""
        if self._call_count >= self._thread_count < _IDLE_MAX and not self._start(1):
            error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self._loop.call_soon(outcome, None, error)
            return
        self._call_count += 1
        self._jobs.put((function, outcome))
        if self._call_count > self._thread_count and self._look is None:
            self._look_later()

    def _look_later(self) -> None:
        self._look = self._loop.call_later(_PATIENCE_S, self._look_whether_enough, self._back_count)

    def _look_whether_enough(self, back_count: int) -> None:
        """Start more threads when calls have waited for one."""
        self._look = None
        waiting = self._call_count - self._thread_count
        if waiting <= 0:
            return
        is_moving = self._back_count > back_count
        most = max(0, _MOVING_MAX - self._thread_count) if is_moving else waiting
        self._start(min(waiting, self._thread_count, most))
        self._look_later()

    def _start(self, count: int) -> bool:
        """Start threads; False when the system lets us have no thread at all."""
        for _ in range(count):
            try:
                # No daemon that ends waits for a file system.
                threading.Thread(target=self._run, name="files", daemon=True).start()
            except RuntimeError as error:
                _log.error("no_thread error=%s", error)
                break
            self._thread_count += 1
        return self._thread_count > 0

    def _run(self) -> None:
        """Be a thread. Signals are the main thread's: they wake up the loop."""
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        while (job := self._jobs.get()) is not None:
            function, outcome = job
            result, error = None, None
            try:
                result = function()
            except Exception as raised:  # thrown into the operation that asked
                error = raised
            try:
                self._loop.call_soon_threadsafe(self._came_back, outcome, result, error)
            except RuntimeError:  # the loop is closed: the daemon has ended meanwhile
                return

    def _came_back(self, outcome: _Outcome, result: object, error: Exception | None) -> None:
        self._call_count -= 1
        self._back_count += 1
        if self._thread_count > self._call_count + _IDLE_MAX:
            self._thread_count -= 1
            self._jobs.put(None)
        outcome(result, error)

    def end(self) -> None:
        """End all threads that do nothing."""
        while self._thread_count > self._call_count:
            self._thread_count -= 1
            self._jobs.put(None)


_Outcome: TypeAlias = Callable[[object, Exception | None], None]
