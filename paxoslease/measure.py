"""Measuring how long lease operations take on some storage, with a scratch lockspace."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from paxoslease.api import Lockspace, join
from paxoslease.disk.layout import check_name
from paxoslease.engine.format import format_lockspace, format_resource
from paxoslease.engine.host import engine
from paxoslease.errors import BadRecord, DiskError
from paxoslease.protocol.delta import Lockspace as Space, open_lockspace, read_image
from paxoslease.protocol.disks import Claim, Resource, read_leader
from paxoslease.protocol.effects import Now, Protocol, Write
from paxoslease.timing import SECOND_US, Timing

RESOURCE = "paxoslease-bench"
_HOST_ID = 1


def _scratch(
    path: str,
    name: str,
    offset: int,
    sector_size: int | None,
    align_size: int | None,
    force: bool,
) -> Space:
    """Return the scratch lockspace at a place; it is made unless one of that name is there."""
    raw = check_name("lockspace name", name)
    if os.path.exists(path):
        try:
            return engine().run_once(open_lockspace(path, offset, raw, Timing()), path)
        except (BadRecord, DiskError):
            # Not there: made below, unless the place holds something else.
            found = None
    format_lockspace(
        path,
        name,
        offset=offset,
        io_timeout=1,
        sector_size=sector_size,
        align_size=align_size,
        force=force,
    )
    found = engine().run_once(open_lockspace(path, offset, raw, Timing()), path)
    return found


@contextmanager
def measure_renewals(
    path: str,
    *,
    offset: int = 0,
    name: str,
    sector_size: int | None = None,
    align_size: int | None = None,
    force: bool = False,
) -> Iterator[Iterator[tuple[float, float]]]:
    """Yield an endless iterator over renewals: (us to read the area, us to write one sector).

    Works on the last host id of a scratch lockspace at `offset`. Raises as format_lockspace.
    """
    space = _scratch(path, name, offset, sector_size, align_size, force)
    owner = engine()
    owner.files.hold(path)
    try:
        yield _renewals(space)
    finally:
        owner.files.drop(path)


def _renewals(space: Space) -> Iterator[tuple[float, float]]:
    while True:
        yield engine().run_once(_one_renewal(space), space.area.path)


def _one_renewal(space: Space) -> Protocol[tuple[int, int]]:
    """Read the area and write the last host id's sector back as it was."""
    timing = Timing()
    host_id = space.area.sizes.max_hosts
    begun_us: int = yield Now()
    image = yield from read_image(space, host_id, timing)
    read_us: int = yield Now()
    area = space.area
    yield Write(area.path, area.delta(host_id), image.own, timing.io_us, read_us + timing.io_us)
    done_us: int = yield Now()
    return read_us - begun_us, done_us - read_us


@contextmanager
def measure_acquires(
    path: str,
    *,
    offset: int = 0,
    name: str,
    sector_size: int | None = None,
    align_size: int | None = None,
    force: bool = False,
) -> Iterator[Iterator[tuple[float, float]]]:
    """Yield an endless iterator over acquisitions: (us to acquire, us to release).

    Joins the scratch lockspace at `offset` and uses a resource behind it. Raises as
    format_lockspace and join.
    """
    space = _scratch(path, name, offset, sector_size, align_size, force)
    behind = space.area.following(1)
    claim = Claim(space, Resource(RESOURCE.encode(), (behind,)), Timing(), 0)
    try:
        engine().run_once(read_leader(claim), path)
    except (BadRecord, DiskError):
        format_resource(
            path,
            name,
            RESOURCE,
            offset=behind.offset,
            sector_size=behind.sizes.sector_size,
            align_size=behind.sizes.align_size,
            force=force,
        )
    with join(path, name, _HOST_ID, offset=offset, io_timeout=1) as lockspace:
        yield _acquires(lockspace, path, behind.offset)


def _acquires(lockspace: Lockspace, path: str, offset: int) -> Iterator[tuple[float, float]]:
    while True:
        begun = time.perf_counter()
        lease = lockspace.lease(RESOURCE, path, offset=offset)
        acquired = time.perf_counter()
        lease.release()
        released = time.perf_counter()
        yield (acquired - begun) * SECOND_US, (released - acquired) * SECOND_US
