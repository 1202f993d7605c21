"""Leases on several disks: a majority decides, and a disk that lags or fails does not."""

from __future__ import annotations

from typing import Any

import pytest

from paxoslease.disk.areas import resource_area
from paxoslease.disk.layout import MIB, SIZES_512, Area
from paxoslease.disk.records import (
    NEVER_USED,
    SHORT_HOLD,
    HostSector,
    delta_at_format,
    pack_host_sector,
    pack_leader,
)
from paxoslease.errors import BadRecord, DiskError, DiskTimeout, LeaseHeld, PaxosleaseError
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Ballot, Claim, Resource, read_ballot, read_leader
from paxoslease.protocol.effects import Gather, Landed, Read, ReadBallot, Standing, Write
from paxoslease.protocol.leases import (
    Lease,
    acquire_exclusive,
    acquire_shared,
    read_lvb,
    read_owners,
    release,
    write_lvb,
)
from paxoslease.timing import Timing
from tests.unit.drive import Desk

SPACE = Lockspace(b"ls", Area("/ls", 0, SIZES_512))
PATHS = ("/a", "/b", "/c")


def claim_of(host_id: int, count: int = 3) -> Claim:
    """Return a host's claim on a lease on the first `count` disks."""
    disks = tuple(Area(path, 0, SIZES_512) for path in PATHS[:count])
    return Claim(SPACE, Resource(b"res", disks), Timing(), host_id)


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    lockspace = desk.disk("/ls", MIB)
    for host_id in (1, 2):
        record = delta_at_format(b"ls", SIZES_512, 10)
        record = record._replace(owner_id=host_id, owner_generation=1, timestamp=7).sealed()
        start = SPACE.area.delta(host_id)
        lockspace[start : start + 512] = pack_leader(record, 512)
    for path in PATHS:
        desk.disk(path, MIB)[:] = resource_area(b"ls", b"res", SIZES_512)
    return desk


def broken(*paths: str) -> Any:
    """Return a fault: every I/O to these disks fails."""

    def fail(effect: Any) -> PaxosleaseError | None:
        if isinstance(effect, Read | ReadBallot | Write) and effect.path in paths:
            return DiskError(effect.path, effect.offset, "I/O", 5, "broken")
        return None

    return fail


def test_all_disks_are_written(desk: Desk) -> None:
    """With all disks well, each has the same leader and the same sectors."""
    lease = desk.run(acquire_exclusive(claim_of(1)))
    assert lease.lver == 1
    assert desk.disks["/a"] == desk.disks["/b"] == desk.disks["/c"]
    assert desk.run(release(lease)) is None
    assert desk.disks["/a"] == desk.disks["/b"] == desk.disks["/c"]
    assert desk.run(read_leader(claim_of(1))).is_free


def test_one_of_three_may_fail(desk: Desk) -> None:
    """A lease can be taken and given back while a minority of its disks is broken."""
    desk.fail = broken("/b")
    lease = desk.run(acquire_exclusive(claim_of(1)))
    desk.standing = Standing(2, 1, 10**15)
    with pytest.raises(LeaseHeld) as held:
        desk.run(acquire_exclusive(claim_of(2)))
    assert held.value.host_id == 1
    desk.standing = Standing(1, 1, 10**15)
    assert desk.run(release(lease)) is None
    assert desk.run(acquire_exclusive(claim_of(1))).lver == 2


def test_two_of_three_may_not_fail(desk: Desk) -> None:
    """Without a majority nothing can be taken; the error is the disk's."""
    desk.fail = broken("/a", "/c")
    with pytest.raises(DiskError, match="broken"):
        desk.run(acquire_exclusive(claim_of(1)))


def test_a_disk_that_missed_a_version_does_not_count(desk: Desk) -> None:
    """A disk that comes back with an old leader is outvoted, whichever other one fails then."""
    desk.fail = broken("/b")
    lease: Lease = desk.run(acquire_exclusive(claim_of(1)))
    desk.fail = broken()
    assert desk.run(read_leader(claim_of(1))).lver == lease.lver
    desk.standing = Standing(2, 1, 10**15)
    with pytest.raises(LeaseHeld):
        desk.run(acquire_exclusive(claim_of(2)))
    desk.fail = broken("/c")  # one disk says version 1, one says 0: the newer one has happened
    with pytest.raises(LeaseHeld):
        desk.run(acquire_exclusive(claim_of(2)))


def test_a_release_that_reached_a_minority_has_not_happened(desk: Desk) -> None:
    """A leader that is free on one disk of three and owned on two counts as owned."""
    lease: Lease = desk.run(acquire_exclusive(claim_of(1)))
    freed = lease.leader._replace(timestamp=0).sealed()
    desk.disks["/b"][:512] = pack_leader(freed, 512)
    assert not desk.run(read_leader(claim_of(2))).is_free
    desk.fail = broken("/c")
    assert not desk.run(read_leader(claim_of(2))).is_free


@pytest.mark.parametrize("shared", [False, True])
def test_a_commit_that_landed_after_its_release_blocks_nobody(desk: Desk, shared: bool) -> None:
    """The late disk says "owned", one says "free", the third fails: the owner's RELEASED decides.

    Simulator, seed 9003538.
    """
    if shared:
        lease: Lease = desk.run(acquire_shared(claim_of(1)))
        late = lease.leader._replace(flags=lease.leader.flags | SHORT_HOLD).sealed()
    else:
        lease = desk.run(acquire_exclusive(claim_of(1)))
        late = lease.leader
    assert desk.run(release(lease)) is None
    desk.disks["/a"][:512] = pack_leader(late, 512)
    desk.fail = broken("/b")
    desk.standing = Standing(2, 1, 10**15)
    assert not desk.run(read_leader(claim_of(2))).is_free
    assert desk.run(read_owners(claim_of(2))).exclusive is None
    assert desk.run(acquire_exclusive(claim_of(2))).lver == lease.lver + 1


def test_a_release_that_has_not_happened_frees_nothing(desk: Desk) -> None:
    """RELEASED does not count when most disks say "owned", nor "free" on one without RELEASED."""
    lease: Lease = desk.run(acquire_exclusive(claim_of(1)))
    freed = lease.leader._replace(timestamp=0).sealed()
    desk.disks["/b"][:512] = pack_leader(freed, 512)
    desk.standing = Standing(2, 1, 10**15)
    desk.fail = broken("/c")
    with pytest.raises(LeaseHeld):
        desk.run(acquire_exclusive(claim_of(2)))
    own = pack_host_sector(lease.own._replace(released=True), 512)
    start = SPACE.area.host_sector(1)
    for path in PATHS:
        desk.disks[path][start : start + 512] = own
    desk.fail = broken()
    with pytest.raises(LeaseHeld):
        desk.run(acquire_exclusive(claim_of(2)))


def test_two_disks_need_both(desk: Desk) -> None:
    """Of two disks both must answer: one is no majority."""
    desk.fail = broken("/b")
    with pytest.raises(DiskError):
        desk.run(acquire_exclusive(claim_of(1, 2)))
    desk.fail = broken()
    assert desk.run(acquire_exclusive(claim_of(1, 2))).lver == 1


def test_shared_on_several_disks(desk: Desk) -> None:
    """A mode block on a majority keeps exclusive users out, also when one disk fails."""
    desk.run(acquire_shared(claim_of(1)))
    desk.fail = broken("/a")
    owners = desk.run(read_owners(claim_of(2)))
    assert owners.shared == ((1, 1),)
    assert owners.exclusive is None


def test_a_damaged_sector_takes_its_disk_out(desk: Desk) -> None:
    """A disk with a bad dblock is not read at all; with one disk that is an error (M6)."""
    start = SPACE.area.host_sector(2)
    for path in PATHS:
        desk.disks[path][start : start + 8] = b"garbage!"
        if path == "/b":
            break
    with pytest.raises(BadRecord) as bad:
        desk.run(read_ballot(claim_of(1), 10))
    assert bad.value.code == -214
    desk.disks["/a"][start : start + 8] = bytes(8)
    assert desk.run(read_ballot(claim_of(1), 10)).hosts == ()


def test_a_write_that_hangs_on_one_disk_is_not_waited_for(desk: Desk) -> None:
    """Two acknowledged writes of three are enough; the third lands when it likes."""

    def hang(effect: Any) -> PaxosleaseError | None:
        if isinstance(effect, Write) and effect.path == "/c":
            return DiskTimeout(effect.path, effect.offset, "write", effect.timeout_us, 99)
        return None

    desk.fail = hang
    assert desk.run(acquire_exclusive(claim_of(1))).lver == 1
    assert not [effect for effect in desk.log if isinstance(effect, Landed)]


def test_a_majority_that_hangs_is_waited_for(desk: Desk) -> None:
    """When only hanging writes can make a majority, one of them is waited for (M7)."""

    def hang(effect: Any) -> PaxosleaseError | None:
        if isinstance(effect, Write) and effect.path != "/a":
            return DiskTimeout(effect.path, effect.offset, "write", effect.timeout_us, 99)
        return None

    desk.fail = hang
    assert desk.run(acquire_exclusive(claim_of(1))).lver == 1
    waits = [effect for effect in desk.log if isinstance(effect, Landed)]
    writes = [e for e in desk.log if isinstance(e, Gather) and isinstance(e.effects[0], Write)]
    assert len(waits) == len(writes) == 3


def test_the_newest_sector_of_a_host_counts() -> None:
    """Of a host's sectors on several disks the one of the newest version and ballot is taken."""
    old = HostSector(mbal=1, lver=1)
    new = HostSector(mbal=2001, lver=1)
    newer = HostSector(mbal=1, lver=2, released=True)
    leader = delta_at_format(b"ls", SIZES_512, 10)
    ballot = Ballot(leader, ((1, new), (1, newer), (1, old), (2, old)))
    assert ballot.sector_of(1) == newer
    assert ballot.sector_of(2) == old
    assert ballot.sector_of(3) == NEVER_USED


def test_a_value_block_is_on_the_first_disk_only(desk: Desk) -> None:
    """It has no version: of copies on several disks nobody could tell which a write had missed."""
    lease = desk.run(acquire_exclusive(claim_of(1)))
    desk.run(write_lvb(lease, b"old"))
    desk.fail = broken("/a")
    with pytest.raises(DiskError):
        desk.run(write_lvb(lease, b"new"))
    with pytest.raises(DiskError):
        desk.run(read_lvb(claim_of(2)))
    desk.fail = broken("/b", "/c")
    desk.run(write_lvb(lease, b"new"))
    assert desk.run(read_lvb(claim_of(2))).rstrip(b"\0") == b"new"
