"""A process that owns locks, such as a guest.

Run as `python -m tests.lockd.owner SOCKET MANNER`.
"""

from __future__ import annotations

import os
import signal
import sys

from paxoslease.lockd.client import LockConnection, Owner


def main() -> None:
    """Register, tell so, hang up at the end of the input, and live on."""
    path, manner = sys.argv[1:]
    if manner == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = LockConnection(path)
    connection.register(Owner(bytes(16), b"guest", 1, os.getpid()))
    connection.restrict()
    print("registered", flush=True)
    sys.stdin.read()
    connection.close()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
