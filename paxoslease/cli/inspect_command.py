"""`paxoslease inspect`: decode everything found on a device or file."""

from __future__ import annotations

import argparse
from typing import Any

from paxoslease.cli.exits import Exit
from paxoslease.cli.options import add_device
from paxoslease.cli.output import print_json


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `inspect`."""
    parser = commands.add_parser(
        "inspect",
        help="decode everything found on a device or file",
        description="Decode every lockspace, resource and index found at PATH, of any sector and "
        "align size: who holds what, every record that was ever used, and what is wrong. "
        "Only reads.",
    )
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what is there."""
    from paxoslease.cli.findings import area_json, area_title, areas_at, problem_line, record_line

    areas = areas_at(arguments, "reading")
    if arguments.json:
        print_json([area_json(area) for area in areas])
        return Exit.OK
    for area in areas:
        print(area_title(area))
        for record in area.records:
            print(record_line(record))
        for problem in area.all_problems:
            print(problem_line(problem))
        for note in area.notes:
            print(f"{'':>14}    note: {note}")
    if not areas:
        print(f"no lockspace, resource or index was found at {arguments.place}")
    return Exit.OK
