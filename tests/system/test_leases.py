"""Leases on a real file: taken, shared, converted, refused, awaited and given back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import paxoslease
from paxoslease import (
    ConfigError,
    LeaseBusy,
    LeaseHeld,
    LeaseLost,
    LeaseShared,
    LockspaceFailed,
    WaitTimeout,
    WrongVersion,
)
from paxoslease.engine.operation import now_us
from tests.system.conftest import Pair
from tests.system.rig import Child, join, make_disk


def test_token_grows_with_every_grant(pair: Pair) -> None:
    """Every grant of a lease has a larger fencing token than the one before."""
    disk, space, _ = pair
    tokens = []
    for _ in range(3):
        with disk.lease(space, 0) as lease:
            assert lease.is_held
            tokens.append(lease.fencing_token)
        assert not lease.is_held
    assert tokens == sorted(set(tokens))


def test_lease_has_one_user_per_host(pair: Pair) -> None:
    """A lease that this host holds is refused a second time, and is to be had after its release."""
    disk, space, _ = pair
    with disk.lease(space, 0), pytest.raises(LeaseBusy) as refused:
        disk.lease(space, 0)
    assert refused.value.state == "held"
    disk.lease(space, 0).release()


def test_held_lease_says_by_whom(pair: Pair) -> None:
    """The error of a held lease is an object that names its holder."""
    disk, space, other = pair
    with disk.lease(space, 0) as lease, pytest.raises(LeaseHeld) as refused:
        disk.lease(other, 0)
    error = refused.value
    assert (error.host_id, error.host_name, error.alive) == (1, b"one", True)
    assert (error.generation, error.lver) == (space.generation, lease.fencing_token)


def test_waits_for_the_release(pair: Pair) -> None:
    """A host that waits gets the lease soon after the other has released it."""
    disk, space, other = pair
    lease = disk.lease(space, 0)
    got: list[paxoslease.Lease] = []
    waiting = threading.Thread(target=lambda: got.append(disk.lease(other, 0, wait=20)))
    waiting.start()
    with disk.lease(space, 1), pytest.raises(WaitTimeout) as late:
        disk.lease(other, 1, wait=0.1)
    assert isinstance(late.value.last, LeaseHeld)
    assert not got
    lease.release()
    waiting.join(10)
    assert got[0].fencing_token == lease.fencing_token + 1
    got[0].release()


def test_shared_and_exclusive_exclude_each_other(pair: Pair) -> None:
    """Two hosts share a lease; while they do neither can have it alone, afterwards one can."""
    disk, space, other = pair
    mine = disk.lease(space, 0, shared=True)
    with disk.lease(other, 0, shared=True) as theirs:
        assert mine.shared
        assert theirs.shared
        with pytest.raises(LeaseShared) as refused:
            mine.convert(shared=False)
        assert refused.value.host_ids == (2,)
        assert mine.shared
        assert {host for host, _ in mine.owners().shared} == {1, 2}
    mine.convert(shared=False)
    assert not mine.shared
    with pytest.raises(LeaseHeld):
        disk.lease(other, 0, shared=True)
    mine.convert(shared=True)
    with pytest.raises(LeaseShared):
        disk.lease(other, 0)
    mine.release()
    disk.lease(other, 0).release()


def test_lvb_goes_from_holder_to_holder(pair: Pair) -> None:
    """What one holder leaves in the lock value block the next one reads."""
    disk, space, other = pair
    with disk.lease(space, 0) as lease:
        lease.set_lvb(b"first")
        with pytest.raises(ConfigError):
            lease.set_lvb(bytes(513))
    with disk.lease(other, 0) as lease:
        assert lease.read_lvb() == b"first".ljust(512, b"\0")
        lease.release(lvb=b"second")
    with disk.lease(space, 0) as lease:
        assert lease.read_lvb().rstrip(b"\0") == b"second"


def test_many_leases_all_or_nothing(pair: Pair) -> None:
    """If one lease of several is not to be had, none is kept."""
    disk, space, other = pair
    taken = disk.lease(other, 1)
    with pytest.raises(LeaseHeld):
        space.lease_many([disk.want(number) for number in range(3)])
    taken.release()
    leases = space.lease_many([disk.want(number) for number in range(3)])
    assert [lease.name for lease in leases] == ["r0", "r1", "r2"]
    for lease in leases:
        lease.release()


def test_wrong_version_is_refused(pair: Pair) -> None:
    """A lease wanted in a certain version is not taken in another, and is left as it was."""
    disk, space, _ = pair
    with disk.lease(space, 0) as lease:
        version = lease.fencing_token
    with pytest.raises(WrongVersion) as refused:
        disk.lease(space, 0, lver=version + 5)
    assert refused.value.found == version
    disk.lease(space, 0, lver=version).release()


def test_released_lease_cannot_be_used(pair: Pair) -> None:
    """After its release a lease refuses every use; releasing again does nothing."""
    disk, space, _ = pair
    lease = disk.lease(space, 0)
    lease.release()
    lease.release()
    with pytest.raises(LeaseLost):
        lease.read_lvb()
    with pytest.raises(LeaseLost):
        lease.convert(shared=True)


def test_lease_on_three_disks_needs_a_majority(pair: Pair, tmp_path: Path) -> None:
    """A lease on three disks excludes the other host, also with one disk out of its sight."""
    _, space, other = pair
    places = []
    for number in range(3):
        path = str(tmp_path / f"copy{number}")
        paxoslease.format_resource(path, "space", "wide")
        places.append((path, 0))
    with space.lease_on_disks("wide", places) as lease:
        with pytest.raises(LeaseHeld):
            other.lease_on_disks("wide", places)
        Path(places[0][0]).write_bytes(bytes(1 << 20))
        assert lease.owners().exclusive == (1, space.generation)
    with other.lease_on_disks("wide", places):
        pass


def test_nothing_is_had_after_leaving(pair: Pair) -> None:
    """Leaving releases what is held, says so to who uses it, and frees it for others at once."""
    disk, space, _ = pair
    with join(disk, 3) as leaving:
        lease = disk.lease(leaving, 5)
    assert lease.lost.is_set()
    with pytest.raises(LockspaceFailed):
        disk.lease(leaving, 6)
    disk.lease(space, 5).release()


PROGRAM = """
path, host_id, counter, rounds = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
with join(path, host_id) as space:
    say("joined")
    sys.stdin.readline()
    for _ in range(rounds):
        with space.lease("r0", path, offset=1 << 20, wait=None) as lease:
            with open(counter) as file:
                before = int(file.read())
            time.sleep(0.002)
            with open(counter, "w") as file:
                file.write(str(before + 1))
            say("token", lease.fencing_token)
say("left")
"""


def test_two_processes_never_hold_it_at_once(tmp_path: Path) -> None:
    """Two processes that add to a number under the lease lose no addition, and both get on."""
    disk = make_disk(tmp_path / "disk")
    counter = tmp_path / "counter"
    counter.write_text("0")
    rounds = 15
    with (
        Child(PROGRAM, disk.path, 1, counter, rounds) as one,
        Child(PROGRAM, disk.path, 2, counter, rounds) as two,
    ):
        for child in (one, two):
            child.hear("joined")
        for child in (one, two):
            child.tell()
        tokens = [int(c.hear("token")[1]) for c in (one, two) for _ in range(rounds)]
        assert one.end() == two.end() == 0
    assert counter.read_text() == str(2 * rounds)
    assert len(set(tokens)) == 2 * rounds


INTERRUPTED = """
path = sys.argv[1]
with join(path, 4) as space:
    other = space.lease("r1", path, offset=2 << 20)
    try:
        say("waiting")
        space.lease("r0", path, offset=1 << 20, wait=None)
    except KeyboardInterrupt:
        say("interrupted")
say("left")
"""


def test_interrupt_leaves_nothing_behind(pair: Pair) -> None:
    """SIGINT while waiting for a lease: its others are released, the lockspace is left."""
    disk, space, _ = pair
    with disk.lease(space, 0), Child(INTERRUPTED, disk.path) as child:
        child.hear("waiting")
        child.process.send_signal(2)
        child.hear("interrupted")
        child.hear("left")
        assert child.end() == 0
    disk.lease(space, 1).release()


def test_a_lease_won_after_a_long_pause_is_not_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that slept past its membership while it won a lease does not hand it to its user."""
    disk = make_disk(tmp_path / "disk", 1)
    space = join(disk, 1)
    calls = 0

    def slept() -> int:
        nonlocal calls
        calls += 1
        return now_us() if calls <= 2 else now_us() + 3_600_000_000

    monkeypatch.setattr("paxoslease.engine.leases.now_us", slept)
    with pytest.raises(LeaseLost, match="renewed in time"):
        disk.lease(space, 0)
    monkeypatch.undo()
    space.leave()
