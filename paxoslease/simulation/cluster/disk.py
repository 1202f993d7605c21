"""A virtual disk: sectors in a dictionary, and what is in flight to them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from paxoslease.disk.areas import DeltaColumns
from paxoslease.disk.records import (
    BITMAP_OFFSET,
    DELTA_MAGIC,
    HOST_SECTOR_BYTES,
    LEADER_BYTES,
    Leader,
    same_name,
    unpack_leader,
)
from paxoslease.protocol.effects import (
    BallotImage,
    LockspaceImage,
    Read,
    ReadBallot,
    ReadLockspace,
)

_leader_of = lru_cache(maxsize=512)(unpack_leader)


class Disk:
    """One disk. `sectors` maps byte offsets to sectors; a sector that is missing is all zero.

    hosts: how many host ids are looked at in area reads.
    """

    __slots__ = ("_zeros", "hosts", "path", "sector_size", "sectors")

    def __init__(self, path: str, sector_size: int, hosts: int) -> None:
        self.path = path
        self.sector_size = sector_size
        self.hosts = hosts
        self.sectors: dict[int, bytes] = {}
        self._zeros = bytes(sector_size)

    def sector(self, offset: int) -> bytes:
        """Return the sector at a byte offset."""
        return self.sectors.get(offset, self._zeros)

    def offsets(self, effect: Any) -> Iterable[int]:
        """Return the offsets of the sectors that a read looks at."""
        size = self.sector_size
        kind = type(effect)
        if kind is Read:
            return range(effect.offset, effect.offset + effect.length, size)
        if kind is ReadBallot:
            last = effect.offset + (min(effect.num_hosts, self.hosts) + 2) * size
            return (effect.offset, *range(effect.offset + 2 * size, last, size))
        return range(effect.offset, effect.offset + self.hosts * size, size)

    def sample(self, effect: Any) -> dict[int, bytes]:
        """Return the sectors that a read looks at as they are now."""
        sector, zeros = self.sectors, self._zeros
        return {offset: sector.get(offset, zeros) for offset in self.offsets(effect)}

    def answer(self, effect: Any, seen: dict[int, bytes]) -> Any:
        """Return the answer to a read that saw these sectors."""
        kind = type(effect)
        if kind is Read:
            return seen[effect.offset] if len(seen) == 1 else b"".join(seen.values())
        size = self.sector_size
        first = effect.offset
        if kind is ReadBallot:
            hosts = tuple(
                ((offset - first) // size - 1, data[:HOST_SECTOR_BYTES])
                for offset, data in seen.items()
                if offset != first and data is not self._zeros and any(data[:HOST_SECTOR_BYTES])
            )
            return BallotImage(seen[first][:LEADER_BYTES], hosts)
        assert kind is ReadLockspace
        own = first + (effect.host_id - 1) * size
        return LockspaceImage(seen[own], _columns(tuple(seen.values()), effect))


def _columns(sectors: tuple[bytes, ...], effect: ReadLockspace) -> DeltaColumns:
    """Return what areas.delta_columns gathers, for the few host ids that there are."""
    every = [_leader_of(data[:LEADER_BYTES]) for data in sectors]
    used = [index for index, leader in enumerate(every) if leader.owner_id]
    leaders: list[Leader] = [every[index] for index in used]
    bit = effect.host_id - 1
    return DeltaColumns(
        np.array(used, np.uint32),
        np.array([x.owner_id for x in leaders], np.uint64),
        np.array([x.owner_generation for x in leaders], np.uint64),
        np.array([x.timestamp for x in leaders], np.uint64),
        np.array([x.io_timeout for x in leaders], np.uint16),
        np.array([x.resource_name for x in leaders], "S48"),
        np.array(
            [
                x.magic == DELTA_MAGIC and same_name(x.space_name, effect.space_name)
                for x in leaders
            ],
            np.bool_,
        ),
        np.array(
            [sectors[index][BITMAP_OFFSET + bit // 8] >> bit % 8 & 1 for index in used], np.bool_
        ),
    )
