"""A host whose daemon is restarted, and its clients, for the tests of restarts."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from paxoslease.client import Connection, DaemonError
from paxoslease.wire.sanlock import Config, Disk, Lockspace, Resource
from tests.compat.peer import wait_until
from tests.daemon.agent import Agent
from tests.daemon.daemons import Daemon

MIB: Final = 1 << 20
SPACE: Final = "LS"
IO_TIMEOUT_S: Final = 1
RESOURCES: Final = 12
STARTED: Final = "sanlock daemon started"


def make_disk(path: Path, daemon: Daemon, io_timeout: int = IO_TIMEOUT_S) -> None:
    """Make a lockspace, and resources behind it: r0, r1 and so on."""
    with path.open("wb") as file:
        file.truncate((RESOURCES + 2) * MIB)
    with Connection(str(daemon.run_dir), timeout_s=60) as connection:
        space = Lockspace(SPACE.encode(), disk=Disk(os.fsencode(path)))
        connection.write_lockspace(space, io_timeout)
        for number in range(RESOURCES):
            place = Disk(os.fsencode(path), (1 + number) * MIB)
            connection.write_resource(Resource(SPACE.encode(), b"r%d" % number, disks=(place,)))


class RestartedHost:
    """A daemon, the lockspace that it has joined, and agents; a context manager."""

    def __init__(
        self,
        directory: Path,
        host_id: int = 1,
        disk: Path | None = None,
        *,
        io_timeout: int = IO_TIMEOUT_S,
        options: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.host_id = host_id
        self.io_timeout = io_timeout
        self.disk = disk or directory / "disk"
        self._stack = ExitStack()
        self.daemon = Daemon("ours", directory / f"h{host_id}", f"host{host_id}", options, env)
        self._stack.callback(self._end)
        self._helpers: list[int] = []  # pidfds: pids are used again soon
        self._note_helpers()

    def __enter__(self) -> RestartedHost:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self.daemon.kill()
        self.kill_helper()
        for pidfd in self._helpers:
            os.close(pidfd)

    def _note_helpers(self) -> None:
        for pid in self.daemon.children():
            with suppress(ProcessLookupError):
                self._helpers.append(os.pidfd_open(pid))

    def kill_helper(self) -> None:
        """Kill the process that keeps what must outlive the daemon."""
        for pidfd in self._helpers:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    @property
    def helper_lives(self) -> bool:
        """Tell whether that process runs."""
        return any(not select.select([pidfd], [], [], 0)[0] for pidfd in self._helpers)

    def format(self) -> None:
        """Make the disk."""
        make_disk(self.disk, self.daemon, self.io_timeout)

    def connection(self) -> Connection:
        """Return a connection that is not registered."""
        return Connection(str(self.daemon.run_dir), timeout_s=60)

    def join(self) -> None:
        """Join the lockspace."""
        with self.connection() as connection:
            connection.add_lockspace(self.space(), self.io_timeout)
            # Otherwise it is left after a crash if nobody holds a lease then.
            connection.set_config(SPACE.encode(), Config.USED)

    def leave(self) -> None:
        """Leave the lockspace."""
        with self.connection() as connection:
            connection.set_config(SPACE.encode(), Config.UNUSED)
            connection.rem_lockspace(self.space())

    def space(self) -> Lockspace:
        """Return the lockspace as a request names it."""
        return Lockspace(SPACE.encode(), self.host_id, disk=Disk(os.fsencode(self.disk)))

    def is_joined(self) -> bool:
        """Tell whether the lockspace is joined."""
        with self.connection() as connection:
            return bool(connection.get_lockspaces())

    def agent(self, *, registers: bool = True) -> Agent:
        """Start a client."""
        agent = Agent(str(self.daemon.run_dir))
        self._stack.callback(agent.end)
        if registers:
            agent("register")
            self.until(lambda: self._is_known(agent.pid), "the agent is registered")
        return agent

    def _is_known(self, pid: int) -> bool:
        try:
            with self.connection() as connection:
                connection.inquire(pid=pid)
        except DaemonError:
            return False
        return True

    def resource(self, number: int, flags: int = 0) -> list[Any]:
        """Return a resource as an agent takes it."""
        return [SPACE, f"r{number}", str(self.disk), (1 + number) * MIB, int(flags)]

    # -- restarts --------------------------------------------------------------------------------

    def starts(self) -> int:
        """Return how often the daemon has started."""
        return self.daemon.stderr().count(STARTED)

    def ask_restart(self) -> None:
        """Ask the daemon to execute its program anew."""
        os.kill(self.daemon.pid, signal.SIGUSR2)

    def exec(self) -> None:
        """Have it executed anew, and wait until it serves again."""
        count = self.starts()
        self.ask_restart()
        self.until(lambda: self.starts() > count, "the daemon is executed anew")
        self.until_served()

    def crash(self) -> None:
        """Kill the daemon with SIGKILL, and nothing else."""
        self.daemon.process.kill()
        self.daemon.process.wait()

    def start(self) -> None:
        """Start a daemon in the place of the one that was killed."""
        self.daemon.start_again()
        self._note_helpers()
        self.until_served()

    def restart(self, how: str) -> None:
        """Restart: exec, or crash."""
        if how == "exec":
            self.exec()
        else:
            self.crash()
            self.start()

    def until_served(self) -> None:
        """Wait until requests are answered."""
        with self.connection() as connection:
            connection.get_lockspaces()

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = 20.0) -> None:
        """Wait for a condition."""
        wait_until(condition, limit_s, what)

    def log_has(self, text: str) -> bool:
        """Tell whether the daemon has logged something."""
        return text in self.daemon.stderr()


def await_end(agent: Agent, limit_s: float = 20.0) -> int:
    """Wait until an agent has ended; returns its exit status."""
    deadline = time.monotonic() + limit_s
    while agent.process.poll() is None:
        assert time.monotonic() < deadline, "the agent lives on"
        time.sleep(0.02)
    status = agent.process.returncode
    assert status is not None
    return status
