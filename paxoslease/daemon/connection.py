"""One client's connection: requests in, replies out, one at a time, in order.

Reading takes from the socket just what the request needs, so whatever a client sent ahead stays in
the socket, where it survives a restart of the daemon. While a request is being worked on its
connection is not read. What is under way for a registered client is noted on a slip (slip.py).

A client that stops in the middle of a request, or does not read its reply, keeps only itself
waiting: the loop serves the others. Unless it is registered (then its end would cost it its
leases), it is given PATIENCE_S and then dropped.

Source: spec/wire-protocol.md 2, 4, 5, 17 and 21.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from paxoslease.daemon.slip import Slip
from paxoslease.wire import sanlock as wire

if TYPE_CHECKING:
    from paxoslease.daemon.clients import Client

_log = logging.getLogger(__name__)

PATIENCE_S: Final = 30.0
RESOURCES_MAX: Final = 1024

_CREDENTIALS: Final = struct.Struct("3i")
_SO_PEERPIDFD: Final = 77


class Dropped(Exception):
    """The connection is not to be used any more: it ended, broke, or its client was too slow."""


class Connection:
    """A connected client. Belongs to the loop's thread.

    client: the registered client whose life it is, None before REGISTER. is_muted: every further
    request is ignored (RESTRICT_ALL). is_given_away: it has become an event connection.
    name: what a status shows for an unregistered client: the command under way. is_begun: what
    there is of a request has been worked on before, by this daemon or a predecessor.
    """

    def __init__(self, number: int, connected: socket.socket) -> None:
        self.number = number
        self.socket = connected
        self.client: Client | None = None
        self.is_muted = False
        self.is_given_away = False
        self.name = b""
        self.command_active = 0
        self.command_last = 0
        self.partial = bytearray()  # the request that is being read or worked on
        self.unsent = b""  # of a reply
        self.is_begun = False
        self.slip: Slip | None = None
        self.peer_pid, self.peer_uid, self.peer_gid = _credentials(connected)

    def peer_pidfd(self) -> int:
        """Return a new pidfd of the process that connected, -1 when it has ended.

        The kernel knows the process even when its pid is another's by now.
        """
        try:
            packed = self.socket.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
            return int.from_bytes(packed, "little", signed=True)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                return -1
        try:  # a kernel before 6.5
            return os.pidfd_open(self.peer_pid)
        except OSError:
            return -1

    async def next_call(self) -> Call:
        """Wait for the next request. Raises Dropped at the end of the connection."""
        await self._send_rest()
        while True:
            header = await self._read_header()
            if self.is_muted and not self.is_begun:  # not the request that said so
                self.partial.clear()
                continue
            if not _is_good(header):
                # Nobody who speaks this protocol sends such a thing: what follows is not
                # understood, and a client that waits for an answer is told by the end.
                _log.warning("bad_request peer=%d header=%s", self.peer_pid, header)
                raise Dropped
            try:
                payload = await self._read_payload(header)
            except Dropped:
                await self._send_cut_short(header)
                raise
            return Call(self, header, payload)

    async def _send_cut_short(self, header: wire.Header) -> None:
        """Tell a client that has ended its side in the middle of a request; it may still read."""
        reply = header._replace(length=wire.HEADER_BYTES, data=-errno.ENOTCONN, data2=0)
        self.unsent += wire.pack_header(reply._replace(version=wire.PROTOCOL_VERSION))
        await self._send_rest()

    def begin(self) -> int:
        """Note that the request is worked on from now on; returns its origin, 0 without a slip."""
        if self.slip is None:
            self.is_begun = True
            return 0
        if not self.is_begun:
            self.slip.begin()
            self.is_begun = True
        return self.slip.origin

    def answered(self) -> None:
        """Note that the request has been worked on: a restart need not do it again."""
        self.partial.clear()
        self.is_begun = False
        if self.slip is not None:
            self.slip.clear()

    def use_slip(self, slip: Slip) -> None:
        """Note on a slip what is under way from now on."""
        self.slip = slip

    def take_over(self, slip: Slip) -> None:
        """Go on with what a predecessor left on the slip. Raises BadState, OSError."""
        left = slip.load(self.socket)
        self.slip = slip
        self.partial = bytearray(left.request)
        self.is_begun = left.is_begun

    async def _read_header(self) -> wire.Header:
        await self._fill(wire.HEADER_BYTES, is_begun=bool(self.partial))
        return wire.parse_header(bytes(self.partial[: wire.HEADER_BYTES]))

    async def _read_payload(self, header: wire.Header) -> bytes:
        base = wire.HEADER_BYTES
        many = RESOURCES_MAX if header.version > wire.PROTOCOL_VERSION else wire.RESOURCES_MAX
        while True:
            need = base + wire.payload_need(header, bytes(self.partial[base:]), many)
            if len(self.partial) >= need:
                return bytes(self.partial[base:])
            await self._fill(need, is_begun=True)

    async def _fill(self, size: int, *, is_begun: bool) -> None:
        """Read until `size` bytes of the request are there.

        Nothing is awaited between reading and keeping what was read: a wait that is cancelled, as a
        restart does, loses nothing.
        """
        while len(self.partial) < size:
            try:
                data = self._receive(size - len(self.partial))
            except BlockingIOError:
                limit_s = None if self.client is not None or not is_begun else PATIENCE_S
                try:
                    await asyncio.wait_for(readable(self.socket), limit_s)
                except TimeoutError:
                    _log.warning("slow_client peer=%d", self.peer_pid)
                    raise Dropped from None
                continue
            except OSError:
                raise Dropped from None
            if not data:
                raise Dropped
            is_begun = True
            self.partial += data

    def _receive(self, size: int) -> bytes:
        """Receive what is there, by way of the slip: noted before it is out of the socket.

        Raises BlockingIOError when there is nothing.
        """
        if self.slip is None or self.is_muted:
            return self.socket.recv(size)
        data = self.socket.recv(size, socket.MSG_PEEK)
        if data:
            noted = bytes(self.partial) + data
            self.slip.note(noted, len(self.partial))
            self.socket.recv(len(data))
            self.slip.note(noted, len(noted))
        return data

    async def send(self, data: bytes) -> None:
        """Send a reply. Raises Dropped when the client is gone or does not read it."""
        if self.slip is None or not self.slip.put_reply(data):
            self.answered()
            self.unsent = data
        self.partial.clear()
        self.is_begun = False
        await self._send_rest()

    async def _send_rest(self) -> None:
        limit_s = None if self.client is not None else PATIENCE_S
        while self.unsent or (self.slip is not None and self.slip.unsent):
            try:
                self._send_some()
            except BlockingIOError:
                try:
                    await asyncio.wait_for(_writable(self.socket), limit_s)
                except TimeoutError:
                    _log.warning("client_does_not_read peer=%d", self.peer_pid)
                    raise Dropped from None
            except OSError:
                raise Dropped from None

    def _send_some(self) -> None:
        if self.slip is None or not self.slip.unsent:
            self.unsent = self.unsent[self.socket.send(self.unsent, socket.MSG_NOSIGNAL) :]
            return
        self.slip.send(self.socket)
        if not self.slip.unsent:
            self.slip.clear()

    def dump(self) -> dict[str, Any]:
        """Return what a successor needs to serve it on."""
        return {
            "fd": self.socket.fileno(),
            "number": self.number,
            "partial": self.partial.hex(),
            "unsent": self.unsent.hex(),
            "is_muted": self.is_muted,
            "is_begun": self.is_begun,
            "slip": [] if self.slip is None else list(self.slip.descriptors),
        }

    def close(self) -> None:
        """Close the socket, unless it has become an event connection."""
        if self.slip is not None:
            self.slip.close()
            # The keeper may have a copy for a moment yet, but the client learns of the end now.
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        if not self.is_given_away:
            self.socket.close()


class Call:
    """A request that has arrived whole, and the way to answer it.

    `closes`: the connection ends after the reply, unless its client is registered. is_again: it was
    begun before a restart. origin: what tells it from every other request, 0 for nothing.
    """

    def __init__(self, connection: Connection, header: wire.Header, payload: bytes) -> None:
        self.connection = connection
        self.header = header
        self.payload = payload
        self.closes = False
        self.is_again = connection.is_begun
        self.origin = 0
        self.is_answered = False
        self.after_reply: list[Callable[[], None]] = []

    @property
    def command(self) -> wire.Command:
        """Return the command."""
        return wire.Command(self.header.command)

    def lockspace(self) -> wire.Lockspace:
        """Return the lockspace that the payload begins with."""
        return wire.parse_lockspace(self.payload[: wire.LOCKSPACE_BYTES])

    def resource(self) -> wire.Resource:
        """Return the resource, with its disks, that the payload begins with."""
        resources, _ = wire.parse_resources(self.payload, 1)
        return resources[0]

    async def reply(
        self, result: int, data2: int = 0, body: bytes = b"", *, length: int | None = None
    ) -> None:
        """Answer with a header and what follows it."""
        header = wire.Header(
            self.header.command,
            self.header.flags,
            wire.HEADER_BYTES + len(body) if length is None else length,
            result,
            data2,
            self.header.seq,
        )
        await self.send(wire.pack_header(header) + body)

    async def send(self, data: bytes) -> None:
        """Answer with these bytes."""
        self.is_answered = True
        await self.connection.send(data)


async def readable(watched: socket.socket) -> None:
    """Wait until something can be received, or accepted."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(watched, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(watched)


async def _writable(connected: socket.socket) -> None:
    """Wait until something can be sent."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(connected, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(connected)


def _is_good(header: wire.Header) -> bool:
    if header.magic != wire.MAGIC or not wire.Command.REGISTER <= header.command <= 40:
        return False
    return header.version >> 16 == 0 or header.command == wire.Command.VERSION


def _credentials(connected: socket.socket) -> tuple[int, int, int]:
    packed = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    return pid, uid, gid
