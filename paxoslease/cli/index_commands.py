"""`paxoslease create, delete, lookup, rebuild`: resources found by name through an index."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from paxoslease.cli.addresses import Place, name, place
from paxoslease.cli.exits import Exit
from paxoslease.cli.interrupts import interrupts
from paxoslease.cli.options import add_json, add_membership
from paxoslease.cli.output import error_as_json, print_json, print_table

if TYPE_CHECKING:
    from paxoslease import Lockspace

_INDEX_HELP = "where the index is"


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the four commands; all but lookup join the lockspace while they work."""
    create = commands.add_parser("create", help="create a resource in an index")
    create.add_argument("name", type=name, metavar="NAME", help="the resource")
    create.add_argument(
        "--num-hosts",
        type=int,
        default=0,
        metavar="N",
        help="largest host id that can use it (default: all)",
    )
    delete = commands.add_parser("delete", help="delete a resource from an index")
    delete.add_argument("name", type=name, metavar="NAME", help="the resource")
    lookup = commands.add_parser("lookup", help="find resources in an index, or list them all")
    lookup.add_argument(
        "name", type=name, metavar="NAME", nargs="?", help="the resource (default: all)"
    )
    lookup.add_argument(
        "--index", type=place, required=True, metavar="PATH[:OFFSET]", help=_INDEX_HELP
    )
    rebuild = commands.add_parser("rebuild", help="make the index anew from what the device holds")
    for parser, action in ((create, _create), (delete, _delete), (rebuild, _rebuild)):
        parser.add_argument(
            "--index", type=place, required=True, metavar="PATH[:OFFSET]", help=_INDEX_HELP
        )
        add_membership(parser)
        parser.set_defaults(run=action)
        add_json(parser)
    add_json(lookup)
    lookup.set_defaults(run=_lookup)


@contextmanager
def _joined(arguments: argparse.Namespace) -> Iterator[Lockspace]:
    import paxoslease

    space = arguments.lockspace
    with interrupts.deferred():
        with interrupts.interruptible():
            lockspace = paxoslease.join(
                space.path,
                space.name,
                arguments.host_id,
                offset=space.offset,
                host_name=arguments.host_name,
                io_timeout=arguments.io_timeout,
                watchdog=arguments.watchdog,
                watchdog_fire_timeout=arguments.watchdog_fire_timeout,
            )
        with lockspace:
            interrupts.check()
            yield lockspace


def _create(arguments: argparse.Namespace) -> int:
    index: Place = arguments.index
    with _joined(arguments) as lockspace:
        offset = lockspace.create(
            index.path, arguments.name, offset=index.offset, num_hosts=arguments.num_hosts
        )
    return _say(arguments, "created", offset)


def _delete(arguments: argparse.Namespace) -> int:
    index: Place = arguments.index
    with _joined(arguments) as lockspace:
        offset = lockspace.delete(index.path, arguments.name, offset=index.offset)
    return _say(arguments, "deleted", offset)


def _say(arguments: argparse.Namespace, done: str, offset: int) -> int:
    if arguments.json:
        print_json({"name": arguments.name, "path": arguments.index.path, "offset": offset})
    else:
        print(f"{done} {arguments.name} at {arguments.index.path}:{offset}")
    return Exit.OK


def _lookup(arguments: argparse.Namespace) -> int:
    import paxoslease

    index: Place = arguments.index
    entries = paxoslease.lookup(index.path, arguments.name, offset=index.offset)
    if arguments.json:
        print_json([{"name": entry.name, "offset": entry.offset} for entry in entries])
    else:
        print_table(("name", "offset"), [(entry.name, entry.offset) for entry in entries])
    return Exit.OK


def _rebuild(arguments: argparse.Namespace) -> int:
    index: Place = arguments.index
    with _joined(arguments) as lockspace:
        rebuilt = lockspace.rebuild(index.path, offset=index.offset)
    if arguments.json:
        print_json(
            {
                "entries": [{"name": one.name, "offset": one.offset} for one in rebuilt.resources],
                "problems": [error_as_json(problem) for problem in rebuilt.problems],
            }
        )
        return Exit.OK
    count = len(rebuilt.resources)
    print(f"the index has {count} {'entry' if count == 1 else 'entries'}")
    for problem in rebuilt.problems:
        print(f"  ! {problem} (code {problem.code})")
    return Exit.OK
