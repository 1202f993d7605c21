"""How lockspaces, resources and index entries are written on sanlock's command line.

Fields are separated by colons, and a backslash takes away the meaning of what follows it; for
lockspaces it only hides it from the search for colons, and is removed from the path alone.

Where the original reads past its buffers (an offset of `M` alone, `M` behind a sign, offsets in M
behind a path with a hidden colon), the offset is read as it is meant: docs/compatibility.md.

Source: spec/cli.md 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from paxoslease.lenient import to_long, to_unsigned
from paxoslease.wire.sanlock import (
    DISKS_MAX,
    NAME_BYTES,
    PATH_BYTES,
    Disk,
    Lockspace,
    Rentry,
    Resource,
    ResourceFlag,
    Rindex,
)

_U64: Final = (1 << 64) - 1
_MEGA: Final = 1 << 20
_HIDDEN: Final = re.compile(rb"\\.?", re.DOTALL)
_NUMBER: Final = re.compile(rb"[ \t\n\v\f\r]*[+-]?[0-9]")


class ResourceUnreadable(Exception):
    """A resource string cannot be understood; `number` is what the original says of it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def parse_lockspace(text: bytes) -> Lockspace:
    """Return `name:host_id:path:offset`; what is missing is empty or 0."""
    name, host_id, path, offset = _hidden_colons(text, 3)
    return Lockspace(
        name[:NAME_BYTES],
        to_long(host_id) & _U64,
        disk=Disk(_without_backslashes(path), _offset(offset)),
    )


def parse_rindex(text: bytes) -> Rindex:
    """Return `lockspace:path:offset`; what is missing is empty or 0."""
    name, path, offset = _hidden_colons(text, 2)
    return Rindex(name[:NAME_BYTES], Disk(_without_backslashes(path), _offset(offset)))


def parse_rentry(text: bytes) -> Rentry:
    """Return `[name][:offset]`."""
    name, _, offset = text.partition(b":")
    return Rentry(name[:NAME_BYTES], _offset(offset))


def parse_resource(text: bytes) -> Resource:
    """Return `lockspace:name[:path:offset]...[:lver|:SH]`. Raises ResourceUnreadable."""
    if len(text) < 3:
        raise ResourceUnreadable(-6)
    if (_HIDDEN.sub(b"", text).count(b":") - 1) // 2 > DISKS_MAX:
        raise ResourceUnreadable(-2)  # the first mistake that is told, whatever else is wrong
    fields = list(_fields(text))
    if len(fields) in (1, 3) or (len(fields) > 3 and not fields[-1]):
        raise ResourceUnreadable(-1)
    space, name, *rest = fields
    if max(len(space), len(name)) > NAME_BYTES:
        raise ResourceUnreadable(-1)
    last = rest.pop() if len(rest) % 2 else None
    disks = tuple(_disk(rest[at], rest[at + 1], is_first=at == 0) for at in range(0, len(rest), 2))
    lver = flags = 0
    if last is not None and last.startswith(b"SH"):
        flags = ResourceFlag.SHARED
    elif last is not None:
        flags, lver = ResourceFlag.LVER, to_unsigned(last)
    return Resource(space, name, disks, lver, flags=flags, num_disks=len(disks))


def _disk(path: bytes, offset: bytes, *, is_first: bool) -> Disk:
    if not 0 < len(path) < PATH_BYTES or not _NUMBER.match(offset):
        raise ResourceUnreadable(-1)
    is_mega = is_first and b"M" in offset
    return Disk(path, _offset(offset) if is_mega else to_unsigned(offset))


def _hidden_colons(text: bytes, colons: int) -> tuple[bytes, ...]:
    """Split at the first so many colons that no backslash precedes, and drop a further field."""
    fields = [bytearray() for _ in range(colons + 1)]
    number = 0
    at = 0
    while at < len(text):
        width = 2 if text[at : at + 1] == b"\\" else 1
        piece = text[at : at + width]
        at += width
        if piece != b":":
            fields[number] += piece
        elif number == colons:
            break
        else:
            number += 1
    return tuple(bytes(field) for field in fields)


def _without_backslashes(path: bytes) -> bytes:
    return path.replace(b"\\", b"")[: PATH_BYTES - 1]


def _offset(text: bytes) -> int:
    """Return an offset in bytes; an M behind the digits counts megabytes."""
    digits, mega, _ = text.partition(b"M")
    number = to_long(digits if mega else text)
    return (number * _MEGA if mega else number) & _U64


def _fields(text: bytes) -> Iterator[bytes]:
    """Split at colons; a backslash takes the next character literally."""
    field = bytearray()
    at = 0
    while at < len(text):
        byte = text[at : at + 1]
        if byte == b"\\":
            at += 1
            if at == len(text):
                raise ResourceUnreadable(-1)
            field += text[at : at + 1]
        elif byte == b":":
            yield bytes(field)
            field.clear()
        else:
            field += byte
        at += 1
    yield bytes(field)


# -- writing -----------------------------------------------------------------------------------


def escaped(path: bytes) -> bytes:
    """Return a path with its colons and blanks hidden."""
    return path.replace(b":", rb"\:").replace(b" ", rb"\ ")


def lockspace_text(space: Lockspace, *, is_raw: bool = False) -> bytes:
    """Return a lockspace as it is printed; the path as it is, or escaped."""
    path = space.disk.path if is_raw else escaped(space.disk.path)
    return b"%b:%d:%b:%d" % (space.name, space.host_id, path, space.disk.offset)


def resource_text(resource: Resource, lver: int) -> bytes:
    """Return a resource as it is printed, with a version or SH at the end."""
    disks = b"".join(b":%b:%d" % (escaped(disk.path), disk.offset) for disk in resource.disks)
    end = b"SH" if resource.is_shared else b"%d" % lver
    return b"%b:%b%b:%b" % (resource.lockspace, resource.name, disks, end)
