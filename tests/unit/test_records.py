"""Records: round trips, checks and their numbers, and bytes that somebody else wrote."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from paxoslease.disk import records
from paxoslease.disk.layout import LEGAL_SIZES, SIZES_512, SIZES_4096, Sizes
from paxoslease.disk.records import (
    DELTA_MAGIC,
    NEVER_USED,
    PAXOS_MAGIC,
    HostSector,
    Leader,
    Request,
    RindexEntry,
    RindexHeader,
    Where,
    bitmap_of,
    bitmap_of_hosts,
    cut_name,
    delta_at_format,
    hosts_of_bitmap,
    overwrite_name,
    pack_host_sector,
    pack_leader,
    pack_request,
    pack_rindex_entry,
    pack_rindex_header,
    pad_name,
    parse_delta,
    parse_host_sector,
    parse_paxos,
    parse_request,
    parse_rindex_header,
    paxos_at_format,
    same_name,
    unpack_leader,
    unpack_rindex_entry,
    unpack_rindex_header,
)
from paxoslease.errors import BadRecord

HERE = Where("/dev/x", 1 << 20)
U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
FIELD = st.binary(min_size=48, max_size=48)
NAMES = st.binary(min_size=1, max_size=48).filter(lambda name: b"\0" not in name)
SECTORS = st.sampled_from([512, 4096])

LEADERS = st.builds(
    Leader,
    *(U32, U32, U32, U32),
    *(U64, U64, U64, U64, U64),
    *(FIELD, FIELD),
    *(U64, U64, U32, U16, U16, U64, U64, U64),
).map(Leader.sealed)
HOSTS = st.builds(
    HostSector, *([U64] * 6), released=st.booleans(), shared_generation=st.none() | U64
)


@given(LEADERS, SECTORS, st.none() | st.binary(min_size=256, max_size=256))
def test_leader_round_trip(leader: Leader, sector_size: int, bitmap: bytes | None) -> None:
    """A leader record comes back from its sector with every byte, bitmap included."""
    data = pack_leader(leader, sector_size, bitmap or b"")
    assert len(data) == sector_size
    assert unpack_leader(data) == leader
    assert bitmap_of(data) == (bitmap or bytes(256))
    assert not any(data[200:256])
    assert not any(data[512:])


@given(LEADERS, U64)
def test_an_unsealed_leader_is_not_packed(leader: Leader, lver: int) -> None:
    """A record whose checksum does not belong to it never reaches a buffer."""
    changed = leader._replace(lver=lver)
    if changed.sealed() != changed:
        with pytest.raises(AssertionError):
            pack_leader(changed, 512)


@given(HOSTS, SECTORS)
def test_host_sector_round_trip(sector: HostSector, sector_size: int) -> None:
    """A host sector comes back from its bytes, also with a mode block and RELEASED."""
    data = pack_host_sector(sector, sector_size)
    assert len(data) == sector_size
    assert parse_host_sector(data, HERE) == sector


@given(U64, U32, U32)
def test_request_round_trip(lver: int, mode: int, version: int) -> None:
    """A request comes back from its sector, whatever stands in the padding."""
    request = Request(records.REQUEST_MAGIC, 0x00010000 | version & 0xFFFF, lver, mode)
    data = pack_request(request, 512)
    assert parse_request(data, HERE) == request
    assert parse_request(data[:20] + b"junk" + data[24:], HERE) == request


@given(st.sampled_from(LEGAL_SIZES), U32, U32, FIELD)
def test_rindex_header_round_trip(pair: tuple[int, int], most: int, junk: int, name: bytes) -> None:
    """An index header comes back from its sector, and states its sizes."""
    sizes = Sizes(*pair)
    header = RindexHeader(
        records.RINDEX_MAGIC,
        records.RINDEX_VERSION,
        sizes.rindex_flag,
        sizes.sector_size,
        most,
        junk,
        HERE.offset,
        name,
    )
    data = pack_rindex_header(header, sizes.sector_size)
    assert parse_rindex_header(data, HERE, cut_name(name)) == header
    assert header.sizes == sizes


@given(st.builds(RindexEntry, U64, U32, U32, FIELD), st.integers(0, 7))
def test_rindex_entry_round_trip(entry: RindexEntry, place: int) -> None:
    """An index entry comes back from any place of its sector."""
    data = bytes(64 * place) + pack_rindex_entry(entry)
    assert unpack_rindex_entry(data, 64 * place) == entry
    assert entry.is_free is (entry.res_offset == 0 and entry.name[0] == 0)


@given(st.frozensets(st.integers(1, 2048)))
def test_bitmap_round_trip(host_ids: frozenset[int]) -> None:
    """The bitmap of a set of hosts names exactly these hosts."""
    bitmap = bitmap_of_hosts(host_ids)
    assert hosts_of_bitmap(bitmap) == tuple(sorted(host_ids))


def test_bitmap_bits() -> None:
    """Host H is byte (H-1)/8, bit (H-1)%8, least significant first."""
    assert bitmap_of_hosts((1, 9))[:2] == b"\x01\x01"
    assert bitmap_of_hosts((8,))[0] == 0x80
    assert bitmap_of_hosts((2000,))[249] == 0x80


# -- hostile bytes -----------------------------------------------------------------------------

HOSTILE = st.binary(min_size=512, max_size=512)
MAGICS = st.sampled_from([0, 0x12212010, 0x06152010, 0x11282016, 0x08292011, 0x01042018, 2**32 - 1])
VERSIONS = st.sampled_from(
    [0, 0x00030004, 0x0003FFFF, 0x00060004, 0x00010001, 0x00010002, 2**32 - 1]
)
PLAUSIBLE = st.builds(
    lambda magic, version, rest: (
        magic.to_bytes(4, "little") + version.to_bytes(4, "little") + rest[8:]
    ),
    MAGICS,
    VERSIONS,
    HOSTILE,
)


def _resealed(data: bytes) -> bytes:
    leader = unpack_leader(data).sealed()
    return data[:168] + leader.checksum.to_bytes(4, "little") + data[172:]


PARSERS = {
    "delta": lambda d: parse_delta(d, HERE, b"ls"),
    "delta, any": lambda d: parse_delta(d, HERE, None),
    "paxos": lambda d: parse_paxos(d, HERE, b"ls", b"res", 7),
    "paxos, any": lambda d: parse_paxos(d, HERE, None, None),
    "host": lambda d: parse_host_sector(d, HERE),
    "request": lambda d: parse_request(d, HERE),
    "rindex": lambda d: parse_rindex_header(d, HERE, b"ls"),
    "rindex, any": lambda d: parse_rindex_header(d, HERE, None),
}


@pytest.mark.parametrize("parser", PARSERS)
@given(data=HOSTILE | PLAUSIBLE | PLAUSIBLE.map(_resealed))
def test_hostile_bytes(parser: str, data: bytes) -> None:
    """Whatever stands on the disk, a parser returns a record or raises BadRecord, nothing else."""
    failure: BadRecord | None = None
    try:
        found = PARSERS[parser](data)
    except BadRecord as error:
        failure = error
    if failure is not None:
        assert (failure.path, failure.offset) == HERE
        assert failure.field
        assert str(failure)
        assert -290 < failure.code <= -210
    elif isinstance(found, Leader):
        assert found.sealed() == found
        assert not parser.startswith("paxos") or found.sizes is not None


@given(data=PLAUSIBLE.map(_resealed))
def test_accessors_of_hostile_leaders(data: bytes) -> None:
    """The derived values of a leader can be asked of any bytes."""
    leader = unpack_leader(data)
    assert leader.align_size in (0, 1 << 20, 2 << 20, 4 << 20, 8 << 20)
    assert leader.sizes is None or leader.sizes in LEGAL_SIZES
    assert unpack_rindex_header(data).sizes in (None, *LEGAL_SIZES)


# -- the checks, in order ----------------------------------------------------------------------

PAXOS = paxos_at_format(b"ls", b"res", SIZES_512)._replace(
    lver=3, owner_id=2, owner_generation=5, timestamp=77
)
DELTA = delta_at_format(b"ls", SIZES_512, 10)


def _code(parse: object, leader: Leader, *, seal: bool = True, **changed: object) -> int:
    leader = leader._replace(**changed)  # type: ignore[arg-type]
    data = pack_leader(leader.sealed(), 512)
    if not seal:
        data = data[:168] + b"\0\0\0\0" + data[172:]
    with pytest.raises(BadRecord) as caught:
        parse(data)  # type: ignore[operator]
    assert caught.value.path == HERE.path
    return caught.value.code


def test_numbers_of_bad_paxos_leaders() -> None:
    """Each check of 5.2 has sanlock's number, and an earlier one hides a later one."""

    def parse(data: bytes) -> Leader:
        return parse_paxos(data, HERE, b"ls", b"res", 7)

    assert parse(pack_leader(PAXOS.sealed(), 512)).lver == 3
    wrong = {"num_hosts": 6, "resource_name": pad_name(b"x"), "space_name": pad_name(b"y")}
    assert _code(parse, PAXOS, seal=False, magic=DELTA_MAGIC, version=0, **wrong) == -223
    assert _code(parse, PAXOS, magic=records.CLEARED_MAGIC) == -223
    assert _code(parse, PAXOS, seal=False, version=0x00070004, **wrong) == -224
    assert _code(parse, PAXOS, seal=False, **wrong) == -226
    del wrong["space_name"]
    assert _code(parse, PAXOS, seal=False, **wrong) == -227
    del wrong["resource_name"]
    assert _code(parse, PAXOS, seal=False, **wrong) == -228
    assert _code(parse, PAXOS, seal=False) == -229
    assert _code(parse, PAXOS, sector_size=1024) == -230
    assert _code(parse, PAXOS, flags=0x30) == -230
    assert _code(parse, PAXOS, num_hosts=2001) == -228
    assert _code(parse, PAXOS, max_hosts=1999) == -228


def test_numbers_of_bad_delta_leases() -> None:
    """Each check of 4.2 has sanlock's number, and an earlier one hides a later one."""

    def parse(data: bytes) -> Leader:
        return parse_delta(data, HERE, b"ls")

    assert _code(parse, DELTA, seal=False, magic=PAXOS_MAGIC, version=0) == -223
    assert _code(parse, DELTA, seal=False, version=4, space_name=pad_name(b"y")) == -224
    assert _code(parse, DELTA, seal=False, space_name=pad_name(b"lsx")) == -226
    assert _code(parse, DELTA, seal=False) == -229


def test_minor_versions_are_ignored() -> None:
    """A record of another minor version is read (disk-format 2)."""
    old = DELTA._replace(version=0x00030001, flags=0).sealed()
    assert parse_delta(pack_leader(old, 512), HERE, b"ls").align_size == 1 << 20
    assert old._replace(sector_size=4096).sizes == SIZES_4096


def test_numbers_of_other_bad_records() -> None:
    """Requests, dblocks and index headers report sanlock's numbers."""
    for field, code in (("magic", -270), ("version", -271)):
        data = pack_request(records.NO_REQUEST._replace(**{field: 7}), 512)
        with pytest.raises(BadRecord) as caught:
            parse_request(data, HERE)
        assert (caught.value.field, caught.value.code) == (field, code)
    block = bytearray(pack_host_sector(HostSector(1, 1, 1, 1, 1, 1), 512))
    block[3] ^= 1
    with pytest.raises(BadRecord) as caught:
        parse_host_sector(bytes(block), HERE)
    assert caught.value.code == -214
    good = RindexHeader(
        records.RINDEX_MAGIC, records.RINDEX_VERSION, 1, 512, 0, 0, HERE.offset, pad_name(b"ls")
    )
    changes: tuple[tuple[str, object, int], ...] = (
        ("magic", 0, -274),
        ("version", 0x00020000, -275),
        ("lockspace_name", pad_name(b"lt"), -276),
        ("rx_offset", 0, -277),
        ("flags", 3, -230),
    )
    for field, value, code in changes:
        bad = good._replace(**{field: value})  # type: ignore[arg-type]
        with pytest.raises(BadRecord) as caught:
            parse_rindex_header(pack_rindex_header(bad, 512), HERE, b"ls")
        assert caught.value.code == code


@given(HOSTS, st.integers(0, 47), st.integers(0, 7))
def test_every_bit_of_a_dblock_is_checked(sector: HostSector, byte: int, bit: int) -> None:
    """A flipped bit in the covered part of a used dblock is noticed (rule M6)."""
    if sector.is_zero_dblock:
        return
    data = bytearray(pack_host_sector(sector, 512))
    data[byte] ^= 1 << bit
    with pytest.raises(BadRecord):
        parse_host_sector(bytes(data), HERE)


def test_dblocks_of_sanlock_that_look_odd() -> None:
    """A zero dblock is accepted without and with its checksum, RELEASED or not (rule M14)."""
    assert pack_host_sector(NEVER_USED, 512) == bytes(512)
    assert parse_host_sector(bytes(512), HERE) == NEVER_USED
    zeroed = HostSector(released=True)
    data = pack_host_sector(zeroed, 512)
    assert int.from_bytes(data[48:52], "little") == records.ZERO_DBLOCK_CHECKSUM
    assert parse_host_sector(data, HERE) == zeroed


# -- names -------------------------------------------------------------------------------------


@given(FIELD, FIELD)
def test_names_are_compared_like_strncmp(a: bytes, b: bytes) -> None:
    """Only what stands before the first zero byte counts."""
    assert same_name(a, b) is (a.partition(b"\0")[0] == b.partition(b"\0")[0])


@given(FIELD, NAMES)
def test_a_host_name_is_stored_over_the_old_one(old: bytes, name: bytes) -> None:
    """At most 47 bytes and a zero are stored, the rest of the field stays (disk-format 4.4)."""
    new = overwrite_name(old, name)
    stored = name[:47]
    assert len(new) == 48
    assert cut_name(new) == stored
    assert new[len(stored) + 1 :] == old[len(stored) + 1 :]


def test_num_hosts_at_format() -> None:
    """A formatter turns 0 and too large values of num_hosts into max_hosts (5.3)."""
    for given_hosts, written in ((0, 2000), (2001, 2000), (64, 64), (-1, 2000)):
        leader = paxos_at_format(b"ls", b"r", SIZES_512, given_hosts)
        assert (leader.num_hosts, leader.max_hosts) == (written, 2000)
