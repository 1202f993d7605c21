"""Descriptors that must outlive the daemon, kept by its helper process.

When the daemon is killed the kernel closes all it had open. Clients would see the end of their
connections, and a watchdog would reset the host whatever a successor does. So the helper
(helper.py) has a copy of each: of the connections of registered clients with their slips, of event
connections, of the claims on watchdogs. It gets them over its channel when they come into being and
gives them up when the daemon says so.

When the daemon dies without a word (the channel ends, and nothing said that it is an orderly end)
the helper waits for a successor on a socket in the run directory, until the last membership that it
knows of has expired. A successor is who holds the lock on the pid file: the connection that it made
is the helper's channel from then on, and the first that comes over it is what is kept. The helper
keeps its copies meanwhile, so a successor that is killed loses nothing either.

What has expired is closed, so that clients see the end and wdmd does its work. A watchdog *device*
is pinged once more by closing its last copy, which must not happen after the expiry. So its copies
are closed a margin before the first membership expires, as the daemon closes its own, whether it
lives or not: nobody who has it can then end too late, in whatever way. If this process comes too
late for that itself, the device stays open, and unpetted, until a successor takes it or the host is
reset (spec/timing-and-recovery.md 4.2).

Messages: kind, number, number, errno, a time in us, a key; with descriptors.

    keep       16, how many descriptors; key, margin of a device; with them. Replaces what the key
               had.
    drop       17; key
    expire     18; key, the time until which a membership is good, 0 to forget it
    sweep      19, 0 to begin, 1 to end: what was not kept anew in between is dropped
    bye        20: the daemon ends in good order, nothing is to be kept
    renew      21, what tells the daemon's code from others: the helper is to be of it
               (helper_renewal.py)
    kept       32, how many descriptors; key, time; with them: to a successor
    ready      33, pid of the helper: that was all
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import logging
import os
import resource
import select
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from paxoslease.daemon.run_directory import PID_NAME, lock_holder
from paxoslease.engine.operation import now_us

if TYPE_CHECKING:
    from paxoslease.daemon.helper import Helper

_log = logging.getLogger(__name__)

SOCKET_NAME: Final = "paxoslease.keeper"
KEEP, DROP, EXPIRE, SWEEP, BYE, RENEW, KEPT, READY = 16, 17, 18, 19, 20, 21, 32, 33
FIRST: Final = KEEP  # lower kinds are the helper's own
DESCRIPTORS_MAX: Final = 4
CHANNEL_BYTES: Final = 1 << 20

CLIENT, EVENT, WDMD, DEVICE = b"c", b"e", b"w", b"d"  # what a key begins with

_MESSAGE: Final = struct.Struct("=iiiiq")
_MESSAGE_MAX: Final = 4096
_CREDENTIALS: Final = struct.Struct("3i")
_TIOCOUTQ: Final = 0x5411
_GREETING_S: Final = 5.0
_RETRY_S: Final = 0.01
_KEPT_MAX: Final = 1 << 16
_SPARE: Final = 16


def _pack(kind: int, key: bytes = b"", *, number: int = 0, time_us: int = 0) -> bytes:
    return _MESSAGE.pack(kind, number, 0, 0, time_us) + key


def receive(channel: socket.socket, size: int = _MESSAGE_MAX) -> tuple[bytes, list[int]]:
    """Return a message and what came with it; an empty one when the other side is gone."""
    space = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
    message, ancillary, _, _ = channel.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) // 4 * 4])
    return message, list(descriptors)


def rights(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """Return descriptors as sendmsg takes them."""
    if not descriptors:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


# -- in the daemon -------------------------------------------------------------------------------


class _Change(NamedTuple):
    message: bytes
    descriptors: tuple[int, ...]


class Keeper:
    """The daemon's side. Belongs to the loop's thread.

    Nothing here blocks: what the channel does not take now goes later, of each key the last change.
    """

    def __init__(self, helper: Helper | None) -> None:
        """`helper`: None for nobody, who keeps nothing."""
        self._helper = helper
        self._changes: dict[bytes, _Change] = {}
        self._is_waiting = False

    @property
    def is_alive(self) -> bool:
        """Tell whether anybody keeps anything."""
        return self._helper is not None and self._helper.is_alive

    def keep(self, key: bytes, *descriptors: int, margin_us: int = 0) -> None:
        """Have copies of descriptors kept. They stay open until `drop`, or `keep` of that key.

        margin_us: of a device: how long before a membership expires it is closed nevertheless.
        """
        message = _pack(KEEP, key, number=len(descriptors), time_us=margin_us)
        self._change(key, message, descriptors)

    def drop(self, key: bytes) -> None:
        """Have what a key has given up."""
        self._change(key, _pack(DROP, key))

    def expire(self, key: bytes, time_us: int) -> None:
        """Say until when a membership is good; 0 when it is over."""
        self._change(EXPIRES + key, _pack(EXPIRE, key, time_us=time_us))

    def begin_sweep(self) -> None:
        """Have everything dropped that is not kept anew until `end_sweep`."""
        # What has not been told yet goes with it: told later under its old place, it would be lost.
        self._changes.clear()
        self._change(b"begin", _pack(SWEEP))

    def end_sweep(self) -> None:
        """End the sweep."""
        self._change(b"end", _pack(SWEEP, number=1))

    def _change(self, key: bytes, message: bytes, descriptors: tuple[int, ...] = ()) -> None:
        if not self.is_alive:
            return
        self._changes[key] = _Change(message, descriptors)
        if not self._is_waiting:
            self._flush()

    def _flush(self) -> None:
        self._is_waiting = False
        while self._changes and self._helper is not None and self._helper.is_alive:
            key, change = next(iter(self._changes.items()))
            if not self._helper.hand(*change):
                self._is_waiting = True
                asyncio.get_running_loop().call_later(_RETRY_S, self._flush)
                return
            del self._changes[key]
        self._changes.clear()


EXPIRES: Final = b"until:"


def is_half_full(channel: socket.socket) -> bool:
    """Tell whether so much is on its way that the rest is for what is urgent."""
    waiting = int.from_bytes(fcntl.ioctl(channel, _TIOCOUTQ, bytes(4)), "little")
    return 2 * waiting > channel.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


class Claimed(NamedTuple):
    """What a predecessor's helper has kept: its pid, the new channel to it, descriptors by key."""

    pid: int
    channel: socket.socket
    kept: dict[bytes, list[int]]


def claim(directory: str) -> Claimed | None:
    """Take over the helper of a predecessor that died; None when there is none.

    Only for who holds the lock on the pid file. Waits a few seconds for a helper that is slow.
    """
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    kept: dict[bytes, list[int]] = {}
    try:
        channel.settimeout(_GREETING_S)
        with _Short(directory) as path:
            channel.connect(path)
        widen(channel)
        pid = _greeting(channel, kept)
    except (FileNotFoundError, ConnectionRefusedError):
        channel.close()
        return None
    except OSError as error:
        _log.critical("keeper_silent directory=%s error=%s", directory, error)
        for descriptors in kept.values():
            _close(descriptors)
        channel.close()
        return None
    channel.setblocking(True)
    return Claimed(pid, channel, kept)


def _greeting(channel: socket.socket, kept: dict[bytes, list[int]]) -> int:
    """Take in what is kept; returns the helper's pid."""
    while True:
        message, descriptors = receive(channel)
        if len(message) < _MESSAGE.size:
            _close(descriptors)
            raise ConnectionAbortedError(errno.ECONNABORTED, "the helper hung up")
        kind, number, _, _, _ = _MESSAGE.unpack_from(message)
        if kind == READY:
            return int(number)
        if kind == KEPT and number == len(descriptors):
            kept[message[_MESSAGE.size :]] = descriptors
        else:
            _close(descriptors)


def widen(channel: socket.socket) -> None:
    """Let a channel hold more than it would by default."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BYTES)


class _Short:
    """A path to the socket in a directory that is short enough for an address."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1

    def __enter__(self) -> str:
        self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{SOCKET_NAME}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


# -- in the helper -------------------------------------------------------------------------------


class Store:
    """The helper's side: what is kept, and for how long."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._kept: dict[bytes, list[int]] = {}
        self._expiries: dict[bytes, int] = {}
        self._margins: dict[bytes, int] = {}  # of devices that are kept
        self._stale: set[bytes] = set()
        self._is_over = False
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Make the socket for successors, so that one finds it the moment the daemon dies.

        Only when there is no other helper in this directory. Raises OSError.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        mask = os.umask(0o177)
        try:
            with _Short(self._directory) as path:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                listener.bind(path)
            listener.listen(4)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
        self._listener = listener

    def dump(self) -> dict[str, Any]:
        """Return it as plain data, for the helper that this one becomes."""
        return {
            "directory": self._directory,
            "listener": -1 if self._listener is None else self._listener.fileno(),
            "kept": {key.hex(): fds for key, fds in self._kept.items()},
            "expiries": {key.hex(): time_us for key, time_us in self._expiries.items()},
            "margins": {key.hex(): time_us for key, time_us in self._margins.items()},
            "stale": [key.hex() for key in sorted(self._stale)],
            "is_over": self._is_over,
        }

    @classmethod
    def load(cls, left: dict[str, Any]) -> Store:
        """Return what `dump` told."""
        store = cls(left["directory"])
        store._kept = {bytes.fromhex(key): fds for key, fds in left["kept"].items()}
        store._expiries = {bytes.fromhex(key): time for key, time in left["expiries"].items()}
        store._margins = {bytes.fromhex(key): time for key, time in left["margins"].items()}
        store._stale = {bytes.fromhex(key) for key in left["stale"]}
        store._is_over = bool(left["is_over"])
        if left["listener"] >= 0:
            store._listener = socket.socket(fileno=left["listener"])
        for descriptor in store.descriptors():
            os.set_inheritable(descriptor, False)
        return store

    def descriptors(self) -> list[int]:
        """Return all descriptors that it has."""
        listener = [] if self._listener is None else [self._listener.fileno()]
        return [*listener, *(fd for fds in self._kept.values() for fd in fds)]

    def take(self, message: bytes, descriptors: list[int]) -> int:
        """Do what a message says; returns an errno. The descriptors are ours then."""
        if len(message) < _MESSAGE.size:
            _close(descriptors)
            return errno.EINVAL
        kind, number, _, _, time_us = _MESSAGE.unpack_from(message)
        key = message[_MESSAGE.size :]
        if kind == KEEP:
            if number != len(descriptors) or not self._has_room(descriptors):
                # More than this process may have open.
                _close(descriptors)
                return errno.EMFILE
            self._drop(key)
            self._kept[key] = descriptors
            if key.startswith(DEVICE):
                self._margins[key] = time_us
            return 0
        _close(descriptors)
        if kind == DROP:
            self._drop(key)
        elif kind == EXPIRE:
            self._stale.discard(EXPIRES + key)
            if time_us:
                self._expiries[key] = time_us
            else:
                self._expiries.pop(key, None)
        elif kind == SWEEP:
            self._sweep(is_end=bool(number))
        elif kind == BYE:
            self._is_over = True
        return 0

    def _has_room(self, descriptors: Sequence[int]) -> bool:
        """Tell whether enough descriptors are left to serve a successor, and to do the rest."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return len(self._kept) < _KEPT_MAX and max(descriptors, default=0) < limit - _SPARE

    def _drop(self, key: bytes) -> None:
        self._stale.discard(key)
        self._margins.pop(key, None)
        _close(self._kept.pop(key, []))

    def _sweep(self, *, is_end: bool) -> None:
        if not is_end:
            self._stale = {*self._kept, *(EXPIRES + key for key in self._expiries)}
            return
        for key in list(self._stale):
            if key.startswith(EXPIRES):
                self._expiries.pop(key.removeprefix(EXPIRES), None)
            self._drop(key)

    def close_devices(self) -> int | None:
        """Close what is kept of a device when a membership is about to expire under it.

        Returns after how many us that has to be looked at again, None when there is nothing to
        close, or it is too late for that.
        """
        ends = [self._expiries[key[1:]] for key in self._margins if key[1:] in self._expiries]
        if not ends:
            return None
        now, first = now_us(), min(ends)
        left_us = first - max(self._margins.values()) - now
        if left_us > 0:
            return left_us
        if now < first:
            for key in list(self._margins):
                self._drop(key)
        return None

    def await_successor(self) -> socket.socket | None:
        """Keep what is kept after the daemon's death; returns the channel to its successor.

        None when there is nothing to wait for any more.
        """
        self._stale.clear()
        if self._is_over or self._listener is None:
            return None
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while True:
            left_us = max(self._expiries.values(), default=0) - now_us()
            if left_us <= 0:
                self._expiries.clear()
                for key in [key for key in self._kept if not key.startswith(DEVICE)]:
                    self._drop(key)
                if not self._kept:
                    return None
            closing_us = self.close_devices()
            if closing_us is not None:
                left_us = min(left_us, closing_us)
            if poll.poll(left_us // 1000 + 1 if left_us > 0 else None):
                successor = self._greet(self._listener)
                if successor is not None:
                    return successor

    def _greet(self, listener: socket.socket) -> socket.socket | None:
        """Give what is kept to who has come, if it is the new daemon."""
        try:
            channel, _ = listener.accept()
        except OSError:  # it has gone already
            return None
        packed = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _, _ = _CREDENTIALS.unpack(packed)
        try:
            if pid != _holder(self._directory):
                raise PermissionError(errno.EPERM, "not the daemon of this directory")
            channel.settimeout(_GREETING_S)
            widen(channel)
            for key, descriptors in self._kept.items():
                message = _pack(KEPT, key, number=len(descriptors))
                channel.sendmsg([message], rights(descriptors))
            channel.send(_pack(READY, number=os.getpid()))
        except OSError:
            channel.close()
            return None
        channel.setblocking(True)
        return channel


def _holder(directory: str) -> int:
    """Return the pid of the process that has the lock on the pid file, 0 for none."""
    fd = os.open(os.path.join(directory, PID_NAME), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return lock_holder(fd)
    finally:
        os.close(fd)


def farewell() -> bytes:
    """Return the message that the daemon ends in good order."""
    return _pack(BYE)


def renewal(code: int) -> bytes:
    """Return the request to be of the code that is told (helper_renewal.py)."""
    return _pack(RENEW, number=code)


def code_wanted(message: bytes) -> int | None:
    """Return the code that a message asks for, None when it asks for something else."""
    if len(message) < _MESSAGE.size:
        return None
    kind, number, _, _, _ = _MESSAGE.unpack_from(message)
    return int(number) if kind == RENEW else None
