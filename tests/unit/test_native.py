"""Checksums and scans done in C."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from paxoslease.disk import native
from paxoslease.disk.layout import SIZES_512
from paxoslease.disk.records import DELTA_MAGIC, bitmap_of_hosts, delta_at_format, pack_leader

KNOWN = [
    (b"", 0xFFFFFFFE),
    (b"123456789", 0xE8C7BB34),
    (bytes(48), 0xCB5AD842),
    (bytes(168), 0x7E11FBD1),
    (bytes(range(0x30)), 0xDFF3D1D1),
]


@pytest.mark.parametrize(("data", "checksum"), KNOWN)
def test_known_answers(data: bytes, checksum: int) -> None:
    """Both implementations give the format's known checksums (spec/disk-format.md 3)."""
    assert native.crc32c(data) == checksum
    assert native.crc32c_portable(data) == checksum


@given(st.binary(max_size=600))
def test_implementations_agree(data: bytes) -> None:
    """The processor's instruction and the portable loop give the same, whatever the length."""
    assert native.crc32c(data) == native.crc32c_portable(data) == native.crc32c(memoryview(data))


def test_every_byte_and_position_of_the_portable_table() -> None:
    """The table of the portable checksum agrees with the bitwise definition, byte by byte."""
    for value in range(256):
        for before in range(4):
            data = bytes(before) + bytes([value]) + bytes(5)
            assert native.crc32c_portable(data) == _by_definition(data)


def _by_definition(data: bytes) -> int:
    crc = 0xFFFFFFFE
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def _scan(area: bytes, count: int) -> list[int]:
    verdicts = native.scan(area, count, 512, zero_bytes=144, crc_bytes=48, crc_offset=48)
    return list(verdicts)


def test_scan_tells_zero_good_and_bad() -> None:
    """A scan finds which records are zero, which have a good checksum and which a bad one."""
    body = bytes(range(48))
    good = body + native.crc32c(body).to_bytes(4, "little")
    bad = body + b"\1\2\3\4"
    mode_only = bytes(128) + b"\1"  # not zero, and its dblock's checksum is not that of zeros
    area = b"".join(x.ljust(512, b"\0") for x in (b"", good, bad, mode_only))
    assert _scan(area, 4) == [native.ZERO, native.GOOD, native.BAD, native.BAD]


@pytest.mark.parametrize("zero_bytes", [0, 1, 7, 15, 16, 17, 31, 48, 144])
def test_scan_sees_a_single_bit_anywhere(zero_bytes: int) -> None:
    """One bit in any of the bytes that must be zero shows; the byte behind them does not."""
    for at in range(zero_bytes + 1):
        record = bytearray(152)
        record[at] = 0x10
        verdicts = native.scan(record, 1, 152, zero_bytes=zero_bytes, crc_bytes=144, crc_offset=148)
        assert (verdicts[0] != native.ZERO) == (at < zero_bytes)


@pytest.mark.parametrize(("length", "count"), [(511, 2), (100, 1), (0, 1), (1024, 3)])
def test_scan_refuses_records_outside_of_the_area(length: int, count: int) -> None:
    """A scan never looks behind the end of the memory that it was given."""
    with pytest.raises(ValueError, match="do not fit"):
        _scan(bytes(length), count)


def test_scan_of_nothing() -> None:
    """No records are no verdicts, also in an empty area."""
    assert _scan(b"", 0) == []


def test_delta_columns() -> None:
    """Columns show each used record's numbers, whether it is good, and whether our bit is set."""
    free = delta_at_format(b"LS", SIZES_512, 10)
    owned = free._replace(owner_id=2, owner_generation=7, timestamp=99, io_timeout=5).sealed()
    other = free._replace(owner_id=3, space_name=b"LSX".ljust(48, b"\0")).sealed()
    area = (
        pack_leader(free, 512)
        + pack_leader(owned, 512, bitmap_of_hosts((1, 300)))
        + pack_leader(other, 512, bitmap_of_hosts((299,)))
        + bytes(512)
    )
    columns = native.delta_columns(area, 4, 512, magic=DELTA_MAGIC, name=b"LS", marked_host_id=300)
    assert columns.rows.tolist() == [1, 2]
    assert columns.owner_id.tolist() == [2, 3]
    assert columns.generation.tolist() == [7, 0]
    assert columns.timestamp.tolist() == [99, 0]
    assert columns.io_timeout.tolist() == [5, 10]
    assert columns.good.tolist() == [True, False]
    assert columns.marks.tolist() == [True, False]
    assert columns.good.dtype == np.bool_


def test_delta_columns_compare_names_like_strncmp() -> None:
    """Bytes behind a name's first zero do not count (spec/disk-format.md 1)."""
    tail = delta_at_format(b"LS", SIZES_512, 10)
    tail = tail._replace(owner_id=1, space_name=b"LS\0tail".ljust(48, b"\0"))
    area = pack_leader(tail.sealed(), 512)
    columns = native.delta_columns(area, 1, 512, magic=DELTA_MAGIC, name=b"LS", marked_host_id=0)
    assert columns.good.tolist() == [True]
    assert columns.marks.tolist() == [False]


def test_delta_columns_refuse_a_short_area() -> None:
    """Columns are never taken from behind the end of the memory."""
    with pytest.raises(ValueError, match="do not fit"):
        native.delta_columns(bytes(1023), 2, 512, magic=0, name=b"", marked_host_id=1)
