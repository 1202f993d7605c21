"""The client, against daemons that behave and servers that do not."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paxoslease.lockd.client import LockConnection, LockDaemonLost, LockRefused, Owner
from paxoslease.wire.virtlock import (
    PROGRAM,
    AcquireFlag,
    Header,
    Keepalive,
    MessageType,
    pack_keepalive,
    pack_message,
)
from tests.lockd.rig import our_daemon

OWNER = Owner(bytes(range(16)), b"guest", 1, 4242)


@contextmanager
def server(directory: Path, serve: Callable[[socket.socket], None]) -> Iterator[Path]:
    """Give the socket of a server that serves one client in its own way."""
    path = directory / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen(1)

        def run() -> None:
            client, _ = listening.accept()
            with client:
                serve(client)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield path
        finally:
            thread.join(20)
            assert not thread.is_alive()


def reply(serial: int = 0, **changes: int) -> bytes:
    """Return the reply to a registration, with something wrong."""
    header = Header(PROGRAM, 1, 1, MessageType.REPLY, serial, 0)
    return pack_message(header._replace(**changes))


def test_all_procedures(tmp_path: Path) -> None:
    """Every procedure does what it says, on a real daemon."""
    directory = bytes(tmp_path / "space")
    with our_daemon(tmp_path) as daemon, LockConnection(daemon.path) as connection:
        connection.create_lockspace(directory)
        with pytest.raises(LockRefused, match="have not been registered"):
            connection.acquire(directory, b"key", AcquireFlag.AUTOCREATE)
        connection.register(OWNER)
        connection.new_lockspace(directory + b"2")
        connection.create_resource(directory, b"key")
        connection.acquire(directory, b"key", AcquireFlag.SHARED)
        with pytest.raises(LockRefused, match="'key' is locked"):
            connection.delete_resource(directory, b"key")
        connection.release(directory, b"key")
        connection.delete_resource(directory, b"key")
        assert os.listdir(directory) == []
        connection.restrict()
        with pytest.raises(LockRefused, match="restricted"):
            connection.register(OWNER)


def test_nobody_there(tmp_path: Path) -> None:
    """No socket, or nobody behind it, is said at once."""
    with pytest.raises(LockDaemonLost, match="No such file") as caught:
        LockConnection(tmp_path / "socket")
    assert caught.value.code == -2
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(str(tmp_path / "socket"))
        with pytest.raises(LockDaemonLost, match="refused"):
            LockConnection(tmp_path / "socket")


def test_pings_are_answered(tmp_path: Path) -> None:
    """A keepalive message before the reply gets its answer, and the reply is found."""
    got = []

    def serve(client: socket.socket) -> None:
        client.recv(1000)
        client.sendall(pack_keepalive(Keepalive.PONG) + pack_keepalive(Keepalive.PING))
        got.append(client.recv(100))
        client.sendall(reply())

    with server(tmp_path, serve) as path, LockConnection(path) as connection:
        connection.register(OWNER)
    assert got == [pack_keepalive(Keepalive.PONG)]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(serial=1), "does not answer"),
        (reply(procedure=2), "does not answer"),
        (reply(kind=MessageType.CALL), "does not answer"),
        (reply(status=1), "do not decode"),
        (b"\0\0\0\1", "a message of 1 bytes"),
        (b"\0\0\0\x1b" + bytes(23), "an answer of 27 bytes"),
        (b"\1\0\0\0" + bytes(24), "an answer of 16777216 bytes"),
        (b"\0\0\0\x1c", "hung up|reset"),
        (b"", "hung up|reset"),
        (pack_keepalive(Keepalive.PONG) * 100, "keepalive messages only"),
    ],
)
def test_a_server_that_talks_nonsense(tmp_path: Path, answer: bytes, words: str) -> None:
    """What is no answer ends the connection with an error that says what is wrong."""

    def serve(client: socket.socket) -> None:
        client.recv(1000)
        client.sendall(answer)

    with server(tmp_path, serve) as path, LockConnection(path) as connection:
        with pytest.raises(LockDaemonLost, match=words):
            connection.register(OWNER)
        with pytest.raises(LockDaemonLost, match="Bad file descriptor"):
            connection.register(OWNER)


def test_a_server_that_is_silent(tmp_path: Path) -> None:
    """A call does not wait longer than it was told to, also when bytes trickle in."""
    done = threading.Event()

    def serve(client: socket.socket) -> None:
        client.recv(1000)
        client.sendall(b"\0\0\1\0")
        while not done.wait(0.05):
            try:
                client.sendall(b"\0")
            except OSError:
                return

    with server(tmp_path, serve) as path, LockConnection(path, timeout_s=0.3) as connection:
        begun_s = time.monotonic()
        with pytest.raises(LockDaemonLost, match="does not answer"):
            connection.register(OWNER)
        assert time.monotonic() - begun_s < 3
        done.set()
