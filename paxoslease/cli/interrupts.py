"""SIGINT, SIGTERM and SIGHUP: where they may end a command, and where they must not.

By default a signal raises Interrupted wherever the command is. A command that is a member of a
lockspace cannot live with that: between two of its instructions a lease may be held that nobody
would release. It runs `deferred`, and is `interruptible` only where it waits for something that
cleans up after itself; a signal that comes a moment too early waits for that place. Once a command
runs under the leases, signals go to it.

Only the first signal counts: what follows it (release, leave) takes as long as the disk needs. An
interruptible block that cleans up after it is ended by a second one.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType
from typing import Protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_AGAIN_S = 0.02
# By module and function: importing the engine for it would cost every command a tenth of a second.
_WAITS = {("threading", "wait"), ("paxoslease.engine.operation", "exception")}


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; `exit_code` is what a shell expects of that."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """Return 128 and the signal's number."""
        return 128 + self.number


class TakesSignals(Protocol):
    """What signals are passed on to, such as subprocess.Popen."""

    def send_signal(self, sig: int) -> None:
        """Take a signal."""
        ...


class _Where(Enum):
    ANYWHERE = 1
    WAITING = 2
    NOWHERE = 3


class Interrupts:
    """The signals of one command. Everything here belongs to the main thread."""

    def __init__(self) -> None:
        self._where = _Where.ANYWHERE
        self._pending = 0
        self._raised = False
        self._child: TakesSignals | None = None

    @contextmanager
    def caught(self, *, ends_process: bool = False) -> Iterator[None]:
        """Handle the signals in this block; those that the caller ignores stay ignored.

        ends_process: the process ends with its exit code after the block, so signals are ignored
        from there on.
        """
        numbers = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in numbers}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._look_again)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if ends_process else handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let no signal end this block, but for the interruptible blocks in it."""
        with self._set(_Where.NOWHERE):
            yield

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end this block, where it waits for another thread."""
        with self._set(_Where.WAITING):
            self._arm()
            yield

    @contextmanager
    def _set(self, where: _Where) -> Iterator[None]:
        before, self._where = self._where, where
        try:
            yield
        finally:
            self._where = before

    def check(self) -> None:
        """Raise Interrupted when a signal came that has not ended anything yet."""
        if self._pending and not self._raised:
            self._raised = True
            raise Interrupted(self._pending)

    @contextmanager
    def forwarded(self, child: TakesSignals) -> Iterator[None]:
        """Pass signals on to a child in this block, the one before it too."""
        self._child = child
        if self._pending:
            child.send_signal(self._pending)
        try:
            yield
        finally:
            self._child = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._child is not None:
            self._child.send_signal(number)
            return
        self._pending = self._pending or number
        self._deliver(frame)

    def _look_again(self, _number: int, frame: FrameType | None) -> None:
        if self._pending and not self._raised and self._child is None:
            self._deliver(frame)

    def _deliver(self, frame: FrameType | None) -> None:
        if self._where is _Where.NOWHERE or (self._raised and self._where is _Where.ANYWHERE):
            return
        if self._where is _Where.WAITING and not _waits(frame):
            self._arm()
            return
        self._raised = True
        raise Interrupted(self._pending)

    def _arm(self) -> None:
        if self._pending and not self._raised:
            signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S)


def _waits(frame: FrameType | None) -> bool:
    """Tell whether a frame waits for another thread."""
    if frame is None:
        return False
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) in _WAITS


interrupts = Interrupts()
