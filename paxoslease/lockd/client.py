"""The client's end of the lock daemon's socket: blocking calls, one at a time.

    with LockConnection() as connection:
        connection.register(Owner(uuid, b"guest", 1, pid))
        connection.acquire(b"", b"/srv/disk.img")

Works with virtlockd as with this package's daemon. A lock belongs to the owner's pid, not to the
connection: it stays when a connection that spoke for another process is closed, and goes, with its
owner, when the connection that the owner itself made ends (spec/lock-drivers.md 5.4, 7.3).
"""

from __future__ import annotations

import errno
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from paxoslease.errors import PaxosleaseError
from paxoslease.lockd.failures import LockRefused
from paxoslease.lockd.places import default_places
from paxoslease.lockd.session import Owner
from paxoslease.wire.virtlock import (
    HEADER_SIZE,
    KEEPALIVE_PROGRAM,
    PROGRAM,
    VERSION,
    Call,
    CreateLockspace,
    Header,
    Keepalive,
    MessageType,
    New,
    Procedure,
    Register,
    ResourceCall,
    Restrict,
    Status,
    pack_call,
    pack_keepalive,
    parse_failure,
    parse_header,
    parse_length,
)
from paxoslease.wire.xdr import WORD_SIZE, XdrError

__all__ = ["LockConnection", "LockDaemonLost", "LockRefused", "Owner"]

TIMEOUT_DEFAULT_S: Final = 30.0
# The largest answer is an error that repeats two names three times; more is not read.
_REPLY_SIZE_MAX: Final = 1 << 20
# A daemon that sends only what nobody asked for is not one.
_STRANGE_MESSAGES_MAX: Final = 100
_SERIAL_END: Final = 1 << 32


@dataclass(eq=False)
class LockDaemonLost(PaxosleaseError):
    """The lock daemon cannot be reached, or does not answer as one; what was asked may be done."""

    path: str
    reason: str
    number: int = -errno.ECONNRESET  # type: ignore[misc]
    template = "the lock daemon at {path} cannot be used: {reason}"
    hint = "is virtlockd or `paxoslease lockd` running?"


class LockConnection:
    """A connection to the lock daemon. Not for more than one thread at a time.

    path: its socket, by default virtlockd's own. timeout_s: how long one call may take. Every call
    raises LockRefused when the daemon says no, and LockDaemonLost when it does not answer; the
    connection is closed then.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, timeout_s: float = TIMEOUT_DEFAULT_S
    ) -> None:
        self.path = Path(path) if path is not None else default_places().socket
        self._serial = 0
        self._timeout_s = timeout_s
        self._deadline_s = 0.0  # of the call under way
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(os.fsencode(self.path))
        except OSError as error:
            self.close()
            reason = error.strerror or str(error)
            raise LockDaemonLost(str(self.path), reason, -(error.errno or 110)) from None

    def __enter__(self) -> LockConnection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; nothing is said to the daemon, and doing it twice is fine."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 when it is closed."""
        return self._socket.fileno()

    # -- the procedures: spec/lock-drivers.md 9

    def register(self, owner: Owner) -> None:
        """Say for whom the following calls are; a second time replaces the first."""
        self._call(Register(*owner))

    def restrict(self) -> None:
        """Give up every right of this connection, for good."""
        self._call(Restrict())

    def new_lockspace(self, directory: bytes) -> None:
        """Make a lockspace that the daemon must not know yet."""
        self._call(New(directory))

    def create_lockspace(self, directory: bytes) -> None:
        """Make a lockspace unless it is there. Needs no owner."""
        self._call(CreateLockspace(directory))

    def create_resource(self, directory: bytes, name: bytes) -> None:
        """Make the file of a resource; it may exist."""
        self._call(ResourceCall(Procedure.CREATE_RESOURCE, directory, name))

    def delete_resource(self, directory: bytes, name: bytes) -> None:
        """Remove the file of a resource; it may be missing."""
        self._call(ResourceCall(Procedure.DELETE_RESOURCE, directory, name))

    def acquire(self, directory: bytes, name: bytes, flags: int = 0) -> None:
        """Lock a resource for the owner, at once or not at all.

        directory: the lockspace, which may be empty. flags: those of AcquireFlag.
        """
        self._call(ResourceCall(Procedure.ACQUIRE_RESOURCE, directory, name, flags))

    def release(self, directory: bytes, name: bytes) -> None:
        """Unlock a resource of the owner."""
        self._call(ResourceCall(Procedure.RELEASE_RESOURCE, directory, name))

    # -- messages

    def _call(self, call: Call) -> None:
        serial, self._serial = self._serial, (self._serial + 1) % _SERIAL_END
        expected = Header(PROGRAM, VERSION, call.procedure, MessageType.REPLY, serial, Status.OK)
        self._deadline_s = time.monotonic() + self._timeout_s
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(pack_call(call, serial))
            message = self._reply(expected)
            is_done = parse_header(message).status == Status.OK
            failure = None if is_done else parse_failure(message)
        except TimeoutError:
            self.close()
            raise LockDaemonLost(str(self.path), "it does not answer", -errno.ETIMEDOUT) from None
        except XdrError as error:
            self.close()
            raise LockDaemonLost(str(self.path), str(error), -errno.EPROTO) from None
        except OSError as error:
            self.close()
            number = error.errno or errno.ECONNRESET
            raise LockDaemonLost(str(self.path), os.strerror(number), -number) from None
        if failure is not None:
            raise LockRefused(failure)

    def _reply(self, expected: Header) -> bytes:
        """Receive messages up to the reply; pings are answered, pongs passed over."""
        for _ in range(_STRANGE_MESSAGES_MAX):
            message = self._receive()
            header = parse_header(message)
            if header._replace(status=Status.OK) == expected:
                return message
            if header.program != KEEPALIVE_PROGRAM:
                raise XdrError(WORD_SIZE, f"{header} does not answer {expected}")
            if header.procedure == Keepalive.PING:
                self._socket.sendall(pack_keepalive(Keepalive.PONG))
        raise XdrError(0, "keepalive messages only")

    def _receive(self) -> bytes:
        head = self._exactly(WORD_SIZE)
        length = parse_length(head)
        if not HEADER_SIZE <= length <= _REPLY_SIZE_MAX:
            raise XdrError(0, f"an answer of {length} bytes")
        return head + self._exactly(length - WORD_SIZE)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise ConnectionResetError(errno.ECONNRESET, "hung up")
            data += piece
        return bytes(data)
