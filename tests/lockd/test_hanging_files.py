"""A file system that hangs: it holds up whoever needs it, and nobody else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from paxoslease.lockd.client import LockDaemonLost, LockRefused
from paxoslease.wire.virtlock import (
    AcquireFlag,
    Procedure,
    Register,
    ResourceCall,
    pack_call,
    parse_failure,
)
from tests.cli.ill_file import IllFile
from tests.lockd.outside import is_free
from tests.lockd.rig import LockDaemon, Raw, await_that, our_daemon, owner_process

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def ill(daemon: LockDaemon, tmp_path: Path) -> Iterator[IllFile]:
    """Give a file whose file system hangs when told to; it is well before the daemon must end."""
    (tmp_path / "backing").write_bytes(bytes(512))
    with closing(IllFile(tmp_path, tmp_path / "backing")) as file:
        yield file


def call_of(procedure: Procedure, path: Path, flags: int = 0) -> bytes:
    """Return a call about a disk."""
    return pack_call(ResourceCall(procedure, b"", bytes(path), flags), 1)


def asked(daemon: LockDaemon, owner: int, path: Path, flags: int = 0) -> Raw:
    """Return a client that has asked for a disk for an owner, and has no answer yet."""
    raw = daemon.raw()
    assert len(raw.ask(pack_call(Register(bytes(16), b"vm", 1, owner), 0))) == 28
    raw.send(call_of(Procedure.ACQUIRE_RESOURCE, path, flags))
    return raw


def hangs(daemon: LockDaemon, count: int = 1) -> None:
    """Wait until so many threads of the daemon wait for an answer of FUSE."""

    def waiting() -> int:
        tasks = Path(f"/proc/{daemon.pid}/task").iterdir()
        return sum("fuse" in (task / "stack").read_text() for task in tasks)

    await_that(lambda: waiting() >= count, f"{count} threads hang")


def test_others_are_served(daemon: LockDaemon, ill: IllFile, image: Path) -> None:
    """While an open hangs everybody else goes on, and it is answered when the file system is."""
    ill.become("open-hang")
    with asked(daemon, 10, ill.path) as stuck:
        hangs(daemon)
        begun_s = time.monotonic()
        for _ in range(20):
            with daemon.connect(11) as other:
                other.acquire(b"", bytes(image))
                other.release(b"", bytes(image))
        assert time.monotonic() - begun_s < 5
        ill.become("good")
        assert stuck.message()[24:] == bytes(4)
    assert not is_free(ill.path)
    with daemon.connect(11) as other, pytest.raises(LockRefused, match="is locked"):
        other.acquire(b"", bytes(ill.path))


def test_requests_for_one_file_take_turns(daemon: LockDaemon, ill: IllFile) -> None:
    """What is asked of a file that hangs is answered in the order in which it was asked."""
    ill.become("open-hang")
    with (
        asked(daemon, 10, ill.path) as first,
        asked(daemon, 11, ill.path) as second,
        daemon.raw() as third,
    ):
        third.ask(pack_call(Register(bytes(16), b"vm", 1, 10), 0))
        third.send(call_of(Procedure.RELEASE_RESOURCE, ill.path))
        hangs(daemon)
        ill.become("good")
        assert first.message()[24:28] == bytes(4)
        assert parse_failure(second.message()).code == 87
        assert third.message()[24:28] == bytes(4)
    assert is_free(ill.path)


@pytest.mark.parametrize("flags", [0, AcquireFlag.SHARED])
def test_a_client_that_gives_up_gets_no_lock(daemon: LockDaemon, ill: IllFile, flags: int) -> None:
    """Nobody was told of the lock that comes late, so nobody has it; its place is free at once."""
    ill.become("open-hang")
    with asked(daemon, 10, ill.path, flags):
        hangs(daemon)
        before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    await_that(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) == before - 2, "it has left")
    ill.become("good")
    await_that(lambda: is_free(ill.path), "nobody has it")
    with daemon.connect(11) as other:
        other.acquire(b"", bytes(ill.path))
        other.release(b"", bytes(ill.path))


def test_an_owner_that_ends_meanwhile_gets_no_lock(daemon: LockDaemon, ill: IllFile) -> None:
    """A guest's end frees what is being acquired for it, too, and who asked is told."""
    ill.become("open-hang")
    with owner_process(daemon.path) as guest, asked(daemon, guest.pid, ill.path) as manager:
        hangs(daemon)
        guest.kill()
        guest.wait()
        with daemon.connect(11) as other:
            other.create_lockspace(b"")
        ill.become("good")
        failure = parse_failure(manager.message())
        assert failure.int1 == 3
        assert is_free(ill.path)


def test_a_close_that_hangs(daemon: LockDaemon, ill: IllFile, image: Path) -> None:
    """A guest's end frees what it can, stops the guest, and the rest when it goes."""
    with owner_process(daemon.path) as guest, daemon.connect(guest.pid) as manager:
        manager.acquire(b"", bytes(ill.path))
        manager.acquire(b"", bytes(image))
        ill.become("close-hang")
        assert guest.stdin is not None
        guest.stdin.close()
        assert guest.wait(10) == -signal.SIGTERM
        await_that(lambda: is_free(image), "the good one is free")
        hangs(daemon)
        with asked(daemon, 11, ill.path) as other:
            ill.become("good")
            assert other.message()[24:28] == bytes(4)


def test_a_restart_waits_for_the_file_system(daemon: LockDaemon, ill: IllFile, image: Path) -> None:
    """It is put off, clients are served meanwhile, and no lock is lost by it."""
    with daemon.connect(10) as holder:
        holder.acquire(b"", bytes(image))
        ill.become("open-hang")
        with asked(daemon, 11, ill.path) as stuck:
            hangs(daemon)
            daemon.send_signal(signal.SIGUSR1)
            await_that(lambda: daemon.said("the restart waits"), "it is put off")
            with pytest.raises(LockRefused, match="is locked"):
                holder.acquire(b"", bytes(image))
            ill.become("good")
            assert stuck.message()[24:28] == bytes(4)
            await_that(lambda: daemon.log.read_text().count("listens on") == 2, "it restarts", 40)
        assert not is_free(image)
        assert not is_free(ill.path)


def test_a_restart_over_files_that_hang(daemon: LockDaemon, ill: IllFile, image: Path) -> None:
    """What is held is taken over without a question to its file system."""
    with daemon.connect(10) as holder:
        holder.acquire(b"", bytes(ill.path))
        ill.become("stat-hang")
        await_that(lambda: not _has_answer(ill.path), "attributes are asked for again")
        daemon.send_signal(signal.SIGUSR1)
        await_that(lambda: daemon.log.read_text().count("listens on") == 2, "it restarts")
        holder.acquire(b"", bytes(image))
        assert not is_free(image)
        with daemon.connect(11) as other:
            ill.become("good")
            with pytest.raises(LockRefused, match="is locked"):
                other.acquire(b"", bytes(ill.path))
        holder.release(b"", bytes(ill.path))
    assert is_free(ill.path)


def _has_answer(path: Path) -> bool:
    """Tell whether the kernel answers for a file without its file system."""
    asking = threading.Thread(target=os.stat, args=[path], daemon=True)
    asking.start()
    asking.join(0.2)
    return not asking.is_alive()


def test_the_end_does_not_wait_for_ever(
    daemon: LockDaemon, ill: IllFile, image: Path, tmp_path: Path
) -> None:
    """Guests are stopped and the place is free for another daemon, whatever hangs.

    The kernel lets the process itself go when the file system has answered, and its locks with it.
    """
    with owner_process(daemon.path) as guest, daemon.connect(guest.pid) as manager:
        manager.acquire(b"", bytes(image))
        ill.become("open-hang")
        with asked(daemon, 11, ill.path):
            hangs(daemon)
            daemon.send_signal(signal.SIGTERM)
            assert guest.wait(10) == -signal.SIGTERM
            await_that(lambda: daemon.said("has ended: signal 15"), "it ends")
    assert not daemon.path.exists()
    assert is_free(image)
    next_log = tmp_path / "next"
    next_log.mkdir()
    with our_daemon(next_log, "--pid-file", tmp_path / "socket.pid") as following:
        with following.connect(12) as other:
            other.acquire(b"", bytes(image))
        ill.become("good")
        assert daemon.process.wait(20) == 0
    assert is_free(ill.path)


def test_the_client_gives_up_and_nothing_is_left(daemon: LockDaemon, ill: IllFile) -> None:
    """The driver's client has a limit of its own; after it, the lock is nobody's."""
    ill.become("open-hang")
    connection = daemon.connect(10)
    connection._timeout_s = 0.5
    with connection, pytest.raises(LockDaemonLost, match="does not answer"):
        connection.acquire(b"", bytes(ill.path))
    ill.become("good")
    await_that(lambda: is_free(ill.path), "it is free")
