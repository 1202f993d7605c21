"""Timing: the waits are the formulas of spec/timing-and-recovery.md 1."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from paxoslease.errors import ConfigError
from paxoslease.timing import (
    FORMAT_TIMEOUT_US,
    SECOND_US,
    Timing,
    check_timing,
    dead_us,
    delta_settle_us,
    fail_us,
    renewal_us,
)


def test_the_table_for_the_defaults() -> None:
    """With io_timeout 10 and a watchdog of 60 s the waits are those of the table."""
    t = Timing()
    waits = (t.io_us, t.renewal_us, t.warning_us, t.fail_us, t.dead_us, t.bitmap_us)
    assert waits == tuple(s * SECOND_US for s in (10, 20, 60, 80, 140, 60))
    assert delta_settle_us(10) == 20 * SECOND_US
    assert t.kill_grace_us() == 40 * SECOND_US
    assert FORMAT_TIMEOUT_US == 60 * SECOND_US


@given(st.integers(1, 255), st.integers(1, 3600))
def test_the_order_of_the_waits(io_timeout: int, fire: int) -> None:
    """A host warns, then fails, then is dead; and it could renew several times before."""
    t = Timing(io_timeout, fire)
    assert t.io_us < t.renewal_us < t.warning_us < t.fail_us < t.dead_us
    assert t.dead_us - t.fail_us == fire * SECOND_US
    assert (t.renewal_us, t.fail_us) == (renewal_us(io_timeout), fail_us(io_timeout))
    assert t.dead_us == dead_us(io_timeout, fire)
    assert check_timing(t) is t


@given(st.integers(1, 3600), st.integers(0, 10_000))
def test_killing_ends_before_the_watchdog(fire: int, configured_s: int) -> None:
    """However long the grace was configured, a third of the watchdog's time is left for SIGKILL."""
    grace_us = Timing(10, fire).kill_grace_us(configured_s)
    assert 0 <= grace_us <= configured_s * SECOND_US
    assert fire * SECOND_US - grace_us >= fire * SECOND_US // 3


@pytest.mark.parametrize("bad", [(0, 60), (256, 60), (-1, 60), (10, 0), (10, 3601)])
def test_senseless_values_are_refused(bad: tuple[int, int]) -> None:
    """A value that cannot be stored, or makes no sense, is an error that names it."""
    with pytest.raises(ConfigError, match="seconds"):
        check_timing(Timing(*bad))
