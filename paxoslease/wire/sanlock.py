"""Sanlock's messages: what a client and its lease daemon say to each other.

Every message begins with a header of 32 bytes. What follows a request depends on its command, not
on the length that the header states (`payload_need`). Integers are little-endian, structures have
the alignment of x86-64.

A name is cut at its first NUL when it is parsed, since clients leave rubbish behind it, and padded
with NULs when it is packed. Parsers take exactly the bytes of their structure and never fail on
what is in them; what does not fit raises struct.error when it is packed.

Source: spec/wire-protocol.md 2 to 5, 7 and 14.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from paxoslease.wire.words import (
    AcquireFlag as AcquireFlag,
    AddFlag as AddFlag,
    Command as Command,
    Config as Config,
    EventFlag as EventFlag,
    HostFlag as HostFlag,
    InquireFlag as InquireFlag,
    KillpathFlag as KillpathFlag,
    LockspaceFlag as LockspaceFlag,
    ReleaseFlag as ReleaseFlag,
    RemoveFlag as RemoveFlag,
    RequestFlag as RequestFlag,
    ResourceFlag as ResourceFlag,
    RestrictFlag as RestrictFlag,
    RindexFlag as RindexFlag,
    SizeFlag as SizeFlag,
    WriteFlag as WriteFlag,
)

MAGIC: Final = 0x04282010
PROTOCOL_VERSION: Final = 0x00000001
BATCH_VERSION: Final = 0x00000002  # ours: more than eight resources in an ACQUIRE
RELEASE: Final = (3, 8, 5)
RELEASE_NUMBER: Final = RELEASE[0] << 24 | RELEASE[1] << 16 | RELEASE[2] << 8
SELF: Final = 0xFFFFFFFF

NAME_BYTES: Final = 48
PATH_BYTES: Final = 1024
KILLPATH_BYTES: Final = 128
RESOURCES_MAX: Final = 8
DISKS_MAX: Final = 4
LVB_MAX: Final = 4096
TEXT_MAX: Final = 4095

_HEADER: Final = struct.Struct("<8I")
_DISK: Final = struct.Struct("<1024sQII")
_LOCKSPACE: Final = struct.Struct("<48sQI4x")
_RESOURCE: Final = struct.Struct("<48s48sQQIIII")
_OPTIONS: Final = struct.Struct("<48sII")
_HOST: Final = struct.Struct("<QQQII")
_HOST_EVENT: Final = struct.Struct("<QQQQ")
_RINDEX: Final = struct.Struct("<IIQ48s")
_RENTRY: Final = struct.Struct("<48sQII")
_STATE: Final = struct.Struct("<IIi4xQ48sI4x")
_SENDER: Final = struct.Struct("<QQ")

HEADER_BYTES: Final = _HEADER.size
DISK_BYTES: Final = _DISK.size
LOCKSPACE_BYTES: Final = _LOCKSPACE.size + DISK_BYTES
RESOURCE_BYTES: Final = _RESOURCE.size
OPTIONS_BYTES: Final = _OPTIONS.size
HOST_BYTES: Final = _HOST.size
HOST_EVENT_BYTES: Final = _HOST_EVENT.size
RINDEX_BYTES: Final = _RINDEX.size + DISK_BYTES
RENTRY_BYTES: Final = _RENTRY.size
STATE_BYTES: Final = _STATE.size
EVENT_MESSAGE_BYTES: Final = HEADER_BYTES + HOST_EVENT_BYTES + _SENDER.size


SIZE_FLAGS: Final = 0x3F0
_ALIGN_BYTES: Final = {0x10: 1 << 20, 0x20: 2 << 20, 0x40: 4 << 20, 0x80: 8 << 20}
_SECTOR_BYTES: Final = {0x100: 512, 0x200: 4096}


def sizes_of_flags(flags: int) -> tuple[int, int]:
    """Return (sector size, align size) in bytes, 0 for one that is not given.

    Of several flags for one size the smallest counts. They need not fit together.
    """
    sector = next((size for flag, size in _SECTOR_BYTES.items() if flags & flag), 0)
    align = next((size for flag, size in _ALIGN_BYTES.items() if flags & flag), 0)
    return sector, align


def flags_of_sizes(sector_size: int, align_size: int) -> int:
    """Return the flags of a legal pair of sizes."""
    sector = {size: flag for flag, size in _SECTOR_BYTES.items()}[sector_size]
    return sector | {size: flag for flag, size in _ALIGN_BYTES.items()}[align_size]


# -- structures (spec/wire-protocol.md 3) --------------------------------------------------------


class Header(NamedTuple):
    """The head of a request or reply. `data` is a result in a reply: use `result`."""

    command: int
    flags: int = 0
    length: int = HEADER_BYTES
    data: int = 0
    data2: int = 0
    seq: int = 0
    version: int = PROTOCOL_VERSION
    magic: int = MAGIC

    @property
    def result(self) -> int:
        """Return `data` as the signed number that it is in replies."""
        return signed(self.data)


class Disk(NamedTuple):
    """A path (up to 1023 bytes) and an offset on it in bytes."""

    path: bytes
    offset: int = 0
    sector_size: int = 0
    descriptor: int = 0


class Lockspace(NamedTuple):
    """A lockspace as a client names it."""

    name: bytes
    host_id: int = 0
    flags: int = 0
    disk: Disk = Disk(b"")


class Resource(NamedTuple):
    """A resource as a client names it. num_disks as the message states it; disks as they follow."""

    lockspace: bytes
    name: bytes
    disks: tuple[Disk, ...] = ()
    lver: int = 0
    data64: int = 0
    data32: int = 0
    flags: int = 0
    num_disks: int = 0
    unused: int = 0

    @property
    def is_shared(self) -> bool:
        """Tell whether it is meant in shared mode."""
        return bool(self.flags & ResourceFlag.SHARED)


class Host(NamedTuple):
    """A host in GET_HOSTS and READ_RESOURCE_OWNERS."""

    host_id: int
    generation: int = 0
    timestamp: int = 0
    io_timeout: int = 0
    flags: int = 0


class HostEvent(NamedTuple):
    """An event for a host."""

    host_id: int
    generation: int = 0
    event: int = 0
    data: int = 0


class Rindex(NamedTuple):
    """A resource index as a client names it."""

    lockspace: bytes
    disk: Disk
    flags: int = 0
    max_resources: int = 0


class Rentry(NamedTuple):
    """An entry of a resource index."""

    name: bytes = b""
    offset: int = 0
    flags: int = 0


class StateType(IntEnum):
    """What a record of a status stream is about."""

    DAEMON = 1
    CLIENT = 2
    LOCKSPACE = 3
    RESOURCE = 4
    HOST = 5
    RENEWAL = 6


class State(NamedTuple):
    """A record of a status stream: its text is key=value items; data32 is signed."""

    type: int
    data32: int = 0
    data64: int = 0
    name: bytes = b""
    text: bytes = b""


class EventMessage(NamedTuple):
    """What the daemon sends on an event connection: the event, and who sent it."""

    event: HostEvent
    from_host_id: int
    from_generation: int


def signed(number: int) -> int:
    """Return 32 bits as the signed number that they stand for."""
    return number - (1 << 32) if number & 0x80000000 else number


def cut(name: bytes) -> bytes:
    """Return the part of a field before its first NUL."""
    return name.split(b"\0", 1)[0]


def pack_header(header: Header) -> bytes:
    """Return the 32 bytes of a header; a negative `data` or `data2` becomes its 32 bits."""
    return _HEADER.pack(
        header.magic,
        header.version,
        header.command,
        header.flags,
        header.length,
        header.seq,
        header.data & 0xFFFFFFFF,
        header.data2 & 0xFFFFFFFF,
    )


def parse_header(data: bytes) -> Header:
    """Parse 32 bytes."""
    magic, version, command, flags, length, seq, number, number2 = _HEADER.unpack(data)
    return Header(command, flags, length, number, number2, seq, version, magic)


def pack_disk(disk: Disk) -> bytes:
    """Return 1040 bytes; a longer path is cut at 1023 bytes."""
    path = disk.path[: PATH_BYTES - 1]
    return _DISK.pack(path, disk.offset, disk.sector_size, disk.descriptor)


def parse_disk(data: bytes) -> Disk:
    """Parse 1040 bytes."""
    path, offset, pad1, pad2 = _DISK.unpack(data)
    return Disk(cut(path)[: PATH_BYTES - 1], offset, pad1, pad2)


def pack_lockspace(space: Lockspace) -> bytes:
    """Return 1104 bytes."""
    return _LOCKSPACE.pack(space.name, space.host_id, space.flags) + pack_disk(space.disk)


def parse_lockspace(data: bytes) -> Lockspace:
    """Parse 1104 bytes."""
    name, host_id, flags = _LOCKSPACE.unpack_from(data)
    return Lockspace(cut(name), host_id, flags, parse_disk(data[_LOCKSPACE.size :]))


def pack_resource(resource: Resource, *, with_disks: bool) -> bytes:
    """Return 128 bytes, and 1040 for each disk where the command has them."""
    head = _RESOURCE.pack(
        resource.lockspace,
        resource.name,
        resource.lver,
        resource.data64,
        resource.data32,
        resource.unused,
        resource.flags,
        len(resource.disks) if with_disks else resource.num_disks,
    )
    return head + b"".join(pack_disk(disk) for disk in resource.disks if with_disks)


def parse_resource(data: bytes) -> Resource:
    """Parse 128 bytes and the disks behind them, as many as there are."""
    space, name, lver, data64, data32, unused, flags, num_disks = _RESOURCE.unpack_from(data)
    disks = tuple(
        parse_disk(data[at : at + DISK_BYTES])
        for at in range(RESOURCE_BYTES, len(data) - DISK_BYTES + 1, DISK_BYTES)
    )
    return Resource(cut(space), cut(name), disks, lver, data64, data32, flags, num_disks, unused)


def num_disks_of(data: bytes) -> int:
    """Return how many disks a packed resource says to have; 0 for more than there can be."""
    number: int = _RESOURCE.unpack_from(data)[7]
    return number if number <= DISKS_MAX else 0


def pack_options(owner_name: bytes) -> bytes:
    """Return the 56 bytes of options behind the resources of ACQUIRE."""
    return _OPTIONS.pack(owner_name, 0, 0)


def parse_options(data: bytes) -> bytes:
    """Parse 56 bytes; returns the owner name, the only thing in them that is used."""
    name: bytes = _OPTIONS.unpack(data)[0]
    return cut(name)


def pack_host(host: Host) -> bytes:
    """Return 32 bytes."""
    return _HOST.pack(*host)


def parse_host(data: bytes) -> Host:
    """Parse 32 bytes."""
    return Host(*_HOST.unpack(data))


def pack_host_event(event: HostEvent) -> bytes:
    """Return 32 bytes."""
    return _HOST_EVENT.pack(*event)


def parse_host_event(data: bytes) -> HostEvent:
    """Parse 32 bytes."""
    return HostEvent(*_HOST_EVENT.unpack(data))


def pack_rindex(rindex: Rindex) -> bytes:
    """Return 1104 bytes."""
    head = _RINDEX.pack(rindex.flags, rindex.max_resources, 0, rindex.lockspace)
    return head + pack_disk(rindex.disk)


def parse_rindex(data: bytes) -> Rindex:
    """Parse 1104 bytes."""
    flags, max_resources, _, space = _RINDEX.unpack_from(data)
    return Rindex(cut(space), parse_disk(data[_RINDEX.size :]), flags, max_resources)


def pack_rentry(entry: Rentry) -> bytes:
    """Return 64 bytes."""
    return _RENTRY.pack(entry.name, entry.offset, entry.flags, 0)


def parse_rentry(data: bytes) -> Rentry:
    """Parse 64 bytes."""
    name, offset, flags, _ = _RENTRY.unpack(data)
    return Rentry(cut(name), offset, flags)


def pack_state(state: State) -> bytes:
    """Return 80 bytes and the text with its NUL; a longer text is cut."""
    text = state.text[: TEXT_MAX - 1] + b"\0"
    head = _STATE.pack(state.type, 0, state.data32, state.data64, state.name, len(text))
    return head + text


def parse_state(data: bytes) -> tuple[State, int]:
    """Parse the 80 bytes before a text; returns the state without it, and the text's length."""
    kind, _, data32, data64, name, length = _STATE.unpack(data)
    return State(kind, data32, data64, cut(name)), length


def pack_event_message(message: EventMessage) -> bytes:
    """Return the 80 bytes of an event, its header included (spec/wire-protocol.md 13.2)."""
    header = Header(command=1, length=EVENT_MESSAGE_BYTES)
    sender = _SENDER.pack(message.from_host_id, message.from_generation)
    return pack_header(header) + pack_host_event(message.event) + sender


def parse_event_message(data: bytes) -> EventMessage:
    """Parse 80 bytes."""
    event = parse_host_event(data[HEADER_BYTES : HEADER_BYTES + HOST_EVENT_BYTES])
    return EventMessage(event, *_SENDER.unpack(data[HEADER_BYTES + HOST_EVENT_BYTES :]))


def pack_killpath(path: bytes, args: bytes) -> bytes:
    """Return 256 bytes; both parts are cut at 127 bytes."""
    end = KILLPATH_BYTES - 1
    return path[:end].ljust(KILLPATH_BYTES, b"\0") + args[:end].ljust(KILLPATH_BYTES, b"\0")


def parse_killpath(data: bytes) -> tuple[bytes, bytes]:
    """Parse 256 bytes into the program and its argument string."""
    end = KILLPATH_BYTES - 1
    return cut(data[:KILLPATH_BYTES])[:end], cut(data[KILLPATH_BYTES:])[:end]


# -- what follows the header of a request (spec/wire-protocol.md 4 and 5) -----------------------

_C = Command
_FIXED: Final = {
    **dict.fromkeys(
        (
            _C.ADD_LOCKSPACE,
            _C.REM_LOCKSPACE,
            _C.INQ_LOCKSPACE,
            _C.EXAMINE_LOCKSPACE,
            _C.HOST_STATUS,
            _C.WRITE_LOCKSPACE,
            _C.READ_LOCKSPACE,
            _C.GET_HOSTS,
            _C.END_EVENT,
            _C.SET_CONFIG,
            _C.RENEWAL,
            _C.FORMAT_RINDEX,
            _C.REBUILD_RINDEX,
        ),
        LOCKSPACE_BYTES,
    ),
    **dict.fromkeys((_C.REG_EVENT, _C.SET_EVENT), LOCKSPACE_BYTES + HOST_EVENT_BYTES),
    **dict.fromkeys(
        (_C.UPDATE_RINDEX, _C.LOOKUP_RINDEX, _C.CREATE_RESOURCE, _C.DELETE_RESOURCE),
        RINDEX_BYTES + RENTRY_BYTES,
    ),
    **dict.fromkeys((_C.EXAMINE_RESOURCE, _C.GET_LVB, _C.CONVERT), RESOURCE_BYTES),
    _C.ALIGN: DISK_BYTES,
    _C.KILLPATH: 2 * KILLPATH_BYTES,
}
_WITH_DISKS: Final = frozenset(
    (_C.REQUEST, _C.WRITE_RESOURCE, _C.READ_RESOURCE, _C.READ_RESOURCE_OWNERS)
)
assert LOCKSPACE_BYTES == RINDEX_BYTES == 1104


def payload_need(header: Header, payload: bytes, resources_max: int = RESOURCES_MAX) -> int:
    """Return how many bytes of payload there must be at least, given those that there are.

    When the answer is the number of bytes that are there, the payload is complete. The need grows
    while resources tell how many disks they have. An ACQUIRE or RELEASE of too many resources,
    which is refused, has what its header says, up to a limit. A resource with too many disks counts
    as having none.
    """
    command = header.command
    fixed = _FIXED.get(command)  # type: ignore[call-overload]
    if fixed is not None:
        return int(fixed)
    if command == Command.SET_LVB:
        size = header.length - HEADER_BYTES - RESOURCE_BYTES
        return RESOURCE_BYTES + (size if 0 < size <= LVB_MAX else 0)
    if command in _WITH_DISKS:
        return _need_of_resources(payload, 1)
    if command == Command.ACQUIRE:
        if header.data > resources_max:
            return _stated(header)
        return _need_of_resources(payload, header.data) + OPTIONS_BYTES
    if command == Command.RELEASE:
        count = _releases(header)
        return RESOURCE_BYTES * count if count <= RELEASES_MAX else _stated(header)
    return 0


RELEASES_MAX: Final = 1024
STATED_MAX: Final = 1 << 20


def _releases(header: Header) -> int:
    """Return how many resources a RELEASE has: as many as it says, if its length says so as well.

    Else as many as its form needs. What was left unread would be taken for further requests, and
    cost a registered client its connection.
    """
    if header.length == HEADER_BYTES + RESOURCE_BYTES * header.data:
        return header.data
    if header.flags & ReleaseFlag.ALL:
        return 0
    if header.flags & ReleaseFlag.ORPHAN:
        return 1
    return 2 if header.flags & ReleaseFlag.RENAME else header.data


def _stated(header: Header) -> int:
    """Return the size of a payload that is only read to be dropped."""
    return min(max(0, header.length - HEADER_BYTES), STATED_MAX)


def _need_of_resources(payload: bytes, count: int) -> int:
    at = 0
    for left in range(count, 0, -1):
        if len(payload) < at + RESOURCE_BYTES:
            return at + RESOURCE_BYTES * left
        at += RESOURCE_BYTES + DISK_BYTES * num_disks_of(payload[at : at + RESOURCE_BYTES])
    return at


def parse_resources(payload: bytes, count: int) -> tuple[tuple[Resource, ...], bytes]:
    """Parse `count` resources with their disks; returns them and what is behind them."""
    found: list[Resource] = []
    at = 0
    for _ in range(count):
        end = at + RESOURCE_BYTES
        end += DISK_BYTES * num_disks_of(payload[at:end])
        found.append(parse_resource(payload[at:end]))
        at = end
    return tuple(found), payload[at:]
