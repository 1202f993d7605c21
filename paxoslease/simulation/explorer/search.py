"""Every interleaving of a small world, and what was found in it.

The search is breadth first unless asked otherwise, so the first wrong trace is a shortest one. A
world is expanded once; a world with two owners is not expanded further, since everything after it
is wrong anyway. With every world its predecessor is kept; the steps of a trace are found again from
those.

Properties: at most one host owns the lease; no version is granted twice or after a larger one
(reuse: the version is a fencing token); no version has its leader written for two owners
(conflict); and where every live host is idle and nobody owns the lease, each live host, running
alone, gets it (blocked).
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from paxoslease.simulation.explorer.lease_world import LeaseWorld
from paxoslease.simulation.explorer.local_states import LocalStates
from paxoslease.simulation.explorer.values import BLOCKED, TWO_OWNERS, Step
from paxoslease.simulation.explorer.words import owners_in_words

_ALONE_STEPS_MAX = 80  # an attempt that meets nobody takes about ten


class Model(Protocol):
    """What the search needs of a kind of worlds; those are hashable values."""

    sometimes: Counter[tuple[Any, ...]]
    locals: LocalStates

    def initial(self) -> Any:
        """Return the first world."""

    def steps(self, world: Any) -> list[Step]:
        """Return every step that can come next."""

    def owners(self, world: Any) -> tuple[tuple[int, int], ...]:
        """Return who owns what is contended for: (host id, version) each."""

    def words_of(self, world: Any) -> str:
        """Return what is on the disk."""

    def words_of_step(self, world: Any, step: Step) -> str:
        """Return a step from `world` in words."""


class Result(NamedTuple):
    """What a search found.

    states: distinct worlds reached. exhausted: there are no others. violations: by property, the
    number of worlds in which it is first violated. sometimes: what was met in local transitions,
    to prove that the search is not vacuous. traces: by property, the worlds from the first to a
    nearest violating one.
    """

    states: int
    exhausted: bool
    violations: Counter[str]
    sometimes: Mapping[tuple[Any, ...], int]
    traces: dict[str, tuple[Any, ...]]
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

    def __init__(self, model: Model) -> None:
        self.model = model
        self.seen: set[Any] = set()
        self._order: list[Any] = []
        self._parents = array("L")
        self._bad: dict[str, set[Any]] = {TWO_OWNERS: set()}
        self._traces: dict[str, tuple[Any, ...]] = {}

    def run(
        self, *, limit: int | None = None, until: str = "", depth_first: bool = False
    ) -> Result:
        """Explore everything, or until `limit` worlds were reached or `until` was violated.

        `depth_first` usually meets a violation sooner, by a long way round.
        """
        begun_s = time.perf_counter()
        first = self.model.initial()
        self.seen = {first}
        self._order = [first]
        self._parents = array("L", [0])
        done = 0
        ahead = [0]
        while done < len(self._order) and (limit is None or len(self._order) < limit):
            known = len(self._order)
            self._expand(ahead.pop() if depth_first else done)
            done += 1
            if until in self._traces:
                break
            if depth_first:
                ahead.extend(range(known, len(self._order)))
        return Result(
            len(self._order),
            done == len(self._order),
            Counter({what: len(worlds) for what, worlds in self._bad.items() if worlds}),
            self.model.sometimes,
            self._traces,
            self.model.locals.runs,
            time.perf_counter() - begun_s,
        )

    def _expand(self, i: int) -> None:
        """Reach everything that can follow the i-th world."""
        world = self._order[i]
        if world in self._bad[TWO_OWNERS]:
            return
        seen, order, parents = self.seen, self._order, self._parents
        for step in self.model.steps(world):
            after = step[0]
            if after not in seen:
                seen.add(after)
                order.append(after)
                parents.append(i)
            if step[3]:
                self._note(step[3], after, i)
        model = self.model
        if isinstance(model, LeaseWorld) and model.is_idle(world) and _is_blocked(model, world):
            self._note((BLOCKED,), world, parents[i])

    def _note(self, bad: tuple[str, ...], world: Any, parent: int) -> None:
        for what in bad:
            self._bad.setdefault(what, set()).add(world)
            if what not in self._traces:
                self._traces[what] = (*self._path(parent), world)

    def _path(self, i: int) -> tuple[Any, ...]:
        worlds = [self._order[i]]
        while i:
            i = self._parents[i]
            worlds.append(self._order[i])
        return tuple(reversed(worlds))


def _is_blocked(model: LeaseWorld, world: int) -> bool:
    """Tell whether some live host, running alone, does not get the lease.

    Bounds do not count here. A host that comes round to the same world, or has not got the lease
    after many times the steps of an attempt, never will.
    """
    return any(
        not model.life_in(world, host_id).crashed and not _gets_it_alone(model, world, host_id)
        for host_id in model.hosts
    )


def _gets_it_alone(model: LeaseWorld, world: int, host_id: int) -> bool:
    been = {world}
    while len(been) < _ALONE_STEPS_MAX:
        steps = model.calm_steps(world, beyond=True)
        mine = [s.world for s in steps if s.host_id == host_id]
        if not mine:
            return True  # it has no attempts left: nothing is known
        world = mine[0]
        if model.owners(world):
            return True
        if world in been:
            return False
        been.add(world)
    return False


def explore(
    model: Model, *, limit: int | None = None, until: str = "", depth_first: bool = False
) -> Result:
    """Explore all worlds of a model, or until `limit` were reached or `until` was violated."""
    return Search(model).run(limit=limit, until=until, depth_first=depth_first)


def describe(model: Model, worlds: tuple[Any, ...]) -> str:
    """Return a trace in words: a line per step, who owned the lease, the disk before and after."""
    lines = [model.words_of(worlds[0])]
    for number, (before, after) in enumerate(pairwise(worlds), 1):
        if after == before:
            continue
        step = next(s for s in model.steps(before) if s.world == after)
        lines.append(f"{number:3}. {model.words_of_step(before, step)}")
        owners = model.owners(after)
        if owners != model.owners(before):
            lines.append(f"     owner now: {owners_in_words(owners)}")
    lines.append(model.words_of(worlds[-1]))
    return "\n".join(lines)
