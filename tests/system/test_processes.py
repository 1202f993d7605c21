"""Processes that use leases: named by pidfd, stopped by signal or program, never a group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from paxoslease import ConfigError, LockspaceFailed
from paxoslease.engine.processes import Process, Processes, Wishes
from tests.system.conftest import Pair
from tests.system.rig import join, make_disk, wait_for

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.mark.parametrize("pid", [0, -1, -1000])
def test_groups_are_refused(pid: int) -> None:
    """Pid 0 and negative ones, which mean groups of processes, are never followed (M15)."""
    with pytest.raises(ConfigError):
        Process(1, pid, Wishes())


def test_ended_process_is_not_signalled() -> None:
    """A process that has ended, reaped or not, gets no signal: the answer says that it is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = Processes().add(child.pid, Wishes())
        assert process.wait(20)
        assert not process.is_alive
        assert not process.signal(signal.SIGKILL)
    assert not process.signal(signal.SIGKILL)
    process.close()
    with pytest.raises(ConfigError):
        Process(1, child.pid, Wishes())


def test_killpath_runs_with_the_pid(tmp_path: Path) -> None:
    """The killpath program is started with its arguments and, if wanted, the pid."""
    note = tmp_path / "note"
    script = f"import sys; open({str(note)!r}, 'w').write(sys.argv[1])"
    with subprocess.Popen(SLEEPER) as child:
        wishes = Wishes((sys.executable, "-c", script), killpath_pid=True)
        process = Process(1, child.pid, wishes)
        failed = threading.Event()
        assert process.run_killpath(failed.set)
        wait_for(lambda: note.exists() and note.read_text() == str(child.pid))
        assert not failed.is_set()
        child.kill()
        process.close()


def test_killpath_that_cannot_start_is_told(tmp_path: Path) -> None:
    """A killpath program that is not there is reported, so that SIGTERM can be sent instead."""
    with subprocess.Popen(SLEEPER) as child:
        process = Process(1, child.pid, Wishes((str(tmp_path / "missing"),)))
        failed = threading.Event()
        process.run_killpath(failed.set)
        assert failed.wait(10)
        assert not Process(2, child.pid, Wishes()).run_killpath(failed.set)
        child.kill()
        process.close()


def test_killpath_without_a_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the recovery goes on: with a signal instead."""

    def refused(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("paxoslease.engine.processes.threading.Thread.start", refused)
    process = Process(1, os.getpid(), Wishes(killpath=("/bin/true",)))
    try:
        assert not process.run_killpath(lambda: None)
    finally:
        process.close()


def test_leaving_kills_what_is_guarded_before_it_releases(pair: Pair) -> None:
    """Leaving stops guarded processes first: no other host finds the lease free while they run."""
    with join(pair.disk, 3) as space, subprocess.Popen(SLEEPER) as child:
        lease = pair.disk.lease(space, 0)
        guarded = space.guard(child)
        other = space.guard(child.pid)
        assert guarded.is_alive
        other.close()
        assert child.poll() is None
        space.leave()
        assert child.wait(0) == -signal.SIGKILL
        assert not guarded.is_alive
        assert lease.lost.is_set()
        with pytest.raises(LockspaceFailed):
            space.guard(child.pid if child.poll() is None else 1)
    pair.disk.lease(pair.one, 0).release()


def test_process_that_is_not_guarded_any_more_lives_on(pair: Pair) -> None:
    """A process whose guard was closed is left alone when the lockspace is left."""
    with subprocess.Popen(SLEEPER) as child:
        with join(pair.disk, 4) as space, space.guard(child):
            assert child.poll() is None
        assert child.poll() is None
        child.kill()


def test_leaving_does_not_wait_for_leases_that_it_releases(tmp_path: Path) -> None:
    """Who says that nobody uses it any more, while leases are still held, does not hold it up."""
    disk = make_disk(tmp_path / "disk")
    space = join(disk, 1)
    membership = space._membership
    disk.lease(space, 0)
    with subprocess.Popen(SLEEPER) as child:
        process = membership.guard(child.pid, Wishes())
        membership.kill_processes()
        membership.set_used(False)
        child.wait(20)
        membership.unguard(process)
        membership.leave(20)
