"""Random calls, the same to the real sanlock and to ours: the same answers, and the same disks.

`python -m tests.daemon.calls PLAY SEED CALLS` tells again what a seed has found. In the long run
each play goes on for CALLS_MINUTES (default 3), beginning with the seed CALLS_SEED.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Final

import pytest

from tests.daemon.calls.plays import PLAYS, play
from tests.daemon.daemons import require

pytestmark = pytest.mark.peer

LENGTH_S: Final = float(os.environ.get("CALLS_MINUTES", "3")) * 60
SEED: Final = 20_261_127
# Each in a few seconds.
CALLS: Final = {"lonely": 300, "module": 250, "client": 150, "direct": 50, "joined": 100}
CALLS_LONG: Final = 1000


def unknown(kind: str, seed: int, calls: int, directory: Path) -> str:
    """Play and return what differs for no known reason."""
    require("real")
    require("ours")
    found = [finding for finding in play(kind, seed, calls, directory) if not finding.why]
    return "\n".join(map(str, found))


# Not in the default suite: the real daemon reads beyond its memory for some damaged areas, and then
# it depends on what lies there whether it ends.
@pytest.mark.long
@pytest.mark.parametrize("kind", PLAYS)
def test_random_calls(kind: str, tmp_path: Path) -> None:
    """A short run, always with the same seed."""
    assert not (found := unknown(kind, SEED, CALLS[kind], tmp_path)), f"\n{found}"


@pytest.mark.long
@pytest.mark.timeout(LENGTH_S + 300)
@pytest.mark.parametrize("kind", PLAYS)
def test_many_random_calls(kind: str, tmp_path: Path) -> None:
    """Seed after seed, until the time is up."""
    seed = int(os.environ.get("CALLS_SEED") or secrets.randbelow(1 << 32))
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < LENGTH_S:
        print(f"{kind}, seed {seed}")
        found = unknown(kind, seed, CALLS_LONG, tmp_path)
        assert not found, f"\n{kind}, seed {seed}, {CALLS_LONG} calls:\n{found}"
        seed += 1
