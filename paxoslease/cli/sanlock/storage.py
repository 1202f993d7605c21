"""`sanlock client` actions on leases that the daemon reads or writes for everybody.

Source: spec/cli.md 4.6 and 4.8.
"""

from __future__ import annotations

from paxoslease.cli.sanlock.grammar import Options
from paxoslease.cli.sanlock.output import say
from paxoslease.cli.sanlock.steps import INVALID, missing, step
from paxoslease.cli.sanlock.strings import lockspace_text, resource_text
from paxoslease.client import Connection, DaemonError
from paxoslease.timing import IO_TIMEOUT_DEFAULT_S
from paxoslease.wire.sanlock import Lockspace, Resource, sizes_of_flags


def _space(options: Options) -> Lockspace:
    return options.lockspace._replace(flags=options.lockspace.flags | options.size_flags)


def _resource(options: Options) -> Resource:
    resource = options.resources[0]
    return resource._replace(flags=resource.flags | options.size_flags)


def init(options: Options) -> int:
    """Format a lockspace or a resource, whatever is there."""

    def work() -> None:
        connection = Connection()
        if options.lockspace.disk.path:
            io_timeout = (options.io_timeout or IO_TIMEOUT_DEFAULT_S) & 0xFFFFFFFF
            connection.write_lockspace(
                _space(options), io_timeout, max_hosts=options.number("m") & 0xFFFFFFFF
            )
        elif options.resources and options.resources[0].disks:
            connection.write_resource(
                _resource(options),
                max_hosts=options.number("m") & 0xFFFFFFFF,
                num_hosts=options.number("n") & 0xFFFFFFFF,
                clear=options.has("z"),
            )
        else:
            raise missing("init")

    return step(b"init", work)


def read(options: Options) -> int:
    """Print a lockspace or a resource as it is on the disk."""
    try:
        if options.lockspace.disk.path:
            return _read_lockspace(options)
        if options.resources and options.resources[0].disks:
            return _read_resource(options)
        result = INVALID
    except DaemonError as error:
        result = error.code
    say(b"read error %d" % result)
    return result


def _read_lockspace(options: Options) -> int:
    space, io_timeout = Connection().read_lockspace(_space(options))
    say(b"s " + lockspace_text(space, is_raw=True))
    if options.is_detailed:
        say(b"io_timeout %d" % io_timeout)
        _say_sizes(space.flags)
    return 0


def _read_resource(options: Options) -> int:
    wanted = _resource(options)
    if options.number("h"):
        found, hosts = Connection().read_resource_owners(wanted)
    else:
        found, hosts = Connection().read_resource(wanted), ()
    say(b"r " + resource_text(found._replace(disks=wanted.disks), found.lver))
    if options.is_detailed:
        _say_sizes(found.flags)
    for host in hosts:
        line = b"h %d gen %d" % (host.host_id, host.generation)
        say(line if found.is_shared else line + b" timestamp %d" % host.timestamp)
    return 0


def _say_sizes(flags: int) -> None:
    sector_size, align_size = sizes_of_flags(flags) or (0, 0)
    say(b"sector_size %d" % sector_size)
    say(b"align_size %d" % align_size)


def align(options: Options) -> int:
    """Print the align size for a path. It is the result, so that success is not 0."""
    return step(b"align", lambda: Connection().align(options.lockspace.disk.path))
