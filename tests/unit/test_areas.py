"""Areas: what is read at once agrees with the records read one by one."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from paxoslease.disk import areas
from paxoslease.disk.layout import LEGAL_SIZES, SIZES_512, Sizes, rindex_capacity
from paxoslease.disk.records import (
    FREE_ENTRY,
    HostSector,
    RindexEntry,
    bitmap_of_hosts,
    cut_name,
    delta_at_format,
    pack_host_sector,
    pack_leader,
    pack_rindex_entry,
    pad_name,
    unpack_leader,
    unpack_rindex_entry,
)

ALL_SIZES = [pytest.param(Sizes(*pair), id=f"{pair[0]}/{pair[1] >> 20}M") for pair in LEGAL_SIZES]
SMALL = Sizes(4096, 1 << 20)


def _lockspace(sizes: Sizes, name: bytes, seed: int) -> bytearray:
    """Return an area in which a tenth of the hosts have lived, a few of them damaged."""
    rng = random.Random(seed)
    area = bytearray(areas.lockspace_area(name, sizes, 10)[0])
    base = delta_at_format(name, sizes, 10)
    for host_id in rng.sample(range(1, sizes.max_hosts + 1), sizes.max_hosts // 10):
        record = base._replace(
            owner_id=host_id,
            owner_generation=rng.randrange(1, 1 << 63),
            timestamp=rng.randrange(1 << 63),
            io_timeout=rng.randrange(256),
            resource_name=rng.randbytes(48),
            space_name=(name + b"\0" + rng.randbytes(48))[:48],
        )
        if rng.random() < 0.2:
            record = record._replace(space_name=pad_name((name + b"!")[-48:]))
        if rng.random() < 0.2:
            record = record._replace(magic=rng.randrange(1 << 32))
        bitmap = rng.randbytes(256)
        start = (host_id - 1) * sizes.sector_size
        area[start : start + sizes.sector_size] = pack_leader(
            record.sealed(), sizes.sector_size, bitmap
        )
    return area


@pytest.mark.parametrize("sizes", ALL_SIZES)
@pytest.mark.parametrize("name", [b"a", b"seven-7", b"eight--8", b"n" * 47, b"n" * 48])
def test_delta_columns(sizes: Sizes, name: bytes) -> None:
    """The columns of a renewal's read say of every host what its record says."""
    area = _lockspace(sizes, name, len(name))
    own_id = sizes.max_hosts // 2 + 3
    columns = areas.delta_columns(memoryview(area), sizes, name, own_id)
    own_bitmap = bitmap_of_hosts((own_id,))
    byte = (own_id - 1) // 8
    starts = range(0, sizes.max_hosts * sizes.sector_size, sizes.sector_size)
    used = [i for i, start in enumerate(starts) if unpack_leader(area[start:]).owner_id]
    assert columns.rows.tolist() == used
    for i, start in enumerate(starts[index] for index in used):
        leader = unpack_leader(area[start : start + 200])
        assert columns.owner_id[i] == leader.owner_id
        assert columns.generation[i] == leader.owner_generation
        assert columns.timestamp[i] == leader.timestamp
        assert columns.io_timeout[i] == leader.io_timeout
        assert cut_name(bytes(columns.names[i])) == cut_name(leader.resource_name)
        good = leader.magic == 0x12212010 and cut_name(leader.space_name) == name
        assert columns.good[i] == good, used[i]
        assert columns.marks[i] == bool(area[start + 256 + byte] & own_bitmap[byte])


def test_delta_columns_outlive_the_buffer() -> None:
    """The columns are copies: the buffer can be used for the next read at once."""
    area = _lockspace(SMALL, b"ls", 1)
    columns = areas.delta_columns(area, SMALL, b"ls", 1)
    fields = [getattr(columns, field) for field in columns.__slots__]
    before = [field.copy() for field in fields]
    area[:] = b"\xff" * len(area)
    for field, kept in zip(fields, before, strict=True):
        assert np.array_equal(field, kept)
        assert field.flags["C_CONTIGUOUS"]


HOSTS = st.builds(
    HostSector,
    *([st.integers(0, 2**64 - 1)] * 6),
    released=st.booleans(),
    shared_generation=st.none() | st.integers(0, 2**64 - 1),
)


@given(st.dictionaries(st.integers(1, 250), HOSTS, max_size=20), st.integers(1, 250))
@settings(max_examples=50)
def test_nonzero_host_sectors(sectors: dict[int, HostSector], num_hosts: int) -> None:
    """Exactly the host sectors up to num_hosts that are not zero are found, in order."""
    area = bytearray(areas.resource_area(b"ls", b"res", SMALL))
    for host_id, sector in sectors.items():
        start = (host_id + 1) * 4096
        area[start : start + 4096] = pack_host_sector(sector, 4096)
    found = areas.nonzero_host_sectors(memoryview(area), 4096, num_hosts)
    expected = [
        (host_id, pack_host_sector(sector, 4096)[:144])
        for host_id, sector in sorted(sectors.items())
        if host_id <= num_hosts and any(pack_host_sector(sector, 4096))
    ]
    assert list(found) == expected
    view = areas.host_sectors(area, 4096, num_hosts)
    for host_id, sector in sectors.items():
        if host_id <= num_hosts:
            row = view[host_id - 1]
            assert (row["mbal"], row["bal"], row["lver"]) == (sector.mbal, sector.bal, sector.lver)
            assert bool(row["flags"] & 1) is sector.released
            if sector.shared_generation is not None:
                assert row["mode_generation"] == sector.shared_generation


@pytest.mark.parametrize("byte", [0, 55, 128, 143])
@pytest.mark.parametrize("host_id", [1, 2, 250])
def test_one_byte_makes_a_sector_used(byte: int, host_id: int) -> None:
    """Neither the first nor the last of the bytes that matter is overlooked."""
    area = bytearray(areas.resource_area(b"ls", b"res", SMALL))
    area[(host_id + 1) * 4096 + byte] = 1
    found = areas.nonzero_host_sectors(area, 4096, 250)
    assert [owner for owner, _ in found] == [host_id]


ENTRIES = st.dictionaries(
    st.integers(0, 60),
    st.builds(
        RindexEntry,
        st.integers(0, 2**63),
        st.just(0),
        st.just(0),
        st.binary(max_size=48).map(lambda raw: raw.ljust(48, b"\0")),
    ),
    max_size=20,
)


@given(ENTRIES, st.sampled_from([b"a", b"res-b", b"x" * 48]), st.integers(1, 64))
@settings(max_examples=50)
def test_index_entries(entries: dict[int, RindexEntry], name: bytes, most: int) -> None:
    """Finding names, free and used entries agrees with looking at every entry."""
    area = bytearray(areas.rindex_area(b"ls", SIZES_512, 0))
    if entries:
        some = min(entries)
        entries[some] = entries[some]._replace(name=(name + b"\0garbage".ljust(48))[:48])
    for i, entry in entries.items():
        area[512 + 64 * i : 576 + 64 * i] = pack_rindex_entry(entry)
    everything = [unpack_rindex_entry(area, 512 + 64 * i) for i in range(most)]
    named = [i for i, entry in enumerate(everything) if cut_name(entry.name) == name]
    free = [i for i, entry in enumerate(everything) if entry.is_free]
    assert areas.find_entry(area, SIZES_512, most, name) == (named[0] if named else None)
    assert areas.first_free_entry(area, SIZES_512, most) == (free[0] if free else None)
    assert areas.used_entries(area, SIZES_512, most) == tuple(
        (i, entry) for i, entry in enumerate(everything) if not entry.is_free
    )


@pytest.mark.parametrize("sizes", ALL_SIZES)
def test_the_last_entry_of_an_index(sizes: Sizes) -> None:
    """max_resources 0 and nonsense mean the format's limit, whose last entry is in the area."""
    last = rindex_capacity(sizes) - 1
    area = bytearray(areas.rindex_area(b"ls", sizes, 0, 0))
    start = sizes.sector_size + 64 * last
    area[start : start + 64] = pack_rindex_entry(FREE_ENTRY._replace(res_offset=5, name=b"z" * 48))
    assert start + 64 <= sizes.align_size
    for most in (0, last + 1, 2**32 - 1):
        assert areas.find_entry(area, sizes, most, b"z" * 48) == last
    assert areas.find_entry(area, sizes, last, b"z" * 48) is None
    assert areas.first_free_entry(area, sizes, 1) == 0


def test_a_full_index() -> None:
    """An index without a free entry says so."""
    area = bytearray(areas.rindex_area(b"ls", SIZES_512, 0))
    area[512 : 512 + 64 * 3] = pack_rindex_entry(FREE_ENTRY._replace(res_offset=9)) * 3
    assert areas.first_free_entry(area, SIZES_512, 3) is None
    assert areas.first_free_entry(area, SIZES_512, 4) == 3


@pytest.mark.parametrize("sizes", ALL_SIZES)
def test_formatted_records_lie_in_their_sectors(sizes: Sizes) -> None:
    """A formatted lockspace has one good record per host id and nothing behind them."""
    area, first = areas.lockspace_area(b"ls", sizes, 300)
    assert len(area) == sizes.align_size
    assert len(first) == sizes.sector_size
    view = areas.delta_sectors(area, sizes)
    assert view["magic"].tolist() == [0] + [0x12212010] * (sizes.max_hosts - 1)
    assert set(view["io_timeout"].tolist()) == {300}
    assert not any(area[sizes.max_hosts * sizes.sector_size :])
    for start in (0, sizes.sector_size):
        leader = unpack_leader(area[start : start + 200])
        assert leader.sealed() == leader
