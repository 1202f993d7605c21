"""A timer of CLOCK_BOOTTIME that can be polled: exact to microseconds, and due after a suspend.

poll(2) counts in milliseconds of CLOCK_MONOTONIC, which stands still while the host is suspended; a
host that wakes after its lease has ended must know it at once (rule M18). Python has timerfds only
since 3.13, so libc is asked.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Final

_TFD_TIMER_ABSTIME: Final = 1
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_MILLION: Final = 1_000_000


class _Spec(ctypes.Structure):
    """struct itimerspec, once and at an absolute time."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


_libc = ctypes.CDLL(None, use_errno=True)


class Alarm:
    """One timer, used by one thread. `fd` is readable once the time has come."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(time.CLOCK_BOOTTIME, _FLAGS)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = _Spec(0, 0, 0, 0)
        self._pointer = ctypes.byref(self._spec)
        self._set_us = 0

    def set(self, when_us: int) -> None:
        """Be due at `when_us` of CLOCK_BOOTTIME; 0 for never. A time of the past is due at once."""
        if when_us == self._set_us:
            return
        self._set_us = when_us
        self._spec.value_s, rest_us = divmod(when_us, _MILLION)
        self._spec.value_ns = rest_us * 1000
        if _libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, self._pointer, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Close the timer."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
