"""Runs checks against whatever `paxoslease` is imported, which a test made a mutated copy.

    python -P -m tests.mutants.checks CHECK

Ends with 0 and the finding when the check fails as it should, else with 1. A CHECK is one of

    seeds FIRST-LAST; RULES          the simulation, until a seed breaks one of these rules
    explore CAST; BOUNDS; PROPERTY   every interleaving of a small world until PROPERTY is violated
    schedule NAME; CAST; PROPERTY    one order of steps, tests/scenarios/NAME.txt, played by CAST
    host id                          two contenders for one host id in every order
    story NAME                       a scenario with real time, tests/sim/*stories.py

With `--search SECONDS` seeds are tried from a random one on for so long instead of the given ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from random import SystemRandom

from paxoslease.protocol import leases
from paxoslease.simulation.cluster.world import run_seed
from paxoslease.simulation.explorer.host_id_world import HostIdWorld
from paxoslease.simulation.explorer.search import explore
from paxoslease.simulation.explorer.values import TWO_OWNERS, Bounds
from tests.model.worlds import world
from tests.scenarios.test_scenarios import HERE, load, play
from tests.sim.adoption_stories import ADOPTIONS
from tests.sim.stories import STORIES

_EXPLORED_MAX = 2_000_000


def seeds(arguments: str, search_s: float) -> str:
    """Simulate seeds until one breaks a certain rule."""
    numbers, _, rules = arguments.partition("; ")
    first, _, last = numbers.partition("-")
    begin, end = int(first), int(last or first)
    stop = float("inf")
    if search_s:
        begin = SystemRandom().randrange(10**6, 10**9)
        end = begin + 10**6
        stop = time.monotonic() + search_s
    for seed in range(begin, end + 1):
        report = run_seed(seed)
        if report.broken in rules.split():
            return f"seed {seed}: {report.detail}"
        if time.monotonic() > stop:
            break
    return ""


def explored(arguments: str, search_s: float) -> str:
    """Explore a small world until a property is violated."""
    cast, bounds, until = (part.strip() for part in arguments.split(";"))
    limits = {name: int(value) for name, _, value in (b.partition("=") for b in bounds.split())}
    leases.SHARED_RETRIES = 1  # each retry would be a step of its own
    model = world(cast, Bounds(**limits))  # type: ignore[arg-type]
    result = explore(model, until=until, limit=_EXPLORED_MAX, depth_first="modes" in cast)
    return f"{until} among {result.states} states" if result.violations[until] else ""


def scheduled(arguments: str, search_s: float) -> str:
    """Play a schedule; tell whether a property is violated."""
    name, cast, bad = (part.strip() for part in arguments.split(";"))
    schedule = play(load(HERE / f"{name}.txt"), tuple(cast.split(", ")))
    return f"{bad} at the end of {name}" if bad in schedule.bad else ""


def host_id(arguments: str, search_s: float) -> str:
    """Explore two contenders for one host id."""
    result = explore(HostIdWorld(), until=TWO_OWNERS, limit=_EXPLORED_MAX)
    found = result.violations[TWO_OWNERS]
    return f"two holders of one host id among {result.states} states" if found else ""


def story(arguments: str, search_s: float) -> str:
    """Play a scenario with our hosts."""
    return "" if (STORIES | ADOPTIONS)[arguments]() else f"story {arguments!r} ends badly"


CHECKS: dict[str, Callable[[str, float], str]] = {
    "seeds": seeds,
    "explore": explored,
    "schedule": scheduled,
    "host id": host_id,
    "story": story,
}


def run_check(check: str, search_s: float = 0) -> str:
    """Run one check; returns what it found, empty for nothing."""
    for name, function in CHECKS.items():
        if check == name or check.startswith(name + " "):
            return function(check.removeprefix(name).strip(), search_s)
    raise ValueError(f"no such check: {check!r}")


def main() -> int:
    """Run the checks of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--search", type=float, default=0, metavar="SECONDS")
    parser.add_argument("check")
    arguments = parser.parse_args()
    found = run_check(arguments.check, arguments.search)
    print(found)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
