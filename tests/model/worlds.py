"""The worlds that the tests explore, by name of cast and bounds."""

from __future__ import annotations

from types import ModuleType

from paxoslease.protocol import leases
from paxoslease.simulation.explore_lives import Program, ours
from paxoslease.simulation.explore_values import Bounds
from paxoslease.simulation.explore_world import LeaseWorld
from paxoslease.simulation.original import original


def world(
    cast: str, bounds: Bounds, *, module: ModuleType = leases, histories: bool = False
) -> LeaseWorld:
    """Return a model: `cast` names hosts A, B, C: `ours`, `real`, `real+sh`; parted by blanks.

    real+sh: a host of the original whose failed attempts may have been for shared mode. `module`
    stands for protocol.leases in our hosts.
    """
    programs: dict[str, Program] = {
        "ours": ours(module),
        "real": original(),
        "real+sh": original(shared_too=True),
    }
    return LeaseWorld(tuple(programs[name] for name in cast.split()), bounds, histories=histories)
