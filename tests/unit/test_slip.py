"""A daemon that dies between any two system calls answers each request once, with its successor."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from paxoslease.daemon import slip as slips
from paxoslease.daemon.connection import Connection, Dropped
from paxoslease.daemon.slip import Slip, new_slip
from paxoslease.errors import BadState
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import Command, Header


class Killed(BaseException):
    """The daemon is dead."""


class Life:
    """Counts system calls, and ends the daemon after a number of them."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def wrap(self, function: Any) -> Any:
        """Return a system call that is the daemon's last if its time has come."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                raise Killed
            self.left -= 1
            return function(*args, **kwargs)

        return call


class MortalOs:
    """The module os as a mortal sees it."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        is_call = name in ("pwrite", "pread", "write", "read", "splice")
        return self._life.wrap(value) if is_call else value


class MortalSocket(socket.socket):
    """A socket whose calls count."""

    life: Life | None = None

    def recv(self, *args: Any) -> bytes:
        receive = super().recv
        if self.life is not None:
            receive = self.life.wrap(receive)
        return bytes(receive(*args))


class Daemons:
    """One after the other, on the same connection with the same slip."""

    def __init__(self) -> None:
        self.client, theirs = socket.socketpair()
        self.client.settimeout(5)
        self.slip = new_slip()
        self._descriptors = [theirs.detach(), *self.slip.descriptors]
        self.worked: list[tuple[int, int, bool]] = []  # command, origin, is_again

    def close(self) -> None:
        """Close everything."""
        self.client.close()
        for fd in self._descriptors:
            os.close(fd)

    def live(self, life: Life | None) -> None:
        """Serve until the client has no more to say, or to the end of a life."""
        fds = [os.dup(fd) for fd in self._descriptors]
        connected = MortalSocket(fileno=fds[0])
        connected.setblocking(False)
        connection = Connection(2, connected)
        try:
            connected.life = life
            connection.take_over(Slip(*fds[1:]))
            asyncio.run(self._serve(connection))
        except (Killed, Dropped):
            return
        finally:
            connected.close()
            for fd in fds[1:]:
                os.close(fd)

    async def _serve(self, connection: Connection) -> None:
        while True:
            try:
                call = await asyncio.wait_for(connection.next_call(), 0.02)
            except TimeoutError:
                return
            origin = connection.begin()
            self.worked.append((call.header.command, origin, call.is_again))
            await call.reply(call.header.data * 2)
            connection.answered()


@pytest.fixture
def daemons() -> Iterator[Daemons]:
    found = Daemons()
    yield found
    found.close()


REQUESTS = (
    wire.pack_header(Header(Command.INQUIRE, length=32, data=1)),
    wire.pack_header(Header(Command.KILLPATH, length=32 + 256, data=2)) + b"k" * 256,
)


def _answers(client: socket.socket) -> list[int]:
    client.setblocking(False)
    data = b""
    try:
        while True:
            data += client.recv(4096)
    except BlockingIOError:
        pass
    client.setblocking(True)
    assert len(data) % 32 == 0
    return [wire.parse_header(data[at : at + 32]).data for at in range(0, len(data), 32)]


def _live_and_die(daemons: Daemons, monkeypatch: pytest.MonkeyPatch, calls: int) -> int:
    """Have a daemon die after some calls, then another one live; returns what it had left."""
    life = Life(calls)
    with monkeypatch.context() as patch:
        patch.setattr(slips, "os", MortalOs(life))
        daemons.live(life)
    daemons.live(None)
    return life.left


@pytest.mark.parametrize("calls", range(40))
def test_every_request_is_answered_once(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Whichever system call is the last, each request has one answer, and is known again."""
    for request in REQUESTS:
        daemons.client.sendall(request)
    _live_and_die(daemons, monkeypatch, calls)
    assert _answers(daemons.client) == [2, 4]
    origins: dict[int, int] = {}
    for command, origin, is_again in daemons.worked:
        assert is_again == (command in origins)
        assert origins.setdefault(command, origin) == origin
    assert len(set(origins.values())) == 2


def test_lives_are_long_enough(daemons: Daemons, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deaths of the test above reach from the first call to the last."""
    for request in REQUESTS:
        daemons.client.sendall(request)
    left = _live_and_die(daemons, monkeypatch, 1000)
    assert 20 <= 1000 - left < 40


@pytest.mark.parametrize("calls", range(12))
def test_half_a_request_is_kept(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """What has come of a request is there when the rest comes, to the next daemon."""
    request = REQUESTS[1]
    daemons.client.sendall(request[:100])
    _live_and_die(daemons, monkeypatch, calls)
    daemons.client.sendall(request[100:])
    daemons.live(None)
    assert _answers(daemons.client) == [4]


def test_reply_that_is_read_slowly_comes_whole(daemons: Daemons) -> None:
    """A reply that the socket does not take at once goes on where it stopped."""
    data = os.urandom(60_000)
    connected = socket.socket(fileno=os.dup(daemons._descriptors[0]))
    connected.setblocking(False)
    filled = 0
    try:
        while True:
            filled += connected.send(b"x" * 1000)
    except BlockingIOError:
        pass
    assert daemons.slip.put_reply(data)
    try:
        while True:
            daemons.slip.send(connected)
    except BlockingIOError:
        assert daemons.slip.unsent
    assert daemons.client.recv(filled, socket.MSG_WAITALL) == b"x" * filled
    left = Slip(*daemons.slip.descriptors).load(connected)
    successor = Slip(*daemons.slip.descriptors)
    assert successor.load(connected).unsent == left.unsent > 0
    got = b""
    while successor.unsent:
        successor.send(connected)
        got += daemons.client.recv(1 << 20)
    while len(got) < len(data):
        got += daemons.client.recv(1 << 20)
    assert got == data
    connected.close()


def test_reply_larger_than_a_pipe_is_not_taken(daemons: Daemons) -> None:
    """Such a reply is sent without the slip, and nothing of it stays in the pipe."""
    assert not daemons.slip.put_reply(bytes((1 << 20) + 1))
    assert daemons.slip.put_reply(bytes(200_000))


def test_damaged_slip_is_refused(daemons: Daemons) -> None:
    """A slip that says what no daemon writes is not believed."""
    os.pwrite(daemons.slip.memory, b"\xff" * 16, 8)
    with socket.socket() as connected, pytest.raises(BadState):
        Slip(*daemons.slip.descriptors).load(connected)


def test_request_that_mutes_its_connection_is_answered(daemons: Daemons) -> None:
    """Who dies after it was noted that a client says nothing more has a successor that replies."""

    async def begin(connection: Connection) -> None:
        call = await connection.next_call()
        connection.begin()
        assert call.command == Command.RESTRICT

    async def go_on(connection: Connection) -> None:
        connection.is_muted = True
        call = await asyncio.wait_for(connection.next_call(), 5)
        assert call.is_again
        await call.reply(7)
        connection.answered()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.next_call(), 0.05)

    daemons.client.sendall(wire.pack_header(Header(Command.RESTRICT, length=32)))
    for life in (begin, go_on):
        fds = [os.dup(fd) for fd in daemons._descriptors]
        with socket.socket(fileno=fds[0]) as connected:
            connected.setblocking(False)
            connection = Connection(2, connected)
            connection.take_over(Slip(*fds[1:]))
            asyncio.run(life(connection))
        for fd in fds[1:]:
            os.close(fd)
        daemons.client.sendall(wire.pack_header(Header(Command.INQUIRE, length=32)))
    assert _answers(daemons.client) == [7]
