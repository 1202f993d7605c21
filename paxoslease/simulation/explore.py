"""Every interleaving of a small world, and what was found in it.

The search is breadth first, so the first wrong trace is a shortest one. A world is expanded once;
a world with two owners is not expanded further, since everything after it is wrong anyway. With
every world its predecessor is kept; the steps of a trace are found again from those.

Properties: at most one host owns the lease; no version is granted twice or after a larger one
(reuse: the version is a fencing token); no version has its leader written for two owners
(conflict); and where every live host is idle and nobody owns the lease, each live host, running
alone, gets it (blocked).
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from paxoslease.simulation.explore_values import BLOCKED, TWO_OWNERS
from paxoslease.simulation.explore_words import describe_disk, describe_step
from paxoslease.simulation.explore_world import LeaseWorld

_ALONE_STEPS_MAX = 80  # an attempt that meets nobody takes about ten


class Result(NamedTuple):
    """What a search found.

    states: distinct worlds reached. exhausted: there are no others. violations: by property, the
    number of worlds in which it is first violated. sometimes: see LeaseWorld. traces: by property,
    the worlds from the first to a nearest violating one.
    """

    states: int
    exhausted: bool
    violations: Counter[str]
    sometimes: Counter[tuple[object, ...]]
    traces: dict[str, tuple[int, ...]]
    runs: int
    seconds: float

    def __str__(self) -> str:
        bad = ", ".join(f"{n} {what}" for what, n in sorted(self.violations.items())) or "none"
        rate = self.states / max(self.seconds, 1e-9)
        end = "" if self.exhausted else ", NOT exhausted"
        return (
            f"{self.states:,} states{end}, violations: {bad}; "
            f"{self.seconds:.1f} s, {rate:,.0f} states/s, {self.runs:,} runs of generators"
        )


class Search:
    """A search through the worlds of a model; `seen` holds those reached so far."""

    def __init__(self, model: LeaseWorld, *, blocked: bool = True) -> None:
        self.model = model
        self.seen: set[int] = set()
        self._blocked = blocked
        self._order: list[int] = []
        self._parents = array("L")
        self._bad: dict[str, set[int]] = {}
        self._traces: dict[str, tuple[int, ...]] = {}

    def run(self, limit: int | None = None) -> Result:
        """Explore everything, or until more than `limit` worlds were reached."""
        begun_s = time.perf_counter()
        first = self.model.initial()
        self.seen = {first}
        self._order = [first]
        self._parents = array("L", [0])
        steps, seen, order, parents = self.model.steps, self.seen, self._order, self._parents
        i = 0
        ends = self._bad.setdefault(TWO_OWNERS, set())
        while i < len(order) and (limit is None or len(order) <= limit):
            world = order[i]
            if world in ends:
                i += 1
                continue
            for step in steps(world):
                after = step[0]
                if after not in seen:
                    seen.add(after)
                    order.append(after)
                    parents.append(i)
                if step[3]:
                    self._note(step[3], after, i)
            if self._blocked and self.model.is_idle(world) and self._is_blocked(world):
                self._note((BLOCKED,), world, parents[i])
            i += 1
        return Result(
            len(order),
            i == len(order),
            Counter({what: len(worlds) for what, worlds in self._bad.items() if worlds}),
            self.model.sometimes,
            self._traces,
            self.model.locals.runs,
            time.perf_counter() - begun_s,
        )

    def _note(self, bad: tuple[str, ...], world: int, parent: int) -> None:
        for what in bad:
            self._bad.setdefault(what, set()).add(world)
            if what not in self._traces:
                self._traces[what] = (*self._path(parent), world)

    def _path(self, i: int) -> tuple[int, ...]:
        worlds = [self._order[i]]
        while i:
            i = self._parents[i]
            worlds.append(self._order[i])
        return tuple(reversed(worlds))

    def _is_blocked(self, world: int) -> bool:
        """Tell whether some live host, running alone, does not get the lease.

        Bounds do not count here. A host that comes round to the same world, or has not got the
        lease after many times the steps of an attempt, never will.
        """
        model = self.model
        return any(
            not model.life_in(world, host_id).crashed and not self._gets_it_alone(world, host_id)
            for host_id in model.hosts
        )

    def _gets_it_alone(self, world: int, host_id: int) -> bool:
        been = {world}
        while len(been) < _ALONE_STEPS_MAX:
            steps = self.model.calm_steps(world, beyond=True)
            world = next(s.world for s in steps if s.host_id == host_id)
            if self.model.owners(world):
                return True
            if world in been:
                return False
            been.add(world)
        return False


def explore(model: LeaseWorld, *, limit: int | None = None, blocked: bool = True) -> Result:
    """Explore all worlds of a model, or until more than `limit` were reached."""
    return Search(model, blocked=blocked).run(limit)


def describe(model: LeaseWorld, worlds: tuple[int, ...]) -> str:
    """Return a trace in words: one line per step, and the lease on disk where it changed."""
    lines = [describe_disk(model, worlds[0])]
    for number, (before, after) in enumerate(pairwise(worlds), 1):
        if after == before:
            continue
        step = next(s for s in model.steps(before) if s.world == after)
        lines.append(f"{number:3}. {describe_step(model, before, step)}")
        owners = model.owners(after)
        if owners != model.owners(before):
            names = " and ".join(f"host {h} (version {v})" for h, v in owners) or "nobody"
            lines.append(f"     owner now: {names}")
    lines.append(describe_disk(model, worlds[-1]))
    return "\n".join(lines)
