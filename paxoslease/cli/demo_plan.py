"""What the demonstration's processes must agree on."""

from __future__ import annotations

from typing import Final

from paxoslease.timing import SECOND_US, Timing

LOCKSPACE: Final = "demo"
GUEST: Final = "guest-1"
IO_TIMEOUT_S: Final = 1
WATCHDOG_S: Final = 3
HOST_NAMES: Final = {1: "host-a.demo", 2: "host-b.demo"}
HOLD_S: Final = 3.0  # how long the first owner may run before it is killed
LIMIT_S: Final = 40.0  # longer than this means that something is broken

DEAD_S: Final = Timing(IO_TIMEOUT_S, WATCHDOG_S).dead_us / SECOND_US
