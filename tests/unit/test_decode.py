"""Decoding: whatever is on a device is recognised, and what is wrong with it is reported."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from paxoslease.disk import areas
from paxoslease.disk.decode import AreaFound, AreaKind, decode_area, decode_device
from paxoslease.disk.layout import LEGAL_SIZES, SIZES_512, SIZES_4096, Area, Sizes
from paxoslease.disk.records import (
    NO_REQUEST,
    HostSector,
    Leader,
    RindexEntry,
    bitmap_of_hosts,
    pack_host_sector,
    pack_leader,
    pack_request,
    pack_rindex_entry,
    pad_name,
    unpack_leader,
)
from paxoslease.errors import DiskError

MIB = 1 << 20
GOLDEN = Path(__file__).parent.parent / "compat" / "golden"
IMAGES = json.loads((GOLDEN / "index.json").read_text())["images"]
ALL_SIZES = [pytest.param(Sizes(*pair), id=f"{pair[0]}/{pair[1] >> 20}M") for pair in LEGAL_SIZES]


def reader(disk: bytes | bytearray) -> Callable[[int, int], bytes]:
    return lambda offset, length: bytes(disk[offset : offset + length])


def decode(disk: bytes | bytearray, offset: int = 0) -> AreaFound | None:
    return decode_area(reader(disk), "/d", offset, len(disk))


def must(disk: bytes | bytearray, offset: int = 0) -> AreaFound:
    found = decode(disk, offset)
    assert found is not None
    return found


def fields(found: AreaFound) -> list[tuple[str, int]]:
    return [(getattr(p, "field", "?"), p.offset) for p in found.all_problems]


def formatted(sizes: Sizes, kind: AreaKind) -> bytearray:
    if kind is AreaKind.RESOURCE:
        return bytearray(areas.resource_area(b"ls", b"res", sizes))
    if kind is AreaKind.CLEARED:
        return bytearray(areas.resource_area(b"ls", b"res", sizes, cleared_at_s=7))
    if kind is AreaKind.INDEX:
        lease = areas.rindex_lease_area(b"ls", sizes)
        return bytearray(areas.rindex_area(b"ls", sizes, 0) + lease)
    body, first = areas.lockspace_area(b"ls", sizes, 10)
    return bytearray(body if kind is AreaKind.UNFINISHED else first + body[len(first) :])


# -- what is there -----------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", ALL_SIZES)
@pytest.mark.parametrize("kind", [k for k in AreaKind if k is not AreaKind.UNREADABLE])
def test_every_kind_and_size_is_recognised(sizes: Sizes, kind: AreaKind) -> None:
    """A freshly formatted area of any kind and size is found as what it is, without problems."""
    found = must(formatted(sizes, kind))
    assert (found.kind, found.sizes, found.lockspace) == (kind, sizes, b"ls")
    if kind is AreaKind.UNFINISHED:
        assert fields(found) == [("magic", 0)]
    else:
        assert found.all_problems == ()
        assert found.resource == (b"res" if kind.is_resource else b"")
    assert not [r for r in found.records if r.number]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image["file"])
def test_golden_images_have_no_problems(image: dict[str, object]) -> None:
    """What sanlock wrote is right, odd as some of it looks; used records are all listed."""
    sizes = Sizes(image["sector_size"], image["align_size"])  # type: ignore[arg-type]
    offset = image["area_offset_on_device"]
    assert isinstance(offset, int)
    if image["first_sector"]:
        return
    head = (GOLDEN / str(image["file"])).read_bytes()
    disk = bytearray(offset + sizes.align_size)
    if head[:4] == (0x12212010).to_bytes(4, "little"):
        name = unpack_leader(head).space_name.rstrip(b"\0")
        disk[offset:] = areas.lockspace_area(name, sizes, 1)[0]
    disk[offset : offset + len(head)] = head
    found = must(disk, offset)
    records = image["records"]
    assert isinstance(records, list)
    if found.kind is AreaKind.INDEX:
        # The areas behind the index are other images.
        assert {f for f, _ in fields(found)} <= {"offset"}
        used = [e for r in records[1:] for e in r["entries"] if e["res_offset"]]
        entries = [r.value for r in found.records if isinstance(r.value, RindexEntry)]
        assert [e.res_offset for e in entries] == [u["res_offset"] for u in used]
        return
    assert found.all_problems == ()
    if found.kind is AreaKind.LOCKSPACE:
        used = [r["host_id_of_sector"] for r in records if r["owner_id"]]
        marked = [r["bitmap_host_ids"] for r in records if r["owner_id"]]
        assert [r.number for r in found.records] == used
        assert [list(r.hosts) for r in found.records] == marked
    else:
        used = [r["host_id"] for r in records if r.get("host_id") and r["checksum"] != "0x0"]
        assert [r.number for r in found.records if r.number] == used


def test_a_device_is_walked_through() -> None:
    """All areas of a device are found in order, of different sizes and with holes between them."""
    disk = bytearray(40 * MIB)
    disk[0:MIB] = formatted(SIZES_512, AreaKind.LOCKSPACE)
    disk[3 * MIB : 4 * MIB] = formatted(SIZES_512, AreaKind.RESOURCE)
    disk[8 * MIB : 16 * MIB] = formatted(SIZES_4096, AreaKind.LOCKSPACE)
    disk[16 * MIB : 24 * MIB] = formatted(SIZES_4096, AreaKind.CLEARED)
    disk[30 * MIB : 31 * MIB] = random.Random(1).randbytes(MIB)
    seen: list[int] = []
    found = list(decode_device(reader(disk), "/d", len(disk), progress=seen.append))
    assert [(f.kind, f.offset // MIB, f.sizes.sector_size) for f in found] == [
        (AreaKind.LOCKSPACE, 0, 512),
        (AreaKind.RESOURCE, 3, 512),
        (AreaKind.LOCKSPACE, 8, 4096),
        (AreaKind.CLEARED, 16, 4096),
    ]
    assert seen[0] == 0
    assert seen[-1] == 39 * MIB
    later = list(decode_device(reader(disk), "/d", len(disk), start=4 * MIB))
    assert [f.offset // MIB for f in later] == [8, 16]


def test_a_place_that_cannot_be_read_is_a_finding() -> None:
    """A read error is reported with its place, and the rest of the device is decoded."""
    disk = bytearray(3 * MIB)
    disk[2 * MIB :] = formatted(SIZES_512, AreaKind.RESOURCE)

    def read(offset: int, length: int) -> bytes:
        if offset < MIB:
            raise DiskError("/d", offset, "read", 5, "EIO")
        return bytes(disk[offset : offset + length])

    found = list(decode_device(read, "/d", len(disk)))
    assert [f.kind for f in found] == [AreaKind.UNREADABLE, AreaKind.RESOURCE]
    assert [p.code for p in found[0].all_problems] == [-5]


@pytest.mark.parametrize("sizes", ALL_SIZES)
@pytest.mark.parametrize("kind", [AreaKind.LOCKSPACE, AreaKind.RESOURCE, AreaKind.INDEX])
def test_a_truncated_file(sizes: Sizes, kind: AreaKind) -> None:
    """An area that is cut off anywhere behind its first record is recognised and reported."""
    area = formatted(sizes, kind)[: sizes.align_size]
    for length in (512, sizes.sector_size, sizes.align_size - 1):
        found = must(area[:length])
        assert found.kind is kind
        assert ("size", 0) in fields(found)


# -- what is wrong -----------------------------------------------------------------------------


def with_delta(host_id: int, *, bitmap: bytes = b"", **changes: object) -> bytearray:
    disk = formatted(SIZES_512, AreaKind.LOCKSPACE)
    good = unpack_leader(disk)._replace(
        owner_id=host_id, owner_generation=1, timestamp=5, resource_name=pad_name(b"h")
    )
    record = good._replace(**changes).sealed()  # type: ignore[arg-type]
    start = (host_id - 1) * 512
    disk[start : start + 512] = pack_leader(record, 512, bitmap)
    return disk


DELTA_CASES: list[tuple[str, dict[str, object]]] = [
    ("owner_id", {"owner_id": 8}),
    ("owner_id", {"owner_id": 0}),
    ("owner_generation", {"owner_generation": 0}),
    ("resource_name", {"resource_name": bytes(48)}),
    ("space_name", {"space_name": pad_name(b"other")}),
    ("version", {"version": 0x00040004}),
    ("sector_size", {"flags": 0x30}),
    ("sector_size", {"sector_size": 4096}),
    ("max_hosts", {"max_hosts": 2000}),
    ("magic", {"magic": 0}),
    ("bitmap", {"bitmap": bitmap_of_hosts((2001,))}),
]


@pytest.mark.parametrize("host_id", [1, 2, 7, 2000])
@pytest.mark.parametrize(("field", "changes"), DELTA_CASES)
def test_bad_delta_leases(host_id: int, field: str, changes: dict[str, object]) -> None:
    """Each wrong field of a delta lease is reported at its sector, and no other record is."""
    if host_id == 1 and field in ("magic", "space_name", "sector_size"):
        return  # then it is the area that is odd: see below
    found = must(with_delta(host_id, **changes))  # type: ignore[arg-type]
    assert fields(found) == [(field, (host_id - 1) * 512)]
    assert must(with_delta(host_id)).all_problems == ()


def test_a_bad_checksum() -> None:
    """A flipped bit is reported with the expected and the found checksum."""
    disk = with_delta(7)
    disk[6 * 512 + 152] ^= 4
    found = must(disk)
    (problem,) = found.all_problems
    assert (problem.field, problem.offset, problem.path) == ("checksum", 6 * 512, "/d")  # type: ignore[attr-defined]
    assert problem.code == -229


@pytest.mark.parametrize("sizes", ALL_SIZES)
def test_a_torn_lockspace(sizes: Sizes) -> None:
    """A hole in an area is one problem that names the host ids without a record."""
    disk = formatted(sizes, AreaKind.LOCKSPACE)
    size = sizes.sector_size
    disk[100 * size :] = bytes(len(disk) - 100 * size)
    (problem,) = must(disk).all_problems
    assert f"delta leases 101 to {sizes.max_hosts}" in str(problem)
    disk = formatted(sizes, AreaKind.LOCKSPACE)
    disk[-size] = 1
    assert fields(must(disk)) == [("unused sectors", sizes.max_hosts * size)]


@pytest.mark.parametrize("sizes", ALL_SIZES)
@pytest.mark.parametrize("kind", [AreaKind.LOCKSPACE, AreaKind.RESOURCE])
def test_a_damaged_first_sector(sizes: Sizes, kind: AreaKind) -> None:
    """An area whose first sector alone is gone is still recognised, and not taken for nothing."""
    disk = formatted(sizes, kind)
    disk[: sizes.sector_size] = b"\xaa" * sizes.sector_size
    found = must(disk)
    assert found.kind is kind
    assert found.sizes.sector_size == sizes.sector_size
    assert ("magic", 0) in fields(found)


def with_host(host_id: int, sector: HostSector, **changes: object) -> bytearray:
    disk = formatted(SIZES_512, AreaKind.RESOURCE)
    leader: Leader = unpack_leader(disk)._replace(lver=4, owner_id=2, owner_generation=1)
    disk[:512] = pack_leader(leader._replace(**changes).sealed(), 512)  # type: ignore[arg-type]
    start = (host_id + 1) * 512
    disk[start : start + 512] = pack_host_sector(sector, 512)
    return disk


GOOD = HostSector(4005, 2005, 9, 1, 77, 5)
HOST_CASES: list[tuple[str, HostSector]] = [
    ("mbal", GOOD._replace(mbal=4006)),
    ("bal", GOOD._replace(bal=6005)),
    ("inp", GOOD._replace(inp=2001)),
    ("inp", GOOD._replace(inp=0)),
    ("lver", GOOD._replace(lver=6)),
    ("generation", GOOD._replace(shared_generation=0)),
]


@pytest.mark.parametrize(("field", "sector"), HOST_CASES)
def test_bad_host_sectors(field: str, sector: HostSector) -> None:
    """Each wrong field of a dblock is reported at its sector; a block ahead of the next version
    too, which blocks sanlock for ever (15.5)."""
    assert fields(must(with_host(5, sector))) == [(field, 6 * 512)]


def test_good_host_sectors() -> None:
    """Blocks of the next version, zero blocks with a checksum and RELEASED ones are in order."""
    for sector in (GOOD, HostSector(released=True), GOOD._replace(released=True, lver=1)):
        found = must(with_host(5, sector))
        assert found.all_problems == ()
        assert [r.value for r in found.records if r.number] == [sector]


def test_a_block_with_a_bad_checksum() -> None:
    """A torn dblock is reported (-214); its value is not shown as if it were one."""
    disk = with_host(5, GOOD)
    disk[6 * 512] ^= 1
    found = must(disk)
    assert fields(found) == [("checksum", 6 * 512)]
    assert found.all_problems[0].code == -214
    assert [r.value for r in found.records if r.number] == [None]


LEADER_CASES: list[tuple[str, dict[str, object]]] = [
    ("num_hosts", {"num_hosts": 2001}),
    ("num_hosts", {"num_hosts": 0, "owner_id": 0}),
    ("max_hosts", {"max_hosts": 7}),
    ("owner_id", {"owner_id": 2001}),
    ("owner_id", {"owner_id": 0, "owner_generation": 0, "timestamp": 5}),
    ("owner_generation", {"owner_generation": 0}),
    ("lver", {"lver": 0}),
    ("flags", {"flags": 0x11}),
    ("write_id", {"write_id": 2001}),
    ("space_name", {"space_name": bytes(48)}),
    ("resource_name", {"resource_name": bytes(48)}),
]


@pytest.mark.parametrize(("field", "changes"), LEADER_CASES)
def test_bad_leaders(field: str, changes: dict[str, object]) -> None:
    """Each wrong field of a paxos leader is reported."""
    found = must(with_host(5, HostSector(), **changes))
    expected = "num_hosts" if field == "max_hosts" else field
    assert fields(found) == [(expected, 0)]


def test_num_hosts_below_an_id_in_use() -> None:
    """A host whose sector ballots do not look at is reported (15.5: blocked)."""
    found = must(with_host(5, GOOD, num_hosts=4))
    assert fields(found) == [("host id", 6 * 512)]


def test_bad_requests() -> None:
    """A missing request record tells a half-written resource; a strange mode is reported."""
    disk = formatted(SIZES_512, AreaKind.RESOURCE)
    disk[512:1024] = bytes(512)
    assert fields(must(disk)) == [("magic", 512)]
    disk[512:1024] = pack_request(NO_REQUEST._replace(force_mode=9), 512)
    assert fields(must(disk)) == [("force_mode", 512)]


def test_an_lvb_is_no_problem_other_bytes_are() -> None:
    """The sector of the LVB may hold anything; the sectors behind it are unused."""
    disk = formatted(SIZES_512, AreaKind.RESOURCE)
    disk[2002 * 512 : 2003 * 512] = b"v" * 512
    assert must(disk).all_problems == ()
    disk[2003 * 512] = 1
    assert fields(must(disk)) == [("unused sectors", 2002 * 512)]


# -- indexes -----------------------------------------------------------------------------------


def with_entries(**entries: RindexEntry) -> bytearray:
    """Return a device: index at 0, resources named a and b in its first two places."""
    disk = bytearray(6 * MIB)
    disk[: 2 * MIB] = formatted(SIZES_512, AreaKind.INDEX)
    for i, name in enumerate((b"a", b"b")):
        start = (2 + i) * MIB
        disk[start : start + MIB] = areas.resource_area(b"ls", name, SIZES_512)
    everything = {"e0": entry(0, b"a"), "e1": entry(1, b"b"), **entries}
    for key, value in everything.items():
        start = Area("/d", 0, SIZES_512).index_entry(int(key[1:]))
        disk[start : start + 64] = pack_rindex_entry(value)
    return disk


def entry(number: int, name: bytes) -> RindexEntry:
    return RindexEntry((2 + number) * MIB, 0, 0, pad_name(name))


INDEX_CASES: list[tuple[str, str, RindexEntry]] = [
    ("res_offset", "e1", entry(0, b"b")),
    ("res_offset", "e1", RindexEntry(0, 0, 0, pad_name(b"b"))),
    ("name", "e1", entry(1, b"")),
    ("name", "e1", entry(1, b"a")),
    ("resource_name", "e1", entry(1, b"c")),
    ("magic", "e2", entry(2, b"c")),
    ("offset", "e4", entry(4, b"c")),
    ("entry", "e4096", entry(4096, b"c")),
]


@pytest.mark.parametrize(("field", "key", "value"), INDEX_CASES)
def test_bad_index_entries(field: str, key: str, value: RindexEntry) -> None:
    """An entry that points elsewhere, repeats a name, or whose resource is another is reported."""
    found = must(with_entries(**{key: value}))
    assert [f for f, _ in fields(found)] == [field]
    assert must(with_entries()).all_problems == ()


def test_a_bad_index_header_and_lease() -> None:
    """An index at another offset than it says, too many entries, and no private lease."""
    disk = bytearray(MIB) + with_entries()
    assert ("rx_offset", MIB) in fields(must(disk, MIB))
    disk = with_entries()
    disk[16:20] = (16001).to_bytes(4, "little")
    assert fields(must(disk)) == [("max_resources", 0)]
    disk = with_entries()
    disk[MIB : 2 * MIB] = bytes(MIB)
    assert fields(must(disk)) == [("magic", MIB)]


def test_a_resource_that_is_in_no_index() -> None:
    """What a crash of a creation leaves behind is told, once the whole device was looked at."""
    disk = with_entries(e1=RindexEntry(0, 0, 0, bytes(48)))
    found = list(decode_device(reader(disk), "/d", len(disk)))
    assert [p for f in found for p in f.all_problems] == []
    assert found[-1].notes == ("resource b at 3145728 is not in the index at 0",)
    complete = list(decode_device(reader(with_entries()), "/d", 6 * MIB))
    assert [f.notes for f in complete] == [()] * 4


# -- hostile devices ---------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([k for k in AreaKind if k is not AreaKind.UNREADABLE]),
    sizes=st.sampled_from([Sizes(*pair) for pair in LEGAL_SIZES[:2]]),
    patches=st.lists(st.tuples(st.integers(0, 300_000), st.binary(min_size=1, max_size=64))),
    cut=st.none() | st.integers(1, 2 * MIB),
)
def test_hostile_bytes(
    kind: AreaKind, sizes: Sizes, patches: list[tuple[int, bytes]], cut: int | None
) -> None:
    """However an area is damaged or cut off, decoding ends with findings, not with an error."""
    disk = formatted(sizes, kind)
    for where, data in patches:
        where = where % 6000 if where % 2 else where
        disk[where : where + len(data)] = data
    disk = disk[:cut] if cut is not None else disk
    for found in decode_device(reader(disk), "/d", len(disk)):
        for problem in found.all_problems:
            assert str(problem)
            assert problem.code < 0
