"""What the lease daemon runs when an owner's lockspace fails: stop or pause it, and tell.

    python -I -m paxoslease.drivers.killpath ACTION PID@START ADDRESS

The daemon starts it instead of sending SIGTERM, and kills the owner when it still holds leases at
the end of the grace time. PID@START names one process for ever: its number and when it started, in
clock ticks. The supervisor at ADDRESS (an abstract socket, `-` for none) is told, but nothing
depends on its being there.

poweroff, restart: SIGTERM; starting it again is the supervisor's business. pause: the owner is
stopped by SIGSTOP, and only when all of it stands still its leases are released, so that the daemon
has nothing left to kill. It must not be continued before they have been acquired again.

Source: spec/lock-drivers.md 13; spec/wire-protocol.md 16.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Final

from paxoslease.client import Connection
from paxoslease.drivers import processes
from paxoslease.drivers.base import FailureAction, Owner
from paxoslease.errors import ConfigError, PaxosleaseError
from paxoslease.wire.sanlock import KILLPATH_BYTES

NOBODY: Final = "-"
_DAEMON_TIMEOUT_S: Final = 30.0


def command(owner: Owner, action: FailureAction) -> tuple[bytes, bytes]:
    """Return program and arguments as the daemon's KILLPATH takes them. Raises ConfigError."""
    program = os.fsencode(sys.executable)
    start = processes.start_time(owner.pid)
    module = "paxoslease.drivers.killpath"
    words = ["-I", "-m", module, action.value, f"{owner.pid}@{start}", owner.notify or NOBODY]
    escaped = [word.replace("\\", "\\\\").replace(" ", "\\ ") for word in words]
    arguments = " ".join(escaped).encode()
    if len(program) >= KILLPATH_BYTES or len(arguments) >= KILLPATH_BYTES:
        limit = KILLPATH_BYTES - 1
        raise ConfigError("killpath", f"the interpreter's path is longer than {limit} bytes")
    return program, arguments


def carry_out(action: FailureAction, pid: int, start: int, address: str) -> int:
    """Stop or pause the owner; returns the exit status."""
    with processes.Handle(pid) as owner:
        if owner.is_gone or processes.start_time(pid) != start:
            return 0  # it has ended by itself, and its number may be another one's
        if action is not FailureAction.PAUSE:
            tell(address, pid, action)
            owner.signal_group(signal.SIGTERM)
            return 0
        owner.signal_group(signal.SIGSTOP)
        if not owner.wait_stopped():
            sys.stderr.write(f"paxoslease: process {pid} cannot be stopped\n")
            return 1
        try:
            with Connection(timeout_s=_DAEMON_TIMEOUT_S) as daemon:
                daemon.release_all(pid=pid)
        except PaxosleaseError as error:
            sys.stderr.write(f"paxoslease: the leases of {pid} are not released: {error}\n")
            return 1
        finally:
            tell(address, pid, action)
    return 0


def tell(address: str, pid: int, action: FailureAction) -> None:
    """Tell the supervisor, if there is one."""
    if address == NOBODY:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
        messenger.setblocking(False)
        try:
            messenger.sendto(f"lost {pid} {action.value}".encode(), f"\0{address}")
        except OSError as error:
            # It has ended, or hangs; what had to be done does not depend on it.
            sys.stderr.write(f"paxoslease: the supervisor at {address} is not told: {error}\n")


def main() -> int:
    """Run as a program."""
    try:
        action, who, address = sys.argv[1:]
        pid, _, start = who.partition("@")
        return carry_out(FailureAction(action), int(pid), int(start), address)
    except ValueError:
        sys.stderr.write(f"usage: {sys.argv[0]} ACTION PID@START ADDRESS\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
