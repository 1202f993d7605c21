"""`client command`: a program that holds leases through the socket that it inherits.

Exit codes are those of the original; the lines are ours, since the original loses them.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.compat.peer import wait_until
from tests.daemon.daemons import PROGRAMS, Daemon, Kind, require

pytestmark = pytest.mark.peer

LIMIT_S: Final = 30.0
PROGRAM_KINDS: Final[tuple[Kind, Kind]] = ("real", "ours")


class Host:
    """A daemon of a kind, joined to a lockspace with two resources."""

    def __init__(self, daemon: Daemon, file: Path) -> None:
        self.daemon = daemon
        self.file = file
        self.lease = ["-r", f"L:R:{file}:{1 << 20}"]
        self.client("real", "init", "-s", f"L:1:{file}:0", "-o", "1")
        self.client("real", "init", *self.lease)
        self.client("real", "add_lockspace", "-s", f"L:1:{file}:0", "-o", "1")

    def client(self, kind: Kind, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a client's action to its end."""
        return subprocess.run(
            [PROGRAMS[kind], "client", *words],
            env=self.daemon.env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def start(self, kind: Kind, *words: str) -> subprocess.Popen[str]:
        """Start `client command`; its lines can be read."""
        command = [PROGRAMS[kind], "client", "command", *words]
        return subprocess.Popen(command, env=self.daemon.env, stdout=subprocess.PIPE, text=True)


@pytest.fixture(params=["real", "ours"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    """Run a daemon of each kind."""
    require("real")
    require("ours")
    file = tmp_path / "leases"
    with file.open("wb") as opened:
        opened.truncate(4 << 20)
    with Daemon(request.param, tmp_path / "run", "host1") as daemon:
        yield Host(daemon, file)


def lines(fd: int, result: int = 0) -> str:
    """Return what ours prints before it becomes the program."""
    return f"register\nregister done {fd}\nacquire fd {fd}\nacquire done {result}\n"


def test_the_program_holds_the_lease(host: Host) -> None:
    """The program runs under the same pid, with the socket, and holds the lease until it ends."""
    with host.start("ours", *host.lease, "-c", "/bin/cat", "/dev/zero") as running:
        try:
            assert running.stdout is not None
            said = "".join(running.stdout.readline() for _ in range(4))
            fd = int(said.splitlines()[1].split()[-1])
            assert said == lines(fd)
            held = host.client("ours", "inquire", "-p", str(running.pid)).stdout
            assert held.splitlines()[1] == "inquire done 0 res_count 1"
            assert os.readlink(f"/proc/{running.pid}/fd/{fd}").startswith("socket:")
        finally:
            running.kill()
    gone = f"inquire pid {running.pid}\ninquire done -3 res_count 0\n"
    wait_until(
        lambda: host.client("ours", "inquire", "-p", str(running.pid)).stdout == gone,
        LIMIT_S,
        "the daemon sees the end of the program",
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-c", "/bin/sh", "-c", "exit 7"], 7),
        (["-c", "/bin/true", "-x", "--y"], 0),
        (["-c", "/nope"], 0),
        (["-c", "true"], 0),
        (["-c"], 1),
    ],
)
def test_exit_codes(host: Host, words: Sequence[str], code: int) -> None:
    """The exit code is the program's, and 0 when there is none: as the original's."""
    real = host.client("real", "command", *words)
    assert real.returncode == code
    ours = host.client("ours", "command", *words)
    assert ours.returncode == code
    assert ours.stderr == real.stderr


def test_lease_is_not_to_be_had(host: Host) -> None:
    """Without the lease the program does not run."""
    missing = ["-r", f"L:X:{host.file}:{1 << 20}"]
    for kind in PROGRAM_KINDS:
        refused = host.client(kind, "command", *missing, "-c", "/bin/echo", "ran")
        assert refused.returncode == 1
        assert refused.stdout.endswith("acquire done -227\n")
        assert "ran" not in refused.stdout


def test_without_a_program(host: Host) -> None:
    """Without -c the lease is held until a signal comes."""
    with host.start("ours", *host.lease) as running:
        try:
            assert running.stdout is not None
            assert "".join(running.stdout.readline() for _ in range(4)).endswith("done 0\n")
        finally:
            running.send_signal(signal.SIGTERM)
        assert running.wait(LIMIT_S) == -signal.SIGTERM


def test_signals_of_the_program(host: Host) -> None:
    """The program finds the signals as it would find them in a shell: nothing is ignored."""
    done = host.client("ours", "command", "-c", "/bin/cat", "/proc/self/status")
    ignored = next(line for line in done.stdout.splitlines() if line.startswith("SigIgn"))
    assert int(ignored.split()[1], 16) & 0x1FFF_FFFF_FFFF == _ignored_here()


def _ignored_here() -> int:
    """Return which signals a program started from here finds ignored anyway."""
    done = subprocess.run(
        ["/bin/cat", "/proc/self/status"], capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("SigIgn"))
    return int(line.split()[1], 16)


def test_no_daemon(tmp_path: Path) -> None:
    """Without a daemon it ends with 0, as the original does."""
    require("real")
    require("ours")
    env = {**os.environ, "SANLOCK_RUN_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [PROGRAMS[kind], "client", "command", "-c", "/bin/true"],
            env=env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        for kind in PROGRAM_KINDS
    ]
    assert [one.returncode for one in said] == [0, 0]
    assert said[0].stdout == said[1].stdout == "register\nregister done -2\n"
