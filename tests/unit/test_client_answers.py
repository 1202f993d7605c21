"""The daemon's client against a daemon that misbehaves, and what its errors say."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paxoslease.client import (
    Connection,
    DaemonBroken,
    DaemonError,
    DaemonSilent,
    DaemonUnreachable,
)
from paxoslease.wire import numbers, sanlock as wire
from paxoslease.wire.sanlock import Command, Header, Lockspace, Resource

SPACE = Lockspace(b"L", 1, 0, wire.Disk(b"/p"))
RESOURCE = Resource(b"L", b"R", (wire.Disk(b"/p"),))
LIMIT_S = 10.0


class FakeDaemon:
    """Answers the first request of each connection with given bytes, and then ends it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answer = b""
        self.is_silent = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "sanlock.sock"))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._kept: list[socket.socket] = []

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            if self.is_silent:
                self._kept.append(client)
                continue
            with client:
                client.recv(1 << 16)
                client.sendall(self.answer)
                client.shutdown(socket.SHUT_WR)
                client.settimeout(LIMIT_S)
                while client.recv(1 << 16):
                    continue

    def connection(self, timeout_s: float | None = LIMIT_S) -> Connection:
        """Return a client of this daemon."""
        return Connection(str(self.directory), timeout_s=timeout_s)

    def close(self) -> None:
        """End it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(LIMIT_S)
        for client in self._kept:
            client.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """Run a daemon that answers what it is told to."""
    made = FakeDaemon(tmp_path)
    yield made
    made.close()


def header(command: Command, *, data: int = 0, data2: int = 0, length: int = 32) -> bytes:
    """Return the bytes of an answer's header."""
    return wire.pack_header(Header(command, 0, length, data, data2))


def test_unreachable(tmp_path: Path) -> None:
    """Without a daemon the number is that of connecting, and the text says where it was sought."""
    with pytest.raises(DaemonUnreachable) as missing:
        Connection(str(tmp_path)).version()
    assert missing.value.code == -2
    assert str(tmp_path / "sanlock.sock") in str(missing.value)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "sanlock.sock"))
    with pytest.raises(DaemonUnreachable) as refused:
        Connection(str(tmp_path)).version()
    assert refused.value.code == -111
    with pytest.raises(DaemonUnreachable) as long:
        Connection(str(tmp_path / ("x" * 200))).version()
    assert long.value.code == -36


def test_refusal(daemon: FakeDaemon) -> None:
    """A negative result is an error that says in words what happened."""
    daemon.answer = header(Command.ADD_LOCKSPACE, data=-262)
    with pytest.raises(DaemonError) as refused:
        daemon.connection().add_lockspace(SPACE)
    assert refused.value.code == -262
    assert str(refused.value) == (
        "add_lockspace: another host uses the host id (-262 SANLK_HOSTID_BUSY)"
    )


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda c: c.version(), b""),
        (lambda c: c.version(), b"x" * 31),
        (lambda c: c.version(), bytes(32)),
        (lambda c: c.get_lockspaces(), header(Command.GET_LOCKSPACES, data2=2) + bytes(1104)),
        (lambda c: c.get_hosts(b"L"), header(Command.GET_HOSTS, data2=0xFFFFFFFF)),
        (lambda c: c.inquire(pid=1), header(Command.INQUIRE, data2=1, length=0xFFFFFFFF)),
        (lambda c: c.get_lvb(RESOURCE), header(Command.GET_LVB, length=32 + 512) + bytes(511)),
        (lambda c: c.read_resource(RESOURCE), header(Command.READ_RESOURCE) + bytes(127)),
        (lambda c: c.log_dump(), header(Command.LOG_DUMP, data=1 << 30)),
        (
            lambda c: list(c.status()),
            header(Command.STATUS) + bytes(72) + b"\xff\xff\xff\x7f" + bytes(4),
        ),
    ],
)
def test_broken(daemon: FakeDaemon, call: Callable[[Connection], object], answer: bytes) -> None:
    """An answer that is cut short, or announces too much, is told as broken."""
    daemon.answer = answer
    with pytest.raises(DaemonBroken):
        call(daemon.connection())


def test_silent(daemon: FakeDaemon) -> None:
    """A daemon that does not answer is given up after the time-out."""
    daemon.is_silent = True
    with pytest.raises(DaemonSilent) as silent:
        daemon.connection(0.05).version()
    assert silent.value.code == -110


def test_early_end_of_a_stream(daemon: FakeDaemon) -> None:
    """A stream ends where it ends: what is cut short is left out."""
    state = wire.pack_state(wire.State(wire.StateType.DAEMON, name=b"host"))
    daemon.answer = header(Command.STATUS) + state * 2 + state[:-1]
    assert len(list(daemon.connection().status())) == 2


def test_answer_before_the_request_is_read(tmp_path: Path) -> None:
    """A refusal is seen even when the daemon closed before it had everything."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "sanlock.sock"))
    listener.listen(1)

    def refuse() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(32)
            client.sendall(header(Command.ACQUIRE, data=-7))

    thread = threading.Thread(target=refuse)
    thread.start()
    with pytest.raises(DaemonError) as refused:
        Connection(str(tmp_path), timeout_s=LIMIT_S).acquire([RESOURCE], pid=1)
    assert refused.value.code == -7
    thread.join(LIMIT_S)
    listener.close()


def test_every_number_has_a_meaning() -> None:
    """Each of the numbers is told in words, and no number is left as it is."""
    for number in numbers.all_numbers():
        assert numbers.name_of(number).startswith("SANLK_")
        assert "no known meaning" not in numbers.meaning(number)
    assert numbers.meaning(-28, Command.ACQUIRE) == "the lockspace is not joined, or is failing"
    assert numbers.meaning(-28) == "No space left on device"
    assert numbers.name_of(-28) == "ENOSPC"
    assert "no known meaning" in numbers.meaning(-999)


def test_starts_without_the_engine() -> None:
    """A short command loads neither the engine nor what is large."""
    modules = "status", "lockspaces", "leases", "storage", "indexes"
    program = f"""
import importlib, sys
importlib.import_module("paxoslease.cli.sanlock.main")
for name in {modules!r}:
    importlib.import_module("paxoslease.cli.sanlock." + name)
large = "numpy", "asyncio", "paxoslease.engine", "paxoslease.disk", "paxoslease.protocol"
print([name for name in large if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
