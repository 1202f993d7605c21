"""Formatting lockspaces, resources and indexes, and clearing resources.

A lockspace becomes valid with a single sector write after everything else is in place; a resource
is one write of its whole area, a resource index two of them. Whoever formats has made sure that
nothing of value is there: nothing is read here.

The `overwrite_` functions are what sanlock's clients ask a daemon for: the same writes, of whatever
values they name, at whatever place the device takes them.

Source: spec/disk-format.md 4.6, 5.3, 5.4 and 6.3; spec/algorithms.md 12; rule M16.
"""

from __future__ import annotations

from paxoslease.disk.areas import (
    RINDEX_ENTRIES_DEFAULT,
    lockspace_area,
    resource_area,
    rindex_area,
    rindex_lease_area,
)
from paxoslease.disk.layout import Area, check_name, rindex_capacity
from paxoslease.errors import ConfigError
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.effects import Now, Protocol, Write
from paxoslease.timing import FORMAT_TIMEOUT_US, SECOND_US, Timing, check_timing


def check_place(area: Area) -> None:
    """Raise ConfigError unless an area begins at a multiple of its align size."""
    if area.offset < 0 or area.offset % area.sizes.align_size:
        reason = f"{area.offset} is not a multiple of the align size {area.sizes.align_size}"
        raise ConfigError("offset", reason)


def format_lockspace(space: Lockspace, io_timeout: int) -> Protocol[None]:
    """Format a lockspace: the area with an invalid first sector, then that sector.

    io_timeout: s, what its first joiners wait by. Raises ConfigError, DiskTimeout, DiskError; after
    an error the area is no lockspace, or a complete one when only the last answer was lost.
    """
    name = check_name("lockspace name", space.name)
    check_timing(Timing(io_timeout))
    check_place(space.area)
    yield from overwrite_lockspace(space._replace(name=name), io_timeout)


def overwrite_lockspace(
    space: Lockspace, io_timeout: int, *, timeout_us: int = FORMAT_TIMEOUT_US
) -> Protocol[None]:
    """Write a lockspace, unchecked: any name, any offset, an io_timeout of up to 65535 s.

    timeout_us: of each of the two writes. Raises DiskTimeout, DiskError.
    """
    data, first = lockspace_area(space.name, space.area.sizes, io_timeout)
    yield _write(space.area, data, timeout_us=timeout_us)
    yield _write(space.area, first, timeout_us=timeout_us)


def format_resource(
    lockspace: bytes,
    resource: bytes,
    area: Area,
    num_hosts: int = 0,
    *,
    not_after_us: int | None = None,
) -> Protocol[None]:
    """Format a resource: its leader, an empty request and zeros, in one write.

    num_hosts: how many host sectors ballots look at; 0 for all that fit. Raises ConfigError,
    DiskTimeout, DiskError, DecisionStale.
    """
    yield resource_write(lockspace, resource, area, num_hosts, not_after_us=not_after_us)


def resource_write(
    lockspace: bytes,
    resource: bytes,
    area: Area,
    num_hosts: int = 0,
    *,
    cleared_at_s: int | None = None,
    not_after_us: int | None = None,
) -> Write:
    """Return the write that formats a resource, or clears it. Raises ConfigError."""
    lockspace = check_name("lockspace name", lockspace)
    resource = check_name("resource name", resource)
    check_place(area)
    if not 0 <= num_hosts <= area.sizes.max_hosts:
        reason = f"{num_hosts} is not between 0 and {area.sizes.max_hosts}"
        raise ConfigError("num_hosts", reason)
    data = resource_area(lockspace, resource, area.sizes, num_hosts, cleared_at_s=cleared_at_s)
    return _write(area, data, not_after_us)


def overwrite_resource(
    lockspace: bytes,
    resource: bytes,
    areas: tuple[Area, ...],
    num_hosts: int = 0,
    *,
    clears: bool = False,
    timeout_us: int = FORMAT_TIMEOUT_US,
) -> Protocol[None]:
    """Write a resource on all of its disks in turn, or clear it, unchecked.

    num_hosts: what is no host id of the format stands for all that fit. timeout_us: of each write.
    Raises DiskTimeout, DiskError; what is behind a disk that failed was not written.
    """
    now_us: int = yield Now()
    cleared_at_s = now_us // SECOND_US if clears else None
    index = 0
    while index < len(areas):
        area = areas[index]
        index += 1
        data = resource_area(lockspace, resource, area.sizes, num_hosts, cleared_at_s=cleared_at_s)
        yield _write(area, data, timeout_us=timeout_us)
        del data


def clear_resource(
    lockspace: bytes, resource: bytes, area: Area, num_hosts: int = 0
) -> Protocol[None]:
    """Clear a resource: from now on it is not found. Raises as format_resource."""
    now_us: int = yield Now()
    cleared_at_s = now_us // SECOND_US
    yield resource_write(lockspace, resource, area, num_hosts, cleared_at_s=cleared_at_s)


def format_index(
    lockspace: bytes, area: Area, max_resources: int = RINDEX_ENTRIES_DEFAULT
) -> Protocol[None]:
    """Format a resource index: `area` with header and entries, the next with its private lease.

    Raises ConfigError, DiskTimeout, DiskError. A crash between the two writes leaves an index in
    which nothing can be created; formatting it again mends that.
    """
    lockspace = check_name("lockspace name", lockspace)
    check_place(area)
    limit = rindex_capacity(area.sizes)
    if not 0 <= max_resources <= limit:
        raise ConfigError("max_resources", f"{max_resources} is not between 0 and {limit}")
    yield from overwrite_index(lockspace, area, max_resources)


def overwrite_index(
    lockspace: bytes, area: Area, max_resources: int, *, timeout_us: int = FORMAT_TIMEOUT_US
) -> Protocol[None]:
    """Write a resource index and its private lease, unchecked. Raises DiskTimeout, DiskError."""
    data = rindex_area(lockspace, area.sizes, area.offset, max_resources)
    yield _write(area, data, timeout_us=timeout_us)
    del data
    lease = rindex_lease_area(lockspace, area.sizes)
    yield _write(area.following(1), lease, timeout_us=timeout_us)


def _write(
    area: Area,
    data: bytes,
    not_after_us: int | None = None,
    *,
    timeout_us: int = FORMAT_TIMEOUT_US,
) -> Write:
    return Write(area.path, area.offset, data, timeout_us, not_after_us)
