"""Fixed schedules: how they end for the original, and that they end well under our rules.

A scenario file has a paragraph on its subject, a schedule (explorer/schedule.py), and one recorded
run per cast. The line above a run names the cast and, after the colon, what goes wrong in it: that
is written by hand. Everything below it is recorded with RECORD_SCENARIOS=1 and reviewed as a diff.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from paxoslease.simulation.explorer.lease_world import LeaseWorld
from paxoslease.simulation.explorer.schedule import Schedule
from paxoslease.simulation.explorer.values import Bounds
from tests.scenarios.casts import program

HERE = Path(__file__).parent
BOUNDS = Bounds(9, 9, crashes=1, rejoins=1, timeouts=1)
MARK = "\n=== "


class Run(NamedTuple):
    """A cast, what goes wrong with it, and what was recorded."""

    cast: tuple[str, ...]
    bad: str
    recorded: str


class Scenario(NamedTuple):
    """A scenario file."""

    path: Path
    head: str
    commands: tuple[str, ...]
    runs: tuple[Run, ...]


def load(path: Path) -> Scenario:
    """Return what a scenario file says."""
    head, *sections = path.read_text(encoding="utf-8").split(MARK)
    lines = head.split("\n\n", 1)[1].splitlines()
    commands = tuple(line for line in lines if line and not line.startswith("#"))
    runs = []
    for section in sections:
        title, _, recorded = section.partition("\n")
        cast, _, bad = title.partition(": ")
        runs.append(Run(tuple(cast.split(", ")), bad, recorded.rstrip("\n")))
    return Scenario(path, head.rstrip("\n"), commands, tuple(runs))


def play(scenario: Scenario, cast: tuple[str, ...]) -> Schedule:
    """Run a schedule with a cast."""
    schedule = Schedule(LeaseWorld(tuple(program(name) for name in cast), BOUNDS))
    for command in scenario.commands:
        schedule.run(command)
    schedule.log.append(f"owner at the end: {schedule.owners()}")
    return schedule


SCENARIOS = [load(path) for path in sorted(HERE.glob("*.txt"))]
ALL = [(scenario, run) for scenario in SCENARIOS for run in scenario.runs]


def name_of(value: Scenario | Run) -> str:
    return value.path.stem if isinstance(value, Scenario) else "-".join(value.cast)


@pytest.mark.parametrize(("scenario", "run"), ALL, ids=name_of)
def test_scenario_ends_as_described(scenario: Scenario, run: Run) -> None:
    """The original ends as spec/algorithms.md 15 says, ours holds on the same schedule."""
    schedule = play(scenario, run.cast)
    assert (", ".join(schedule.bad) or "nothing") == run.bad
    if os.environ.get("RECORD_SCENARIOS"):
        record(scenario)
        return
    assert "\n".join(schedule.log) == run.recorded


def record(scenario: Scenario) -> None:
    """Write a scenario file anew with what its runs give now."""
    parts = [scenario.head]
    for run in scenario.runs:
        log = "\n".join(play(scenario, run.cast).log)
        parts.append(f"{MARK.strip()} {', '.join(run.cast)}: {run.bad}\n{log}")
    scenario.path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def test_every_scenario_is_played_by_both() -> None:
    """Every schedule has a cast of the original that fails and one of ours that holds."""
    assert {s.path.stem[:4] for s in SCENARIOS} == {"15_1", "15_3", "15_8", "15_9"}
    for number in ("15_1", "15_3", "15_8", "15_9"):
        runs = [run for s in SCENARIOS if s.path.stem.startswith(number) for run in s.runs]
        assert any("two owners" in run.bad and "ours" not in run.cast for run in runs)
        assert any(run.bad == "nothing" and set(run.cast) == {"ours"} for run in runs)


def test_schedule_refuses_nonsense() -> None:
    """A schedule with a misspelt command is an error, not an empty step."""
    schedule = Schedule(LeaseWorld((program("ours"), program("ours")), BOUNDS))
    for command in ("C does", "A dos", "A chooses x", "until idle"):
        with pytest.raises(ValueError, match=r"no such host|not understood|invalid literal"):
            schedule.run(command)
