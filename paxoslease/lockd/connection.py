"""One client's connection: requests in, replies out, one at a time.

The next request is read only after the last reply was taken, so a client costs at most the memory
of one request and one reply, whatever it sends or leaves unread; what it sends ahead waits in the
socket. Of a request no more is kept than any procedure looks at, the rest is counted.

Half a request may stay half for a time, since it takes the place of a client; but not when the end
of the connection would be the end of a guest. An unread reply costs nothing that an idle connection
does not cost.

Descriptors that a client passes along are left to the kernel, which drops them. They must not
become descriptors of this process: closing one of a held file would drop its lock.

Source: spec/lock-drivers.md 7.2, 8.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Final, Protocol

from paxoslease.lockd.hangups import Hangups, has_hung_up
from paxoslease.lockd.processes import Peer
from paxoslease.lockd.session import Session
from paxoslease.lockd.work import Work
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
REQUEST_LIMIT_S: Final = 60.0


class Keeper(Protocol):
    """What connections need of the daemon."""

    work: Work
    hangups: Hangups

    def left(self, connection: Connection) -> None:
        """Learn, once, that a connection has ended and is closed."""

    def matters(self, connection: Connection) -> bool:
        """Tell whether the end of a connection would cost somebody a lock."""
        ...


class Connection:
    """A client's socket. Everything happens in the loop's thread.

    number: its name in the daemon. pid: the process at the other end when it connected. pidfd: that
    very process, None when it was gone already; the connection owns it until somebody takes it.
    limit_s: how long one request may take to arrive.
    """

    def __init__(
        self,
        client: socket.socket,
        session: Session,
        peer: Peer,
        number: int,
        keeper: Keeper,
        limit_s: float = REQUEST_LIMIT_S,
    ) -> None:
        client.setblocking(False)
        self.socket = client
        self.session = session
        self.number = number
        self.pid = peer.pid
        self.pidfd = peer.pidfd
        self._keeper = keeper
        self._limit_s = limit_s
        self._limit: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._has_begun = False
        self._is_held = False
        self._is_waiting = False  # for the answer to a request that was read
        self._is_reading = False
        # A request that is not complete: what is kept of it, and how much of it came.
        self.kept = bytearray()
        self.received_size = 0
        self.descriptors_left = 0
        self.unsent = b""

    def start(self) -> None:
        """Begin to serve; after a restart of the daemon, where the last image left off."""
        self._has_begun = True
        if self.unsent:
            self._loop.add_writer(self.socket, self._write)
        if self.received_size or self.descriptors_left:
            self._limit = self._loop.call_later(self._limit_s, self._too_slow)
        self._look()

    def hold(self, *, is_held: bool) -> None:
        """Begin no request meanwhile, or go on."""
        self._is_held = is_held
        self._look()

    def _look(self) -> None:
        """Read if there is nothing to be done before."""
        is_free = not (self._is_held or self._is_waiting or self.unsent)
        wanted = self._has_begun and is_free and self.socket.fileno() >= 0
        if wanted and not self._is_reading:
            self._loop.add_reader(self.socket, self._read)
        elif self._is_reading and not wanted:
            self._loop.remove_reader(self.socket)
        self._is_reading = wanted

    def close(self) -> None:
        """End the connection, and tell so."""
        if self.socket.fileno() < 0:
            return
        self._loop.remove_reader(self.socket)
        self._loop.remove_writer(self.socket)
        self._is_reading = False
        self._keeper.hangups.forget(self.socket)
        self._cancel_limit()
        self.socket.close()
        self._keeper.left(self)
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
            elif self._limit is None:
                self._limit = self._loop.call_later(self._limit_s, self._too_slow)
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

    def _too_slow(self) -> None:
        """End a connection whose request does not come, unless a lock hangs on it."""
        if self._keeper.matters(self):
            self._limit = self._loop.call_later(self._limit_s, self._too_slow)
            return
        _log.warning("slow_client pid=%d", self.pid)
        self.close()

    def _cancel_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    # -- answering

    def _serve(self) -> None:
        message = bytes(self.kept)
        self.kept.clear()
        self.received_size = 0
        self._cancel_limit()
        self._is_waiting = True
        self._keeper.work.start(self.session.answer(message, self._is_there), self._answered)
        if self._is_waiting:
            self._look()
            self._keeper.hangups.watch(self.socket, self._hung_up)

    def _is_there(self) -> bool:
        return self.socket.fileno() >= 0 and not has_hung_up(self.socket)

    def _hung_up(self) -> None:
        _log.info("client_dropped pid=%d reason=%s", self.pid, "gone before the answer")
        self.close()

    def _answered(self, answer: bytes) -> None:
        self._is_waiting = False
        if self.socket.fileno() < 0:
            return
        self._keeper.hangups.forget(self.socket)
        self.unsent = answer
        self._write()

    # -- writing

    def _write(self) -> None:
        """Send more of a reply; when it is gone, read again."""
        try:
            if self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            _log.debug("client_slow pid=%d", self.pid)
        except OSError as error:
            _log.info("client_dropped pid=%d reason=%s", self.pid, error)
            self.close()
            return
        if self.unsent:
            self._loop.add_writer(self.socket, self._write)
        else:
            self._loop.remove_writer(self.socket)
        self._look()
