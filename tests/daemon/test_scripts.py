"""The same script with the real sanlock and with ours: the same answers, output and disks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.daemon.compare import differences
from tests.daemon.daemons import Kind, require
from tests.daemon.scripts import (
    command,
    damage,
    faults,
    fields,
    guests,
    index,
    killing,
    leases,
    membership,
    modes,
    pair,
    storage,
)
from tests.daemon.stage import Observation, Stage
from tests.guests.machine import require_libvirt

pytestmark = pytest.mark.peer

Script = Callable[[Stage], None]

MODULES: Final = (
    *(storage, membership, leases, modes, killing, index, pair, damage, faults, command),
    fields,
)
# Scripts of one act are played at the same time: they wait much and do little.
ACTS: Final[dict[str, Sequence[Script]]] = {
    module.__name__.rpartition(".")[2]: module.SCRIPTS for module in MODULES
}


LONG: Final = (*pair.LONG, *killing.LONG)


# Not played with restarts, and why.
NOT_RESTARTED: Final = {
    membership.joining: "a restart waits for the join, of which the steps want to see the middle",
    leases.releasing: "in which slots leases lay is not handed over",
}


def play(
    script: Script, kind: Kind, directory: Path, restarts_every: int
) -> tuple[list[Observation], str]:
    """Play a script to its end or to its first failure; return what was seen and the failure."""
    with Stage(kind, directory, restarts_every) as stage:
        try:
            script(stage)
        except Exception as error:
            return stage.notes, f"{kind} stopped after {len(stage.notes)} steps: {error!r}"
        return stage.notes, ""


def compared(script: Script, one: Kind, two: Kind, directory: Path, restarts_every: int) -> str:
    """Play a script with two daemons at once and return what differs."""
    kinds = (one, two)
    with ThreadPoolExecutor(2) as pool:
        plays = [
            # Short: a socket path ends at 106 bytes.
            pool.submit(play, script, kind, directory / f"{kind[0]}{number}", restarts_every)
            for number, kind in enumerate(kinds)
        ]
        (notes, failure), (others, other_failure) = (play.result() for play in plays)
    found = differences(f"{one}", notes, f"{two}", others)
    return "\n".join(part for part in (failure, other_failure, found) if part)


def all_compared(
    scripts: Sequence[Script], one: Kind, two: Kind, directory: Path, *, restarts_every: int = 0
) -> str:
    """Play scripts at the same time and return what differs in any of them."""
    for kind in (one, two):
        require(kind)
    if scripts == faults.SCRIPTS:
        faults.require_fuse()
    with ThreadPoolExecutor(len(scripts)) as pool:
        plays = {
            script.__name__: pool.submit(
                compared, script, one, two, directory / str(number), restarts_every
            )
            for number, script in enumerate(scripts)
        }
    found = {name: play.result() for name, play in plays.items()}
    return "\n".join(f"-- {name}:\n{differs}" for name, differs in found.items() if differs)


@pytest.mark.parametrize("act", ACTS)
def test_ours_answers_as_the_real_one(act: str, tmp_path: Path) -> None:
    """No step shows anything else, except where it is written down why."""
    assert not (found := all_compared(ACTS[act], "real", "ours", tmp_path)), f"\n{found}"


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("act", [*ACTS, "guests"])
def test_a_restart_changes_no_answer(act: str, tmp_path: Path) -> None:
    """Ours is restarted before every third step, and answers as the real one does without."""
    if act == "guests":
        require_libvirt("sanlock")
    played = {**ACTS, "guests": guests.SCRIPTS}[act]
    scripts = [script for script in played if script not in NOT_RESTARTED]
    found = all_compared(scripts, "real", "ours", tmp_path, restarts_every=3)
    assert not found, f"\n{found}"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_ours_waits_as_the_real_one(tmp_path: Path) -> None:
    """The same for what takes more than a minute."""
    assert not (found := all_compared(LONG, "real", "ours", tmp_path)), f"\n{found}"


@pytest.mark.long
def test_guests_run_as_over_the_real_one(tmp_path: Path) -> None:
    """libvirt starts, refuses and stops guests with ours as it does with the real daemon."""
    require_libvirt("sanlock")
    assert not (found := all_compared(guests.SCRIPTS, "real", "ours", tmp_path)), f"\n{found}"


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("act", [*ACTS, "long", "guests"])
def test_the_real_one_answers_as_itself(act: str, tmp_path: Path) -> None:
    """Nothing that varies from run to run is compared."""
    if act == "guests":
        require_libvirt("sanlock")
    scripts = {**ACTS, "long": LONG, "guests": guests.SCRIPTS}[act]
    assert not (found := all_compared(scripts, "real", "real", tmp_path)), f"\n{found}"
