"""What is under way on a registered connection, noted where it survives the daemon's death.

A client that waits for a reply waits for ever, so nothing of a request may get lost with a daemon
that is killed, and no reply may come twice. Each registered connection has a *slip*: a piece of
memory and a pipe, whose descriptors the keeper has, too (keeper.py).

  - A request is looked at in the socket, noted, and only then taken from the socket. A successor
    that finds it noted but not marked as taken compares it with what the socket has at its head.
    (A client that sends the same bytes twice without waiting for a reply can mislead it, in the few
    microseconds between taking and marking.)
  - Before it is worked on it gets an origin, a number of its own, by which the successor knows what
    was acquired for it already (registry.py). An unanswered request is run again.
  - A reply is put into the pipe, declared to be there, and then moved from the pipe into the
    socket by splice(). The kernel does that in one step that no signal interrupts, so what is left
    in the pipe is what was not sent: the successor sends that and no more.

A reply that is larger than a pipe can be is sent without this: it can be lost, but not come twice.

Belongs to the loop's thread.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from paxoslease.errors import BadState

_HEAD: Final = struct.Struct("=8sQQQQ")  # magic, state, size, taken, origin
_MAGIC: Final = b"pxlslip1"
_BODY: Final = 4096
_BODY_MAX: Final = 1 << 24
_PIPE_BYTES: Final = 1 << 16
_PIPE_MAX: Final = 1 << 20
_ORIGINS: Final = (1 << 63) - 1


class _State(IntEnum):
    IDLE = 0
    NOTED = 1  # `size` bytes of a request, `taken` of them surely out of the socket
    BEGUN = 2  # the request is being worked on
    REPLYING = 3  # the reply is in the pipe, or was


class Left(NamedTuple):
    """What a predecessor left on a slip.

    request: what was read of it. is_begun: it was being worked on. unsent: the rest of a reply.
    """

    request: bytes
    is_begun: bool
    unsent: int


class Slip:
    """The slip of one connection. memory, reader, writer: its descriptors."""

    def __init__(self, memory: int, reader: int, writer: int) -> None:
        self.memory = memory
        self.reader = reader
        self.writer = writer
        self.unsent = 0
        self.origin = 0
        self._size = 0

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """Return what must be kept to keep the slip."""
        return self.memory, self.reader, self.writer

    def close(self) -> None:
        """Give it up."""
        for fd in self.descriptors:
            os.close(fd)

    # -- a request -------------------------------------------------------------------------------

    def note(self, data: bytes, taken: int) -> None:
        """Note what is there of a request; its first `taken` bytes are out of the socket."""
        if len(data) > self._size:
            os.pwrite(self.memory, data[self._size :], _BODY + self._size)
            self._size = len(data)
        self._set(_State.NOTED, taken)

    def begin(self) -> None:
        """Give the request an origin: it is worked on from now on."""
        self.origin = self.origin % _ORIGINS + 1
        self._set(_State.BEGUN, self._size)

    def clear(self) -> None:
        """Note that nothing is under way."""
        self._size = 0
        self._set(_State.IDLE, 0)

    def _set(self, state: _State, taken: int) -> None:
        head = _HEAD.pack(_MAGIC, state, self._size, taken, self.origin)
        os.pwrite(self.memory, head, 0)

    # -- its reply -------------------------------------------------------------------------------

    def put_reply(self, data: bytes) -> bool:
        """Put a reply into the pipe, to be sent by `send`; False when it does not fit."""
        if not self._fits(len(data)) or os.write(self.writer, data) != len(data):
            self._drain()
            return False
        self.unsent = len(data)
        self._set(_State.REPLYING, self._size)
        return True

    def _fits(self, size: int) -> bool:
        if size <= _PIPE_BYTES:
            return True
        if size > _PIPE_MAX:
            return False
        try:
            return fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, size) >= size
        except OSError:  # this user has too much in pipes already
            return False

    def _drain(self) -> None:
        """Empty the pipe."""
        while True:
            try:
                if not os.read(self.reader, _PIPE_MAX):
                    return
            except BlockingIOError:
                return

    def send(self, connected: socket.socket) -> None:
        """Send some of what is unsent. Raises BlockingIOError, OSError."""
        target = connected.fileno()
        self.unsent -= os.splice(self.reader, target, self.unsent, flags=os.SPLICE_F_NONBLOCK)

    # -- what a predecessor left -----------------------------------------------------------------

    def load(self, connected: socket.socket) -> Left:
        """Take over what a predecessor left, and make the slip, the pipe and the socket agree.

        Raises BadState, OSError.
        """
        head = os.pread(self.memory, _HEAD.size, 0)
        if len(head) != _HEAD.size:
            raise BadState("slip of a connection", "size", f"{_HEAD.size} bytes", str(len(head)))
        magic, state, size, taken, self.origin = _HEAD.unpack(head)
        if magic != _MAGIC or state not in tuple(_State) or not taken <= size <= _BODY_MAX:
            raise BadState("slip of a connection", "head", "what we write", head.hex())
        if state == _State.REPLYING:
            self.unsent = int.from_bytes(fcntl.ioctl(self.reader, _FIONREAD, bytes(4)), "little")
            if not self.unsent:
                self.clear()
            return Left(b"", False, self.unsent)
        self._drain()
        request = os.pread(self.memory, size, _BODY)
        if len(request) != size:
            raise BadState("slip of a connection", "request", f"{size} bytes", str(len(request)))
        self._size = size
        if state == _State.NOTED and taken < size:
            rest = request[taken:]
            if peek(connected, len(rest)) == rest:
                connected.recv(len(rest), socket.MSG_DONTWAIT)
            self.note(request, size)
        return Left(request, state == _State.BEGUN, 0)


_FIONREAD: Final = 0x541B


def new_slip() -> Slip:
    """Make an empty slip. Raises OSError."""
    memory = os.memfd_create("paxoslease-slip", os.MFD_CLOEXEC)
    try:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        os.close(memory)
        raise
    slip = Slip(memory, reader, writer)
    # The numbers of another connection in the same slot must not be taken for this one's.
    slip.origin = int.from_bytes(os.urandom(7), "little")
    slip.clear()
    return slip


def peek(connected: socket.socket, size: int) -> bytes:
    """Return what is at the head of a socket, up to `size` bytes, and leave it there.

    Empty when nothing is there, or it has ended.
    """
    try:
        return connected.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""
