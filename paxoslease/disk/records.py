"""Every single record on disk: parse, validate, pack and checksum.

Source: spec/disk-format.md. Integers are little-endian. Records are immutable values; two leader
records are "entirely equal" (spec/algorithms.md 1) exactly when they compare equal, because the
names are kept with whatever stands behind their first zero byte. Whole areas as NumPy views are in
`areas.py`.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, NamedTuple

from paxoslease.disk.layout import (
    ALIGN_FLAGS,
    ALIGN_OF_FLAG,
    ALIGN_OF_RINDEX_FLAG,
    BITMAP_BYTES,
    LEGAL_SIZES,
    MIB,
    NAME_BYTES,
    Sizes,
)
from paxoslease.disk.native import crc32c
from paxoslease.errors import BadRecord

DELTA_MAGIC: Final = 0x12212010
PAXOS_MAGIC: Final = 0x06152010
CLEARED_MAGIC: Final = 0x11282016
REQUEST_MAGIC: Final = 0x08292011
RINDEX_MAGIC: Final = 0x01042018

DELTA_VERSION: Final = 0x00030004
PAXOS_VERSION: Final = 0x00060004
REQUEST_VERSION: Final = 0x00010001
RINDEX_VERSION: Final = 0x00010002

SHORT_HOLD: Final = 0x1  # leader flag
RELEASED: Final = 0x1  # dblock flag
SHARED: Final = 0x1  # mode block flag

FORCE: Final = 1
GRACEFUL: Final = 2

_LEADER = struct.Struct("<IIIIQQQQQ48s48sQQIHHQQQ")
_DBLOCK = struct.Struct("<QQQQQQII")
_MODE = struct.Struct("<IIQ")
_REQUEST = struct.Struct("<IIQI")
_RINDEX_HEADER = struct.Struct("<IIIIIIQ48s")
_RINDEX_ENTRY = struct.Struct("<QII48s")

LEADER_BYTES: Final = 200
LEADER_CRC_BYTES: Final = 168
BITMAP_OFFSET: Final = 256
DBLOCK_BYTES: Final = 56
DBLOCK_CRC_BYTES: Final = 48
MODE_OFFSET: Final = 128
HOST_SECTOR_BYTES: Final = 144  # dblock, ignored bytes, mode block
ZERO_DBLOCK_CHECKSUM: Final = 0xCB5AD842

assert _LEADER.size == LEADER_BYTES
assert _DBLOCK.size == DBLOCK_BYTES
assert _MODE.size == HOST_SECTOR_BYTES - MODE_OFFSET
assert _RINDEX_HEADER.size == 80
assert _RINDEX_ENTRY.size == 64


def same_name(a: bytes, b: bytes) -> bool:
    """Compare two names as sanlock does: like strncmp over 48 bytes."""
    return cut_name(a) == cut_name(b)


def cut_name(raw: bytes) -> bytes:
    """Return a name without its first zero byte and what follows."""
    return raw.split(b"\0", 1)[0]


def pad_name(name: bytes) -> bytes:
    """Return a name as the 48-byte field that a formatter writes."""
    assert len(name) <= NAME_BYTES
    return name.ljust(NAME_BYTES, b"\0")


def overwrite_name(old: bytes, name: bytes) -> bytes:
    """Return the host name field after a host stored `name` over `old`.

    At most 47 bytes and one zero byte are stored; the rest of the field stays
    (spec/disk-format.md 4.4).
    """
    stored = name[: NAME_BYTES - 1] + b"\0"
    return stored + old[len(stored) :]


# -- leader records ----------------------------------------------------------------------------


class Leader(NamedTuple):
    """A leader record: of a delta lease (4.2) or of a paxos lease (5.2). All 200 bytes of it."""

    magic: int
    version: int
    flags: int
    sector_size: int
    num_hosts: int
    max_hosts: int
    owner_id: int
    owner_generation: int
    lver: int
    space_name: bytes
    resource_name: bytes
    timestamp: int
    unused1: int
    checksum: int
    unused2: int
    io_timeout: int
    write_id: int
    write_generation: int
    write_timestamp: int

    @property
    def is_free(self) -> bool:
        """Tell whether nobody owns the lease."""
        return self.timestamp == 0

    @property
    def is_short_hold(self) -> bool:
        """Tell whether the owner holds it only for the moment it needs to get it shared."""
        return bool(self.flags & SHORT_HOLD)

    @property
    def align_size(self) -> int:
        """Return the align size in bytes, 0 when the flags name none or several."""
        flag = self.flags & ALIGN_FLAGS
        if flag == 0:  # written before release 3.7
            return {512: MIB, 4096: 8 * MIB}.get(self.sector_size, 0)
        return ALIGN_OF_FLAG.get(flag, 0)

    @property
    def sizes(self) -> Sizes | None:
        """Return the sizes that the record states, None when they are not a legal pair."""
        pair = (self.sector_size, self.align_size)
        return Sizes(*pair) if pair in LEGAL_SIZES else None

    def sealed(self) -> Leader:
        """Return the record with the checksum that belongs to its content."""
        return self._replace(checksum=crc32c(_LEADER.pack(*self)[:LEADER_CRC_BYTES]))


def pack_leader(leader: Leader, sector_size: int, bitmap: bytes = b"") -> bytes:
    """Return the sector of a sealed leader record, with a delta lease's bitmap if there is one."""
    raw = _LEADER.pack(*leader)
    assert crc32c(raw[:LEADER_CRC_BYTES]) == leader.checksum, (
        "a leader is sealed before it is packed"
    )
    assert len(bitmap) in (0, BITMAP_BYTES)
    if bitmap:
        raw = raw.ljust(BITMAP_OFFSET, b"\0") + bitmap
    return raw.ljust(sector_size, b"\0")


def unpack_leader(data: bytes) -> Leader:
    """Return the leader record in the first 200 bytes, whatever they are."""
    return Leader._make(_LEADER.unpack_from(data))


def leader_checksum(data: bytes) -> int:
    """Return the checksum that a leader record with these bytes should have."""
    return crc32c(data[:LEADER_CRC_BYTES])


def bitmap_of(data: bytes) -> bytes:
    """Return the host id bitmap of a delta lease's sector."""
    return data[BITMAP_OFFSET : BITMAP_OFFSET + BITMAP_BYTES]


def bitmap_of_hosts(host_ids: frozenset[int] | tuple[int, ...]) -> bytes:
    """Return the bitmap in which exactly these hosts' bits are set (4.3)."""
    bits = bytearray(BITMAP_BYTES)
    for host_id in host_ids:
        bits[(host_id - 1) // 8] |= 1 << (host_id - 1) % 8
    return bytes(bits)


def hosts_of_bitmap(bitmap: bytes) -> tuple[int, ...]:
    """Return the host ids whose bits are set, in order."""
    return tuple(
        8 * byte + bit + 1
        for byte, value in enumerate(bitmap)
        if value
        for bit in range(8)
        if value >> bit & 1
    )


class Where(NamedTuple):
    """Where bytes came from, for error messages."""

    path: str
    offset: int

    def bad(self, record: str, field: str, expected: object, found: object, code: int) -> BadRecord:
        """Return the error for a field that is not what it should be."""
        return BadRecord(self.path, self.offset, record, field, expected, found, code)


def parse_delta(data: bytes, where: Where, space_name: bytes | None) -> Leader:
    """Return a delta lease record after the checks of 4.2.

    `space_name` None leaves the name unchecked (inspection). Raises BadRecord with sanlock's
    number: -223 magic, -224 version, -226 lockspace name, -229 checksum.
    """
    leader = unpack_leader(data)
    check_delta_version(leader, where)
    if space_name is not None and not same_name(leader.space_name, space_name):
        raise where.bad("delta lease", "space_name", space_name, cut_name(leader.space_name), -226)
    _check_leader_checksum(data, leader, where, "delta lease")
    return leader


def check_delta_version(leader: Leader, where: Where) -> None:
    """Check that a record is a delta lease of a known format. Raises BadRecord (-223, -224)."""
    _check_version(leader, where, "delta lease", (DELTA_MAGIC,), DELTA_VERSION)


def parse_paxos(
    data: bytes,
    where: Where,
    space_name: bytes | None,
    resource_name: bytes | None,
    host_id: int = 0,
) -> Leader:
    """Return a paxos lease's leader record after the checks of 5.2, in that order.

    A name of None is not checked. Raises BadRecord: -223 magic (also of a cleared lease), -224
    version, -226 and -227 names, -228 num_hosts below our host id, -229 checksum, -230 sizes.
    """
    leader = unpack_leader(data)
    record = "paxos leader"
    _check_version(leader, where, record, (PAXOS_MAGIC,), PAXOS_VERSION)
    if space_name is not None and not same_name(leader.space_name, space_name):
        raise where.bad(record, "space_name", space_name, cut_name(leader.space_name), -226)
    if resource_name is not None and not same_name(leader.resource_name, resource_name):
        found = cut_name(leader.resource_name)
        raise where.bad(record, "resource_name", resource_name, found, -227)
    if leader.num_hosts < host_id:
        raise where.bad(record, "num_hosts", f"at least {host_id}", leader.num_hosts, -228)
    _check_leader_checksum(data, leader, where, record)
    sizes = leader.sizes
    if sizes is None:
        found_sizes = f"{leader.sector_size} with flags {leader.flags:#x}"
        raise where.bad(record, "sector_size", "a legal pair of sizes", found_sizes, -230)
    if leader.num_hosts > sizes.max_hosts or leader.max_hosts != sizes.max_hosts:
        found_hosts = f"{leader.num_hosts}, max_hosts {leader.max_hosts}"
        raise where.bad(record, "num_hosts", f"at most {sizes.max_hosts}", found_hosts, -228)
    return leader


def _check_version(
    leader: Leader, where: Where, record: str, magics: tuple[int, ...], version: int
) -> None:
    if leader.magic not in magics:
        expected = " or ".join(f"{magic:#010x}" for magic in magics)
        raise where.bad(record, "magic", expected, f"{leader.magic:#010x}", -223)
    if leader.version >> 16 != version >> 16:
        raise where.bad(record, "version", f"{version:#010x}", f"{leader.version:#010x}", -224)


def _check_leader_checksum(data: bytes, leader: Leader, where: Where, record: str) -> None:
    expected = leader_checksum(data)
    if leader.checksum != expected:
        raise where.bad(record, "checksum", f"{expected:#010x}", f"{leader.checksum:#010x}", -229)


_BLANK: Final = Leader._make(_LEADER.unpack(bytes(LEADER_BYTES)))


def delta_at_format(space_name: bytes, sizes: Sizes, io_timeout: int) -> Leader:
    """Return the record that a formatter writes for every host id (4.6)."""
    return _BLANK._replace(
        magic=DELTA_MAGIC,
        version=DELTA_VERSION,
        flags=sizes.align_flag,
        sector_size=sizes.sector_size,
        max_hosts=1,
        space_name=pad_name(space_name),
        io_timeout=io_timeout,
    ).sealed()


def paxos_at_format(
    space_name: bytes,
    resource_name: bytes,
    sizes: Sizes,
    num_hosts: int = 0,
    *,
    cleared_at_s: int | None = None,
) -> Leader:
    """Return the leader record of a new resource (5.3), or of a cleared one (5.4)."""
    if not 1 <= num_hosts <= sizes.max_hosts:
        num_hosts = sizes.max_hosts
    return _BLANK._replace(
        magic=PAXOS_MAGIC if cleared_at_s is None else CLEARED_MAGIC,
        version=PAXOS_VERSION,
        flags=sizes.align_flag,
        sector_size=sizes.sector_size,
        num_hosts=num_hosts,
        max_hosts=sizes.max_hosts,
        space_name=pad_name(space_name),
        resource_name=pad_name(resource_name),
        write_timestamp=cleared_at_s or 0,
    ).sealed()


# -- host sectors ------------------------------------------------------------------------------


class HostSector(NamedTuple):
    """A host's sector in a resource: its dblock (5.6) and its mode block (5.7).

    mbal, bal, inp, inp2, inp3, lver: the dblock of Disk Paxos; `inp` is a host id, `inp2` its
    generation, `inp3` its monotonic seconds. `released` is the dblock's flag. `shared_generation`
    is the generation in a SHARED mode block, None when the host does not hold the lease shared.
    """

    mbal: int = 0
    bal: int = 0
    inp: int = 0
    inp2: int = 0
    inp3: int = 0
    lver: int = 0
    released: bool = False
    shared_generation: int | None = None

    @property
    def value(self) -> tuple[int, int, int]:
        """Return the proposed owner: (inp, inp2, inp3)."""
        return (self.inp, self.inp2, self.inp3)

    @property
    def is_zero_dblock(self) -> bool:
        """Tell whether the dblock proposes nothing at all."""
        return self[:6] == (0, 0, 0, 0, 0, 0)


NEVER_USED: Final = HostSector()


@lru_cache(maxsize=4096)
def pack_host_sector(sector: HostSector, sector_size: int) -> bytes:
    """Return a host sector's bytes; the unnamed ones are zero."""
    body = _DBLOCK.pack(*sector[:6], 0, 0)
    if sector == NEVER_USED:
        return bytes(sector_size)
    checksum = crc32c(body[:DBLOCK_CRC_BYTES])
    raw = _DBLOCK.pack(*sector[:6], checksum, RELEASED if sector.released else 0)
    if sector.shared_generation is not None:
        raw = raw.ljust(MODE_OFFSET, b"\0") + _MODE.pack(SHARED, 0, sector.shared_generation)
    return raw.ljust(sector_size, b"\0")


def parse_host_sector(data: bytes, where: Where) -> HostSector:
    """Return a host sector, or raise BadRecord (-214) for a bad dblock checksum (rule M6)."""
    sector, expected, found = _unpack_host_sector(data[:HOST_SECTOR_BYTES])
    if expected != found:
        raise where.bad("dblock", "checksum", f"{expected:#010x}", f"{found:#010x}", -214)
    return sector


def unpack_host_sector(data: bytes) -> tuple[HostSector, int]:
    """Return a host sector and the checksum in its dblock, whatever they are."""
    sector, _, found = _unpack_host_sector(data[:HOST_SECTOR_BYTES])
    return sector, found


@lru_cache(maxsize=8192)
def _unpack_host_sector(data: bytes) -> tuple[HostSector, int, int]:
    mbal, bal, inp, inp2, inp3, lver, found, flags = _DBLOCK.unpack_from(data)
    mode_flags, _, generation = _MODE.unpack_from(data, MODE_OFFSET)
    expected = crc32c(data[:DBLOCK_CRC_BYTES])
    # A dblock whose checked fields and checksum are all zero was never written (5.6).
    if found == mbal == bal == inp == lver == 0:
        expected = 0
    shared = generation if mode_flags & SHARED else None
    sector = HostSector(mbal, bal, inp, inp2, inp3, lver, bool(flags & RELEASED), shared)
    return sector, expected, found


# -- request records ---------------------------------------------------------------------------


class Request(NamedTuple):
    """A request to the holder of a lease to give it up (5.5)."""

    magic: int
    version: int
    lver: int
    force_mode: int


NO_REQUEST: Final = Request(REQUEST_MAGIC, REQUEST_VERSION, 0, 0)


def pack_request(request: Request, sector_size: int) -> bytes:
    """Return a request record's sector."""
    return _REQUEST.pack(*request).ljust(sector_size, b"\0")


def parse_request(data: bytes, where: Where) -> Request:
    """Return a request record, or raise BadRecord: -270 magic, -271 version."""
    request = Request._make(_REQUEST.unpack_from(data))
    if request.magic != REQUEST_MAGIC:
        raise where.bad(
            "request", "magic", f"{REQUEST_MAGIC:#010x}", f"{request.magic:#010x}", -270
        )
    if request.version >> 16 != REQUEST_VERSION >> 16:
        expected = f"{REQUEST_VERSION:#010x}"
        raise where.bad("request", "version", expected, f"{request.version:#010x}", -271)
    return request


# -- the resource index ------------------------------------------------------------------------


class RindexHeader(NamedTuple):
    """The header of a resource index (6.1). `max_resources` 0 stands for the format's limit."""

    magic: int
    version: int
    flags: int
    sector_size: int
    max_resources: int
    unused: int
    rx_offset: int
    lockspace_name: bytes

    @property
    def sizes(self) -> Sizes | None:
        """Return the sizes that the header states, None when they are not a legal pair."""
        pair = (self.sector_size, ALIGN_OF_RINDEX_FLAG.get(self.flags & 0xF, 0))
        return Sizes(*pair) if pair in LEGAL_SIZES else None


def pack_rindex_header(header: RindexHeader, sector_size: int) -> bytes:
    """Return the sector of an index header."""
    return _RINDEX_HEADER.pack(*header).ljust(sector_size, b"\0")


def unpack_rindex_header(data: bytes) -> RindexHeader:
    """Return the index header in the first 80 bytes, whatever they are."""
    return RindexHeader._make(_RINDEX_HEADER.unpack_from(data))


def parse_rindex_header(data: bytes, where: Where, lockspace_name: bytes | None) -> RindexHeader:
    """Return an index header: -274 magic, -275 version, -276 lockspace, -277 offset, -230 sizes."""
    header = unpack_rindex_header(data)
    record = "rindex header"
    if header.magic != RINDEX_MAGIC:
        raise where.bad(record, "magic", f"{RINDEX_MAGIC:#010x}", f"{header.magic:#010x}", -274)
    if header.version >> 16 != RINDEX_VERSION >> 16:
        expected = f"{RINDEX_VERSION:#010x}"
        raise where.bad(record, "version", expected, f"{header.version:#010x}", -275)
    if lockspace_name is not None and not same_name(header.lockspace_name, lockspace_name):
        found = cut_name(header.lockspace_name)
        raise where.bad(record, "lockspace_name", lockspace_name, found, -276)
    if header.rx_offset != where.offset:
        raise where.bad(record, "rx_offset", where.offset, header.rx_offset, -277)
    if header.sizes is None:
        found_sizes = f"{header.sector_size} with flags {header.flags:#x}"
        raise where.bad(record, "sector_size", "a legal pair of sizes", found_sizes, -230)
    return header


class RindexEntry(NamedTuple):
    """One entry of a resource index (6.2)."""

    res_offset: int
    flags: int
    unused: int
    name: bytes

    @property
    def is_free(self) -> bool:
        """Tell whether the entry describes no resource."""
        return self.res_offset == 0 and self.name[:1] in (b"", b"\0")


FREE_ENTRY: Final = RindexEntry(0, 0, 0, bytes(NAME_BYTES))


def pack_rindex_entry(entry: RindexEntry) -> bytes:
    """Return the 64 bytes of an index entry."""
    return _RINDEX_ENTRY.pack(*entry)


def unpack_rindex_entry(data: bytes, offset_bytes: int = 0) -> RindexEntry:
    """Return the index entry at an offset of a buffer."""
    return RindexEntry._make(_RINDEX_ENTRY.unpack_from(data, offset_bytes))
