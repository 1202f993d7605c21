"""What an attempt to acquire a lease does before it disturbs anybody with a ballot."""

from __future__ import annotations

import pytest

from paxoslease.disk.layout import MIB, SIZES_512, Area
from paxoslease.disk.records import (
    SHORT_HOLD,
    HostSector,
    delta_at_format,
    pack_host_sector,
    pack_leader,
    paxos_at_format,
)
from paxoslease.errors import LeaseHeld, LostRace
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import Standing, Write
from paxoslease.protocol.leases import acquire_shared
from paxoslease.protocol.paxos import Owned, Want, acquire
from paxoslease.timing import SECOND_US, Timing
from tests.unit.drive import Desk

OTHER, ME = 1, 2
AREA = Area("/d", MIB, SIZES_512)
SPACE = Lockspace(b"ls", Area("/d", 0, SIZES_512))
CLAIM = Claim(SPACE, Resource(b"res", (AREA,)), Timing(io_timeout=2), ME)
# Our last ballot chose the other's value and was given up, because the other lives (M21, M8).
ADOPTED = HostSector(6002, 6002, OTHER, 1, 50, 1, released=True)


def desk_with(own: HostSector, other: HostSector) -> Desk:
    """Return a host beside a live one; the lease is free, its first version undecided."""
    desk = Desk()
    desk.standing = Standing(ME, 1, desk.now_us + 60 * SECOND_US)
    disk = desk.disk("/d", 2 * MIB)
    renewed = delta_at_format(b"ls", SIZES_512, 2)._replace(
        owner_id=OTHER, owner_generation=1, timestamp=50, resource_name=b"other"
    )
    places = (
        (0, pack_leader(renewed.sealed(), 512)),
        (MIB, pack_leader(paxos_at_format(b"ls", b"res", SIZES_512), 512)),
        (AREA.host_sector(OTHER), pack_host_sector(other, 512)),
        (AREA.host_sector(ME), pack_host_sector(own, 512)),
    )
    for at, data in places:
        disk[at : at + len(data)] = data
    return desk


def test_who_was_refused_for_a_live_host_does_not_disturb_its_ballots() -> None:
    """As long as nothing has changed the race stays lost, and nothing is written.

    A host of the original raises its number by one max_hosts for each try: it would never come
    above ours if every attempt that is refused raised them, too.
    """
    desk = desk_with(ADOPTED, HostSector(4001, 0, 0, 0, 0, 1))
    for _ in range(3):
        with pytest.raises(LostRace) as lost:
            desk.run(acquire(CLAIM))
        assert lost.value.host_id == OTHER
    assert not [effect for effect in desk.log if isinstance(effect, Write)]


@pytest.mark.parametrize(
    "other",
    [
        HostSector(4001, 4001, OTHER, 1, 50, 1, released=True),
        HostSector(4001, 0, 0, 0, 0, 2),
    ],
    ids=["it gave up", "it is at a later version"],
)
def test_a_race_is_run_again_when_the_other_has_let_go(other: HostSector) -> None:
    """A value whose owner is done with it is brought to an end, and the next version is ours."""
    desk = desk_with(ADOPTED, other)
    owned = None
    while owned is None:
        try:
            owned = desk.run(acquire(CLAIM))
        except LostRace:
            continue
    assert isinstance(owned, Owned)
    assert owned.leader.owner_id == ME
    assert owned.leader.lver == 2


def test_a_race_is_run_again_when_the_other_is_gone() -> None:
    """The value of a host that has left is brought to an end."""
    desk = desk_with(ADOPTED, HostSector(4001, 0, 0, 0, 0, 1))
    disk = desk.disk("/d", 0)
    left = delta_at_format(b"ls", SIZES_512, 2)._replace(owner_id=OTHER, owner_generation=1)
    disk[:512] = pack_leader(left.sealed(), 512)
    with pytest.raises(LostRace):
        desk.run(acquire(CLAIM))
    assert desk.run(acquire(CLAIM)).leader.lver == 2


@pytest.mark.parametrize("patience_s", [0, 3])
def test_patience_with_a_host_on_its_way_to_a_shared_lease(patience_s: int) -> None:
    """Who stays there is waited for as long as is wanted, and then reported as the holder."""
    desk = desk_with(HostSector(), HostSector(2001, 2001, OTHER, 1, 50, 1))
    free = paxos_at_format(b"ls", b"res", SIZES_512)
    held = free._replace(owner_id=OTHER, owner_generation=1, timestamp=50, lver=1, write_id=OTHER)
    held = held._replace(flags=held.flags | SHORT_HOLD).sealed()
    desk.disks["/d"][MIB : MIB + 512] = pack_leader(held, 512)
    desk.random = lambda below: below
    begun_us = desk.now_us
    with pytest.raises(LeaseHeld) as refused:
        desk.run(acquire_shared(CLAIM, Want(patience_us=patience_s * SECOND_US)))
    assert refused.value.short_hold
    waited_s = (desk.now_us - begun_us) / SECOND_US
    assert patience_s <= waited_s <= patience_s + 1 if patience_s else waited_s == 0
    assert not [effect for effect in desk.log if isinstance(effect, Write)]
