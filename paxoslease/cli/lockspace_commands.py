"""`paxoslease join`, `leave`, `hosts`, `renewals`, `events`: the daemon's lockspaces."""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import sys
from typing import Any

from paxoslease.cli.addresses import (
    NamedPlace,
    host_id,
    io_timeout,
    named_place,
    number_from,
    seconds,
)
from paxoslease.cli.connecting import (
    REQUEST_SECONDS,
    add_command,
    connect,
    find_lockspace,
    path_of,
    text,
)
from paxoslease.cli.exits import Exit
from paxoslease.cli.output import print_json, print_table
from paxoslease.errors import ConfigError
from paxoslease.wire import sanlock as wire

_EXISTS = (-errno.EEXIST, -errno.EINPROGRESS)
_NUMBER = number_from(0, (1 << 64) - 1)


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands."""
    join = add_command(
        commands,
        "join",
        "have the daemon join a lockspace",
        _join,
        "Have the daemon join a lockspace by a host id. A free id takes two to three io_timeouts; "
        "one that a dead host has left, 8 io_timeouts and 60 s more. Joined already is no error.",
    )
    join.add_argument(
        "lockspace",
        type=named_place,
        metavar="NAME:PATH[:OFFSET]",
        help="which one, and where it is",
    )
    join.add_argument("--host-id", type=host_id, required=True, metavar="N", help="1 to 2000")
    join.add_argument(
        "--io-timeout", type=io_timeout, default=0, metavar="S", help="default: the daemon's, 10"
    )
    join.add_argument("--no-wait", action="store_true", help="return when it has begun")
    leave = add_command(
        commands,
        "leave",
        "have the daemon leave a lockspace",
        _leave,
        "Have the daemon leave a lockspace. Whoever holds leases of it is killed first; "
        "--unused refuses instead.",
    )
    leave.add_argument("lockspace", metavar="NAME", help="which one")
    leave.add_argument("--unused", action="store_true", help="only if nobody holds a lease of it")
    leave.add_argument("--no-wait", action="store_true", help="return when it has begun")
    hosts = add_command(commands, "hosts", "list the hosts of a lockspace, and their state", _hosts)
    hosts.add_argument("lockspace", nargs="?", metavar="NAME", help="default: all")
    renewals = add_command(
        commands,
        "renewals",
        "list the last renewals of a lockspace, and how long they took",
        _renewals,
    )
    renewals.add_argument("lockspace", metavar="NAME", help="which one")
    events = add_command(
        commands,
        "events",
        "send an event to another host, or print those that come",
        _events,
        "Without --send: print the events that other hosts send to this one, as they come. An "
        "event is carried by renewals: it takes up to two of them, and may come several times. "
        "With --json each is a line.",
    )
    events.add_argument("lockspace", metavar="NAME", help="in which one")
    events.add_argument("--send", type=host_id, metavar="HOST_ID", help="send to this host instead")
    events.add_argument("--event", type=_NUMBER, default=1, metavar="N", help="number (default: 1)")
    events.add_argument("--data", type=_NUMBER, default=0, metavar="N", help="number (default: 0)")
    events.add_argument(
        "--count", type=number_from(1, 1_000_000), metavar="N", help="end after so many"
    )
    events.add_argument(
        "--timeout",
        type=seconds,
        metavar="S",
        help="end when none has come for so long, with exit code 1",
    )


def _join(arguments: argparse.Namespace) -> int:
    from paxoslease.client import DaemonError

    wanted: NamedPlace = arguments.lockspace
    disk = wire.Disk(path_of(wanted.path), wanted.offset)
    space = wire.Lockspace(os.fsencode(wanted.name), arguments.host_id, 0, disk)
    with connect(arguments) as connection:
        state = "joined"
        try:
            connection.add_lockspace(space, arguments.io_timeout, wait=not arguments.no_wait)
            state = "joining" if arguments.no_wait else "joined"
        except DaemonError as error:
            if error.code == -errno.EINVAL:
                _refuse_another(arguments, space)
            if error.code not in _EXISTS:
                raise
            state = "joined already"
            if error.code == -errno.EINPROGRESS:
                if not arguments.no_wait:
                    connection.inq_lockspace(space, wait=True)
                state = "joining" if arguments.no_wait else "joined"
    if arguments.json:
        print_json({"lockspace": wanted.name, "host_id": arguments.host_id, "state": state})
    else:
        print(f"lockspace {wanted.name}: {state} as host {arguments.host_id}")
    return Exit.OK


def _refuse_another(arguments: argparse.Namespace, wanted: wire.Lockspace) -> None:
    """Raise ConfigError if it is joined already, by another id, elsewhere or by another name."""
    with connect(arguments, timeout_s=REQUEST_SECONDS) as connection:
        for one in connection.get_lockspaces():
            if one.name == wanted.name or one.disk == wanted.disk:
                place = f"{text(one.disk.path)}:{one.disk.offset}"
                raise ConfigError(
                    "lockspace",
                    f"'{text(one.name)}' is joined already, as host {one.host_id} at {place}",
                )


def _leave(arguments: argparse.Namespace) -> int:
    with connect(arguments) as connection:
        space = find_lockspace(connection, arguments.lockspace)
        connection.rem_lockspace(space, wait=not arguments.no_wait, unused_only=arguments.unused)
    state = "leaving" if arguments.no_wait else "left"
    if arguments.json:
        print_json({"lockspace": arguments.lockspace, "state": state})
    else:
        print(f"lockspace {arguments.lockspace}: {state}")
    return Exit.OK


def _hosts(arguments: argparse.Namespace) -> int:
    with connect(arguments, timeout_s=REQUEST_SECONDS) as connection:
        names = [os.fsencode(arguments.lockspace)] if arguments.lockspace else []
        if not names:
            names = [one.name for one in connection.get_lockspaces() if not one.flags]
        rows: list[dict[str, Any]] = []
        for name in names:
            known = _host_names(connection, name)
            for host in connection.get_hosts(name):
                rows.append(
                    {
                        "lockspace": text(name),
                        "host_id": host.host_id,
                        "name": known.get(host.host_id, ""),
                        "state": wire.HostFlag(host.flags & 0xF).name.lower(),
                        "generation": host.generation,
                        "timestamp": host.timestamp,
                        "io_timeout": host.io_timeout,
                    }
                )
    return _print_rows(arguments, rows, "no hosts")


def _host_names(connection: Any, lockspace: bytes) -> dict[int, str]:
    names: dict[int, str] = {}
    for record in connection.host_status(lockspace):
        for word in os.fsdecode(record.state.text).split(" "):
            if word.startswith("owner_name="):
                names[record.state.data32] = word.removeprefix("owner_name=")
    return names


def _print_rows(arguments: argparse.Namespace, rows: list[dict[str, Any]], nothing: str) -> int:
    if arguments.json:
        print_json(rows)
    elif rows:
        heads = [key.replace("_", " ") for key in rows[0]]
        print_table(heads, [list(row.values()) for row in rows])
    else:
        print(nothing)
    return Exit.OK


def _renewals(arguments: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    with connect(arguments, timeout_s=REQUEST_SECONDS) as connection:
        for record in connection.renewals(os.fsencode(arguments.lockspace)).records:
            pairs = (word.split("=", 1) for word in os.fsdecode(record.state.text).split(" "))
            rows.append({key: int(value) for key, value in pairs})
    return _print_rows(arguments, rows, "no renewals yet")


def _events(arguments: argparse.Namespace) -> int:
    name = os.fsencode(arguments.lockspace)
    with connect(arguments, timeout_s=REQUEST_SECONDS) as connection:
        if arguments.send is not None:
            event = wire.HostEvent(arguments.send, 0, arguments.event, arguments.data)
            connection.set_event(name, event, flags=wire.EventFlag.CUR_GENERATION)
            if arguments.json:
                print_json({"lockspace": arguments.lockspace, "sent_to": arguments.send})
            else:
                print(
                    f"event {arguments.event} goes to host {arguments.send} with the next renewal"
                )
            return Exit.OK
        events = connection.reg_event(name)
        try:
            return _print_events(events, arguments)
        finally:
            connection.end_event(events)


def _print_events(events: Any, arguments: argparse.Namespace) -> int:
    left = arguments.count
    while left is None or left > 0:
        if not select.select([events], [], [], arguments.timeout)[0]:
            return Exit.FAILED
        message = events.get()
        if message is None:
            continue
        said = {
            "from": message.from_host_id,
            "from_generation": message.from_generation,
            "generation": message.event.generation,
            "event": message.event.event,
            "data": message.event.data,
        }
        if arguments.json:
            print(json.dumps(said))
        else:
            print(f"host {said['from']}: event {said['event']} data {said['data']}")
        sys.stdout.flush()
        left = None if left is None else left - 1
    return Exit.OK
