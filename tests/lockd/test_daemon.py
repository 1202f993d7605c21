"""The daemon on a real socket, with clients of every kind."""

from __future__ import annotations

import array
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paxoslease.lockd.client import LockRefused
from paxoslease.wire.virtlock import (
    PROGRAM,
    STRING_SIZE_MAX,
    VERSION,
    AcquireFlag,
    Header,
    MessageType,
    Procedure,
    Register,
    ResourceCall,
    pack_call,
    pack_message,
    parse_failure,
)
from tests.lockd.conversation import Surroundings, place, scripted
from tests.lockd.outside import is_free
from tests.lockd.rig import LockDaemon, Raw, await_that, our_daemon, owner_process

REGISTER = pack_call(Register(bytes(16), b"vm", 1, 4242), 0)


def test_the_recorded_conversation(daemon: LockDaemon) -> None:
    """Every answer and every hang-up comes as from virtlockd, however the bytes arrive."""
    connections: dict[str, Raw] = {}
    with place() as directory, Surroundings(directory) as surroundings:
        for exchange in scripted(directory):
            surroundings.before(exchange.name)
            if exchange.connection not in connections:
                connections[exchange.connection] = daemon.raw()
            connection = connections[exchange.connection]
            pieces = [exchange.request]
            if exchange.is_split:
                pieces = [bytes([byte]) for byte in exchange.request]
            for piece in pieces:
                connection.send(piece)
            assert connection.receive(len(exchange.reply)) == exchange.reply, exchange.name
            if exchange.is_hangup:
                assert connection.is_hung_up(), exchange.name
            if exchange.name == "split":
                connections.pop("d").socket.close()
            surroundings.after(exchange.name)
    for connection in connections.values():
        connection.socket.close()


def test_silence_where_there_is_no_answer(daemon: LockDaemon) -> None:
    """What gets no answer gets none, and the connection goes on: the next answer is the next's."""
    with daemon.raw() as connection:
        for kind in (1, 2, 3, 5, 6, 7):
            connection.send(pack_message(Header(PROGRAM, VERSION, 1, kind, 5, 0)))
        assert connection.ask(REGISTER) == pack_message(Header(PROGRAM, VERSION, 1, 1, 0, 0))


def test_the_death_of_an_owner_frees_its_locks(daemon: LockDaemon, image: Path) -> None:
    """Locks that others took for an owner go when it is killed, and not before."""
    with owner_process(daemon.path) as owner, daemon.connect(owner.pid) as manager:
        manager.acquire(b"", bytes(image))
        manager.close()
        assert not is_free(image)
        owner.kill()
        await_that(lambda: is_free(image), "the lock is free")


@pytest.mark.parametrize(
    ("manner", "number"), [("obedient", signal.SIGTERM), ("stubborn", signal.SIGKILL)]
)
def test_an_owner_that_hangs_up_is_stopped(
    daemon: LockDaemon, image: Path, manner: str, number: int
) -> None:
    """Its locks go at once, and so does the process: asked first, then killed. Others go on."""
    with owner_process(daemon.path, manner) as owner, daemon.connect(owner.pid) as manager:
        manager.acquire(b"", bytes(image))
        assert owner.stdin is not None
        owner.stdin.close()
        await_that(lambda: is_free(image), "the lock is free")
        begun_s = time.monotonic()
        with daemon.connect(77) as other:
            other.acquire(b"", bytes(image))
        assert time.monotonic() - begun_s < 1, "served while a process is being stopped"
        assert owner.wait(10) == -number


def test_an_owner_without_locks_may_hang_up(daemon: LockDaemon, image: Path) -> None:
    """Only who holds something is stopped: one that did so later is gone, this one lives."""
    with (
        owner_process(daemon.path) as idle,
        owner_process(daemon.path) as holder,
        daemon.connect(idle.pid) as manager,
    ):
        manager.acquire(b"", bytes(image))
        manager.release(b"", bytes(image))
        with daemon.connect(holder.pid) as other:
            other.acquire(b"", bytes(image))
        for owner in (idle, holder):
            assert owner.stdin is not None
            owner.stdin.close()
            manager.create_lockspace(b"")
        assert holder.wait(10) == -signal.SIGTERM
        assert not daemon.said(f"process {idle.pid} was sent")
        assert idle.poll() is None


def test_a_slow_client_keeps_nobody_waiting(daemon: LockDaemon, image: Path) -> None:
    """Half a length, half a header, half a string: others are served, and these when they go on."""
    call = pack_call(ResourceCall(Procedure.ACQUIRE_RESOURCE, b"", bytes(image)), 1)
    parts = (1, 4, 20, 40)
    slow = [daemon.raw() for _ in parts]
    for connection, part in zip(slow, parts, strict=True):
        connection.send(REGISTER[:part])
    with daemon.connect(10) as quick:
        quick.acquire(b"", bytes(image))
        quick.release(b"", bytes(image))
    for connection, part in zip(slow, parts, strict=True):
        connection.send(REGISTER[part:])
        assert len(connection.message()) == 28
        assert connection.ask(call)[24:28] == bytes(4)
        connection.ask(pack_call(ResourceCall(Procedure.RELEASE_RESOURCE, b"", bytes(image)), 2))
        connection.socket.close()


def test_a_client_that_never_reads_keeps_nobody_waiting(daemon: LockDaemon, image: Path) -> None:
    """Answers that are not read stop that client's requests, and cost no more than one of them."""
    name = b"x" * (STRING_SIZE_MAX - 1)
    call = pack_call(ResourceCall(Procedure.ACQUIRE_RESOURCE, b"", name), 1)
    before_kb = _memory_kb(daemon.pid)
    with daemon.raw() as deaf:
        deaf.socket.setblocking(False)
        sent = 0
        stream = REGISTER + call * 200
        idle_since_s = time.monotonic()
        while time.monotonic() - idle_since_s < 0.5:
            try:
                sent += deaf.socket.send(stream[sent:])
                idle_since_s = time.monotonic()
            except BlockingIOError:
                continue
        assert sent < len(stream)
        with daemon.connect(10) as other:
            other.acquire(b"", bytes(image))
        assert _memory_kb(daemon.pid) - before_kb < 8192
        # When it reads at last, every answer is there, in order.
        deaf.socket.settimeout(10)
        assert len(deaf.message()) == 28
        for _ in range(len(stream[:sent]) // len(call) - 1):
            failure = parse_failure(deaf.message())
            assert failure.int1 == 36


def _memory_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_a_long_request_is_served_without_being_kept(daemon: LockDaemon) -> None:
    """Surplus bytes, up to the largest message there is, are read over."""
    before_kb = _memory_kb(daemon.pid)
    with daemon.raw() as connection:
        surplus = bytes(24 << 20)
        payload = Register(bytes(16), b"vm", 1, 4242).pack() + surplus
        message = pack_message(Header(PROGRAM, VERSION, 1, MessageType.CALL, 3, 0), payload)
        answer = connection.ask(message)
        assert answer == pack_message(Header(PROGRAM, VERSION, 1, MessageType.REPLY, 3, 0))
    assert _memory_kb(daemon.pid) - before_kb < 8192


def test_descriptors_passed_along_are_dropped_and_drop_nothing(
    daemon: LockDaemon, image: Path
) -> None:
    """A descriptor of a held file, sent to the daemon, does not cost the lock."""
    payload = Register(bytes(16), b"vm", 1, 4242).pack()
    header = Header(PROGRAM, VERSION, 1, MessageType.CALL_WITH_FDS, 3, 0)
    with daemon.connect(10) as holder, image.open("r+b") as file:
        holder.acquire(b"", bytes(image))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))]
        before = _open_files(daemon.pid)
        with daemon.raw() as connection:
            connection.send(pack_message(header, struct.pack(">I", 2) + payload))
            connection.socket.sendmsg([b"\0"], rights)
            connection.socket.sendmsg([b"\0"], rights)
            assert connection.message() == pack_message(header._replace(kind=1))
            # Where none belongs, too.
            connection.socket.sendmsg([REGISTER], rights)
            assert len(connection.message()) == 28
            assert _open_files(daemon.pid) == before + 2, "the socket and the pidfd"
        assert not is_free(image)
        for wrong in (b"", struct.pack(">I", 33) + payload):
            with daemon.raw() as connection:
                connection.send(pack_message(header, wrong))
                assert connection.is_hung_up()
        with daemon.raw() as connection:
            connection.send(pack_message(header, struct.pack(">I", 1) + payload) + b"\0")
            assert connection.is_hung_up(), "a byte without a descriptor"


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_too_many_clients_wait_for_their_turn(tmp_path: Path) -> None:
    """Beyond the limit connections are not accepted until one leaves; nobody is turned away."""
    with our_daemon(tmp_path, "--max-clients", 2) as daemon:
        first, second, third = daemon.raw(), daemon.raw(), daemon.raw()
        assert first.ask(REGISTER)
        assert second.ask(REGISTER)
        third.send(REGISTER)
        third.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            third.message()
        third.socket.settimeout(10)
        first.socket.close()
        assert len(third.message()) == 28
        second.socket.close()
        third.socket.close()


def test_other_users_are_turned_away() -> None:
    """The socket is private, and a connection of another user is closed without a word."""
    if os.geteuid() != 0:
        pytest.skip("to be another user needs root")
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.setuid(65534);"
        "s.connect(sys.argv[1]); print(s.recv(1))"
    )
    with place() as directory, our_daemon(directory) as daemon:
        assert daemon.path.stat().st_mode & 0o777 == 0o700
        daemon.path.chmod(0o777)
        command = [sys.executable, "-I", "-S", "-c", script, str(daemon.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.stdout == "b''\n", done.stderr


def test_an_answer_tells_what_is_wrong(daemon: LockDaemon, image: Path) -> None:
    """The client raises the daemon's words, and says which are about somebody's lock."""
    with daemon.connect(10) as connection:
        connection.acquire(b"", bytes(image), AcquireFlag.SHARED)
        with pytest.raises(LockRefused, match="is locked") as caught:
            connection.acquire(b"", bytes(image))
        assert caught.value.is_busy
        connection.restrict()
        with pytest.raises(LockRefused, match="has been restricted") as caught:
            connection.release(b"", bytes(image))
        assert not caught.value.is_busy
