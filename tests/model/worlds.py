"""The worlds that the tests explore, by name of cast and bounds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType

from paxoslease.protocol import leases
from paxoslease.simulation.explorer.lease_world import LeaseWorld
from paxoslease.simulation.explorer.lives import Program, original, ours
from paxoslease.simulation.explorer.search import Result
from paxoslease.simulation.explorer.values import Bounds


def world(
    cast: str, bounds: Bounds, *, module: ModuleType = leases, histories: bool = False
) -> LeaseWorld:
    """Return a model of the hosts named in `cast`, parted by blanks.

    ours: wants the lease exclusively. ours+modes: shared too, and converts it. real: the original.
    real+sh: the original, and what failed may have been an attempt for shared mode. `module` stands
    for protocol.leases in our hosts.
    """
    programs: dict[str, Program] = {
        "ours": ours(module),
        "ours+modes": ours(module, modes=True),
        "real": original(),
        "real+sh": original(shared_too=True),
    }
    return LeaseWorld(tuple(programs[name] for name in cast.split()), bounds, histories=histories)


def name_of(bounds: Bounds) -> str:
    """Return the bounds that are set, in words."""
    named = zip(Bounds._fields, bounds, strict=True)
    return " ".join(f"{name}={int(value)}" for name, value in named if value)


PINNED = Path(__file__).with_name("states.json")


def check_states(name: str, result: Result) -> None:
    """Compare the number of states with the pinned one, or pin it with PIN_STATES=1.

    A number that changes means that the protocols, or the explorer, now behave differently
    somewhere: find out why before pinning the new one.
    """
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))
    if os.environ.get("PIN_STATES"):
        pinned[name] = result.states
        PINNED.write_text(json.dumps(pinned, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert result.states == pinned.get(name), f"{name}: {result}"
