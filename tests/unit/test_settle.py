"""Settling: what gives a lease up is written until it is on the disk, and never over others."""

from __future__ import annotations

from typing import Any

import pytest

from paxoslease.disk.areas import resource_area
from paxoslease.disk.layout import SIZES_512, Area
from paxoslease.disk.records import (
    SHORT_HOLD,
    HostSector,
    Leader,
    Where as At,
    pack_host_sector,
    pack_leader,
    parse_host_sector,
    parse_paxos,
    paxos_at_format,
)
from paxoslease.errors import (
    DecisionStale,
    DiskError,
    DiskTimeout,
    LockspaceFailed,
    ReleaseRefused,
)
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import (
    Landed,
    Membership,
    Notify,
    Now,
    Read,
    Sleep,
    Standing,
    Write,
)
from paxoslease.protocol.leases import Lease, release
from paxoslease.protocol.settle import (
    Unsettled,
    free_leader,
    settle_release,
    shelf_life,
    write_released,
)
from paxoslease.timing import SECOND_US, Timing
from tests.unit.drive import Desk, Outcome, drive

S = SECOND_US
MIB = 1 << 20
T = Timing(io_timeout=2)
NOW = 5000 * S
SPACE = Lockspace(b"ls", Area("/d", 0, SIZES_512))
AREA = Area("/d", MIB, SIZES_512)
CLAIM = Claim(SPACE, Resource(b"res", (AREA,)), T, 7)
ME = Standing(7, 3, NOW + 100 * S)

OURS = (
    paxos_at_format(b"ls", b"res", SIZES_512)
    ._replace(lver=4, owner_id=7, owner_generation=3, timestamp=50, write_id=7, write_generation=3)
    .sealed()
)
BLOCK = HostSector(2007, 2007, 7, 3, 50, 4)
EIO = DiskError("/d", MIB, "write", 5, "EIO")
STALE = DecisionStale(b"ls", 9)


def sector(record: Leader, **changes: Any) -> bytes:
    return pack_leader(record._replace(**changes).sealed(), 512)


def freed_of(outcome: Outcome) -> Leader:
    (write,) = outcome.of(Write)
    assert write.offset == MIB
    return parse_paxos(write.data, At("/d", MIB), b"ls", None)


# -- how long a decision counts ----------------------------------------------------------------


def test_shelf_life() -> None:
    """One I/O time-out from the moment before the reading, and never beyond our own end (M2)."""
    shelf = drive(shelf_life(CLAIM), [ME, NOW]).result
    assert shelf.not_after_us == NOW + T.io_us
    soon = ME._replace(expires_us=NOW + 5)
    assert drive(shelf_life(CLAIM), [soon, NOW]).result.not_after_us == NOW + 5
    over = LockspaceFailed(b"ls", "over")
    assert drive(shelf_life(CLAIM), [over]).error is over


# -- RELEASED ----------------------------------------------------------------------------------


def test_released_keeps_the_block() -> None:
    """Only the flag changes: ballot, value, version and mode block stay (M8, M3)."""
    own = BLOCK._replace(shared_generation=3)
    outcome = drive(write_released(CLAIM, own), [ME, NOW, None])
    expected = own._replace(released=True)
    assert outcome.result == expected
    data = pack_host_sector(expected, 512)
    write = Write("/d", AREA.host_sector(7), data, T.io_us, NOW + T.io_us)
    assert outcome.effects == [Membership(), Now(), write]


def test_released_is_written_until_it_is_there() -> None:
    """After an error, and after a pause of the host, it is written again with a new deadline."""
    later = NOW + 10 * S
    outcome = drive(
        write_released(CLAIM, BLOCK),
        [ME, NOW, EIO, None, None, ME, later, STALE, None, ME, later + S, None],
    )
    assert outcome.result == BLOCK._replace(released=True)
    assert [w.not_after_us - T.io_us for w in outcome.of(Write)] == [NOW, later, later + S]
    assert outcome.of(Notify) == [Notify(Unsettled(EIO))]
    assert [s.duration_us for s in outcome.of(Sleep)] == [T.io_us // 10, T.io_us // 5]


def test_pauses_grow_up_to_two_io_timeouts() -> None:
    """The disk is not hammered while it fails, and tried again soon enough when it is back."""
    desk = Desk(now_us=NOW)
    desk.standing = ME._replace(expires_us=NOW + 60 * S)
    desk.disk("/d", 2 * MIB)
    failures = [EIO] * 8
    desk.fail = lambda effect: failures.pop() if failures and isinstance(effect, Write) else None
    desk.run(write_released(CLAIM, BLOCK))
    pauses = [e.duration_us / T.io_us for e in desk.log if isinstance(e, Sleep)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    assert desk.notified == [Unsettled(EIO)]


def test_a_timed_out_write_is_waited_for() -> None:
    """It is only a slow one: nothing else is done to the area until it has landed (M7)."""
    slow = DiskTimeout("/d", AREA.host_sector(7), "write", T.io_us, ticket=5)
    outcome = drive(write_released(CLAIM, BLOCK), [ME, NOW, slow, None])
    assert outcome.result.released
    assert outcome.effects[-1] == Landed(5)
    assert len(outcome.of(Write)) == 1
    outcome = drive(write_released(CLAIM, BLOCK), [ME, NOW, slow, EIO, None, None, ME, NOW, None])
    assert outcome.result.released
    assert len(outcome.of(Write)) == 2


def test_nothing_is_settled_after_the_membership() -> None:
    """When the lockspace has failed our leases are void with it: not one more write."""
    over = LockspaceFailed(b"ls", "over")
    for protocol in (write_released(CLAIM, BLOCK), free_leader(CLAIM, OURS)):
        outcome = drive(protocol, [ME, NOW, EIO, None, None, over])
        assert outcome.error is over


# -- the leader --------------------------------------------------------------------------------


def test_freeing_our_leader() -> None:
    """The version stays, the lease is free, we are the writer, SHORT_HOLD is gone."""
    short = OURS._replace(flags=OURS.flags | SHORT_HOLD).sealed()
    outcome = drive(free_leader(CLAIM, short), [ME, NOW, sector(short), None])
    assert outcome.result is None
    freed = freed_of(outcome)
    assert freed == OURS._replace(timestamp=0, write_timestamp=5000).sealed()
    assert outcome.effects[2] == Read("/d", MIB, 512, T.io_us)
    assert outcome.of(Write)[0].not_after_us == NOW + T.io_us


def test_freeing_renames_if_asked() -> None:
    """Release and rename is the same single write."""
    name = b"new".ljust(48, b"\0")
    outcome = drive(free_leader(CLAIM, OURS, name), [ME, NOW, sector(OURS), None])
    assert freed_of(outcome).resource_name == name


@pytest.mark.parametrize(
    "found",
    [
        pytest.param({"write_id": 2, "write_generation": 9}, id="committed by another"),
        pytest.param({"lver": 3, "owner_id": 2, "owner_generation": 1}, id="rolled back"),
        pytest.param({"lver": 3, "timestamp": 0}, id="rolled back to a free one"),
    ],
)
def test_whoever_wrote_our_version(found: dict[str, Any]) -> None:
    """A leader of our version by another writer, or an older one, is written as freed (M23)."""
    own = [pack_host_sector(BLOCK, 512)] if found.get("lver") else []
    outcome = drive(free_leader(CLAIM, OURS), [ME, NOW, sector(OURS, **found), *own, None])
    assert outcome.result is None
    assert freed_of(outcome) == OURS._replace(timestamp=0, write_timestamp=5000).sealed()


@pytest.mark.parametrize(
    ("found", "code"),
    [
        pytest.param({"lver": 5, "owner_id": 2}, -250, id="next version"),
        pytest.param({"owner_id": 2}, -251, id="another owner"),
        pytest.param({"owner_generation": 4}, -251, id="another life of ours"),
    ],
)
def test_a_leader_of_others_is_left_alone(found: dict[str, Any], code: int) -> None:
    """It is reported with sanlock's number and not written."""
    outcome = drive(free_leader(CLAIM, OURS), [ME, NOW, sector(OURS, **found)])
    assert isinstance(outcome.result, ReleaseRefused)
    assert outcome.result.code == code
    assert not outcome.of(Write)


def test_a_leader_that_is_free_is_not_written_again() -> None:
    """Somebody may be about to write the next version over it."""
    freed = sector(OURS, timestamp=0, write_timestamp=5000)
    outcome = drive(free_leader(CLAIM, OURS), [ME, NOW, freed])
    assert outcome.is_done
    assert outcome.result is None
    assert not outcome.of(Write)


def test_freeing_begins_with_reading_after_every_failure() -> None:
    """A failed write may have landed, and the next version may be there: look before writing."""
    after = sector(OURS, lver=5, owner_id=2)
    outcome = drive(
        free_leader(CLAIM, OURS),
        [ME, NOW, sector(OURS), EIO, None, None, ME, NOW + S, after],
    )
    assert outcome.is_done
    assert outcome.result is None
    assert len(outcome.of(Write)) == 1
    outcome = drive(
        free_leader(CLAIM, OURS),
        [ME, NOW, EIO, None, None, ME, NOW, sector(OURS), STALE, None, ME, NOW, sector(OURS), None],
    )
    assert outcome.result is None


def test_the_leader_is_freed_before_released_shows() -> None:
    """As long as neither is visible nobody takes the next version, so nothing is rolled back (M23);
    after a refusal RELEASED is written all the same."""
    for found, leader_writes in ((OURS, 1), (OURS._replace(owner_id=2).sealed(), 0)):
        desk = Desk(now_us=NOW)
        desk.standing = ME
        disk = desk.disk("/d", 2 * MIB)
        disk[MIB : MIB + 512] = pack_leader(found, 512)
        own = desk.run(settle_release(CLAIM, OURS, BLOCK))
        assert own == BLOCK._replace(released=True)
        order = [e.offset for e in desk.log if isinstance(e, Write)]
        assert order == [MIB] * leader_writes + [AREA.host_sector(7)]
        start = AREA.host_sector(7)
        assert parse_host_sector(bytes(disk[start : start + 144]), At("/d", start)) == own


@pytest.mark.parametrize("then", ["cleared", "made anew", "made anew and held by another"])
def test_a_resource_that_was_deleted_under_us(then: str) -> None:
    """Releasing it ends, reports it and writes nothing: the area is not ours any more. A leader of
    a new life is not taken for a rolled back one, or its holder would lose the lease unawares."""
    desk = Desk(now_us=NOW)
    desk.standing = ME
    disk = desk.disk("/d", 2 * MIB)
    disk[MIB : MIB + 512] = pack_leader(OURS, 512)
    start = AREA.host_sector(7)
    disk[start : start + 512] = pack_host_sector(BLOCK, 512)
    lease = Lease(CLAIM, OURS, BLOCK, False)
    disk[MIB:] = resource_area(
        b"ls", b"res", SIZES_512, cleared_at_s=1 if then == "cleared" else None
    )
    if then.endswith("another"):
        theirs = OURS._replace(lver=1, owner_id=2, write_id=2).sealed()
        disk[MIB : MIB + 512] = pack_leader(theirs, 512)
    before = bytes(disk)
    for protocol in (release(lease), settle_release(CLAIM, OURS, BLOCK)):
        result = desk.run(protocol)
        assert bytes(disk) == before
        assert isinstance(result, ReleaseRefused) or result.released
