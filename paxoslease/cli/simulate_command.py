"""`paxoslease simulate`: run the production protocols in a virtual cluster, from a seed."""

from __future__ import annotations

import argparse
from typing import Any

from paxoslease.cli.addresses import number_from
from paxoslease.cli.exits import Exit
from paxoslease.cli.options import add_json
from paxoslease.cli.output import print_json


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `simulate`."""
    parser = commands.add_parser(
        "simulate",
        help="run a virtual cluster with faults, from a seed",
        description="Run the very code that takes leases, on virtual disks and clocks with "
        "faults, and check after every step that exclusion holds. The same seed gives the same "
        "run.",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seeds",
        type=number_from(1, 1_000_000_000),
        default=1,
        metavar="COUNT",
        help="how many seeds, from --seed on",
    )
    parser.add_argument(
        "--hosts",
        type=number_from(1, 100),
        metavar="N",
        help="how many hosts (default: drawn from the seed)",
    )
    parser.add_argument(
        "--hours",
        type=_hours,
        metavar="H",
        help="virtual hours per seed (default: drawn from the seed)",
    )
    parser.add_argument("--trace", action="store_true", help="print every step")
    add_json(parser)
    parser.set_defaults(run=run)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of hours")
    return hours


def run(arguments: argparse.Namespace) -> int:
    """Run the seeds; stop at the first that breaks a rule."""
    from paxoslease.cli.progress import progress
    from paxoslease.simulation.cluster.world import simulate

    reports = []
    with progress(f"simulating {arguments.seeds} seeds", arguments.seeds) as advance:
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            report = simulate(
                seed, hosts=arguments.hosts, hours=arguments.hours, trace=arguments.trace
            )
            reports.append(report)
            advance()
            if not report.is_clean:
                break
    if arguments.json:
        print_json([report.as_json() for report in reports])
    else:
        for report in reports:
            print(report.summary())
    return Exit.OK if all(report.is_clean for report in reports) else Exit.FAILED
