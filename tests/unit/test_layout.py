"""Layout: places of records, sizes and names."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from paxoslease.disk.layout import (
    LEGAL_SIZES,
    LVB_SECTOR,
    MIB,
    SIZES_512,
    SIZES_4096,
    Area,
    Sizes,
    ballot_bytes,
    check_name,
    check_sizes,
    default_sizes,
    rindex_capacity,
    rindex_shared_capacity,
)
from paxoslease.errors import ConfigError

ALL = [Sizes(*pair) for pair in LEGAL_SIZES]


def test_the_five_legal_pairs() -> None:
    """Sizes, host counts and flags are those of the format's table (1.1)."""
    assert [(s.sector_size, s.align_size // MIB, s.max_hosts, s.align_flag) for s in ALL] == [
        (512, 1, 2000, 0x10),
        (4096, 1, 250, 0x10),
        (4096, 2, 500, 0x20),
        (4096, 4, 1000, 0x40),
        (4096, 8, 2000, 0x80),
    ]
    assert [s.rindex_flag for s in ALL] == [1, 1, 2, 4, 8]


@given(st.integers(0, 8192), st.integers(0, 16 * MIB))
def test_other_pairs_are_refused(sector_size: int, align_size: int) -> None:
    """A pair that no format has gives an error that lists the legal ones."""
    if (sector_size, align_size) in LEGAL_SIZES:
        assert check_sizes(sector_size, align_size) == (sector_size, align_size)
    else:
        with pytest.raises(ConfigError, match="512/1M, 4096/1M"):
            check_sizes(sector_size, align_size)


def test_default_sizes() -> None:
    """A device's sector size decides what a formatter uses."""
    assert default_sizes(512) == SIZES_512
    assert default_sizes(4096) == SIZES_4096


@pytest.mark.parametrize("sizes", ALL, ids=str)
def test_places_of_records(sizes: Sizes) -> None:
    """Every record of every host lies inside of its area, on a sector, at the format's place."""
    area = Area("/dev/x", 3 * sizes.align_size + (1 << 40), sizes)
    size = sizes.sector_size
    assert area.delta(1) == area.offset
    assert area.delta(sizes.max_hosts) + size <= area.offset + sizes.align_size
    assert area.request == area.offset + size
    assert area.host_sector(1) == area.offset + 2 * size
    assert area.host_sector(sizes.max_hosts) + size <= area.offset + sizes.align_size
    assert area.index_entry(0) == area.offset + size
    last = rindex_capacity(sizes) - 1
    assert area.index_entry(last) + 64 <= area.offset + sizes.align_size
    assert area.following(2).offset == area.offset + 2 * sizes.align_size


def test_lvb_has_a_place_only_where_it_is_inside() -> None:
    """The LVB of 4096-byte sectors with less than 8 MiB would lie in a neighbour (M16)."""
    places = {tuple(s): Area("x", 10 * MIB, s).lvb for s in ALL}
    assert places.pop((512, MIB)) == 10 * MIB + 1025024
    assert places.pop((4096, 8 * MIB)) == 10 * MIB + LVB_SECTOR * 4096
    assert set(places.values()) == {None}


@pytest.mark.parametrize("sizes", ALL, ids=str)
def test_ballot_bytes(sizes: Sizes) -> None:
    """A ballot reads all host sectors, to a power of two, and never beyond the area."""
    for num_hosts in range(1, sizes.max_hosts + 1):
        got = ballot_bytes(sizes, num_hosts)
        needed = (num_hosts + 2) * sizes.sector_size
        assert needed <= got <= sizes.align_size
        assert got // 2 < needed
        assert got & (got - 1) == 0
    assert ballot_bytes(SIZES_512, 10) == 8192
    assert ballot_bytes(SIZES_512, 2000) == MIB


def test_index_limits() -> None:
    """Capacities are those of the format, and of sanlock's 32-bit arithmetic (6.1, 6.4)."""
    assert [rindex_capacity(s) for s in ALL] == [16000, 16000, 32000, 64000, 128000]
    assert [rindex_shared_capacity(s) for s in ALL] == [2048, 2048, 1024, 512, 256]


@pytest.mark.parametrize("name", ["", b"", "x" * 49, "ü" * 25, "a\0b", b"\0"])
def test_bad_names(name: str | bytes) -> None:
    """Empty, too long and zero-containing names are refused with the name of what they name."""
    with pytest.raises(ConfigError, match="resource"):
        check_name("resource", name)


@given(st.binary(min_size=1, max_size=48).filter(lambda raw: b"\0" not in raw))
def test_good_names(raw: bytes) -> None:
    """Any 1 to 48 bytes without zero are a name, and survive as text."""
    assert check_name("resource", raw) == raw
    assert check_name("resource", raw.decode("utf-8", "surrogateescape")) == raw
