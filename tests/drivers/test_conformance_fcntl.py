"""POSIX record locks pass the suite, through our lock daemon and the real virtlockd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paxoslease.drivers.conformance import Conformance, Rig
from tests.drivers.rigs import fcntl_rig
from tests.lockd.rig import our_daemon, virtlockd


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((our_daemon, False), id="ours-direct"),
        pytest.param((our_daemon, True), id="ours-indirect"),
        pytest.param(
            (virtlockd, False), id="virtlockd-direct", marks=[pytest.mark.peer, pytest.mark.long]
        ),
        pytest.param((virtlockd, True), id="virtlockd-indirect", marks=pytest.mark.peer),
    ],
)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Give two hosts with a lock daemon each."""
    make, indirect = request.param
    with fcntl_rig(tmp_path_factory.mktemp("fcntl"), make, indirect=indirect) as rig:
        yield rig


class TestFcntl(Conformance):
    """The suite."""
