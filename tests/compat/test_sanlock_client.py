"""`paxoslease-sanlock client` beside the original, each with a daemon of the same kind.

Every action, and the errors that a command line can cause, on equal states. The last test turns it
around: one program, both daemons.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.compat.session import Side, run_steps
from tests.daemon.daemons import Kind, require

pytestmark = pytest.mark.peer

SESSIONS: Final = Path(__file__).with_name("sessions")


def steps_of(name: str) -> list[str]:
    """Return the steps in a file of sessions/ as command lines of the client."""
    special = ("hold", "until", "kill")
    lines = (SESSIONS / f"{name}.txt").read_text().splitlines()
    steps = [line for line in lines if line and not line.startswith("#")]
    return [step if step.split(" ")[0] in special else f"client {step}" for step in steps]


def compare(tmp_path: Path, who: Sequence[tuple[Kind, Kind]], steps: Sequence[str]) -> None:
    """Run steps on two sides, (program, daemon) each, at the same time, and compare."""
    require("real")
    require("ours")
    with ExitStack() as stack:
        sides = [
            stack.enter_context(Side(tmp_path / str(number), program, daemon))
            for number, (program, daemon) in enumerate(who)
        ]
        with ThreadPoolExecutor(len(sides)) as pool:
            for done in [pool.submit(run_steps, side, steps) for side in sides]:
                done.result()
    one, other = (side.answers for side in sides)
    assert len(one) > len(steps) // 2
    assert [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]] == []


def programs(daemon: Kind) -> list[tuple[Kind, Kind]]:
    """Return both programs, on daemons of one kind."""
    return [("ours", daemon), ("real", daemon)]


@pytest.mark.parametrize("daemon", ["real", "ours"])
def test_incomplete(tmp_path: Path, daemon: Kind) -> None:
    """What is not complete, or about nothing that is there, is refused with the same words."""
    compare(tmp_path, programs(daemon), steps_of("incomplete"))


@pytest.mark.parametrize("daemon", ["real", "ours"])
def test_storage(tmp_path: Path, daemon: Kind) -> None:
    """Formatting and reading print the same, whether it can be done or not."""
    compare(tmp_path, programs(daemon), steps_of("storage"))


@pytest.mark.long
@pytest.mark.parametrize("daemon", ["real", "ours"])
def test_life(tmp_path: Path, daemon: Kind) -> None:
    """A lockspace from its joining to its end, with holders, orphans, requests and an index."""
    compare(tmp_path, programs(daemon), [*steps_of("storage"), *steps_of("life")])


@pytest.mark.long
def test_daemons(tmp_path: Path) -> None:
    """The original's program gets the same from our daemon as from its own."""
    steps = [*steps_of("incomplete"), *steps_of("storage"), *steps_of("life")]
    compare(tmp_path, [("real", "ours"), ("real", "real")], steps)
