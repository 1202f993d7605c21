"""Disk-paxos leases through the original's daemons pass the suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paxoslease.drivers.conformance import Conformance, Rig
from tests.drivers.rigs import sanlock_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Give two hosts with the real sanlock."""
    with sanlock_rig(tmp_path_factory.mktemp("san")) as rig:
        yield rig


@pytest.mark.peer
class TestPaxosOnSanlock(Conformance):
    """The suite."""
