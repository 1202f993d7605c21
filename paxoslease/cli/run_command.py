"""`paxoslease run`: run a command only while this host holds its leases.

The order is: join the lockspace, acquire all leases, start the command, wait for it; if a lease is
lost meanwhile the command is stopped (recovery of the lockspace: SIGTERM, then SIGKILL); then
release, leave, and pass on the command's exit code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from paxoslease import launch
from paxoslease.cli.addresses import NamedPlace, named_place
from paxoslease.cli.exits import EXIT_HELP, Exit
from paxoslease.cli.interrupts import interrupts
from paxoslease.cli.options import Help, add_json, add_membership, add_wait
from paxoslease.cli.terminal import exit_code_of, terminal_back
from paxoslease.errors import ConfigError

if TYPE_CHECKING:
    from paxoslease import Lease, Lockspace


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `run`."""
    parser = commands.add_parser(
        "run",
        help="run a command while this host holds its leases",
        description="Join the lockspace, acquire the leases, run COMMAND, stop it if a lease is "
        "lost, release, and exit as COMMAND did. COMMAND finds the fencing token of the n-th "
        "resource in PAXOSLEASE_TOKEN_n, counted from 1.",
        epilog=EXIT_HELP + "\n  other: COMMAND's own; 128+N when signal N ended it",
        formatter_class=Help,
    )
    add_membership(parser)
    parser.add_argument(
        "--resource",
        type=named_place,
        action="append",
        required=True,
        metavar="NAME:PATH[:OFFSET]",
        help="a lease to hold; may be given several times, all or nothing",
    )
    parser.add_argument("--shared", action="store_true", help="hold the leases shared")
    add_wait(parser)
    add_json(parser)
    parser.add_argument("argv", nargs="+", metavar="COMMAND", help="after --: what to run")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command under its leases."""
    import paxoslease

    program = shutil.which(arguments.argv[0])
    if program is None:
        raise ConfigError("COMMAND", f"'{arguments.argv[0]}' is no program that can be run")
    if len(set(arguments.resource)) < len(arguments.resource):
        raise ConfigError("--resource", "one is given twice")
    space: NamedPlace = arguments.lockspace
    with interrupts.deferred(), ExitStack() as stack:
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
        stack.enter_context(lockspace)
        leases = _acquire(stack, lockspace, arguments)
        interrupts.check()
        return _supervise(lockspace, leases, [program, *arguments.argv[1:]])


def _acquire(stack: ExitStack, lockspace: Lockspace, arguments: argparse.Namespace) -> list[Lease]:
    until = time.monotonic() + arguments.wait
    leases = []
    for resource in arguments.resource:
        interrupts.check()
        with interrupts.interruptible():
            lease = lockspace.lease(
                resource.name,
                resource.path,
                offset=resource.offset,
                shared=arguments.shared,
                wait=max(0.0, until - time.monotonic()) if arguments.wait else 0,
            )
        leases.append(stack.enter_context(lease))
    return leases


def _supervise(lockspace: Lockspace, leases: list[Lease], argv: list[str]) -> int:
    """Start the command, wait for its end, and return the exit code to pass on."""
    environment = dict(os.environ)
    for index, lease in enumerate(leases, 1):
        environment[f"PAXOSLEASE_TOKEN_{index}"] = str(lease.fencing_token)
    # A process group of its own: a signal of the terminal reaches the command once, and stopping
    # its keeper with Ctrl-Z, which would go on without renewals, is not possible by accident.
    launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
    with terminal_back():
        child = subprocess.Popen([*launcher, *argv], env=environment, process_group=0)
        with lockspace.guard(child), interrupts.forwarded(child):
            if lockspace.lost.is_set():
                child.kill()  # it began too late to be among those that recovery stops
            status = child.wait()
    if lockspace.lost.is_set():
        sys.stderr.write(f"paxoslease: {lockspace.lost.reason}; the command was stopped\n")
        return Exit.LOST
    return exit_code_of(status)
