"""Where the daemon is found: its socket and its pid file, both for one instance at a time.

Source: spec/lock-drivers.md 7.1.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from paxoslease.errors import ConfigError, PaxosleaseError
from paxoslease.lockd.files import Identity, identity_of, names_file

_log = logging.getLogger(__name__)

_BACKLOG: Final = 30
_SOCKET_PATH_MAX: Final = 107
_FIRST_PASSED: Final = 3
SOCKET_NAME: Final = "virtlockd.socket"
ADMIN_SOCKET_NAME: Final = "virtlockd-admin.socket"


@dataclass(eq=False)
class AlreadyRunning(PaxosleaseError):
    """Another daemon serves this place; `pid` is 0 when it cannot be told."""

    path: str
    pid: int
    template = "{path} is in use by a lock daemon that runs already (pid {pid})"
    hint = "two daemons for one place would not know of each other's locks; stop the other one, or "
    hint += "name another place with --socket"
    number = -errno.EBUSY


class Places(NamedTuple):
    """The paths of one daemon."""

    socket: Path
    pid_file: Path
    state: Path  # what one image of the program leaves for the next


def default_places() -> Places:
    """Return virtlockd's own places: the system's for root, those of the session for others."""
    if os.geteuid() == 0:
        run, base = Path("/run"), Path("/run/libvirt")
    else:
        fallback = Path(os.environ.get("HOME", "/"), ".cache")
        run = base = Path(os.environ.get("XDG_RUNTIME_DIR") or fallback, "libvirt")
    return Places(
        base / "virtlockd-sock", run / "virtlockd.pid", run / "virtlockd-restart-exec.json"
    )


def places_at(path: Path) -> Places:
    """Return the places of a daemon that has a socket of its own."""
    return Places(path, Path(f"{path}.pid"), Path(f"{path}-restart-exec.json"))


class PidFile:
    """The file that tells the daemon's pid, locked on its first byte while it runs."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        """Create and lock the file, or take over one that is locked already.

        Raises AlreadyRunning, OSError.
        """
        self.path = path
        self.descriptor = self._lock() if descriptor is None else descriptor
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0)

    def _lock(self) -> int:
        while True:  # a round more for every daemon that ends in this moment
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            except (BlockingIOError, PermissionError):
                text = os.pread(descriptor, 20, 0).strip()
                os.close(descriptor)
                pid = int(text) if text.isdigit() else 0
                raise AlreadyRunning(str(self.path), pid) from None
            if names_file(self.path, identity_of(descriptor)):
                return descriptor
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the file while it is locked, then let go of it."""
        if names_file(self.path, identity_of(self.descriptor)):
            self.path.unlink()
        os.close(self.descriptor)


class Listener:
    """The socket that clients connect to. `is_ours`: made here, so removed at the end."""

    def __init__(self, listening: socket.socket, *, is_ours: bool) -> None:
        listening.setblocking(False)
        self.socket = listening
        self.is_ours = is_ours
        name = listening.getsockname()
        self.path = Path(os.fsdecode(name)) if name else None
        self._identity = _identity_at(self.path) if self.path else None

    def close(self) -> None:
        """Stop listening, and remove the socket if it still is the one that was made here."""
        is_there = self.path and self._identity and names_file(self.path, self._identity)
        if self.is_ours and self.path and is_there:
            self.path.unlink()
        self.socket.close()


def listen(path: Path) -> Listener:
    """Make the socket, for nobody but the own user; a stale one is replaced.

    Raises AlreadyRunning, ConfigError, OSError.
    """
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise ConfigError("--socket", f"'{path}' is longer than {_SOCKET_PATH_MAX} bytes")
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o077)
    try:
        listening.bind(os.fsencode(path))
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(umask)
    listening.listen(_BACKLOG)
    return Listener(listening, is_ours=True)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError("--socket", f"'{path}' is there and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fsencode(path))
            other = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            raise AlreadyRunning(str(path), other[0])
        except BlockingIOError:  # it listens, and has a long queue
            raise AlreadyRunning(str(path), 0) from None
        except ConnectionRefusedError:
            path.unlink()


def passed_listeners(environment: Mapping[str, str], pid: int) -> dict[str, Listener]:
    """Return the sockets that the service manager made, by name; none without SOCKET_NAME."""
    if environment.get("LISTEN_PID") != str(pid):
        return {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal() or int(count) != len(names):
        _log.error("passed_sockets_ignored reason=%s", "LISTEN_FDS and LISTEN_FDNAMES do not agree")
        return {}
    if SOCKET_NAME not in names:
        _log.error("passed_sockets_ignored reason=%s", f"none is named {SOCKET_NAME}")
        return {}
    found = {}
    for descriptor, name in enumerate(names, _FIRST_PASSED):
        os.set_inheritable(descriptor, False)
        found[name] = Listener(socket.socket(fileno=descriptor), is_ours=False)
    return found


def _identity_at(path: Path) -> Identity | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return Identity(found.st_dev, found.st_ino)
