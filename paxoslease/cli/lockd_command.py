"""`paxoslease lockd`: the lock daemon in virtlockd's place, in the foreground."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from paxoslease.cli.addresses import number_from, seconds
from paxoslease.cli.exits import Exit
from paxoslease.cli.interrupts import interrupts
from paxoslease.cli.options import Help

_MAX_CLIENTS = 1024

_DESCRIPTION = """Hold POSIX record locks on behalf of clients, as virtlockd does: libvirt's lockd
plugin and this package's fcntl driver connect to its socket. Stays in the foreground.

Of virtlockd's options --timeout, --pid-file, --verbose and --help are taken. --daemon is not (let
the service manager do that), nor --config: the only key in virtlockd.conf that is not about its
log is max_clients, here --max-clients. Sockets of the service manager are taken as virtlockd takes
them. The admin socket (virt-admin) is not served; one that the service manager passes is answered
by hanging up.

SIGUSR1 puts the installed version of the program in the place of the running one: locks, clients
and the process stay. SIGTERM, SIGINT and SIGQUIT end it, and every process that holds a lock and
is connected is stopped first, since its locks end with the daemon. SIGHUP does nothing."""

_EXITS = """exit codes:
  0    ended by a signal that asks for it, or by --timeout
  1    could not start: another lock daemon serves this place, or a system call failed
  2    the command line cannot be understood or a value is out of range"""


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `lockd`."""
    parser = commands.add_parser(
        "lockd",
        help="hold file locks for libvirt guests, in virtlockd's place",
        description=_DESCRIPTION,
        epilog=_EXITS,
        formatter_class=Help,
    )
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="where to listen (default: virtlockd's own, /run/libvirt/virtlockd-sock for root and "
        "below $XDG_RUNTIME_DIR for others)",
    )
    parser.add_argument(
        "-p",
        "--pid-file",
        type=Path,
        metavar="PATH",
        help="held locked while the daemon runs (default: virtlockd's own; with --socket PATH: "
        "PATH.pid)",
    )
    parser.add_argument(
        "-t",
        "--timeout",
        type=seconds,
        metavar="S",
        help="end after so long without clients and locks (default: never)",
    )
    parser.add_argument(
        "--max-clients",
        type=number_from(1, 1_000_000),
        default=_MAX_CLIENTS,
        metavar="N",
        help="further ones wait until one leaves; a running guest is one (default: %(default)s)",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="also tell of clients that come to an end"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal or the time-out ends it."""
    from paxoslease.lockd.daemon import Settings
    from paxoslease.lockd.places import default_places, places_at
    from paxoslease.lockd.service import TRIAL_VARIABLE, serve

    if TRIAL_VARIABLE in os.environ:
        return Exit.OK
    if arguments.verbose:
        logging.getLogger("paxoslease").setLevel(logging.INFO)
    places = places_at(arguments.socket) if arguments.socket else default_places()
    pid_file = arguments.pid_file or places.pid_file
    settings = Settings(
        places._replace(pid_file=pid_file), arguments.max_clients, arguments.timeout
    )

    def ready(path: Path | None) -> None:
        interrupts.check()  # a signal that came before the daemon could handle it
        sys.stderr.write(f"paxoslease: lockd listens on {path or 'a socket without a name'}\n")
        sys.stderr.flush()

    with interrupts.deferred():
        number = serve(settings, ready)
    reason = f"signal {number}" if number else "no client for long"
    sys.stderr.write(f"paxoslease: lockd has ended: {reason}\n")
    return Exit.OK
