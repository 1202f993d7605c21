"""A watchdog device of the kernel, owned by this process for all of its memberships.

Source: spec/timing-and-recovery.md 4.2.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import Final

from paxoslease.engine.watchdog_base import Watchdog, WatchdogState
from paxoslease.errors import WatchdogError
from paxoslease.timing import SECOND_US

_log = logging.getLogger(__name__)

MARKER_DIRECTORY: Final = "/run/paxoslease"

_WDIOC_GETSUPPORT: Final = 0x80285700
_WDIOC_SETTIMEOUT: Final = 0xC0045706
_WDIOC_GETTIMEOUT: Final = 0x80045707
_WDIOC_KEEPALIVE: Final = 0x80045705
_WDIOF_MAGICCLOSE: Final = 0x0100
_INFO: Final = struct.Struct("=II32s")  # struct watchdog_info: options, firmware, identity

_BUSY_S: Final = 2.0
_BUSY_POLL_S: Final = 0.02


class Device:
    """The system calls on a watchdog device; tests put another in its place."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def open(self, fire_timeout_s: int) -> int:
        """Open the device, which arms it, set its time-out and return the one in force.

        A device that will not do is disarmed again. Raises OSError, ValueError.
        """
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            options, _, _ = _INFO.unpack(ioctl(self._fd, _WDIOC_GETSUPPORT, bytes(_INFO.size)))
        except OSError:
            # No watchdog: a 'V' would be written to it.
            self.close(disarm=False)
            raise
        try:
            if not options & _WDIOF_MAGICCLOSE:
                # The end of this process, however it ends, would disarm it.
                raise ValueError(f"the driver of {self.path} stops it when it is closed")
            packed = struct.pack("i", fire_timeout_s)
            with suppress(OSError):  # a driver with a fixed time-out; what it has is read below
                ioctl(self._fd, _WDIOC_SETTIMEOUT, packed)
            return int(struct.unpack("i", ioctl(self._fd, _WDIOC_GETTIMEOUT, bytes(4)))[0])
        except (OSError, ValueError):
            self.close(disarm=True)
            raise

    def adopt(self, fd: int) -> int:
        """Take over a descriptor of the open device, and return the time-out in force."""
        in_force_s = int(struct.unpack("i", ioctl(fd, _WDIOC_GETTIMEOUT, bytes(4)))[0])
        os.set_inheritable(fd, False)
        self._fd = fd
        return in_force_s

    @property
    def descriptor(self) -> int:
        """Return the descriptor, -1 while it is closed."""
        return self._fd

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
    more and counts on, and resets the host within W, no later than the membership's expiry + W.
    Whoever else has a copy of the descriptor has to close it at the same time (`margin_us`): the
    kernel pings when the last one is closed. If the thread comes too late for that (it was
    starved), the device stays open and is not petted any more: the last ping is older than a close
    would make it. If the membership ends well (its processes are gone, it disarms), the device is
    opened again.

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
                self._open_when_free()
                if self.run_thread:
                    self._start_thread()
            self._users += 1

    def adopt(self, user: int, fd: int) -> None:
        """Go on with a predecessor's open device for one membership.

        It is not petted before this membership is armed: nobody knows yet that it is good. Another
        copy of the descriptor is closed; the first is used. Raises OSError, ValueError (time-out).
        """
        with self._lock:
            if self._users:
                if fd != self.device.descriptor:
                    os.close(fd)
            else:
                in_force_s = self.device.adopt(fd)
                if in_force_s != self.fire_timeout_s:
                    raise ValueError(f"{self.device.path} fires after {in_force_s} s")
                self._is_open = True
                self._is_petted = False
                if self.run_thread:
                    self._start_thread()
            self._users += 1
            self._expiries[user] = self._clock_us()

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name="paxoslease-watchdog", daemon=True)
        self._thread.start()

    def _refuse_after_unclean_end(self) -> None:
        if self._marker.exists() and self._marker.read_text() == self._boot_id():
            raise ValueError(
                f"{self.device.path} is in use, or a process that used it ended uncleanly in this "
                "boot; opening it again would put off the reset that may be due"
            )

    def _open_when_free(self) -> None:
        """Open the device; while it is busy it may be ours, and on its way to be closed.

        Whoever keeps a copy of the descriptor is told to drop it and does so a moment later.
        """
        until = time.monotonic() + _BUSY_S
        while True:
            try:
                self._open()
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > until:
                    raise
            else:
                return
            time.sleep(_BUSY_POLL_S)

    def _open(self) -> None:
        self._marker.parent.mkdir(parents=True, exist_ok=True)
        self._marker.write_text(self._boot_id())
        try:
            in_force_s = self.device.open(self.fire_timeout_s)
        except (OSError, ValueError):
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

    def is_armed(self, user: int) -> bool:
        """Tell whether a membership was armed and not disarmed."""
        with self._lock:
            return user in self._expiries

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

    def _error(self, error: OSError | ValueError) -> WatchdogError:
        reason = error.strerror if isinstance(error, OSError) else None
        path = self._owner.device.path
        return WatchdogError(self._lockspace, f"{path}: {reason}" if reason else str(error))

    def connect(self) -> None:
        try:
            self._owner.start()
        except (OSError, ValueError) as error:
            raise self._error(error) from error
        self._connected = True

    def pet(self, renewed_us: int, expire_us: int) -> None:
        self._owner.arm(id(self), expire_us)

    def disarm(self) -> None:
        self._owner.disarm(id(self))

    def close(self) -> None:
        if self._connected:
            self._connected = False
            self._owner.end()

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def descriptor(self) -> int:
        return self._owner.device.descriptor

    @property
    def margin_us(self) -> int:
        return self._owner.interval_us

    def detach(self) -> WatchdogState:
        fd = self.descriptor
        if fd < 0:
            raise WatchdogError(self._lockspace, "the device was left to fire")
        os.set_inheritable(fd, True)
        return WatchdogState(self._owner.device.path, fd, self._owner.is_armed(id(self)))

    def undetach(self) -> None:
        if self.descriptor >= 0:
            os.set_inheritable(self.descriptor, False)

    def attach(self, state: WatchdogState) -> None:
        if state.kind != self._owner.device.path or state.fd < 0:
            raise WatchdogError(self._lockspace, f"{state.kind} was handed over, not the device")
        try:
            self._owner.adopt(id(self), state.fd)
        except (OSError, ValueError) as error:
            raise self._error(error) from error
        self._connected = True


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def _boottime_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
