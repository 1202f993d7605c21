"""What the simulation found in the protocols, each as one directed case."""

from __future__ import annotations

from typing import Any

import pytest

from paxoslease.disk.layout import SIZES_512, Area
from paxoslease.disk.records import (
    HostSector,
    delta_at_format,
    pack_leader,
    paxos_at_format,
    unpack_leader,
)
from paxoslease.errors import BadRecord, DiskError, DiskTimeout, LockspaceFailed
from paxoslease.protocol.delta import Held, Lockspace, acquire, release
from paxoslease.protocol.disks import Ballot, Claim, Resource, read_at, read_leader
from paxoslease.protocol.effects import Landed, Read, Sleep, Standing, Write
from paxoslease.protocol.leases import (
    acquire_exclusive,
    acquire_shared,
    convert_to_shared,
    release as release_lease,
)
from paxoslease.protocol.membership import Failed, Member, guard, live
from paxoslease.timing import SECOND_US, Timing
from tests.unit.drive import Desk, drive

SPACE = Lockspace(b"ls", Area("/d", 0, SIZES_512))
MINE = SPACE.area.delta(1)
MIB = 1 << 20


def desk_with(*paths: str, io_timeout: int = 1) -> tuple[Desk, Claim]:
    """Return a host with a formatted lockspace and a lease that lies on each of the disks."""
    desk = Desk()
    desk.disk("/d", 2 * MIB)[MINE : MINE + 512] = pack_leader(
        delta_at_format(b"ls", SIZES_512, io_timeout), 512
    )
    areas = tuple(Area(path, MIB, SIZES_512) for path in paths)
    leader = pack_leader(paxos_at_format(b"ls", b"r", SIZES_512, 4), 512)
    for path in paths:
        desk.disk(path, 2 * MIB)[MIB : MIB + 512] = leader
    return desk, Claim(SPACE, Resource(b"r", areas), Timing(1, 10), 1)


def test_a_short_io_timeout_can_join_where_a_long_one_was_formatted() -> None:
    """The wait for contenders is longer than the own membership would last; a second is short."""
    desk, _ = desk_with("/d", io_timeout=10)
    held: Held = desk.run(acquire(SPACE, 1, b"me", Timing(1, 10)))
    waits = [effect.duration_us for effect in desk.log if isinstance(effect, Sleep)]
    assert waits == [20 * SECOND_US, 2 * SECOND_US]
    assert desk.now_us - held.renewed_us < Timing(1, 10).fail_us // 2
    assert held.generation == 2


def test_a_joining_write_counts_only_within_the_wait_that_all_contenders_know() -> None:
    """A contender with a short io_timeout waits no longer than the record on disk demands."""
    record = delta_at_format(b"ls", SIZES_512, 1)
    outcome = drive(
        acquire(SPACE, 1, b"me", Timing(10, 60)), [0, pack_leader(record, 512), 3 * SECOND_US]
    )
    write = outcome.of(Write)[0]
    assert write.not_after_us == 2 * SECOND_US


def test_a_leave_ends_when_its_free_record_has_landed() -> None:
    """A free record in flight could void the leases of a successor, so it is waited for."""
    record = delta_at_format(b"ls", SIZES_512, 1)
    record = record._replace(owner_id=1, owner_generation=1, timestamp=5).sealed()
    held = Held(record, 5 * SECOND_US, True)
    late = DiskTimeout("/d", MINE, "write", SECOND_US, 3)
    outcome = drive(release(SPACE, held, Timing(1, 10)), [pack_leader(record, 512), late, None])
    assert outcome.is_done
    assert outcome.effects[-1] == Landed(3)


def test_a_failure_is_told_once() -> None:
    """The clock and the life both see that a membership is over; one of them tells it."""
    desk, _ = desk_with("/d")
    member = Member(SPACE, 1, b"me", Timing(1, 10))
    life = live(member)
    answer: Any = None
    while not desk.notified:
        answer = desk.perform(life.send(answer))
    desk.now_us += Timing(1, 10).fail_us
    desk.run(guard(member))
    desk.run(life)
    failures = [event for event in desk.notified if isinstance(event, Failed)]
    assert len(failures) == 1


def test_a_conversion_that_fails_leaves_the_lease_exclusive() -> None:
    """The user of a lease goes on during a conversion, so nothing may be given up meanwhile."""
    desk, claim = desk_with("/d")
    lease = desk.run(acquire_exclusive(claim))
    own = claim.resource.disks[0].host_sector(1)

    def fail(effect: Any) -> Any:
        if isinstance(effect, Write) and effect.offset == own:
            return DiskError("/d", own, "write", 5, "test")
        return None

    desk.fail = fail
    with pytest.raises(DiskError):
        desk.run(convert_to_shared(lease))
    leader = unpack_leader(desk.disks["/d"][MIB : MIB + 200])
    assert (leader.owner_id, leader.is_free) == (1, False)
    desk.fail = lambda effect: None
    assert desk.run(release_lease(lease)) is None
    assert unpack_leader(desk.disks["/d"][MIB : MIB + 200]).is_free


def test_giving_up_a_shared_lease_ends_with_the_membership() -> None:
    """A release that does not get through goes on, but not beyond the end of the membership."""
    desk, claim = desk_with("/d")
    lease = desk.run(acquire_shared(claim))
    tries = 0

    def fail(effect: Any) -> Any:
        nonlocal tries
        if not isinstance(effect, Read):
            return None
        tries += 1
        if tries == 3:
            desk.standing = LockspaceFailed(b"ls", "test")
        return DiskTimeout("/d", 0, "read", SECOND_US)

    desk.fail = fail
    with pytest.raises(LockspaceFailed):
        desk.run(release_lease(lease))
    assert tries == 3


@pytest.mark.parametrize("newer_on", [0, 1])
def test_a_lease_on_two_disks_that_differ_can_be_had(newer_on: int) -> None:
    """A crash between the writes to two disks does not block the lease."""
    desk, claim = desk_with("/a", "/b")
    path = ("/a", "/b")[newer_on]
    leader = unpack_leader(desk.disks[path][MIB : MIB + 200])
    leader = leader._replace(lver=5, owner_id=1, owner_generation=1, write_id=1).sealed()
    desk.disks[path][MIB : MIB + 512] = pack_leader(leader, 512)
    assert desk.run(read_leader(claim)).lver == 5
    desk.standing = Standing(1, 2, 10**15)
    lease = desk.run(acquire_exclusive(claim))
    assert lease.lver == 6
    assert {unpack_leader(desk.disks[p][MIB : MIB + 200]).lver for p in ("/a", "/b")} == {6}


def test_an_lvb_is_read_as_a_majority_has_it() -> None:
    """A disk that missed the last write is outvoted, and nothing is guessed without a majority."""
    desk, claim = desk_with("/a", "/b", "/c")
    offsets = tuple(area.lvb or 0 for area in claim.resource.disks)
    for path in ("/b", "/c"):
        desk.disks[path] = bytearray(desk.disks[path].ljust(3 * MIB, b"\0"))
        desk.disks[path][offsets[0] : offsets[0] + 3] = b"new"
    assert desk.run(read_at(claim, offsets))[:3] == b"new"
    desk.fail = lambda effect: (
        DiskError("/b", 0, "read", 5, "test") if getattr(effect, "path", "") == "/b" else None
    )
    with pytest.raises(BadRecord):
        desk.run(read_at(claim, offsets))


def test_a_host_counts_by_its_newest_sector_among_disks() -> None:
    """A disk that missed writes neither takes back a value nor keeps a mode block alive."""
    phase1 = HostSector(mbal=2001, lver=3)
    phase2 = phase1._replace(bal=2001, inp=1, inp2=1, inp3=9)
    sharing = phase2._replace(shared_generation=1)
    shared = sharing._replace(released=True)
    over = shared._replace(shared_generation=None)
    written = (phase1, phase2, sharing, shared, over)
    free = paxos_at_format(b"ls", b"r", SIZES_512, 4)
    for i, older in enumerate(written):
        for newer in written[i:]:
            for pair in ((older, newer), (newer, older)):
                ballot = Ballot(free, tuple((1, sector) for sector in pair))
                assert ballot.sector_of(1) == newer
                assert ballot.newest() == ((1, newer),)
