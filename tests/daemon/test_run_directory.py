"""The run directory: one daemon in it at a time, and what an earlier one left is no obstacle."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paxoslease.daemon.run_directory import (
    RunDirectory,
    StartFailed,
    open_run_directory,
    path_of_environment,
)
from tests.daemon.daemons import Daemon

UID, GID = os.getuid(), os.getgid()
HOLD = """
import sys
from paxoslease.daemon.run_directory import open_run_directory
directory = open_run_directory(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), is_privileged=False)
directory.lock()
listener = directory.listen()
print("held", flush=True)
sys.stdin.read()
"""
NEED_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it changes owners")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name."""
    path = Path(os.path.realpath("/tmp")) / f"rd{os.getpid()}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def opened(path: Path) -> RunDirectory:
    """Return a run directory of our own user."""
    return open_run_directory(str(path), UID, GID, is_privileged=False)


@contextmanager
def another(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the run directory and listen in it."""
    command = [sys.executable, "-c", HOLD, str(path), str(UID), str(GID)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_it_is_made_with_the_modes_of_the_original(short_path: Path) -> None:
    """Directory 0775, pid file 0644 with the pid, socket 0660, whatever the umask is."""
    mask = os.umask(0o077)
    try:
        directory = opened(short_path / "run")
        directory.lock()
        listener = directory.listen()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(mask)
    with listener:
        assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o775
        assert stat.S_IMODE(os.stat(directory.pid_path).st_mode) == 0o644
        assert stat.S_IMODE(os.stat(directory.socket_path).st_mode) == 0o660
        assert Path(directory.pid_path).read_text() == f"{os.getpid()}\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(directory.socket_path)
    directory.close()


def test_a_second_one_is_refused_and_touches_nothing(short_path: Path) -> None:
    """It fails with the pid of the first, whose pid file and socket stay as they are."""
    path = short_path / "run"
    with another(path) as first:
        before = (path / "sanlock.sock").stat()
        with pytest.raises(StartFailed, match=f"setlk error .* pid {first.pid}$"):
            opened(path).lock()
        assert (path / "sanlock.pid").read_text() == f"{first.pid}\n"
        assert (path / "sanlock.sock").stat() == before
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path / "sanlock.sock"))


def test_what_a_dead_one_left_is_no_obstacle(short_path: Path) -> None:
    """After a kill the pid file and the socket are there, and the next one uses their names."""
    path = short_path / "run"
    with another(path) as first:
        first.kill()
        first.wait()
    (path / "sanlock.pid").write_text("99999999 and more\n")
    directory = opened(path)
    directory.lock()
    with directory.listen(), socket.socket(socket.AF_UNIX) as client:
        client.connect(directory.socket_path)
    assert (path / "sanlock.pid").read_text() == f"{os.getpid()}\n"
    directory.close()
    assert (path / "sanlock.sock").exists()
    assert (path / "sanlock.pid").exists()


def test_the_lock_is_held_until_it_is_closed(short_path: Path) -> None:
    """Another process gets it after `close`, not before."""
    path = short_path / "run"
    directory = opened(path)
    directory.lock()
    command = [sys.executable, "-c", HOLD, str(path), str(UID), str(GID)]
    refused = subprocess.run(command, input="", text=True, capture_output=True)
    assert refused.returncode != 0
    assert f"pid {os.getpid()}" in refused.stderr
    directory.close()
    with another(path):
        pass


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_not_removed(short_path: Path, kind: str) -> None:
    """Something else of the socket's name makes the start fail and stays."""
    path = short_path / "run"
    directory = opened(path)
    target = path / "sanlock.sock"
    if kind == "file":
        target.write_text("mine")
    elif kind == "directory":
        target.mkdir()
    else:
        target.symlink_to(short_path / "elsewhere")
    directory.lock()
    with pytest.raises(StartFailed, match="socket error"):
        directory.listen()
    assert os.path.lexists(target)
    directory.close()


def test_a_link_in_the_place_of_the_pid_file_is_refused(short_path: Path) -> None:
    """The file that it points to is not written."""
    path = short_path / "run"
    directory = opened(path)
    precious = short_path / "precious"
    precious.write_text("mine")
    (path / "sanlock.pid").symlink_to(precious)
    with pytest.raises(StartFailed, match="lockfile open error"):
        directory.lock()
    assert precious.read_text() == "mine"


def test_a_path_that_cannot_be_made_is_said(short_path: Path) -> None:
    """A missing parent, and a file in its place."""
    with pytest.raises(StartFailed, match="cannot be made: No such file"):
        opened(short_path / "a" / "b")
    (short_path / "file").write_text("")
    with pytest.raises(StartFailed, match="is not a directory"):
        opened(short_path / "file")


def test_the_environment_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """SANLOCK_RUN_DIR, or else the usual place."""
    monkeypatch.setenv("SANLOCK_RUN_DIR", "/some/where")
    assert path_of_environment() == "/some/where"
    monkeypatch.delenv("SANLOCK_RUN_DIR")
    assert path_of_environment() == "/run/sanlock"


def test_the_lock_survives_exec_by_its_descriptor(short_path: Path) -> None:
    """A program executed in the same process still holds it, when it gets the descriptor."""
    path = short_path / "run"
    script = (
        HOLD.split("listener")[0]
        + "import os; os.set_inheritable(directory.fileno(), True); os.execv('/bin/cat', ['cat'])"
    )
    command = [sys.executable, "-c", script, str(path), str(UID), str(GID)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("here\n")
        process.stdin.flush()
        assert process.stdout.readline() == "here\n"
        with pytest.raises(StartFailed, match=f"pid {process.pid}$"):
            opened(path).lock()
        process.kill()


@NEED_ROOT
def test_owners_are_those_of_the_original(short_path: Path) -> None:
    """The directory's group is 0 for a privileged daemon; the socket is the daemon user's."""
    for is_privileged, group in ((True, 0), (False, 65534)):
        path = short_path / f"run{is_privileged}"
        directory = open_run_directory(str(path), 65534, 65534, is_privileged=is_privileged)
        directory.lock()
        directory.listen().close()
        found = [os.stat(p) for p in (path, path / "sanlock.sock", path / "sanlock.pid")]
        owners = [(one.st_uid, one.st_gid) for one in found]
        assert owners == [(65534, group), (65534, 65534), (0, 0)]
        directory.close()


@pytest.mark.peer
def test_the_original_and_we_see_each_others_locks(short_path: Path) -> None:
    """While the real daemon runs we are refused, and it by us."""
    path = short_path / "run"
    with Daemon("real", path, "host1") as daemon:
        ours, expected = opened(path), f"pid {daemon.pid}$"
        with pytest.raises(StartFailed, match=expected):
            ours.lock()
    with (path / "sanlock.pid").open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # waits for the end of the killed daemon
    with another(path):
        refused = subprocess.run(daemon.command, env=daemon.env, capture_output=True, timeout=20)
        assert refused.returncode == 1
        assert b"setlk error" in refused.stderr
