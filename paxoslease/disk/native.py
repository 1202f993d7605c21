"""Checksums and scans of lease areas, done by the C helper (csrc/alignedio.h)."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from paxoslease._aio import ffi, lib

ZERO: Final = 0
GOOD: Final = 1
BAD: Final = 2


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """Return the CRC32C of lease records: initial value 0xFFFFFFFE, no final inversion.

    Source: spec/disk-format.md 3.
    """
    if isinstance(data, bytes):
        return int(lib.pl_crc32c(data, len(data)))
    with memoryview(data) as view:
        return int(lib.pl_crc32c(ffi.from_buffer(view), view.nbytes))


def crc32c_portable(data: bytes) -> int:
    """Return the same, computed without the processor's instruction."""
    return int(lib.pl_crc32c_portable(data, len(data)))


def scan(
    area: bytes | bytearray | memoryview,
    count: int,
    stride: int,
    *,
    zero_bytes: int,
    crc_bytes: int,
    crc_offset: int,
) -> npt.NDArray[np.uint8]:
    """Judge `count` records, `stride` bytes apart: uint8, one ZERO, GOOD or BAD per record.

    ZERO: the first zero_bytes are zero. GOOD or BAD: by the CRC32C over the first crc_bytes, that
    stands at crc_offset. Raises ValueError when the records do not lie within the area.
    """
    verdicts = np.empty(count, np.uint8)
    with memoryview(area) as view:
        found = lib.pl_scan(
            ffi.from_buffer(view),
            view.nbytes,
            count,
            stride,
            zero_bytes,
            crc_bytes,
            crc_offset,
            ffi.from_buffer("uint8_t[]", verdicts) if count else ffi.NULL,
        )
    if found < 0:
        raise ValueError(f"{count} records of {stride} bytes do not fit into the area")
    return verdicts


class Columns(NamedTuple):
    """Columns of the used delta leases of a lockspace: one element for each, in order.

    rows: uint32, which record it is (host id - 1). All arrays have their own memory.
    """

    rows: npt.NDArray[np.uint32]
    owner_id: npt.NDArray[np.uint64]
    generation: npt.NDArray[np.uint64]
    timestamp: npt.NDArray[np.uint64]
    io_timeout: npt.NDArray[np.uint16]
    good: npt.NDArray[np.bool_]
    marks: npt.NDArray[np.bool_]


def delta_columns(
    area: bytes | bytearray | memoryview,
    count: int,
    stride: int,
    *,
    magic: int,
    name: bytes,
    marked_host_id: int,
) -> Columns:
    """Copy the columns of those of `count` delta leases, `stride` bytes apart, that were ever used.

    good: magic and lockspace name (padded or not) are as given. marks: the bitmap bit of
    marked_host_id is set (0: no bit is asked for). Raises ValueError when they do not fit.
    """
    room = Columns(
        np.empty(count, np.uint32),
        np.empty(count, np.uint64),
        np.empty(count, np.uint64),
        np.empty(count, np.uint64),
        np.empty(count, np.uint16),
        np.empty(count, np.bool_),
        np.empty(count, np.bool_),
    )
    target = ffi.new(
        "struct pl_columns *",
        [
            ffi.from_buffer("uint32_t[]", room.rows),
            ffi.from_buffer("uint64_t[]", room.owner_id),
            ffi.from_buffer("uint64_t[]", room.generation),
            ffi.from_buffer("uint64_t[]", room.timestamp),
            ffi.from_buffer("uint16_t[]", room.io_timeout),
            ffi.from_buffer("uint8_t[]", room.good.view(np.uint8)),
            ffi.from_buffer("uint8_t[]", room.marks.view(np.uint8)),
        ],
    )
    byte, bit = divmod(max(marked_host_id, 1) - 1, 8)
    mask = 1 << bit if marked_host_id else 0
    with memoryview(area) as view:
        used = lib.pl_delta_columns(
            ffi.from_buffer(view),
            view.nbytes,
            count,
            stride,
            magic,
            name.ljust(48, b"\0"),
            byte,
            mask,
            target,
        )
    if used < 0:
        raise ValueError(f"{count} delta leases of {stride} bytes do not fit into the area")
    return Columns._make(column[:used].copy() for column in room)
