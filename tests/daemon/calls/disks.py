"""Compare files that were made by the same calls: equal but for times, ballots and checksums."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tests.daemon import areas

SECTOR: Final = 512
_PIECE: Final = 1 << 20
# Where a record holds times or ballot numbers and what follows from them; start and end in bytes.
_DELTA: Final = ((152, 160), (168, 172))
_PAXOS: Final = ((152, 160), (168, 172), (192, 200))
_REQUEST: Final = ((20, 24),)  # padding that 3.8.5 does not clear
_BALLOT: Final = ((0, 16), (32, 40), (48, 52))


def stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def copy(source: Path, target: Path) -> None:
    """Make a file equal to another, holes included."""
    with source.open("rb") as reader, target.open("r+b") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(0)
        writer.truncate(size)
        for start, end in _extents(reader.fileno(), size):
            for at in range(start, end, _PIECE):
                os.pwrite(writer.fileno(), os.pread(reader.fileno(), min(_PIECE, end - at), at), at)


def differences(real: Path, ours: Path, ignored: tuple[int, int] = (0, 0)) -> list[str]:
    """Return what differs between two files, a few lines at most; `ignored`: from where to where.

    What is ignored begins and ends at a multiple of 1 MiB.
    """
    with real.open("rb") as one, ours.open("rb") as other:
        sizes = [os.fstat(file.fileno()).st_size for file in (one, other)]
        if sizes[0] != sizes[1]:
            return [f"{real.name}: {sizes[0]} bytes, ours {sizes[1]}"]
        pieces = {
            at
            for file in (one, other)
            for start, end in _extents(file.fileno(), sizes[0])
            for at in range(start - start % _PIECE, end, _PIECE)
        }
        found: list[str] = []
        for at in sorted(pieces - set(range(*ignored, _PIECE))):
            data = os.pread(one.fileno(), _PIECE, at)
            others = os.pread(other.fileno(), _PIECE, at)
            if data != others:
                found += _sectors(real.name, at, data, others)
    return found[:6]


def _extents(descriptor: int, size: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            break  # holes up to the end
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


def _sectors(name: str, base: int, data: bytes, others: bytes) -> list[str]:
    found: list[str] = []
    for at in range(0, len(data), SECTOR):
        one, other = data[at : at + SECTOR], others[at : at + SECTOR]
        if one != other and _without_times(one) != _without_times(other):
            told = [" ".join(f"{n:x}:{b.hex()}" for n, b in _runs(s)) for s in (one, other)]
            found += [f"{name} at {base + at:#x}: {told[0]}", f"{'ours':>{len(name)}}: {told[1]}"]
    return found


def _runs(sector: bytes) -> list[tuple[int, bytes]]:
    """Return the 8-byte words that are not zero."""
    words = [(at, sector[at : at + 8]) for at in range(0, len(sector), 8)]
    return [(at, word) for at, word in words if any(word)][:24]


def _without_times(sector: bytes) -> bytes:
    """Put 1 where a record has a time or a ballot that is not 0, and whether its sum is right."""
    magic = int.from_bytes(sector[:4], "little")
    varying, summed, sum_at = _BALLOT, 48, 48
    if magic == areas.DELTA:
        varying, summed, sum_at = _DELTA, 168, 168
    elif magic in (areas.PAXOS, areas.CLEARED):
        varying, summed, sum_at = _PAXOS, 168, 168
    elif magic == areas.REQUEST:
        varying, summed, sum_at = _REQUEST, 0, 0
    told = bytearray(sector)
    for start, end in varying:
        told[start:end] = bytes([any(sector[start:end]) and magic != areas.REQUEST]) * (end - start)
    if summed:
        is_good = int.from_bytes(sector[sum_at : sum_at + 4], "little") == areas.crc32c(
            sector[:summed]
        )
        told[sum_at : sum_at + 4] = bytes([is_good] * 4)
    return bytes(told)
