"""Operations whose host died over them: cut short after every effect, then brought to an end.

Each operation is run on a disk in memory and dropped after its n-th effect, for every n; an effect
is performed before it is dropped, so a write that was in flight has landed, or it is not (`lands`).
Then the successor settles it, and another host says what it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paxoslease.disk.areas import resource_area
from paxoslease.disk.layout import MIB, SIZES_512, SIZES_4096, Area
from paxoslease.disk.records import (
    HostSector,
    Leader,
    Where as At,
    delta_at_format,
    pack_host_sector,
    pack_leader,
    parse_host_sector,
    parse_paxos,
)
from paxoslease.errors import (
    BadRecord,
    DiskError,
    LeaseHeld,
    LeaseShared,
    LockspaceFailed,
    LostRace,
    PaxosleaseError,
)
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import Notify, Protocol, Standing, Write
from paxoslease.protocol.leases import (
    Lease,
    acquire_exclusive,
    acquire_shared,
    convert_to_exclusive,
    convert_to_shared,
    release,
)
from paxoslease.protocol.outcome import Found, Settled, settle_unknown
from paxoslease.protocol.settle import Unsettled
from paxoslease.timing import SECOND_US, Timing
from tests.unit.drive import Desk

T = Timing(10)
SPACE = Lockspace(b"ls", Area("/ls", 0, SIZES_512))
RESOURCE = Resource(b"res", (Area("/d", 0, SIZES_512),))
US, THEM = Standing(7, 3, 10**15), Standing(9, 1, 10**15)
OURS, THEIRS = (Claim(SPACE, RESOURCE, T, s.host_id) for s in (US, THEM))
Begin = Callable[[Lease | None], Protocol[Any]]


class Cluster:
    """Two hosts that live, and a resource; both see the same disks."""

    def __init__(self) -> None:
        self.us, self.them = Desk(), Desk()
        self.us.standing, self.them.standing = US, THEM
        self.them.disks = self.us.disks
        space = self.us.disk("/ls", MIB)
        for standing in (US, THEM):
            record = delta_at_format(b"ls", SIZES_512, 10)._replace(
                owner_id=standing.host_id, owner_generation=standing.generation, timestamp=900
            )
            offset = SPACE.area.delta(standing.host_id)
            space[offset : offset + 512] = pack_leader(record.sealed(), 512)
        self.us.disks["/d"] = bytearray(resource_area(b"ls", b"res", SIZES_512))

    def cut(self, protocol: Protocol[Any], effects: int, *, lands: bool) -> bool:
        """Perform so many effects of an operation of ours and drop it; False if it ended before."""
        answer: Any = None
        for number in range(effects + 1):
            try:
                effect = protocol.send(answer)
            except StopIteration:
                return False
            if number < effects or (lands and isinstance(effect, Write)):
                answer = self.us.perform(effect)
        protocol.close()
        return True

    def they_get(self) -> type[PaxosleaseError] | None:
        """Let the other host take the lease once and give it back; return what hindered it."""
        try:
            lease = self.them.run(acquire_exclusive(THEIRS))
        except (LeaseHeld, LeaseShared, LostRace) as error:
            return type(error)
        self.them.run(release(lease))
        return None

    @property
    def leader(self) -> Leader:
        return parse_paxos(bytes(self.us.disks["/d"][:512]), At("/d", 0), b"ls", b"res")

    @property
    def own(self) -> HostSector:
        offset = RESOURCE.disks[0].host_sector(7)
        return parse_host_sector(bytes(self.us.disks["/d"][offset : offset + 512]), At("/d", 0))

    def write(self, *, leader: Leader | None = None, own: HostSector | None = None) -> None:
        disk, offset = self.us.disks["/d"], RESOURCE.disks[0].host_sector(7)
        if leader is not None:
            disk[:512] = pack_leader(leader.sealed(), 512)
        if own is not None:
            disk[offset : offset + 512] = pack_host_sector(own, 512)


def exclusive(cluster: Cluster) -> Lease:
    lease = cluster.us.run(acquire_exclusive(OURS))
    assert isinstance(lease, Lease)
    return lease


def shared(cluster: Cluster) -> Lease:
    lease = cluster.us.run(acquire_shared(OURS))
    assert isinstance(lease, Lease)
    return lease


def nothing(cluster: Cluster) -> None:
    return None


def used_before(cluster: Cluster) -> None:
    """Both have had the lease, and given it back."""
    for desk, claim in ((cluster.them, THEIRS), (cluster.us, OURS), (cluster.them, THEIRS)):
        desk.run(release(desk.run(acquire_exclusive(claim))))


GIVEN_UP = {
    "acquire exclusive": (nothing, lambda _: acquire_exclusive(OURS)),
    "acquire exclusive again": (used_before, lambda _: acquire_exclusive(OURS)),
    "acquire shared": (nothing, lambda _: acquire_shared(OURS)),
    "acquire shared again": (used_before, lambda _: acquire_shared(OURS)),
    "release exclusive": (exclusive, release),
    "release shared": (shared, release),
}
KEPT = {
    "to shared": (exclusive, convert_to_shared),
    "to exclusive": (shared, convert_to_exclusive),
}


def cuts(setting: Any, lands: bool) -> Any:
    """Yield a cluster for every effect after which an operation can be cut short."""
    prepare, begin = setting
    effects = 0
    while True:
        cluster = Cluster()
        before = prepare(cluster)
        if not cluster.cut(begin(before), effects, lands=lands):
            return
        yield cluster, before
        effects += 1


def settle(cluster: Cluster, before: Lease | None, *, keep: bool) -> Settled:
    settled = cluster.us.run(settle_unknown(OURS, before, keep=keep))
    assert isinstance(settled, Settled)
    return settled


@pytest.mark.parametrize("lands", [False, True], ids=["lost", "landed"])
@pytest.mark.parametrize("race", [False, True], ids=["alone", "raced"])
@pytest.mark.parametrize("name", GIVEN_UP)
def test_what_was_cut_short_is_given_up(name: str, race: bool, lands: bool) -> None:
    """Wherever it was cut, others get the lease afterwards, also when they tried before; a second
    settling changes nothing, and we get it in a larger version than any before."""
    found: set[Found] = set()
    count = 0
    for cluster, before in cuts(GIVEN_UP[name], lands):
        count += 1
        if race:
            cluster.they_get()
        settled = settle(cluster, before, keep=False)
        found.add(settled.found)
        assert settled.lease is None
        assert cluster.own.released or cluster.own == HostSector()
        assert cluster.own.shared_generation is None
        content = bytes(cluster.us.disks["/d"])
        settle(cluster, before, keep=False)
        assert bytes(cluster.us.disks["/d"]) == content
        # Whoever completes a ballot for us loses that race, and wins the next one.
        assert cluster.they_get() is None or cluster.they_get() is None
        last = cluster.leader.lver
        assert exclusive(cluster).lver > last
    assert count > (2 if name == "release shared" else 6)
    # The leader is the last that an exclusive acquisition writes.
    assert (Found.OURS in found) is (lands or "acquire exclusive" not in name)
    assert (Found.BALLOT in found) is ("acquire" in name)
    assert Found.FOREIGN not in found


@pytest.mark.parametrize("lands", [False, True], ids=["lost", "landed"])
@pytest.mark.parametrize("race", [False, True], ids=["alone", "raced"])
@pytest.mark.parametrize("name", KEPT)
def test_what_its_user_goes_on_with_is_kept(name: str, race: bool, lands: bool) -> None:
    """Wherever a conversion was cut, its lease is held on, shared or exclusive, others do not get
    it exclusively before it is released, and then they do."""
    modes: set[bool] = set()
    for cluster, before in cuts(KEPT[name], lands):
        if race:
            assert cluster.they_get() is not None
        settled = settle(cluster, before, keep=True)
        assert settled.found is Found.OURS
        lease = settled.lease
        assert lease is not None
        modes.add(lease.shared)
        assert lease.own == cluster.own
        assert (cluster.own.shared_generation == 3) is lease.shared
        assert cluster.they_get() in (LeaseHeld, LeaseShared, LostRace)
        again = settle(cluster, lease, keep=True)
        assert again.lease is not None
        assert (again.lease.shared, again.lease.own) == (lease.shared, lease.own)
        assert cluster.us.run(release(lease)) is None
        assert cluster.they_get() is None or cluster.they_get() is None
    assert modes == ({True, False} if name == "to shared" or lands else {True})


# -- what only other hosts can bring about -----------------------------------------------------


def test_a_ballot_that_others_complete_in_our_name() -> None:
    """Our value is chosen, the leader names us by another's hand: it is freed, then released."""
    cluster = Cluster()
    fresh = cluster.leader
    cluster.write(
        leader=fresh._replace(
            lver=1, owner_id=7, owner_generation=3, timestamp=50, write_id=9, write_generation=1
        ),
        own=HostSector(7, 7, 7, 3, 50, 1),
    )
    assert settle(cluster, None, keep=False).found is Found.OURS
    writes = [e.offset for e in cluster.us.log if isinstance(e, Write)]
    assert writes == [0, RESOURCE.disks[0].host_sector(7)]
    assert cluster.leader.is_free
    assert cluster.own.released
    assert cluster.they_get() is None


def test_a_version_that_others_have_gone_beyond() -> None:
    """A larger version on the disk: our ballot is over, only RELEASED is written."""
    cluster = Cluster()
    used_before(cluster)
    leader = cluster.leader
    cluster.write(own=HostSector(7, 0, 0, 0, 0, leader.lver - 1))
    assert settle(cluster, None, keep=False).found is Found.BALLOT
    assert cluster.leader == leader
    assert cluster.own.released


def test_a_leader_that_was_rolled_back_is_freed_in_our_version() -> None:
    """A late commit of another host put the leader back (15.8): it is written all the same."""
    cluster = Cluster()
    lease = exclusive(cluster)
    cluster.write(leader=lease.leader._replace(lver=0, timestamp=0))
    assert settle(cluster, lease, keep=False).found is Found.OURS
    assert (cluster.leader.lver, cluster.leader.is_free) == (1, True)
    cluster = Cluster()
    lease = exclusive(cluster)
    cluster.write(leader=lease.leader._replace(lver=0, timestamp=0))
    assert settle(cluster, lease, keep=True) == Settled(Found.OURS, lease)


def test_a_conversion_that_had_won_before_the_leader_was_rolled_back() -> None:
    """The mode block is gone, so we had won; the leader is known from our block."""
    cluster = Cluster()
    before = shared(cluster)
    base = cluster.leader
    after = cluster.us.run(convert_to_exclusive(before))
    cluster.write(leader=base)
    lease = settle(cluster, before, keep=True).lease
    assert lease is not None
    assert (lease.lver, lease.shared, lease.own) == (after.lver, False, after.own)
    assert lease.leader[:12] == after.leader[:12]
    cluster.us.run(release(lease))
    assert cluster.they_get() is None


@pytest.mark.parametrize("lver", [1, 2])
def test_a_lease_that_is_anothers(lver: int) -> None:
    """Somebody took it in spite of us being alive: its user must stop, and RELEASED is written."""
    cluster = Cluster()
    lease = exclusive(cluster)
    theirs = lease.leader._replace(
        lver=lver, owner_id=9, owner_generation=1, write_id=9, write_generation=1
    )
    cluster.write(leader=theirs)
    assert settle(cluster, lease, keep=True) == Settled(Found.FOREIGN)
    assert cluster.leader == theirs.sealed()
    assert cluster.own.released


def test_a_shared_lease_that_is_not_on_the_disk() -> None:
    """A mode block of another generation, or none, is not ours."""
    for generation in (2, None):
        cluster = Cluster()
        before = shared(cluster)
        cluster.write(own=before.own._replace(shared_generation=generation))
        assert settle(cluster, before, keep=True) == Settled(Found.FOREIGN)
        assert cluster.own == before.own._replace(shared_generation=None)


def test_an_earlier_life_is_not_ours() -> None:
    """A leader of an older generation of our host id is void already; our block says RELEASED."""
    cluster = Cluster()
    lease = exclusive(cluster)
    old = lease.leader._replace(owner_generation=2, write_generation=2)
    cluster.write(leader=old, own=lease.own._replace(inp2=2))
    assert settle(cluster, None, keep=False).found is Found.BALLOT
    assert cluster.leader == old.sealed()
    assert cluster.own.released


# -- the disk ----------------------------------------------------------------------------------


def test_a_resource_that_is_gone() -> None:
    """Deleted, or another one in its place: nothing there is ours to write."""
    for changes in ({"magic": 0x11282016}, {"resource_name": b"other".ljust(48, b"\0")}):
        cluster = Cluster()
        cluster.write(leader=cluster.leader._replace(**changes))
        assert settle(cluster, None, keep=False).found is Found.GONE
        assert not [e for e in cluster.us.log if isinstance(e, Write)]


def test_a_damaged_resource() -> None:
    """It is reported, not written over."""
    cluster = Cluster()
    cluster.us.disks["/d"][100] ^= 1
    with pytest.raises(BadRecord):
        settle(cluster, None, keep=False)


def test_sizes_that_differ_from_the_lockspace() -> None:
    """The leader states them, as in an acquisition."""
    cluster = Cluster()
    cluster.us.disks["/d"] = bytearray(resource_area(b"ls", b"res", SIZES_4096))
    cluster.cut(acquire_exclusive(OURS), 11, lands=True)
    assert settle(cluster, None, keep=False).found is not Found.NOTHING
    offset = Area("/d", 0, SIZES_4096).host_sector(7)
    assert parse_host_sector(bytes(cluster.us.disks["/d"][offset:][:4096]), At("/d", 0)).released


def test_a_disk_that_is_ill_is_asked_again() -> None:
    """Reads that fail are repeated, and said once; the end of the membership ends it."""
    cluster = Cluster()
    exclusive(cluster)
    ill = [True] * 3
    failure = DiskError("/d", 0, "read", 5, "EIO")
    cluster.us.fail = lambda e: (
        failure if getattr(e, "path", "") == "/d" and ill and ill.pop() else None
    )
    assert settle(cluster, None, keep=False).found is Found.OURS
    assert cluster.us.notified == [Unsettled(failure)]
    assert len([e for e in cluster.us.log if isinstance(e, Notify)]) == 1
    cluster.us.standing = LockspaceFailed(b"ls", "over")
    with pytest.raises(LockspaceFailed):
        settle(cluster, None, keep=False)


def test_seconds_are_whole() -> None:
    """A value of ours has a time that is not zero, or a rebuilt record would be free."""
    cluster = Cluster()
    assert exclusive(cluster).own.inp3 == cluster.us.now_us // SECOND_US
