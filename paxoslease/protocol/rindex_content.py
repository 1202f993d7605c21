"""What a resource index holds: reading and checking it, finding names, places and free entries.

Entry i of an index at A describes the resource area at A + 2L + i*L, and everything here computes
places from i; the offset stored in an entry is only compared. Nothing here writes (`rindex.py`).

Source: spec/disk-format.md 6; spec/algorithms.md 10.
"""

from __future__ import annotations

from typing import NamedTuple

from paxoslease.disk.areas import find_entry, first_free_entry, used_entries
from paxoslease.disk.layout import (
    PROBE_BYTES,
    RINDEX_ENTRY_BYTES,
    RINDEX_LEASE_NAME,
    Area,
    rindex_capacity,
    rindex_shared_capacity,
)
from paxoslease.disk.records import (
    RindexEntry,
    Where,
    cut_name,
    parse_rindex_header,
    unpack_rindex_entry,
)
from paxoslease.errors import RindexError
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import Protocol, Read
from paxoslease.timing import Timing

NO_SUCH = -2
EXISTS = -17
INVALID = -22
FULL = -28
NO_PLACE = -277
OTHER_NAME = -278


class Index(NamedTuple):
    """A resource index as one host uses it; `area` is its first area.

    host_id 0 may only look things up.
    """

    space: Lockspace
    area: Area
    timing: Timing
    host_id: int

    @property
    def lease(self) -> Claim:
        """Return the claim on the private lease."""
        return self.claim(RINDEX_LEASE_NAME, self.area.following(1))

    def claim(self, name: bytes, area: Area) -> Claim:
        """Return the claim on a resource of this index."""
        return Claim(self.space, Resource(name, (area,)), self.timing, self.host_id)

    def place(self, entry: int) -> Area:
        """Return the resource area that an entry describes, computed without any limit."""
        return self.area.following(2 + entry)

    def entry_at(self, offset: int) -> int | None:
        """Return the number of the entry that describes the area at `offset`, None if none does."""
        entry, rest = divmod(offset - self.place(0).offset, self.area.sizes.align_size)
        return entry if rest == 0 and 0 <= entry < rindex_capacity(self.area.sizes) else None

    def refuse(self, name: bytes, reason: str, number: int) -> RindexError:
        """Return the error for an operation that cannot be done."""
        return RindexError(self.space.name, name, reason, number)


class Located(NamedTuple):
    """A resource in an index; `name` is empty for a free place."""

    entry: int
    name: bytes
    offset: int


class Content(NamedTuple):
    """The first area of an index as read, and how many entries of it may be used."""

    data: bytes
    max_resources: int


def open_index(
    space: Lockspace, path: str, offset: int, timing: Timing, host_id: int = 0
) -> Protocol[Index]:
    """Find out the sizes of an index. Raises BadRecord, DiskTimeout, DiskError."""
    data = yield Read(path, offset, PROBE_BYTES, timing.io_us)
    header = parse_rindex_header(data, Where(path, offset), space.name)
    assert header.sizes is not None
    return Index(space, Area(path, offset, header.sizes), timing, host_id)


def read_content(index: Index) -> Protocol[Content]:
    """Read the whole first area and check its header. Raises BadRecord, DiskTimeout, DiskError."""
    area = index.area
    data: bytes = yield Read(area.path, area.offset, area.sizes.align_size, index.timing.io_us)
    return Content(data, _check_header(index, data))


def read_header(index: Index) -> Protocol[int]:
    """Read and check the header alone; return the number of entries. Raises as read_content."""
    area = index.area
    data = yield Read(area.path, area.offset, area.sector_size, index.timing.io_us)
    return _check_header(index, data)


def _check_header(index: Index, data: bytes) -> int:
    where = Where(index.area.path, index.area.offset)
    header = parse_rindex_header(data, where, index.space.name)
    if header.sizes != index.area.sizes:
        raise where.bad("rindex header", "sector_size", index.area.sizes, header.sizes, -230)
    limit = rindex_capacity(index.area.sizes)
    return header.max_resources if 0 < header.max_resources <= limit else limit


def usable(index: Index, max_resources: int) -> int:
    """Return how many entries may be filled: sanlock wraps behind 2^31 bytes (6.4, M16)."""
    return min(max_resources, rindex_shared_capacity(index.area.sizes))


def lookup(index: Index, name: bytes | None = None, offset: int | None = None) -> Protocol[Located]:
    """Find a resource by name or by offset, or the first free place when neither is given.

    Raises RindexError (not found -2, both given and different -278, full -28), BadRecord (also for
    an entry that points elsewhere), DiskTimeout, DiskError.
    """
    yield from read_header(index)
    content = yield from read_content(index)
    if name is None and offset is None:
        return first_free(index, content)
    if name is not None:
        found = find(index, content, name)
    else:
        assert offset is not None
        found = _find_at(index, content, offset)
    if offset is not None and found.offset != offset:
        reason = f"is at {found.offset}, not at {offset}"
        raise index.refuse(found.name, reason, OTHER_NAME)
    return found


def look_at(index: Index, offset: int) -> Protocol[Located]:
    """Return what the index has for a place; an empty name when that is free.

    Raises RindexError (no place of this index -277), and as lookup.
    """
    content = yield from read_content(index)
    entry = place_at(index, offset, content.max_resources)
    if entry_of(index, content, entry).is_free:
        return Located(entry, b"", offset)
    return _located(index, content, entry)


def place_at(index: Index, offset: int, count: int) -> int:
    """Return the number of the entry, below `count`, for the area at an offset.

    Raises RindexError (-277).
    """
    entry = index.entry_at(offset)
    if entry is None or entry >= count:
        raise index.refuse(b"", f"offset {offset} is no place of this index", NO_PLACE)
    return entry


def list_all(index: Index) -> Protocol[tuple[Located, ...]]:
    """Return everything in the index. Raises BadRecord, DiskTimeout, DiskError."""
    content = yield from read_content(index)
    used = used_entries(content.data, index.area.sizes, content.max_resources)
    return tuple(Located(i, cut_name(e.name), index.place(i).offset) for i, e in used)


def find(index: Index, content: Content, name: bytes) -> Located:
    entry = find_entry(content.data, index.area.sizes, content.max_resources, name)
    if entry is None:
        raise index.refuse(name, "not found", NO_SUCH)
    return _located(index, content, entry)


def _find_at(index: Index, content: Content, offset: int) -> Located:
    entry = index.entry_at(offset)
    if entry is None or entry >= content.max_resources:
        raise index.refuse(b"", f"offset {offset} is no place of this index", INVALID)
    if entry_of(index, content, entry).is_free:
        raise index.refuse(b"", f"nothing is at offset {offset}", NO_SUCH)
    return _located(index, content, entry)


def _located(index: Index, content: Content, entry: int) -> Located:
    record = entry_of(index, content, entry)
    place = index.place(entry).offset
    if record.res_offset != place:
        where = Where(index.area.path, index.area.index_entry(entry))
        raise where.bad("rindex entry", "res_offset", place, record.res_offset, -277)
    return Located(entry, cut_name(record.name), place)


def entry_of(index: Index, content: Content, entry: int) -> RindexEntry:
    start = index.area.sector_size + entry * RINDEX_ENTRY_BYTES
    return unpack_rindex_entry(content.data, start)


def first_free(index: Index, content: Content) -> Located:
    count = usable(index, content.max_resources)
    entry = first_free_entry(content.data, index.area.sizes, count)
    if entry is None:
        raise index.refuse(b"", f"all {count} places are in use", FULL)
    return Located(entry, b"", index.place(entry).offset)
