"""The resource index: names to places, kept by all hosts of a lockspace together.

Everything that changes an index happens under its private lease, so entries are read, decided
about and written by one host at a time; each entry is part of one sector, and a sector write is
atomic. A crash at any point leaves a valid index:

  create   resource first, then entry: the crash leaves a resource that nobody knows of
  delete   entry first, then clearing: the same
  rebuild  one sector after the other, each right before and after

Differences from sanlock (spec/algorithms.md 10): the private lease is released with RELEASED (M8)
and taken for update too; a second entry of a name is refused, entries that sanlock cannot reach are
not used (M16); a resource is deleted under its own lease, so not while somebody holds it; rebuild
writes only sectors that change, so no crash can tear the index.

Source: spec/disk-format.md 6; spec/algorithms.md 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from paxoslease.disk.areas import find_entry
from paxoslease.disk.layout import RINDEX_ENTRY_BYTES, Area, check_name
from paxoslease.disk.records import (
    FREE_ENTRY,
    PAXOS_MAGIC,
    RindexEntry,
    Where,
    cut_name,
    pack_rindex_entry,
    pad_name,
    parse_paxos,
    unpack_leader,
)
from paxoslease.errors import (
    BadRecord,
    ConfigError,
    DiskTimeout,
    LeaseBusy,
    PaxosleaseError,
    StorageError,
)
from paxoslease.protocol.contention import acquire_waiting
from paxoslease.protocol.effects import Gather, Landed, Membership, Protocol, Read, Standing, Write
from paxoslease.protocol.formatting import resource_write
from paxoslease.protocol.leases import Lease, acquire_exclusive, read_owners, release
from paxoslease.protocol.rindex_content import (
    EXISTS,
    INVALID,
    OTHER_NAME,
    Content,
    Index,
    Located,
    entry_of,
    find,
    first_free,
    list_all,
    look_at,
    lookup,
    open_index,
    place_at,
    read_content,
    read_header,
    usable,
)
from paxoslease.protocol.settle import shelf_life
from paxoslease.timing import SECOND_US

__all__ = [
    "Index",
    "Located",
    "Rebuilt",
    "create",
    "delete",
    "list_all",
    "look_at",
    "lookup",
    "open_index",
    "overwrite_entry",
    "rebuild",
    "update",
]

_Result = TypeVar("_Result")
_READS_AT_ONCE = 64


def create(
    index: Index, name: bytes, num_hosts: int = 0, *, until_us: int | None = 0
) -> Protocol[Located]:
    """Format a new resource in the first free place and enter it.

    until_us: how long to wait for the private lease, on the own clock; None without limit.
    Raises RindexError (name taken -17, full -28), ConfigError, BadRecord, DiskTimeout, DiskError,
    what acquiring the private lease raises. After an error of the last write the entry may or may
    not be there; both are in order.
    """
    name = check_name("resource name", name)
    lease = yield from _open(index, until_us)
    return (yield from _closing(lease, _create(index, lease, name, num_hosts)))


def _create(index: Index, lease: Lease, name: bytes, num_hosts: int) -> Protocol[Located]:
    content = yield from read_content(index)
    _refuse_duplicate(index, content, name)
    free = first_free(index, content)
    place = index.place(free.entry)
    shelf = yield from shelf_life(lease.claim)
    write = resource_write(
        index.space.name, name, place, num_hosts, not_after_us=shelf.not_after_us
    )
    yield from _settled(write)
    record = RindexEntry(place.offset, 0, 0, pad_name(name))
    yield from _write_entry(index, lease, content, free.entry, record)
    return Located(free.entry, name, place.offset)


def _refuse_duplicate(index: Index, content: Content, name: bytes) -> None:
    taken = find_entry(content.data, index.area.sizes, content.max_resources, name)
    if taken is not None:
        place = index.place(taken).offset
        raise index.refuse(name, f"exists already, at offset {place}", EXISTS)


def delete(
    index: Index, name: bytes, *, force: bool = False, until_us: int | None = 0
) -> Protocol[Located]:
    """Remove a resource from the index and clear it; not while somebody holds it.

    The resource's own lease is taken first, so that nobody can hold it when it vanishes; what
    acquiring it raises is raised (LeaseHeld, LeaseShared, LostRace, BadRecord of a damaged one).
    `force` clears it whoever holds it, as sanlock does. Other errors as create.
    """
    lease = yield from _open(index, until_us)
    return (yield from _closing(lease, _delete(index, lease, name, force)))


def _delete(index: Index, lease: Lease, name: bytes, force: bool) -> Protocol[Located]:
    content = yield from read_content(index)
    found = find(index, content, name)
    place = index.place(found.entry)
    victim = None
    if not force:
        victim = yield from _take(index, name, place)
    try:
        yield from _write_entry(index, lease, content, found.entry, FREE_ENTRY)
        yield from _clear(index, lease, name, place)
    except PaxosleaseError as error:
        failure = error
    else:
        return found
    if victim is not None:
        yield from _give_back(index, victim, found.entry)
    raise failure


def _take(index: Index, name: bytes, area: Area) -> Protocol[Lease | None]:
    """Acquire the resource to be deleted; None when there is none (never formatted, cleared)."""
    claim = index.claim(name, area)
    standing: Standing = yield Membership()
    try:
        owners = yield from read_owners(claim)
        # An acquisition takes a lease of the own life without asking: it may be in use right here.
        mine = (standing.host_id, standing.generation)
        if mine == owners.exclusive or mine in owners.shared:
            raise LeaseBusy(index.space.name, name, "held")
        return (yield from acquire_exclusive(claim))
    except BadRecord as error:
        if error.field != "magic":
            raise
    return None


def _give_back(index: Index, victim: Lease, entry: int) -> Protocol[None]:
    """Release a resource whose deletion failed, unless it was cleared all the same."""
    try:
        data = yield _read_leader(index, entry)
    except StorageError:
        data = b""
    if not data or unpack_leader(data).magic == PAXOS_MAGIC:
        yield from release(victim)


def _clear(index: Index, lease: Lease, name: bytes, area: Area) -> Protocol[None]:
    shelf = yield from shelf_life(lease.claim)
    yield from _settled(
        resource_write(
            index.space.name,
            name,
            area,
            cleared_at_s=shelf.now_us // SECOND_US,
            not_after_us=shelf.not_after_us,
        )
    )


def update(
    index: Index, name: bytes, offset: int, *, remove: bool = False, until_us: int | None = 0
) -> Protocol[Located]:
    """Enter a resource that exists at `offset`, or remove its entry; the resource is not touched.

    Raises RindexError (no place of this index -22, taken -17, another name there -278), ConfigError
    and as create.
    """
    name = check_name("resource name", name)
    lease = yield from _open(index, until_us)
    return (yield from _closing(lease, _update(index, lease, name, offset, remove)))


def _update(
    index: Index, lease: Lease, name: bytes, offset: int, remove: bool
) -> Protocol[Located]:
    content = yield from read_content(index)
    entry = index.entry_at(offset)
    if entry is None or entry >= usable(index, content.max_resources):
        raise index.refuse(name, f"offset {offset} is no place of this index", INVALID)
    there = entry_of(index, content, entry)
    if remove:
        if cut_name(there.name) != name:
            raise index.refuse(name, f"is not what offset {offset} holds", OTHER_NAME)
        record = FREE_ENTRY
    else:
        _refuse_duplicate(index, content, name)
        if not there.is_free:
            raise index.refuse(cut_name(there.name), f"is at offset {offset}", EXISTS)
        record = RindexEntry(offset, 0, 0, pad_name(name))
    yield from _write_entry(index, lease, content, entry, record)
    return Located(entry, name, offset)


def overwrite_entry(
    index: Index, offset: int, name: bytes = b"", *, until_us: int | None = 0
) -> Protocol[Located]:
    """Enter a name for the place at `offset`, whatever is entered there; an empty one removes it.

    The resource is not touched. A host that is no member (host id 0) has no private lease to take:
    it must know by other means that nobody else changes the index. Raises RindexError (no place of
    this index -277, the name has another place -17), ConfigError and as create.
    """
    lease = None
    if index.host_id:
        lease = yield from _open(index, until_us)
    return (yield from _closing(lease, _overwrite_entry(index, lease, offset, name)))


def _overwrite_entry(
    index: Index, lease: Lease | None, offset: int, name: bytes
) -> Protocol[Located]:
    content = yield from read_content(index)
    record = FREE_ENTRY
    if name:
        entry = place_at(index, offset, usable(index, content.max_resources))
        if cut_name(entry_of(index, content, entry).name) != name:
            _refuse_duplicate(index, content, name)
        record = RindexEntry(offset, 0, 0, pad_name(check_name("resource name", name)))
    else:
        entry = place_at(index, offset, content.max_resources)
    yield from _write_entry(index, lease, content, entry, record)
    return Located(entry, name, offset)


class Rebuilt(NamedTuple):
    """What a rebuild found: all resources now in the index, and what is wrong with some.

    problems: resources whose record is damaged or of another lockspace; they are entered all the
    same, as sanlock does, so that nothing is created over them. Of resources with one name, the one
    that was in the index, or else the first, is entered; the others are problems.
    """

    resources: tuple[Located, ...]
    problems: tuple[BadRecord, ...]


def rebuild(index: Index, device_bytes: int, *, until_us: int | None = 0) -> Protocol[Rebuilt]:
    """Enter what lies in the places of the index, up to the end of the device or file.

    device_bytes: its size. A read error ends the rebuild with nothing changed: a place that cannot
    be read must not look free. A host that is no member (host id 0) does it without the private
    lease, as in overwrite_entry. Raises as create.
    """
    lease = None
    if index.host_id:
        lease = yield from _open(index, until_us)
    return (yield from _closing(lease, _rebuild(index, lease, device_bytes)))


def _rebuild(index: Index, lease: Lease | None, device_bytes: int) -> Protocol[Rebuilt]:
    content = yield from read_content(index)
    fit = (device_bytes - index.place(0).offset) // index.area.sizes.align_size
    count = max(0, min(usable(index, content.max_resources), fit))
    leaders: tuple[bytes, ...] = ()
    while len(leaders) < count:
        first = len(leaders)
        batch = range(first, min(count, first + _READS_AT_ONCE))
        answers = yield Gather(tuple(_read_leader(index, i) for i in batch))
        failed = next((a for a in answers if isinstance(a, PaxosleaseError)), None)
        if failed is not None:
            raise failed
        leaders += tuple(answers)
    rebuilt = _judge_leaders(index, content, leaders)
    size = index.area.sector_size
    entries = bytearray(index.area.sizes.align_size - size)
    for found in rebuilt.resources:
        record = RindexEntry(found.offset, 0, 0, pad_name(found.name))
        at = found.entry * RINDEX_ENTRY_BYTES
        entries[at : at + RINDEX_ENTRY_BYTES] = pack_rindex_entry(record)
    wanted = content.data[:size] + bytes(entries)
    del entries
    changed = tuple(_changed_sectors(content.data, wanted, size))
    index_of_sector = 0
    while index_of_sector < len(changed):
        start = changed[index_of_sector]
        index_of_sector += 1
        not_after_us = yield from _not_after(lease)
        yield from _write_sector(
            index, index.area.offset + start, wanted[start : start + size], not_after_us
        )
    return rebuilt


def _changed_sectors(old: bytes, new: bytes, size: int) -> Iterator[int]:
    return (s for s in range(size, len(new), size) if old[s : s + size] != new[s : s + size])


def _read_leader(index: Index, entry: int) -> Read:
    place = index.place(entry)
    return Read(place.path, place.offset, place.sector_size, index.timing.io_us)


def _judge_leaders(index: Index, content: Content, leaders: tuple[bytes, ...]) -> Rebuilt:
    problems: list[BadRecord] = []
    found: dict[bytes, Located] = {}
    for entry, data in enumerate(leaders):
        leader = unpack_leader(data)
        if leader.magic != PAXOS_MAGIC:
            continue
        place = index.place(entry)
        where = Where(place.path, place.offset)
        name = cut_name(leader.resource_name)
        try:
            parse_paxos(data, where, index.space.name, None)
        except BadRecord as error:
            problems.append(error)
        here = Located(entry, name, place.offset)
        other = found.get(name)
        if other is None:
            found[name] = here
            continue
        if (
            cut_name(entry_of(index, content, entry).name)
            == name
            != cut_name(entry_of(index, content, other.entry).name)
        ):
            found[name], here = here, other
        expected = f"one resource of that name, found also at {found[name].offset}"
        bad_where = Where(place.path, here.offset)
        problems.append(bad_where.bad("paxos leader", "resource_name", expected, name, EXISTS))
    return Rebuilt(tuple(sorted(found.values())), tuple(problems))


# -- under the private lease -------------------------------------------------------------------


def _open(index: Index, until_us: int | None) -> Protocol[Lease]:
    """Check the header, then take the private lease. Raises what acquiring a lease raises."""
    if not 1 <= index.host_id <= index.area.sizes.max_hosts:
        raise ConfigError("host id", "changing an index needs a joined lockspace")
    yield from read_header(index)
    return (yield from acquire_waiting(index.lease, until_us))


def _closing(lease: Lease | None, operation: Protocol[_Result]) -> Protocol[_Result]:
    """Perform an operation under the private lease, if any, and give that back whatever happens.

    Raises ReleaseRefused after an operation that seemed to succeed while the lease was another's.
    """
    failure: PaxosleaseError | None = None
    result = None
    try:
        result = yield from operation
    except PaxosleaseError as error:
        failure = error
    refused = None
    if lease is not None:
        refused = yield from release(lease)
    if failure is not None:
        raise failure
    if refused is not None:
        raise refused
    assert result is not None
    return result


def _not_after(lease: Lease | None) -> Protocol[int | None]:
    """Return until when may be written what was read under the lease. Raises LockspaceFailed."""
    if lease is None:
        return None
    shelf = yield from shelf_life(lease.claim)
    return shelf.not_after_us


def _write_entry(
    index: Index, lease: Lease | None, content: Content, entry: int, record: RindexEntry
) -> Protocol[None]:
    """Write the sector with an entry, everything else in it as just read under the lease."""
    size = index.area.sector_size
    at = size + entry * RINDEX_ENTRY_BYTES
    start = at // size * size
    sector = bytearray(content.data[start : start + size])
    sector[at - start : at - start + RINDEX_ENTRY_BYTES] = pack_rindex_entry(record)
    data = bytes(sector)
    del sector
    not_after_us = yield from _not_after(lease)
    yield from _write_sector(index, index.area.offset + start, data, not_after_us)


def _write_sector(
    index: Index, offset: int, data: bytes, not_after_us: int | None
) -> Protocol[None]:
    area = index.area
    yield from _settled(Write(area.path, offset, data, index.timing.io_us, not_after_us))


def _settled(write: Write) -> Protocol[None]:
    """Write, and wait for the end of a write that timed out: it is only a slow one (M7)."""
    try:
        yield write
    except DiskTimeout as error:
        if not error.ticket:
            raise
        ticket = error.ticket
    else:
        return
    yield Landed(ticket)
