"""The daemon: its state, its clients' connections, and its end.

One thread, an asyncio event loop, owns everything here. A task per connection takes one request
after the other to its handler; handlers wait for the engine without holding anybody up.

Source: spec/wire-protocol.md 1, 6.3, 15 and 17.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from paxoslease.daemon.clients import Client, Clients
from paxoslease.daemon.connection import Call, Connection, Dropped
from paxoslease.daemon.events import Attendant, Listeners
from paxoslease.daemon.journal import Journal
from paxoslease.daemon.logs import LogRing
from paxoslease.daemon.options import DaemonOptions
from paxoslease.daemon.refusal import Refusal, number_of
from paxoslease.daemon.registry import Registry
from paxoslease.daemon.spaces import Spaces
from paxoslease.errors import PaxosleaseError
from paxoslease.wire.sanlock import Command

_log = logging.getLogger(__name__)

Handler: TypeAlias = "Callable[[Daemon, Call], Awaitable[None]]"

BACKLOG: Final = 1024
FIRST_CLIENT: Final = 2  # slots 0 and 1 are the helper's and the listener's
_ACCEPT_PAUSE_S: Final = 0.1
_FAREWELL_S: Final = 1.0


class Daemon:
    """The state of the daemon. Belongs to the loop's thread.

    connections: by slot. cleared: set when a shutdown was asked for and no lockspace is left.
    """

    def __init__(
        self, options: DaemonOptions, host_name: bytes, journal: Journal, log: LogRing
    ) -> None:
        self.options = options
        self.host_name = host_name
        self.journal = journal
        self.log = log
        self.clients = Clients()
        self.spaces = Spaces(options, host_name, journal)
        self.registry = Registry(self.spaces, journal)
        self.attendant = Attendant(self.registry)
        self.spaces.registry = self.registry
        self.spaces.on_marked = self.attendant.marked
        self.spaces.make_listeners = Listeners
        self.connections: dict[int, Connection] = {}
        self.cleared = asyncio.Event()
        self.helper_pid = -1
        self._handlers: dict[Command, Handler] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._farewells = 0
        self._shutdown: asyncio.Task[None] | None = None

    def handle(self, handlers: dict[Command, Handler]) -> None:
        """Set what is done for each command."""
        self._handlers = handlers

    # -- connections -----------------------------------------------------------------------------

    async def serve(self, listener: socket.socket) -> None:
        """Accept clients until the daemon has been shut down."""
        listener.setblocking(False)
        accepting = asyncio.ensure_future(self._accept(listener))
        try:
            await self.cleared.wait()
        finally:
            accepting.cancel()
        deadline = asyncio.get_running_loop().time() + _FAREWELL_S
        while self._farewells and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors: clients wait in the listener's queue meanwhile.
                _log.error("accept_failed error=%s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            connected.setblocking(False)
            self.adopt(connected)

    def adopt(self, connected: socket.socket) -> Connection:
        """Serve a connection, new or taken over."""
        number = FIRST_CLIENT
        while number in self.connections:
            number += 1
        connection = Connection(number, connected)
        self.connections[number] = connection
        task = asyncio.ensure_future(self._converse(connection))
        self._tasks.add(task)
        task.add_done_callback(self._conversation_ended)
        return connection

    def _conversation_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.critical("internal error in a conversation", exc_info=task.exception())

    async def _converse(self, connection: Connection) -> None:
        try:
            while True:
                call = await connection.next_call()
                await self._answer(call)
                if connection.is_given_away or (call.closes and connection.client is None):
                    break
        except Dropped:
            _log.debug("connection_ended slot=%d pid=%d", connection.number, connection.peer_pid)
        finally:
            del self.connections[connection.number]
            connection.close()
            if connection.client is not None:
                self._client_ended(connection.client)

    async def _answer(self, call: Call) -> None:
        connection = call.connection
        connection.name = name_of(call.command)
        connection.command_active = call.header.command
        call.closes = call.command in CLOSING
        try:
            await self._handlers[call.command](self, call)
        except (Refusal, PaxosleaseError) as error:
            number = number_of(error)
            _log.info(
                "cmd %s pid %d result %d %s",
                name_of(call.command).decode(),
                connection.peer_pid,
                number,
                error,
            )
            if not call.is_answered:
                await call.reply(number)
        finally:
            connection.command_last = connection.command_active
            connection.command_active = 0

    def _client_ended(self, client: Client) -> None:
        client.end()
        self.clients.remove(client)
        if not client.is_busy:
            self.forget_client(client)

    def forget_client(self, client: Client) -> None:
        """Give back what a client held whose connection has ended, now that no command runs."""
        self.registry.client_ended(client)
        self.journal.client_ended(client)

    # -- the end ---------------------------------------------------------------------------------

    def ask_shutdown(self, *, is_forced: bool) -> bool:
        """Begin to shut down; False when a lockspace exists and it is not forced."""
        if not is_forced and self.spaces:
            _log.warning("shutdown ignored: lockspaces exist")
            return False
        if self._shutdown is None:
            _log.warning("shutdown begins")
            self._farewells += 1
            self._shutdown = asyncio.ensure_future(self._shut_down())
        return True

    async def _shut_down(self) -> None:
        while self.spaces:
            for space in self.spaces:
                self.spaces.leave(space)
            await self.spaces.next_change()
        self._farewells -= 1
        self.cleared.set()

    def farewell_begins(self) -> None:
        """Have the end wait for a reply that tells of it."""
        self._farewells += 1

    def farewell_ends(self) -> None:
        """Note that the reply is out."""
        self._farewells -= 1


CLOSING: Final = frozenset(
    (
        Command.STATUS,
        Command.LOG_DUMP,
        Command.HOST_STATUS,
        Command.GET_LOCKSPACES,
        Command.GET_HOSTS,
        Command.END_EVENT,
        Command.SET_CONFIG,
        Command.RENEWAL,
        Command.SHUTDOWN,
    )
)
_NAMED: Final = CLOSING | {
    Command.REG_EVENT,
    Command.ADD_LOCKSPACE,
    Command.INQ_LOCKSPACE,
    Command.REM_LOCKSPACE,
}


def name_of(command: Command) -> bytes:
    """Return what a status shows for a connection that runs a command (14.1)."""
    return command.name.lower().encode() if command in _NAMED else b"cmd%d" % command
