"""The resource index: what each operation writes, refuses, and leaves behind after a crash."""

from __future__ import annotations

from typing import Any

import pytest

from paxoslease.disk import areas
from paxoslease.disk.layout import SIZES_512, SIZES_4096, Area, Sizes
from paxoslease.disk.records import (
    CLEARED_MAGIC,
    HostSector,
    Where,
    cut_name,
    pack_host_sector,
    pack_leader,
    parse_host_sector,
    parse_paxos,
    unpack_leader,
)
from paxoslease.errors import (
    BadRecord,
    ConfigError,
    DiskError,
    DiskTimeout,
    LeaseBusy,
    LeaseHeld,
    RindexError,
)
from paxoslease.protocol import rindex
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.effects import Landed, Read, Write
from paxoslease.protocol.formatting import format_index, format_lockspace, format_resource
from paxoslease.protocol.leases import acquire_exclusive
from paxoslease.protocol.rindex import Index, Located
from paxoslease.timing import Timing
from tests.unit.drive import Desk

MIB = 1 << 20
START = 4 * MIB
SPACE = Lockspace(b"ls", Area("/d", 0, SIZES_512))
INDEX = Index(SPACE, Area("/d", START, SIZES_512), Timing(), 1)
CONTENT = range(START, START + MIB)


def desk_with_index(places: int = 6, max_resources: int = 4096) -> Desk:
    desk = Desk()
    desk.disk("/d", START + (2 + places) * MIB)
    desk.run(format_lockspace(SPACE, 10))
    desk.run(format_index(b"ls", INDEX.area, max_resources))
    desk.log.clear()
    return desk


def names(desk: Desk) -> list[bytes]:
    return [found.name for found in desk.run(rindex.list_all(INDEX))]


def writes_in(desk: Desk, where: range) -> list[tuple[int, int]]:
    return [
        (effect.offset - where.start, len(effect.data))
        for effect in desk.log
        if isinstance(effect, Write) and effect.offset in where
    ]


def private_lease(desk: Desk) -> tuple[Any, HostSector]:
    area = INDEX.area.following(1)
    disk = desk.disks["/d"]
    leader = parse_paxos(
        disk[area.offset :][:512], Where("/d", area.offset), b"ls", b"rindex_lease"
    )
    start = area.host_sector(1)
    return leader, parse_host_sector(bytes(disk[start : start + 144]), Where("/d", start))


def test_create_lookup_delete() -> None:
    """A created resource can be found by name and place; a deleted one cannot, and is cleared."""
    desk = desk_with_index()
    made = [desk.run(rindex.create(INDEX, name)) for name in (b"a", b"b", b"c")]
    assert [m.offset for m in made] == [START + (2 + i) * MIB for i in range(3)]
    assert desk.run(rindex.lookup(INDEX, b"b")) == made[1]
    assert desk.run(rindex.lookup(INDEX, None, made[2].offset)) == made[2]
    assert desk.run(rindex.lookup(INDEX, b"c", made[2].offset)) == made[2]
    assert desk.run(rindex.lookup(INDEX)) == Located(3, b"", START + 5 * MIB)
    assert desk.run(rindex.delete(INDEX, b"b")) == made[1]
    assert names(desk) == [b"a", b"c"]
    with pytest.raises(RindexError) as caught:
        desk.run(rindex.lookup(INDEX, b"b"))
    assert caught.value.code == -2
    assert unpack_leader(desk.disks["/d"][made[1].offset :]).magic == CLEARED_MAGIC
    assert desk.run(rindex.lookup(INDEX)).entry == 1
    assert desk.run(rindex.create(INDEX, b"d")).entry == 1


def test_the_private_lease_is_given_back_visibly() -> None:
    """After an operation, also one that fails, the lease is free and RELEASED (M8)."""
    desk = desk_with_index()
    desk.run(rindex.create(INDEX, b"a"))
    leader, own = private_lease(desk)
    assert (leader.lver, leader.is_free, own.released, own.lver) == (1, True, True, 1)
    with pytest.raises(RindexError):
        desk.run(rindex.create(INDEX, b"a"))
    leader, own = private_lease(desk)
    assert (leader.lver, leader.is_free, own.released) == (2, True, True)


def test_the_order_of_writes() -> None:
    """Create writes the resource before its entry, delete the entry before the resource."""
    desk = desk_with_index()
    entry, place = START + 512, START + 2 * MIB

    def order() -> list[tuple[int, int]]:
        return [
            (effect.offset, len(effect.data))
            for effect in desk.log
            if isinstance(effect, Write) and effect.offset in (entry, place)
        ]

    desk.run(rindex.create(INDEX, b"a"))
    assert order() == [(place, MIB), (entry, 512)]
    desk.log.clear()
    desk.run(rindex.delete(INDEX, b"a", force=True))
    assert order() == [(entry, 512), (place, MIB)]


def test_duplicates_are_refused() -> None:
    """A name that is taken is refused by create and update, with the place it has (M16)."""
    desk = desk_with_index()
    desk.run(rindex.create(INDEX, b"a"))
    desk.log.clear()
    for protocol in (rindex.create(INDEX, b"a"), rindex.update(INDEX, b"a", START + 4 * MIB)):
        with pytest.raises(RindexError, match=str(START + 2 * MIB)) as caught:
            desk.run(protocol)
        assert caught.value.code == -17
    assert writes_in(desk, CONTENT) == []


@pytest.mark.parametrize(("sizes", "limit"), [(SIZES_512, 2048), (SIZES_4096, 256)], ids=str)
def test_places_beyond_the_reach_of_sanlock_are_not_used(sizes: Sizes, limit: int) -> None:
    """An index with 2^31 bytes of places in use is full, whatever its header says (M16)."""
    area = Area("/d", sizes.align_size, sizes)
    index = Index(Lockspace(b"ls", Area("/d", 0, sizes)), area, Timing(), 1)
    desk = Desk()
    disk = desk.disk("/d", 4 * sizes.align_size)
    desk.run(format_index(b"ls", area, 4096))
    full = b"".join(
        index.place(i).offset.to_bytes(8, "little") + bytes(8) + f"r{i}".encode().ljust(48, b"\0")
        for i in range(limit)
    )
    start = area.index_entry(0)
    disk[start : start + len(full)] = full
    for protocol in (rindex.lookup(index), rindex.create(index, b"one-more")):
        with pytest.raises(RindexError) as caught:
            desk.run(protocol)
        assert caught.value.code == -28
    with pytest.raises(RindexError) as caught:
        desk.run(rindex.update(index, b"one-more", index.place(limit).offset))
    assert caught.value.code == -22
    last = desk.run(rindex.lookup(index, f"r{limit - 1}".encode()))
    assert last.offset == area.offset + 2 * sizes.align_size + (limit - 1) * sizes.align_size


def test_places_are_computed_in_64_bits() -> None:
    """The place of an entry far behind 4 GiB is found as what it is."""
    index = INDEX._replace(area=Area("/d", 1 << 45, SIZES_4096))
    place = index.place(100_000)
    assert place.offset == (1 << 45) + 100_002 * (8 << 20)
    assert index.entry_at(place.offset) == 100_000
    assert index.entry_at(place.offset + 1) is None
    assert index.entry_at(index.area.offset) is None


def test_a_resource_in_use_is_not_deleted() -> None:
    """Delete leaves alone what another host or this one holds; forced, it clears it as sanlock."""
    desk = desk_with_index()
    made = desk.run(rindex.create(INDEX, b"a"))
    place = INDEX.place(made.entry)
    lease = desk.run(acquire_exclusive(INDEX.claim(b"a", place)))
    with pytest.raises(LeaseBusy):
        desk.run(rindex.delete(INDEX, b"a"))
    theirs = lease.leader._replace(owner_id=2, owner_generation=1, write_id=2).sealed()
    desk.disks["/d"][place.offset : place.offset + 512] = pack_leader(theirs, 512)
    delta = unpack_leader(desk.disks["/d"][512:])
    alive = delta._replace(owner_id=2, owner_generation=1, timestamp=7, resource_name=b"h2")
    desk.disks["/d"][512:1024] = pack_leader(
        alive._replace(resource_name=b"h2".ljust(48, b"\0")).sealed(), 512
    )
    with pytest.raises(LeaseHeld, match="host 2"):
        desk.run(rindex.delete(INDEX, b"a"))
    assert names(desk) == [b"a"]
    assert private_lease(desk)[0].is_free
    desk.run(rindex.delete(INDEX, b"a", force=True))
    assert names(desk) == []


def test_a_resource_that_was_never_formatted_can_be_deleted() -> None:
    """An entry without a resource (a crash of sanlock's update) is removed."""
    desk = desk_with_index()
    offset = START + 3 * MIB
    assert desk.run(rindex.update(INDEX, b"ghost", offset)).entry == 1
    assert names(desk) == [b"ghost"]
    desk.run(rindex.delete(INDEX, b"ghost"))
    assert names(desk) == []


def test_update() -> None:
    """Update enters and removes names, and refuses places and names that do not fit."""
    desk = desk_with_index()
    offset = START + 3 * MIB
    desk.run(format_resource(b"ls", b"x", Area("/d", offset, SIZES_512)))
    assert desk.run(rindex.update(INDEX, b"x", offset)) == Located(1, b"x", offset)
    bad: tuple[tuple[bytes, int, bool, int], ...] = (
        (b"y", offset, False, -17),
        (b"y", offset, True, -278),
        (b"y", offset + 512, False, -22),
        (b"y", START, False, -22),
        (b"y", 0, False, -22),
        (b"y", START + 5000 * MIB, False, -22),
    )
    for name, where, remove, code in bad:
        with pytest.raises(RindexError) as caught:
            desk.run(rindex.update(INDEX, name, where, remove=remove))
        assert caught.value.code == code
    desk.run(rindex.update(INDEX, b"x", offset, remove=True))
    assert names(desk) == []
    assert unpack_leader(desk.disks["/d"][offset:]).lver == 0


@pytest.mark.parametrize("host_id", [0, 1])
def test_overwriting_entries(host_id: int) -> None:
    """A name is entered over another and taken away again, with the private lease or without."""
    desk = desk_with_index()
    desk.run(rindex.create(INDEX, b"a"))
    place, free = START + 2 * MIB, START + 3 * MIB
    lver = private_lease(desk)[0].lver
    resource = bytes(desk.disks["/d"][place : place + MIB])
    index = INDEX._replace(host_id=host_id)
    assert desk.run(rindex.overwrite_entry(index, place, b"b")) == Located(0, b"b", place)
    assert desk.run(rindex.overwrite_entry(index, place, b"b")) == Located(0, b"b", place)
    assert names(desk) == [b"b"]
    with pytest.raises(RindexError) as caught:
        desk.run(rindex.overwrite_entry(index, free, b"b"))
    assert caught.value.code == -17
    for outside in (START, place + 512, START + 6000 * MIB):
        for name in (b"", b"c"):
            with pytest.raises(RindexError) as caught:
                desk.run(rindex.overwrite_entry(index, outside, name))
            assert caught.value.code == -277
    desk.run(rindex.overwrite_entry(index, place))
    assert names(desk) == []
    assert desk.disks["/d"][place : place + MIB] == resource
    leader, _ = private_lease(desk)
    assert (leader.is_free, leader.lver > lver) == (True, bool(host_id))


def test_looking_at_places() -> None:
    """A place is shown as the index has it, free or not; what is none is refused."""
    desk = desk_with_index(max_resources=2)
    made = desk.run(rindex.create(INDEX, b"a"))
    assert desk.run(rindex.look_at(INDEX, made.offset)) == made
    free = made.offset + MIB
    assert desk.run(rindex.look_at(INDEX, free)) == Located(1, b"", free)
    for outside in (START, START + MIB, made.offset + 1, free + MIB, 1 << 41, 1 << 63):
        with pytest.raises(RindexError) as caught:
            desk.run(rindex.look_at(INDEX, outside))
        assert caught.value.code == -277


def test_lookups_that_fail() -> None:
    """Each way of not finding something has sanlock's number."""
    desk = desk_with_index()
    made = desk.run(rindex.create(INDEX, b"a"))
    cases: tuple[tuple[bytes | None, int | None, int], ...] = (
        (b"b", None, -2),
        (None, made.offset + MIB, -2),
        (None, made.offset + 1, -22),
        (b"a", made.offset + MIB, -278),
    )
    for name, offset, code in cases:
        with pytest.raises(RindexError) as caught:
            desk.run(rindex.lookup(INDEX, name, offset))
        assert caught.value.code == code


def test_an_entry_that_points_elsewhere_is_reported() -> None:
    """An offset that is not the entry's place is an error with place, found and expected."""
    desk = desk_with_index()
    desk.run(rindex.create(INDEX, b"a"))
    start = INDEX.area.index_entry(0)
    desk.disks["/d"][start : start + 8] = (123 * MIB).to_bytes(8, "little")
    with pytest.raises(BadRecord) as caught:
        desk.run(rindex.lookup(INDEX, b"a"))
    assert caught.value.found == 123 * MIB
    assert caught.value.expected == START + 2 * MIB


def test_the_header_is_checked_again_under_the_lease() -> None:
    """If the index is reformatted for others while we wait for its lease, nothing is written."""
    desk = desk_with_index()
    other = areas.rindex_area(b"other", SIZES_512, START)

    def swap(effect: Any) -> None:
        if isinstance(effect, Read) and effect.offset == START and effect.length == 512:
            desk.disks["/d"][START : START + MIB] = other

    desk.after = swap
    with pytest.raises(BadRecord) as caught:
        desk.run(rindex.create(INDEX, b"a"))
    assert caught.value.code == -276
    assert desk.disks["/d"][START : START + MIB] == other
    assert private_lease(desk)[0].is_free


def test_only_members_create_and_delete() -> None:
    """Without a host id there is no private lease, under which alone resources come and go."""
    desk = desk_with_index()
    guest = desk.run(rindex.open_index(SPACE, "/d", START, Timing()))
    assert guest.area == INDEX.area
    assert desk.run(rindex.lookup(guest)).entry == 0
    for protocol in (rindex.create(guest, b"a"), rindex.delete(guest, b"a")):
        with pytest.raises(ConfigError):
            desk.run(protocol)


def test_a_slow_entry_write_is_waited_for() -> None:
    """A timed-out write is only a slow one: the lease is kept until it has landed (M7)."""
    desk = desk_with_index()
    done: list[Any] = []

    def slow(effect: Any) -> DiskTimeout | None:
        if isinstance(effect, Write) and effect.offset == START + 512 and not done:
            done.append(effect)
            desk.disks["/d"][effect.offset : effect.offset + 512] = effect.data
            return DiskTimeout("/d", effect.offset, "write", 1, ticket=9)
        return None

    desk.fail = slow
    assert desk.run(rindex.create(INDEX, b"a")).entry == 0
    kinds = [e for e in desk.log if isinstance(e, Landed) or e is done[0]]
    assert kinds == [done[0], Landed(9)]
    assert private_lease(desk)[0].is_free


THIRD = START + 4 * MIB
OPERATIONS = {
    "create": lambda: rindex.create(INDEX, b"new"),
    "delete": lambda: rindex.delete(INDEX, b"gone"),
    "update": lambda: rindex.update(INDEX, b"third", THIRD),
    "rebuild": lambda: rindex.rebuild(INDEX, START + 8 * MIB),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_crash_after_any_write_leaves_a_valid_index(operation: str) -> None:
    """Wherever an operation is cut off, every entry is whole and names a resource that is there."""
    cut = 0
    while True:
        desk = desk_with_index()
        desk.run(rindex.create(INDEX, b"kept"))
        desk.run(rindex.create(INDEX, b"gone"))
        desk.run(format_resource(b"ls", b"third", Area("/d", THIRD, SIZES_512)))
        if crash_after(desk, OPERATIONS[operation](), cut):
            break
        cut += 1
        found = desk.run(rindex.list_all(INDEX))
        assert Located(0, b"kept", START + 2 * MIB) in found
        for one in found:
            leader = unpack_leader(desk.disks["/d"][one.offset :])
            assert cut_name(leader.resource_name) == one.name
    assert cut >= 6


def crash_after(desk: Desk, protocol: Any, writes: int) -> bool:
    """Run until that many writes were done; True when the protocol ended before."""
    answer: Any = None
    done = 0
    try:
        while True:
            effect = protocol.send(answer)
            if isinstance(effect, Write):
                if done == writes:
                    return False
                done += 1
            answer = desk.perform(effect)
    except StopIteration:
        return True


def test_rebuild() -> None:
    """A rebuild enters what is there, drops what is not, and changes nothing else."""
    desk = desk_with_index()
    for name in (b"a", b"b", b"c"):
        desk.run(rindex.create(INDEX, name))
    before = bytes(desk.disks["/d"])
    rebuilt = desk.run(rindex.rebuild(INDEX, len(before)))
    assert [r.name for r in rebuilt.resources] == [b"a", b"b", b"c"]
    assert rebuilt.problems == ()
    assert desk.disks["/d"][START : START + MIB] == before[START : START + MIB]
    desk.disks["/d"][START + 512 : START + 1024] = bytes(512)
    desk.run(format_resource(b"ls", b"d", Area("/d", START + 6 * MIB, SIZES_512)))
    desk.log.clear()
    rebuilt = desk.run(rindex.rebuild(INDEX, len(before)))
    assert [(r.entry, r.name) for r in rebuilt.resources] == [
        (0, b"a"),
        (1, b"b"),
        (2, b"c"),
        (4, b"d"),
    ]
    assert writes_in(desk, CONTENT) == [(512, 512)]
    assert tuple(desk.run(rindex.list_all(INDEX))) == rebuilt.resources


def test_rebuild_by_nobody() -> None:
    """A host that is no member rebuilds the same, and leaves the private lease alone."""
    desk = desk_with_index()
    for name in (b"a", b"b"):
        desk.run(rindex.create(INDEX, name))
    before = bytes(desk.disks["/d"])
    desk.disks["/d"][START + 512 : START + 1024] = bytes(512)
    desk.run(rindex.rebuild(INDEX._replace(host_id=0), len(before)))
    assert desk.disks["/d"] == before


def test_rebuild_reports_what_is_wrong() -> None:
    """Damaged and foreign resources are entered but reported; a second of a name is reported."""
    desk = desk_with_index()
    for name in (b"a", b"b"):
        desk.run(rindex.create(INDEX, name))
    disk = desk.disks["/d"]
    disk[START + 2 * MIB + 60] ^= 1  # in the lockspace name's tail: only the checksum is wrong
    desk.run(format_resource(b"other", b"f", Area("/d", START + 5 * MIB, SIZES_512)))
    desk.run(format_resource(b"ls", b"b", Area("/d", START + 6 * MIB, SIZES_512)))
    rebuilt = desk.run(rindex.rebuild(INDEX, len(disk)))
    assert [(r.entry, r.name) for r in rebuilt.resources] == [(0, b"a"), (1, b"b"), (3, b"f")]
    assert [(p.field, p.offset - START) for p in rebuilt.problems] == [
        ("checksum", 2 * MIB),
        ("space_name", 5 * MIB),
        ("resource_name", 6 * MIB),
    ]


def test_of_two_with_one_name_the_one_in_the_index_stays() -> None:
    """A leftover of a crash, in an earlier place, does not take the name of the real one."""
    desk = desk_with_index()
    for name in (b"x", b"b"):
        desk.run(rindex.create(INDEX, name))
    desk.run(format_resource(b"ls", b"b", INDEX.place(0)))
    rebuilt = desk.run(rindex.rebuild(INDEX, len(desk.disks["/d"])))
    assert [(r.entry, r.name) for r in rebuilt.resources] == [(1, b"b")]
    assert [p.offset for p in rebuilt.problems] == [INDEX.place(0).offset]


def test_rebuild_stops_at_a_read_error() -> None:
    """A place that cannot be read must not look free: nothing is changed."""
    desk = desk_with_index()
    for name in (b"a", b"b"):
        desk.run(rindex.create(INDEX, name))
    before = bytes(desk.disks["/d"][START : START + MIB])
    bad = INDEX.place(0).offset
    desk.fail = lambda effect: (
        DiskError("/d", bad, "read", 5, "EIO")
        if isinstance(effect, Read) and effect.offset == bad
        else None
    )
    with pytest.raises(DiskError):
        desk.run(rindex.rebuild(INDEX, len(desk.disks["/d"])))
    assert desk.disks["/d"][START : START + MIB] == before
    assert private_lease(desk)[0].is_free


def test_a_deletion_that_fails_gives_the_resource_back() -> None:
    """If the entry cannot be written, the resource is free for others again."""
    desk = desk_with_index()
    made = desk.run(rindex.create(INDEX, b"a"))
    desk.fail = lambda effect: (
        DiskError("/d", START + 512, "write", 5, "EIO")
        if isinstance(effect, Write) and effect.offset == START + 512
        else None
    )
    with pytest.raises(DiskError):
        desk.run(rindex.delete(INDEX, b"a"))
    leader = parse_paxos(desk.disks["/d"][made.offset :], Where("/d", made.offset), b"ls", b"a")
    assert leader.is_free
    assert leader.lver == 1
    start = INDEX.place(made.entry).host_sector(1)
    own = parse_host_sector(bytes(desk.disks["/d"][start : start + 144]), Where("/d", start))
    assert own.released
    assert pack_host_sector(own, 512) == desk.disks["/d"][start : start + 512]


def test_the_last_place_of_a_short_index() -> None:
    """max_resources limits places too."""
    desk = desk_with_index(max_resources=1)
    desk.run(rindex.create(INDEX, b"a"))
    with pytest.raises(RindexError) as caught:
        desk.run(rindex.create(INDEX, b"b"))
    assert caught.value.code == -28
