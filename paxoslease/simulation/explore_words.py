"""Explored worlds in words."""

from __future__ import annotations

from paxoslease.disk.records import HostSector, Leader, unpack_leader
from paxoslease.simulation.explore_values import host_sector


def leader_in_words(data: bytes) -> str:
    """Return what a leader's sector says, in a few words."""
    return words_of_leader(unpack_leader(data))


def words_of_leader(leader: Leader) -> str:
    """Return what a leader record says, in a few words."""
    if not leader.lver:
        return "version 0, free"
    owner = f"host {leader.owner_id} generation {leader.owner_generation}"
    state = f"free (was {owner})" if leader.is_free else owner
    return f"version {leader.lver}, {state}, writer {leader.write_id}"


def sector_in_words(data: bytes) -> str:
    """Return what a host's sector says, in a few words."""
    sector = host_sector(data)
    if sector == HostSector():
        return "never used"
    value = f"value {sector.inp}.{sector.inp2} bal {sector.bal}" if sector.inp else "no value"
    released = ", RELEASED" if sector.released else ""
    shared = "" if sector.shared_generation is None else f", SHARED {sector.shared_generation}"
    return f"version {sector.lver} mbal {sector.mbal} {value}{released}{shared}"
