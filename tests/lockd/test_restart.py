"""SIGUSR1: a new image of the program in the same process, and not one lock is lost by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from paxoslease.lockd.client import LockRefused
from paxoslease.lockd.places import default_places
from paxoslease.wire.virtlock import (
    AcquireFlag,
    Procedure,
    Register,
    ResourceCall,
    pack_call,
)
from tests.lockd.outside import is_free
from tests.lockd.rig import (
    COMMAND,
    VIRTLOCKD,
    LockDaemon,
    activated,
    await_that,
    our_daemon,
    owner_process,
    require_virtlockd,
)

SHARED, AUTOCREATE = AcquireFlag.SHARED, AcquireFlag.AUTOCREATE

# Tries for the lock without a pause, and says so if it ever gets it.
_CONTENDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
print("begun", flush=True)
while True:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except BlockingIOError:
        continue
    print("got it", flush=True)
    break
"""


@contextmanager
def contender(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process try for a lock all the time."""
    with subprocess.Popen(
        [sys.executable, "-c", _CONTENDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()


def restart(daemon: LockDaemon) -> None:
    """Let the daemon become a new image, and wait until it serves."""
    times = daemon.log.read_text().count("listens on")
    daemon.send_signal(signal.SIGUSR1)
    await_that(
        lambda: daemon.log.read_text().count("listens on") > times or daemon.process.poll(),
        "the new image listens",
    )
    assert daemon.process.poll() is None, daemon.log.read_text()


def test_locks_clients_and_rights_survive(daemon: LockDaemon, image: Path, tmp_path: Path) -> None:
    """After two restarts everything is as before, and nobody got in between."""
    directory = bytes(tmp_path / "space")
    with (
        owner_process(daemon.path) as owner,
        daemon.connect(owner.pid, b"na\xffme") as manager,
        daemon.connect(10) as other,
        daemon.raw() as newcomer,
    ):
        manager.acquire(b"", bytes(image))
        manager.create_lockspace(directory)
        manager.acquire(directory, b"k\xfe", AUTOCREATE | SHARED)
        other.acquire(directory, b"k\xfe", AUTOCREATE | SHARED)
        other.acquire(directory, b"k\xfe", AUTOCREATE | SHARED)
        open_files = _open_files(daemon)
        with contender(image) as rival:
            for _ in range(2):
                restart(daemon)
                assert _open_files(daemon) == open_files, "nothing leaks"
                assert not is_free(image)
                with pytest.raises(LockRefused, match="is locked"):
                    other.acquire(b"", bytes(image))
                assert rival.poll() is None
        assert len(newcomer.ask(pack_call(Register(bytes(16), b"", 1, 1), 0))) == 28
        other.release(directory, b"k\xfe")
        # The restricted connection of the owner still is restricted, and still its life.
        owner.kill()
        await_that(lambda: is_free(image), "the lock is free")
        assert os.listdir(directory) == [b"k\xfe"]
        other.release(directory, b"k\xfe")
        assert os.listdir(directory) == []
    state = daemon.path.parent / "socket-restart-exec.json"
    assert not state.exists()


def _open_files(daemon: LockDaemon) -> list[str]:
    """Return what a daemon has open, without the numbers of sockets."""
    directory = Path(f"/proc/{daemon.pid}/fd")
    return sorted(os.readlink(path).split(":[")[0] for path in directory.iterdir())


def test_half_a_request_survives(daemon: LockDaemon, image: Path) -> None:
    """A request that arrives in pieces around a restart is answered, and so is one ahead of it."""
    register = pack_call(Register(bytes(16), b"vm", 1, 4242), 0)
    acquire = pack_call(ResourceCall(Procedure.ACQUIRE_RESOURCE, b"", bytes(image)), 1)
    with daemon.raw() as connection:
        assert len(connection.ask(register)) == 28
        connection.send(acquire[:33])
        restart(daemon)
        connection.send(acquire[33:])
        assert connection.message()[24:] == bytes(4)
    assert not is_free(image)


def test_a_process_that_is_being_stopped_is_stopped(daemon: LockDaemon, image: Path) -> None:
    """A restart between SIGTERM and SIGKILL does not save the one who does not go."""
    with owner_process(daemon.path, "stubborn") as owner, daemon.connect(owner.pid) as manager:
        manager.acquire(b"", bytes(image))
        assert owner.stdin is not None
        owner.stdin.close()
        await_that(lambda: is_free(image), "the lock is free")
        restart(daemon)
        assert owner.wait(10) == -signal.SIGKILL


def test_signals_in_a_row_do_no_harm(daemon: LockDaemon, image: Path) -> None:
    """SIGUSR1 and SIGHUP at any moment, in the middle of a restart too, cost no lock."""
    with daemon.connect(10) as connection:
        connection.acquire(b"", bytes(image))
        restart(daemon)

        def goes_on() -> bool:
            daemon.send_signal(signal.SIGUSR1)
            daemon.send_signal(signal.SIGHUP)
            assert daemon.process.poll() is None, daemon.log.read_text()
            return daemon.log.read_text().count("listens on") > 6

        await_that(goes_on, "it restarts again and again", limit_s=60)
        connection.create_lockspace(b"")
        assert not is_free(image)


def test_a_broken_program_is_not_started(tmp_path: Path, image: Path) -> None:
    """When what is installed cannot be started the running image stays, with its locks."""
    modules = tmp_path / "modules"
    modules.mkdir()
    environment = {"PYTHONPATH": str(modules)}
    with (
        our_daemon(tmp_path, environment=environment, cwd=tmp_path) as daemon,
        daemon.connect(10) as connection,
    ):
        connection.acquire(b"", bytes(image))
        (modules / "paxoslease").mkdir()
        (modules / "paxoslease/__init__.py").write_text("raise RuntimeError('broken')\n")
        daemon.send_signal(signal.SIGUSR1)
        await_that(lambda: daemon.said("ends with status 1"), "the trial fails")
        with pytest.raises(LockRefused, match="is locked"):
            connection.acquire(b"", bytes(image))
        shutil.rmtree(modules / "paxoslease")
        restart(daemon)
        assert not is_free(image)


def test_a_state_that_is_not_ours_is_not_used(tmp_path: Path, image: Path) -> None:
    """A file left by another process, or broken, is removed and logged."""
    state = tmp_path / "socket-restart-exec.json"
    state.write_text(json.dumps({"magic": "1"}))
    with our_daemon(tmp_path) as daemon:
        assert daemon.said("another process")
        assert not state.exists()
        daemon.end()
    state.write_text('{"magic": ')
    with our_daemon(tmp_path) as daemon:
        assert not state.exists()
        daemon.end()


def test_taking_over_from_the_real_virtlockd(tmp_path: Path, image: Path) -> None:
    """When the program that virtlockd executes has become ours, locks and clients go over to it."""
    require_virtlockd()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "virtlockd").symlink_to(VIRTLOCKD)
    (tmp_path / "conf").touch()
    directory = bytes(tmp_path / "space")
    pid_path = tmp_path / "pid"
    command = ["virtlockd", "-f", str(tmp_path / "conf"), "-p", str(pid_path)]
    search = f"{programs}:{os.environ['PATH']}"
    with activated(tmp_path, command, search=search) as daemon:
        with (
            owner_process(daemon.path) as owner,
            daemon.connect(owner.pid) as manager,
        ):
            manager.acquire(b"", bytes(image))
            manager.create_lockspace(directory)
            manager.acquire(directory, b"key", AUTOCREATE)
            (programs / "virtlockd").unlink()
            (programs / "virtlockd").write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} -p "$4"\n')
            (programs / "virtlockd").chmod(0o755)
            with contender(image) as rival:
                daemon.send_signal(signal.SIGUSR1)
                await_that(lambda: daemon.said("lockd listens on"), "ours listens")
                assert daemon.process.poll() is None
                with pytest.raises(LockRefused, match="is locked"):
                    manager.acquire(b"", bytes(image))
                assert rival.poll() is None
            assert int(pid_path.read_text()) == daemon.pid
            owner.kill()
            await_that(lambda: is_free(image), "the lock is free")
            assert os.listdir(directory) == []
        assert daemon.end() == 0
    assert not default_places().state.exists()


def test_under_load_with_many_locks(daemon: LockDaemon, image: Path, tmp_path: Path) -> None:
    """Two thousand locks and clients that go on asking: restarts lose neither locks nor answers."""
    directory = bytes(tmp_path / "space")
    ended = threading.Event()
    counts = [0, 0, 0]

    def ask(number: int) -> None:
        with daemon.connect(20 + number) as client:
            while not ended.is_set():
                client.acquire(directory, b"own%d" % number, AUTOCREATE)
                with pytest.raises(LockRefused, match="is locked"):
                    client.acquire(b"", bytes(image))
                client.release(directory, b"own%d" % number)
                counts[number] += 1

    with daemon.connect(10) as holder, ThreadPoolExecutor(len(counts)) as threads:
        holder.create_lockspace(directory)
        holder.acquire(b"", bytes(image))
        for number in range(2000):
            holder.acquire(directory, b"%d" % number, AUTOCREATE)
        with contender(image) as rival:
            running = [threads.submit(ask, number) for number in range(len(counts))]
            try:
                for _ in range(3):
                    before = list(counts)
                    restart(daemon)
                    await_that(
                        lambda before=before: all(
                            n > b for n, b in zip(counts, before, strict=True)
                        ),
                        "all go on",
                    )
            finally:
                ended.set()
            for one in running:
                one.result(20)
            assert rival.poll() is None
        for number in (0, 1999):
            assert not is_free(tmp_path / f"space/{number}")
        for number in range(2000):
            holder.release(directory, b"%d" % number)
        assert os.listdir(directory) == []
