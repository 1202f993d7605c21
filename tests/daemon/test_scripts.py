"""The same script with the real sanlock and with ours: the same answers, output and disks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.daemon.compare import differences
from tests.daemon.daemons import Kind, require
from tests.daemon.scripts import membership, storage
from tests.daemon.stage import Observation, Stage

pytestmark = pytest.mark.peer

Script = Callable[[Stage], None]

SCRIPTS: Final[dict[str, Script]] = {
    f"{module.__name__.rpartition('.')[2]}-{script.__name__}": script
    for module in (storage, membership)
    for script in module.SCRIPTS
}


def play(script: Script, kind: Kind, directory: Path) -> tuple[list[Observation], str]:
    """Play a script to its end or to its first failure; return what was seen and the failure."""
    with Stage(kind, directory) as stage:
        try:
            script(stage)
        except Exception as error:
            return stage.notes, f"{kind} stopped after {len(stage.notes)} steps: {error!r}"
        return stage.notes, ""


def compared(script: Script, one: Kind, two: Kind, directory: Path) -> str:
    """Play a script with two daemons at once and return what differs."""
    for kind in (one, two):
        require(kind)
    with ThreadPoolExecutor(2) as pool:
        plays = [
            pool.submit(play, script, kind, directory / f"{kind}{number}")
            for number, kind in enumerate((one, two))
        ]
        (notes, failure), (others, other_failure) = (play.result() for play in plays)
    found = differences(f"{one}", notes, f"{two}", others)
    return "\n".join(part for part in (failure, other_failure, found) if part)


@pytest.mark.parametrize("name", SCRIPTS)
def test_ours_answers_as_the_real_one(name: str, tmp_path: Path) -> None:
    """No step shows anything else, except where it is written down why."""
    assert not (found := compared(SCRIPTS[name], "real", "ours", tmp_path)), f"\n{found}"


@pytest.mark.long
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_real_one_answers_as_itself(name: str, tmp_path: Path) -> None:
    """Nothing that varies from run to run is compared."""
    assert not (found := compared(SCRIPTS[name], "real", "real", tmp_path)), f"\n{found}"
