"""Notice that a client has hung up while it is not being listened to.

A client whose request waits for a file system is not read from: what it has sent ahead would wake
up the loop all the time. Its end must be noticed all the same, or those who give up and come again
would take every place there is.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable


class Hangups:
    """Watches sockets for their other end's end, and for nothing else. One for all clients."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._loop.add_reader(self._epoll, self._look)

    def watch(self, client: socket.socket, ended: Callable[[], None]) -> None:
        """Call `ended`, in the loop, if the other end is closed."""
        self._watched[client.fileno()] = ended
        self._epoll.register(client, 0)  # a hang-up is always told

    def forget(self, client: socket.socket) -> None:
        """Stop watching a socket, before it is closed; it may be one that is not watched."""
        if self._watched.pop(client.fileno(), None) is not None:
            self._epoll.unregister(client)

    def close(self) -> None:
        """Stop watching."""
        self._loop.remove_reader(self._epoll)
        self._epoll.close()

    def _look(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            ended = self._watched.get(descriptor)
            if ended is not None:
                ended()


def has_hung_up(client: socket.socket) -> bool:
    """Tell whether the other end of a socket is closed, whatever is left to be read."""
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(0))
