"""The example of docs/drivers.md, installed as a third party's distribution, passes the suite."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paxoslease.drivers.conformance import Conformance, Rig
from tests.lockd.rig import our_daemon

PAGE = Path(__file__).parents[2] / "docs" / "drivers.md"


def block(kind: str, number: int) -> str:
    """Return a block of code of the page."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(blocks[number])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Install the driver, and give the rig of the page with a lock daemon."""
    directory = tmp_path_factory.mktemp("third")
    (directory / "journal_driver.py").write_text(block("python", 0))
    info = directory / "journal-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: journal\nVersion: 1.0\n")
    points = block("toml", 0).replace("project.entry-points.", "").replace('"', "")
    (info / "entry_points.txt").write_text(points)
    suite: dict[str, Any] = {"__name__": "suite"}
    exec(compile(block("python", 1), str(PAGE), "exec"), suite)
    sys.path.append(str(directory))
    importlib.invalidate_caches()
    try:
        with our_daemon(directory) as daemon:
            rig: Rig = suite["JournalRig"](directory, daemon.path)
            yield rig
        assert "guest-1 acquired " in (directory / "journal").read_text()
    finally:
        sys.path.remove(str(directory))
        sys.modules.pop("journal_driver", None)


class TestJournal(Conformance):
    """The suite."""
