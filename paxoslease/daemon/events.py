"""Messages between hosts as clients see them: events delivered, requests for leases acted on.

Source: spec/wire-protocol.md 9.5, 9.6, 13 and 16.3; spec/algorithms.md 9; rule M15.
"""

from __future__ import annotations

import errno
import logging
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from paxoslease.daemon.bridge import finished
from paxoslease.daemon.clients import killpath_words
from paxoslease.daemon.entries import Entry, Phase
from paxoslease.daemon.keeper import EVENT, Keeper
from paxoslease.daemon.refusal import Refusal
from paxoslease.engine.operation import now_us
from paxoslease.engine.processes import Process, Wishes
from paxoslease.errors import PaxosleaseError
from paxoslease.protocol import requests
from paxoslease.protocol.requests import Attention, Demand, Heard
from paxoslease.wire import sanlock as wire

if TYPE_CHECKING:
    from paxoslease.daemon.connection import Connection
    from paxoslease.daemon.registry import Registry
    from paxoslease.daemon.spaces import Space

_log = logging.getLogger(__name__)

LISTENERS_MAX: Final = 32
_END_WORD: Final = struct.pack("<I", 1)


class Listeners:
    """The event connections of one lockspace. The daemon only sends on them."""

    def __init__(self, space: Space, keeper: Keeper) -> None:
        self._space = space
        self._keeper = keeper
        self._sockets: list[socket.socket] = []
        self.attention = Attention()

    def __iter__(self) -> Iterator[socket.socket]:
        return iter(list(self._sockets))

    def make_room(self) -> None:
        """See that one more can be added. Raises Refusal (-ENOCSI) when there are too many."""
        if len(self._sockets) >= LISTENERS_MAX:
            self.tidy()
        if len(self._sockets) >= LISTENERS_MAX:
            raise Refusal(errno.ENOCSI)

    def add(self, listener: socket.socket) -> None:
        """Take a connection over."""
        listener.setblocking(False)
        self._sockets.append(listener)
        self.keep(listener)

    def keep(self, listener: socket.socket) -> None:
        """Have a copy of a connection kept, in case the daemon dies."""
        self._keeper.keep(self._key(listener), listener.fileno())

    def _key(self, listener: socket.socket) -> bytes:
        return EVENT + b"%s:%d" % (self._space.name.hex().encode(), listener.fileno())

    def descriptors(self) -> list[int]:
        """Return the descriptors of the connections."""
        return [listener.fileno() for listener in self._sockets]

    def tidy(self) -> None:
        """Close the connections whose clients have ended them, or said so."""
        for listener in list(self._sockets):
            try:
                word = listener.recv(len(_END_WORD))
            except BlockingIOError:
                continue
            except OSError:
                word = b""
            if word in (b"", _END_WORD):
                self._drop(listener)

    def deliver(self, heard: Heard) -> None:
        """Send an event to all; a client that does not take it at once is dropped."""
        host_id = self._space.wanted.host_id
        event = wire.HostEvent(host_id, *heard.event)
        message = wire.EventMessage(event, heard.from_host_id, heard.from_generation)
        data = wire.pack_event_message(message)
        for listener in list(self._sockets):
            try:
                is_sent = listener.send(data, socket.MSG_NOSIGNAL) == len(data)
            except OSError:
                is_sent = False
            if not is_sent:
                self._drop(listener)

    def close(self) -> None:
        """Close all: the lockspace is gone."""
        for listener in list(self._sockets):
            self._drop(listener)

    def _drop(self, listener: socket.socket) -> None:
        self._sockets.remove(listener)
        self._keeper.drop(self._key(listener))
        with suppress(OSError):  # the client has gone, or is told at once
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def take_over(connection: Connection, space: Space) -> None:
    """Turn a client's connection into an event connection."""
    assert space.listeners is not None
    space.listeners.add(connection.socket)
    connection.is_given_away = True


class Attendant:
    """Looks when other hosts ask us to. Belongs to the loop's thread."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def marked(self, space: Space, host_ids: tuple[int, ...]) -> None:
        """Read the events of hosts that marked us, and look at requests for what we hold."""
        if space.is_dead or space.membership is None or space.listeners is None:
            return
        for host_id in host_ids:
            self._registry.in_background(self._read_event(space, host_id))
        listeners = space.listeners
        listeners.attention, is_due = requests.attend(
            listeners.attention, host_ids, now_us(), space.timing
        )
        if is_due:
            self.examine_space(space)

    async def _read_event(self, space: Space, host_id: int) -> None:
        membership = space.membership
        assert membership is not None
        member = membership.member
        reading = requests.read_event(member.space, host_id, member.host_id, member.timing)
        heard = await finished(membership.start_protocol(reading, {}))
        if heard is not None and space.listeners is not None:
            _log.info("s%d event from host %d: %s", space.number, host_id, heard.event)
            space.listeners.deliver(heard)

    def examine_space(self, space: Space) -> None:
        """Begin to look at the requests for all leases that are held of a lockspace."""
        for entry in self._registry.of_space(space):
            self.examine(entry)

    def examine(self, entry: Entry) -> None:
        """Begin to look whether somebody asks for a lease that a client holds exclusively.

        Shared leases have no one holder to be told, orphans have none at all.
        """
        if entry.phase is Phase.HELD and entry.owner is not None and not entry.space.is_dead:
            self._registry.in_background(self._examine(entry))

    async def _examine(self, entry: Entry) -> None:
        membership, holding = entry.space.membership, entry.holding
        assert membership is not None
        assert holding is not None
        found = await finished(membership.leases.start_on_lease(holding, requests.examine))
        if found.demand is Demand.NONE:
            return
        if entry.phase is not Phase.HELD or entry.owner is None:
            return
        self._act(entry, found.demand)
        lease = holding.lease
        if lease is None:
            return
        claim = lease.claim
        try:
            clearing = requests.clear_request(claim, found.request)
            await finished(membership.start_protocol(clearing, dict(holding.files)))
        except PaxosleaseError as error:
            _log.warning("r%d request not cleared: %s", entry.number, error)

    def _act(self, entry: Entry, demand: Demand) -> None:
        """Do to the holder what was asked: a signal, or its killpath (16.3)."""
        client = entry.owner
        assert client is not None
        _log.warning("r%d request %s for pid %d", entry.number, demand.name, client.pid)
        words = killpath_words(entry.killpath, entry.killpath_args)
        try:
            process = Process(1, client.pid, Wishes(words))
        except PaxosleaseError as error:
            _log.error("r%d request for a process that is gone: %s", entry.number, error)
            return
        try:
            if not client.is_running:  # what was found by its pid may be another then
                _log.error("r%d request for a process that is gone", entry.number)
            elif demand is Demand.FORCE:
                is_spared = entry.restricted & wire.RestrictFlag.SIGKILL
                process.signal(signal.SIGTERM if is_spared else signal.SIGKILL)
            elif not process.run_killpath(lambda: None):
                is_spared = entry.restricted & wire.RestrictFlag.SIGTERM
                process.signal(signal.SIGKILL if is_spared else signal.SIGTERM)
        finally:
            process.close()
