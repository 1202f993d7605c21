"""The watchdog: what resets a host that can no longer be trusted to stop by itself.

Three kinds behind one interface. `WdmdWatchdog` speaks to wdmd, sanlock's watchdog multiplexer.
`DeviceWatchdog` owns a watchdog device. `NoWatchdog` says what it gives up.

Each membership `connect`s before it acquires its host id (so that a missing watchdog is found
early), then arms with the first `pet`, pets with every renewal, and disarms when nothing runs any
more. Petting depends on no disk and on no lock that is held across I/O.

Source: spec/timing-and-recovery.md 4, 4.1 and 4.2.
"""

from __future__ import annotations

import abc
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import Final

from paxoslease.errors import WatchdogError
from paxoslease.timing import SECOND_US

_log = logging.getLogger(__name__)

WDMD_SOCKET: Final = "/run/wdmd/wdmd.sock"
MARKER_DIRECTORY: Final = "/run/paxoslease"
_REPLY_S: Final = 2.0

_WDMD_MESSAGE: Final = struct.Struct("=IIIIIIQQQ128s")
_REGISTER, _REFCOUNT_SET, _REFCOUNT_CLEAR, _TEST_LIVE, _STATUS, _OPEN_WATCHDOG = 1, 2, 3, 4, 5, 7
assert _WDMD_MESSAGE.size == 176

_WDIOC_SETTIMEOUT: Final = 0xC0045706
_WDIOC_GETTIMEOUT: Final = 0x80045707
_WDIOC_KEEPALIVE: Final = 0x80045705


class Watchdog(abc.ABC):
    """The connection of one membership to a watchdog. Times: us of CLOCK_BOOTTIME."""

    @abc.abstractmethod
    def connect(self) -> None:
        """Find out whether the watchdog is there and has the right time-out.

        Raises WatchdogError.
        """

    @abc.abstractmethod
    def pet(self, renewed_us: int, expire_us: int) -> None:
        """Have the host reset unless this is called again before `expire_us`; never blocks.

        Raises WatchdogError when the watchdog does not take it.
        """

    @abc.abstractmethod
    def disarm(self) -> None:
        """End the membership's claim: nothing that uses leases runs any more."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give up the connection. While armed this leads to a reset."""


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
        # and rounding the expiry down is on the safe side.
        monotonic_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        skew_us = -((monotonic_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) // 1000)
        self._send(
            _TEST_LIVE,
            max(1, (renewed_us - skew_us) // SECOND_US),
            max(1, (expire_us - skew_us) // SECOND_US),
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


class Device:
    """The system calls on a watchdog device; tests put another in its place."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def open(self, fire_timeout_s: int) -> int:
        """Open the device, which arms it, set its time-out and return the one in force."""
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        packed = struct.pack("i", fire_timeout_s)
        with suppress(OSError):  # a driver with a fixed time-out; what it has is read below
            ioctl(self._fd, _WDIOC_SETTIMEOUT, packed)
        return int(struct.unpack("i", ioctl(self._fd, _WDIOC_GETTIMEOUT, bytes(4)))[0])

    def keepalive(self) -> None:
        """Ping."""
        ioctl(self._fd, _WDIOC_KEEPALIVE, bytes(4))

    def close(self, *, disarm: bool) -> None:
        """Close the device, with the magic character when it is to be disarmed."""
        if self._fd < 0:
            return
        if disarm:
            os.write(self._fd, b"V")
        os.close(self._fd)
        self._fd = -1


class DeviceOwner:
    """Owns a watchdog device for all memberships of this process.

    A thread pets it every min(10, W/6) seconds while every armed membership has more left than one
    such interval. As soon as one has not, the device is closed without 'V': the kernel pings once
    more and counts on, and resets the host within W, no later than the membership's expiry + W. If
    the thread comes too late for that (it was starved), the device stays open and is not petted
    any more: the last ping is older than a close would make it. If the membership ends well (its
    processes are gone, it disarms), the device is opened again.

    A process that dies with the device open makes the kernel ping once more; a successor in the
    same boot must not ping again, so a marker outside of the process says that the device is, or
    was, in use in this boot.

    Source: spec/timing-and-recovery.md 4.2.
    """

    def __init__(
        self,
        device: Device,
        fire_timeout_s: int,
        *,
        marker_directory: str = MARKER_DIRECTORY,
        boot_id: Callable[[], str] | None = None,
        clock_us: Callable[[], int] | None = None,
    ) -> None:
        self.device = device
        self.fire_timeout_s = fire_timeout_s
        self.interval_us = min(10 * SECOND_US, fire_timeout_s * SECOND_US // 6)
        self.run_thread = True
        self._marker = Path(marker_directory) / f"watchdog-{Path(device.path).name}"
        self._boot_id = boot_id or _boot_id
        self._clock_us = clock_us or _boottime_us
        self._lock = threading.Lock()
        self._expiries: dict[int, int] = {}
        self._users = 0
        self._is_open = False
        self._is_petted = False
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the device for one more membership. Raises OSError, ValueError (time-out)."""
        with self._lock:
            if not self._users:
                self._refuse_after_unclean_end()
                self._open()
                if self.run_thread:
                    self._thread = threading.Thread(
                        target=self._run, name="paxoslease-watchdog", daemon=True
                    )
                    self._thread.start()
            self._users += 1

    def _refuse_after_unclean_end(self) -> None:
        if self._marker.exists() and self._marker.read_text() == self._boot_id():
            raise ValueError(
                f"{self.device.path} is in use, or a process that used it ended uncleanly in this "
                "boot; opening it again would put off the reset that may be due"
            )

    def _open(self) -> None:
        self._marker.parent.mkdir(parents=True, exist_ok=True)
        self._marker.write_text(self._boot_id())
        try:
            in_force_s = self.device.open(self.fire_timeout_s)
        except OSError:
            if not self._users:
                self._marker.unlink()
            raise
        self._is_open = self._is_petted = True
        if in_force_s != self.fire_timeout_s:
            self._close(disarm=True)
            self._marker.unlink()
            raise ValueError(f"{self.device.path} fires after {in_force_s} s and cannot be set")

    def _close(self, *, disarm: bool) -> None:
        if self._is_open:
            self.device.close(disarm=disarm)
        self._is_open = self._is_petted = False

    def arm(self, user: int, expire_us: int) -> None:
        """Note until when a membership is good."""
        with self._lock:
            self._expiries[user] = expire_us
        self._changed.set()

    def disarm(self, user: int) -> None:
        """Forget a membership: nothing of it runs any more."""
        with self._lock:
            self._expiries.pop(user, None)
        self._changed.set()

    def end(self) -> None:
        """Close the device for one membership; the last disarms it if nothing is armed."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            clean = not self._expiries
            if clean and not self._is_open:
                # It was closed to fire; what it was to end has ended by itself.
                self._open()
            self._close(disarm=clean)
            if clean:
                self._marker.unlink(missing_ok=True)
            thread, self._thread = self._thread, None
        self._changed.set()
        if thread is not None:
            thread.join()

    def test(self) -> int:
        """Pet, or stop petting: what the thread does again and again.

        Returns after how many us it wants to be called again, at the latest.
        """
        with self._lock:
            if not self._users:
                return self.interval_us
            now = self._clock_us()
            earliest = min(self._expiries.values(), default=now + 2 * self.interval_us)
            left = earliest - self.interval_us - now
            if left > 0:
                if not self._is_open:
                    self._open()
                    _log.warning("watchdog_reopened device=%s", self.device.path)
                self.device.keepalive()
                self._is_petted = True
                return min(left, self.interval_us)
            if self._is_petted:
                self._is_petted = False
                if now < earliest:
                    self._close(disarm=False)
                _log.critical(
                    "watchdog_abandoned device=%s: the host will be reset in %d s",
                    self.device.path,
                    self.fire_timeout_s,
                )
            return self.interval_us

    def _run(self) -> None:
        thread = threading.current_thread()
        while True:
            self._changed.clear()
            if self._thread is not thread:
                return
            wait_us = self.interval_us
            try:
                wait_us = self.test()
            except (OSError, ValueError) as error:
                # Not petted: the reset that follows is what the watchdog is for.
                _log.critical("watchdog_failed device=%s error=%s", self.device.path, error)
            self._changed.wait(wait_us / SECOND_US)


class DeviceWatchdog(Watchdog):
    """One membership's share of a watchdog device."""

    def __init__(self, lockspace: bytes, owner: DeviceOwner) -> None:
        self._lockspace = lockspace
        self._owner = owner
        self._connected = False

    def connect(self) -> None:
        try:
            self._owner.start()
        except (OSError, ValueError) as error:
            raise WatchdogError(self._lockspace, str(error)) from error
        self._connected = True

    def pet(self, renewed_us: int, expire_us: int) -> None:
        self._owner.arm(id(self), expire_us)

    def disarm(self) -> None:
        self._owner.disarm(id(self))

    def close(self) -> None:
        if self._connected:
            self._connected = False
            self._owner.end()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def _boottime_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


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
