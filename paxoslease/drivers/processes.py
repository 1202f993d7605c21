"""Stopping, pausing and continuing a guest's process by signals.

A guest is a process and its group, if it leads one: what it has started is meant too, unless that
made a session of its own. A pidfd makes sure that a number that the kernel has given away again is
never signalled.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

STOP_LIMIT_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.01
_STANDS: Final = frozenset("TtZX")


class _Stat(NamedTuple):
    """What /proc/PID/stat tells: state, group, and when it started in clock ticks since boot."""

    state: str
    group: int
    start: int


def _stat(pid: int, thread: int | None = None) -> _Stat | None:
    """Return the state of a process or thread, None when it is gone."""
    task = "" if thread is None else f"task/{thread}/"
    try:
        text = Path(f"/proc/{pid}/{task}stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return _Stat(fields[0], int(fields[2]), int(fields[19]))


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; -1 when it is gone."""
    found = _stat(pid)
    return -1 if found is None else found.start


class Handle:
    """One process, for ever: after its end nothing done here reaches another one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the process."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def fileno(self) -> int:
        """Return a descriptor that is readable when the process has ended; -1 if it is gone."""
        return self._pidfd

    @property
    def is_gone(self) -> bool:
        """Tell whether it has ended, reaped or not."""
        return self.wait_gone(0)

    def wait_gone(self, limit_s: float) -> bool:
        """Wait for its end; False when it still runs after the limit."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(limit_s * 1000))

    def signal_group(self, number: int) -> None:
        """Signal it, and its group if it leads one. Nothing happens when it is gone."""
        if self.is_gone:
            return
        with suppress(ProcessLookupError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                signal.pidfd_send_signal(self._pidfd, number)

    def others(self) -> list[int]:
        """Return what lives of its group beside it, also after its end, as long as it is a zombie.

        Its number names its group until somebody has waited for it.
        """
        return [pid for pid in self._members() if pid != self.pid and not _has_ended(pid)]

    def kill_others(self) -> None:
        """Kill what lives of its group beside it. As for `others`, before anybody waits for it."""
        for pid in self.others():
            with Handle(pid) as other:
                found = _stat(pid)
                if found is not None and found.group == self.pid:
                    other.kill()

    def kill(self) -> None:
        """Kill it alone. Nothing happens when it is gone."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def wait_stopped(self, limit_s: float = STOP_LIMIT_S) -> bool:
        """Wait until every thread of it and of its group stands still, or is gone.

        A thread that waits for a disk stands still only when the disk has answered.
        """
        end_s = time.monotonic() + limit_s
        while not all(_stands(pid) for pid in self._members()):
            if time.monotonic() > end_s:
                return False
            time.sleep(_LOOK_AGAIN_S)
        return True

    def _members(self) -> list[int]:
        """Return the processes of its group, or it alone."""
        own = _stat(self.pid)
        if own is None or own.group != self.pid:
            return [self.pid]
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]
        return [pid for pid in pids if (found := _stat(pid)) and found.group == self.pid]


def _has_ended(pid: int) -> bool:
    found = _stat(pid)
    return found is None or found.state in "ZX"


def _stands(pid: int) -> bool:
    try:
        threads = [int(entry) for entry in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return True
    states = [_stat(pid, thread) for thread in threads]
    return all(state is None or state.state in _STANDS for state in states)
