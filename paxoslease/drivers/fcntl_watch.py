"""How a supervisor learns that the lock daemon has ended, and all locks with it.

A connection on which nothing more is ever said ends with the daemon.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable

from paxoslease.drivers.base import Owner, Watch
from paxoslease.lockd.client import LockConnection


class FcntlWatch(Watch):
    """Listens for the daemon's end on what `connect` makes. Raises what `connect` raises."""

    def __init__(self, connect: Callable[[], LockConnection]) -> None:
        self._connect = connect
        self._lost = ""
        self._epoll = select.epoll()
        try:
            self._connection = self._connected()
        except BaseException:
            self._epoll.close()
            raise

    def _connected(self) -> LockConnection:
        connection = self._connect()
        try:
            self._epoll.register(connection.fileno(), select.EPOLLIN)
        except BaseException:
            connection.close()
            raise
        return connection

    def fileno(self) -> int:
        """Return a descriptor that is readable when the daemon has ended."""
        return self._epoll.fileno()

    def loss(self, owner: Owner) -> str:
        """Return why all locks are lost; empty while they are held."""
        del owner
        if not self._lost and self._has_ended():
            self._lost = "the lock daemon has ended, and its locks with it"
            self._connection.close()  # the descriptor leaves the epoll with it
        return self._lost

    def _has_ended(self) -> bool:
        if not self._epoll.poll(0):
            return False
        with socket.socket(fileno=os.dup(self._connection.fileno())) as peeked:
            peeked.setblocking(False)
            try:
                return peeked.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True

    def forget(self) -> None:
        """Listen to the daemon that is there now."""
        if self._lost:
            self._connection = self._connected()
            self._lost = ""

    def close(self) -> None:
        """Stop listening."""
        self._connection.close()
        self._epoll.close()
