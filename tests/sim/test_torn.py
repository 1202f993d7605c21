"""Writes of many sectors that a crash cuts short, on the simulation's disks."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from paxoslease.disk.layout import SIZES_512, Area
from paxoslease.disk.records import Where, parse_delta
from paxoslease.errors import BadRecord
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.formatting import format_lockspace
from paxoslease.simulation.cluster.driver import Task
from paxoslease.simulation.cluster.faults import draw_options
from paxoslease.simulation.cluster.world import World

NEW = Lockspace(b"new", Area("disk0", 64 << 20, SIZES_512))


def sectors_of(world: World) -> list[bytes]:
    """Return all delta leases of the new lockspace as they are on the disk."""
    disk = world.driver.disks["disk0"]
    return [disk.sector(NEW.area.delta(host_id)) for host_id in range(1, 2001)]


def is_delta(data: bytes) -> bool:
    """Tell whether a sector holds a delta lease of the new lockspace."""
    try:
        parse_delta(data, Where("disk0", 0), NEW.name)
    except BadRecord:
        return False
    return True


@pytest.mark.parametrize("seed", range(12))
def test_a_lockspace_is_there_entirely_or_not_at_all(seed: int) -> None:
    """A formatter that is reset half-way leaves no lockspace that a host could take for one."""
    rng = Random(seed)
    options = draw_options(rng, 2, None)._replace(
        sizes=SIZES_512, disks=1, latency_us=20_000, slow_chance=0, stuck_chance=0, error_chance=0
    )
    world = World(seed, options, rng, trace=False)
    world.driver.on_land = None
    host = world.hosts[0]
    ended: list[Any] = []
    world.driver.start(
        Task(host, "format", format_lockspace(NEW, 10), lambda *result: ended.append(result))
    )
    moment = int(rng.random() * 50_000)
    world.driver.run_until(moment, lambda: False)
    host.reset()
    sectors = sectors_of(world)
    if is_delta(sectors[0]):
        assert all(is_delta(data) for data in sectors)
    else:
        assert not ended


def test_a_write_of_many_sectors_lands_in_pieces() -> None:
    """The case above is not vacuous: in the middle some sectors are new and others are not."""
    rng = Random(1)
    options = draw_options(rng, 2, None)._replace(
        sizes=SIZES_512, disks=1, latency_us=20_000, slow_chance=0, stuck_chance=0, error_chance=0
    )
    world = World(1, options, rng, trace=False)
    world.driver.on_land = None
    task = Task(world.hosts[0], "format", format_lockspace(NEW, 10), lambda *result: None)
    world.driver.start(task)
    seen = set()
    for moment in range(1_000, 40_000, 1_000):
        world.driver.run_until(moment, lambda: False)
        seen.add(sum(is_delta(data) for data in sectors_of(world)[1:]))
    assert 1999 in seen
    assert len(seen) > 5
