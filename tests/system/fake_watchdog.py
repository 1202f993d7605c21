"""A watchdog device of the kernel, played by the test, for programs that are not ours to change.

`FakeWatchdog` is the kernel's side: it listens on a socket that stands for the device, keeps what
is done to it, and knows when it would reset the host. A program gets the other side from
fake_watchdog.c, which is preloaded into it. A descriptor of the device is a connection, so it can
be handed to other processes, and the device is closed when the last copy is: as in a kernel.

What the kernel does with a device is in its Documentation/watchdog: opening it starts it, closing
it without 'V' as the last thing written pings once more and lets it count on, and while one has it
open nobody else can.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
import unittest
from pathlib import Path
from typing import Final, NamedTuple, Self

SOURCE: Final = Path(__file__).with_name("fake_watchdog.c")

_MESSAGE: Final = struct.Struct("=Iiiiq")
_OPEN: Final = 0
_GETSUPPORT: Final = 0x80285700
_KEEPALIVE: Final = 0x80045705
_SETTIMEOUT: Final = 0xC0045706
_GETTIMEOUT: Final = 0x80045707
MAGIC_CLOSE: Final = 0x0100  # WDIOF_*
_SETTABLE: Final = 0x0080
_PINGABLE: Final = 0x8000


class Event(NamedTuple):
    """One thing that was done to the device.

    what: open, busy (an open that was refused), set N, keepalive, write X, close, disarm (a close
    after 'V'). at_s: CLOCK_MONOTONIC, of the call for opens and ioctls, of its arrival else. pid:
    whose call it was, 0 where that is not known.
    """

    at_s: float
    what: str
    pid: int = 0


def build_library(directory: Path) -> Path:
    """Compile the library that is to be preloaded. Raises SkipTest without a compiler."""
    if shutil.which("gcc") is None:
        raise unittest.SkipTest("gcc is not installed, which makes the fake watchdog device")
    library = directory / "fake_watchdog.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return library


class FakeWatchdog:
    """The kernel's side of one device; a context manager. `directory` gets the socket.

    options: WDIOF_* that the driver has; without MAGIC_CLOSE any close disarms. tells_timeout: it
    knows WDIOC_GETTIMEOUT.
    """

    def __init__(self, directory: Path, library: Path) -> None:
        self.path = str(directory / "watchdog")
        self.env = {"LD_PRELOAD": str(library), "FAKE_WATCHDOG": self.path}
        self.options = MAGIC_CLOSE | _SETTABLE | _PINGABLE
        self.tells_timeout = True
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._timeout_s = 15
        self._fires_s: float | None = None
        self._fired_s: float | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="fake-watchdog")
        self._thread.start()

    # -- what the test asks ----------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        """Return what was done to the device so far."""
        with self._lock:
            return list(self._events)

    def whats(self) -> list[str]:
        """Return what was done to it, without the times."""
        return [event.what for event in self.events]

    def count(self, what: str) -> int:
        """Return how often something was done to it."""
        return self.whats().count(what)

    @property
    def is_open(self) -> bool:
        """Tell whether anybody has it open."""
        opens_and_closes = [w for w in self.whats() if w in ("open", "close", "disarm")]
        return opens_and_closes[-1:] == ["open"]

    @property
    def fires_s(self) -> float | None:
        """Return when it resets the host as things are, None when it is not armed."""
        with self._lock:
            return self._fires_s

    @property
    def has_fired(self) -> bool:
        """Tell whether it has, or would have, reset the host."""
        with self._lock:
            is_due = self._fires_s is not None and time.monotonic() > self._fires_s
            return is_due or self._fired_s is not None

    # -- the device ------------------------------------------------------------------------------

    def _note(self, at_s: float, what: str, pid: int = 0, *, pings: bool = False) -> None:
        with self._lock:
            self._events.append(Event(at_s, what, pid))
            if not pings:
                return
            if self._fires_s is not None and at_s > self._fires_s and self._fired_s is None:
                self._fired_s = self._fires_s
            self._fires_s = at_s + self._timeout_s

    def _serve(self) -> None:
        device: socket.socket | None = None
        magic = False
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._stop_read in ready:
                break
            if device is not None and device.fileno() in ready:
                message = self._receive(device)
                if message in (b"", b"V"):
                    if message:
                        self._note(time.monotonic(), "write V")
                    else:
                        poll.unregister(device)
                        device.close()
                        device = None
                        self._closed(magic=magic or not self.options & MAGIC_CLOSE)
                    magic = bool(message)
                else:
                    magic = False
                    self._do(device, message)
            if self._listener.fileno() in ready:
                opened = self._accept(is_busy=device is not None)
                if opened is not None:
                    device, magic = opened, False
                    poll.register(device, select.POLLIN)
        if device is not None:
            device.close()

    def _receive(self, device: socket.socket) -> bytes:
        try:
            return device.recv(_MESSAGE.size)
        except ConnectionResetError:
            return b""

    def _closed(self, *, magic: bool) -> None:
        self._note(time.monotonic(), "disarm" if magic else "close", pings=True)
        if magic:
            with self._lock:
                self._fires_s = None

    def _accept(self, *, is_busy: bool) -> socket.socket | None:
        connection, _ = self._listener.accept()
        message = connection.recv(_MESSAGE.size)
        if len(message) < _MESSAGE.size:
            connection.close()
            return None
        _, _, _, pid, at_ns = _MESSAGE.unpack(message)
        code = errno.EBUSY if is_busy else 0
        self._note(at_ns / 1e9, "busy" if is_busy else "open", pid, pings=not is_busy)
        connection.send(_MESSAGE.pack(_OPEN, 0, code, 0, 0))
        if is_busy:
            connection.close()
            return None
        return connection

    def _do(self, device: socket.socket, message: bytes) -> None:
        if len(message) < _MESSAGE.size:
            self._note(time.monotonic(), f"write {message.decode('latin-1')}", pings=True)
            return
        call, value, _, pid, at_ns = _MESSAGE.unpack(message)
        answer, code = 0, 0
        if call == _KEEPALIVE:
            self._note(at_ns / 1e9, "keepalive", pid, pings=True)
        elif call == _SETTIMEOUT:
            with self._lock:
                answer = self._timeout_s = value
            self._note(at_ns / 1e9, f"set {value}", pid, pings=True)
        elif call == _GETTIMEOUT and self.tells_timeout:
            answer = self._timeout_s
        elif call == _GETSUPPORT:
            answer = self.options
        else:
            code = errno.ENOTTY
        try:
            device.send(_MESSAGE.pack(call, answer, code, 0, 0))
        except BrokenPipeError:
            return  # it has closed it meanwhile, which is the next that is heard

    def close(self) -> None:
        """Take the device away."""
        os.write(self._stop_write, b"x")
        self._thread.join()
        self._listener.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PrivateRun:
    """A mount namespace with an empty /run and /dev/shm, for daemons that live nowhere else.

    A context manager. Mounts that are made outside are seen inside, not the other way round.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("nsenter") is None:
            raise unittest.SkipTest("a private /run needs root, unshare and nsenter")
        script = (
            "mount -t tmpfs none /run && mount -t tmpfs none /dev/shm && "
            "mkdir /run/wdmd && echo ready && exec cat"
        )
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            self.close()
            raise unittest.SkipTest("no private mounts can be made here")

    @property
    def prefix(self) -> list[str]:
        """Return what is put before a command for it to run there; the pid stays the same."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--wdns=/", "--"]

    def path(self, path: str) -> Path:
        """Return how a path of that namespace is seen from outside."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def close(self) -> None:
        """Give it up; it is gone with the last process in it."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
