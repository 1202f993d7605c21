"""`sanlock direct dump` and `next_free`: what lies on a device, one line for each lease.

Host records and host sectors that were never used are left out. A walk without a size ends at the
first place that holds nothing known.

Source: spec/cli.md 5.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from paxoslease.cli.sanlock.direct_place import MIB, opened, read_at
from paxoslease.cli.sanlock.grammar import Options
from paxoslease.cli.sanlock.output import say
from paxoslease.cli.sanlock.strings import parse_rindex
from paxoslease.disk.areas import nonzero_host_sectors, used_entries
from paxoslease.disk.direct import DirectFile
from paxoslease.disk.layout import PROBE_BYTES, RINDEX_ENTRY_BYTES, Sizes
from paxoslease.disk.records import (
    DELTA_MAGIC,
    PAXOS_MAGIC,
    RINDEX_MAGIC,
    Where,
    bitmap_of,
    cut_name,
    hosts_of_bitmap,
    parse_request,
    unpack_host_sector,
    unpack_leader,
    unpack_rindex_header,
)
from paxoslease.errors import BadRecord, StorageError
from paxoslease.wire.sanlock import Disk

_KNOWN: Final = frozenset((DELTA_MAGIC, PAXOS_MAGIC, RINDEX_MAGIC))
_HEADING: Final = b"  offset %36s %48s  timestamp  own  gen lver"
_LEASE: Final = b"%08d %36s %48s %010d %04d %04d"
_SHARER: Final = b"%106s%04d %04d SH"
_DBLOCK: Final = b"dblock[%04d] mbal %d bal %d inp %d inp2 %d inp3 %d lver %d sum %x"


class Walk(NamedTuple):
    """What to walk over: PATH[:OFFSET[:SIZE]], in bytes; 0 for as far as there is something."""

    disk: Disk
    size: int


def parse_walk(text: bytes) -> Walk:
    """Return what to walk over; a backslash hides a colon of the path."""
    # As a resource index's string without the lockspace, and with one more number.
    start = parse_rindex(b":" + text).disk
    behind = text.replace(rb"\:", b"").split(b":", 2)[2:]
    return Walk(start, parse_rindex(b"::" + behind[0]).disk.offset if behind else 0)


def dump(text: bytes, options: Options) -> int:
    """Print the leases; -f 1 prints more of each, -f 2 also the ballots."""
    walk = parse_walk(text)
    try:
        with opened(walk.disk) as files:
            if walk.disk.offset % MIB:
                say(b"WARNING: dump offset should be a multiple of %d bytes." % MIB)
            sizes = _sizes(walk, options, files[0])
            if sizes is None:
                say(b"Cannot find sector_size and align_size, set with -A and -Z.")
                return -1
            _dump(walk, options, files[0], sizes)
    except StorageError:
        say(b"Device %b not found." % walk.disk.path)
        return -1
    return 0


def _sizes(walk: Walk, options: Options, file: DirectFile) -> Sizes | None:
    """Return the sizes given, or those of the first thing that is found."""
    if options.sector_size and options.align_size:
        return Sizes(options.sector_size, options.align_size)
    device_end = os.lseek(file.fd, 0, os.SEEK_END)
    end = min(device_end, walk.disk.offset + walk.size) if walk.size >= 512 else device_end
    for offset in range(walk.disk.offset, end, MIB):
        if offset % file.sector_size:
            return None
        head = read_at(options, file, offset, PROBE_BYTES, is_cut=True).ljust(PROBE_BYTES, b"\0")
        leader = unpack_leader(head)
        if leader.magic in (DELTA_MAGIC, PAXOS_MAGIC) and leader.sizes is not None:
            return leader.sizes
    return None


def _areas(
    walk: Walk, options: Options, file: DirectFile, sizes: Sizes
) -> Iterator[tuple[int, bytes]]:
    """Yield offset and content of each area that holds something known."""
    offset = walk.disk.offset
    # A size smaller than a sector counts as none.
    end = offset + walk.size if walk.size >= sizes.sector_size else None
    while end is None or offset < end:
        data = read_at(options, file, offset, sizes.align_size, is_cut=True)
        if not data and offset >= os.lseek(file.fd, 0, os.SEEK_END):
            return
        data = data.ljust(sizes.align_size, b"\0")
        if unpack_leader(data).magic in _KNOWN:
            yield offset, data
        elif end is None:
            return
        offset += sizes.align_size


def _dump(walk: Walk, options: Options, file: DirectFile, sizes: Sizes) -> None:
    detail = options.number("f")
    say(_HEADING % (b"lockspace", b"resource") + (b"/req/mode" if detail else b""))
    for offset, data in _areas(walk, options, file, sizes):
        magic = unpack_leader(data).magic
        if magic == DELTA_MAGIC:
            _say_lockspace(offset, data, sizes, detail)
        elif magic == PAXOS_MAGIC:
            _say_resource(offset, data, sizes, detail)
        else:
            _say_index(offset, data, sizes, detail)


def _say_lockspace(offset: int, data: bytes, sizes: Sizes, detail: int) -> None:
    for at in range(0, sizes.max_hosts * sizes.sector_size, sizes.sector_size):
        sector = data[at : at + sizes.sector_size]
        leader = unpack_leader(sector)
        if leader.magic != DELTA_MAGIC or not (leader.owner_id or leader.timestamp):
            continue
        names = (cut_name(leader.space_name), cut_name(leader.resource_name))
        owner = (leader.timestamp, leader.owner_id, leader.owner_generation)
        line = _LEASE % (offset + at, *names, *owner)
        if detail:
            line += b"".join(b" %d" % host for host in hosts_of_bitmap(bitmap_of(sector)))
        say(line)


def _say_resource(offset: int, data: bytes, sizes: Sizes, detail: int) -> None:
    leader = unpack_leader(data)
    names = (cut_name(leader.space_name), cut_name(leader.resource_name))
    owner = (leader.timestamp, leader.owner_id, leader.owner_generation)
    line = _LEASE % (offset, *names, *owner) + b" %d" % leader.lver
    if detail:
        try:
            where = Where("", offset + sizes.sector_size)
            request = parse_request(data[sizes.sector_size :], where)
            line += b"/%d/%d" % (request.lver, request.force_mode)
        except BadRecord:
            line += b"/0/0"
    say(line)
    for host_id, sector in nonzero_host_sectors(data, sizes.sector_size, sizes.max_hosts):
        found, checksum = unpack_host_sector(sector)
        if detail >= 2 and not found.is_zero_dblock:
            say(_DBLOCK % (host_id - 1, *found[:6], checksum))
        if found.shared_generation is not None:
            say(_SHARER % (b"", host_id, found.shared_generation))


def _say_index(offset: int, data: bytes, sizes: Sizes, detail: int) -> None:
    header = unpack_rindex_header(data)
    name = cut_name(header.lockspace_name)
    place = (header.flags, header.sector_size, header.max_resources, header.rx_offset)
    say(b"%08d %36s rindex_header 0x%x %d %d %d" % (offset, name, *place))
    if not detail:
        return
    limit = (sizes.align_size - sizes.sector_size) // RINDEX_ENTRY_BYTES
    for number, entry in used_entries(data, sizes, limit):
        at = offset + sizes.sector_size + number * RINDEX_ENTRY_BYTES
        say(b"%08d %36s rentry %b %d" % (at, name, cut_name(entry.name), entry.res_offset))


def next_free(text: bytes, options: Options) -> int:
    """Print the offset of the first place behind the start that holds nothing known."""
    walk = parse_walk(text)
    try:
        with opened(walk.disk) as files:
            sizes = _sizes(walk, options, files[0])
            if sizes is None:
                return -1
            used = {at for at, _ in _areas(walk._replace(size=0), options, files[0], sizes)}
    except StorageError:
        return -1
    say(b"%d" % next(at for at in _steps(walk.disk.offset, sizes) if at not in used))
    return 0


def _steps(offset: int, sizes: Sizes) -> Iterator[int]:
    while True:
        yield offset
        offset += sizes.align_size
