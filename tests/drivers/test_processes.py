"""Guests are signalled with all that they have started, and never anybody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from paxoslease.drivers import killpath, processes
from paxoslease.drivers.base import FailureAction, Owner
from paxoslease.errors import ConfigError
from tests.cli.tool import await_that

PARENT = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); "
PARENT += "sys.stdin.read()"


@contextmanager
def family(*, leads: bool) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Give a process that has started another one, and that one's pid."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0 if leads else None,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            yield parent, child
        finally:
            os.kill(child, signal.SIGKILL)
            parent.kill()


def state(pid: int) -> str:
    """Return the state of a process, as ps shows it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_group_is_stopped_as_a_whole() -> None:
    """A guest that leads its group stands still with what it has started, and goes on with it."""
    with family(leads=True) as (parent, child), processes.Handle(parent.pid) as guest:
        guest.signal_group(signal.SIGSTOP)
        assert guest.wait_stopped()
        assert (state(parent.pid), state(child)) == ("T", "T")
        os.kill(child, signal.SIGCONT)
        await_that(lambda: state(child) != "T", "the child goes on")
        assert not guest.wait_stopped(0.05)
        guest.signal_group(signal.SIGCONT)


def test_a_process_in_another_group_is_signalled_alone() -> None:
    """Nobody's group is signalled but the guest's own."""
    with family(leads=False) as (parent, child), processes.Handle(parent.pid) as guest:
        guest.signal_group(signal.SIGSTOP)
        assert guest.wait_stopped()
        assert state(parent.pid) == "T"
        assert state(child) in "RS"


def test_what_has_ended_is_not_signalled() -> None:
    """A handle of a process that is gone reaches nobody."""
    with subprocess.Popen(["true"]) as process, processes.Handle(process.pid) as guest:
        assert guest.wait_gone(10)
        guest.signal_group(signal.SIGTERM)
        assert guest.wait_stopped()
    with processes.Handle(process.pid) as gone:
        assert gone.is_gone
        gone.signal_group(signal.SIGTERM)
    assert processes.start_time(process.pid) == -1


def owner(pid: int) -> Owner:
    """Return an owner."""
    return Owner(uuid4(), "guest", 1, pid, notify="paxoslease-0123456789abcdef")


def test_the_killpath_fits_into_the_protocol() -> None:
    """Program and arguments are shorter than 128 bytes, and few enough words."""
    program, words = killpath.command(owner(os.getpid()), FailureAction.POWEROFF)
    assert program == os.fsencode(sys.executable)
    assert len(words) < 128
    assert len(words.split()) <= 7
    start = processes.start_time(os.getpid())
    assert words.endswith(f"poweroff {os.getpid()}@{start} paxoslease-0123456789abcdef".encode())


def test_a_killpath_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol would cut it silently, and the daemon would run something else."""
    monkeypatch.setattr(sys, "executable", "/" + "x" * 130)
    with pytest.raises(ConfigError, match="longer than"):
        killpath.command(owner(os.getpid()), FailureAction.PAUSE)


def run_killpath(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the killpath as the daemon does."""
    command = [sys.executable, "-I", "-m", "paxoslease.drivers.killpath", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_killpath_of_another_process_does_nothing() -> None:
    """A number that belongs to another process by now is left alone."""
    with subprocess.Popen(["sleep", "60"]) as process:
        start = processes.start_time(process.pid)
        assert run_killpath("poweroff", f"{process.pid}@{start - 1}", "-").returncode == 0
        assert process.poll() is None
        assert run_killpath("poweroff", f"{process.pid}@{start}", "-").returncode == 0
        assert process.wait(20) == -signal.SIGTERM


def test_the_killpath_stops_even_if_nobody_can_be_told_or_asked(tmp_path: Path) -> None:
    """Without a daemon the leases stay, and the process stands still all the same."""
    with subprocess.Popen(["sleep", "60"]) as process:
        start = processes.start_time(process.pid)
        words = ["pause", f"{process.pid}@{start}", "paxoslease-nobody"]
        done = subprocess.run(
            [sys.executable, "-m", "paxoslease.drivers.killpath", *words],
            env={**os.environ, "SANLOCK_RUN_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1
        assert "are not released" in done.stderr
        assert "is not told" in done.stderr
        assert state(process.pid) == "T"
        process.kill()


@pytest.mark.parametrize("words", [(), ("poweroff", "x@1", "-"), ("dance", "1@1", "-")])
def test_a_killpath_that_is_no_command(words: tuple[str, ...]) -> None:
    """What cannot be understood does nothing."""
    done = run_killpath(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")
