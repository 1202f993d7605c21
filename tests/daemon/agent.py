"""A client of the lease daemon in a process of its own, which does what a test tells it.

python -m tests.daemon.agent RUN_DIRECTORY

A line of JSON, `{"op": name, ...}`, is one operation, and one line is its result: `{"value": ...}`,
or `{"error": number, "text": ...}`. While an operation waits for the daemon the agent waits, too.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from paxoslease.client import Connection, DaemonError
from paxoslease.wire.sanlock import SELF, Disk, Lockspace, Resource
from tests.compat.peer import PeerBroken
from tests.daemon.daemons import REPOSITORY

LIMIT_S = 60.0


class Operations:
    """What an agent can do; every method is an operation."""

    def __init__(self, directory: str) -> None:
        self._connection = Connection(directory, timeout_s=LIMIT_S)
        self._events: Any = None

    def register(self) -> None:
        """Become a client that can hold leases."""
        self._connection.register()

    def acquire(self, resources: list[list[Any]], flags: int = 0, pid: int = SELF) -> None:
        """Acquire leases, for itself or another."""
        wanted = [_resource(one) for one in resources]
        self._connection.acquire(wanted, flags=flags, pid=pid)

    def release(self, resources: list[list[Any]]) -> None:
        """Release leases."""
        self._connection.release([_resource(one) for one in resources])

    def convert(self, resource: list[Any]) -> None:
        """Convert a lease."""
        self._connection.convert(_resource(resource))

    def held(self) -> dict[str, str]:
        """Return the version of what is held, or SH, by name."""
        _, text = self._connection.inquire()
        items = [item.split(":") for item in text.decode().split()]
        return {item[1]: item[-1] for item in items}

    def set_lvb(self, resource: list[Any], value: str) -> None:
        """Set a value block."""
        self._connection.set_lvb(_resource(resource), value.encode())

    def get_lvb(self, resource: list[Any]) -> str:
        """Return a value block."""
        return self._connection.get_lvb(_resource(resource)).rstrip(b"\0").decode()

    def restrict(self, flags: int) -> None:
        """Restrict what may be done to this process."""
        self._connection.restrict(flags)

    def killpath(self, path: str, args: str) -> None:
        """Name a killpath."""
        self._connection.killpath(path.encode(), args.encode())

    def ignore_sigterm(self) -> None:
        """Outlive SIGTERM."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def add_lockspace(self, name: str, host_id: int, path: str, io_timeout: int) -> None:
        """Join a lockspace."""
        space = Lockspace(name.encode(), host_id, disk=Disk(path.encode()))
        self._connection.add_lockspace(space, io_timeout)

    def await_lockspace(self, name: str, host_id: int, path: str) -> None:
        """Wait until a lockspace is joined."""
        space = Lockspace(name.encode(), host_id, disk=Disk(path.encode()))
        self._connection.inq_lockspace(space, wait=True)

    def reg_event(self, name: str) -> None:
        """Listen to events."""
        self._events = self._connection.reg_event(name.encode())

    def event(self) -> list[int] | None:
        """Return the next event: from which host, and what."""
        found = self._events.get()
        return None if found is None else [found.from_host_id, found.event.event]

    def send(self, data: str) -> None:
        """Send bytes on the registered connection."""
        self._connection._own.socket.sendall(bytes.fromhex(data))  # type: ignore[union-attr]

    def receive(self, size: int) -> str:
        """Receive bytes on it, fewer at its end."""
        return self._connection._own.receive_some(size).hex()  # type: ignore[union-attr]

    def close(self) -> None:
        """Hang up and live on."""
        self._connection.close()


def _resource(value: list[Any]) -> Resource:
    space, name, path, offset, flags = value
    place = Disk(path.encode(), offset)
    return Resource(space.encode(), name.encode(), flags=flags, disks=(place,))


class Refused(Exception):
    """The daemon refused an operation; `number` says why."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


class Agent:
    """The test's side of an agent."""

    def __init__(self, directory: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.daemon.agent", directory],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Return its pid."""
        return self.process.pid

    def begin(self, operation: str, /, **arguments: Any) -> None:
        """Begin an operation."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        """Return the result of the operation that was begun first. Raises Refused."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise PeerBroken("the agent has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"], answer["text"])
        return answer["value"]

    def __call__(self, operation: str, /, **arguments: Any) -> Any:
        """Do an operation and return its result. Raises Refused."""
        self.begin(operation, **arguments)
        return self.result()

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()


def main(arguments: Sequence[str]) -> None:
    """Do what stdin says until it ends."""
    operations = Operations(arguments[0])
    for line in sys.stdin:
        message: dict[str, Any] = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"value": getattr(operations, message.pop("op"))(**message)}
        except DaemonError as error:
            answer = {"error": error.code, "text": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
