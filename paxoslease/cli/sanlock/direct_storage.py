"""`sanlock direct` actions that format, and those on resource indexes.

Whatever is there is overwritten without asking, as the original does it; what lies beyond the end
of a regular file makes it longer. A lease of 4096-byte sectors is written where it is asked for.

Source: spec/cli.md 4.7 and 5.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from paxoslease.cli.sanlock.direct_place import (
    Refusal,
    areas_of,
    number_of,
    opened,
    perform,
    sizes_of,
    timing_of,
)
from paxoslease.cli.sanlock.grammar import Options
from paxoslease.cli.sanlock.indexes import say_entry, wanted_entry
from paxoslease.cli.sanlock.output import say
from paxoslease.daemon.config import daemon_options
from paxoslease.disk.areas import RINDEX_ENTRIES_DEFAULT
from paxoslease.disk.direct import DirectFile
from paxoslease.disk.layout import SIZES_512, Area, rindex_capacity
from paxoslease.engine.operation import now_us
from paxoslease.errors import PaxosleaseError
from paxoslease.protocol import formatting, rindex
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.effects import Protocol
from paxoslease.protocol.rindex_content import NO_PLACE, OTHER_NAME
from paxoslease.timing import IO_TIMEOUT_DEFAULT_S, SECOND_US
from paxoslease.wire.sanlock import Rentry


def done(action: bytes, work: Callable[[], int | None]) -> int:
    """Do something and print and return its result."""
    try:
        result = work() or 0
    except (Refusal, PaxosleaseError) as error:
        result = number_of(error)
    say(b"%b done %d" % (action, result))
    return result


def _init_timeout_us() -> int:
    return daemon_options({}).write_init_io_timeout * SECOND_US


def init(options: Options) -> int:
    """Format a lockspace or a resource."""

    def work() -> None:
        if options.lockspace.disk.path:
            _init_lockspace(options)
        elif options.resources:
            _init_resource(options)
        else:
            raise Refusal(errno.EINVAL)

    return done(b"init", work)


def _init_lockspace(options: Options) -> None:
    disk = options.lockspace.disk
    io_timeout = (options.io_timeout or IO_TIMEOUT_DEFAULT_S) & 0xFFFF
    with opened(disk, for_lockspace=True) as files:
        area = Area(files[0].path, disk.offset, sizes_of(options, files[0]))
        space = Lockspace(options.lockspace.name, area)
        protocol = formatting.overwrite_lockspace(space, io_timeout, timeout_us=_init_timeout_us())
        perform(protocol, files)


def _init_resource(options: Options) -> None:
    resource = options.resources[0]
    if not resource.disks:
        raise Refusal(errno.ENODEV)
    with opened(*resource.disks) as files:
        protocol = formatting.overwrite_resource(
            resource.lockspace,
            resource.name,
            areas_of(options, resource.disks, files),
            options.number("n"),
            clears=options.has("z"),
            timeout_us=_init_timeout_us(),
        )
        perform(protocol, files)


# -- resource indexes --------------------------------------------------------------------------


def _index_action(
    action: bytes, options: Options, work: Callable[[Sequence[DirectFile]], int | None]
) -> int:
    def opening() -> int | None:
        with opened(options.rindex.disk) as files:
            return work(files)

    return done(action, opening)


def _open_index(options: Options) -> Protocol[rindex.Index]:
    """Find out the sizes of the index, as somebody who has joined nothing."""
    path, offset = os.fsdecode(options.rindex.disk.path), options.rindex.disk.offset
    space = Lockspace(options.rindex.lockspace, Area(path, offset, SIZES_512))
    return (yield from rindex.open_index(space, path, offset, timing_of(options)))


def _check_place(index: rindex.Index, wanted: Rentry) -> None:
    """Refuse an offset that is not aligned (-277), wherever the index begins."""
    if wanted.offset % index.area.sizes.align_size:
        raise index.refuse(wanted.name, f"offset {wanted.offset} is no place", NO_PLACE)


def format_index(options: Options) -> int:
    """Format an index."""

    def work(files: Sequence[DirectFile]) -> None:
        area = Area(files[0].path, options.rindex.disk.offset, sizes_of(options, files[0]))
        count = min(RINDEX_ENTRIES_DEFAULT, rindex_capacity(area.sizes))
        protocol = formatting.overwrite_index(
            options.rindex.lockspace, area, count, timeout_us=_init_timeout_us()
        )
        perform(protocol, files)

    return _index_action(b"format", options, work)


def lookup(options: Options) -> int:
    """Print an entry, by name or offset; the first free place without either."""
    wanted = wanted_entry(options)
    found: list[rindex.Located] = []

    def look() -> Protocol[rindex.Located]:
        index = yield from _open_index(options)
        if wanted.offset:
            _check_place(index, wanted)
            return (yield from rindex.look_at(index, wanted.offset))
        return (yield from rindex.lookup(index, wanted.name or None))

    def work(files: Sequence[DirectFile]) -> int:
        found.append(perform(look(), files))
        return OTHER_NAME if wanted.name and found[0].name != wanted.name else 0

    result = _index_action(b"lookup", options, work)
    if result == 0:
        say_entry(Rentry(found[0].name, found[0].offset))
    return result


def update(options: Options) -> int:
    """Add or remove an entry, without the index's own lease."""
    wanted = wanted_entry(options)
    name = b"" if options.has("z") else wanted.name

    def change() -> Protocol[rindex.Located]:
        index = yield from _open_index(options)
        _check_place(index, wanted)
        if not wanted.offset or not (name or options.has("z")):
            reason = "neither what to enter nor what to remove"
            raise index.refuse(wanted.name, reason, -errno.EINVAL)
        return (yield from rindex.overwrite_entry(index, wanted.offset, name, until_us=now_us()))

    return _index_action(b"update", options, lambda files: _ignore(perform(change(), files)))


def rebuild(options: Options) -> int:
    """Make an index anew, without its own lease."""

    def work(files: Sequence[DirectFile]) -> None:
        size_bytes = os.lseek(files[0].fd, 0, os.SEEK_END)

        def change() -> Protocol[rindex.Rebuilt]:
            index = yield from _open_index(options)
            return (yield from rindex.rebuild(index, size_bytes, until_us=now_us()))

        perform(change(), files)

    return _index_action(b"rebuild", options, work)


def _ignore(result: object) -> None:
    """Drop a result of which only the success is told."""
