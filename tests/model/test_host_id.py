"""Two contenders for one host id: only the settle wait, and what guards it, keeps them apart."""

from __future__ import annotations

import pytest

from paxoslease.simulation.explore import describe, explore
from paxoslease.simulation.explore_host_id import HostIdWorld
from tests.model.patching import Patch, patched

SETTLE = Patch("delta", "    yield Sleep(settle_us, cancellable=True)\n", "")
HALF = Patch("delta", "yield Sleep(settle_us, can", "yield Sleep(settle_us // 2, can")
ELAPSED = Patch("delta", "if written_us - asked_us > settle_us:", "if False:")
REREAD = Patch("delta", "if again != record:", "if False:")


def holds(horizon_ticks: int, states: int) -> None:
    """Explore the contest and expect one winner at most, either of the two."""
    result = explore(HostIdWorld(horizon_ticks=horizon_ticks))
    assert not result.violations
    assert result.exhausted
    assert result.states == states, str(result)
    for contender in (1, 2):
        for what in ("won", "lost", "timeout"):
            assert result.sometimes[what, contender], f"contender {contender} never {what}"


def test_one_host_id_has_one_owner() -> None:
    """Whatever their I/O does, two contenders for a free host id do not both get it."""
    holds(12, 0)


@pytest.mark.long
def test_one_host_id_has_one_owner_for_longer() -> None:
    """The same, up to just before a dead owner's host id could be taken."""
    holds(18, 0)


@pytest.mark.parametrize(
    ("patch", "horizon_ticks"),
    [(SETTLE, 8), (HALF, 12), (ELAPSED, 14), (REREAD, 12)],
    ids=["no settle wait", "half of it", "no look at the elapsed time", "no second look"],
)
def test_what_keeps_two_contenders_apart(patch: Patch, horizon_ticks: int) -> None:
    """Without the wait, its length, its precondition (M9) or the look after it there are two."""
    model = HostIdWorld(patched("delta", patch).acquire, horizon_ticks=horizon_ticks)
    result = explore(model, until="two owners", depth_first=True)
    assert result.violations["two owners"]
    assert "contender B" in describe(model, result.traces["two owners"])
