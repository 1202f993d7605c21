"""A protocol that is being run, and what its effects mean in the place where it runs."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from paxoslease.disk.direct import DirectFile
from paxoslease.errors import LockspaceFailed, PaxosleaseError
from paxoslease.protocol.effects import (
    UNSEEN,
    HostSeen,
    PetWatchdog,
    Protocol,
    RunKillpath,
    Signal,
    Standing,
)
from paxoslease.timing import SECOND_US

if TYPE_CHECKING:
    from paxoslease.engine.runner import Runner

T = TypeVar("T")
_log = logging.getLogger(__name__)


def now_us() -> int:
    """Return the time of the effect Now: microseconds of CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def microseconds(duration_s: float | None) -> int | None:
    """Return a duration in us; None stays None (no limit)."""
    return None if duration_s is None else int(duration_s * SECOND_US)


class Context:
    """What the effects that are not about disks and time mean for one operation.

    host.py has one per membership; this one is for operations without any (formatting, reading as
    a bystander). Called on a runner's thread; must not block.
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


class StillArmed(Context):
    """The context in which processes are killed before a lockspace is left: it stays armed."""

    def __init__(self, membership: Context) -> None:
        self.lockspace = membership.lockspace
        self.signal = membership.signal  # type: ignore[method-assign]
        self.killpath = membership.killpath  # type: ignore[method-assign]

    def pet(self, effect: PetWatchdog) -> None:
        return


BYSTANDER: Final = Context()


class Operation(Generic[T]):
    """A protocol that is being run; its result can be waited for by any number of threads.

    Everything but `cancel`, `tell`, `done`, `result`, `exception` and `on_end` belongs to the
    runner's thread. Its end is told once: early, when what it does cannot be got through to the
    disk for now or when its lockspace fails, otherwise when the protocol returns.
    """

    __slots__ = (
        "_callbacks",
        "_error",
        "_gate",
        "_result",
        "_untold",
        "cancellable",
        "cancelled",
        "context",
        "done",
        "files",
        "gathered",
        "is_impatient",
        "is_patient",
        "landed",
        "missing",
        "protocol",
        "runner",
        "sleeping",
    )

    def __init__(
        self,
        runner: Runner,
        protocol: Protocol[T],
        files: Mapping[str, DirectFile],
        context: Context = BYSTANDER,
    ) -> None:
        self.runner = runner
        self.protocol = protocol
        self.files = files
        self.context = context
        self.done = False
        self.cancelled = False
        self.cancellable = False
        self.is_patient = False  # its caller wants to know the end only, however long it takes
        self.is_impatient = False  # its caller is told of a time-out, it goes on by itself
        self.sleeping = 0  # the number of the timer that would wake it
        self.gathered: list[Any] | None = None
        self.missing = 0
        self.landed: dict[int, PaxosleaseError | None] | None = None
        self._result: T | None = None
        self._error: BaseException | None = None
        self._callbacks: deque[Callable[[Operation[T]], None]] = deque()
        self._untold = [True]
        self._gate = threading.Lock()
        self._gate.acquire()

    def cancel(self) -> None:
        """Ask the protocol to end at its next cancellable sleep. Any thread may call it."""
        self.runner.post(lambda: self.runner.cancel_now(self))

    def tell(self, result: T | None, error: BaseException | None) -> None:
        """Tell how it ended; only the first time counts. Any thread may call it."""
        try:
            self._untold.pop()
        except IndexError:
            return
        self._result = result
        self._error = error
        self.done = True
        self._gate.release()
        self._call_back()

    def exception(self, timeout_s: float | None = None) -> BaseException | None:
        """Wait for the end and return the error, None if there was none. Raises TimeoutError."""
        if not self.done:
            limit_s = -1.0 if timeout_s is None else min(max(0.0, timeout_s), threading.TIMEOUT_MAX)
            if not self._gate.acquire(timeout=limit_s):
                raise TimeoutError
            self._gate.release()
        return self._error

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the result. Raises the protocol's error, TimeoutError."""
        error = self.exception(timeout_s)
        if error is not None:
            # Each waiter gets a traceback of its own, not the sum of all.
            raise error.with_traceback(None)
        return self._result  # type: ignore[return-value]

    def on_end(self, callback: Callable[[Operation[T]], None]) -> None:
        """Have `callback` called once at the end, on the runner's thread or, if over, at once."""
        self._callbacks.append(callback)
        if self.done:
            self._call_back()

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:  # the other thread was faster
                return
            try:
                callback(self)
            except Exception:
                _log.critical("callback_failed lockspace=%r", self.context.lockspace, exc_info=True)
