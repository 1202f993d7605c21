"""Every wait of the protocols as a formula of io_timeout and the watchdog time-out.

Source: spec/timing-and-recovery.md 1. All results are integer microseconds, the unit of the
effect `Now`. The two inputs are whole seconds, because that is how hosts agree on them: io_timeout
is stored in each delta lease, the watchdog fire time-out is stored nowhere and must be the same on
all hosts that share storage.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from paxoslease.errors import ConfigError

SECOND_US: Final = 1_000_000

IO_TIMEOUT_DEFAULT_S: Final = 10
IO_TIMEOUT_MAX_S: Final = 255
WATCHDOG_FIRE_TIMEOUT_DEFAULT_S: Final = 60
WATCHDOG_FIRE_TIMEOUT_MAX_S: Final = 3600
FORMAT_TIMEOUT_US: Final = 60 * SECOND_US
KILL_GRACE_DEFAULT_S: Final = 40


class Timing(NamedTuple):
    """The two numbers from which every wait of a host in a lockspace follows.

    io_timeout: s, 1 to 255: the time-out of one disk operation.
    watchdog_fire_timeout: s: how long after its last ping the watchdog resets the host.
    """

    io_timeout: int = IO_TIMEOUT_DEFAULT_S
    watchdog_fire_timeout: int = WATCHDOG_FIRE_TIMEOUT_DEFAULT_S

    @property
    def io_us(self) -> int:
        """Return the time-out of one disk operation."""
        return self.io_timeout * SECOND_US

    @property
    def renewal_us(self) -> int:
        """Return the pause between two renewals, counted from the timestamp of the last."""
        return renewal_us(self.io_timeout)

    @property
    def warning_us(self) -> int:
        """Return after how long without a renewal the operator is warned."""
        return 6 * self.io_us

    @property
    def fail_us(self) -> int:
        """Return after how long without a renewal this host must stop using its leases."""
        return fail_us(self.io_timeout)

    @property
    def dead_us(self) -> int:
        """Return after how long without a visible change a host with this timing is dead."""
        return dead_us(self.io_timeout, self.watchdog_fire_timeout)

    @property
    def bitmap_us(self) -> int:
        """Return how long a bitmap bit is advertised: about three renewals of both sides."""
        return 6 * self.io_us

    def kill_grace_us(self, configured_s: int = KILL_GRACE_DEFAULT_S) -> int:
        """Return how long processes are asked before they are killed, counted from `fail_us`.

        At least 10 s, or a third of a short watchdog time-out, must be left for SIGKILL before the
        watchdog may fire.
        """
        longest_us = self.watchdog_fire_timeout * SECOND_US * 2 // 3
        return max(0, min(configured_s * SECOND_US, longest_us))


def renewal_us(io_timeout: int) -> int:
    """Return the renewal interval for an io_timeout in seconds."""
    return 2 * io_timeout * SECOND_US


def fail_us(io_timeout: int) -> int:
    """Return the time from a host's last renewal to the start of its recovery."""
    return 8 * io_timeout * SECOND_US


def dead_us(io_timeout: int, watchdog_fire_timeout: int) -> int:
    """Return the time after which a record that stood still proves that its host is gone.

    Safe because the host stops granting `fail_us` after its last recorded timestamp and is reset
    by its watchdog no later than the fire time-out after that (spec/algorithms.md 13). Observers
    compare with `>`, never `>=`.
    """
    return (8 * io_timeout + watchdog_fire_timeout) * SECOND_US


def delta_settle_us(io_timeout: int) -> int:
    """Return the wait between writing a delta lease and re-reading it.

    A competitor that read the record before our write spends at most one I/O time-out in its read
    and one in its write; after two, its write has landed and our re-read shows it. `io_timeout` is
    the largest that any contender may use (rule M9).
    """
    return 2 * io_timeout * SECOND_US


def check_timing(timing: Timing) -> Timing:
    """Return `timing`, or raise ConfigError when a value cannot be stored or is senseless."""
    if not 1 <= timing.io_timeout <= IO_TIMEOUT_MAX_S:
        raise ConfigError("io_timeout", f"{timing.io_timeout} is not between 1 and 255 seconds")
    if not 1 <= timing.watchdog_fire_timeout <= WATCHDOG_FIRE_TIMEOUT_MAX_S:
        raise ConfigError(
            "watchdog_fire_timeout",
            f"{timing.watchdog_fire_timeout} is not between 1 and 3600 seconds",
        )
    return timing
