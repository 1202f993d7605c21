"""Everything that can be found on a device: areas of any kind, their records, what is wrong.

`decode_device` walks over a device; `decode_area` decodes what begins at one offset. Both read
through a callable and raise only what that raises: whatever the bytes are, they become findings.
Nothing is repaired, nothing is assumed: each problem names the record, its place, the field, what
was expected and what was found. How single areas are judged is in `decode_areas.py`.

Source: spec/disk-format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from paxoslease.disk.decode_areas import (
    AreaFound,
    AreaKind,
    Place,
    Read,
    RecordFound,
    decode_index,
    decode_lockspace,
    decode_resource,
)
from paxoslease.disk.layout import (
    LEGAL_SIZES,
    MIB,
    RINDEX_LEASE_NAME,
    SIZES_512,
    Sizes,
    rindex_capacity,
)
from paxoslease.disk.records import (
    CLEARED_MAGIC,
    DELTA_MAGIC,
    DELTA_VERSION,
    PAXOS_MAGIC,
    REQUEST_MAGIC,
    RINDEX_MAGIC,
    Leader,
    RindexEntry,
    RindexHeader,
    cut_name,
    leader_checksum,
    unpack_leader,
    unpack_rindex_header,
)
from paxoslease.errors import BadRecord, StorageError

__all__ = ["AreaFound", "AreaKind", "RecordFound", "decode_area", "decode_device"]

PROBE_BYTES = 8192  # the first two sectors of either size
STEP_BYTES = MIB  # every area begins at a multiple of this

# What is assumed of an area that does not say its sizes: a walk must not step over others.
_SMALLEST = {512: SIZES_512, 4096: Sizes(4096, MIB)}


def decode_device(
    read: Read,
    path: str,
    size_bytes: int,
    *,
    start: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Iterator[AreaFound]:
    """Yield every area from `start` on, in the order of their offsets.

    read(offset, length): the bytes there; may return fewer only at the end. `progress` is told each
    offset that was looked at. A place that cannot be read is a finding of its own. When all areas
    are known, each index is compared with the resources found in its places and what differs is
    yielded last, as findings of kind INDEX without records.
    """
    found: list[AreaFound] = []
    offset = start
    while offset < size_bytes:
        if progress is not None:
            progress(offset)
        try:
            area = decode_area(read, path, offset, size_bytes)
        except StorageError as error:
            area = AreaFound(AreaKind.UNREADABLE, offset, SIZES_512, b"", b"", (), (error,))
        if area is None:
            offset += STEP_BYTES
            continue
        yield area
        found.append(area._replace(records=area.records if area.kind is AreaKind.INDEX else ()))
        offset += max(STEP_BYTES, area.sizes.align_size)
    for area in found:
        if area.kind is AreaKind.INDEX:
            notes = _missing_in_index(area, found)
            if notes:
                yield area._replace(records=(), problems=(), notes=notes)


def decode_area(read: Read, path: str, offset: int, size_bytes: int) -> AreaFound | None:
    """Decode the area that begins at `offset`; None when there is none.

    Raises what `read` raises.
    """
    head = read(offset, min(PROBE_BYTES, size_bytes - offset)).ljust(PROBE_BYTES, b"\0")
    kind = _kind_of(head)
    if kind is None:
        return None
    leader = unpack_leader(head)
    header = unpack_rindex_header(head)
    sizes, stated = _sizes_of(kind, leader, header, head)
    place = Place(read, path, offset, sizes, size_bytes)
    problems: tuple[BadRecord, ...] = ()
    if not stated:
        flags = header.flags if kind is AreaKind.INDEX else leader.flags
        found = f"{leader.sector_size} with flags {flags:#x}"
        problems = (place.bad(kind.value, 0, "sector_size", "a legal pair of sizes", found, -230),)
    if offset % sizes.align_size:
        expected = f"a multiple of {sizes.align_size}"
        problems = (*problems, place.bad(kind.value, 0, "offset", expected, offset, -22))
    missing = offset + sizes.align_size - size_bytes
    if missing > 0:
        have = sizes.align_size - missing
        cut = place.bad(kind.value, 0, "size", sizes.align_size, have, -22)
        area = _bare(kind, place, leader, header)
        return area._replace(problems=(*problems, cut))
    if kind is AreaKind.INDEX:
        area = decode_index(place)
    elif kind in (AreaKind.RESOURCE, AreaKind.CLEARED):
        area = decode_resource(place, kind)
    else:
        area = decode_lockspace(place, kind)
    return area._replace(problems=(*problems, *area.problems))


def _kind_of(head: bytes) -> AreaKind | None:
    """Tell what begins here, also when the first sector alone is damaged or not yet written."""
    leader = unpack_leader(head)
    kinds = {
        DELTA_MAGIC: AreaKind.LOCKSPACE,
        PAXOS_MAGIC: AreaKind.RESOURCE,
        CLEARED_MAGIC: AreaKind.CLEARED,
        RINDEX_MAGIC: AreaKind.INDEX,
    }
    if leader.magic in kinds:
        return kinds[leader.magic]
    if leader.magic == 0 and leader.version == DELTA_VERSION and _is_sealed(head):
        return AreaKind.UNFINISHED
    for sector_size in (512, 4096):
        second = head[sector_size:]
        if int.from_bytes(second[:4], "little") == REQUEST_MAGIC:
            return AreaKind.RESOURCE
        following = unpack_leader(second)
        if (
            following.magic == DELTA_MAGIC
            and following.sector_size == sector_size
            and _is_sealed(second)
        ):
            return AreaKind.LOCKSPACE
    return None


def _is_sealed(data: bytes) -> bool:
    return unpack_leader(data).checksum == leader_checksum(data)


def _sizes_of(
    kind: AreaKind, leader: Leader, header: RindexHeader, head: bytes
) -> tuple[Sizes, bool]:
    """Return the sizes of an area, guessed when False: its own statement is not possible."""
    stated = header.sizes if kind is AreaKind.INDEX else leader.sizes
    if stated is not None:
        return stated, True
    for sector_size in (512, 4096):  # a damaged first sector: ask the second
        following = unpack_leader(head[sector_size:])
        sizes = following.sizes
        if following.magic == DELTA_MAGIC and sizes and sizes.sector_size == sector_size:
            return sizes, False
        if int.from_bytes(head[sector_size : sector_size + 4], "little") == REQUEST_MAGIC:
            return _SMALLEST[sector_size], False
    return _SMALLEST[4096 if leader.sector_size == 4096 else 512], False


def _bare(kind: AreaKind, place: Place, leader: Leader, header: RindexHeader) -> AreaFound:
    """Return an area of which only the beginning is there."""
    if kind is AreaKind.INDEX:
        record = RecordFound("rindex header", place.offset, 0, header)
        name, resource = cut_name(header.lockspace_name), b""
    else:
        record = RecordFound("leader", place.offset, 0, leader)
        name = cut_name(leader.space_name)
        resource = cut_name(leader.resource_name) if kind.is_resource else b""
    return AreaFound(kind, place.offset, place.sizes, name, resource, (record,))


def _missing_in_index(index: AreaFound, found: list[AreaFound]) -> tuple[str, ...]:
    """Say which resources lie in places of an index without being in it.

    A crash between formatting a resource and entering it leaves one. Only the places up to the next
    lockspace or index count.
    """
    listed = {
        record.value.res_offset for record in index.records if isinstance(record.value, RindexEntry)
    }
    first = index.offset + 2 * index.sizes.align_size
    end = first + rindex_capacity(index.sizes) * index.sizes.align_size
    for area in found:
        if area.offset >= first and not area.kind.is_resource:
            end = min(end, area.offset)
    return tuple(
        f"resource {_text(area.resource)} at {area.offset} is not in the index at {index.offset}"
        for area in found
        if area.kind is AreaKind.RESOURCE
        and first <= area.offset < end
        and area.lockspace == index.lockspace
        and area.sizes == index.sizes
        and area.offset not in listed
        and area.resource != RINDEX_LEASE_NAME
    )


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


assert all(align % STEP_BYTES == 0 for _, align in LEGAL_SIZES)
