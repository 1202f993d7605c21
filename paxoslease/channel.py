"""One socket to the lease daemon: sending, receiving, and what can go wrong with it.

Used by `client.py`, which knows the commands. Nothing is believed of what comes in: sizes and
counts have limits, and what does not begin as an answer ends the conversation.

Source: spec/wire-protocol.md 2, 4 and 18.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from paxoslease.errors import PaxosleaseError
from paxoslease.wire import sanlock as wire
from paxoslease.wire.numbers import meaning, name_of
from paxoslease.wire.sanlock import Command, Header, Lockspace, Resource, State, StateType

# A daemon that announces more than this is not believed.
_ITEMS_MAX: Final = 65536
_TEXT_MAX: Final = 1 << 22


@dataclass(eq=False)
class DaemonError(PaxosleaseError):
    """The daemon refused a command; `result` is its number, see `wire/numbers.py`."""

    command: str
    result: int
    hint = "`paxoslease log` may say more"

    def __str__(self) -> str:
        known = Command.__members__.get(self.command.upper())
        text = meaning(self.result, known)
        return f"{self.command}: {text} ({self.result} {name_of(self.result)})"

    @property
    def code(self) -> int:
        return self.result


@dataclass(eq=False)
class DaemonUnreachable(DaemonError):
    """Nobody listens on the daemon's socket, or it may not be used."""

    path: str
    hint = "start the daemon, or name its run directory with --run-dir or in SANLOCK_RUN_DIR"

    def __str__(self) -> str:
        reason = os.strerror(-self.result)
        if self.result in (-errno.EACCES, -errno.EPERM):
            return f"the daemon's socket {self.path} may not be used: {reason}"
        return f"no daemon at {self.path}: {reason}"


@dataclass(eq=False)
class DaemonBroken(DaemonError):
    """The daemon ended the connection, or answered with what is no answer."""

    reason: str
    hint = "the daemon may have ended; see its log and the system's"

    def __str__(self) -> str:
        return f"{self.command}: {self.reason}"


@dataclass(eq=False)
class DaemonSilent(DaemonError):
    """The daemon did not answer within the time-out given. The command may take effect yet."""

    timeout_s: float
    hint = "the command was sent and may take effect yet"

    def __str__(self) -> str:
        return f"{self.command}: no answer within {self.timeout_s} s"


@dataclass(eq=False)
class AcquireFailed(DaemonError):
    """Leases were not to be had, none of them; `resource` is the first that failed, if known."""

    resource: wire.Resource | None

    def __str__(self) -> str:
        if self.resource is None:
            return super().__str__()
        names = f"{os.fsdecode(self.resource.lockspace)}:{os.fsdecode(self.resource.name)}"
        return f"{super().__str__()}, for {names}"


class Record(NamedTuple):
    """One record of a status stream; `subject` is there for lockspaces and resources."""

    state: State
    subject: Lockspace | Resource | None = None


class Channel:
    """A socket and the time by which what is going on over it has to end.

    Without a time-out it waits as long as the daemon takes: joining a lockspace and acquiring the
    lease of a dead host last minutes, and the daemon, if it dies, ends the connection.
    """

    def __init__(self, command: Command, path: str, timeout_s: float | None) -> None:
        self.path = path
        self.timeout_s = timeout_s
        self.begin(command)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._limit()
            self.socket.connect(path)
        except TimeoutError:
            self.socket.close()
            raise self._silent() from None
        except OSError as error:
            self.socket.close()
            # A path that is too long for an address has no errno.
            raise DaemonUnreachable(self.name, -(error.errno or 36), path) from None

    def begin(self, command: Command) -> None:
        """Start a command and its time."""
        self.command = command
        self.name = command.name.lower()
        self.end_s = None if self.timeout_s is None else time.monotonic() + self.timeout_s

    def _limit(self) -> None:
        if self.end_s is None:
            self.socket.settimeout(None)
            return
        left_s = self.end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.socket.settimeout(left_s)

    def _silent(self) -> DaemonSilent:
        assert self.timeout_s is not None
        return DaemonSilent(self.name, -110, self.timeout_s)

    def send(self, data: bytes) -> None:
        """Send all of it. A daemon that refuses early is not an error here: its answer tells."""
        try:
            self._limit()
            self.socket.sendall(data, socket.MSG_NOSIGNAL)
        except TimeoutError:
            raise self._silent() from None
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive_some(self, size: int) -> bytes:
        """Receive `size` bytes, or fewer when the daemon ends the connection."""
        parts: list[bytes] = []
        while size:
            try:
                self._limit()
                part = self.socket.recv(min(size, 1 << 18))
            except TimeoutError:
                raise self._silent() from None
            except ConnectionResetError:
                part = b""
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def receive(self, size: int) -> bytes:
        """Receive exactly `size` bytes."""
        data = self.receive_some(size)
        if len(data) != size:
            raise self.broken("the daemon ended the connection in the middle of the answer")
        return data

    def header(self) -> Header:
        """Receive the header of an answer."""
        data = self.receive_some(wire.HEADER_BYTES)
        if len(data) != wire.HEADER_BYTES:
            raise self.broken("the daemon ended the connection without an answer")
        header = wire.parse_header(data)
        if header.magic != wire.MAGIC:
            raise self.broken(f"the answer begins with {header.magic:#010x}")
        return header

    def broken(self, reason: str) -> DaemonBroken:
        """Return the error for an answer that is none."""
        return DaemonBroken(self.name, -1, reason)

    def refuse(self, header: Header) -> None:
        """Raise DaemonError when an answer says no."""
        if header.result < 0:
            raise DaemonError(self.name, header.result)

    def ask(
        self,
        payload: bytes = b"",
        *,
        data: int = 0,
        data2: int = 0,
        flags: int = 0,
        version: int = wire.PROTOCOL_VERSION,
    ) -> Header:
        """Send the command and receive the header of its answer, refusals included.

        data2: for some commands a pid, or SELF. The length stated is the true one; what the
        library states for some commands is not, and no daemon looks at it.
        """
        self.tell(payload, data=data, data2=data2, flags=flags, version=version)
        return self.header()

    def tell(
        self,
        payload: bytes = b"",
        *,
        data: int = 0,
        data2: int = 0,
        flags: int = 0,
        version: int = wire.PROTOCOL_VERSION,
    ) -> None:
        """Send the command."""
        length = wire.HEADER_BYTES + len(payload)
        header = Header(self.command, flags, length, data, data2, version=version)
        self.send(wire.pack_header(header) + payload)

    def extra(self, header: Header) -> bytes:
        """Receive what follows a header by its own account."""
        size = max(0, header.length - wire.HEADER_BYTES)
        if size > _TEXT_MAX:
            raise self.broken(f"the answer announces {size} bytes")
        return self.receive(size)

    def items(self, number: int, size: int) -> tuple[bytes, ...]:
        """Receive a number of items of one size."""
        if number > _ITEMS_MAX:
            raise self.broken(f"the answer announces {number} items")
        data = self.receive(number * size)
        return tuple(data[at : at + size] for at in range(0, len(data), size))

    def records(self) -> Iterator[Record]:
        """Yield the records of a stream, to its end; one that is cut short is dropped."""
        while True:
            head = self.receive_some(wire.STATE_BYTES)
            if len(head) != wire.STATE_BYTES:
                return
            state, text_bytes = wire.parse_state(head)
            if text_bytes > _TEXT_MAX:
                raise self.broken(f"the answer announces a text of {text_bytes} bytes")
            text = self.receive_some(text_bytes)
            if len(text) != text_bytes:
                return
            state = state._replace(text=wire.cut(text))
            subject: Lockspace | Resource | None = None
            if state.type == StateType.LOCKSPACE:
                body = self.receive_some(wire.LOCKSPACE_BYTES)
                if len(body) != wire.LOCKSPACE_BYTES:
                    return
                subject = wire.parse_lockspace(body)
            elif state.type == StateType.RESOURCE:
                body = self.receive_some(wire.RESOURCE_BYTES)
                if len(body) != wire.RESOURCE_BYTES:
                    return
                disks_bytes = wire.num_disks_of(body) * wire.DISK_BYTES
                disks = self.receive_some(disks_bytes)
                if len(disks) != disks_bytes:
                    return
                subject = wire.parse_resource(body + disks)
            yield Record(state, subject)


class Events:
    """An event connection: what other hosts send to this one in a lockspace."""

    def __init__(self, channel: Channel, lockspace: bytes) -> None:
        self._socket = channel.socket
        self._socket.setblocking(False)
        self.lockspace = lockspace

    def fileno(self) -> int:
        """Return the descriptor, to be polled for reading."""
        return self._socket.fileno()

    def get(self) -> wire.EventMessage | None:
        """Return the next event, None while there is none.

        The same event may come several times. Raises DaemonBroken when the lockspace has ended.
        """
        try:
            data = self._socket.recv(wire.EVENT_MESSAGE_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data = b""
        if len(data) != wire.EVENT_MESSAGE_BYTES:
            raise DaemonBroken("get_event", -1, "the daemon ended the event connection")
        return wire.parse_event_message(data)

    def close(self) -> None:
        """Tell the daemon that nobody listens here any more."""
        with self._socket:
            try:
                self._socket.send((1).to_bytes(4, "little"), socket.MSG_NOSIGNAL)
            except (BrokenPipeError, ConnectionResetError, BlockingIOError):
                return  # the lockspace or the daemon went first, or will see the end itself
