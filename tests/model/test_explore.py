"""Every interleaving of small worlds, exhausted, with the number of states pinned.

A number that changes means that the protocols, or the explorer, now behave differently somewhere:
look why, then pin the new one.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from paxoslease.simulation.explore import Result, describe, explore
from paxoslease.simulation.explore_values import Bounds
from tests.model.worlds import world


class Pinned(NamedTuple):
    """A world, how many states it has, and how many of them violate what."""

    cast: str
    bounds: Bounds
    states: int
    violations: dict[str, int]

    def __str__(self) -> str:
        names = [n for n, v in zip(Bounds._fields, self.bounds, strict=True) if v]
        limits = "-".join(f"{name}{getattr(self.bounds, name):d}" for name in names)
        return f"{self.cast.replace(' ', '+')}-{limits}"


QUICK = (
    Pinned("ours ours", Bounds(2, 4), 20_440, {}),
    Pinned("ours ours", Bounds(2, 3, crashes=1, rejoins=1), 111_254, {}),
    Pinned("ours ours", Bounds(2, 3, timeouts=1), 25_554, {}),
    Pinned("ours ours", Bounds(2, 3, read_timeouts=1), 39_929, {}),
    Pinned("ours ours", Bounds(2, 3, errors=1), 67_599, {}),
    Pinned("ours ours", Bounds(2, 3, pauses=1), 35_953, {}),
    Pinned("ours ours", Bounds(2, 4, by_sector=True), 107_461, {}),
    Pinned("ours ours ours", Bounds(1, 2), 106_881, {}),
    Pinned("real ours", Bounds(3, 5), 65_363, {"blocked": 6}),
    Pinned("ours real", Bounds(2, 3, crashes=1), 22_410, {}),
)
ORIGINAL = (
    Pinned(
        "real real",
        Bounds(3, 6),
        104_758,
        {"two owners": 73, "reuse": 3_682, "conflict": 1_898, "blocked": 26},
    ),
)


def check(pinned: Pinned) -> Result:
    """Explore a pinned world; show the trace of what should not be there."""
    model = world(pinned.cast, pinned.bounds)
    result = explore(model)
    unexpected = [what for what in result.violations if what not in pinned.violations]
    traces = "\n".join(f"{w}:\n{describe(model, result.traces[w])}" for w in unexpected)
    assert dict(result.violations) == pinned.violations, f"{result}\n{traces}"
    assert result.exhausted
    assert result.states == pinned.states, str(result)
    for host_id, name in enumerate(pinned.cast.split(), 1):
        assert result.sometimes["grant", host_id], "a host that never owns proves nothing"
        assert result.sometimes["adopt", host_id]
        refused = {what[2] for what in result.sometimes if what[:2] == ("ended", host_id)}
        assert {"LeaseHeld", "LostRace"} <= refused if name == "ours" else refused
        if pinned.bounds.crashes:
            assert result.sometimes["takeover", host_id]
    return result


@pytest.mark.parametrize("pinned", QUICK, ids=str)
def test_our_hosts_hold(pinned: Pinned) -> None:
    """No interleaving of these worlds gives one lease to two hosts or a version twice."""
    check(pinned)


@pytest.mark.parametrize("pinned", ORIGINAL, ids=str)
def test_the_original_does_not(pinned: Pinned) -> None:
    """The original, followed literally, gives one lease to two hosts in rare schedules (15.8)."""
    result = check(pinned)
    assert len(result.traces["two owners"]) < 60


LONG = (Pinned("ours ours", Bounds(3, 6), 150_413, {}),)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("pinned", LONG, ids=str)
def test_our_hosts_hold_in_larger_worlds(pinned: Pinned) -> None:
    """The same in worlds that take minutes."""
    check(pinned)


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
