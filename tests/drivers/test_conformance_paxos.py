"""Disk-paxos leases pass the suite, through our lease daemon and through the original."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paxoslease.drivers.conformance import Conformance, Rig
from tests.drivers.rigs import OurLeaseDaemon, paxos_rig, sanlock


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(OurLeaseDaemon, id="ours"),
        pytest.param(sanlock, id="sanlock", marks=pytest.mark.peer),
    ],
)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Give two hosts with a lease daemon each."""
    with paxos_rig(tmp_path_factory.mktemp("paxos"), request.param) as rig:
        yield rig


class TestPaxos(Conformance):
    """The suite."""
