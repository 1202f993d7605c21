"""One client's connection: requests in, replies out, one at a time and never waiting.

The next request is read only after the last reply was taken, so a client costs at most the memory
of one request and one reply, whatever it sends or leaves unread; what it sends ahead waits in the
socket. Of a request no more is kept than any procedure looks at, the rest is counted. There is no
time limit for half a request or an unread reply: they cost nothing that an idle connection does not
cost, and the end of a guest's own connection would kill the guest.

Descriptors that a client passes along are left to the kernel, which drops them. They must not
become descriptors of this process: closing one of a held file would drop its lock.

Source: spec/lock-drivers.md 7.2, 8.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from paxoslease.lockd.session import Session
from paxoslease.wire.virtlock import (
    HEADER_SIZE,
    USED_SIZE_MAX,
    MessageType,
    parse_descriptor_count,
    parse_header,
    parse_length,
)
from paxoslease.wire.xdr import WORD_SIZE, XdrError

_log = logging.getLogger(__name__)

_READ_SIZE_MAX: Final = 65536


class Connection:
    """A client's socket. Everything happens in the loop's thread.

    pid: the process at the other end when it connected. pidfd: that very process, None when it was
    gone already; the connection owns it until somebody takes it. ended: called once, when the
    connection has ended and is closed.
    """

    def __init__(
        self,
        client: socket.socket,
        session: Session,
        pid: int,
        pidfd: int | None,
        ended: Callable[[Connection], None],
    ) -> None:
        client.setblocking(False)
        self.socket = client
        self.session = session
        self.pid = pid
        self.pidfd = pidfd
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        # A request that is not complete: what is kept of it, and how much of it came.
        self.kept = bytearray()
        self.received_size = 0
        self.descriptors_left = 0
        self.unsent = b""

    def start(self) -> None:
        """Begin to serve; after a restart of the daemon, where the last image left off."""
        if self.unsent:
            self._loop.add_writer(self.socket, self._write)
        else:
            self._loop.add_reader(self.socket, self._read)

    def close(self) -> None:
        """End the connection, and tell so."""
        if self.socket.fileno() < 0:
            return
        self._loop.remove_reader(self.socket)
        self._loop.remove_writer(self.socket)
        self.socket.close()
        self._ended(self)
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def take_pidfd(self) -> int | None:
        """Give the pidfd away."""
        taken, self.pidfd = self.pidfd, None
        return taken

    # -- reading

    def _read(self) -> None:
        """Take a piece of a request, and serve it when it is complete."""
        try:
            is_complete = self._receive_descriptor() if self.descriptors_left else self._receive()
            if is_complete:
                self._serve()
        except BlockingIOError:
            return
        except (OSError, XdrError, EOFError) as error:
            if not isinstance(error, EOFError) or self.received_size:
                _log.info("client_dropped pid=%d reason=%s", self.pid, error or "cut off")
            self.close()

    def _receive(self) -> bool:
        """Receive more of the message; True when nothing more belongs to it."""
        if self.received_size < WORD_SIZE:
            wanted = WORD_SIZE - self.received_size
        else:
            wanted = parse_length(self._head()) - self.received_size
        data = self.socket.recv(min(wanted, _READ_SIZE_MAX))
        if not data:
            raise EOFError
        self.received_size += len(data)
        self.kept += data[: USED_SIZE_MAX - len(self.kept)]
        head = self._head()
        if self.received_size < WORD_SIZE or self.received_size < parse_length(head):
            return False
        if parse_header(head).kind == MessageType.CALL_WITH_FDS:
            self.descriptors_left = parse_descriptor_count(head)
        return not self.descriptors_left

    def _head(self) -> bytes:
        """Return the beginning of the message: its header, and a word behind it."""
        return bytes(self.kept[: HEADER_SIZE + WORD_SIZE])

    def _receive_descriptor(self) -> bool:
        """Receive the byte that carries a descriptor, without the descriptor."""
        data, _, flags, _ = self.socket.recvmsg(1)
        if not data:
            raise EOFError
        if not flags & socket.MSG_CTRUNC:
            raise XdrError(self.received_size, "a byte without a descriptor")
        self.descriptors_left -= 1
        return not self.descriptors_left

    def _serve(self) -> None:
        message = bytes(self.kept)
        self.kept.clear()
        self.received_size = 0
        self.unsent = self.session.answer(message)
        if self.unsent:
            self._send()
        if self.unsent:
            self._loop.remove_reader(self.socket)
            self._loop.add_writer(self.socket, self._write)

    # -- writing

    def _write(self) -> None:
        """Send more of a reply; when it is gone, read again."""
        try:
            self._send()
        except OSError as error:
            _log.info("client_dropped pid=%d reason=%s", self.pid, error)
            self.close()
            return
        if not self.unsent:
            self._loop.remove_writer(self.socket)
            self._loop.add_reader(self.socket, self._read)

    def _send(self) -> None:
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            return
