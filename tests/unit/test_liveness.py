"""Liveness: when an owner counts as gone, as having let go, and when it does not."""

from __future__ import annotations

from typing import Any

import pytest

from paxoslease.disk.layout import SIZES_512, Area
from paxoslease.disk.records import (
    HostSector,
    Leader,
    delta_at_format,
    pack_host_sector,
    pack_leader,
    paxos_at_format,
)
from paxoslease.errors import BadRecord, DiskError, LeaseHeld
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import UNSEEN, HostSeen, Now, Observe, Read
from paxoslease.protocol.liveness import (
    NO_SIGHTING,
    Basis,
    Sighting,
    Verdict,
    find_basis,
    has_let_go,
    judge,
    owner_generation,
)
from paxoslease.timing import SECOND_US, Timing
from tests.unit.drive import Outcome, drive

S = SECOND_US
T = Timing(io_timeout=2)
DEAD = (16 + 60) * S
NOW = 5000 * S
SPACE = Lockspace(b"ls", Area("/d", 0, SIZES_512))
AREA = Area("/d", 1 << 20, SIZES_512)
CLAIM = Claim(SPACE, Resource(b"res", (AREA,)), T, 1)

DELTA = delta_at_format(b"ls", SIZES_512, 2)._replace(
    owner_id=7, owner_generation=3, timestamp=55, resource_name=b"host-7".ljust(48, b"\0")
)
LEADER = (
    paxos_at_format(b"ls", b"res", SIZES_512)
    ._replace(
        lver=4,
        owner_id=7,
        owner_generation=3,
        timestamp=50,
        write_id=7,
        write_generation=3,
        write_timestamp=50,
    )
    .sealed()
)
SEEN = HostSeen(7, 3, 55, b"host-7", 2, 2, NOW - 900 * S, NOW - S, NOW - 10 * S)


def sector(record: Leader, **changes: Any) -> bytes:
    return pack_leader(record._replace(**changes).sealed(), 512)


def judging(
    data: bytes,
    *,
    seen: HostSeen = UNSEEN,
    generation: int = 3,
    sighting: Sighting = NO_SIGHTING,
    timing: Timing = T,
) -> Verdict:
    claim = CLAIM._replace(timing=timing)
    outcome = drive(judge(claim, 7, generation, sighting), [seen, data, NOW])
    assert outcome.effects == [
        Observe(7),
        Read("/d", SPACE.area.delta(7), 512, timing.io_us),
        Now(),
    ]
    assert isinstance(outcome.result, Verdict)
    return outcome.result


@pytest.mark.parametrize(
    "changes", [{"timestamp": 0}, {"owner_generation": 4}, {"owner_id": 8}], ids=str
)
def test_proof_of_death_on_the_disk(changes: dict[str, int]) -> None:
    """A free delta lease, another owner or a later generation prove it at once."""
    assert judging(sector(DELTA, **changes)).is_dead


def test_an_earlier_generation_is_no_proof() -> None:
    """A delta lease of an older generation than the owner's may be a stale one: not dead."""
    verdict = judging(sector(DELTA, owner_generation=2))
    assert not verdict.is_dead
    assert verdict.still_us == 0


def test_nothing_known_means_nothing_proved() -> None:
    """Without a sighting the record has stood still since just now, however old it is."""
    verdict = judging(sector(DELTA))
    here = Sighting(7, 3, 55, NOW)
    assert verdict == Verdict(False, True, b"host-7", 0, DEAD + 1, here)


def test_the_host_table_says_since_when() -> None:
    """Dead one microsecond after `dead` since the table saw the record change, not before."""
    for age_us, is_dead in ((DEAD, False), (DEAD + 1, True)):
        verdict = judging(sector(DELTA), seen=SEEN._replace(last_live_us=NOW - age_us))
        assert verdict.is_dead is is_dead
        assert verdict.still_us == age_us
        assert verdict.takeover_in_us == (0 if is_dead else 1)


@pytest.mark.parametrize(
    "changes",
    [{"timestamp": 54}, {"generation": 2}, {"owner_id": 8}, {"last_live_us": 0}],
    ids=str,
)
def test_a_table_that_saw_another_record_proves_nothing(changes: dict[str, int]) -> None:
    """The time counts only for the very record that is on the disk now."""
    seen = SEEN._replace(**{"last_live_us": NOW - 10 * DEAD, **changes})
    assert not judging(sector(DELTA), seen=seen).is_dead


def test_a_sighting_of_a_waiter_counts_as_the_table_does() -> None:
    """Whoever saw the record first decides; a sighting of another record does not count."""
    first = Sighting(7, 3, 55, NOW - DEAD - 1)
    verdict = judging(sector(DELTA), seen=SEEN, sighting=first)
    assert verdict.is_dead
    assert verdict.sighting == first
    for other in (first._replace(timestamp=54), first._replace(generation=2)):
        assert not judging(sector(DELTA), seen=SEEN, sighting=other).is_dead
    assert judging(sector(DELTA), seen=SEEN).sighting.at_us == NOW - 10 * S


@pytest.mark.parametrize(
    ("own", "disk", "ever"), [(10, 2, 2), (2, 10, 2), (2, 2, 10)], ids=["own", "disk", "ever seen"]
)
def test_the_largest_io_timeout_counts(own: int, disk: int, ever: int) -> None:
    """Of ours, the one on the disk and any ever seen for that host (M9, 15.4)."""
    needed_us = (80 + 60) * S
    for age_us, is_dead in ((needed_us, False), (needed_us + 1, True)):
        seen = SEEN._replace(last_live_us=NOW - age_us, io_max=ever)
        data = sector(DELTA, io_timeout=disk)
        assert judging(data, seen=seen, timing=Timing(own)).is_dead is is_dead


def test_a_different_watchdog_time() -> None:
    """A cluster with another fire time-out waits by it."""
    seen = SEEN._replace(last_live_us=NOW - (16 + 30) * S - 1)
    assert judging(sector(DELTA), seen=seen, timing=Timing(2, 30)).is_dead
    assert not judging(sector(DELTA), seen=seen).is_dead


def test_a_delta_lease_that_cannot_be_read_judges_nobody() -> None:
    """Errors of the read are reported: a host is not dead because its record is damaged."""
    error = DiskError("/d", 0, "read", 5, "EIO")
    assert drive(judge(CLAIM, 7, 3), [UNSEEN, error]).error is error
    assert isinstance(drive(judge(CLAIM, 7, 3), [UNSEEN, bytes(512)]).error, BadRecord)


# -- has it let go? ----------------------------------------------------------------------------

BLOCK = HostSector(2007, 2007, 7, 3, 50, 4)


@pytest.mark.parametrize(
    ("leader", "block", "gone"),
    [
        ({}, {}, False),
        ({}, {"released": True}, False),  # its own leader write frees the lease, not the flag
        ({"write_id": 1}, {"released": True}, True),  # committed by another: the flag does (6.4)
        ({"write_id": 1}, {}, False),
        ({"write_generation": 4}, {"released": True}, True),  # M25
        ({"write_generation": 4}, {}, False),
        ({}, {"lver": 5}, True),  # it has moved on (M24)
        ({"write_id": 1}, {"lver": 3}, False),
    ],
)
def test_has_let_go(leader: dict[str, Any], block: dict[str, Any], gone: bool) -> None:
    """RELEASED counts only beside a leader that another wrote; a larger lver always."""
    assert has_let_go(LEADER._replace(**leader), BLOCK._replace(**block)) is gone


@pytest.mark.parametrize(
    ("block", "gone"),
    [({}, False), ({"released": True}, True), ({"released": True, "lver": 3}, False)],
)
def test_what_one_of_several_disks_shows_as_free(block: dict[str, Any], gone: bool) -> None:
    """There RELEASED counts beside the owner's own leader too, if it is of the same version."""
    assert has_let_go(LEADER, BLOCK._replace(**block), is_freed=True) is gone


def test_the_generation_that_owns() -> None:
    """A leader written by the owner in a later life is owned by that life (M25, 15.9)."""
    assert owner_generation(LEADER) == 3
    assert owner_generation(LEADER._replace(write_generation=5)) == 5
    assert owner_generation(LEADER._replace(write_generation=2)) == 3
    assert owner_generation(LEADER._replace(write_id=1, write_generation=5)) == 3


# -- why an attempt may start ------------------------------------------------------------------


def basis(leader: Leader, answers: list[Any], claim: Claim = CLAIM, generation: int = 1) -> Outcome:
    return drive(find_basis(claim, leader, generation, NO_SIGHTING), answers)


def test_a_free_lease_and_an_own_one_need_no_look() -> None:
    """Nothing is read for a free lease, nor for one of this life or an earlier of this host."""
    assert basis(LEADER._replace(timestamp=0), []).result is Basis.FREE
    mine = CLAIM._replace(host_id=7)
    assert basis(LEADER, [], mine, 3).result is Basis.FREE
    assert basis(LEADER, [], mine, 4).result is Basis.FREE
    assert not basis(LEADER, [], mine, 2).is_done  # a later life of us? judged like another host


def test_a_dead_owner_is_a_basis() -> None:
    """If its delta lease is free, the owner's block is not read."""
    outcome = basis(LEADER, [UNSEEN, sector(DELTA, timestamp=0), NOW])
    assert outcome.result is Basis.DEAD


def test_an_owner_that_let_go_is_a_basis() -> None:
    """The block of a living owner is read, also if it wrote the leader itself (M24)."""
    moved_on = pack_host_sector(BLOCK._replace(lver=5), 512)
    outcome = basis(LEADER, [UNSEEN, sector(DELTA), NOW, moved_on])
    assert outcome.result is Basis.RELEASED
    assert outcome.effects[-1] == Read("/d", AREA.host_sector(7), 512, T.io_us)


def test_a_living_owner_is_named() -> None:
    """The error says who holds the lease, in which version, since when, and how it looks."""
    block = pack_host_sector(BLOCK, 512)
    short = LEADER._replace(flags=LEADER.flags | 1)
    renewed = SEEN._replace(last_live_us=NOW - 5 * S)
    error = basis(short, [renewed, sector(DELTA), NOW, block]).error
    assert isinstance(error, LeaseHeld)
    assert (error.host_id, error.host_name, error.generation) == (7, b"host-7", 3)
    assert (error.lver, error.since_s, error.alive, error.short_hold) == (4, 50, True, True)
    dying = SEEN._replace(last_live_us=NOW - 70 * S)
    error = basis(LEADER, [dying, sector(DELTA), NOW, block]).error
    assert isinstance(error, LeaseHeld)
    assert (error.alive, error.dying_for_us, error.takeover_in_us) == (False, 70 * S, 6 * S + 1)
    assert error.code == -247


def test_the_owner_of_a_leader_of_15_9_is_its_later_life() -> None:
    """A delta lease of that later generation is no proof of death then (M25)."""
    later = LEADER._replace(write_generation=4)
    delta = sector(DELTA, owner_generation=4)
    block = pack_host_sector(BLOCK, 512)
    assert isinstance(basis(later, [UNSEEN, delta, NOW, block]).error, LeaseHeld)
    assert basis(LEADER, [UNSEEN, delta, NOW]).result is Basis.DEAD


def test_a_torn_block_of_the_owner_is_an_error() -> None:
    """It is not taken for an empty one (M6)."""
    block = bytearray(pack_host_sector(BLOCK, 512))
    block[1] ^= 1
    outcome = basis(LEADER, [UNSEEN, sector(DELTA), NOW, bytes(block)])
    assert isinstance(outcome.error, BadRecord)
    assert outcome.error.code == -214
