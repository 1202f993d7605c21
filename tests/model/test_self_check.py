"""The key of a process is enough: whole histories in its place lead to the same worlds."""

from __future__ import annotations

from typing import Any

import pytest

from paxoslease.simulation.explorer import local_states
from paxoslease.simulation.explorer.search import Search
from paxoslease.simulation.explorer.values import Bounds
from tests.model.worlds import world

WORLDS = (
    ("ours ours", Bounds(1, 2, attempts=2)),
    ("ours ours", Bounds(2, 2, attempts=1)),
    ("ours ours", Bounds(1, 2, crashes=1, rejoins=1, attempts=1)),
    ("ours ours", Bounds(1, 2, timeouts=1, attempts=1)),
    ("ours ours", Bounds(1, 1, errors=1, read_timeouts=1, pauses=1, attempts=1)),
    ("ours ours", Bounds(1, 2, by_sector=True, attempts=1)),
    ("real+sh ours", Bounds(2, 2, attempts=1)),
)


def reached(cast: str, bounds: Bounds, *, histories: bool) -> tuple[int, set[Any]]:
    """Return the number of states, and the set of worlds reached by content."""
    model = world(cast, bounds, histories=histories)
    search = Search(model)
    result = search.run(limit=500_000)
    assert result.exhausted
    return result.states, {model.value_of(w) for w in search.seen}


@pytest.mark.parametrize(("cast", "bounds"), WORLDS)
def test_histories_reach_the_same_worlds(cast: str, bounds: Bounds) -> None:
    """Two processes with equal keys do the same, whatever led to them."""
    states, by_key = reached(cast, bounds, histories=False)
    longer, by_history = reached(cast, bounds, histories=True)
    assert by_key == by_history
    assert states == len(by_key)
    assert longer > 2 * states, "with histories there is much more to tell apart"


def test_a_key_that_forgets_locals_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check is worth something: with positions alone as keys it fails."""
    whole = local_states.generator_key

    def positions(process: Any) -> Any:
        return tuple(frame[:2] for frame in whole(process))

    cast, bounds = WORLDS[0]
    _, right = reached(cast, bounds, histories=False)
    monkeypatch.setattr(local_states, "generator_key", positions)
    _, by_key = reached(cast, bounds, histories=False)
    assert {w[0] for w in by_key} != {w[0] for w in right}
