"""Going on with a membership that a predecessor left: when it may be, and from when it counts."""

from __future__ import annotations

from typing import Any

import pytest

from paxoslease.disk.layout import MIB, SIZES_512, Area
from paxoslease.disk.records import Leader, delta_at_format, pack_leader, unpack_leader
from paxoslease.errors import (
    AdoptionRefused,
    BadRecord,
    Cancelled,
    DiskError,
    PaxosleaseError,
    RenewalRefused,
)
from paxoslease.protocol.adoption import Legacy, prove, resume
from paxoslease.protocol.delta import Held, Lockspace
from paxoslease.protocol.effects import (
    Notify,
    PetWatchdog,
    Read,
    ReadLockspace,
    Sleep,
    Write,
)
from paxoslease.protocol.membership import Failed, Joined, Member, Renewed, _renew_once
from paxoslease.timing import SECOND_US, Timing
from tests.unit.drive import Desk

S = SECOND_US
T = Timing(10)
SPACE = Lockspace(b"ls", Area("/ls", 0, SIZES_512))
NOTED_S = 1000
NOTED = delta_at_format(b"ls", SIZES_512, 10)._replace(
    owner_id=3, owner_generation=5, resource_name=b"me".ljust(48, b"\0"), timestamp=NOTED_S
)
NOTED = NOTED.sealed()


def legacy(*, certain: bool = True, is_final: bool = False, leader: Leader = NOTED) -> Legacy:
    return Legacy(Held(leader, NOTED_S * S, certain), is_final)


def member() -> Member:
    return Member(SPACE, 3, b"me", T)


def changed(**changes: Any) -> Leader:
    return NOTED._replace(**changes).sealed()


def desk_with(found: Leader, now_s: float) -> Desk:
    desk = Desk(now_us=int(now_s * S))
    desk.disk("/ls", MIB)[2 * 512 : 3 * 512] = pack_leader(found, 512)
    return desk


def refusal(found: Leader, noted: Legacy, now_s: float) -> str:
    """Return why a membership is refused; nothing was written, nobody was told."""
    desk = desk_with(found, now_s)
    with pytest.raises(AdoptionRefused) as refused:
        desk.run(resume(member(), noted))
    assert not [e for e in desk.log if isinstance(e, Write | PetWatchdog | Notify)]
    return refused.value.reason


# -- from when it counts -----------------------------------------------------------------------


@pytest.mark.parametrize("is_final", [True, False])
def test_the_record_that_was_noted(is_final: bool) -> None:
    """It counts from the moment that was noted with it."""
    noted = legacy(is_final=is_final)
    assert desk_with(NOTED, 1030).run(prove(member(), noted)) == noted.held


def test_a_record_that_was_renewed_since() -> None:
    """Its timestamp counts, less the second by which it may be ahead of the clock."""
    found = changed(timestamp=1060, write_id=1, write_generation=2, write_timestamp=3)
    held = desk_with(found, 1110).run(prove(member(), legacy()))
    assert held == Held(found, 1059 * S, True)


def test_an_uncertain_write_that_landed() -> None:
    """The record tried is on the disk: it counts from its timestamp, also if it was the last."""
    tried = changed(timestamp=1020)
    noted = legacy(certain=False, is_final=True, leader=tried)
    assert desk_with(tried, 1030).run(prove(member(), noted)) == Held(tried, 1019 * S, True)


def test_an_uncertain_write_that_did_not_land() -> None:
    """The older record is on the disk: it counts as noted, and the number tried is not reused."""
    tried = changed(timestamp=1020)
    noted = legacy(certain=False, is_final=True, leader=tried)
    held = desk_with(NOTED, 1030).run(prove(member(), noted))
    assert held == Held(tried, NOTED_S * S, False)


# -- when it may not be ------------------------------------------------------------------------


def test_too_late() -> None:
    """More than one io_timeout must be left of `fail`, counted from the last renewal."""
    last_s = NOTED_S + 80 - 10
    assert "not renewed for 70 s" in refusal(NOTED, legacy(), last_s)
    assert desk_with(NOTED, last_s - 0.001).run(prove(member(), legacy()))


def test_too_late_for_a_renewal_that_was_not_noted() -> None:
    """The same, a second earlier than the timestamp says."""
    found = changed(timestamp=1060)
    last_s = 1059 + 80 - 10
    assert "not renewed" in refusal(found, legacy(), last_s)
    assert desk_with(found, last_s - 0.001).run(prove(member(), legacy()))


@pytest.mark.parametrize(
    "changes",
    [
        {"owner_id": 4},
        {"owner_generation": 6},
        {"resource_name": b"other".ljust(48, b"\0")},
        {"io_timeout": 20},
        {"sector_size": 4096},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("certain", [True, False])
def test_a_record_of_somebody_else(changes: dict[str, Any], certain: bool) -> None:
    """Owner, generation, name, io_timeout and sizes are those that were noted."""
    found = changed(timestamp=1010, **changes)
    assert "changed by others" in refusal(found, legacy(certain=certain), 1020)


def test_a_record_that_was_freed() -> None:
    """Others may have taken every lease since."""
    assert refusal(changed(timestamp=0), legacy(), 1010) == "it was left"


def test_a_final_record_stays() -> None:
    """If nothing was written after it was noted, no other record is ours."""
    assert "written last" in refusal(changed(timestamp=1010), legacy(is_final=True), 1020)


@pytest.mark.parametrize("changes", [{"timestamp": 999}, {"write_timestamp": 7}])
def test_a_record_does_not_go_back(changes: dict[str, Any]) -> None:
    """An older timestamp than the one noted, or other bytes beside it, are no renewal."""
    assert "written last" in refusal(changed(**changes), legacy(), 1020)


def test_a_clock_that_went_back() -> None:
    """A record of a later time than it is was written by another clock."""
    assert "later time" in refusal(NOTED, legacy(), NOTED_S - 0.001)
    assert "later time" in refusal(changed(timestamp=1060), legacy(), 1058)


def test_a_membership_that_failed_meanwhile() -> None:
    """Whoever guards the time may have told already that it is over."""
    desk, late = desk_with(NOTED, 1010), member()
    late.fail("too late", None)
    with pytest.raises(AdoptionRefused, match="too late"):
        desk.run(resume(late, legacy()))
    assert not desk.notified


# -- a disk that does not answer ---------------------------------------------------------------


def failing(desk: Desk, until_s: float) -> None:
    """Let reads fail until a moment."""

    def fail(effect: Any) -> PaxosleaseError | None:
        if isinstance(effect, Read) and desk.now_us < until_s * S:
            return DiskError("/ls", 0, "read", 5, "EIO")
        return None

    desk.fail = fail


def test_the_disk_is_asked_again_while_there_is_time() -> None:
    """What was noted is surely good for a while: a disk that is ill for that long is waited for."""
    desk = desk_with(NOTED, 1010)
    failing(desk, 1060)
    assert desk.run(prove(member(), legacy())) == legacy().held
    assert desk.now_us >= 1060 * S
    desk = desk_with(NOTED, 1010)
    failing(desk, 1200)
    with pytest.raises(DiskError):
        desk.run(resume(member(), legacy()))
    assert desk.now_us <= 1070 * S
    assert not desk.notified


def test_the_disk_is_asked_once_when_there_may_be_no_time() -> None:
    """If what was noted is old, only the disk can tell, and not to know is to refuse."""
    desk = desk_with(NOTED, 5000)
    failing(desk, 9000)
    with pytest.raises(DiskError):
        desk.run(resume(member(), legacy()))
    assert len([e for e in desk.log if isinstance(e, Read)]) == 1


def test_a_damaged_record_is_not_asked_for_again() -> None:
    """Nothing is repaired on the way."""
    desk = desk_with(NOTED, 1010)
    desk.disks["/ls"][2 * 512 + 60] ^= 1
    with pytest.raises(BadRecord):
        desk.run(resume(member(), legacy()))
    assert len([e for e in desk.log if isinstance(e, Read)]) == 1


def test_it_can_be_cancelled_while_the_disk_does_not_answer() -> None:
    """Nothing is written then."""
    desk = desk_with(NOTED, 1010)
    failing(desk, 1060)
    normal = desk.fail

    def fail(effect: Any) -> PaxosleaseError | None:
        return Cancelled() if isinstance(effect, Sleep) and effect.cancellable else normal(effect)

    desk.fail = fail
    with pytest.raises(Cancelled):
        desk.run(resume(member(), legacy()))
    assert not [e for e in desk.log if isinstance(e, Write)]


# -- the first renewal -------------------------------------------------------------------------


def resumed(desk: Desk, noted: Legacy) -> Member:
    """Resume and leave after the first renewal."""
    one = member()

    def after(effect: Any) -> None:
        if isinstance(effect, Notify) and isinstance(effect.event, Renewed):
            one.leave()

    desk.after = after
    desk.run(resume(one, noted))
    return one


def test_it_arms_then_tells_then_renews_at_once() -> None:
    """The watchdog is armed until the old expiry, and the renewal does not wait for its turn."""
    desk = desk_with(NOTED, 1030.2)
    assert resumed(desk, legacy()).has_left
    armed, renewed = [e for e in desk.log if isinstance(e, PetWatchdog)][:2]
    assert armed == PetWatchdog(b"ls", NOTED_S * S, (NOTED_S + 80) * S)
    assert renewed.renewed_us == 1030 * S
    assert not [e for e in desk.log if isinstance(e, Sleep)]
    kinds = [type(e) for e in desk.log]
    assert kinds.index(Read) < kinds.index(PetWatchdog) < kinds.index(ReadLockspace)
    assert [type(e) for e in desk.notified[:2]] == [Joined, Renewed]
    first = next(unpack_leader(e.data) for e in desk.log if isinstance(e, Write))
    assert first == changed(timestamp=1030)


def test_a_late_write_of_the_predecessor_ends_it() -> None:
    """The proof is one read; what lands after it is found by the first renewal."""
    desk, one = desk_with(NOTED, 1030), member()

    def after(effect: Any) -> None:
        if isinstance(effect, Notify) and isinstance(effect.event, Joined):
            desk.disks["/ls"][2 * 512 : 3 * 512] = pack_leader(changed(timestamp=1025), 512)

    desk.after = after
    desk.run(resume(one, legacy()))
    failed = [e for e in desk.notified if isinstance(e, Failed)]
    assert isinstance(failed[0].error, RenewalRefused)
    assert not [e for e in desk.log if isinstance(e, Write)]


# -- how far a timestamp may be ahead ----------------------------------------------------------


def test_no_timestamp_is_more_than_a_second_ahead() -> None:
    """However many renewals fail, and however fast, the next one waits for the clock to come up:
    a successor takes the disk's timestamp, less a second, for the moment of the renewal."""
    desk, one = desk_with(NOTED, 1000.9), member()
    written: list[tuple[int, int]] = []

    def fail(effect: Any) -> PaxosleaseError | None:
        if not isinstance(effect, Write):
            return None
        written.append((unpack_leader(effect.data).timestamp, desk.now_us))
        if len(written) == 40:
            one.leave()
        return DiskError("/ls", 0, "write", 5, "EIO")

    desk.fail = fail
    desk.run(resume(one, legacy()))
    assert len(written) >= 40
    assert all(stamp * S <= now_us + S for stamp, now_us in written)
    stamps = [stamp for stamp, _ in written[:40]]
    assert stamps == sorted(set(stamps))


def test_the_first_renewal_waits_for_the_clock_too() -> None:
    """Also after the predecessor's last one was ahead."""
    ahead = changed(timestamp=1031)
    desk = desk_with(ahead, 1030.5)
    resumed(desk, legacy())
    first = next(e for e in desk.log if isinstance(e, Write))
    assert unpack_leader(first.data).timestamp == 1032
    assert desk.now_us >= 1031 * S


def test_a_renewal_by_itself_may_be_a_second_ahead() -> None:
    """Two renewals within one second: the bound of the above is reached."""
    desk, one = desk_with(NOTED, 1000.5), member()
    one.held = legacy().held
    assert desk.run(_renew_once(one, desk.now_us)).error is None
    assert one.held.leader.timestamp == 1001
    assert one.held.renewed_us == 1000 * S + S // 2
