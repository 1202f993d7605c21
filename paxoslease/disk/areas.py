"""Whole areas at once: NumPy views of lockspaces, resources and indexes, and formatting them.

A renewal looks at up to 2000 delta leases in an area of 1 to 8 MiB that lies in a buffer which is
used again at once. So the few columns that the host table needs are copied out (`DeltaColumns`);
nothing here keeps a reference to the buffer, and nothing loops over hosts in Python.

Source: spec/disk-format.md 4, 5 and 6. Views are read-only unless the buffer is writable; all
integers are little-endian on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paxoslease.disk import native
from paxoslease.disk.layout import (
    NAME_BYTES,
    RINDEX_ENTRY_BYTES,
    RINDEX_LEASE_NAME,
    Sizes,
    rindex_capacity,
)
from paxoslease.disk.records import (
    BITMAP_OFFSET,
    DBLOCK_CRC_BYTES,
    DELTA_MAGIC,
    HOST_SECTOR_BYTES,
    MODE_OFFSET,
    NO_REQUEST,
    RINDEX_MAGIC,
    RINDEX_VERSION,
    RindexEntry,
    RindexHeader,
    delta_at_format,
    pack_leader,
    pack_request,
    pack_rindex_header,
    pad_name,
    paxos_at_format,
    unpack_rindex_entry,
)

Buffer = bytes | bytearray | memoryview
Bools = npt.NDArray[np.bool_]

RINDEX_ENTRIES_DEFAULT: Final = 4096

_LEADER_FIELDS: Final = (
    ("magic", "<u4", 0),
    ("version", "<u4", 4),
    ("flags", "<u4", 8),
    ("sector_size", "<u4", 12),
    ("num_hosts", "<u8", 16),
    ("max_hosts", "<u8", 24),
    ("owner_id", "<u8", 32),
    ("owner_generation", "<u8", 40),
    ("lver", "<u8", 48),
    ("space_name", "S48", 56),
    ("resource_name", "S48", 104),
    ("timestamp", "<u8", 152),
    ("unused1", "<u8", 160),
    ("checksum", "<u4", 168),
    ("unused2", "<u2", 172),
    ("io_timeout", "<u2", 174),
    ("write_id", "<u8", 176),
    ("write_generation", "<u8", 184),
    ("write_timestamp", "<u8", 192),
    ("bitmap", "(256,)u1", BITMAP_OFFSET),
)
_HOST_FIELDS: Final = (
    ("mbal", "<u8", 0),
    ("bal", "<u8", 8),
    ("inp", "<u8", 16),
    ("inp2", "<u8", 24),
    ("inp3", "<u8", 32),
    ("lver", "<u8", 40),
    ("checksum", "<u4", 48),
    ("flags", "<u4", 52),
    ("mode_flags", "<u4", MODE_OFFSET),
    ("mode_generation", "<u8", MODE_OFFSET + 8),
)
_ENTRY: Final = np.dtype(
    [("res_offset", "<u8"), ("flags", "<u4"), ("unused", "<u4"), ("name", f"S{NAME_BYTES}")]
)
assert _ENTRY.itemsize == RINDEX_ENTRY_BYTES


def _sector_dtype(fields: tuple[tuple[str, str, int], ...], sector_size: int) -> np.dtype[Any]:
    names, formats, offsets = zip(*fields, strict=True)
    return np.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": sector_size}
    )


_DELTA_DTYPES: Final = {size: _sector_dtype(_LEADER_FIELDS, size) for size in (512, 4096)}
_HOST_DTYPES: Final = {size: _sector_dtype(_HOST_FIELDS, size) for size in (512, 4096)}


# -- views -------------------------------------------------------------------------------------


def delta_sectors(area: Buffer, sizes: Sizes) -> npt.NDArray[Any]:
    """View a lockspace area as structured records: shape (max_hosts,), index host_id - 1."""
    return np.frombuffer(area, _DELTA_DTYPES[sizes.sector_size], sizes.max_hosts)


def host_sectors(area: Buffer, sector_size: int, num_hosts: int) -> npt.NDArray[Any]:
    """View the host sectors of a resource area: shape (num_hosts,), index host_id - 1.

    `area` needs to reach no further than the sector of host `num_hosts`.
    """
    return np.frombuffer(area, _HOST_DTYPES[sector_size], num_hosts, 2 * sector_size)


def index_entries(area: Buffer, sizes: Sizes, max_resources: int) -> npt.NDArray[Any]:
    """View the entries of an index's first area: shape (n,), fields as RindexEntry.

    `max_resources` is that of the header; 0, or more than the format allows, stands for its limit.
    """
    limit = rindex_capacity(sizes)
    count = max_resources if 0 < max_resources <= limit else limit
    return np.frombuffer(area, _ENTRY, count, sizes.sector_size)


def _words(area: Buffer, count: int, stride: int, offset: int = 0) -> npt.NDArray[np.uint64]:
    """View `count` records of `stride` bytes as rows of 64-bit words."""
    flat = np.frombuffer(area, "<u8", count * stride // 8, offset)
    return flat.reshape(count, stride // 8)


def _bears_name(words: npt.NDArray[np.uint64], first_word: int, name: bytes) -> Bools:
    """Tell for each row whether the 48-byte name that starts at a word is `name`, as strncmp does.

    Compares the bytes of the name and the zero behind it, nothing after that.
    """
    length = min(len(name) + 1, NAME_BYTES)
    expected = np.frombuffer(name.ljust(NAME_BYTES, b"\0"), "<u8")
    mask = np.frombuffer((b"\xff" * length).ljust(NAME_BYTES, b"\0"), "<u8")
    result: Bools = words[:, first_word] & mask[0] == expected[0]
    for i in range(1, -(-length // 8)):  # over at most 6 words of a name, not over hosts
        result &= words[:, first_word + i] & mask[i] == expected[i]
    return result


@dataclass(frozen=True, slots=True, eq=False)
class DeltaColumns:
    """What a host table needs of the delta leases of one area read.

    One element for each host id that was ever used, in order. rows: uint32, host id - 1. owner_id,
    generation, timestamp: uint64. io_timeout: uint16, s. names: bytes of 48.
    good: magic and lockspace name are right (what sanlock checks of others' records, 4.2).
    marks: the bit of the reading host is set in that host's bitmap.
    All arrays are contiguous, independent of the buffer, and belong to the holder.
    """

    rows: npt.NDArray[np.uint32]
    owner_id: npt.NDArray[np.uint64]
    generation: npt.NDArray[np.uint64]
    timestamp: npt.NDArray[np.uint64]
    io_timeout: npt.NDArray[np.uint16]
    names: npt.NDArray[np.bytes_]
    good: Bools
    marks: Bools


def delta_columns(area: Buffer, sizes: Sizes, space_name: bytes, host_id: int) -> DeltaColumns:
    """Copy the columns of a whole lockspace area out of a buffer, as host `host_id` sees them.

    Takes tens of microseconds. `host_id` 0 is a bystander's: nothing is marked.
    """
    columns = native.delta_columns(
        area,
        sizes.max_hosts,
        sizes.sector_size,
        magic=DELTA_MAGIC,
        name=space_name,
        marked_host_id=host_id,
    )
    names = delta_sectors(area, sizes)["resource_name"][columns.rows]
    return DeltaColumns(
        columns.rows,
        columns.owner_id,
        columns.generation,
        columns.timestamp,
        columns.io_timeout,
        names,
        columns.good,
        columns.marks,
    )


def nonzero_host_sectors(
    area: Buffer, sector_size: int, num_hosts: int
) -> tuple[tuple[int, bytes], ...]:
    """Return (host id, first 144 bytes) of every host sector with anything in those bytes.

    `area` begins with the leader and reaches at least to the sector of host `num_hosts`. Nothing is
    validated.
    """
    view = memoryview(area)
    verdicts = native.scan(
        view[2 * sector_size :],
        num_hosts,
        sector_size,
        zero_bytes=HOST_SECTOR_BYTES,
        crc_bytes=DBLOCK_CRC_BYTES,
        crc_offset=DBLOCK_CRC_BYTES,
    )
    return tuple(
        (i + 1, bytes(view[(i + 2) * sector_size : (i + 2) * sector_size + HOST_SECTOR_BYTES]))
        for i in np.flatnonzero(verdicts).tolist()
    )


# -- index entries -----------------------------------------------------------------------------


def find_entry(area: Buffer, sizes: Sizes, max_resources: int, name: bytes) -> int | None:
    """Return the number of the first entry with this name, None if there is none."""
    count = len(index_entries(area, sizes, max_resources))
    words = _words(area, count, RINDEX_ENTRY_BYTES, sizes.sector_size)
    return _first(_bears_name(words, 2, name))


def first_free_entry(area: Buffer, sizes: Sizes, max_resources: int) -> int | None:
    """Return the number of the first free entry, None when the index is full."""
    return _first(_is_free(area, sizes, max_resources))


def used_entries(
    area: Buffer, sizes: Sizes, max_resources: int
) -> tuple[tuple[int, RindexEntry], ...]:
    """Return (number, entry) of every entry that is not free."""
    used = np.flatnonzero(~_is_free(area, sizes, max_resources))
    return tuple(
        (i, unpack_rindex_entry(bytes(area[start : start + RINDEX_ENTRY_BYTES])))
        for i, start in ((i, sizes.sector_size + RINDEX_ENTRY_BYTES * i) for i in used.tolist())
    )


def _is_free(area: Buffer, sizes: Sizes, max_resources: int) -> Bools:
    entries = index_entries(area, sizes, max_resources)
    words = _words(area, len(entries), RINDEX_ENTRY_BYTES, sizes.sector_size)
    free: Bools = (words[:, 0] == 0) & (words[:, 2] & np.uint64(0xFF) == 0)
    return free


def _first(mask: Bools) -> int | None:
    if not mask.size:
        return None
    i = int(mask.argmax())
    return i if mask[i] else None


# -- formatted areas ---------------------------------------------------------------------------


def lockspace_area(space_name: bytes, sizes: Sizes, io_timeout: int) -> tuple[bytes, bytes]:
    """Return what a formatter writes: the whole area, then its first sector once more (4.6).

    In the area the first sector's magic is 0, so that it becomes a lockspace only with the second
    write, which is a single sector.
    """
    leader = delta_at_format(space_name, sizes, io_timeout)
    record = pack_leader(leader, sizes.sector_size)
    uncommitted = pack_leader(leader._replace(magic=0).sealed(), sizes.sector_size)
    area = uncommitted + record * (sizes.max_hosts - 1)
    return area.ljust(sizes.align_size, b"\0"), record


def resource_area(
    space_name: bytes,
    resource_name: bytes,
    sizes: Sizes,
    num_hosts: int = 0,
    *,
    cleared_at_s: int | None = None,
) -> bytes:
    """Return the whole area of a new resource (5.3), or of a cleared one (5.4)."""
    leader = paxos_at_format(space_name, resource_name, sizes, num_hosts, cleared_at_s=cleared_at_s)
    head = pack_leader(leader, sizes.sector_size) + pack_request(NO_REQUEST, sizes.sector_size)
    return head.ljust(sizes.align_size, b"\0")


def rindex_header(
    space_name: bytes, sizes: Sizes, offset: int, max_resources: int = RINDEX_ENTRIES_DEFAULT
) -> RindexHeader:
    """Return the header of a new index at `offset`."""
    return RindexHeader(
        RINDEX_MAGIC,
        RINDEX_VERSION,
        sizes.rindex_flag,
        sizes.sector_size,
        max_resources,
        0,
        offset,
        pad_name(space_name),
    )


def rindex_area(
    space_name: bytes, sizes: Sizes, offset: int, max_resources: int = RINDEX_ENTRIES_DEFAULT
) -> bytes:
    """Return the first area of a new index (6.3)."""
    header = rindex_header(space_name, sizes, offset, max_resources)
    return pack_rindex_header(header, sizes.sector_size).ljust(sizes.align_size, b"\0")


def rindex_lease_area(space_name: bytes, sizes: Sizes) -> bytes:
    """Return the second area of a new index: its private lease."""
    return resource_area(space_name, RINDEX_LEASE_NAME, sizes)
