"""Processes that use leases: followed by pidfd, signalled, and their killpath started.

A pidfd names one process for ever, so a number that the kernel has given to another process since
is never signalled. Pid 0 and negative pids, which mean groups, are refused (rule M15).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from paxoslease.errors import ConfigError
from paxoslease.protocol import recovery

_log = logging.getLogger(__name__)


class Wishes(NamedTuple):
    """How a process wants to be stopped.

    killpath: a program with its arguments, run once instead of SIGTERM; the pid is appended when
    `killpath_pid` is set. allows_sigterm, allows_sigkill: False restricts recovery to the other.
    """

    killpath: tuple[str, ...] = ()
    killpath_pid: bool = False
    allows_sigterm: bool = True
    allows_sigkill: bool = True


class Agent(Protocol):
    """Somebody with more rights than this process, who does for it what it may not do itself.

    Thread-safe.
    """

    def signal(self, pid: int, pidfd: int, number: int) -> bool:
        """Have a signal sent; False when this process must do it. Never blocks."""

    def run(self, command: Sequence[str]) -> int | None:
        """Have a program run and wait for its end: its exit status, None when it was not asked.

        Raises OSError when it could not be started.
        """


_agents: list[Agent] = []


def act_through(agent: Agent | None) -> None:
    """Have an agent signal processes and run killpaths from now on; None for nobody."""
    _agents[:] = [] if agent is None else [agent]


def send_signal(pid: int, pidfd: int, number: int) -> None:
    """Send a signal to the process behind a pidfd. Raises ProcessLookupError, PermissionError.

    Of what an agent sends nothing is raised: it logs what went wrong.
    """
    if not any(agent.signal(pid, pidfd, number) for agent in _agents):
        signal.pidfd_send_signal(pidfd, number)


def _run(command: list[str]) -> int:
    """Run a program and wait for its end; returns its exit status. Raises OSError."""
    for agent in _agents:
        status = agent.run(command)
        if status is not None:
            return status
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


class Process:
    """A process that must be stopped when its lockspace fails."""

    def __init__(self, handle: int, pid: int, wishes: Wishes) -> None:
        if pid <= 0:
            raise ConfigError("pid", f"{pid} is not one process")
        self.handle = handle
        self.pid = pid
        self.wishes = wishes
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise ConfigError("pid", f"there is no process {pid}") from None

    @property
    def is_alive(self) -> bool:
        """Tell whether the process runs; a zombie does not."""
        return not self.wait(0)

    def signal(self, number: int) -> bool:
        """Send a signal; False when the process is gone, or has ended and is not reaped yet."""
        if not self.is_alive:
            return False
        try:
            send_signal(self.pid, self.pidfd, number)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            _log.error("signal_refused pid=%d signal=%d error=%s", self.pid, number, error)
        else:
            _log.warning("process_signalled pid=%d signal=%d", self.pid, number)
        return True

    def run_killpath(self, failed: Callable[[], None]) -> bool:
        """Start the killpath program without waiting for it; `failed` is called if it does not.

        False when there is none, or the system gives this process no thread more.

        On a thread of its own: loading a program can take as long as the disk that it lies on.
        """
        command = [*self.wishes.killpath, *([str(self.pid)] if self.wishes.killpath_pid else [])]
        if not command:
            return False

        def run() -> None:
            try:
                status = _run(command)
            except OSError as error:
                _log.error(
                    "killpath_failed pid=%d program=%s error=%s", self.pid, command[0], error
                )
                failed()
            else:
                _log.warning("killpath_ended pid=%d status=%d", self.pid, status)

        try:
            threading.Thread(target=run, name="paxoslease-killpath", daemon=True).start()
        except RuntimeError as error:
            _log.error("killpath_failed pid=%d program=%s error=%s", self.pid, command[0], error)
            return False
        _log.warning("killpath_started pid=%d program=%s", self.pid, command[0])
        return True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the process has ended; False at the time-out."""
        if self.pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def close(self) -> None:
        """Stop following the process."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


P = TypeVar("P", bound=Process)


def as_registered(process: Process) -> recovery.Process:
    """Return what a recovery has to know of a process."""
    wishes = process.wishes
    return recovery.Process(
        process.handle,
        recovery.Killpath.READY if wishes.killpath else recovery.Killpath.NONE,
        wishes.allows_sigterm,
        wishes.allows_sigkill,
    )


class Processes:
    """The processes of one lockspace, by handle. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_handle: dict[int, Process] = {}
        self._next = 1

    def add(self, pid: int, wishes: Wishes) -> Process:
        """Follow a process. Raises ConfigError when there is none of that number."""
        return self.follow(lambda handle: Process(handle, pid, wishes))

    def follow(self, make: Callable[[int], P]) -> P:
        """Follow what is made with the handle it gets. Raises what `make` raises."""
        with self._lock:
            process = make(self._next)
            self._by_handle[process.handle] = process
            self._next += 1
        return process

    def remove(self, process: Process) -> None:
        """Stop following a process; its descriptor is closed by whoever watches it."""
        with self._lock:
            self._by_handle.pop(process.handle, None)

    def get(self, handle: int) -> Process | None:
        """Return the process of a handle, None when it is not followed any more."""
        with self._lock:
            return self._by_handle.get(handle)

    def alive(self) -> list[Process]:
        """Return those that still run."""
        with self._lock:
            processes = list(self._by_handle.values())
        return [process for process in processes if process.is_alive]
