"""Schedules that the specification found by model checking, played by real daemons.

What the original's model does on the schedules of tests/scenarios the real sanlock daemon does,
I/O for I/O: it gives one lease to two hosts. Our daemon in either place holds. See
docs/verification.md, "Replayed on the real daemon".
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.our_daemon import require_ours
from tests.compat.replay import Part, Stage
from tests.scenarios.test_scenarios import SCENARIOS, Run, Scenario

pytestmark = pytest.mark.peer

# Steps of the model that are no I/O in the area of the lease.
UNSEEN = (": observe", ": read delta")


def scenario_of(name: str) -> Scenario:
    """Return a scenario file by the beginning of its name."""
    return next(s for s in SCENARIOS if s.path.stem.startswith(name))


def play(name: str, directory: Path, *cast: Part, knows_hosts: bool = True) -> Stage:
    """Play a scenario file's schedule; returns the stage as it was at the end."""
    require_ours()
    with Stage(directory, cast, knows_hosts=knows_hosts) as stage:
        try:
            for command in scenario_of(name).commands:
                stage.run(command)
        finally:
            stage.log.append(f"owner at the end: {stage.owners()}")
            print("\n".join(stage.log))
    return stage


def run_of(name: str, *cast: str) -> Run:
    """Return the recorded run of the model on a schedule."""
    return next(run for run in scenario_of(name).runs if run.cast == cast)


def predicted(run: Run) -> list[str]:
    """Return what the model did, as far as a disk can see it."""
    lines = [line.partition("   <--")[0] for line in run.recorded.splitlines()]
    return [line for line in lines if not line.endswith(UNSEEN)]


def seen(stage: Stage) -> list[str]:
    """Return what the daemons did, without the numbers with which attempts were refused."""
    return [line for line in stage.log if ": refused: " not in line]


def test_slow_committer_gives_a_lease_to_two_real_hosts(tmp_path: Path) -> None:
    """15.8: each I/O within its time-out, a version is granted twice, two hosts own the lease."""
    stage = play("15_8", tmp_path, Part("original", 3), Part("original", 3))
    run = run_of("15_8", "original", "original")
    assert stage.owners() == "A (version 2) and B (version 3)"
    assert ", ".join(stage.bad) == run.bad == "reuse, two owners"
    assert seen(stage) == predicted(run)


def test_value_of_an_earlier_life_gives_a_lease_to_two_real_hosts(tmp_path: Path) -> None:
    """15.9: a host is reset in a ballot, takes its old value for its own, and two own the lease."""
    cast = Part("original", 1), Part("original", 10)
    stage = play("15_9", tmp_path, *cast, knows_hosts=False)
    run = run_of("15_9", "original", "original")
    assert stage.owners() == "A (version 1) and B (version 2)"
    assert ", ".join(stage.bad) == run.bad == "two owners"
    assert seen(stage) == predicted(run)


# Ours is not compared I/O for I/O: a daemon that had the lease a moment ago looks first whether
# others wait for it (protocol/contention.py), which no model does.


@pytest.mark.long
@pytest.mark.parametrize("cast", [("ours", "ours"), ("ours", "original"), ("original", "ours")])
def test_slow_committer_beside_ours(tmp_path: Path, cast: tuple[str, str]) -> None:
    """15.8 with our daemon in one place or both: every version once, one owner at most."""
    stage = play("15_8", tmp_path, *(Part(program, 4) for program in cast))
    assert stage.bad == []
    assert any(line.endswith("now: owner") for line in stage.log)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("cast", [("ours", "ours"), ("ours", "original"), ("original", "ours")])
def test_value_of_an_earlier_life_beside_ours(tmp_path: Path, cast: tuple[str, str]) -> None:
    """15.9 with our daemon in one place or both: one owner at most.

    Where the host that is reset is ours it comes back only when its earlier life is over for sure.
    """
    first, second = cast
    stage = play("15_9", tmp_path, Part(first, 1), Part(second, 10), knows_hosts=False)
    assert stage.bad == []
    assert stage.owners() != "nobody"
