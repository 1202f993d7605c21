"""What can go wrong in a simulated cluster, and how often: all drawn from the seed.

A seed draws the whole setting of a run first (swarm testing): many kinds of fault are off in any
one run, so that the others are not drowned, and sizes and times differ by orders of magnitude.

What the simulation may do, and why the cluster must survive it:

- An I/O takes any time. When its time-out passes its issuer is told, and a write goes on: it lands
  at any later moment, at the latest when its host is reset.
- An I/O may fail. A write that failed has landed or not, and will not land any more.
- A read of several sectors sees each at some moment of its own; a write of several lands sector by
  sector in any order. A sector is never torn.
- A host stands still for any time, also between two effects, while its disk I/O goes on and the
  processes that use its leases run. It crashes at any moment. Its watchdog resets it no later than
  `WATCHDOG_MARGIN_US` before the fire time-out after the expiry that it was told.
- What keeps a host's leases is killed, not their users nor its claim on the watchdog, and perhaps
  is started again: once its I/O has landed, at any later time, with a note of what was held or
  under way, which may be old about the last renewal.
- Clocks have any origin and differ in rate by at most `DRIFT_PPM` from true time. Over a wait of
  `dead` that is less than the watchdog's margin.
- Acknowledged writes are never lost.
"""

from __future__ import annotations

from random import Random
from typing import Final, NamedTuple

from paxoslease.disk.layout import MIB, Sizes
from paxoslease.timing import SECOND_US

DRIFT_PPM: Final = 100
WATCHDOG_MARGIN_US: Final = 100_000
_RATES: Final = (0.0, 0.0, 0.2, 1.0, 4.0)


class Options(NamedTuple):
    """The setting of one run. Rates are events per host and minute, chances are per I/O.

    hosts: number of host ids. io_timeouts: s, one per host. watchdog: s. resources: how many
    leases. disks: on how many disks each of them lies. sizes: of all areas. originals: how many
    hosts run the model of the original. adopt: chance that a killed daemon gets a successor.
    jitter: over how many powers of ten latencies spread. pushy: chance of an attempt that does not
    wait for its turn. minutes: virtual length of the phase with faults.
    """

    hosts: int
    io_timeouts: tuple[int, ...]
    format_io_timeout: int
    watchdog: int
    resources: int
    disks: int
    sizes: Sizes
    originals: int
    minutes: float
    actions: int
    latency_us: int
    jitter: float
    pushy: float
    slow_chance: float
    stuck_chance: float
    error_chance: float
    split_chance: float
    worst_moment: float
    pause_chance: float
    crash_rate: float
    pause_rate: float
    hang_rate: float
    kill_rate: float
    leave_rate: float
    twins: int
    shared: float
    convert: float
    lvb: float
    hold_us: int
    think_us: int
    deaf: float
    adopt: float = 0.0

    @property
    def is_faultless(self) -> bool:
        """Tell whether nothing goes wrong in this run."""
        return not any(
            value
            for name, value in self._asdict().items()
            if name.endswith(("_rate", "_chance")) and name != "split_chance"
        )


def draw_options(rng: Random, hosts: int | None, hours: float | None) -> Options:
    """Draw the setting of a run."""
    count = hosts or rng.choice((2, 2, 3, 3, 4, 5))
    base = rng.choice((1, 2, 5, 10))
    mixed = rng.random() < 0.3
    originals = 1 if rng.random() < 0.06 else 0
    calm = originals or rng.random() < 0.1

    def chance(*values: float) -> float:
        return 0.0 if calm else rng.choice((0.0, *values))

    def rate() -> float:
        return 0.0 if calm else rng.choice(_RATES)

    minutes = 60 * hours if hours else rng.choice((1.5, 3.0, 6.0, 12.0))
    return Options(
        hosts=count,
        io_timeouts=tuple(rng.choice((1, 2, 5, 10)) if mixed else base for _ in range(count + 1)),
        format_io_timeout=rng.choice((1, 10)) if mixed else base,
        watchdog=rng.choice((10, 20, 30, 60)),
        resources=rng.choice((1, 1, 2, 3)),
        disks=1 if originals else rng.choice((1, 1, 1, 1, 1, 2, 3)),
        sizes=rng.choice((Sizes(512, MIB), Sizes(512, MIB), Sizes(4096, 8 * MIB))),
        originals=originals,
        minutes=minutes,
        actions=10**9 if hours else rng.choice((15, 30, 60)),
        latency_us=rng.choice((200, 2_000, 20_000, 100_000)),
        jitter=rng.choice((0.0, 1.0, 2.0)),
        pushy=rng.choice((0.0, 0.5, 1.0)),
        slow_chance=chance(0.002, 0.02),
        stuck_chance=chance(0.0005, 0.005),
        error_chance=chance(0.002, 0.02),
        split_chance=rng.choice((0.0, 0.3)),
        worst_moment=rng.choice((0.0, 0.5)),
        pause_chance=chance(0.001, 0.01),
        crash_rate=rate(),
        pause_rate=rate(),
        hang_rate=rate(),
        kill_rate=rate(),
        leave_rate=rate(),
        twins=1 if not calm and rng.random() < 0.15 else 0,
        shared=0.0 if originals else rng.choice((0.0, 0.0, 0.5, 0.9)),
        convert=0.0 if originals else rng.choice((0.0, 0.3)),
        lvb=rng.choice((0.0, 0.7)),
        hold_us=rng.choice((20_000, SECOND_US, 8 * SECOND_US)),
        think_us=rng.choice((5_000, SECOND_US, 8 * SECOND_US)),
        deaf=rng.choice((0.0, 0.5, 1.0)),
    )


class Faults:
    """Draws what happens to each I/O. `is_on` ends with the phase of faults."""

    __slots__ = ("_options", "_rng", "_sum", "is_on")

    def __init__(self, options: Options, rng: Random) -> None:
        self._options = options
        self._rng = rng
        self._sum = options.slow_chance + options.stuck_chance
        self.is_on = True

    def latency_us(self, timeout_us: int) -> int:
        """Draw how long an I/O takes."""
        o, random = self._options, self._rng.random
        if self.is_on and self._sum:
            luck = random()
            if luck < o.stuck_chance:
                return int(timeout_us * (1 + random() * self._rng.choice((1, 10, 100))))
            if luck < self._sum:
                return int(timeout_us * random() * 1.5)
        spread = (0.5 + random()) * 10.0 ** (o.jitter * (random() - 0.5))
        return 1 + min(int(o.latency_us * spread), timeout_us // 2)

    def fails(self) -> bool:
        """Draw whether an I/O comes back with an error."""
        o = self._options
        return self.is_on and o.error_chance > 0 and self._rng.random() < o.error_chance

    def splits(self) -> bool:
        """Draw whether a read of several sectors sees them at different moments."""
        o = self._options
        return o.split_chance > 0 and self._rng.random() < o.split_chance

    def pauses(self) -> bool:
        """Draw whether a host stands still just before it submits what it decided."""
        o = self._options
        return self.is_on and o.pause_chance > 0 and self._rng.random() < o.pause_chance

    def pause_us(self) -> int:
        """Draw how long a host stands still."""
        o = self._options
        scale_s = self._rng.choice((1, 2 * o.io_timeouts[0], 8 * o.io_timeouts[0] + o.watchdog))
        return int(scale_s * SECOND_US * self._rng.random() * 1.2)
