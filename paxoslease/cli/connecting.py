"""What the commands that talk to the daemon share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from paxoslease.cli.addresses import size, split_colons, whole_path
from paxoslease.cli.options import add_json
from paxoslease.errors import ConfigError
from paxoslease.wire import sanlock as wire

if TYPE_CHECKING:
    from paxoslease.client import Connection

REQUEST_SECONDS = 10.0


def add_command(
    commands: argparse._SubParsersAction[Any],
    name: str,
    help_text: str,
    run: Callable[[argparse.Namespace], int],
    description: str = "",
) -> argparse.ArgumentParser:
    """Add a command that talks to the daemon; returns its parser for what is its own."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=description or f"{help_text[0].upper()}{help_text[1:]}."
    )
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="the daemon's run directory (default: $SANLOCK_RUN_DIR, or /run/sanlock)",
    )
    add_json(parser)
    parser.set_defaults(run=run)
    return parser


def connect(arguments: argparse.Namespace, *, timeout_s: float | None = None) -> Connection:
    """Return a connection to the daemon; it is made with the first command."""
    from paxoslease.client import Connection

    return Connection(arguments.run_dir, timeout_s=timeout_s)


def path_of(path: str) -> bytes:
    """Return a path as the daemon can open it, whose current directory is not ours."""
    return os.fsencode(whole_path(path))


def text(name: bytes) -> str:
    """Return a name or path as text."""
    return os.fsdecode(name)


def find_lockspace(connection: Connection, name: str) -> wire.Lockspace:
    """Return a lockspace of the daemon as it was joined. Raises ConfigError."""
    found = [one for one in connection.get_lockspaces() if one.name == os.fsencode(name)]
    if not found:
        raise ConfigError("lockspace", f"'{name}' is not joined; `paxoslease status` lists what is")
    return found[0]._replace(flags=0)


def resource(value: str) -> wire.Resource:
    """Return LOCKSPACE:NAME:PATH[:OFFSET], up to four places; for argparse."""
    space, name, *places = [*split_colons(value), ""][:-1] if value.count(":") else [value, ""]
    pairs: list[wire.Disk] = []
    while places:
        path = places.pop(0)
        offset = size(places.pop(0)) if places and places[0][:1].isdecimal() else 0
        pairs.append(wire.Disk(path_of(path), offset))
    if not space or not name or not pairs or len(pairs) > wire.DISKS_MAX:
        raise argparse.ArgumentTypeError(
            f"'{value}' is not LOCKSPACE:NAME:PATH[:OFFSET] (write a colon in one of them as '\\:')"
        )
    return wire.Resource(os.fsencode(space), os.fsencode(name), tuple(pairs), num_disks=len(pairs))


def bare_resource(value: str) -> wire.Resource:
    """Return LOCKSPACE:NAME; for argparse."""
    parts = split_colons(value)
    if len(parts) != 2 or not all(parts):
        raise argparse.ArgumentTypeError(f"'{value}' is not LOCKSPACE:NAME")
    return wire.Resource(os.fsencode(parts[0]), os.fsencode(parts[1]))


def items(state: wire.State) -> dict[str, str]:
    """Return the key=value items of a status record."""
    pairs = (word.split("=", 1) for word in os.fsdecode(state.text).split(" ") if "=" in word)
    return dict(pairs)
