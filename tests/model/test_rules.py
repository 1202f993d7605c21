"""Each rule that exclusion rests on, taken out: some small world shows what it was for.

The worlds that hold with all rules are in test_explore.py.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from paxoslease.simulation.explorer.search import explore
from paxoslease.simulation.explorer.values import Bounds
from tests.model.patching import Patch, patched
from tests.model.worlds import world


class Mutant(NamedTuple):
    """A rule taken out, and a world in which `shows` then happens."""

    rule: str
    patches: tuple[Patch, ...]
    cast: str
    bounds: Bounds
    shows: str


REJOIN = Bounds(2, 3, crashes=1, rejoins=1)
MUTANTS = (
    Mutant(
        "M3: keep bal and inp of the own block",
        (
            Patch(
                "paxos",
                "kept = memory.own if keep else NEVER_USED._replace(lver=instance.v)",
                "released = keep and memory.own.released\n"
                "        kept = NEVER_USED._replace(lver=instance.v, released=released)",
            ),
        ),
        "real ours",
        Bounds(3, 5),
        "reuse",
    ),
    Mutant(
        "M5: carry a ballot through before believing a leader",
        (
            Patch(
                "paxos",
                "return instance._replace(base=leader, adopted=True)",
                "return Owned(leader, memory.own, Ballot(leader, ()), claim, 0)",
            ),
            Patch("paxos", "if isinstance(reread, Step):", "if isinstance(reread, Step | Owned):"),
        ),
        "ours real+sh real",
        Bounds(1, 3, attempts=1),
        "two owners",
    ),
    Mutant(
        "M7: wait for a write that timed out",
        (
            Patch(
                "disks",
                "            return\n        yield Landed(ticket)\n        return\n",
                "            return\n        return\n",
            ),
        ),
        "ours ours",
        Bounds(2, 3, timeouts=1),
        "two owners",
    ),
    Mutant(
        "M8: leave RELEASED behind",
        (Patch("paxos", "if memory.wrote and not memory.own.released:", "if False:"),),
        "ours real",
        REJOIN,
        "blocked",
    ),
    Mutant(
        "M12: join the newest version, first read",
        (Patch("paxos", "max(leader.lver + 1, memory.lo)", "leader.lver + 1"),),
        "ours ours",
        REJOIN,
        "blocked",
    ),
    Mutant(
        "M12: join the newest version, in a ballot",
        (Patch("paxos", "    if largest_lver > instance.v:", "    if False:"),),
        "ours ours",
        Bounds(2, 4, crashes=1, rejoins=1),
        "two owners",
    ),
    Mutant(
        "M19: RELEASED is final",
        (
            Patch(
                "paxos",
                "shared_generation=want.shared_generation)",
                "shared_generation=want.shared_generation, released=False)",
            ),
        ),
        "real ours",
        Bounds(3, 5),
        "two owners",
    ),
    Mutant(
        "M20: only the own generation",
        (Patch("paxos", "(own.inp2 != standing.generation or own.released)", "own.released"),),
        "ours ours",
        REJOIN,
        "two owners",
    ),
    Mutant(
        "M21: write no leader for a live host",
        (Patch("paxos", "if help_it is not Go.ON:", "if False:"),),
        "real ours",
        Bounds(3, 5),
        "reuse",
    ),
    Mutant(
        "M23: free the leader before RELEASED",
        (
            Patch(
                "leases",
                "    try:\n        refused = yield from free_leader(lease.claim",
                "    yield from write_released(lease.claim, lease.own)\n"
                "    try:\n        refused = yield from free_leader(lease.claim",
            ),
        ),
        "real ours",
        Bounds(3, 5),
        "two owners",
    ),
)


AMONG_OURS = (MUTANTS[0]._replace(cast="ours ours", bounds=Bounds(2, 4, crashes=1, rejoins=1)),)


@pytest.mark.long
@pytest.mark.parametrize("mutant", AMONG_OURS, ids=lambda m: m.rule)
def test_a_rule_taken_out_is_missed_among_ours(mutant: Mutant) -> None:
    """Without this rule a world of our hosts alone ends badly."""
    test_a_rule_taken_out_is_missed(mutant)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.rule)
def test_a_rule_taken_out_is_missed(mutant: Mutant) -> None:
    """Without this rule a small world ends badly."""
    module = patched("leases", *mutant.patches)
    model = world(mutant.cast, mutant.bounds, module=module)
    result = explore(model, until=mutant.shows, depth_first=True)
    assert result.violations[mutant.shows], str(result)
