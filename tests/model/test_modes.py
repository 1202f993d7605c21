"""Shared and exclusive mode, and conversions both ways, in every interleaving of two hosts."""

from __future__ import annotations

import pytest

from paxoslease.simulation.explorer.search import describe, explore
from paxoslease.simulation.explorer.values import Bounds
from tests.model.patching import Patch, patched
from tests.model.worlds import check_states, name_of, world

CAST = "ours+modes ours+modes"
# Each retry of a shared attempt is a step of its own in the key; one shows what there is to see.
FEW_RETRIES = Patch("leases", "SHARED_RETRIES = 40", "SHARED_RETRIES = 1")


def holds(bounds: Bounds) -> None:
    """Explore two hosts that do everything a lease allows; a version may be held shared by both."""
    model = world(CAST, bounds, module=patched("leases", FEW_RETRIES))
    result = explore(model)
    traces = "\n".join(describe(model, trace) for trace in result.traces.values())
    assert not result.violations, f"{result}\n{traces}"
    assert result.exhausted
    for host_id in (1, 2):
        for what in (("grant",), ("share",), ("adopt",)):
            assert result.sometimes[*what, host_id]
        assert result.sometimes["ended", host_id, "LeaseShared"]
        assert not result.sometimes["ended", host_id, "ReleaseRefused"]
    check_states(f"{CAST}, {name_of(bounds)}", result)


def test_shared_and_exclusive_never_together() -> None:
    """Nobody holds a lease exclusively while another holds it shared, whatever both do."""
    holds(Bounds(2, 2))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(3, 3),
        Bounds(2, 2, crashes=1, rejoins=1),
        Bounds(2, 2, timeouts=1),
        Bounds(2, 2, read_timeouts=1),
        Bounds(2, 2, errors=1),
        Bounds(2, 2, pauses=1),
        Bounds(2, 2, kills=1),
    ],
)
def test_shared_and_exclusive_never_together_in_larger_worlds(bounds: Bounds) -> None:
    """The same with a third version, with a crash, with every kind of failed I/O."""
    holds(bounds)


MUTANTS = {
    "sharers are not minded (7.3)": Patch("leases", "return not verdict.is_dead", "return False"),
    "the leader is freed before the mode block is there (M23)": Patch(
        "leases",
        "    yield from write_own(lease.claim, own, shelf.not_after_us)\n    return own\n",
        "    yield from free_leader(lease.claim, lease.leader)\n"
        "    yield from write_own(lease.claim, own, shelf.not_after_us)\n    return own\n",
    ),
    "a conversion drops the mode block (7.4)": Patch(
        "leases", "want = want._replace(shared_generation=standing.generation)", "del standing"
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_keeps_the_modes_apart(name: str) -> None:
    """With one of these taken out, one host has it exclusively and the other shared."""
    model = world(CAST, Bounds(2, 2), module=patched("leases", FEW_RETRIES, MUTANTS[name]))
    result = explore(model, until="two owners", depth_first=True)
    assert result.violations["two owners"], str(result)
    assert "shared" in describe(model, result.traces["two owners"])
