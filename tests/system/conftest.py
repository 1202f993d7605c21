"""Fixtures of the system tests: a join takes two seconds, so a module's tests share two hosts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

import paxoslease
from tests.system.rig import FIRE_TIMEOUT, IO_TIMEOUT, SPACE, Disk, make_disk


class Pair(NamedTuple):
    """Two hosts of one lockspace in this process, and its disk with resources r0 to r15."""

    disk: Disk
    one: paxoslease.Lockspace
    two: paxoslease.Lockspace


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    disk = make_disk(tmp_path_factory.mktemp("pair") / "disk", resources=16)
    wanted = [
        paxoslease.WantedLockspace(
            disk.path,
            SPACE,
            host_id,
            host_name=name,
            io_timeout=IO_TIMEOUT,
            watchdog_fire_timeout=FIRE_TIMEOUT,
        )
        for host_id, name in ((1, "one"), (2, "two"))
    ]
    one, two = paxoslease.join_many(wanted)
    with one, two:
        yield Pair(disk, one, two)
