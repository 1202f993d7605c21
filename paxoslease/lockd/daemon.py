"""The lock daemon: one loop, many clients, none of which can keep another waiting.

Whatever takes time is waited for by the loop: a slow client, a process that is being stopped, and,
in threads that do nothing else, a file system (see `work`; one that hangs hangs all of virtlockd).

Locks are records of this process in the kernel. They end with it, so a new program takes its place
without ending it (`handover`), and an end on demand stops first whoever relies on them.

Source: spec/lock-drivers.md 7.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from paxoslease.lockd import processes
from paxoslease.lockd.connection import Connection
from paxoslease.lockd.hangups import Hangups
from paxoslease.lockd.places import Listener, Places
from paxoslease.lockd.processes import Peer, peer_of
from paxoslease.lockd.session import Session
from paxoslease.lockd.space import LockTable
from paxoslease.lockd.work import Work

_log = logging.getLogger(__name__)

MAX_CLIENTS_DEFAULT: Final = 1024
_ACCEPTED_AT_ONCE_MAX: Final = 16
_ACCEPT_AGAIN_AFTER_S: Final = 1.0
# How long the end waits for files to be closed, and those that were made for locks to be removed.
_FILES_LIMIT_S: Final = 3.0
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of the daemon. timeout_s: end after so long without clients and locks."""

    places: Places
    max_clients: int = MAX_CLIENTS_DEFAULT
    timeout_s: float | None = None


class Daemon:
    """The state of the process. Made, used and ended in its loop's thread."""

    def __init__(self, settings: Settings, table: LockTable, listener: Listener) -> None:
        self.settings = settings
        self.table = table
        self.listener = listener
        self.admin_listener: Listener | None = None
        self.connections: dict[int, Connection] = {}
        self.stopping: dict[int, tuple[int, asyncio.Task[None]]] = {}  # by pidfd: pid, its end
        self.end_signal = 0
        self.next_client_id = 1
        self.work = Work(self._work_is_done)
        self.hangups = Hangups()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._settled = asyncio.Event()
        self._is_accepting = False
        self._idle: asyncio.TimerHandle | None = None

    # -- life

    def start(self, restart: Callable[[], None]) -> None:
        """Begin to serve; `restart` is called for SIGUSR1."""
        for number in _STOP_SIGNALS:
            self._loop.add_signal_handler(number, self.end, number)
        self._loop.add_signal_handler(signal.SIGUSR1, restart)
        # virtlockd dies of it, which would leave guests without locks.
        self._loop.add_signal_handler(signal.SIGHUP, _log.info, "hangup_ignored")
        for connection in self.connections.values():
            connection.start()
        if self.admin_listener is not None:
            admin = self.admin_listener.socket
            self._loop.add_reader(admin, _hang_up, admin)
        self._look_at_clients()

    def end(self, number: int = 0) -> None:
        """Make `finished` return."""
        self.end_signal = number
        self._ended.set()

    @property
    def is_ending(self) -> bool:
        """Tell whether the end was asked for."""
        return self._ended.is_set()

    async def finished(self) -> None:
        """Wait for the end, then stop every process that loses its locks by it."""
        await self._ended.wait()
        self._pause_accepting()
        for connection in list(self.connections.values()):
            connection.close()
        while self.stopping:
            await asyncio.wait([task for _, task in self.stopping.values()])
        if not await self._settles(_FILES_LIMIT_S):
            _log.error("files_hang operations=%d", self.work.count)

    # -- a moment without operations

    async def is_quiet(self, limit_s: float) -> bool:
        """Begin nothing more, and wait until nothing is under way; False after `limit_s`.

        If it is True it stays so until `go_on`.
        """
        for connection in list(self.connections.values()):
            connection.hold(is_held=True)
        self._pause_accepting()
        return await self._settles(limit_s)

    def go_on(self) -> None:
        """Serve again."""
        for connection in list(self.connections.values()):
            connection.hold(is_held=False)
        self._look_at_clients()

    async def _settles(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                while self.work.count:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            return False
        return True

    def _work_is_done(self) -> None:
        self._settled.set()
        self._look_at_idleness()

    # -- clients

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE_MAX):
            if len(self.connections) >= self.settings.max_clients:
                break
            try:
                client, _ = self.listener.socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                break
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                _log.error("accept_failed error=%s", error)
                self._pause_accepting()
                self._loop.call_later(_ACCEPT_AGAIN_AFTER_S, self._look_at_clients)
                return
            self._admit(client)
        self._look_at_clients()

    def _admit(self, client: socket.socket) -> None:
        """Serve a client, if it is the own user's and still is somebody."""
        try:
            peer = peer_of(client)
        except OSError as error:
            _log.error("client_unknown error=%s", error)
            client.close()
            return
        if peer.pidfd is None or peer.uid != os.geteuid():
            _log.info("client_refused pid=%d uid=%d", peer.pid, peer.uid)
            client.close()
            if peer.pidfd is not None:
                os.close(peer.pidfd)
            return
        self.add_connection(client, Session(self.table), peer).start()

    def add_connection(
        self, client: socket.socket, session: Session, peer: Peer, number: int = 0
    ) -> Connection:
        """Take a client into the table; it is served once it is started."""
        number = number or self.next_client_id
        self.next_client_id = max(self.next_client_id, number) + 1
        connection = Connection(client, session, peer, number, self)
        self.connections[number] = connection
        return connection

    def left(self, connection: Connection) -> None:
        """Release what a process held when its own connection has ended, then stop it.

        The end of a connection that spoke for another process means nothing.
        """
        del self.connections[connection.number]
        owner = connection.session.owner
        if owner is not None and owner.pid == connection.pid:
            drops = self.table.release_owner(owner.pid)
            for drop in drops:
                self.work.start(drop, lambda _: None)
            if drops:
                _log.info("owner_left pid=%d resources=%d", owner.pid, len(drops))
                pidfd = connection.take_pidfd()
                if pidfd is not None:
                    self.stop_process(owner.pid, pidfd)
        self._look_at_clients()

    def matters(self, connection: Connection) -> bool:
        """Tell whether the end of a connection would cost somebody a lock."""
        owner = connection.session.owner
        is_own = owner is not None and owner.pid == connection.pid
        return is_own and self.table.concerns(connection.pid)

    def stop_process(self, pid: int, pidfd: int) -> None:
        """Stop a process without waiting for it. Takes over the pidfd."""
        task = self._loop.create_task(processes.stop(pid, pidfd))
        self.stopping[pidfd] = pid, task
        task.add_done_callback(lambda _: self.stopping.pop(pidfd))

    def _look_at_clients(self) -> None:
        """Accept while there is room for one more; end when nobody has come for long."""
        if self.is_ending:
            return
        if len(self.connections) < self.settings.max_clients:
            if not self._is_accepting:
                self._loop.add_reader(self.listener.socket, self._accept)
                self._is_accepting = True
        else:
            self._pause_accepting()
        self._look_at_idleness()

    def _pause_accepting(self) -> None:
        if self._is_accepting:
            self._loop.remove_reader(self.listener.socket)
            self._is_accepting = False

    def _look_at_idleness(self) -> None:
        if self.settings.timeout_s is None or self.is_ending:
            return
        if self._idle is not None:
            self._idle.cancel()
        self._idle = None
        # Locks that were taken for others outlive the connection. virtlockd ends all the same and
        # leaves their owners without them.
        is_free = not self.work.count and next(self.table.held(), None) is None
        if not self.connections and is_free:
            self._idle = self._loop.call_later(self.settings.timeout_s, self.end)


def _hang_up(listening: socket.socket) -> None:
    """Turn away a client of the admin protocol, which is not spoken here, instead of keeping it."""
    try:
        listening.accept()[0].close()
    except OSError as error:
        _log.debug("admin_client_gone error=%s", error)


def raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets us: one for a lock, two for a client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
