"""`paxoslease format`: make a lockspace, a resource or a resource index."""

from __future__ import annotations

import argparse
from typing import Any

from paxoslease.cli.addresses import NamedPlace, io_timeout, name, named_place, number_from
from paxoslease.cli.exits import Exit
from paxoslease.cli.options import add_json, add_sizes
from paxoslease.cli.output import print_json
from paxoslease.timing import IO_TIMEOUT_DEFAULT_S

_FORCE = "destroy what the place holds now"
_PLACE = "its name, and where it is to be: OFFSET is a multiple of the align size"
_INDEX_PLACE = "the lockspace of its resources, and where it is to be; the resources lie behind it"


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `format` with its three subjects."""
    parser = commands.add_parser(
        "format",
        help="make a lockspace, a resource or a resource index",
        description="Write a new lockspace, resource or resource index. Nothing outside of its "
        "area is written, and a place that holds something else is refused unless --force is "
        "given. A file that does not exist is created.",
    )
    subjects = parser.add_subparsers(dest="subject", metavar="SUBJECT", required=True)
    lockspace = subjects.add_parser("lockspace", help="one sector per host id")
    lockspace.add_argument("place", type=named_place, metavar="NAME:PATH[:OFFSET]", help=_PLACE)
    lockspace.add_argument(
        "--io-timeout",
        type=io_timeout,
        default=IO_TIMEOUT_DEFAULT_S,
        metavar="S",
        help="stored for the first host that joins each id (default: %(default)s)",
    )
    resource = subjects.add_parser("resource", help="one lease")
    resource.add_argument("place", type=named_place, metavar="NAME:PATH[:OFFSET]", help=_PLACE)
    resource.add_argument(
        "--lockspace", type=name, required=True, metavar="NAME", help="whose members may use it"
    )
    resource.add_argument(
        "--num-hosts",
        type=int,
        default=0,
        metavar="N",
        help="largest host id that can use it (default: all)",
    )
    resource.add_argument(
        "--count",
        type=number_from(1, 1_000_000),
        default=1,
        metavar="N",
        help="make N resources NAME0, NAME1, ... one behind the other (default: one, NAME)",
    )
    index = subjects.add_parser("index", help="an index of resources, found by name")
    index.add_argument(
        "place", type=named_place, metavar="LOCKSPACE:PATH[:OFFSET]", help=_INDEX_PLACE
    )
    index.add_argument(
        "--max-resources",
        type=int,
        default=0,
        metavar="N",
        help="how many entries may be used (default: 4096, or what fits)",
    )
    for subject in (lockspace, resource, index):
        add_sizes(subject)
        subject.add_argument("--force", action="store_true", help=_FORCE)
        add_json(subject)
        subject.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Format what the arguments name."""
    import paxoslease

    place: NamedPlace = arguments.place
    common = {
        "offset": place.offset,
        "sector_size": arguments.sector_size,
        "align_size": arguments.align_size,
        "force": arguments.force,
    }
    if arguments.subject == "lockspace":
        paxoslease.format_lockspace(
            place.path, place.name, io_timeout=arguments.io_timeout, **common
        )
    elif arguments.subject == "index":
        paxoslease.format_index(
            place.path, place.name, max_resources=arguments.max_resources, **common
        )
    elif arguments.count > 1:
        _format_many(arguments, place)
        return Exit.OK
    else:
        paxoslease.format_resource(
            place.path, arguments.lockspace, place.name, num_hosts=arguments.num_hosts, **common
        )
    _report(arguments, [place])
    return Exit.OK


def _format_many(arguments: argparse.Namespace, first: NamedPlace) -> None:
    """Format resources one behind the other, with progress where a person looks on."""
    import paxoslease
    from paxoslease.cli.progress import progress

    made = []
    with progress(f"formatting {arguments.count} resources", arguments.count) as advance:
        for made_place in paxoslease.format_resources(
            first.path,
            arguments.lockspace,
            [f"{first.name}{index}" for index in range(arguments.count)],
            offset=first.offset,
            num_hosts=arguments.num_hosts,
            sector_size=arguments.sector_size,
            align_size=arguments.align_size,
            force=arguments.force,
        ):
            made.append(NamedPlace(*made_place))
            advance()
    _report(arguments, made)


def _report(arguments: argparse.Namespace, places: list[NamedPlace]) -> None:
    if arguments.json:
        print_json([{"subject": arguments.subject, **place._asdict()} for place in places])
    elif len(places) == 1:
        (place,) = places
        print(f"{arguments.subject} {place.name} is at {place.path}:{place.offset}")
    else:
        print(
            f"{len(places)} resources {places[0].name} to {places[-1].name} are at "
            f"{places[0].path}:{places[0].offset} to {places[-1].offset}"
        )
