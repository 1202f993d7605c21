"""Joining, renewing and leaving on real files: how long it takes, and with how many threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import paxoslease
from paxoslease import (
    BadRecord,
    ConfigError,
    DiskError,
    HostIdInvalid,
    HostState,
    LockspaceFailed,
    LockspacePresent,
    UnsuitableDevice,
    WatchdogError,
)
from tests.system.conftest import Pair
from tests.system.rig import IO_TIMEOUT, SPACE, Child, join, make_disk, wait_for


def test_join_and_leave_take_no_longer_than_they_must(tmp_path: Path) -> None:
    """A free id takes two io_timeouts and leaving nearly nothing; the next life has a new name."""
    disk = make_disk(tmp_path / "disk")
    begun = time.monotonic()
    space = join(disk, 1)
    joined = time.monotonic()
    assert 2 * IO_TIMEOUT <= joined - begun < 2 * IO_TIMEOUT + 0.5
    assert space.generation == 1
    wait_for(space.renewals)
    begun = time.monotonic()
    space.leave()
    assert time.monotonic() - begun < 0.5
    with join(disk, 1) as again:
        assert again.generation == 2
        assert again.host_name != space.host_name


def test_many_joins_take_as_long_as_one(tmp_path: Path) -> None:
    """Sixteen lockspaces joined at once take as long as one, and no thread more than one does."""
    wanted = []
    for number in range(16):
        path = str(tmp_path / "disk")
        offset = number << 20
        paxoslease.format_lockspace(path, f"s{number}", offset=offset, io_timeout=1)
        wanted.append(paxoslease.WantedLockspace(path, f"s{number}", 1, offset, io_timeout=1))
    begun = time.monotonic()
    spaces = paxoslease.join_many(wanted)
    assert time.monotonic() - begun < 2 * IO_TIMEOUT + 1.0
    ours = [t.name for t in threading.enumerate() if t.name.startswith("paxoslease-")]
    assert sorted(ours) == ["paxoslease-guard", "paxoslease-renew", "paxoslease-request"]
    wait_for(lambda: all(len(space.renewals()) >= 2 for space in spaces))
    assert all(renewal.error is None for space in spaces for renewal in space.renewals())
    for space in spaces:
        space.leave()


def test_hosts_see_each_other(pair: Pair) -> None:
    """Each host finds both in its table, alive, under the names that they gave."""
    disk, one, two = pair

    def both() -> bool:
        return all(
            [(row.host_id, row.name, row.state) for row in space.hosts()]
            == [(1, b"one", HostState.LIVE), (2, b"two", HostState.LIVE)]
            for space in (one, two)
        )

    wait_for(both)
    assert disk.path == one.path == two.path


def test_same_host_id_is_refused_twice(pair: Pair) -> None:
    """A process joins a lockspace under one id once."""
    with pytest.raises(LockspacePresent):
        join(pair.disk, 1)
    with pytest.raises(LockspaceFailed):
        paxoslease.Lockspace.guard(_left(pair), 1)


def _left(pair: Pair) -> paxoslease.Lockspace:
    space = join(pair.disk, 7)
    space.leave()
    space.leave()
    return space


@pytest.mark.parametrize("host_id", [0, 2001])
def test_impossible_host_id_is_refused(pair: Pair, host_id: int) -> None:
    """A host id has to lie between 1 and the number of the lockspace's sectors."""
    with pytest.raises(HostIdInvalid) as refused:
        join(pair.disk, host_id)
    assert refused.value.max_hosts == 2000


def test_wrong_places_are_named(pair: Pair, tmp_path: Path) -> None:
    """What is no lockspace, or another, or no file, is refused with its path and the reason."""
    disk = pair.disk
    with pytest.raises(BadRecord) as other:
        paxoslease.join(disk.path, "other", 1, io_timeout=1)
    assert other.value.field == "space_name"
    assert disk.path in str(other.value)
    with pytest.raises(BadRecord):
        paxoslease.join(disk.path, SPACE, 1, offset=1 << 20, io_timeout=1)
    with pytest.raises(DiskError) as missing:
        paxoslease.join(str(tmp_path / "nothing"), SPACE, 1)
    assert missing.value.code == -2
    with pytest.raises(UnsuitableDevice):
        paxoslease.join(str(tmp_path), SPACE, 1)
    with pytest.raises(ConfigError):
        paxoslease.join(disk.path, SPACE, 1, io_timeout=0)
    with pytest.raises(ConfigError):
        paxoslease.join(disk.path, SPACE, 1, host_name="x" * 48)
    with pytest.raises(WatchdogError):
        join(disk, 9, watchdog="something")
    with pytest.raises(WatchdogError):
        join(disk, 9, watchdog=str(tmp_path / "watchdog"))


def test_truncated_lockspace_is_an_error(tmp_path: Path) -> None:
    """A file that ends within its lockspace is found out at the join, not later."""
    disk = make_disk(tmp_path / "disk")
    with open(disk.path, "r+b") as file:
        file.truncate(4096)
    with pytest.raises(DiskError) as refused:
        join(disk, 100)
    assert "end" in str(refused.value)


def test_join_runs_out_of_time(tmp_path: Path) -> None:
    """A join that is not done in time is given up, and the id can be had by others later."""
    disk = make_disk(tmp_path / "disk")
    with pytest.raises(TimeoutError):
        join(disk, 1, timeout=0.5)
    with join(disk, 2):
        pass


FORKING = """
path = sys.argv[1]
space = join(path, 1)
lease = space.lease("r0", path, offset=1 << 20)
child = os.fork()
if not child:
    try:
        space.lease("r1", path, offset=2 << 20)
    except paxoslease.LockspaceFailed as error:
        say("refused", error)
    with join(path, 2) as own:
        say("joined", own.generation)
    os._exit(0)
os.waitpid(child, 0)
lease.release()
space.leave()
say("left")
"""


def test_forked_child_has_no_part_in_it(tmp_path: Path) -> None:
    """After fork the parent's leases are refused in the child, which can join for itself."""
    disk = make_disk(tmp_path / "disk")
    with Child(FORKING, disk.path) as child:
        child.hear("refused")
        assert child.hear("joined")[1] == "1"
        child.hear("left")
        assert child.end() == 0
