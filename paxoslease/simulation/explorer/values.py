"""The small values of an explored world: its bounds, its hosts' lives, what is in flight."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, NamedTuple

from paxoslease.disk.layout import SIZES_512, Area
from paxoslease.disk.records import (
    HostSector,
    Where,
    delta_at_format,
    pack_leader,
    pad_name,
    parse_host_sector,
)
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Resource
from paxoslease.protocol.effects import HostSeen, Protocol
from paxoslease.timing import SECOND_US, Timing

SPACE: Final = Lockspace(b"ls", Area("lockspace", 0, SIZES_512))
RESOURCE: Final = Resource(b"lease", (Area("resource", 0, SIZES_512),))
TIMING: Final = Timing(10, 60)
NOW_US: Final = 1000 * SECOND_US
_RENEWED_S: Final = 700  # what delta leases say; constant, as time is abstract


class Bounds(NamedTuple):
    """How far a search goes.

    versions, rounds: a host whose next write has a larger lver or ballot round stops before it.
    crashes, rejoins; timeouts: writes that time out and land later; read_timeouts; errors: reads
    or writes that fail, writes with or without effect; pauses: writes refused as too late
    (DecisionStale); attempts: per host, 0 for no limit. by_sector: area reads read sector by
    sector, in any order. kills: deaths of a process whose successor goes on in the same life and
    settles what was under way.
    """

    versions: int
    rounds: int
    crashes: int = 0
    rejoins: int = 0
    timeouts: int = 0
    read_timeouts: int = 0
    errors: int = 0
    pauses: int = 0
    attempts: int = 0
    by_sector: bool = False
    kills: int = 0


class Left(NamedTuple):
    """The faults that may still happen."""

    crashes: int
    rejoins: int
    timeouts: int
    read_timeouts: int
    errors: int
    pauses: int
    kills: int

    def less(self, fault: str) -> Left:
        return self._replace(**{fault: getattr(self, fault) - 1})


class InFlight(NamedTuple):
    """A write that timed out and has not landed."""

    host_id: int
    sector: int
    data: int
    ticket: int


class History(NamedTuple):
    """What the properties remember: the largest version granted, the owner written per version."""

    granted: int
    owners: tuple[tuple[int, int], ...]


class Life(NamedTuple):
    """One life of a host: what it runs, and whether it is the corpse of that life.

    succeeds: it begins as the successor of a process that was killed in this life.
    """

    host_id: int
    generation: int
    crashed: bool
    succeeds: bool = False


class Step(NamedTuple):
    """One step: the world after it, whose step it is, and the properties that it violates."""

    world: Any
    host_id: int
    action: str
    bad: tuple[str, ...] = ()


TWO_OWNERS: Final = "two owners"
REUSE: Final = "reuse"
CONFLICT: Final = "conflict"
BLOCKED: Final = "blocked"


class Table:
    """Numbers for values that occur often."""

    def __init__(self, bits: int) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Hashable, int] = {}
        self._limit = 1 << bits

    def number(self, value: Any) -> int:
        """Return the number of a value, a new one if it has none yet."""
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            assert number < self._limit, "a table of the explorer is full: widen its field"
            self.values.append(value)
        return number


class Crashed(NamedTuple):
    """The effect that a crashed host waits for: to rejoin."""


def corpse() -> Protocol[None]:
    """Be a crashed host."""
    yield Crashed()


def delta_sector(host_id: int, generation: int) -> bytes:
    """Return the delta lease of a host of some generation; only the generation matters here."""
    record = delta_at_format(SPACE.name, SPACE.area.sizes, TIMING.io_timeout)._replace(
        owner_id=host_id,
        owner_generation=generation,
        resource_name=pad_name(b"host %d" % host_id),
        timestamp=_RENEWED_S,
    )
    return pack_leader(record.sealed(), SPACE.area.sector_size)


def seen(life: Life) -> HostSeen:
    """Return what every host table says of a host: the truth."""
    last_live_us = NOW_US - TIMING.dead_us - 1 if life.crashed else NOW_US
    return HostSeen(
        life.host_id,
        life.generation,
        _RENEWED_S,
        b"host %d" % life.host_id,
        TIMING.io_timeout,
        TIMING.io_timeout,
        last_live_us - SECOND_US,
        NOW_US,
        last_live_us,
    )


def host_sector(data: bytes) -> HostSector:
    """Return what a host sector says."""
    return parse_host_sector(data, Where("resource", 0))
