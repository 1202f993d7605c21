"""Formatting: the writes that make an area, in their order, and nothing beyond it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paxoslease.disk import areas
from paxoslease.disk.layout import LEGAL_SIZES, SIZES_512, Area, Sizes
from paxoslease.disk.records import (
    CLEARED_MAGIC,
    Where,
    parse_delta,
    parse_paxos,
    unpack_leader,
    unpack_rindex_header,
)
from paxoslease.errors import BadRecord, ConfigError, DiskError
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.effects import Protocol, Write
from paxoslease.protocol.formatting import (
    clear_resource,
    format_index,
    format_lockspace,
    format_resource,
    overwrite_index,
    overwrite_lockspace,
    overwrite_resource,
)
from tests.unit.drive import Desk

MIB = 1 << 20
ALL_SIZES = [Sizes(*pair) for pair in LEGAL_SIZES]


@pytest.mark.parametrize("sizes", ALL_SIZES, ids=str)
@pytest.mark.parametrize("what", ["lockspace", "resource", "cleared", "index"])
def test_only_the_area_is_written(sizes: Sizes, what: str) -> None:
    """Every byte of the area is written and not one byte beyond it, with a time-out of 60 s."""
    size = sizes.align_size
    area = Area("/d", 2 * size, sizes)
    desk = Desk()
    desk.disk("/d", 6 * size)[:] = b"\xee" * (6 * size)
    protocols: dict[str, Callable[[], Protocol[None]]] = {
        "lockspace": lambda: format_lockspace(Lockspace(b"ls", area), 10),
        "resource": lambda: format_resource(b"ls", b"res", area, 5),
        "cleared": lambda: clear_resource(b"ls", b"res", area),
        "index": lambda: format_index(b"ls", area),
    }
    desk.run(protocols[what]())
    ends = 4 * size if what == "index" else 3 * size
    disk = desk.disks["/d"]
    assert disk[: 2 * size] == b"\xee" * (2 * size)
    assert disk[ends:] == b"\xee" * (6 * size - ends)
    expected = {
        "lockspace": areas.lockspace_area(b"ls", sizes, 10)[1],
        "resource": areas.resource_area(b"ls", b"res", sizes, 5),
        "cleared": areas.resource_area(b"ls", b"res", sizes, cleared_at_s=1000),
        "index": areas.rindex_area(b"ls", sizes, 2 * size)
        + areas.resource_area(b"ls", b"rindex_lease", sizes),
    }[what]
    assert disk[2 * size : 2 * size + len(expected)] == expected
    writes = [effect for effect in desk.log if isinstance(effect, Write)]
    assert {write.timeout_us for write in writes} == {60_000_000}
    assert {write.not_after_us for write in writes} == {None}


def test_a_lockspace_becomes_valid_last() -> None:
    """If the second write fails, the area is no lockspace; host 1 cannot join it."""
    space = Lockspace(b"ls", Area("/d", 0, SIZES_512))
    desk = Desk()
    disk = desk.disk("/d", 1 << 20)
    desk.fail = lambda effect: (
        DiskError("/d", 0, "write", 5, "EIO")
        if isinstance(effect, Write) and len(effect.data) == 512
        else None
    )
    with pytest.raises(DiskError):
        desk.run(format_lockspace(space, 10))
    with pytest.raises(BadRecord):
        parse_delta(disk[:512], Where("/d", 0), b"ls")
    assert parse_delta(disk[512:1024], Where("/d", 512), b"ls").io_timeout == 10
    desk.fail = lambda effect: None
    desk.run(format_lockspace(space, 10))
    assert parse_delta(disk[:512], Where("/d", 0), b"ls").io_timeout == 10


def test_a_cleared_resource_is_not_found_and_can_be_formatted_again() -> None:
    """Clearing keeps the name but nobody finds a lease; formatting makes it usable, version 0."""
    area = Area("/d", 0, SIZES_512)
    desk = Desk(now_us=77_000_000)
    disk = desk.disk("/d", 1 << 20)
    desk.run(format_resource(b"ls", b"res", area))
    desk.run(clear_resource(b"ls", b"res", area))
    with pytest.raises(BadRecord) as caught:
        parse_paxos(disk[:512], Where("/d", 0), b"ls", b"res")
    assert caught.value.code == -223
    assert unpack_leader(disk).write_timestamp == 77
    desk.run(format_resource(b"ls", b"res", area))
    assert parse_paxos(disk[:512], Where("/d", 0), b"ls", b"res").lver == 0


AREA = Area("/d", 0, SIZES_512)
BAD: list[Any] = [
    pytest.param(format_lockspace(Lockspace(b"", AREA), 10), id="no name"),
    pytest.param(format_lockspace(Lockspace(b"x" * 49, AREA), 10), id="long name"),
    pytest.param(format_lockspace(Lockspace(b"ls", AREA), 0), id="io_timeout 0"),
    pytest.param(format_lockspace(Lockspace(b"ls", AREA), 256), id="io_timeout 256"),
    pytest.param(format_lockspace(Lockspace(b"ls", Area("/d", 512, SIZES_512)), 1), id="unaligned"),
    pytest.param(format_lockspace(Lockspace(b"ls", Area("/d", -(1 << 20), SIZES_512)), 1), id="<0"),
    pytest.param(format_resource(b"ls", b"", AREA), id="no resource name"),
    pytest.param(format_resource(b"ls", b"a\0", AREA), id="zero in name"),
    pytest.param(format_resource(b"ls", b"r", AREA, 2001), id="num_hosts too large"),
    pytest.param(format_resource(b"ls", b"r", AREA, -1), id="num_hosts negative"),
    pytest.param(
        format_resource(b"ls", b"r", Area("/d", 4096, SIZES_512)), id="unaligned resource"
    ),
    pytest.param(format_index(b"ls", AREA, 16001), id="max_resources too large"),
    pytest.param(format_index(b"", AREA), id="no lockspace name"),
    pytest.param(format_index(b"ls", Area("/d", 1, SIZES_512)), id="unaligned index"),
]


@pytest.mark.parametrize("protocol", BAD)
def test_bad_arguments_write_nothing(protocol: Protocol[None]) -> None:
    """A wrong argument is found before anything is written."""
    desk = Desk()
    with pytest.raises(ConfigError):
        desk.run(protocol)
    assert desk.log == []


def test_overwriting_takes_any_values() -> None:
    """What clients of a daemon ask for is written as they name it: no name, an odd offset."""
    desk = Desk()
    desk.disk("/d", 4 * MIB)[:] = b"\xee" * (4 * MIB)
    area = Area("/d", MIB + 512, SIZES_512)
    desk.run(overwrite_lockspace(Lockspace(b"", area), 40000, timeout_us=7))
    leader = parse_delta(desk.disks["/d"][area.offset :][:512], Where("/d", 0), b"")
    assert leader.io_timeout == 40000
    desk.run(overwrite_resource(b"", b"", (area,), -1, timeout_us=7))
    made = parse_paxos(desk.disks["/d"][area.offset :][:512], Where("/d", 0), b"", b"")
    assert made.num_hosts == 2000
    desk.run(overwrite_resource(b"", b"", (area,), clears=True, timeout_us=7))
    assert unpack_leader(desk.disks["/d"][area.offset :]).magic == CLEARED_MAGIC
    desk.run(overwrite_index(b"", area, 3, timeout_us=7))
    assert unpack_rindex_header(desk.disks["/d"][area.offset :]).max_resources == 3
    assert {effect.timeout_us for effect in desk.log if isinstance(effect, Write)} == {7}
    assert desk.disks["/d"][: area.offset] == b"\xee" * area.offset
    assert desk.disks["/d"][area.offset + 2 * MIB :] == b"\xee" * (MIB - 512)


def test_disks_are_overwritten_in_turn() -> None:
    """Of several disks the ones behind the first that fails are left as they are."""
    desk = Desk()
    areas_of_disks = tuple(Area(f"/d{i}", 0, SIZES_512) for i in range(3))
    for area in areas_of_disks:
        desk.disk(area.path, MIB)
    desk.fail = lambda effect: (
        DiskError("/d1", 0, "write", 5, "EIO") if getattr(effect, "path", "") == "/d1" else None
    )
    with pytest.raises(DiskError):
        desk.run(overwrite_resource(b"ls", b"r", areas_of_disks))
    assert [any(desk.disks[area.path]) for area in areas_of_disks] == [True, False, False]
