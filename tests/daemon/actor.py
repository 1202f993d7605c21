"""A process that may be killed: it holds connections to a daemon and asks on our behalf.

python -m tests.daemon.actor SOCKET

Registered clients are known by pid, and a daemon that kills one must not find the test there.
A request is a line of JSON, `{"op": name, ...}`; so is the reply.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from tests.daemon.line import Line


class Actor:
    """The operations; every method is one `op`. Connections are numbered as they are opened."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lines: list[Line] = []

    def open(self) -> int:
        """Open a connection."""
        self._lines.append(Line(self._path))
        return len(self._lines) - 1

    def ask(self, at: int, data: str, limit_s: float, probes: bool = True) -> list[str]:
        """Send a request and return its outcome."""
        outcome = self._lines[at].ask(bytes.fromhex(data), limit_s, probes=probes)
        return [outcome.reply.hex(), outcome.end]

    def send(self, at: int, data: str) -> None:
        """Send bytes."""
        self._lines[at].send(bytes.fromhex(data))

    def receive(self, at: int, size: int | None, limit_s: float) -> list[str]:
        """Read bytes."""
        data, how = self._lines[at].receive(size, limit_s)
        return [data.hex(), how]

    def close(self, at: int) -> None:
        """Close a connection."""
        self._lines[at].close()

    def fork(self) -> int:
        """Leave a child that has our descriptors and does nothing."""
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        return child


def main() -> None:
    """Answer until stdin ends."""
    actor = Actor(sys.argv[1])
    for line in sys.stdin:
        message: dict[str, Any] = json.loads(line)
        value = getattr(actor, message.pop("op"))(**message)
        print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
