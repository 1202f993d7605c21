"""Explored worlds in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paxoslease.disk.records import HostSector, Leader, unpack_leader
from paxoslease.simulation.explorer.processes import BEYOND, READ, SECTOR_MASK, WRITE
from paxoslease.simulation.explorer.values import Step, host_sector

if TYPE_CHECKING:
    from paxoslease.simulation.explorer.lease_world import LeaseWorld


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


def describe_disk(model: LeaseWorld, world: int) -> str:
    """Return what is on the disk, in words."""
    leader, *sectors = model.disk_in(world)
    lines = [f"     leader: {leader_in_words(leader)}"]
    lines += [f"     host {h}: {sector_in_words(s)}" for h, s in enumerate(sectors, 1)]
    return "\n".join(lines)


def describe_step(model: LeaseWorld, world: int, step: Step) -> str:
    """Return a step from `world` in words."""
    op = model.ops[model.local(world, step.host_id)]
    who = f"host {step.host_id} ({model.programs[step.host_id - 1].name})"
    what = step.action
    if op.kind in (WRITE, BEYOND) and "write" in what:
        data = model.sectors.values[op.data]
        place = "own sector" if op.sector else "leader"
        content = sector_in_words(data) if op.sector else leader_in_words(data)
        what = f"{what}: {place}: {content}"
    elif op.kind == READ and what == "read":
        content = model.sectors.values[world >> op.place & SECTOR_MASK]
        what = f"read sector of host {op.sector}" if op.sector else "read leader"
        words = sector_in_words(content) if op.sector else leader_in_words(content)
        what = f"{what}: {words}"
    bad = f"   <-- {', '.join(step.bad)}" if step.bad else ""
    return f"{who}: {what}{bad}"


def owners_in_words(owners: tuple[tuple[int, int], ...]) -> str:
    """Return who owns a lease, in a few words."""
    words = (f"host {h} (version {abs(v)}{', shared' if v < 0 else ''})" for h, v in owners)
    return " and ".join(words) or "nobody"
