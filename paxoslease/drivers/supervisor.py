"""Watch over a guest that runs under its locks, and act when they are lost.

`Supervisor` is for one life of a guest: from the moment when its locks have been acquired until its
process has ended. What can happen to it:

    RUNS      its locks are held; signals are passed on to it
    STOPS     its locks are lost, it was sent SIGTERM, and gets SIGKILL when its time is over
    PAUSED    its locks are lost and released, it stands still by SIGSTOP; it goes on only after its
              locks have been acquired again in the version that they had

Pausing and stopping is done by signals only, for QEMU too: nobody speaks to its monitor, so the
guest's kernel does not notice, and its clock stands. A process that has left the process group of
the guest's program is not reached: the program should be the guest, not a script that starts it.

Source: spec/lock-drivers.md 13 and 3.2.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from enum import Enum
from typing import Final

from paxoslease.drivers.base import Driver, FailureAction, Resource, Watch
from paxoslease.drivers.process import OwnerProcess
from paxoslease.drivers.processes import Handle
from paxoslease.errors import PaxosleaseError

STOP_AFTER_S: Final = 30.0
_ASK_TO_END: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class _Phase(Enum):
    RUNS = "runs"
    STOPS = "stops"
    PAUSED = "paused"


class Supervisor:
    """Watches over one life of a guest.

    action: what to do when a lock is lost; DEFAULT is POWEROFF here. stop_after_s: how long the
    guest may take to end after SIGTERM. tell: is given a sentence when something happens.

    lost: why the locks were lost for good, empty while they were not; read it after `run`.
    may_be_left: whether a resume has left locks that the guest's own end does not free.
    """

    def __init__(
        self,
        driver: Driver,
        process: OwnerProcess,
        resources: Sequence[Resource],
        watch: Watch | None,
        *,
        action: FailureAction = FailureAction.DEFAULT,
        stop_after_s: float = STOP_AFTER_S,
        tell: Callable[[str], None],
    ) -> None:
        self.lost = ""
        self.may_be_left = False
        # Versions do not change while locks are held, so this is the state at any later loss.
        self._state = driver.inquire(process.owner)
        self._driver = driver
        self._process = process
        self._owner = process.owner
        self._resources = tuple(resources)
        self._watch = watch
        self._action = action
        self._stop_after_s = stop_after_s
        self._tell = tell
        self._phase = _Phase.RUNS
        self._ignores = False
        self._kill_at_s: float | None = None
        self._resume_wanted = False
        self._awake, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._guest = Handle(self._owner.pid)

    def run(self) -> int:
        """Wait for the guest's end; returns its status as subprocess does."""
        with ExitStack() as stack:
            stack.enter_context(self._guest)
            stack.callback(self._close_pipe)
            selector = stack.enter_context(selectors.DefaultSelector())
            # A guest that has ended already was reaped by nobody yet, so its handle is good.
            selector.register(self._guest.fileno(), selectors.EVENT_READ)
            selector.register(self._awake, selectors.EVENT_READ)
            if self._watch is not None:
                selector.register(self._watch, selectors.EVENT_READ)
            while not self._guest.is_gone:
                selector.select(self._limit_s())
                self._step()
            self._look()
            self._end_of_group()
        return self._process.popen.wait()

    def _end_of_group(self) -> None:
        """Deal with what the guest has started and left behind; nobody has waited for it yet."""
        others = self._guest.others()
        if not others:
            return
        if self.lost:
            self._guest.kill_others()
            return
        self.may_be_left = False
        pids = ", ".join(str(pid) for pid in others)
        self._tell(f"what it has started goes on, with its locks and unwatched: {pids}")

    def send_signal(self, sig: int) -> None:
        """Pass a signal on to the guest; a paused one must not run, not even to end itself.

        What does not ask it to end is dropped then. May be called by a signal.
        """
        if self._phase is not _Phase.PAUSED:
            self._process.popen.send_signal(sig)
        elif sig in _ASK_TO_END:
            self._guest.signal_group(signal.SIGKILL)

    def resume(self) -> None:
        """Let a paused guest go on, when its locks are to be had; may be called by a signal."""
        self._resume_wanted = True
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake < 0:
            return  # it has ended
        with suppress(BlockingIOError):  # full: it will wake up in any case
            os.write(self._wake, b"\0")

    def _close_pipe(self) -> None:
        # A signal that comes now finds no descriptor instead of somebody else's.
        ends = (self._wake, self._awake)
        self._wake = self._awake = -1
        for end in ends:
            os.close(end)

    def _limit_s(self) -> float | None:
        """Return after how many seconds to look although nothing was reported."""
        waits = [] if self._watch is None else [self._watch.ask_again_s]
        if self._kill_at_s is not None:
            waits.append(max(0.0, self._kill_at_s - time.monotonic()))
        return min((one for one in waits if one is not None), default=None)

    def _step(self) -> None:
        with suppress(BlockingIOError):  # it was something else that happened
            os.read(self._awake, 64)
        self._look()
        if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
            self._kill_at_s = None
            self._tell(f"it has not ended within {self._stop_after_s:g} s and is killed")
            self._guest.signal_group(signal.SIGKILL)
        wanted, self._resume_wanted = self._resume_wanted, False
        if wanted and self._phase is _Phase.PAUSED:
            self._try_to_resume()

    def _look(self) -> None:
        """Ask the watch, and act on what it says for the first time."""
        if self._watch is None:
            return
        reason = self._watch.loss(self._owner)
        if not reason or self._phase is not _Phase.RUNS or self._ignores:
            return
        if self._action is FailureAction.IGNORE:
            self._ignores = True
            self._tell(f"{reason}; it goes on without locks, as was wanted")
            return
        self.lost = reason
        if self._guest.is_gone:
            return
        if self._action is FailureAction.PAUSE:
            self._pause(reason)
        else:
            self._stop(reason)

    def _stop(self, reason: str) -> None:
        self._phase = _Phase.STOPS
        self._tell(f"{reason}; it is stopped")
        self._guest.signal_group(signal.SIGTERM)
        self._kill_at_s = time.monotonic() + self._stop_after_s

    def _pause(self, reason: str) -> None:
        self._guest.signal_group(signal.SIGSTOP)
        if not self._guest.wait_stopped():
            self._phase = _Phase.STOPS
            self._tell(f"{reason}; it cannot be paused and is killed")
            self._guest.signal_group(signal.SIGKILL)
            return
        self._phase = _Phase.PAUSED
        self._tell(
            f"{reason}; it is paused (process {self._owner.pid} is stopped). "
            f"`kill -CONT {os.getpid()}` resumes it when its locks are to be had again"
        )
        try:
            self._driver.release(self._owner, self._resources, want_state=False)
        except PaxosleaseError as error:
            self._tell(f"what may be left of its locks is not released: {error}")

    def _try_to_resume(self) -> None:
        try:
            self._driver.prepare()
            if self._watch is not None:
                self._watch.forget()
            # What an earlier try has left would be in our own way.
            self._driver.release(self._owner, self._resources, want_state=False)
            self._driver.acquire(
                self._owner, self._resources, state=self._state, action=self._action
            )
            self.may_be_left = True
            self._state = self._driver.inquire(self._owner)
        except PaxosleaseError as error:
            self._tell(f"it stays paused: {error}")
            return
        self.lost = ""
        self._phase = _Phase.RUNS
        self._tell("it has its locks again and goes on")
        self._guest.signal_group(signal.SIGCONT)
