"""Delta leases: each step of acquire, renew and release, with scripted answers."""

from __future__ import annotations

from typing import Any

import pytest

from paxoslease.disk.layout import PROBE_BYTES, SIZES_512, Area, Sizes
from paxoslease.disk.records import (
    Leader,
    bitmap_of,
    bitmap_of_hosts,
    cut_name,
    delta_at_format,
    pack_leader,
    unpack_leader,
)
from paxoslease.errors import (
    BadRecord,
    Cancelled,
    DecisionStale,
    DiskError,
    DiskTimeout,
    HostIdBusy,
    HostIdInvalid,
    LockspaceFailed,
    RenewalRefused,
    WatchdogError,
)
from paxoslease.protocol.delta import (
    NOTHING_ADVERTISED,
    Advertised,
    Held,
    Lockspace,
    acquire,
    next_record,
    open_lockspace,
    read_delta,
    release,
    renew,
)
from paxoslease.protocol.effects import (
    Landed,
    LockspaceImage,
    Now,
    PetWatchdog,
    Read,
    ReadLockspace,
    Sleep,
    Write,
)
from paxoslease.timing import SECOND_US, Timing
from tests.unit.drive import Outcome, drive

S = SECOND_US
T = Timing(io_timeout=2)
SPACE = Lockspace(b"ls", Area("/d", 1 << 20, SIZES_512))
MINE = SPACE.area.delta(7)
FRESH = delta_at_format(b"ls", SIZES_512, 2)
NOW = 1000 * S
SETTLE = 4 * S  # twice the io_timeout
DEAD = (16 + 60) * S


def taken(host_id: int = 7, name: bytes = b"other", **changes: Any) -> Leader:
    base = FRESH._replace(
        owner_id=host_id,
        owner_generation=3,
        resource_name=name.ljust(48, b"\0"),
        timestamp=55,
    )
    return base._replace(**changes).sealed()


def sector(leader: Leader, bitmap: bytes = b"") -> bytes:
    return pack_leader(leader, 512, bitmap)


def written(outcome: Outcome) -> Leader:
    (write,) = outcome.of(Write)
    assert (write.path, write.offset, len(write.data)) == ("/d", MINE, 512)
    return unpack_leader(write.data)


def timeout(ticket: int = 3) -> DiskTimeout:
    return DiskTimeout("/d", MINE, "write", T.io_us, ticket)


def expected_record(found: Leader, now_s: int = 1000) -> Leader:
    return found._replace(
        owner_id=7,
        owner_generation=found.owner_generation + 1,
        resource_name=(b"me\0" + found.resource_name[3:]),
        timestamp=now_s,
        io_timeout=2,
    ).sealed()


def acquiring(answers: list[Any], **options: Any) -> Outcome:
    return drive(acquire(SPACE, 7, b"me", T, **options), answers)


# -- acquire -----------------------------------------------------------------------------------


def test_acquiring_a_free_id() -> None:
    """Read, write, wait twice the io_timeout, read again: the I/O of spec/algorithms.md 12."""
    mine = expected_record(FRESH)
    outcome = acquiring([NOW, sector(FRESH), NOW, None, NOW, None, sector(mine), NOW + SETTLE])
    assert outcome.result == Held(mine, NOW, True)
    assert (outcome.result.host_id, outcome.result.generation) == (7, 1)
    read = Read("/d", MINE, 512, T.io_us)
    write = Write("/d", MINE, sector(mine), T.io_us, NOW + SETTLE)
    sleep = Sleep(SETTLE, cancellable=True)
    assert outcome.effects == [Now(), read, Now(), write, Now(), sleep, read, Now()]


def test_a_freed_record_keeps_counting_generations() -> None:
    """The generation grows and the old name's tail stays, also over a released record."""
    old = taken(timestamp=0, name=b"a-long-name", write_id=9, write_generation=8)
    mine = expected_record(old)
    outcome = acquiring([NOW, sector(old), NOW, None, NOW, None, sector(mine)])
    assert written(outcome) == mine
    assert mine.owner_generation == 4
    assert mine.resource_name.startswith(b"me\0ong-name\0")
    assert (mine.write_id, mine.write_generation) == (9, 8)


def test_a_competitor_shows_after_the_wait() -> None:
    """If the record is not entirely ours after the wait, somebody else has the id."""
    mine = expected_record(FRESH)
    for theirs in (
        mine._replace(resource_name=b"you".ljust(48, b"\0")).sealed(),
        mine._replace(timestamp=1001).sealed(),
        mine._replace(write_timestamp=1).sealed(),
    ):
        outcome = acquiring([NOW, sector(FRESH), NOW, None, NOW, None, sector(theirs)])
        assert isinstance(outcome.error, HostIdBusy)
        assert outcome.error.host_name == cut_name(theirs.resource_name)


def test_the_wait_is_for_the_slower_of_both() -> None:
    """The settling time follows the larger of our io_timeout and the disk's (M9, 15.4)."""
    slow = taken(timestamp=0, io_timeout=30)
    outcome = acquiring([NOW, sector(slow), NOW, None, NOW])
    assert outcome.effects[-1] == Sleep(60 * S, cancellable=True)
    quick = taken(timestamp=0, io_timeout=1)
    outcome = acquiring([NOW, sector(quick), NOW, None, NOW])
    assert outcome.effects[-1] == Sleep(SETTLE, cancellable=True)


def test_a_reading_that_is_too_old_is_not_acted_upon() -> None:
    """Refused by the driver or written too late after the reading: the id counts as busy (M9)."""
    stale = DecisionStale(b"ls", 5)
    assert isinstance(acquiring([NOW, sector(FRESH), NOW, stale]).error, HostIdBusy)
    late = NOW + SETTLE + 1
    outcome = acquiring([NOW, sector(FRESH), NOW, None, late])
    assert isinstance(outcome.error, HostIdBusy)


def test_a_slow_write_is_waited_for() -> None:
    """After a time-out nothing is done until the write has landed; landed in time, it counts."""
    mine = expected_record(FRESH)
    begin = [NOW, sector(FRESH), NOW, timeout()]
    outcome = acquiring([*begin, None, NOW + SETTLE, None, sector(mine), NOW + 2 * SETTLE])
    assert outcome.result.leader == mine
    assert outcome.of(Landed) == [Landed(3)]
    outcome = acquiring([*begin, None, NOW + SETTLE + 1])
    assert isinstance(outcome.error, HostIdBusy)
    failed = DiskError("/d", MINE, "write", 5, "EIO")
    assert acquiring([*begin, failed]).error is failed


@pytest.mark.parametrize("step", [1, 3, 6])
def test_errors_of_the_disk_end_an_acquisition(step: int) -> None:
    """A read or write that fails is reported as it is."""
    answers: list[Any] = [NOW, sector(FRESH), NOW, None, NOW, None]
    error = DiskError("/d", MINE, "read", 5, "EIO")
    assert acquiring([*answers[:step], error]).error is error


def test_a_bad_record_ends_an_acquisition() -> None:
    """A record of another lockspace, or a damaged one, is never written over."""
    other = delta_at_format(b"lt", SIZES_512, 2)
    damaged = bytearray(sector(FRESH))
    damaged[160] ^= 1
    for data, code in ((sector(other), -226), (bytes(damaged), -229), (bytes(512), -223)):
        outcome = acquiring([NOW, data])
        assert isinstance(outcome.error, BadRecord)
        assert outcome.error.code == code
        assert not outcome.of(Write)


@pytest.mark.parametrize("host_id", [0, -1, 251])
def test_host_ids_out_of_range(host_id: int) -> None:
    """An id that the lockspace has no sector for is refused before any I/O."""
    space = Lockspace(b"ls", Area("/d", 0, Sizes(4096, 1 << 20)))
    outcome = drive(acquire(space, host_id, b"me", T), [])
    assert isinstance(outcome.error, HostIdInvalid)
    assert outcome.error.max_hosts == 250
    assert outcome.effects == []


# -- acquire a held id -------------------------------------------------------------------------


def outwaiting(found: Leader, after: list[tuple[int, Leader]]) -> Outcome:
    """Answer until the record was seen at each of these moments, and once more what time it is."""
    answers: list[Any] = [NOW, sector(found), NOW]
    for at_us, leader in after:
        answers += [NOW, None, at_us, sector(leader)]
    return acquiring([*answers, after[-1][0]])


def test_a_held_id_is_taken_after_the_owner_must_be_gone() -> None:
    """Not one microsecond before `dead`, counted from our own reading; then as a free one."""
    held = taken()
    outcome = outwaiting(held, [(NOW + DEAD, held)])
    assert outcome.effects[-1] == Sleep(1, cancellable=True)
    late = NOW + DEAD + 1
    outcome = outwaiting(held, [(NOW + 2 * S, held), (late, held)])
    assert written(outcome) == expected_record(held, late // S)
    assert outcome.effects[-1].not_after_us == late + SETTLE


def test_the_larger_io_timeout_decides_how_long() -> None:
    """A slow owner is waited for by its own time, a quick one by ours (M9)."""
    slow = taken(io_timeout=10)
    needed = NOW + (80 + 60) * S
    assert not outwaiting(slow, [(needed, slow)]).of(Write)
    assert outwaiting(slow, [(needed + 1, slow)]).of(Write)
    quick = taken(io_timeout=1)
    assert not outwaiting(quick, [(NOW + DEAD, quick)]).of(Write)
    assert outwaiting(quick, [(NOW + DEAD + 1, quick)]).of(Write)


def test_a_record_that_moves_is_alive() -> None:
    """Any change of a held record ends the attempt at once (D2)."""
    held = taken()
    for moved in (taken(timestamp=56), taken(name=b"third"), taken(write_id=1)):
        outcome = acquiring([NOW, sector(held), NOW, NOW, None, NOW + S, sector(moved)])
        assert isinstance(outcome.error, HostIdBusy)
        assert outcome.error.generation == 3


def test_a_record_that_is_freed_is_taken_at_once() -> None:
    """An orderly release ends the wait."""
    freed = taken(timestamp=0)
    outcome = acquiring([NOW, sector(taken()), NOW, NOW, None, NOW + S, sector(freed), NOW + S])
    assert written(outcome) == expected_record(freed, 1001)


def test_our_own_name_proves_nothing_by_itself() -> None:
    """A record that bears our name is outwaited, unless its life is known to be over (M1, 15.2)."""
    own = taken(name=b"me")
    outcome = acquiring([NOW, sector(own), NOW])
    assert isinstance(outcome.effects[-1], Now)
    assert not outcome.of(Write)
    outcome = acquiring([NOW, sector(own), NOW], earlier_life_over=True)
    assert isinstance(outcome.effects[-1], Write)
    outcome = acquiring([NOW, sector(taken()), NOW], earlier_life_over=True)
    assert not outcome.of(Write)


def test_a_join_can_be_cancelled_while_it_waits() -> None:
    """The wait for a dead owner ends with Cancelled; nothing is written."""
    outcome = acquiring([NOW, sector(taken()), NOW, NOW, Cancelled()])
    assert isinstance(outcome.error, Cancelled)
    assert not outcome.of(Write)


def cancelled_late(*rest: Any) -> Outcome:
    """Cancel a join one second into the settle wait of a record that was written."""
    begun = [NOW, sector(FRESH), NOW, None, NOW, Cancelled(), NOW + S]
    return acquiring([*begun, *rest])


def test_a_join_cancelled_after_its_write_frees_its_record() -> None:
    """It settles to the end, looks whether the record is its own, and frees it; no watchdog."""
    mine = expected_record(FRESH)
    outcome = cancelled_late(None, sector(mine), sector(mine), None)
    assert isinstance(outcome.error, Cancelled)
    assert outcome.of(Sleep) == [Sleep(SETTLE, cancellable=True), Sleep(SETTLE - S)]
    freed = mine._replace(timestamp=0).sealed()
    assert outcome.of(Write)[1] == Write("/d", MINE, sector(freed), T.io_us, NOW + T.fail_us)
    assert not outcome.of(PetWatchdog)


def test_a_join_cancelled_after_its_write_frees_nobody_elses_record() -> None:
    """What a competitor wrote meanwhile, before or after our look, stays."""
    mine = expected_record(FRESH)
    outcome = cancelled_late(None, sector(taken()))
    assert isinstance(outcome.error, HostIdBusy)
    assert len(outcome.of(Write)) == 1
    outcome = cancelled_late(None, sector(mine), sector(taken()))
    assert isinstance(outcome.error, RenewalRefused)
    assert len(outcome.of(Write)) == 1


@pytest.mark.parametrize("answer", [None, DiskError("/d", MINE, "write", 5, "EIO")])
def test_a_free_that_hangs_after_a_cancelled_join_is_watched(answer: Any) -> None:
    """A late "free" could void a successor's leases: the watchdog is armed until it is back."""
    mine = expected_record(FRESH)
    hangs = timeout()
    outcome = cancelled_late(None, sector(mine), sector(mine), hangs, None, answer, None)
    assert isinstance(outcome.error, Cancelled if answer is None else DiskError)
    armed, disarmed = outcome.of(PetWatchdog)
    assert armed == PetWatchdog(b"ls", NOW, NOW + T.fail_us)
    assert disarmed == PetWatchdog(b"ls", 0, 0)
    effects = outcome.effects
    landed = Landed(hangs.ticket)
    assert effects.index(armed) < effects.index(landed) < effects.index(disarmed)


# -- renew -------------------------------------------------------------------------------------

RECORD = taken(name=b"me")
HELD = Held(RECORD, 980 * S, True)


def renewing(
    found: Leader | None, *rest: Any, held: Held = HELD, advertised: Advertised = NOTHING_ADVERTISED
) -> Outcome:
    answers: list[Any] = []
    if found is not None:
        answers.append(LockspaceImage(sector(found), None))
    return drive(renew(SPACE, held, T, advertised), [*answers, *rest])


def test_renewing() -> None:
    """Read the area, write the next timestamp, pet the watchdog until `fail` after it."""
    outcome = renewing(RECORD, NOW, None, None)
    new = RECORD._replace(timestamp=1000).sealed()
    held, image = outcome.result
    assert held == Held(new, NOW, True)
    assert image.own == sector(RECORD)
    assert outcome.effects == [
        ReadLockspace("/d", 1 << 20, 512, 1 << 20, b"ls", 7, 2 * T.io_us),
        Now(),
        Write("/d", MINE, sector(new), T.dead_us, 980 * S + T.fail_us),
        PetWatchdog(b"ls", NOW, NOW + T.fail_us),
    ]


def test_a_renewal_is_not_written_after_its_time() -> None:
    """It carries the earlier of: one io_timeout from now, `fail` after the last (M2)."""
    fresh = HELD._replace(renewed_us=NOW - S)
    outcome = renewing(RECORD, NOW, held=fresh)
    assert outcome.effects[-1].not_after_us == NOW + T.io_us
    old = HELD._replace(renewed_us=NOW - T.fail_us + 5)
    outcome = renewing(RECORD, NOW, held=old)
    assert outcome.effects[-1].not_after_us == NOW + 5


def test_a_renewal_carries_what_is_advertised() -> None:
    """Bitmap and event are in the record, and gone from the next one without them."""
    bitmap = bitmap_of_hosts((1, 300))
    outcome = renewing(RECORD, NOW, advertised=Advertised(bitmap, 4, 5, 6))
    write = outcome.effects[-1]
    record = unpack_leader(write.data)
    assert (record.write_id, record.write_generation, record.write_timestamp) == (4, 5, 6)
    assert bitmap_of(write.data) == bitmap
    outcome = renewing(record, NOW, held=Held(record, 980 * S, True))
    record = unpack_leader(outcome.effects[-1].data)
    assert (record.write_id, record.write_generation, record.write_timestamp) == (0, 0, 0)
    assert not any(bitmap_of(outcome.effects[-1].data))


@pytest.mark.parametrize(
    ("changes", "other_owner"),
    [
        ({"owner_id": 8}, True),
        ({"owner_generation": 4}, True),
        ({"resource_name": b"me\0\0x".ljust(48, b"\0")}, True),
        ({"timestamp": 54}, False),
        ({"io_timeout": 3}, False),
        ({"write_timestamp": 1}, False),
    ],
)
def test_a_record_that_is_not_ours(changes: dict[str, Any], other_owner: bool) -> None:
    """Another owner (-260) or other bytes (-261) end the membership; nothing is written."""
    found = RECORD._replace(**changes).sealed()
    outcome = renewing(found)
    assert isinstance(outcome.error, RenewalRefused)
    assert outcome.error.other_owner is other_owner
    assert not outcome.of(Write)


def test_after_an_uncertain_write_only_the_owner_counts() -> None:
    """Either of two records may be on the disk after a failed write; another owner's may not."""
    uncertain = HELD._replace(certain=False)
    older = RECORD._replace(timestamp=54).sealed()
    assert renewing(older, NOW, None, None, held=uncertain).result[0].certain
    stolen = RECORD._replace(owner_generation=4).sealed()
    assert isinstance(renewing(stolen, held=uncertain).error, RenewalRefused)


def test_our_sector_is_damaged() -> None:
    """A bad record in our own sector is reported; it is not written over."""
    data = bytearray(sector(RECORD))
    data[0] ^= 1
    outcome = drive(renew(SPACE, HELD, T), [LockspaceImage(bytes(data), None)])
    assert isinstance(outcome.error, BadRecord)
    assert outcome.error.offset == MINE


def test_every_renewal_changes_the_timestamp() -> None:
    """Twice in a second, or after a clock that stood still, the number still grows, and the lease
    is not counted longer for it (M17)."""
    ahead = RECORD._replace(timestamp=1000).sealed()
    outcome = renewing(ahead, NOW + 5, None, None, held=Held(ahead, NOW, True))
    held, _ = outcome.result
    assert held.leader.timestamp == 1001
    assert held.renewed_us == NOW + 5
    assert outcome.of(PetWatchdog) == [PetWatchdog(b"ls", NOW + 5, NOW + 5 + T.fail_us)]
    assert next_record(HELD, 0, T, NOTHING_ADVERTISED).timestamp == 56


@pytest.mark.parametrize(
    "error",
    [DecisionStale(b"ls", 1), timeout(), DiskError("/d", MINE, "write", 5, "EIO")],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_renewal_does_not_pet_the_watchdog(error: Exception) -> None:
    """Only an acknowledged write counts."""
    outcome = renewing(RECORD, NOW, error)
    assert outcome.error is error
    assert not outcome.of(PetWatchdog)
    read_failed = drive(renew(SPACE, HELD, T), [error])
    assert read_failed.error is error


def test_a_watchdog_that_fails_is_reported() -> None:
    """A host that its watchdog does not guard must know it."""
    error = WatchdogError(b"ls", "gone")
    assert renewing(RECORD, NOW, None, error).error is error


# -- release -----------------------------------------------------------------------------------


def test_releasing() -> None:
    """The record is read, then written with timestamp 0; name and generation stay."""
    outcome = drive(release(SPACE, HELD, T), [sector(RECORD), None])
    freed = RECORD._replace(timestamp=0).sealed()
    assert outcome.is_done
    assert outcome.error is None
    assert outcome.effects == [
        Read("/d", MINE, 512, T.io_us),
        Write("/d", MINE, sector(freed), T.io_us, HELD.renewed_us + T.fail_us),
    ]


def test_a_record_that_is_not_ours_is_not_freed() -> None:
    """A blind write could free a successor's lease (M13, D7): the record is compared entirely."""
    for changes in ({"owner_generation": 4}, {"timestamp": 56}, {"owner_id": 3}):
        found = RECORD._replace(**changes).sealed()
        outcome = drive(release(SPACE, HELD, T), [sector(found)])
        assert isinstance(outcome.error, RenewalRefused)
        assert not outcome.of(Write)


def test_an_uncertain_record_is_not_freed() -> None:
    """While an own write may still land, the id stays taken."""
    outcome = drive(release(SPACE, HELD._replace(certain=False), T), [])
    assert isinstance(outcome.error, LockspaceFailed)
    assert outcome.effects == []


def test_reading_a_delta_lease() -> None:
    """The sector of the host is read and validated."""
    outcome = drive(read_delta(SPACE, 7, T), [sector(RECORD)])
    assert outcome.result == RECORD
    outcome = drive(read_delta(SPACE, 7, T), [bytes(512)])
    assert isinstance(outcome.error, BadRecord)


def test_damage_to_the_first_record_keeps_nobody_out() -> None:
    """Sizes are taken from a record whose checksum is wrong; its name does not count then."""
    record = delta_at_format(b"ls", SIZES_512, 10)
    good = pack_leader(record, 512).ljust(PROBE_BYTES, b"\0")
    damaged = good[:60] + b"?" + good[61:]
    assert drive(open_lockspace("/ls", 0, b"ls", Timing()), [good]).result.area.sizes == SIZES_512
    assert drive(open_lockspace("/ls", 0, b"ls", Timing()), [damaged]).result.name == b"ls"
    other = drive(open_lockspace("/ls", 0, b"other", Timing()), [good]).error
    assert isinstance(other, BadRecord)
    assert other.code == -226


@pytest.mark.parametrize(("sector_size", "number"), [(1024, -225), (512, -230)])
def test_sizes_that_no_format_has_are_told_apart(sector_size: int, number: int) -> None:
    """A sector size that there is not, and one that does not go with the align size."""
    record = delta_at_format(b"ls", Sizes(4096, 2 << 20), 10)._replace(sector_size=sector_size)
    data = pack_leader(record.sealed(), 512).ljust(PROBE_BYTES, b"\0")
    error = drive(open_lockspace("/ls", 0, b"ls", Timing()), [data]).error
    assert isinstance(error, BadRecord)
    assert error.code == number
