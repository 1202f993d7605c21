"""The commands that format and read lockspaces and resources, and REQUEST.

What is to be formatted is written over whatever is there, without asking, and makes a regular file
longer when it lies beyond the end: so do clients expect it. None but REQUEST needs a joined
lockspace.

Source: spec/wire-protocol.md 9.5 and 11; spec/errors.md 2.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from paxoslease.daemon.bridge import finished
from paxoslease.daemon.connection import Call
from paxoslease.daemon.entries import HeldFiles
from paxoslease.daemon.refusal import Refusal, number_of
from paxoslease.daemon.spaces import Space
from paxoslease.disk.direct import DirectFile
from paxoslease.disk.layout import Area, Sizes, check_sizes, default_sizes
from paxoslease.disk.records import Leader
from paxoslease.engine.host import engine
from paxoslease.errors import ConfigError, PaxosleaseError, StorageError
from paxoslease.protocol import formatting, reading, requests
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import Protocol
from paxoslease.protocol.leases import Owners
from paxoslease.timing import IO_TIMEOUT_DEFAULT_S, SECOND_US
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import Command

if TYPE_CHECKING:
    from paxoslease.daemon.server import Daemon, Handler

T = TypeVar("T")
Files = dict[str, DirectFile]

_BAD_SIZES: Final = 1  # the number for flags that no format has, which is no errno here
_IO_TIMEOUT_MASK: Final = 0xFFFF
_NAMES_BYTES: Final = 2 * wire.NAME_BYTES


@asynccontextmanager
async def opened(*paths: str) -> AsyncIterator[Files]:
    """Keep files open meanwhile. Raises DiskError, UnsuitableDevice."""
    async with HeldFiles(paths):
        yield {path: engine().files.held(path) for path in paths}


@asynccontextmanager
async def _first_opened(paths: Sequence[str]) -> AsyncIterator[Files]:
    """Keep the first of a resource's files open, which is read; most of the others must be there.

    Raises DiskError, UnsuitableDevice.
    """
    first = paths[0]
    async with HeldFiles(paths, len(paths) // 2 + 1) as held:
        if first in held.missing:
            raise held.missing[first]
        yield {first: engine().files.held(first)}


@asynccontextmanager
async def _device(disk: wire.Disk) -> AsyncIterator[DirectFile]:
    """Keep the file of a lockspace open meanwhile. Raises Refusal (-ENODEV): not openable."""
    path = os.fsdecode(disk.path)
    async with AsyncExitStack() as stack:
        try:
            files = await stack.enter_async_context(opened(path))
        except StorageError as error:
            raise Refusal(errno.ENODEV) from error
        yield files[path]


async def perform(protocol: Protocol[T], files: Files) -> T:
    """Run a protocol as a bystander; a time-out is told at once."""
    operation = engine().requests.start(protocol, files)
    operation.is_impatient = True
    return await finished(operation)


def sizes_wanted(flags: int, file: DirectFile) -> Sizes:
    """Return the sizes that flags ask for, the default without any. Raises Refusal (-1)."""
    sector_size, align_size = wire.sizes_of_flags(flags)
    if not sector_size and not align_size:
        return default_sizes(file.sector_size if file.is_block else 512)
    try:
        return check_sizes(sector_size, align_size)
    except ConfigError as error:
        raise Refusal(_BAD_SIZES) from error


def _areas(resource: wire.Resource, sizes: Sizes) -> tuple[Area, ...]:
    return tuple(Area(os.fsdecode(disk.path), disk.offset, sizes) for disk in resource.disks)


def _flags_found(flags: int, leader: Leader) -> int:
    """Return a client's flags with the sizes that are on disk instead of those it named."""
    sizes = leader.sizes
    return flags & ~wire.SIZE_FLAGS | (0 if sizes is None else wire.flags_of_sizes(*sizes))


def init_timeout_us(daemon: Daemon) -> int:
    """Return the time-out of a write that formats."""
    return daemon.options.write_init_io_timeout * SECOND_US


# -- lockspaces ----------------------------------------------------------------------------------


async def align(daemon: Daemon, call: Call) -> None:
    """ALIGN: the align size for a path, as a positive result."""
    async with _device(wire.parse_disk(call.payload)) as file:
        size = default_sizes(file.sector_size if file.is_block else 512).align_size
    await call.reply(size)


async def write_lockspace(daemon: Daemon, call: Call) -> None:
    """WRITE_LOCKSPACE: format a lockspace; `data2` is its io_timeout."""
    wanted = call.lockspace()
    io_timeout = (call.header.data2 or IO_TIMEOUT_DEFAULT_S) & _IO_TIMEOUT_MASK
    async with _device(wanted.disk) as file:
        sizes = sizes_wanted(wanted.flags, file)
        space = Lockspace(wanted.name, Area(file.path, wanted.disk.offset, sizes))
        timeout_us = init_timeout_us(daemon)
        await perform(
            formatting.overwrite_lockspace(space, io_timeout, timeout_us=timeout_us),
            {file.path: file},
        )
    await call.reply(0)


async def read_lockspace(daemon: Daemon, call: Call) -> None:
    """READ_LOCKSPACE: the name and sizes on disk; `data2` of the reply is its io_timeout."""
    wanted = call.lockspace()
    try:
        leader = await _read_lockspace(wanted)
    except (Refusal, PaxosleaseError) as error:
        await call.reply(number_of(error), 0, call.payload)
        return
    found = wanted._replace(
        name=leader.space_name,
        host_id=wanted.host_id or 1,
        flags=_flags_found(wanted.flags, leader),
    )
    await call.reply(0, leader.io_timeout, wire.pack_lockspace(found))


async def _read_lockspace(wanted: wire.Lockspace) -> Leader:
    sector_size, _ = wire.sizes_of_flags(wanted.flags)
    async with _device(wanted.disk) as file:
        protocol = reading.read_lockspace(
            file.path, wanted.disk.offset, wanted.name or None, wanted.host_id or 1, sector_size
        )
        return await perform(protocol, {file.path: file})


# -- resources -----------------------------------------------------------------------------------


def _paths(resource: wire.Resource) -> Sequence[str]:
    """Return the paths of a resource's disks. Raises Refusal (-ERANGE)."""
    if not 1 <= resource.num_disks <= wire.DISKS_MAX:
        raise Refusal(errno.ERANGE)
    return [os.fsdecode(disk.path) for disk in resource.disks]


async def write_resource(daemon: Daemon, call: Call) -> None:
    """WRITE_RESOURCE: format a resource, or clear it (WRITE_CLEAR); `data` is its num_hosts."""
    wanted = call.resource()
    paths = _paths(wanted)
    async with opened(*paths) as files:
        areas = _areas(wanted, sizes_wanted(wanted.flags, files[paths[0]]))
        protocol = formatting.overwrite_resource(
            wanted.lockspace,
            wanted.name,
            areas,
            wire.signed(call.header.data),
            clears=bool(call.header.flags & wire.WriteFlag.CLEAR),
            timeout_us=init_timeout_us(daemon),
        )
        await perform(protocol, files)
    await call.reply(0)


async def read_resource(daemon: Daemon, call: Call) -> None:
    """READ_RESOURCE: names, lver and sizes on disk, of the first disk alone."""
    wanted = call.resource()
    try:
        leader = await _read_resource(wanted)
    except (Refusal, PaxosleaseError) as error:
        await call.reply(number_of(error), 0, call.payload[: wire.RESOURCE_BYTES])
        return
    found = wanted._replace(
        lockspace=leader.space_name,
        name=leader.resource_name,
        lver=leader.lver,
        flags=_flags_found(wanted.flags, leader),
    )
    await call.reply(0, 0, wire.pack_resource(found, with_disks=False))


async def _read_resource(wanted: wire.Resource) -> Leader:
    sector_size, _ = wire.sizes_of_flags(wanted.flags)
    paths = _paths(wanted)
    async with _first_opened(paths) as files:
        offset = wanted.disks[0].offset
        protocol = reading.read_resource(
            paths[0], offset, wanted.lockspace or None, wanted.name or None, sector_size
        )
        return await perform(protocol, files)


async def read_resource_owners(daemon: Daemon, call: Call) -> None:
    """READ_RESOURCE_OWNERS: who holds a resource according to its first disk."""
    wanted = call.resource()
    try:
        owners = await _read_owners(wanted)
    except (Refusal, PaxosleaseError) as error:
        await call.reply(number_of(error), 0, call.payload[: wire.RESOURCE_BYTES])
        return
    hosts = [wire.Host(host_id, generation) for host_id, generation in owners.shared]
    if owners.exclusive is not None:
        owner = wire.Host(*owners.exclusive, timestamp=owners.leader.timestamp)
        # A host that is converting shows both; it is told of once.
        hosts = [owner, *(host for host in hosts if host.host_id != owner.host_id)]
    flags = wanted.flags | (wire.ResourceFlag.SHARED if owners.shared else 0)
    found = wanted._replace(lver=owners.leader.lver, flags=flags)
    # The names as they were sent, with whatever stands behind them.
    body = call.payload[:_NAMES_BYTES] + wire.pack_resource(found, with_disks=False)[_NAMES_BYTES:]
    await call.reply(0, len(hosts), body + b"".join(wire.pack_host(host) for host in hosts))


async def _read_owners(wanted: wire.Resource) -> Owners:
    paths = _paths(wanted)
    async with _first_opened(paths) as files:
        offset = wanted.disks[0].offset
        protocol = reading.read_resource_owners(
            paths[0], offset, wanted.lockspace, wanted.name, *wire.sizes_of_flags(wanted.flags)
        )
        return await perform(protocol, files)


# -- requests ------------------------------------------------------------------------------------


async def request(daemon: Daemon, call: Call) -> None:
    """REQUEST: ask the owner of a resource to give it up, or take that back; `data` says how."""
    wanted = call.resource()
    paths = _paths(wanted)
    space = daemon.spaces.usable(wanted.lockspace)
    force_mode = call.header.data
    async with opened(*paths) as files:
        claim = _claim(space, wanted)
        if not wanted.lver and not force_mode:
            await _as_member(space, requests.clear_request(claim), files)
            await call.reply(0)
            return
        is_next = not wanted.lver and call.header.flags & wire.RequestFlag.NEXT_LVER
        lver = None if is_next else wanted.lver
        asked = await _as_member(space, requests.write_request(claim, force_mode, lver), files)
    if asked is not None and space.outbox is not None:
        space.outbox.mark(asked.owner_id)
    await call.reply(0)


def _claim(space: Space, wanted: wire.Resource) -> Claim:
    assert space.membership is not None
    member = space.membership.member
    resource = Resource(wanted.name, _areas(wanted, member.space.area.sizes))
    return Claim(member.space, resource, member.timing, member.host_id)


async def _as_member(space: Space, protocol: Protocol[T], files: Files) -> T:
    assert space.membership is not None
    operation = space.membership.start_protocol(protocol, files)
    operation.is_impatient = True
    return await finished(operation)


HANDLERS: Final[dict[Command, Handler]] = {
    Command.ALIGN: align,
    Command.WRITE_LOCKSPACE: write_lockspace,
    Command.READ_LOCKSPACE: read_lockspace,
    Command.WRITE_RESOURCE: write_resource,
    Command.READ_RESOURCE: read_resource,
    Command.READ_RESOURCE_OWNERS: read_resource_owners,
    Command.REQUEST: request,
}
