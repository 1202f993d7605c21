"""`paxoslease leases`, `acquire`, `release`, `request`: leases that the daemon holds."""

from __future__ import annotations

import argparse
from typing import Any

from paxoslease.cli.connecting import (
    REQUEST_SECONDS,
    add_command,
    bare_resource,
    connect,
    items,
    resource,
    text,
)
from paxoslease.cli.exits import Exit
from paxoslease.cli.output import print_json, print_table
from paxoslease.errors import ConfigError
from paxoslease.wire import sanlock as wire

_STATES = {"held": "held", "add": "being acquired", "rem": "being released", "orphan": "orphan"}


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands."""
    leases = add_command(commands, "leases", "list the leases that the daemon holds", _leases)
    leases.add_argument("--pid", type=int, metavar="PID", help="only those of this process")
    acquire = add_command(
        commands,
        "acquire",
        "acquire leases for a process that is registered with the daemon",
        _acquire,
        "Acquire leases for a registered process: all of them, or none. A lease whose owner may be "
        "dead is waited for until that is certain, unless --no-wait is given.",
    )
    _add_pid(acquire)
    acquire.add_argument(
        "resource",
        type=resource,
        nargs="+",
        metavar="LOCKSPACE:NAME:PATH[:OFFSET]",
        help="a lease and where it is; up to four places behind one another",
    )
    acquire.add_argument("--shared", action="store_true", help="hold them shared")
    acquire.add_argument(
        "--persistent", action="store_true", help="keep them when the process ends, as orphans"
    )
    acquire.add_argument("--orphan", action="store_true", help="take over orphans")
    acquire.add_argument("--no-wait", action="store_true", help="do not wait for a dead owner")
    release = add_command(
        commands, "release", "release leases of a process that is registered", _release
    )
    _add_pid(release)
    release.add_argument(
        "resource",
        type=bare_resource,
        nargs="*",
        metavar="LOCKSPACE:NAME",
        help="which leases",
    )
    release.add_argument("--all", action="store_true", help="all that it holds")
    request = add_command(
        commands,
        "request",
        "ask the holder of a lease, on whatever host, to give it up",
        _request,
        "Ask the holder of a lease to give it up: its killpath program is run, or SIGTERM sent. "
        "--force has it killed. The holder's host sees it with its next renewal.",
    )
    request.add_argument(
        "resource",
        type=resource,
        metavar="LOCKSPACE:NAME:PATH[:OFFSET]",
        help="the lease and where it is",
    )
    request.add_argument("--force", action="store_true", help="have the holder killed")


def _add_pid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pid", type=int, required=True, metavar="PID", help="the process")


def _leases(arguments: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    with connect(arguments, timeout_s=REQUEST_SECONDS) as connection:
        for record in connection.status():
            subject = record.subject
            if record.state.type != wire.StateType.RESOURCE or not isinstance(
                subject, wire.Resource
            ):
                continue
            if arguments.pid not in (None, record.state.data32):
                continue
            shown = items(record.state)
            rows.append(
                {
                    "lockspace": text(subject.lockspace),
                    "resource": text(subject.name),
                    "pid": record.state.data32,
                    "mode": "shared" if subject.is_shared else "exclusive",
                    "lver": record.state.data64,
                    "state": _STATES.get(shown.get("list", ""), ""),
                    "place": " ".join(f"{text(d.path)}:{d.offset}" for d in subject.disks),
                }
            )
    if arguments.json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        print("no leases")
    return Exit.OK


def _acquire(arguments: argparse.Namespace) -> int:
    flags = wire.AcquireFlag(0)
    if arguments.orphan:
        flags |= wire.AcquireFlag.ORPHAN
    if arguments.no_wait:
        flags |= wire.AcquireFlag.OWNER_NOWAIT
    mode = wire.ResourceFlag(0)
    if arguments.shared:
        mode |= wire.ResourceFlag.SHARED
    if arguments.persistent:
        mode |= wire.ResourceFlag.PERSISTENT
    wanted = [one._replace(flags=int(mode)) for one in arguments.resource]
    with connect(arguments) as connection:
        connection.acquire(wanted, pid=arguments.pid, flags=flags, owner_name=b"%d" % arguments.pid)
    return _done(arguments, "acquired", wanted)


def _release(arguments: argparse.Namespace) -> int:
    if bool(arguments.resource) == arguments.all:
        raise ConfigError("LOCKSPACE:NAME", "name leases, or give --all")
    with connect(arguments) as connection:
        if arguments.all:
            connection.release_all(pid=arguments.pid)
        else:
            connection.release(arguments.resource, pid=arguments.pid)
    return _done(arguments, "released", arguments.resource)


def _request(arguments: argparse.Namespace) -> int:
    with connect(arguments) as connection:
        connection.request(
            arguments.resource, 1 if arguments.force else 2, flags=wire.RequestFlag.NEXT_LVER
        )
    return _done(arguments, "requested", [arguments.resource])


def _done(arguments: argparse.Namespace, what: str, resources: list[wire.Resource]) -> int:
    names = [f"{text(one.lockspace)}:{text(one.name)}" for one in resources]
    if arguments.json:
        print_json({"done": what, "leases": names})
    else:
        print(f"{what} {' '.join(names) or 'all'}")
    return Exit.OK
