"""The client of the lease daemon's socket, against a daemon that the test plays."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paxoslease.client import AcquireFailed, Connection, DaemonBroken
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import Command, Disk, Header, Resource

Serve = Callable[[Callable[[socket.socket], None]], Connection]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Give a function that plays a daemon on one connection and returns the client of it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "sanlock.sock"))
    listener.listen()
    threads: list[threading.Thread] = []
    clients: list[Connection] = []

    def start(play: Callable[[socket.socket], None]) -> Connection:
        def run() -> None:
            connected, _ = listener.accept()
            with connected:
                play(connected)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        clients.append(Connection(str(tmp_path), timeout_s=10))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    for thread in threads:
        thread.join()
    listener.close()


def _request(connected: socket.socket) -> Header:
    header = wire.parse_header(connected.recv(wire.HEADER_BYTES, socket.MSG_WAITALL))
    if header.length > wire.HEADER_BYTES:
        connected.recv(header.length - wire.HEADER_BYTES, socket.MSG_WAITALL)
    return header


def _refuse_acquire(connected: socket.socket) -> None:
    """Read a REGISTER and an ACQUIRE, refuse that, and wait for the end."""
    assert _request(connected).command == Command.REGISTER
    assert _request(connected).command == Command.ACQUIRE
    connected.sendall(wire.pack_header(Header(Command.ACQUIRE, length=wire.HEADER_BYTES, data=-17)))
    connected.recv(1)


def test_refused_acquire_keeps_the_registration(serve: Serve) -> None:
    """A lease that is not to be had costs the client nothing of what it holds already."""
    client = serve(_refuse_acquire)
    client.register()
    with pytest.raises(AcquireFailed):
        client.acquire([Resource(b"space", b"r", disks=(Disk(b"/disk"),))])
    assert client.fileno() >= 0


def test_end_of_the_connection_ends_the_registration(serve: Serve) -> None:
    """When the daemon hangs up the client is not registered any more."""
    client = serve(lambda connected: connected.recv(wire.HEADER_BYTES) and None)
    client.register()
    with pytest.raises(DaemonBroken):
        client.inquire()
    assert client.fileno() == -1
