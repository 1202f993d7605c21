"""Lock daemons to test, ours and, where it is installed, the real virtlockd; owners of locks."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from paxoslease.lockd.client import LockConnection, Owner
from tests.lockd import owner

LIMIT_S = 20.0
VIRTLOCKD = shutil.which("virtlockd", path="/usr/sbin:/usr/bin") or ""
COMMAND = (sys.executable, "-m", "paxoslease.cli.main", "lockd")
_ACTIVATED = 'export LISTEN_PID=$$; exec "$@"'
_NAMES = ("virtlockd.socket", "virtlockd-admin.socket")


def await_that(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s: {what}"
        time.sleep(0.005)


class LockDaemon:
    """A lock daemon under test: its process, its socket, and what it wrote to standard error."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
        self.process = process
        self.path = path
        self.log = log

    @property
    def pid(self) -> int:
        """Return the process's id."""
        return self.process.pid

    def connect(self, pid: int | None = None, name: bytes = b"vm") -> LockConnection:
        """Return a connection that speaks for a process, by default for nobody."""
        connection = LockConnection(self.path, timeout_s=LIMIT_S)
        if pid is not None:
            connection.register(Owner(bytes(16), name, 1, pid))
        return connection

    def raw(self) -> Raw:
        """Return a connection that sends any bytes."""
        return Raw(self.path)

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Stop the daemon; return its exit status."""
        self.send_signal(number)
        return self.process.wait(LIMIT_S)

    def said(self, words: str) -> bool:
        """Tell whether the daemon has logged these words."""
        return words in self.log.read_text()


class Raw:
    """A connection on which anything may be sent."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(str(path))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def receive(self, count: int) -> bytes:
        """Return that many bytes, fewer at the end of the connection."""
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                break
            data += piece
        return data

    def message(self) -> bytes:
        """Return the next message, nothing at the end of the connection."""
        head = self.receive(4)
        return head + self.receive(int.from_bytes(head, "big") - 4) if head else b""

    def ask(self, data: bytes) -> bytes:
        """Send a message and return the next."""
        self.send(data)
        return self.message()

    def is_hung_up(self) -> bool:
        """Wait until the daemon hangs up; False when it says something instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@contextmanager
def our_daemon(
    directory: Path,
    *options: object,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    descriptors_max: int | None = None,
) -> Iterator[LockDaemon]:
    """Give a daemon of ours that listens at `socket` in a directory."""
    path, log = directory / "socket", directory / "log"
    command = [*COMMAND, "--socket", str(path), *map(str, options)]
    if descriptors_max is not None:
        command = ["prlimit", f"--nofile={descriptors_max}", *command]
    with _started(command, log, environment, cwd=cwd) as made:
        daemon = LockDaemon(made, path, log)
        # A socket there may be an older daemon's.
        await_that(lambda: daemon.said("listens on") or made.poll() is not None, "it listens")
        assert made.poll() is None, log.read_text()
        yield daemon


@contextmanager
def activated(
    directory: Path, command: Sequence[str], *, search: str | None = None
) -> Iterator[LockDaemon]:
    """Give a daemon that gets its two sockets from its parent, as from a service manager."""
    paths = (directory / "socket", directory / "admin")
    listening = []
    for path in paths:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.bind(str(path))
        made.listen(30)
        listening.append(made)

    def pass_on() -> None:
        # Away from 3 and 4 first: one of them may be the other's number.
        high = [os.dup2(made.fileno(), 40 + i) for i, made in enumerate(listening)]
        for number, descriptor in enumerate(high, 3):
            os.dup2(descriptor, number, inheritable=True)

    environment = {"LISTEN_FDS": "2", "LISTEN_FDNAMES": ":".join(_NAMES)}
    if search is not None:
        environment["PATH"] = search
    log = directory / "log"
    whole = ["/bin/sh", "-c", _ACTIVATED, "sh", *command]
    with _started(whole, log, environment, preexec_fn=pass_on, close_fds=False) as process:
        for made in listening:
            made.close()
        yield LockDaemon(process, paths[0], log)


@contextmanager
def virtlockd(directory: Path) -> Iterator[LockDaemon]:
    """Give a real virtlockd; skip the test where there is none."""
    require_virtlockd()
    config = directory / "virtlockd.conf"
    config.touch()
    command = [VIRTLOCKD, "-f", str(config), "-p", str(directory / "virtlockd.pid")]
    with activated(directory, command) as daemon:
        yield daemon


def require_virtlockd() -> None:
    """Skip the test where the real virtlockd cannot be run."""
    if not VIRTLOCKD:
        pytest.skip("virtlockd is not installed (Debian package libvirt-daemon-system)")
    if os.geteuid() != 0:
        pytest.skip("virtlockd at a place of its own needs root")


@contextmanager
def _started(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None, **how: Any
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            **how,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def owner_process(path: Path, manner: str = "obedient") -> Iterator[subprocess.Popen[str]]:
    """Give a process that has registered itself as an owner and keeps its connection.

    manner: "obedient" ends at SIGTERM, "stubborn" does not. It hangs up when its input ends.
    """
    with subprocess.Popen(
        [sys.executable, "-m", owner.__name__, str(path), manner],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "registered\n"
            yield process
        finally:
            process.kill()
