"""Two contenders for one host id: only the settle wait, and what guards it, keeps them apart."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from paxoslease.simulation.explorer.host_id_world import HostIdWorld
from paxoslease.simulation.explorer.search import describe, explore
from tests.model.patching import Patch, patched
from tests.model.worlds import check_states

SETTLE = Patch("delta", "yield from _settle(settle_us, written_us)", "True")
HALF = Patch("delta", "_settle(settle_us, w", "_settle(settle_us // 2, w")
ELAPSED = Patch("delta", "if written_us - asked_us > limit_us:", "if False:")
REREAD = Patch("delta", "if again != record:", "if False:")
OWN_WAIT = Patch(
    "delta",
    "    limit_us = delta_settle_us(found.io_timeout or timing.io_timeout)\n",
    "    limit_us = delta_settle_us(timing.io_timeout)\n",
)


class Contest(NamedTuple):
    """A contest: io_timeouts of the contenders and of the free record, horizon."""

    io_timeouts: tuple[int, int]
    formatted: int
    horizon_ticks: int


def holds(contest: Contest) -> None:
    """Explore a contest and expect one winner at most, either of the two."""
    model = HostIdWorld(
        io_timeouts=contest.io_timeouts,
        formatted=contest.formatted,
        horizon_ticks=contest.horizon_ticks,
    )
    result = explore(model)
    traces = [describe(model, trace) for trace in result.traces.values()]
    assert not result.violations, "\n".join(traces)
    assert result.exhausted
    for contender in (1, 2):
        for what in ("won", "lost", "timeout"):
            assert result.sometimes[what, contender], f"contender {contender} never {what}"
    check_states(str(contest), result)


def test_one_host_id_has_one_owner() -> None:
    """Whatever their I/O does, two contenders for a free host id do not both get it."""
    holds(Contest((1, 1), 1, 11))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("contest", [Contest((1, 1), 1, 16), Contest((1, 2), 1, 18)], ids=str)
def test_one_host_id_has_one_owner_for_longer(contest: Contest) -> None:
    """The same for longer, and with contenders of different io_timeouts (15.4)."""
    holds(contest)


@pytest.mark.parametrize(
    ("patch", "io_timeouts", "horizon_ticks"),
    [
        (SETTLE, (1, 1), 16),
        (HALF, (1, 1), 12),
        (ELAPSED, (1, 1), 16),
        (REREAD, (1, 1), 16),
        (OWN_WAIT, (1, 2), 16),
    ],
    ids=[
        "no settle wait",
        "half of it",
        "no look at the elapsed time",
        "no second look",
        "limited by the own io_timeout only",
    ],
)
def test_what_keeps_two_contenders_apart(
    patch: Patch, io_timeouts: tuple[int, int], horizon_ticks: int
) -> None:
    """Without the wait, its length, its precondition (M9) or the look after it there are two."""
    acquire = patched("delta", patch).acquire
    model = HostIdWorld(acquire, io_timeouts=io_timeouts, horizon_ticks=horizon_ticks)
    result = explore(model, until="two owners", depth_first=True)
    assert result.violations["two owners"], str(result)
    assert "contender B" in describe(model, result.traces["two owners"])
