"""The host table: what a member knows of every host id of its lockspace.

Fed with the columns of each renewal's area read, it remembers for every host id the last (owner,
generation, timestamp), when that was seen to change, and the largest io_timeout ever seen.
Timestamps of others are only compared with each other; time is always measured from local moments
of observation.

Arrays have one element per host id, index host_id - 1, and belong to the table. It is changed by
the thread that renews; others read it and see each host's row as of some renewal.

Source: spec/algorithms.md 3; rule M9.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from paxoslease.disk.records import cut_name
from paxoslease.protocol.effects import UNSEEN, HostSeen
from paxoslease.timing import SECOND_US

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]


class HostState(IntEnum):
    """How a host looks from here."""

    FREE = 0
    LIVE = 1
    UNKNOWN = 2  # one sample only so far
    FAIL = 3  # stood still for so long that its own recovery has begun
    DEAD = 4  # stood still for so long that others may take over


class HostRow(NamedTuple):
    """One host as reported to people: state, record and how long ago it was seen to change."""

    host_id: int
    name: bytes
    generation: int
    timestamp: int
    io_timeout: int
    state: HostState
    seen_ago_us: int


class HostTable:
    """The table for the `count` host ids of one lockspace, seen by host `own_id`."""

    def __init__(self, count: int, own_id: int) -> None:
        self.own_id = own_id
        self.first_check_us = 0
        self.last_check_us = 0
        self.owner_id: UInt64 = np.zeros(count, np.uint64)
        self.generation: UInt64 = np.zeros(count, np.uint64)
        self.timestamp: UInt64 = np.zeros(count, np.uint64)
        self.io_timeout: Int64 = np.zeros(count, np.int64)
        self.io_max: Int64 = np.zeros(count, np.int64)
        self.last_live_us: Int64 = np.zeros(count, np.int64)
        self.names: dict[int, bytes] = {}

    def update(self, columns: Any, now_us: int) -> tuple[int, ...]:
        """Take in a renewal's columns (disk/areas.py DeltaColumns), read at `now_us` or before.

        Returns the host ids whose record changed and whose bitmap has our bit set: they want us to
        look (9).
        """
        self.first_check_us = self.first_check_us or now_us
        rows = columns.rows
        is_new_life = (columns.generation != self.generation[rows]) | (
            columns.owner_id != self.owner_id[rows]
        )
        changed = np.flatnonzero((columns.timestamp != self.timestamp[rows]) | is_new_life)
        marked: tuple[int, ...] = ()
        if changed.size:
            good = changed[columns.good[changed]]
            at = rows[good]
            self.owner_id[at] = columns.owner_id[good]
            self.generation[at] = columns.generation[good]
            self.io_timeout[at] = columns.io_timeout[good]
            self.io_max[at] = np.maximum(self.io_max[at], columns.io_timeout[good])
            for one in good[is_new_life[good]].tolist():
                self.names[int(rows[one])] = cut_name(bytes(columns.names[one]))
            self.timestamp[rows[changed]] = columns.timestamp[changed]
            self.last_live_us[rows[changed]] = now_us
            marked = tuple(int(i) + 1 for i in rows[changed[columns.marks[changed]]])
        self.last_check_us = now_us
        return tuple(h for h in marked if h != self.own_id)

    def dump(self) -> list[list[Any]]:
        """Return what is known as plain data: the moments of the checks, then a list per host id.

        For a successor of this boot, whose clock is the same one.
        """
        used = np.flatnonzero(self.owner_id != 0).tolist()
        columns = [column.tolist() for column in self._columns()]
        hosts = [
            [i, self.names.get(i, b"").hex(), *(column[i] for column in columns)] for i in used
        ]
        return [[self.first_check_us, self.last_check_us], *hosts]

    def load(self, dumped: list[list[Any]]) -> None:
        """Take over what a predecessor has dumped. Raises ValueError, TypeError for others."""
        (first, last), *hosts = dumped
        for i, name, *values in hosts:
            if not 0 <= i < len(self.timestamp):
                raise ValueError(f"{i + 1} is no host id of the lockspace")
            for column, value in zip(self._columns(), values, strict=True):
                column[i] = value
            self.names[i] = bytes.fromhex(name)
        self.first_check_us, self.last_check_us = int(first), int(last)

    def _columns(self) -> tuple[npt.NDArray[Any], ...]:
        return (
            self.owner_id,
            self.generation,
            self.timestamp,
            self.io_timeout,
            self.io_max,
            self.last_live_us,
        )

    def seen(self, host_id: int) -> HostSeen:
        """Return what is known of one host; UNSEEN for an id out of range or before any read."""
        if not 1 <= host_id <= len(self.timestamp) or not self.last_check_us:
            return UNSEEN
        i = host_id - 1
        return HostSeen(
            int(self.owner_id[i]),
            int(self.generation[i]),
            int(self.timestamp[i]),
            self.names.get(i, b""),
            int(self.io_timeout[i]),
            int(self.io_max[i]),
            self.first_check_us,
            self.last_check_us,
            int(self.last_live_us[i]),
        )

    def states(self, now_us: int, watchdog_fire_timeout: int) -> npt.NDArray[np.int8]:
        """Return every host's HostState: int8, one per host id (spec/algorithms.md 3)."""
        last = np.where(self.last_live_us > 0, self.last_live_us, self.first_check_us)
        age = now_us - last
        fail = 8 * self.io_timeout * SECOND_US
        dead = fail + watchdog_fire_timeout * SECOND_US
        states = np.full(len(age), HostState.FAIL, np.int8)
        states[age > dead] = HostState.DEAD
        fresh = age <= fail
        states[fresh] = HostState.LIVE
        states[fresh & (self.last_live_us == self.first_check_us)] = HostState.UNKNOWN
        if 1 <= self.own_id <= len(states):
            states[self.own_id - 1] = HostState.LIVE
        states[self.timestamp == 0] = HostState.FREE
        return states

    def rows(self, now_us: int, watchdog_fire_timeout: int) -> tuple[HostRow, ...]:
        """Return every host id that was ever used, in order."""
        states = self.states(now_us, watchdog_fire_timeout)
        used = np.flatnonzero(self.owner_id != 0)
        return tuple(
            HostRow(
                int(i) + 1,
                self.names.get(int(i), b""),
                int(self.generation[i]),
                int(self.timestamp[i]),
                int(self.io_timeout[i]),
                HostState(int(states[i])),
                now_us - int(self.last_live_us[i]),
            )
            for i in used
        )
