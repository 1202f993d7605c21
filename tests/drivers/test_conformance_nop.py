"""The driver that keeps nobody out does everything else that a driver must do."""

from __future__ import annotations

import pytest

from paxoslease.drivers.conformance import Conformance, Rig
from tests.drivers.rigs import NopRig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Give files."""
    return NopRig(tmp_path_factory.mktemp("nop"), [{}])


class TestNop(Conformance):
    """The suite."""
