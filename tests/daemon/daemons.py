"""Start either daemon, the real sanlock or ours, in the same way: the kind is all that differs.

Both run unprivileged (no change of user), without a watchdog, without memory locks, in a run
directory of their own, and log to stderr only, which is kept. Nothing of paxoslease is imported
here: what speaks to the daemons in these tests must not share code with what is tested.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import unittest
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from tests.compat.peer import SOCKET_PATH_MAX, PeerBroken, require_sanlock, wait_until

Kind = Literal["real", "ours"]

REPOSITORY: Final = Path(__file__).parents[2]
SANLOCK: Final = shutil.which("sanlock") or "/usr/sbin/sanlock"
OUR_SANLOCK: Final = str(Path(sys.executable).with_name("paxoslease-sanlock"))
PROGRAMS: Final[dict[Kind, str]] = {"real": SANLOCK, "ours": OUR_SANLOCK}
QUIET: Final = ("-D", "-w", "0", "-h", "0", "-l", "0", "-L", "-1", "-S", "-1")


class OursMissing(unittest.SkipTest):
    """The console script is not installed beside the Python that runs the tests."""


def require(kind: Kind) -> None:
    """Raise SkipTest when the program of a kind is not installed."""
    if kind == "real":
        require_sanlock()
    elif not Path(OUR_SANLOCK).exists():
        raise OursMissing(f"{OUR_SANLOCK} is not installed")


class Daemon:
    """One daemon of a kind, started in `run_dir` under a host name; a context manager.

    `options` go to the command line, `env` into its environment, `prefix` is the command that
    executes it. Leaving the context kills it.
    """

    def __init__(
        self,
        kind: Kind,
        run_dir: Path,
        name: str,
        options: Sequence[str] = (),
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        require(kind)
        self.kind = kind
        self.name = name
        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        self.socket_path = run_dir / "sanlock.sock"
        if len(os.fsencode(self.socket_path)) > SOCKET_PATH_MAX:
            raise ValueError(f"{self.socket_path} is too long for a socket path")
        self.log_path = run_dir / "stderr"
        self.env = {
            **os.environ,
            "SANLOCK_PRIVILEGED": "0",
            "SANLOCK_RUN_DIR": str(run_dir),
            **(env or {}),
        }
        self.prefix = prefix
        self.command = [*prefix, PROGRAMS[kind], "daemon", *QUIET]
        self.command += ["-U", "root", "-G", "root", "-e", name, *options]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            # A session of its own: 3.8.5 may signal its whole process group (spec/algorithms 15.6).
            process = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

        def is_ready() -> bool:
            if process.poll() is not None:
                raise PeerBroken(f"the daemon ended with {process.returncode}: {self.stderr()}")
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(self.socket_path)) == 0

        try:
            wait_until(is_ready, 20.0, f"the {self.kind} daemon {self.name} listens")
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    @property
    def pid(self) -> int:
        """Return the pid of the daemon."""
        return self.process.pid

    def children(self) -> list[int]:
        """Return the processes that the daemon has started."""
        try:
            tasks = list(Path(f"/proc/{self.pid}/task").iterdir())
            return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        except FileNotFoundError:
            return []  # it is gone

    def stderr(self) -> str:
        """Return what the daemon has written to stderr, also after its end."""
        return self.log_path.read_text(errors="replace")

    def start_again(self) -> None:
        """Start it anew after its end."""
        self.process = self._start()

    def wait(self, limit_s: float = 30.0) -> int:
        """Wait for its end and return the exit status."""
        try:
            return self.process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise PeerBroken(f"the daemon {self.name} did not end within {limit_s} s") from None

    def kill(self) -> None:
        """Kill the daemon and its helpers with SIGKILL: nothing is released on disk."""
        helpers = self.children()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in helpers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it noticed by itself that the daemon is gone

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
