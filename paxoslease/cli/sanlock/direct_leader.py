"""`sanlock direct read_leader` and `write_leader`: one leader record, field by field.

Writing changes what a file says and leaves the rest of the sector; the checksum is made to fit,
unless -f 1 asks for the one in the file. A host's record of a lockspace is found by its host id.

Source: spec/cli.md 5.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from paxoslease.cli.sanlock.direct_place import (
    Refusal,
    number_of,
    opened,
    perform,
    read_at,
    sizes_of,
    timing_of,
)
from paxoslease.cli.sanlock.grammar import Options
from paxoslease.cli.sanlock.output import say
from paxoslease.disk.direct import DirectFile
from paxoslease.disk.layout import NAME_BYTES, PROBE_BYTES, Area, Sizes, default_sizes
from paxoslease.disk.records import (
    DELTA_MAGIC,
    LEADER_BYTES,
    LEADER_CRC_BYTES,
    PAXOS_MAGIC,
    Leader,
    Where,
    cut_name,
    pack_leader,
    pad_name,
    parse_delta,
    parse_paxos,
    unpack_leader,
)
from paxoslease.errors import PaxosleaseError
from paxoslease.lenient import to_long, to_unsigned
from paxoslease.protocol.effects import Protocol, Write
from paxoslease.wire.sanlock import Disk

# Fields that a lockspace's record has other names for.
_EXTRA: Final = {
    "write_id": b"extra1",
    "write_generation": b"extra2",
    "write_timestamp": b"extra3",
}
_HEX: Final = frozenset(("magic", "version", "flags", "checksum"))
_NAMES: Final = frozenset(("space_name", "resource_name"))
_UNUSED: Final = frozenset(("unused1", "unused2"))
_BITS: Final = {"io_timeout": 16, **dict.fromkeys((*_HEX, "sector_size"), 32)}
_NOTHING: Final = unpack_leader(bytes(LEADER_BYTES))


class _Place:
    """Where the record is that a command line means, and what may be wrong with it."""

    def __init__(self, options: Options, area: Area, file: DirectFile) -> None:
        self.options = options
        self.file = file
        self.area = area
        space = options.lockspace
        self.is_lockspace = bool(space.disk.path)
        self.offset = area.delta(space.host_id) if self.is_lockspace else area.offset

    def read(self) -> bytes:
        """Read its sector. Raises DiskError, DiskTimeout."""
        return read_at(self.options, self.file, self.offset, self.area.sector_size)

    def check(self, data: bytes) -> None:
        """Raise BadRecord unless the record is good and the one meant."""
        where = Where(self.area.path, self.offset)
        if self.is_lockspace:
            parse_delta(data, where, self.options.lockspace.name)
        else:
            resource = self.options.resources[0]
            parse_paxos(data, where, resource.lockspace, resource.name)


@contextmanager
def _found(options: Options) -> Iterator[_Place]:
    """Open the storage of the lockspace or resource given.

    Raises Refusal (-EINVAL no host id, -EPERM nothing given, -ENODEV), DiskError.
    """
    disk: Disk = options.lockspace.disk
    is_lockspace = bool(disk.path)
    if is_lockspace and not options.lockspace.host_id:
        raise Refusal(errno.EINVAL)
    if not is_lockspace:
        disks = options.resources[0].disks if options.resources else ()
        if not disks:
            raise Refusal(errno.EPERM)
        disk = disks[0]
    with opened(disk, for_lockspace=is_lockspace) as files:
        sizes_there = _sizes if is_lockspace else _sizes_of_resource
        area = Area(files[0].path, disk.offset, sizes_there(options, files[0], disk.offset))
        yield _Place(options, area, files[0])


def _sizes_of_resource(options: Options, file: DirectFile, offset: int) -> Sizes:
    """Return the sizes given, of which the sector size is enough, or the file's.

    Raises Refusal (-EPERM, -EINVAL: a sector size that no format has).
    """
    if not options.sector_size or options.align_size:
        return sizes_of(options, file)
    if options.sector_size not in (512, 4096):
        raise Refusal(errno.EINVAL)
    return default_sizes(options.sector_size)


def _sizes(options: Options, file: DirectFile, offset: int) -> Sizes:
    """Return the sizes given, or those that a lease there states. Raises Refusal (-EPERM)."""
    if options.align_size:
        return sizes_of(options, file)
    leader = unpack_leader(read_at(options, file, offset, PROBE_BYTES))
    if leader.magic not in (DELTA_MAGIC, PAXOS_MAGIC) or leader.sizes is None:
        raise Refusal(errno.EPERM)
    return leader.sizes


def read_leader(options: Options) -> int:
    """Print a record, also one that is not good; zeros when it could not be read."""
    leader, result = _NOTHING, 0
    try:
        with _found(options) as place:
            data = place.read()
            leader = unpack_leader(data)
            place.check(data)
    except (Refusal, PaxosleaseError) as error:
        result = number_of(error)
    say(b"read_leader done %d" % result)
    # With a resource beside a lockspace the fields are called as its own, but it is not read.
    _say_fields(leader, is_lockspace=not options.resources)
    return result


def _say_fields(leader: Leader, *, is_lockspace: bool) -> None:
    for field, value in leader._asdict().items():
        if field in _UNUSED:
            continue
        name = _EXTRA.get(field) if is_lockspace else None
        text = cut_name(value) if field in _NAMES else b"0x%x" % value
        if field not in _HEX and field not in _NAMES:
            text = b"%d" % value
        say(b"%b %b" % (name or field.encode(), text))


def write_leader(options: Options) -> int:
    """Change fields of a record as the file of -F says."""
    if not options.has("F"):
        say(b"open error %d (null)" % errno.EFAULT)
        return -1
    path = options.text("F")
    try:
        with open(path, "rb") as file:
            lines = file.read().splitlines(keepends=True)
    except OSError as error:
        say(b"open error %d %b" % (error.errno or 0, path))
        return -1
    changes = _changes(lines)
    leader, result = None, 0
    try:
        with _found(options) as place:
            leader = _write(place, changes, keeps_checksum=bool(options.number("f")))
    except (Refusal, PaxosleaseError) as error:
        result = number_of(error)
    say(b"write_leader done %d" % result)
    if leader is not None:
        _say_fields(leader, is_lockspace=bool(options.lockspace.disk.path))
    return result


def _changes(lines: Sequence[bytes]) -> dict[str, int | bytes]:
    """Read `field value` lines; what is none is told and skipped."""
    fields = {name: name for name in Leader._fields if name not in _UNUSED}
    fields.update({name.decode(): field for field, name in _EXTRA.items()})
    changes: dict[str, int | bytes] = {}
    for line in lines:
        words = line.split()
        if len(words) < 2:
            say(b'ignore line: "' + line.rstrip(b"\n"))
            say(b'"')
            continue
        field = fields.get(words[0].decode("latin-1"))
        if field is None:
            say(b'ignore field: "%b"' % words[0])
        elif field in _NAMES:
            changes[field] = pad_name(words[1][:NAME_BYTES])
        else:
            number = to_unsigned(b"0x" + words[1].removeprefix(b"0x")) if field in _HEX else 0
            number = number if field in _HEX else to_long(words[1])
            changes[field] = number & (1 << _BITS.get(field, 64)) - 1
    return changes


def _write(place: _Place, changes: Mapping[str, int | bytes], *, keeps_checksum: bool) -> Leader:
    data = place.read()
    leader = unpack_leader(data)._replace(**changes)  # type: ignore[arg-type]
    sealed = leader.sealed()
    if keeps_checksum and "checksum" in changes:
        numbers = (leader.checksum, sealed.checksum)
        say(b"warning: using specified checksum %x (generated is %x)" % numbers)
    else:
        say(b"use new generated checksum %x" % sealed.checksum)
        leader = sealed
    packed = bytearray(pack_leader(sealed, place.area.sector_size)[:LEADER_BYTES])
    packed[LEADER_CRC_BYTES : LEADER_CRC_BYTES + 4] = leader.checksum.to_bytes(4, "little")
    content = bytes(packed) + data[LEADER_BYTES:]

    def write() -> Protocol[None]:
        timeout_us = timing_of(place.options).io_us
        yield Write(place.area.path, place.offset, content, timeout_us, None)

    perform(write(), [place.file])
    return leader
