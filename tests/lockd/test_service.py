"""The daemon as a process: one at a place, signals, sockets of the service manager, its end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paxoslease.lockd.client import LockRefused
from tests.lockd.outside import is_free, locked
from tests.lockd.rig import (
    COMMAND,
    LIMIT_S,
    Raw,
    activated,
    await_that,
    our_daemon,
    owner_process,
)


def start(*options: object) -> subprocess.CompletedProcess[str]:
    """Start a daemon that is to end at once."""
    return subprocess.run(
        [*COMMAND, *map(str, options)], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_the_end_stops_whoever_relies_on_locks(tmp_path: Path, image: Path, number: int) -> None:
    """A guest that holds a lock is stopped, one that holds none is not, nothing is left behind."""
    with our_daemon(tmp_path) as daemon:
        with (
            owner_process(daemon.path, "stubborn") as guest,
            owner_process(daemon.path) as idle,
            daemon.connect(guest.pid) as manager,
        ):
            manager.acquire(b"", bytes(image))
            assert daemon.end(number) == 0
            assert guest.wait(1) == -signal.SIGKILL
            assert idle.poll() is None
        assert daemon.said(f"has ended: signal {int(number)}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.img", "log"]


def test_a_second_instance_ends_at_once(tmp_path: Path) -> None:
    """It says who is there, whatever pid file it is given, and disturbs nothing."""
    with our_daemon(tmp_path) as daemon:
        for options in ((), ("--pid-file", tmp_path / "other.pid")):
            done = start("--socket", daemon.path, *options)
            assert done.returncode == 1
            assert f"runs already (pid {daemon.pid})" in done.stderr
            assert "hint: " in done.stderr
        assert not (tmp_path / "other.pid").exists()
        with daemon.connect(10) as connection:
            connection.create_lockspace(b"")
        assert int((tmp_path / "socket.pid").read_text()) == daemon.pid


def test_what_a_killed_daemon_left_is_no_obstacle(tmp_path: Path) -> None:
    """A stale socket and a stale pid file are replaced."""
    with our_daemon(tmp_path) as daemon:
        daemon.end(signal.SIGKILL)
    assert (tmp_path / "socket").exists()
    assert (tmp_path / "socket.pid").exists()
    with our_daemon(tmp_path) as daemon, daemon.connect(10) as connection:
        connection.create_lockspace(b"")


def test_a_pid_file_that_somebody_locks_is_respected(tmp_path: Path) -> None:
    """So virtlockd and this daemon do not run beside each other."""
    pid_file = tmp_path / "virtlockd.pid"
    pid_file.write_text("815\n")
    with locked(pid_file):
        done = start("--socket", tmp_path / "socket", "--pid-file", pid_file)
    assert done.returncode == 1
    assert "runs already (pid 815)" in done.stderr
    assert pid_file.read_text() == "815\n"


def test_places_that_cannot_be(tmp_path: Path) -> None:
    """A file in the way, a path too long, a directory that cannot be made: said, and left alone."""
    (tmp_path / "file").write_text("data")
    done = start("--socket", tmp_path / "file")
    assert done.returncode == 2
    assert "is no socket" in done.stderr
    assert (tmp_path / "file").read_text() == "data"
    done = start("--socket", tmp_path / ("x" * 120))
    assert done.returncode == 2
    assert "longer than 107 bytes" in done.stderr
    done = start("--socket", tmp_path / "file/socket")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.pid"))
    for options in (("--max-clients", "0"), ("--timeout", "soon")):
        assert start("--socket", tmp_path / "s", *options).returncode == 2


def test_the_time_out_waits_for_clients_and_locks(tmp_path: Path, image: Path) -> None:
    """The daemon ends some time after the last client, but not while a lock is held."""
    with our_daemon(tmp_path, "--timeout", 0.5) as daemon:
        with daemon.connect(10) as connection:
            connection.acquire(b"", bytes(image))
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(1.5)
        with daemon.connect(10) as connection:
            connection.release(b"", bytes(image))
        assert daemon.process.wait(LIMIT_S) == 0
        assert daemon.said("no client for long")


def test_a_restart_does_not_undo_the_end(tmp_path: Path, image: Path) -> None:
    """SIGUSR1 while guests are being stopped changes nothing: the daemon ends."""
    with our_daemon(tmp_path) as daemon:
        with (
            owner_process(daemon.path, "stubborn") as guest,
            daemon.connect(guest.pid) as manager,
        ):
            manager.acquire(b"", bytes(image))
            daemon.send_signal(signal.SIGTERM)
            await_that(lambda: daemon.said("was sent signal"), "the guest is being stopped")
            daemon.send_signal(signal.SIGUSR1)
            assert daemon.process.wait(LIMIT_S) == 0
            assert guest.wait(1) == -signal.SIGKILL
        assert daemon.log.read_text().count("listens on") == 1


def test_no_descriptor_left(tmp_path: Path, image: Path) -> None:
    """Out of descriptors the daemon refuses, keeps its locks, and recovers when clients leave."""
    others = [tmp_path / f"other{number}" for number in range(3)]
    with our_daemon(tmp_path, descriptors_max=30) as daemon, daemon.connect(10) as connection:
        connection.acquire(b"", bytes(image))
        clients = [Raw(daemon.path) for _ in range(20)]
        await_that(lambda: daemon.said("can be accepted") or daemon.said("told"), "it is full")

        def acquire_more() -> None:
            for other in others:
                other.touch()
                connection.acquire(b"", bytes(other))

        with pytest.raises(LockRefused, match="Too many open files"):
            acquire_more()
        assert not is_free(image)
        for client in clients:
            client.socket.close()
        with daemon.connect(11) as late:
            late.create_lockspace(b"")
        assert not is_free(image)


def test_clients_cannot_lock_the_daemons_own_files(tmp_path: Path) -> None:
    """The pid file stays locked by the daemon, whatever clients ask for."""
    with our_daemon(tmp_path) as daemon, daemon.connect(10) as connection:
        own = tmp_path / "socket.pid"
        with pytest.raises(LockRefused, match="is locked"):
            connection.acquire(b"", bytes(own))
        assert not is_free(own)


def test_sockets_of_the_service_manager(tmp_path: Path) -> None:
    """They are served, kept over a restart and left at the end; admin clients are turned away."""
    command = [*COMMAND, "--socket", str(tmp_path / "unused")]
    with activated(tmp_path, command) as daemon:
        await_that(lambda: daemon.said("listens on"), "it listens")
        for _ in range(2):
            with daemon.connect(10) as connection:
                connection.create_lockspace(b"")
            with Raw(tmp_path / "admin") as admin:
                assert admin.is_hung_up()
            times = daemon.log.read_text().count("listens on")
            daemon.send_signal(signal.SIGUSR1)
            await_that(
                lambda times=times: daemon.log.read_text().count("listens on") > times,
                "the new image listens",
            )
        assert daemon.end() == 0
    assert (tmp_path / "socket").is_socket()
    assert not (tmp_path / "unused").exists()


def test_sockets_without_names_are_not_taken(tmp_path: Path) -> None:
    """As virtlockd does, it makes its own then, and says so."""
    command = ["env", "-u", "LISTEN_FDNAMES", *COMMAND, "--socket", str(tmp_path / "own")]
    with activated(tmp_path, command) as daemon:
        await_that(lambda: daemon.said("listens on"), "it listens")
        assert daemon.said("were not taken")
        assert (tmp_path / "own").is_socket()


def test_starting_is_light() -> None:
    """Neither NumPy nor the engine is loaded for the daemon."""
    script = (
        "import sys, paxoslease.cli.main as main; main.build_parser();"
        "import paxoslease.lockd.service;"
        "print([m for m in sys.modules if m in ('numpy', 'rich') or 'engine' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "[]\n"
