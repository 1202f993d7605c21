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

_WDMD_MESSAGE: Final = struct.Struct("=IIIIIIQQQ128s")
_REGISTER, _REFCOUNT_SET, _REFCOUNT_CLEAR, _TEST_LIVE, _STATUS = 1, 2, 3, 4, 5
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
        connection.settimeout(5.0)
        try:
            connection.connect(self._path)
            self._socket = connection
            fire_timeout_s = self._ask_fire_timeout()
        except OSError as error:
            connection.close()
            self._socket = None
            raise self._error(f"wdmd at {self._path}: {error.strerror or error}") from error
        if fire_timeout_s != self._fire_timeout_s:
            self.close()
            raise self._error(
                f"wdmd fires after {fire_timeout_s} s, this lockspace needs {self._fire_timeout_s}"
            )

    def _ask_fire_timeout(self) -> int:
        assert self._socket is not None
        self._send(_STATUS)
        reply = b""
        while len(reply) < _WDMD_MESSAGE.size:
            part = self._socket.recv(_WDMD_MESSAGE.size - len(reply))
            if not part:
                raise self._error(f"wdmd at {self._path} closed the connection")
            reply += part
        return int(_WDMD_MESSAGE.unpack(reply)[5])

    def _send(self, command: int, renewal_s: int = 0, expire_s: int = 0) -> None:
        if self._socket is None:
            raise self._error("the connection to wdmd is gone")
        name = self._name[:127]
        message = _WDMD_MESSAGE.pack(0, command, 0, 0, 0, 0, 0, renewal_s, expire_s, name)
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
        # wdmd compares with CLOCK_MONOTONIC, which stands still during suspend; rounding down is
        # on the safe side.
        skew_us = (
            time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        ) // 1000
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

    A thread pets it every min(10, W/6) seconds while every armed membership has more left.
    When one has not, the device is closed without 'V': the kernel counts on, and resets the host
    within W. That is no later than the membership's expiry + W. If the membership recovers (its
    processes are gone, it disarms), the device is opened again.

    A process that dies with the device open makes the kernel ping once more; a successor in the
    same boot must not ping again, so a marker outside of the process says that the device is, or
    was, in use in this boot.
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
        self._marker = Path(marker_directory) / f"watchdog-{Path(device.path).name}"
        self._boot_id = boot_id or _boot_id
        self._clock_us = clock_us or _boottime_us
        self._lock = threading.Lock()
        self._expiries: dict[int, int] = {}
        self._users = 0
        self._is_open = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the device for one more membership. Raises OSError, ValueError (time-out)."""
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            try:
                self._refuse_after_unclean_end()
                self._open()
            except BaseException:
                self._users -= 1
                raise
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="paxoslease-watchdog", daemon=True)
        self._thread.start()

    def _refuse_after_unclean_end(self) -> None:
        if self._marker.exists() and self._marker.read_text() == self._boot_id():
            raise ValueError(
                f"a process that used {self.device.path} ended uncleanly in this boot; opening it "
                "again would put off the reset that may be due"
            )

    def _open(self) -> None:
        self._marker.parent.mkdir(parents=True, exist_ok=True)
        self._marker.write_text(self._boot_id())
        in_force_s = self.device.open(self.fire_timeout_s)
        self._is_open = True
        if in_force_s != self.fire_timeout_s:
            self.device.close(disarm=True)
            self._is_open = False
            self._marker.unlink()
            raise ValueError(f"{self.device.path} fires after {in_force_s} s and cannot be set")

    def arm(self, user: int, expire_us: int) -> None:
        """Note until when a membership is good."""
        with self._lock:
            self._expiries[user] = expire_us

    def disarm(self, user: int) -> None:
        """Forget a membership: nothing of it runs any more."""
        with self._lock:
            self._expiries.pop(user, None)

    def end(self) -> None:
        """Close the device for one membership; the last disarms it if nothing is armed."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            self._stop.set()
            clean = not self._expiries
            if self._is_open:
                self.device.close(disarm=clean)
                self._is_open = False
            if clean:
                self._marker.unlink(missing_ok=True)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def test(self) -> None:
        """Pet, or stop petting: what the thread does at every interval."""
        with self._lock:
            if not self._users:
                return
            now = self._clock_us()
            good = all(now < expire - self.interval_us for expire in self._expiries.values())
            if good and not self._is_open:
                self._open()
                _log.warning("watchdog_reopened device=%s", self.device.path)
            if good:
                self.device.keepalive()
            elif self._is_open:
                self.device.close(disarm=False)
                self._is_open = False
                _log.critical(
                    "watchdog_abandoned device=%s: the host will be reset in %d s",
                    self.device.path,
                    self.fire_timeout_s,
                )

    def _run(self) -> None:
        while not self._stop.wait(self.interval_us / SECOND_US):
            try:
                self.test()
            except (OSError, ValueError) as error:
                # Not petted: the reset that follows is what the watchdog is for.
                _log.critical("watchdog_failed device=%s error=%s", self.device.path, error)


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
