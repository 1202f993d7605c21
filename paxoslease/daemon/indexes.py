"""The commands about resource indexes.

Look-ups go on side by side; of changes there is one at a time in a lockspace, since they all use
this host's hold on the index's private lease. What differs from 3.8.5 is what its index suffers
from: an offset outside of the index is refused, so is a second entry of a name or a resource
without one, and a resource that somebody holds is not deleted.

Source: spec/wire-protocol.md 12 and 21; spec/errors.md 2; rule M16.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from paxoslease.daemon.bridge import finished, in_thread, post
from paxoslease.daemon.connection import Call
from paxoslease.daemon.refusal import Refusal, number_of
from paxoslease.daemon.spaces import Space, Stage
from paxoslease.daemon.storage import Files, init_timeout_us, opened, perform, sizes_wanted
from paxoslease.disk.areas import RINDEX_ENTRIES_DEFAULT
from paxoslease.disk.layout import SIZES_512, Area, rindex_capacity
from paxoslease.engine.host import engine
from paxoslease.engine.operation import now_us
from paxoslease.errors import PaxosleaseError, RindexError
from paxoslease.protocol import formatting, rindex
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.effects import Protocol
from paxoslease.protocol.rindex_content import FULL, NO_PLACE, NO_SUCH, OTHER_NAME
from paxoslease.timing import SECOND_US, Timing
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import Command, RindexFlag

if TYPE_CHECKING:
    from paxoslease.daemon.server import Daemon, Handler

T = TypeVar("T")

# The private lease is held for the time of a dozen I/Os: its owner is waited for a little.
_PATIENCE_US: Final = 2 * SECOND_US

Answer = tuple[int, wire.Rentry]


class _Asked:
    """An index command as it was asked. `space`: the lockspace it is done in, None for none."""

    def __init__(self, daemon: Daemon, call: Call) -> None:
        self.daemon = daemon
        self.flags = RindexFlag(call.header.flags & 0x30001)
        self.rindex = wire.parse_rindex(call.payload[: wire.RINDEX_BYTES])
        self.path = os.fsdecode(self.rindex.disk.path)
        self.space: Space | None = None
        self.entry = wire.Rentry()
        if len(call.payload) > wire.RINDEX_BYTES:
            self.entry = wire.parse_rentry(call.payload[wire.RINDEX_BYTES :])

    @contextmanager
    def begun(self, *, is_change: bool, needs_space: bool = False) -> Iterator[None]:
        """Note that the lockspace's index is used. Raises Refusal (-ENOENT, -ENOSPC, -EBUSY)."""
        name = self.rindex.lockspace
        space = self.daemon.spaces.find(name, Stage.JOINED)
        if self.flags & RindexFlag.NO_LOCKSPACE and not needs_space:
            if space is not None and space.is_dead:
                space = None
        elif space is None:
            raise Refusal(errno.ENOENT)
        elif space.is_dead:
            raise Refusal(errno.ENOSPC)
        if space is None:
            yield
            return
        if is_change and space.index_is_changing:
            raise Refusal(errno.EBUSY)
        self.space = space
        space.index_users += 1
        try:
            yield
        finally:
            space.index_users -= 1

    def open_index(self) -> Protocol[rindex.Index]:
        """Find the index, as a member of its lockspace or as nobody; as rindex.open_index."""
        offset = self.rindex.disk.offset
        if self.space is None or self.space.membership is None:
            # Nobody reads a delta lease, so where the lockspace lies does not matter.
            nowhere = Area(self.path, offset, SIZES_512)
            space = Lockspace(self.rindex.lockspace, nowhere)
            return (yield from rindex.open_index(space, self.path, offset, Timing()))
        member = self.space.membership.member
        return (
            yield from rindex.open_index(
                member.space, self.path, offset, member.timing, member.host_id
            )
        )

    async def look(self, protocol: Protocol[T], files: Files) -> T:
        """Run a protocol that writes nothing."""
        if self.space is None or self.space.membership is None:
            return await perform(protocol, files)
        return await finished(self.space.membership.start_protocol(protocol, files))

    async def change(self, protocol: Protocol[T], files: Files) -> T:
        """Run a protocol that changes the index.

        When a disk hangs its caller is told, but the protocol goes on: until its end nothing else
        is changed, the file stays open, and the lockspace is in use: a write that is still in
        flight when the lockspace has failed must not outlive this host.
        """
        space = self.space
        if space is None or space.membership is None:
            return await perform(protocol, files)
        membership, loop = space.membership, asyncio.get_running_loop()

        def end() -> None:
            engine().files.drop(self.path)
            space.index_is_changing = False
            membership.set_used(space.used)
            self.daemon.spaces.changed()

        def to_the_end() -> Protocol[T]:
            try:
                return (yield from protocol)
            finally:
                post(loop, end)

        engine().files.hold(self.path)  # open already, so this does not block
        space.index_is_changing = True
        membership.set_used(True)
        operation = membership.start_protocol(to_the_end(), files)
        operation.is_impatient = True
        return await finished(operation)


def _check_place(index: rindex.Index, name: bytes, offset: int) -> None:
    """Refuse an offset that is not aligned (-277), wherever the index begins."""
    if offset % index.area.sizes.align_size:
        raise index.refuse(name, f"offset {offset} is no place of an index", NO_PLACE)


def _until_us() -> int:
    return now_us() + _PATIENCE_US


def _number(error: Exception) -> int:
    if isinstance(error, RindexError) and error.code == FULL:
        return NO_SUCH  # clients know no free place as nothing found
    return number_of(error)


async def _answer(call: Call, work: Awaitable[Answer]) -> None:
    """Answer with an entry, which is zeros after an error."""
    try:
        number, entry = await work
    except (Refusal, PaxosleaseError) as error:
        number, entry = _number(error), wire.Rentry()
    await call.reply(number, 0, wire.pack_rentry(entry))


async def format_rindex(daemon: Daemon, call: Call) -> None:
    """FORMAT_RINDEX: write an index, and its private lease behind it, over whatever is there."""
    wanted = wire.parse_rindex(call.payload)
    path = os.fsdecode(wanted.disk.path)
    async with opened(path) as files:
        area = Area(path, wanted.disk.offset, sizes_wanted(wanted.flags, files[path]))
        count = min(wanted.max_resources or RINDEX_ENTRIES_DEFAULT, rindex_capacity(area.sizes))
        protocol = formatting.overwrite_index(
            wanted.lockspace, area, count, timeout_us=init_timeout_us(daemon)
        )
        await perform(protocol, files)
    await call.reply(0)


async def lookup_rindex(daemon: Daemon, call: Call) -> None:
    """LOOKUP_RINDEX: by name, by offset, by both; or the first free place."""
    await _answer(call, _lookup(_Asked(daemon, call)))


async def _lookup(asked: _Asked) -> Answer:
    name, offset = asked.entry.name, asked.entry.offset

    def work() -> Protocol[rindex.Located]:
        index = yield from asked.open_index()
        if offset:
            _check_place(index, name, offset)
            return (yield from rindex.look_at(index, offset))
        return (yield from rindex.lookup(index, name or None))

    async with opened(asked.path) as files:
        with asked.begun(is_change=False):
            found = await asked.look(work(), files)
    number = OTHER_NAME if name and found.name != name else 0
    return number, wire.Rentry(found.name, found.offset)


async def update_rindex(daemon: Daemon, call: Call) -> None:
    """UPDATE_RINDEX: enter a resource that exists, or remove an entry."""
    await _answer(call, _update(_Asked(daemon, call)))


async def _update(asked: _Asked) -> Answer:
    name, offset = asked.entry.name, asked.entry.offset
    removes = bool(asked.flags & RindexFlag.REMOVE)

    def work() -> Protocol[rindex.Located]:
        index = yield from asked.open_index()
        _check_place(index, name, offset)
        is_good = offset and (removes or (asked.flags & RindexFlag.ADD and name))
        if not is_good:
            raise index.refuse(name, "neither what to enter nor what to remove", -errno.EINVAL)
        new_name = b"" if removes else name
        return (yield from rindex.overwrite_entry(index, offset, new_name, until_us=_until_us()))

    async with opened(asked.path) as files:
        with asked.begun(is_change=True):
            await asked.change(work(), files)
    return 0, wire.Rentry() if removes else wire.Rentry(name, offset)


async def create_resource(daemon: Daemon, call: Call) -> None:
    """CREATE_RESOURCE: format a resource in the first free place, and enter it."""
    await _answer(call, _create(_Asked(daemon, call), call.header.data2))


async def _create(asked: _Asked, num_hosts: int) -> Answer:
    def work() -> Protocol[rindex.Located]:
        index = yield from asked.open_index()
        fitting = num_hosts if num_hosts <= index.area.sizes.max_hosts else 0
        made = yield from rindex.create(index, asked.entry.name, fitting, until_us=_until_us())
        return made

    async with opened(asked.path) as files:
        with asked.begun(is_change=True, needs_space=True):
            made = await asked.change(work(), files)
    return 0, wire.Rentry(offset=made.offset)


async def delete_resource(daemon: Daemon, call: Call) -> None:
    """DELETE_RESOURCE: remove a resource's entry, and clear it; not while somebody holds it."""
    await _answer(call, _delete(_Asked(daemon, call)))


async def _delete(asked: _Asked) -> Answer:
    name, offset = asked.entry.name, asked.entry.offset

    def work() -> Protocol[None]:
        index = yield from asked.open_index()
        _check_place(index, name, offset)
        if not name:
            raise index.refuse(name, "nothing has no name", NO_SUCH)
        yield from rindex.delete(index, name, until_us=_until_us())

    async with opened(asked.path) as files:
        with asked.begun(is_change=True, needs_space=True):
            await asked.change(work(), files)
    return 0, wire.Rentry()


async def rebuild_rindex(daemon: Daemon, call: Call) -> None:
    """REBUILD_RINDEX: enter whatever lies in the places of an index."""
    asked = _Asked(daemon, call)

    async with opened(asked.path) as files:
        # Not the size when it was opened: the file may have grown since.
        size_bytes = await in_thread(os.lseek, files[asked.path].fd, 0, os.SEEK_END)

        def work() -> Protocol[rindex.Rebuilt]:
            index = yield from asked.open_index()
            return (yield from rindex.rebuild(index, size_bytes, until_us=_until_us()))

        with asked.begun(is_change=True):
            await asked.change(work(), files)
    await call.reply(0)


HANDLERS: Final[dict[Command, Handler]] = {
    Command.FORMAT_RINDEX: format_rindex,
    Command.UPDATE_RINDEX: update_rindex,
    Command.LOOKUP_RINDEX: lookup_rindex,
    Command.CREATE_RESOURCE: create_resource,
    Command.DELETE_RESOURCE: delete_resource,
    Command.REBUILD_RINDEX: rebuild_rindex,
}
