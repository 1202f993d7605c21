"""One area, decoded and judged: a lockspace, a resource, an index.

What is never used is not listed: host ids without an owner, empty host sectors, free entries. What
looks odd but is legal (spec/algorithms.md rule M14) is no problem: zero dblocks with a checksum,
RELEASED blocks of any version, names with old tails, events that stayed behind.

Source: spec/disk-format.md 4 to 6; spec/algorithms.md 5 and 15.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from paxoslease.disk.areas import delta_sectors, nonzero_host_sectors, used_entries
from paxoslease.disk.layout import (
    LVB_SECTOR,
    RINDEX_LEASE_NAME,
    Area,
    Sizes,
    rindex_capacity,
    rindex_shared_capacity,
)
from paxoslease.disk.records import (
    CLEARED_MAGIC,
    DELTA_MAGIC,
    FORCE,
    GRACEFUL,
    PAXOS_MAGIC,
    HostSector,
    Leader,
    Request,
    RindexEntry,
    RindexHeader,
    Where,
    bitmap_of,
    cut_name,
    hosts_of_bitmap,
    leader_checksum,
    parse_delta,
    parse_host_sector,
    parse_paxos,
    parse_request,
    parse_rindex_header,
    unpack_leader,
    unpack_rindex_header,
)
from paxoslease.errors import BadRecord, StorageError

Bools: TypeAlias = npt.NDArray[np.bool_]
Read: TypeAlias = Callable[[int, int], bytes]
Value: TypeAlias = Leader | HostSector | Request | RindexHeader | RindexEntry


class AreaKind(Enum):
    """What an area is; the value is how people call it."""

    LOCKSPACE = "lockspace"
    UNFINISHED = "unfinished lockspace"  # formatting stopped before its second write
    RESOURCE = "resource"
    CLEARED = "cleared resource"
    INDEX = "resource index"
    UNREADABLE = "unreadable place"

    @property
    def is_resource(self) -> bool:
        """Tell whether it is a resource, cleared or not."""
        return self in (AreaKind.RESOURCE, AreaKind.CLEARED)


class RecordFound(NamedTuple):
    """One record: what it is, its offset on the device, and what is wrong with it.

    number: the host id of a delta lease or host sector, the number of an index entry, else 0.
    value: the record itself, None when its bytes make none. hosts: host ids whose bits are set.
    """

    record: str
    offset: int
    number: int
    value: Value | None
    problems: tuple[BadRecord, ...] = ()
    hosts: tuple[int, ...] = ()


class AreaFound(NamedTuple):
    """One area with all records in it that are in use.

    problems: of the area as a whole; those of records are with them. notes: facts that are no
    error, such as a resource that is in no index.
    """

    kind: AreaKind
    offset: int
    sizes: Sizes
    lockspace: bytes
    resource: bytes
    records: tuple[RecordFound, ...] = ()
    problems: tuple[StorageError, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all_problems(self) -> tuple[StorageError, ...]:
        """Return the problems of the area and of every record in it."""
        return (*self.problems, *(p for record in self.records for p in record.problems))


class Place(NamedTuple):
    """Where an area is decoded: how to read it, and what it is assumed to be."""

    read: Read
    path: str
    offset: int
    sizes: Sizes
    device_bytes: int

    @property
    def area(self) -> Area:
        return Area(self.path, self.offset, self.sizes)

    def where(self, sector: int) -> Where:
        """Return the place of a sector for messages."""
        return Where(self.path, self.offset + sector * self.sizes.sector_size)

    def bad(
        self, record: str, sector: int, field: str, expected: object, found: object, code: int
    ) -> BadRecord:
        """Return a problem of a sector."""
        return self.where(sector).bad(record, field, expected, found, code)

    def content(self) -> bytes:
        """Read the whole area."""
        return self.read(self.offset, self.sizes.align_size).ljust(self.sizes.align_size, b"\0")


def _unused_tail(place: Place, data: bytes, record: str, first: int) -> tuple[BadRecord, ...]:
    """Report anything behind the last record of an area, which a formatter leaves zero."""
    size = place.sizes.sector_size
    lvb = LVB_SECTOR * size if record == "resource" and place.area.lvb is not None else len(data)
    tail = data[first * size : lvb] + data[lvb + size :]
    if not any(tail):
        return ()
    return (place.bad(record, first, "unused sectors", "zeros", "other bytes", -22),)


# -- lockspaces --------------------------------------------------------------------------------


def decode_lockspace(place: Place, kind: AreaKind) -> AreaFound:
    """Decode the delta leases that were ever used, or that are not what the first one is."""
    data = place.content()
    size, max_hosts = place.sizes.sector_size, place.sizes.max_hosts
    model = _model_of(data, place.sizes)
    name = cut_name(model.space_name)
    sectors = delta_sectors(data, place.sizes)
    is_record = sectors["magic"] == DELTA_MAGIC
    never_used = np.zeros(max_hosts, np.bool_)
    blank = bytes(data[size : 2 * size])  # host 2's: as formatted unless it was used
    template = np.frombuffer(data, "u1", max_hosts * size).reshape(max_hosts, size)
    if unpack_leader(blank).owner_id == 0 and unpack_leader(blank).magic == DELTA_MAGIC:
        never_used = (template == np.frombuffer(blank, "u1")).all(axis=1)
    records: list[RecordFound] = []
    for i in np.flatnonzero(is_record & ~never_used).tolist():
        found = _decode_delta(place, data[i * size : (i + 1) * size], i + 1, name)
        assert isinstance(found.value, Leader)
        if found.problems or found.value.owner_id or found.value.timestamp:
            records.append(found)
    if never_used.any():
        i = int(never_used.argmax())
        formatted = _decode_delta(place, data[i * size : (i + 1) * size], i + 1, name)
        if formatted.problems:
            records.append(formatted)
    problems = [*_broken_runs(place, is_record, sectors["magic"].tolist(), kind)]
    problems += _unused_tail(place, data, kind.value, max_hosts)
    records.sort()
    return AreaFound(kind, place.offset, place.sizes, name, b"", tuple(records), tuple(problems))


def _model_of(data: bytes, sizes: Sizes) -> Leader:
    """Return the first record with a good checksum: it names the lockspace."""
    for sector in range(4):
        start = sector * sizes.sector_size
        raw = data[start : start + sizes.sector_size]
        leader = unpack_leader(raw)
        if leader.magic in (DELTA_MAGIC, 0) and leader.checksum == leader_checksum(raw):
            return leader
    return unpack_leader(data)


def _broken_runs(
    place: Place,
    is_record: Bools,
    magics: list[int],
    kind: AreaKind,
) -> Iterator[BadRecord]:
    """Report each run of host ids whose sectors hold no delta lease: a torn or unfinished area."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], is_record, [True])).astype(np.int8)))
    for first, end in edges.reshape(-1, 2).tolist():
        record = "delta lease" if end - first == 1 else f"delta leases {first + 1} to {end}"
        found = f"{magics[first]:#010x}"
        yield place.bad(record, first, "magic", f"{DELTA_MAGIC:#010x}", found, -223)


def _decode_delta(place: Place, raw: bytes, host_id: int, name: bytes) -> RecordFound:
    where = place.where(host_id - 1)
    leader = unpack_leader(raw)
    problems: list[BadRecord] = []
    try:
        parse_delta(raw, where, name)
    except BadRecord as error:
        problems.append(error)
    marked = hosts_of_bitmap(bitmap_of(raw))
    most = place.sizes.max_hosts
    right_owner = leader.owner_id == host_id or (leader.owner_id == 0 and leader.is_free)
    has_generation = leader.owner_generation > 0 or leader.owner_id == 0
    has_name = leader.is_free or bool(cut_name(leader.resource_name))
    expected: tuple[tuple[str, object, object, bool], ...] = (
        ("owner_id", host_id, leader.owner_id, right_owner),
        ("owner_generation", "at least 1", leader.owner_generation, has_generation),
        ("resource_name", "a host name", "none", has_name),
        (
            "sector_size",
            f"{place.sizes.sector_size} with flags {place.sizes.align_flag:#x}",
            f"{leader.sector_size} with flags {leader.flags:#x}",
            leader.sizes == place.sizes,
        ),
        ("max_hosts", 1, leader.max_hosts, leader.max_hosts == 1),
        ("bitmap", f"host ids up to {most}", marked[-1:], not marked or marked[-1] <= most),
    )
    problems += [
        where.bad("delta lease", field, wanted, found, -223)
        for field, wanted, found, good in expected
        if not good
    ]
    return RecordFound(
        "delta lease", where.offset, host_id, leader, _once_per_field(problems), marked
    )


def _once_per_field(problems: list[BadRecord]) -> tuple[BadRecord, ...]:
    return tuple({problem.field: problem for problem in reversed(problems)}.values())[::-1]


# -- resources ---------------------------------------------------------------------------------


def decode_resource(place: Place, kind: AreaKind) -> AreaFound:
    """Decode leader, request and the host sectors that were ever written."""
    data = place.content()
    size, sizes = place.sizes.sector_size, place.sizes
    leader = unpack_leader(data)
    records = [
        _decode_leader(place, data, leader, kind),
        _decode_request(place, data[size : 2 * size]),
    ]
    for host_id, raw in nonzero_host_sectors(data, size, sizes.max_hosts):
        records.append(_decode_host_sector(place, host_id, raw, leader))
    tail = _unused_tail(place, data, "resource", 2 + sizes.max_hosts)
    names = cut_name(leader.space_name), cut_name(leader.resource_name)
    return AreaFound(kind, place.offset, sizes, *names, tuple(records), tail)


def _decode_leader(place: Place, data: bytes, leader: Leader, kind: AreaKind) -> RecordFound:
    where = place.where(0)
    problems: list[BadRecord] = []
    if kind is AreaKind.CLEARED:
        expected = leader_checksum(data)
        if leader.checksum != expected:
            found = f"{leader.checksum:#010x}"
            problems.append(where.bad("cleared leader", "checksum", f"{expected:#x}", found, -229))
        return RecordFound("cleared leader", where.offset, 0, leader, tuple(problems))
    try:
        parse_paxos(data, where, None, None)
    except BadRecord as error:
        problems.append(error)
    most = leader.num_hosts
    checks: tuple[tuple[str, object, object, bool], ...] = (
        ("space_name", "a name", "none", bool(cut_name(leader.space_name))),
        ("resource_name", "a name", "none", bool(cut_name(leader.resource_name))),
        ("num_hosts", "at least 1", most, most > 0),
        ("owner_id", f"at most {most}", leader.owner_id, leader.owner_id <= most),
        ("owner_id", "an owner", 0, leader.owner_id != 0 or leader.is_free),
        (
            "owner_generation",
            "at least 1",
            leader.owner_generation,
            leader.owner_id == 0 or leader.owner_generation > 0,
        ),
        ("lver", "at least 1", 0, leader.lver > 0 or leader.owner_id == 0),
        ("flags", "no SHORT_HOLD", "SHORT_HOLD", not (leader.is_free and leader.is_short_hold)),
        ("write_id", f"at most {most}", leader.write_id, leader.write_id <= most),
    )
    problems += [
        where.bad("paxos leader", field, wanted, found, -223)
        for field, wanted, found, good in checks
        if not good
    ]
    return RecordFound("paxos leader", where.offset, 0, leader, _once_per_field(problems))


def _decode_request(place: Place, raw: bytes) -> RecordFound:
    where = place.where(1)
    try:
        request = parse_request(raw, where)
    except BadRecord as error:
        return RecordFound("request", where.offset, 0, None, (error,))
    problems: tuple[BadRecord, ...] = ()
    if request.force_mode not in (0, FORCE, GRACEFUL):
        problems = (where.bad("request", "force_mode", "0, 1 or 2", request.force_mode, -22),)
    return RecordFound("request", where.offset, 0, request, problems)


def _decode_host_sector(place: Place, host_id: int, raw: bytes, leader: Leader) -> RecordFound:
    where = place.where(host_id + 1)
    try:
        sector = parse_host_sector(raw, where)
    except BadRecord as error:
        return RecordFound("dblock", where.offset, host_id, None, (error,))
    most = place.sizes.max_hosts
    ahead = leader.lver + 1
    checks: tuple[tuple[str, object, object, bool], ...] = (
        ("host id", f"at most num_hosts {leader.num_hosts}", host_id, host_id <= leader.num_hosts),
        (
            "mbal",
            f"a number of host {host_id}",
            sector.mbal,
            sector.mbal == 0 or sector.mbal % most == host_id % most,
        ),
        ("bal", f"at most mbal {sector.mbal}", sector.bal, sector.bal <= sector.mbal),
        ("inp", f"a host id up to {most}", sector.inp, sector.inp <= most),
        ("inp", "a host id", 0, sector.bal == 0 or sector.inp != 0),
        ("lver", f"at most {ahead}, the next version", sector.lver, sector.lver <= ahead),
        ("generation", "at least 1", 0, sector.shared_generation != 0),
    )
    problems = [
        where.bad("dblock", field, wanted, found, -214)
        for field, wanted, found, good in checks
        if not good
    ]
    return RecordFound("dblock", where.offset, host_id, sector, _once_per_field(problems))


# -- indexes -----------------------------------------------------------------------------------


def decode_index(place: Place) -> AreaFound:
    """Decode header and used entries, and look at the private lease and each entry's resource."""
    data = place.content()
    header = unpack_rindex_header(data)
    where = place.where(0)
    problems: list[BadRecord] = []
    try:
        parse_rindex_header(data, where, None)
    except BadRecord as error:
        problems.append(error)
    limit = rindex_capacity(place.sizes)
    if header.max_resources > limit:
        found = header.max_resources
        problems.append(where.bad("rindex header", "max_resources", f"at most {limit}", found, -22))
    name = cut_name(header.lockspace_name)
    records = [RecordFound("rindex header", where.offset, 0, header, tuple(problems))]
    first_of_name: dict[bytes, int] = {}
    for entry, record in used_entries(data, place.sizes, 0):
        records.append(_decode_entry(place, header, entry, record, first_of_name))
    lease = _resource_problem(place, 1, RINDEX_LEASE_NAME, name)
    return AreaFound(
        AreaKind.INDEX,
        place.offset,
        place.sizes,
        name,
        b"",
        tuple(records),
        () if lease is None else (lease,),
    )


def _decode_entry(
    place: Place,
    header: RindexHeader,
    entry: int,
    record: RindexEntry,
    first_of_name: dict[bytes, int],
) -> RecordFound:
    where = Where(place.path, place.area.index_entry(entry))
    expected = place.area.following(2 + entry).offset
    name = cut_name(record.name)
    first = first_of_name.setdefault(name, entry)
    most = min(
        header.max_resources or rindex_capacity(place.sizes), rindex_shared_capacity(place.sizes)
    )
    checks: tuple[tuple[str, object, object, bool], ...] = (
        ("res_offset", expected, record.res_offset, record.res_offset == expected),
        ("name", "a name", "none", bool(name)),
        ("name", f"one entry of that name, it is entry {first} too", name, first == entry),
        ("entry", f"below {most}", entry, entry < most),
    )
    problems = [
        where.bad("rindex entry", field, wanted, found, -278)
        for field, wanted, found, good in checks
        if not good
    ]
    if not problems:
        wrong = _resource_problem(place, 2 + entry, name, cut_name(header.lockspace_name))
        problems += [] if wrong is None else [wrong]
    return RecordFound("rindex entry", where.offset, entry, record, tuple(problems))


def _resource_problem(place: Place, areas: int, name: bytes, lockspace: bytes) -> BadRecord | None:
    """Return why an area behind an index is not the resource that it should be."""
    area = place.area.following(areas)
    where = Where(area.path, area.offset)
    if area.offset + area.sizes.align_size > place.device_bytes:
        end = place.device_bytes
        return where.bad("paxos leader", "offset", f"inside of {end} bytes", area.offset, -22)
    try:
        data = place.read(area.offset, area.sector_size)
    except StorageError as error:
        return where.bad("paxos leader", "content", "readable", str(error), -5)
    leader = unpack_leader(data.ljust(area.sector_size, b"\0"))
    checks = (
        ("magic", f"{PAXOS_MAGIC:#010x}", _magic(leader.magic), leader.magic == PAXOS_MAGIC),
        ("space_name", lockspace, cut_name(leader.space_name), None),
        ("resource_name", name, cut_name(leader.resource_name), None),
    )
    for field, expected, found, good in checks:
        if not (expected == found if good is None else good):
            return where.bad("paxos leader", field, expected, found, -278)
    return None


def _magic(magic: int) -> str:
    return "that of a cleared resource" if magic == CLEARED_MAGIC else f"{magic:#010x}"
