"""What an area of a disk holds, as lines of text without times, checksums and ballot numbers.

Written from spec/disk-format.md sections 4 to 6, independently of the program's own records.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Final

AREA: Final = 1 << 20
DELTA, PAXOS, CLEARED = 0x12212010, 0x06152010, 0x11282016
REQUEST, RINDEX = 0x08292011, 0x01042018
LVB_SECTOR: Final = 2002
_LEADER: Final = "<4I5Q48s48sQQIHHQQQ"


def crc32c(data: bytes) -> int:
    """Return sanlock's checksum (section 3)."""
    value = 0xFFFFFFFE
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


def read(path: Path, offset: int, size: int) -> bytes:
    """Read past the page cache of nobody: the file as it is."""
    with path.open("rb") as file:
        return os.pread(file.fileno(), size, offset)


def write(path: Path, offset: int, data: bytes) -> None:
    """Alter a disk as nobody of the cluster would."""
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), data, offset)
        os.fsync(file.fileno())


def alter_leader(path: Path, offset: int, at: int, data: bytes, *, is_valid: bool = True) -> None:
    """Overwrite bytes of a leader record and, if it is to be valid, renew its checksum."""
    record = bytearray(read(path, offset, 512))
    record[at : at + len(data)] = data
    if is_valid:
        record[168:172] = crc32c(bytes(record[:168])).to_bytes(4, "little")
    write(path, offset, bytes(record))


def tell(path: Path, offset: int, sector_size: int) -> list[str]:
    """Tell every sector of an area that is not empty."""
    data = read(path, offset, AREA)
    lines: list[str] = []
    is_lease = int.from_bytes(data[:4], "little") in (PAXOS, CLEARED)
    for number in range(len(data) // sector_size):
        sector = data[number * sector_size : (number + 1) * sector_size]
        if any(sector):
            line = _sector(number, sector, is_lease)
            if not lines or lines[-1].split(": ", 1)[1] != line:
                lines.append(f"{number}: {line}")
    return lines or ["empty"]


def _sector(number: int, sector: bytes, is_lease: bool) -> str:
    magic = int.from_bytes(sector[:4], "little")
    if magic in (DELTA, PAXOS, CLEARED):
        return _leader(sector)
    if is_lease and number == 1:
        magic, version, lver, mode = struct.unpack_from("<IIQI", sector)
        return f"request {magic:#x} {version:#x} lver={lver} mode={mode}"
    if is_lease and 1 < number < LVB_SECTOR:
        return _host_block(sector)
    return f"bytes {hashlib.sha256(sector).hexdigest()[:12]} {sector[:16].hex()}"


def _name(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="backslashreplace")


def _leader(sector: bytes) -> str:
    fields = struct.unpack_from(_LEADER, sector)
    magic, version, flags, size, num_hosts, max_hosts, owner, generation, lver = fields[:9]
    space, name, timestamp, unused, checksum, unused2, io_timeout, *writer = fields[9:]
    good = "good" if checksum == crc32c(sector[:168]) else "bad"
    is_delta = magic == DELTA
    rest = "*" if any(sector[200:]) else "-"
    writer_text = writer if is_delta else [*writer[:2], "*" if writer[2] else 0]
    return (
        f"leader {magic:#x} {version:#x} flags={flags:#x} sector={size} hosts={num_hosts}/"
        f"{max_hosts} owner={owner} generation={generation} lver={lver} {_name(space)!r} "
        f"{_name(name)!r} timestamp={'*' if timestamp else 0} unused={unused},{unused2} sum {good} "
        f"io_timeout={io_timeout} write={writer_text} rest {rest}"
    )


def _host_block(sector: bytes) -> str:
    mbal, bal, inp, inp2, inp3, lver, checksum, flags = struct.unpack_from("<6QII", sector)
    shared, generation = struct.unpack_from("<I4xQ", sector, 128)
    good = "good" if checksum == crc32c(sector[:48]) else "bad" if checksum else "no"
    return (
        f"dblock mbal={'*' if mbal else 0} bal={'*' if bal else 0} inp={inp},{inp2},"
        f"{'*' if inp3 else 0} lver={lver} sum {good} flags={flags:#x} "
        f"shared={shared:#x},{generation}"
    )
