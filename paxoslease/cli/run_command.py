"""`paxoslease run`: run a command only while this host holds its leases.

The order is: join the lockspace, acquire all leases, start the command, wait for it; if a lease is
lost meanwhile the command is stopped (recovery of the lockspace: SIGTERM, then SIGKILL); then
release, leave, and pass on the command's exit code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from paxoslease.cli.addresses import NamedPlace, named_place
from paxoslease.cli.exits import EXIT_HELP, Exit
from paxoslease.cli.options import add_json, add_membership, add_wait
from paxoslease.errors import Cancelled, ConfigError

if TYPE_CHECKING:
    from paxoslease import Lease, Lockspace

_POLL_S = 0.2


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `run`."""
    parser = commands.add_parser(
        "run",
        help="run a command while this host holds its leases",
        description="Join the lockspace, acquire the leases, run COMMAND, stop it if a lease is "
        "lost, release, and exit as COMMAND did. COMMAND finds the fencing token of the n-th "
        "resource in PAXOSLEASE_TOKEN_n, counted from 1.",
        epilog=EXIT_HELP + "\n  other: COMMAND's own; 128+N when signal N ended it",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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


class _Interrupt:
    """SIGINT and SIGTERM before the command runs end the attempt; later they go to the command."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.signal: int | None = None

    def handle(self, number: int, _frame: object) -> None:
        self.signal = number
        if self.child is not None:
            self.child.send_signal(number)
        else:
            raise Cancelled


@contextmanager
def _signals() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt.handle) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(arguments: argparse.Namespace) -> int:
    """Run the command under its leases."""
    import paxoslease

    program = shutil.which(arguments.argv[0])
    if program is None:
        raise ConfigError("COMMAND", f"'{arguments.argv[0]}' is no program that can be run")
    space: NamedPlace = arguments.lockspace
    with _signals() as interrupt:
        with ExitStack() as stack:
            lockspace = stack.enter_context(
                paxoslease.join(
                    space.path,
                    space.name,
                    arguments.host_id,
                    offset=space.offset,
                    host_name=arguments.host_name,
                    io_timeout=arguments.io_timeout,
                    watchdog=arguments.watchdog,
                    watchdog_fire_timeout=arguments.watchdog_fire_timeout,
                )
            )
            leases = _acquire(stack, lockspace, arguments)
            code = _supervise(lockspace, leases, [program, *arguments.argv[1:]], interrupt)
        return code


def _acquire(stack: ExitStack, lockspace: Lockspace, arguments: argparse.Namespace) -> list[Lease]:
    until = time.monotonic() + arguments.wait
    leases = []
    for resource in arguments.resource:
        lease = lockspace.lease(
            resource.name,
            resource.path,
            offset=resource.offset,
            shared=arguments.shared,
            wait=max(0.0, until - time.monotonic()) if arguments.wait else 0,
        )
        leases.append(stack.enter_context(lease))
    return leases


def _supervise(
    lockspace: Lockspace, leases: list[Lease], argv: list[str], interrupt: _Interrupt
) -> int:
    """Start the command, wait for its end, and return the exit code to pass on."""
    environment = dict(os.environ)
    for index, lease in enumerate(leases, 1):
        environment[f"PAXOSLEASE_TOKEN_{index}"] = str(lease.fencing_token)
    # The child has its own process group, so that a terminal's SIGINT reaches it once, through us.
    child = subprocess.Popen(argv, env=environment, process_group=0)
    interrupt.child = child
    guard = lockspace.guard(child)
    try:
        while True:
            try:
                status = child.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                continue
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        guard.close()
    if lockspace.lost.is_set():
        sys.stderr.write(f"paxoslease: {lockspace.lost.reason}; the command was stopped\n")
        return Exit.LOST
    return 128 - status if status < 0 else status
