"""Options that several commands share."""

from __future__ import annotations

import argparse

from paxoslease.cli.addresses import (
    host_id,
    io_timeout,
    named_place,
    number_from,
    place,
    seconds,
    size,
)
from paxoslease.timing import (
    IO_TIMEOUT_DEFAULT_S,
    WATCHDOG_FIRE_TIMEOUT_DEFAULT_S,
    WATCHDOG_FIRE_TIMEOUT_MAX_S,
)


class Help(argparse.RawDescriptionHelpFormatter):
    """Leaves texts of several lines as they are, and fills those that are one line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json: a report for programs instead of one for people."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of an area that is to be formatted."""
    parser.add_argument(
        "--sector-size",
        type=size,
        metavar="BYTES",
        help="512 or 4096 (default: that of the device or file system)",
    )
    parser.add_argument(
        "--align-size",
        type=size,
        metavar="SIZE",
        help="1M, or with 4096-byte sectors also 2M, 4M or 8M (default: 1M for 512, 8M for 4096)",
    )


def add_membership(parser: argparse.ArgumentParser) -> None:
    """Add what is needed to join a lockspace."""
    parser.add_argument(
        "--lockspace",
        type=named_place,
        required=True,
        metavar="NAME:PATH[:OFFSET]",
        help="the lockspace to join",
    )
    parser.add_argument(
        "--host-id",
        type=host_id,
        required=True,
        metavar="N",
        help="this host's id, every host its own: 1 to 2000, or to what the lockspace has room for",
    )
    parser.add_argument(
        "--host-name",
        metavar="NAME",
        help="default: a random uuid and the node name, new each time; a name of your own must "
        "be unique per host and per life",
    )
    parser.add_argument(
        "--io-timeout",
        type=io_timeout,
        default=IO_TIMEOUT_DEFAULT_S,
        metavar="S",
        help="time-out of one disk operation; all waits follow from it (default: %(default)s)",
    )
    parser.add_argument(
        "--watchdog",
        default="none",
        metavar="WHAT",
        help="'wdmd', a device such as /dev/watchdog0, or 'none', which gives up the reset of a "
        "host that hangs (default: %(default)s)",
    )
    parser.add_argument(
        "--watchdog-fire-timeout",
        type=number_from(1, WATCHDOG_FIRE_TIMEOUT_MAX_S),
        default=WATCHDOG_FIRE_TIMEOUT_DEFAULT_S,
        metavar="S",
        help="must be the same on all hosts (default: %(default)s)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add what is read: a place to begin at, and how long to wait for it."""
    parser.add_argument("place", type=place, metavar="PATH[:OFFSET]", help="where to begin")
    parser.add_argument(
        "--io-timeout",
        type=io_timeout,
        default=IO_TIMEOUT_DEFAULT_S,
        metavar="S",
        help="time-out of one read (default: %(default)s)",
    )
    add_json(parser)


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Add how long to wait for leases that others hold."""
    parser.add_argument(
        "--wait",
        type=seconds,
        default=0.0,
        metavar="S",
        help="how long to wait for leases that others hold (default: not at all)",
    )
