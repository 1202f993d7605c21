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
from typing import Final, TypeAlias

from paxoslease.daemon.clients import Client, Clients
from paxoslease.daemon.connection import Call, Connection, Dropped, readable
from paxoslease.daemon.events import Attendant, Listeners
from paxoslease.daemon.helper import Helper
from paxoslease.daemon.journal import Journal
from paxoslease.daemon.keeper import CLIENT, Keeper
from paxoslease.daemon.logs import LogRing
from paxoslease.daemon.options import DaemonOptions
from paxoslease.daemon.privileges import Identity
from paxoslease.daemon.refusal import Refusal, number_of
from paxoslease.daemon.registry import Registry
from paxoslease.daemon.slip import new_slip
from paxoslease.daemon.spaces import Spaces
from paxoslease.engine.processes import act_through
from paxoslease.errors import PaxosleaseError
from paxoslease.wire.sanlock import Command

_log = logging.getLogger(__name__)

Handler: TypeAlias = "Callable[[Daemon, Call], Awaitable[None]]"

BACKLOG: Final = 1024
FIRST_CLIENT: Final = 2  # slots 0 and 1 are the helper's and the listener's
_ACCEPT_PAUSE_S: Final = 0.1
_FAREWELL_S: Final = 1.0
_STREAMS_MAX: Final = 64
_UNDO_S: Final = 3.0  # what it may take to undo a request that was cancelled
_INTERNAL_ERROR: Final = -201
_END_S: Final = 1.0  # what a request may still take once a restart was asked for


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
        self.registry = Registry(self.spaces, journal, options.shared_retries)
        self.attendant = Attendant(self.registry)
        self.spaces.registry = self.registry
        self.spaces.on_marked = self.attendant.marked
        self.keeper = Keeper(None)
        self.spaces.make_listeners = lambda space: Listeners(space, self.keeper)
        self.connections: dict[int, Connection] = {}
        self.cleared = asyncio.Event()
        self.helper: Helper | None = None
        # By lockspace, while what a predecessor left is being brought to an end.
        self.restoring: dict[bytes, asyncio.Task[None]] = {}
        self._forgotten: dict[int, Client] = {}  # whose slots are not free yet
        self.identity = Identity("root", 0, 0)
        self._handlers: dict[Command, Handler] = {}
        self._streams = asyncio.Semaphore(_STREAMS_MAX)
        self._turn = asyncio.Lock()
        self._conversations: dict[Connection, asyncio.Task[None]] = {}
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._farewells = 0
        self._shutdown: asyncio.Task[None] | None = None

    def handle(self, handlers: dict[Command, Handler]) -> None:
        """Set what is done for each command."""
        self._handlers = handlers

    @property
    def listener_fd(self) -> int:
        """Return the descriptor that clients connect to, -1 while there is none."""
        return -1 if self._listener is None else self._listener.fileno()

    def use_helper(self, helper: Helper) -> None:
        """Have signals sent and killpaths run by the process that stayed root."""
        self.helper = helper
        self.keeper = self.spaces.keeper = Keeper(helper)
        act_through(helper)
        loop = asyncio.get_running_loop()

        def answered() -> None:
            if not helper.read_answers():
                loop.remove_reader(helper)

        loop.add_reader(helper, answered)

    def close_strangers(self) -> None:
        """Close the connections of a predecessor that no client is noted for: they had ended."""
        for number, connection in list(self.connections.items()):
            if connection.client is None:
                del self.connections[number]
                connection.close()

    def take_connections(self, connections: dict[int, Connection]) -> None:
        """Take in the connections of the image before this one; they are served later."""
        self.connections.update(connections)

    def take_listeners(self, listeners: dict[bytes, list[int]]) -> None:
        """Take in its event connections, by lockspace."""
        for name, descriptors in listeners.items():
            space = self.spaces.find(name)
            for descriptor in descriptors:
                listener = socket.socket(fileno=descriptor)
                if space is None or space.listeners is None:
                    listener.close()
                else:
                    space.listeners.add(listener)

    def keep_all(self) -> None:
        """Have everything kept that must be, and nothing else of what a predecessor had kept."""
        self.keeper.begin_sweep()
        for client in self.clients:
            if client.connection is not None:
                self.keep_connection(client.connection)
        for space in self.spaces:
            self.spaces.keep(space)
            for listener in space.listeners or ():
                assert space.listeners is not None
                space.listeners.keep(listener)
        self.keeper.end_sweep()

    # -- connections -----------------------------------------------------------------------------

    async def serve(self, listener: socket.socket) -> None:
        """Accept clients until the daemon has been shut down."""
        listener.setblocking(False)
        self._listener = listener
        self.go_on()
        try:
            await self.cleared.wait()
        finally:
            self._stop_accepting()
        deadline = asyncio.get_running_loop().time() + _FAREWELL_S
        while self._farewells and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    def go_on(self) -> None:
        """Accept clients and serve those that are there and not served."""
        if self._accepting is None and self._listener is not None:
            self._accepting = asyncio.ensure_future(self._accept(self._listener))
        for connection in list(self.connections.values()):
            if connection not in self._conversations:
                self.talk(connection)

    def _stop_accepting(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None

    async def pause(self) -> bool:
        """Serve nobody until `go_on`: what is under way may end, what waits is cancelled.

        False when something does not end, since its disk does not answer. The request of a
        conversation that was cancelled is kept and will be worked on again.
        """
        self._stop_accepting()
        busy = {task for one, task in self._conversations.items() if one.command_active}
        idle = set(self._conversations.values()) - busy
        for task in idle:
            task.cancel()
        if busy:
            _, waiting = await asyncio.wait(busy, timeout=_END_S)
            for task in waiting:
                task.cancel()
        if self._conversations:
            await asyncio.wait(set(self._conversations.values()), timeout=_UNDO_S)
            if self._conversations:
                return False
        return True

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except BlockingIOError:
                await readable(listener)
                continue
            except OSError as error:
                # Out of descriptors: clients wait in the listener's queue meanwhile.
                _log.error("accept_failed error=%s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            connected.setblocking(False)
            self.admit(connected)
            await asyncio.sleep(0)

    def admit(self, connected: socket.socket) -> Connection:
        """Serve a new connection."""
        number = FIRST_CLIENT
        while number in self.connections or number in self.clients or number in self._forgotten:
            number += 1
        connection = Connection(number, connected)
        self.connections[number] = connection
        self.talk(connection)
        return connection

    def talk(self, connection: Connection) -> None:
        """Begin to serve a connection."""
        task = asyncio.ensure_future(self._converse(connection))
        self._conversations[connection] = task
        task.add_done_callback(lambda ended: self._conversation_ended(connection, ended))

    def _conversation_ended(self, connection: Connection, task: asyncio.Task[None]) -> None:
        del self._conversations[connection]
        if task.cancelled():
            if self._accepting is not None:
                self.talk(connection)  # the pause was over before it had ended
            return
        error = task.exception()
        if error is not None and not isinstance(error, Dropped):
            _log.critical("internal error in a conversation", exc_info=error)
        del self.connections[connection.number]
        connection.close()
        if connection.client is not None:
            self.client_ended(connection.client)

    async def _converse(self, connection: Connection) -> None:
        while True:
            call = await connection.next_call()
            await self._answer(call)
            connection.answered()
            if self._accepting is None and not self.cleared.is_set():
                raise asyncio.CancelledError  # the daemon pauses
            if connection.is_given_away or (call.closes and connection.client is None):
                return

    async def _answer(self, call: Call) -> None:
        connection = call.connection
        if call.command not in _UNNAMED:
            connection.name = name_of(call.command)
        connection.command_active = call.header.command
        call.closes = call.command in CLOSING
        try:
            if call.is_again:
                await self._await_restored(call)
            call.origin = connection.begin()
            if call.command in _STREAMS:
                await self._stream(call)
            else:
                await self._handlers[call.command](self, call)
        except (Refusal, PaxosleaseError) as error:
            number = number_of(error)
            call.closes = call.command in _CLOSING_ON_ERROR
            _log.info(
                "cmd %s pid %d result %d %s",
                name_of(call.command).decode(),
                connection.peer_pid,
                number,
                error,
            )
            if not call.is_answered:
                echoed = call.header.data2 if call.command in _ECHOING else 0
                await call.reply(number, echoed)
        except (Dropped, asyncio.CancelledError):
            raise
        except Exception:
            # A mistake of ours in one command must not cost the client the leases that it holds.
            _log.critical("internal error in %s", call.command.name, exc_info=True)
            if not call.is_answered:
                await call.reply(_INTERNAL_ERROR)
        finally:
            connection.command_last = connection.command_active
            connection.command_active = 0

    async def _stream(self, call: Call) -> None:
        """Answer with something large: made one at a time, so that others have their turns.

        Few may be under way at once, since each is in memory until its client has read it.
        """
        async with self._streams:
            async with self._turn:
                await asyncio.sleep(0)
            await self._handlers[call.command](self, call)

    async def _await_restored(self, call: Call) -> None:
        """Wait with a request that was begun before a restart until it is clear what became of it.

        Its client counts as busy until then, as it would have been without the restart.
        """
        while self.restoring:
            await asyncio.wait(self.restoring.values())
        if call.connection.client is not None:
            call.connection.client.is_busy = False

    def registered(self, client: Client, connection: Connection) -> None:
        """Note a client so that a successor finds it, its connection and what is under way."""
        try:
            connection.use_slip(new_slip())
        except OSError as error:  # too much is open; it is served all the same
            _log.error(
                "no_slip pid=%d error=%s: a crash will end its connection", client.pid, error
            )
        self.journal.client_changed(client)
        self.keep_connection(connection)

    def keep_connection(self, connection: Connection) -> None:
        """Have a copy of a registered client's connection kept."""
        if connection.slip is not None:
            descriptors = connection.slip.descriptors
            self.keeper.keep(_key(connection.number), connection.socket.fileno(), *descriptors)

    def client_ended(self, client: Client) -> None:
        """Note that a client's connection has ended, or the process of one that has none."""
        client.end()
        self._forgotten[client.number] = client
        self.clients.remove(client)
        if not client.is_busy:
            self.forget_client(client)

    def forget_client(self, client: Client) -> None:
        """Give back what a client held whose connection has ended, now that no command runs."""
        self.registry.client_ended(client)
        self.journal.client_ended(client)
        # Not before: a client that is noted and has no connection counts as alive.
        self.keeper.drop(_key(client.number))
        self._forgotten.pop(client.number, None)

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

    @property
    def is_ending(self) -> bool:
        """Tell whether a shutdown has begun."""
        return self._shutdown is not None

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


def _key(number: int) -> bytes:
    return CLIENT + b"%d" % number


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
_CLOSING_ON_ERROR: Final = CLOSING | {Command.REG_EVENT}
# Whose replies have the request's `data2`, those of errors too (5).
_ECHOING: Final = frozenset((Command.SET_CONFIG, Command.REG_EVENT, Command.END_EVENT))
_STREAMS: Final = frozenset(
    (Command.STATUS, Command.LOG_DUMP, Command.HOST_STATUS, Command.RENEWAL)
)
_NAMED: Final = CLOSING | {
    Command.REG_EVENT,
    Command.ADD_LOCKSPACE,
    Command.INQ_LOCKSPACE,
    Command.REM_LOCKSPACE,
}
_UNNAMED: Final = frozenset(
    (
        Command.REGISTER,
        Command.RESTRICT,
        Command.VERSION,
        Command.ACQUIRE,
        Command.RELEASE,
        Command.INQUIRE,
        Command.CONVERT,
        Command.KILLPATH,
    )
)


def name_of(command: Command) -> bytes:
    """Return what a status shows for a connection that runs a command (14.1)."""
    return command.name.lower().encode() if command in _NAMED else b"cmd%d" % command
