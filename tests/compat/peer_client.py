"""The client process of a real sanlock daemon, and the values and errors that peers share.

A `SanlockClient` owns a process (`peer_agent.py`, under the system's Python) that is registered
with one daemon. See `peer.py` for the daemon itself; that module is the one to import.
"""

from __future__ import annotations

import json
import select
import subprocess
import time
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

SYSTEM_PYTHON: Final = "/usr/bin/python3"
AGENT: Final = Path(__file__).with_name("peer_agent.py")
WATCHDOG_FIRE_S: Final = 60
POLL_S: Final = 0.01
HOST_STATES: Final = {1: "UNKNOWN", 2: "FREE", 3: "LIVE", 4: "FAIL", 5: "DEAD"}

HELD: Final = -243  # held by a live host
OWNED_RETRY: Final = -247  # held by a host whose lease must time out first


class SanlockMissing(unittest.SkipTest):
    """The Debian packages sanlock and python3-sanlock are not installed."""


class LoopRefused(unittest.SkipTest):
    """This machine does not let us make a loop device."""


class PeerBroken(Exception):
    """The daemon or its client did something that no test expects: died, hung, did not start."""


class SanlockError(Exception):
    """The daemon refused a request; `number` is what sanlock returns, -243 for instance."""

    def __init__(self, number: int, text: str, operation: str) -> None:
        super().__init__(f"sanlock {operation}: {number} ({text})")
        self.number = number
        self.operation = operation


class Lockspace(NamedTuple):
    """Where a lockspace lies."""

    name: str
    path: str
    offset: int = 0
    sector_size: int = 512
    align_size: int = 1 << 20


class Resource(NamedTuple):
    """Where a resource lies; the sizes are needed for `init_resource` only."""

    lockspace: str
    name: str
    path: str
    offset: int
    sector_size: int = 512
    align_size: int = 1 << 20

    @property
    def disks(self) -> list[tuple[str, int]]:
        """Return the disks in the form that the `sanlock` module wants."""
        return [(self.path, self.offset)]


class HostSeen(NamedTuple):
    """A line of a daemon's host table; `state` is one of HOST_STATES' values."""

    host_id: int
    generation: int
    timestamp: int
    io_timeout_s: int
    state: str


def host_dead_s(io_timeout_s: int) -> int:
    """Return after how many seconds without a renewal a real sanlock takes a host for dead."""
    return 8 * io_timeout_s + WATCHDOG_FIRE_S


def wait_until(condition: Callable[[], bool], limit_s: float, what: str) -> float:
    """Wait for `condition`, at most `limit_s` seconds; return how long it took.

    Raises PeerBroken with `what` when the limit passes first.
    """
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > limit_s:
            raise PeerBroken(f"not within {limit_s} s: {what}")
        time.sleep(POLL_S)
    return time.monotonic() - begin


class SanlockClient:
    """A process that is registered with one daemon; its death frees what it holds.

    One request at a time; a request that waits needs a client of its own.
    """

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(AGENT)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.took_ns = 0  # of the last request, without the way through JSON

    @property
    def pid(self) -> int:
        """Return the pid under which the daemon knows this client."""
        return self._process.pid

    def call(self, op: str, limit_s: float = 120.0, /, **args: Any) -> Any:
        """Carry out one operation of `peer_agent.Agent`; raises SanlockError, PeerBroken."""
        self.send(op, **args)
        return self.receive(op, limit_s)

    def send(self, op: str, /, **args: Any) -> None:
        """Begin an operation; `receive` must follow before the next one."""
        assert self._process.stdin is not None
        request = {"op": op, "args": _encode(args)}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerBroken(f"the client is dead, asked for {op}") from None

    def receive(self, op: str, limit_s: float = 120.0) -> Any:
        """Wait for the result of the operation that `send` began."""
        assert self._process.stdout is not None
        # Safe beside the buffered reader: one reply per request, so nothing is ever left in it.
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        if not ready:
            raise PeerBroken(f"no answer to {op} within {limit_s} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerBroken(f"the client died during {op}")
        reply = json.loads(line)
        if "number" in reply:
            raise SanlockError(reply["number"], reply["text"], op)
        if "broken" in reply:
            raise PeerBroken(f"{op}: {reply['broken']}")
        self.took_ns = reply["took_ns"]
        return _decode(reply["ok"])

    def module(self, function: str, limit_s: float = 120.0, /, **kwargs: Any) -> Any:
        """Call a function of the `sanlock` module."""
        return self.call("module", limit_s, function=function, kwargs=kwargs)

    # -- leases --------------------------------------------------------------------------------

    def register(self) -> int:
        """Register with the daemon (again: one more user of the same pid); return the slot."""
        slot: int = self.call("register")
        return slot

    def acquire(
        self,
        resource: Resource,
        *,
        shared: bool = False,
        persistent: bool = False,
        lvb: bool = False,
        orphan: bool = False,
        nowait: bool = False,
        num_hosts: int = 0,
        limit_s: float = 120.0,
    ) -> None:
        """Acquire one lease for this process. `nowait`: -247 instead of waiting for a death."""
        lease = _lease(resource, shared=shared, persistent=persistent, num_hosts=num_hosts)
        self.call("acquire", limit_s, leases=[lease], lvb=lvb, orphan=orphan, nowait=nowait)

    def release(self, resource: Resource) -> None:
        """Release one lease."""
        self.call("release", leases=[_lease(resource)])

    def release_all(self) -> None:
        """Release all that this process holds."""
        self.call("release", leases=[])

    def convert(self, resource: Resource, *, shared: bool) -> None:
        """Convert a held lease to shared, or to exclusive (-11 when others share it)."""
        self.call("convert", lease=_lease(resource, shared=shared))

    def fencing_token(self, resource: Resource) -> int:
        """Return the lver of a lease that this process holds."""
        for held in self.module("inquire", pid=self.pid):
            if held["resource"] == resource.name.encode():
                lver: int = held["version"]
                return lver
        raise PeerBroken(f"{resource.name} is not held by pid {self.pid}")

    def get_lvb(self, resource: Resource, nbytes: int) -> bytes:
        """Return the value block of a lease held with `lvb=True`, as it was when acquired."""
        lease = {**names(resource), "disks": resource.disks}
        data: bytes = self.module("get_lvb", **lease, size=nbytes)
        return data

    def set_lvb(self, resource: Resource, data: bytes) -> None:
        """Set the value block of a lease; it reaches the disk with the release."""
        self.module("set_lvb", **names(resource), disks=resource.disks, data=data)

    # -- the end -------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill this client: what it holds is released by the daemon, or becomes an orphan."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End this client; for the daemon the same as `kill`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=5.0)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _lease(resource: Resource, **options: bool | int) -> dict[str, Any]:
    place = {"path": resource.path, "offset": resource.offset}
    return {"lockspace": resource.lockspace, "name": resource.name, **place, **options}


def leases_as_args(resources: Sequence[Resource]) -> list[dict[str, Any]]:
    """Return exclusive resources in the form that the agent's batch operations take."""
    return [_lease(resource) for resource in resources]


def names(resource: Resource) -> dict[str, bytes]:
    """Return the names of a resource as keyword arguments of the `sanlock` module."""
    return {"lockspace": resource.lockspace.encode(), "resource": resource.name.encode()}


def where(space: Lockspace, host_id: int) -> dict[str, Any]:
    """Return a lockspace and a host id as keyword arguments of the `sanlock` module."""
    place = {"path": space.path, "offset": space.offset}
    return {"lockspace": space.name.encode(), "host_id": host_id, **place}


def host_seen(host: dict[str, Any]) -> HostSeen:
    """Return a host of the `sanlock` module as a value."""
    state = HOST_STATES.get(host["flags"] & 0xF, "NONE")
    seen = (host["host_id"], host["generation"], host["timestamp"], host["io_timeout"])
    return HostSeen(*seen, state)


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value
