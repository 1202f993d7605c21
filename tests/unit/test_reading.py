"""Reading as a bystander: sizes that are found out, and what each damage is called."""

from __future__ import annotations

import pytest

from paxoslease.disk.layout import LEGAL_SIZES, SIZES_512, SIZES_4096, Area, Sizes
from paxoslease.disk.records import (
    HostSector,
    pack_host_sector,
    pack_leader,
    pad_name,
    unpack_leader,
)
from paxoslease.errors import PaxosleaseError
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.effects import Protocol, Write
from paxoslease.protocol.formatting import format_lockspace, format_resource
from paxoslease.protocol.reading import read_lockspace, read_resource, read_resource_owners
from tests.unit.drive import Desk

MIB = 1 << 20
ALL_SIZES = [Sizes(*pair) for pair in LEGAL_SIZES]


def desk_with(sizes: Sizes) -> Desk:
    """A lockspace of the first area, a resource in the second, nothing in the third."""
    desk = Desk()
    desk.disk("/d", 3 * sizes.align_size)
    desk.run(format_lockspace(Lockspace(b"ls", Area("/d", 0, sizes)), 7))
    desk.run(format_resource(b"ls", b"r", Area("/d", sizes.align_size, sizes)))
    desk.log.clear()
    return desk


def code_of(desk: Desk, protocol: Protocol[object]) -> int:
    """Return the number of the error that a protocol ends with."""
    with pytest.raises(PaxosleaseError) as caught:
        desk.run(protocol)
    assert not any(isinstance(effect, Write) for effect in desk.log)
    return caught.value.code


def alter(desk: Desk, offset: int, **fields: object) -> None:
    """Change fields of a leader record, and make its checksum right."""
    disk = desk.disks["/d"]
    leader = unpack_leader(bytes(disk[offset : offset + 512]))._replace(**fields)
    disk[offset : offset + 512] = pack_leader(leader.sealed(), 512)


@pytest.mark.parametrize("sizes", ALL_SIZES, ids=str)
def test_sizes_are_found_out(sizes: Sizes) -> None:
    """Nothing but the place need be known."""
    desk = desk_with(sizes)
    at = sizes.align_size
    assert desk.run(read_lockspace("/d", 0, None, sizes.max_hosts)).sizes == sizes
    assert desk.run(read_resource("/d", at, None, None)).sizes == sizes
    owners = desk.run(read_resource_owners("/d", at, b"ls", b"r"))
    assert (owners.leader.sizes, owners.exclusive, owners.shared) == (sizes, None, ())
    assert desk.run(read_resource_owners("/d", at, b"ls", b"r", *sizes)).leader.sizes == sizes


def test_owners() -> None:
    """Exclusive and shared holders are told with their generations."""
    desk = desk_with(SIZES_4096)
    area = Area("/d", SIZES_4096.align_size, SIZES_4096)
    disk = desk.disks["/d"]
    leader = unpack_leader(bytes(disk[area.offset : area.offset + 512]))
    held = leader._replace(owner_id=3, owner_generation=9, lver=4, timestamp=77, num_hosts=5)
    disk[area.offset : area.offset + 4096] = pack_leader(held.sealed(), 4096)
    start = area.host_sector(5)
    disk[start : start + 4096] = pack_host_sector(HostSector(shared_generation=2), 4096)
    owners = desk.run(read_resource_owners("/d", area.offset, b"ls", b"r"))
    assert (owners.exclusive, owners.shared, owners.leader.lver) == ((3, 9), ((5, 2),), 4)


def test_lockspaces_that_are_none() -> None:
    """The first record tells the sector size, so what is wrong with it is told for every host."""
    assert code_of(desk_with(SIZES_512), read_lockspace("/d", 0, b"other")) == -226
    assert code_of(desk_with(SIZES_512), read_lockspace("/d", MIB, b"ls")) == -223
    for fields, code in (
        ({"magic": 5}, -223),
        ({"version": 0x00040004}, -224),
        ({"sector_size": 1024}, -22),
        ({"sector_size": 0}, -22),
    ):
        desk = desk_with(SIZES_512)
        alter(desk, 0, **fields)
        assert code_of(desk, read_lockspace("/d", 0, b"ls", 3)) == code
        assert desk.run(read_lockspace("/d", 0, b"ls", 3, 512)).io_timeout == 7
    desk = desk_with(SIZES_512)
    desk.disks["/d"][100] ^= 1
    assert code_of(desk, read_lockspace("/d", 0, None)) == -229
    assert desk.run(read_lockspace("/d", 0, None, 2)).io_timeout == 7


def test_resources_that_are_none() -> None:
    """Names that are given must be right; owners are read of what has the right sizes only."""
    desk = desk_with(SIZES_512)
    assert code_of(desk, read_resource("/d", MIB, b"other", None)) == -226
    assert code_of(desk, read_resource("/d", MIB, None, b"other")) == -227
    assert code_of(desk, read_resource("/d", 2 * MIB, None, None)) == -223
    assert code_of(desk, read_resource_owners("/d", MIB, b"", b"r")) == -226
    assert code_of(desk, read_resource_owners("/d", 2 * MIB, b"ls", b"r")) == -22
    assert code_of(desk, read_resource_owners("/d", MIB, b"ls", b"r", 4096, MIB)) == -22
    assert code_of(desk, read_resource_owners("/d", MIB, b"ls", b"r", 512, MIB // 2)) == -22
    alter(desk, MIB, num_hosts=1 << 60, resource_name=pad_name(b"r"))
    assert code_of(desk, read_resource_owners("/d", MIB, b"ls", b"r")) == -228
