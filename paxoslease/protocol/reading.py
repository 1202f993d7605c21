"""Reading a lockspace or a resource as a bystander: its sizes, and perhaps its names, are unknown.

Nothing is written and nothing decided here. A name of None is not checked; a sector size of 0 is
found out first.

Source: spec/wire-protocol.md 11.2, 11.4 and 11.5; spec/disk-format.md 4.2 and 5.2.
"""

from __future__ import annotations

from paxoslease.disk.layout import PROBE_BYTES, Area, default_sizes
from paxoslease.disk.records import (
    Leader,
    Where,
    check_delta_version,
    parse_delta,
    parse_paxos,
    unpack_leader,
)
from paxoslease.errors import UnsuitableDevice
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import Protocol, Read
from paxoslease.protocol.leases import Owners, read_owners
from paxoslease.timing import Timing

_TIMING = Timing()


def read_lockspace(
    path: str, offset: int, name: bytes | None, host_id: int = 1, sector_size: int = 0
) -> Protocol[Leader]:
    """Read a host's delta lease in the lockspace at a place, whatever host id that is.

    Raises UnsuitableDevice (a sector size that no format has), BadRecord, DiskTimeout, DiskError.
    """
    if not sector_size:
        data = yield Read(path, offset, PROBE_BYTES, _TIMING.io_us)
        first = unpack_leader(data)
        check_delta_version(first, Where(path, offset))
        sector_size = first.sector_size
        if sector_size not in (512, 4096):
            raise UnsuitableDevice(path, offset, f"its record states sectors of {sector_size}")
        del data
    at = offset + (host_id - 1) * sector_size
    data = yield Read(path, at, sector_size, _TIMING.io_us)
    return parse_delta(data, Where(path, at), name)


def read_resource(
    path: str,
    offset: int,
    lockspace: bytes | None,
    name: bytes | None,
    sector_size: int = 0,
) -> Protocol[Leader]:
    """Read the leader record of the resource at a place. Raises BadRecord, DiskTimeout, DiskError.

    A wrong sector size does no harm: the record says what is right.
    """
    data = yield Read(path, offset, sector_size or PROBE_BYTES, _TIMING.io_us)
    return parse_paxos(data, Where(path, offset), lockspace, name)


def read_resource_owners(
    path: str, offset: int, lockspace: bytes, name: bytes, sector_size: int = 0, align_size: int = 0
) -> Protocol[Owners]:
    """Read who holds the resource at a place. Sizes that are given must be those on disk.

    Raises UnsuitableDevice (other sizes, or nothing there), BadRecord, DiskTimeout, DiskError.
    """
    length = align_size or default_sizes(sector_size or 512).align_size
    data = yield Read(path, offset, length, _TIMING.io_us)
    leader = unpack_leader(data)
    found = (leader.sector_size, leader.align_size)
    wanted = (sector_size or found[0], align_size or found[1])
    if found[0] == 0 or found != wanted:
        reason = f"its record states {found[0]} and {found[1]} as sizes, not {wanted}"
        raise UnsuitableDevice(path, offset, reason)
    leader = parse_paxos(data, Where(path, offset), lockspace, name)
    del data
    assert leader.sizes is not None
    area = Area(path, offset, leader.sizes)
    space = Lockspace(lockspace, area)  # a bystander reads no delta lease
    return (yield from read_owners(Claim(space, Resource(name, (area,)), _TIMING, 0)))
