"""Bytes from outside end in documented errors, never in others: a moment of each fuzz target."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.mutation import inputs
from tests.fuzz.targets import TARGETS

EXAMPLES = {"connection": 25, "areas": 12, "restored": 30, "journal": 30}


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_pass(name: str) -> None:
    """What is sent, written and left behind in earnest is taken by its target."""
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_bytes_end_in_documented_errors(name: str) -> None:
    """Bytes with small changes, and noise."""
    target = TARGETS[name]
    quiet = [HealthCheck.too_slow]

    @settings(
        max_examples=EXAMPLES.get(name, 100),
        deadline=None,
        database=None,
        suppress_health_check=quiet,
    )
    @given(inputs(target.seeds))
    def play(data: bytes) -> None:
        target.run(data)

    play()
