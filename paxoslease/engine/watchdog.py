"""The watchdog: what resets a host that can no longer be trusted to stop by itself.

Three kinds behind one interface. `WdmdWatchdog` speaks to wdmd, sanlock's watchdog multiplexer.
`DeviceWatchdog` owns a watchdog device. `NoWatchdog` says what it gives up.

Each membership `connect`s before it acquires its host id (so that a missing watchdog is found
early), then arms with the first `pet`, pets with every renewal, and disarms when nothing runs any
more. Petting depends on no disk and on no lock that is held across I/O.

Source: spec/timing-and-recovery.md 4, 4.1 and 4.2.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from typing import Final

from paxoslease.engine.watchdog_base import Watchdog, WatchdogState
from paxoslease.engine.watchdog_device import Device, DeviceOwner, DeviceWatchdog
from paxoslease.errors import WatchdogError
from paxoslease.timing import SECOND_US

_log = logging.getLogger(__name__)

WDMD_SOCKET: Final = "/run/wdmd/wdmd.sock"
_REPLY_S: Final = 2.0
_LATE_US: Final = SECOND_US  # how late a test of wdmd may come

_WDMD_MESSAGE: Final = struct.Struct("=IIIIIIQQQ128s")
_REGISTER, _REFCOUNT_SET, _REFCOUNT_CLEAR, _TEST_LIVE, _STATUS, _OPEN_WATCHDOG = 1, 2, 3, 4, 5, 7
assert _WDMD_MESSAGE.size == 176


class NoWatchdog(Watchdog):
    """No watchdog: a host that hangs, or whose processes cannot be killed, is not stopped."""

    def __init__(self, lockspace: bytes) -> None:
        self._lockspace = lockspace

    def connect(self) -> None:
        _log.warning(
            "no_watchdog lockspace=%s: if this host hangs while it holds leases, nothing resets "
            "it, and another host will take over beside it",
            self._lockspace.decode("utf-8", "backslashreplace"),
        )

    def pet(self, renewed_us: int, expire_us: int) -> None:
        return

    def disarm(self) -> None:
        return

    def close(self) -> None:
        return

    @property
    def is_connected(self) -> bool:
        return True

    @property
    def descriptor(self) -> int:
        return -1

    def detach(self) -> WatchdogState:
        return WatchdogState("none", -1, False)

    def undetach(self) -> None:
        return

    def attach(self, state: WatchdogState) -> None:
        if state.kind != "none":
            raise WatchdogError(self._lockspace, f"{state.kind} was handed over, but none is used")


class WdmdWatchdog(Watchdog):
    """A client of wdmd: one stream connection per membership, fixed messages of 176 bytes."""

    def __init__(
        self, lockspace: bytes, host_id: int, fire_timeout_s: int, path: str = WDMD_SOCKET
    ) -> None:
        self._lockspace = lockspace
        self._name = b"sanlock_%s:%d" % (lockspace, host_id)
        self._fire_timeout_s = fire_timeout_s
        self._path = path
        self._socket: socket.socket | None = None
        self._registered = False

    def _error(self, reason: str) -> WatchdogError:
        return WatchdogError(self._lockspace, reason)

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(_REPLY_S)
        try:
            connection.connect(self._path)
            self._socket = connection
            fire_timeout_s = self._ask_fire_timeout(_STATUS)
            if fire_timeout_s != self._fire_timeout_s:
                # Newer ones open the device when they are asked to, with the time-out asked for.
                fire_timeout_s = self._ask_fire_timeout(_OPEN_WATCHDOG) or fire_timeout_s
        except OSError as error:
            connection.close()
            self._socket = None
            raise self._error(f"wdmd at {self._path}: {error.strerror or error}") from error
        if fire_timeout_s != self._fire_timeout_s:
            self.close()
            raise self._error(
                f"wdmd fires after {fire_timeout_s} s, this lockspace needs {self._fire_timeout_s}"
            )

    def _ask_fire_timeout(self, command: int) -> int:
        """Return the time-out that a reply names, 0 when there is no reply."""
        assert self._socket is not None
        self._send(command)
        reply = b""
        while len(reply) < _WDMD_MESSAGE.size:
            try:
                part = self._socket.recv(_WDMD_MESSAGE.size - len(reply))
            except TimeoutError:
                return 0
            if not part:
                raise self._error(f"wdmd at {self._path} closed the connection")
            reply += part
        return int(_WDMD_MESSAGE.unpack(reply)[5])

    def _send(self, command: int, renewal_s: int = 0, expire_s: int = 0) -> None:
        """Send one message. Raises WatchdogError; half a message would be worse than none."""
        if self._socket is None:
            raise self._error("the connection to wdmd is gone")
        name = self._name[:127]
        wanted_s = self._fire_timeout_s if command == _OPEN_WATCHDOG else 0
        message = _WDMD_MESSAGE.pack(0, command, 0, 0, 0, wanted_s, 0, renewal_s, expire_s, name)
        try:
            sent = self._socket.send(message, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise self._error(f"wdmd at {self._path}: {error.strerror or error}") from error
        if sent != len(message):
            raise self._error("wdmd does not read what it is sent")

    def pet(self, renewed_us: int, expire_us: int) -> None:
        if not self._registered:
            assert self._socket is not None
            self._send(_REGISTER)
            self._send(_REFCOUNT_SET)
            self._registered = True
            self._socket.setblocking(False)
        # wdmd compares with CLOCK_MONOTONIC, which stands still during suspend. Reading it first
        # and rounding the expiry down is on the safe side. It tests in whole seconds and just often
        # enough: a test that comes a moment late closes the device a moment after the expiry.
        monotonic_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        skew_us = -((monotonic_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) // 1000)
        self._send(
            _TEST_LIVE,
            max(1, (renewed_us - skew_us) // SECOND_US),
            max(1, (expire_us - _LATE_US - skew_us) // SECOND_US),
        )

    def disarm(self) -> None:
        if self._registered:
            self._send(_TEST_LIVE, 0, 0)
            self._send(_REFCOUNT_CLEAR)
            self._registered = False

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def is_connected(self) -> bool:
        return self._socket is not None

    @property
    def descriptor(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def detach(self) -> WatchdogState:
        if self._socket is None:
            raise self._error("the connection to wdmd is gone")
        self._socket.set_inheritable(True)
        return WatchdogState("wdmd", self._socket.fileno(), self._registered)

    def undetach(self) -> None:
        if self._socket is not None:
            self._socket.set_inheritable(False)

    def attach(self, state: WatchdogState) -> None:
        if state.kind != "wdmd" or state.fd < 0:
            raise self._error(f"{state.kind} was handed over, not a connection to wdmd")
        try:
            connection = socket.socket(fileno=state.fd)
        except OSError as error:
            raise self._error(f"descriptor {state.fd}: {error.strerror}") from error
        try:
            if connection.family != socket.AF_UNIX or connection.getpeername() != self._path:
                raise self._error(f"descriptor {state.fd} is no connection to {self._path}")
        except OSError as error:
            connection.detach()
            raise self._error(f"descriptor {state.fd}: {error.strerror}") from error
        except WatchdogError:
            connection.detach()
            raise
        connection.set_inheritable(False)
        connection.settimeout(0 if state.is_armed else _REPLY_S)
        self._socket = connection
        self._registered = state.is_armed


_owners: dict[str, DeviceOwner] = {}
_owners_lock = threading.Lock()


def open_watchdog(kind: str, lockspace: bytes, host_id: int, fire_timeout_s: int) -> Watchdog:
    """Return the watchdog that `kind` names: none, wdmd, or the path of a device."""
    if kind == "none":
        return NoWatchdog(lockspace)
    if kind == "wdmd":
        return WdmdWatchdog(lockspace, host_id, fire_timeout_s)
    if not kind.startswith("/"):
        raise WatchdogError(lockspace, f"'{kind}' is neither 'none' nor 'wdmd' nor a device")
    with _owners_lock:
        owner = _owners.setdefault(kind, DeviceOwner(Device(kind), fire_timeout_s))
    if owner.fire_timeout_s != fire_timeout_s:
        raise WatchdogError(lockspace, f"{kind} is in use with {owner.fire_timeout_s} s")
    return DeviceWatchdog(lockspace, owner)
