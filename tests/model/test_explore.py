"""Every interleaving of small worlds, exhausted, with the number of states pinned."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from paxoslease.simulation.explorer.search import Result, describe, explore
from paxoslease.simulation.explorer.values import Bounds
from tests.model.worlds import check_states, name_of, world


class Case(NamedTuple):
    """A world, and what may be violated in it."""

    cast: str
    bounds: Bounds
    violated: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.cast}, {name_of(self.bounds)}"


BLOCKED = frozenset(("blocked",))
QUICK = (
    Case("ours ours", Bounds(2, 4)),
    Case("ours ours", Bounds(2, 3, crashes=1, rejoins=1)),
    Case("ours ours", Bounds(2, 3, timeouts=1)),
    Case("ours ours", Bounds(2, 2, read_timeouts=1)),
    Case("ours ours", Bounds(2, 2, errors=1)),
    Case("ours ours", Bounds(2, 3, pauses=1)),
    Case("ours ours", Bounds(2, 3, by_sector=True)),
    Case("ours ours", Bounds(2, 3, kills=1)),
    Case("ours ours ours", Bounds(1, 2)),
    # A leader rolled back by the real host blocks that host until ours asks again.
    Case("real ours", Bounds(3, 4), BLOCKED),
    Case("ours real", Bounds(2, 3, crashes=1)),
)
LONG = (
    Case("ours ours", Bounds(3, 6)),
    Case("ours ours", Bounds(4, 8)),
    Case("ours ours", Bounds(3, 6, crashes=1, rejoins=1)),
    Case("ours ours", Bounds(2, 4, crashes=2, rejoins=2)),
    Case("ours ours", Bounds(3, 5, timeouts=1)),
    Case("ours ours", Bounds(3, 4, errors=1)),
    Case("ours ours", Bounds(3, 4, pauses=1)),
    Case("ours ours", Bounds(3, 5, by_sector=True)),
    Case("ours ours", Bounds(3, 4, crashes=1, rejoins=1, timeouts=1)),
    Case("ours ours", Bounds(3, 5, kills=1)),
    Case("ours ours", Bounds(3, 4, kills=2)),
    Case("ours ours", Bounds(2, 3, kills=1, timeouts=1)),
    Case("ours ours", Bounds(2, 3, kills=1, crashes=1, rejoins=1)),
    Case("ours ours ours", Bounds(1, 2, kills=1)),
    Case("ours ours ours", Bounds(1, 4)),
    Case("real ours", Bounds(3, 6), BLOCKED),
    Case("real ours", Bounds(3, 5, crashes=1), BLOCKED),
    Case("real+sh ours", Bounds(3, 6), frozenset(("blocked", "conflict"))),
    Case("ours ours real", Bounds(1, 4)),
)
ORIGINAL = (
    Case("real real", Bounds(3, 6), frozenset(("two owners", "reuse", "conflict", "blocked"))),
)


def check(case: Case) -> Result:
    """Explore a world; show the trace of what should not be there."""
    model = world(case.cast, case.bounds)
    result = explore(model)
    unexpected = [what for what in result.violations if what not in case.violated]
    traces = "\n".join(f"{w}:\n{describe(model, result.traces[w])}" for w in unexpected)
    assert set(result.violations) == case.violated, f"{result}\n{traces}"
    assert result.exhausted
    for host_id, name in enumerate(case.cast.split(), 1):
        assert result.sometimes["grant", host_id], "a host that never owns proves nothing"
        assert result.sometimes["adopt", host_id]
        refused = {what[2] for what in result.sometimes if what[:2] == ("ended", host_id)}
        assert {"LeaseHeld", "LostRace"} <= refused if name == "ours" else refused
        if case.bounds.crashes:
            assert result.sometimes["takeover", host_id]
        if case.bounds.kills:
            assert result.sometimes["settled", host_id]
        if "real" not in case.cast:
            assert "ReleaseRefused" not in refused, "a release was refused though nothing was wrong"
    check_states(str(case), result)
    return result


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_our_hosts_hold(case: Case) -> None:
    """No interleaving of these worlds gives one lease to two hosts or a version twice."""
    check(case)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_our_hosts_hold_in_larger_worlds(case: Case) -> None:
    """The same in worlds that take up to some minutes."""
    check(case)


@pytest.mark.parametrize("case", ORIGINAL, ids=str)
def test_the_original_does_not(case: Case) -> None:
    """The original, followed literally, gives one lease to two hosts in rare schedules."""
    check(case)


def test_a_wrong_trace_can_be_read() -> None:
    """A violation is told step by step, with who owned the lease and what was on disk."""
    model = world("real real", Bounds(2, 3, crashes=1, rejoins=1))
    result = explore(model, until="two owners")
    assert not result.exhausted
    text = describe(model, result.traces["two owners"])
    assert "host 1 (original): crash" in text
    assert "rejoin" in text
    assert "<-- two owners" in text
    assert "owner now: host 1 (version" in text
    assert text.startswith("     leader: version 0, free")


def test_the_search_stops_at_its_limit() -> None:
    """A limited search says that it is not exhausted."""
    result = explore(world("ours ours", Bounds(3, 6)), limit=1000)
    assert not result.exhausted
    assert 1000 <= result.states < 1100
    assert "NOT exhausted" in str(result)
