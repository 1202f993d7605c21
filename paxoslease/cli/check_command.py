"""`paxoslease check`: validate every record on a device or file."""

from __future__ import annotations

import argparse
from typing import Any

from paxoslease.cli.exits import Exit
from paxoslease.cli.options import add_device
from paxoslease.cli.output import print_json


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `check`."""
    parser = commands.add_parser(
        "check",
        help="validate every record on a device or file",
        description="Validate every record found at PATH. Exit code 1 when something is wrong or "
        "nothing was found. Only reads. On a disk in use a record may be caught in the middle of "
        "an operation: check again before you believe a single finding.",
    )
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what is wrong."""
    from paxoslease.cli.findings import area_title, areas_at, problem_json, problem_line

    areas = areas_at(arguments, "checking")
    problems = [problem for area in areas for problem in area.all_problems]
    if arguments.json:
        report = {"areas": len(areas), "problems": [problem_json(problem) for problem in problems]}
        print_json(report)
    else:
        for area in areas:
            wrong = area.all_problems
            if wrong:
                print(area_title(area))
                for problem in wrong:
                    print(problem_line(problem))
        if not areas:
            print(f"no lockspace, resource or index was found at {arguments.place}")
            return Exit.FAILED
        what = f"{len(areas)} area{'s' if len(areas) != 1 else ''}"
        state = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        print(f"{arguments.place}: {what}, {state if problems else 'nothing wrong'}")
    return Exit.FAILED if problems or not areas else Exit.OK
