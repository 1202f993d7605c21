"""How a supervisor learns that an owner's leases are lost.

Two things tell it. The owner's killpath, which the daemon runs when the lockspace fails, sends a
message to an abstract socket of the supervisor. And a connection to the daemon, on which nothing is
ever said, ends when the daemon does: then nobody renews the leases. A daemon that is started again
within a short time and still knows the owner's leases has lost nothing.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import time
from typing import Final

from paxoslease.channel import (
    Channel,
    DaemonBroken,
    DaemonError,
    DaemonSilent,
    DaemonUnreachable,
)
from paxoslease.client import Connection, socket_path
from paxoslease.drivers.base import Owner, Watch
from paxoslease.wire.sanlock import Command

# Other hosts take a lease over when it was not renewed for 8 io_timeouts and the watchdog's time,
# more than a minute with any settings; the daemon may use this much of it to come back.
DAEMON_ABSENT_MAX_S: Final = 10.0
_ANSWER_MAX_S: Final = 2.0
_ASK_AGAIN_S: Final = 0.25
_MESSAGE_BYTES_MAX: Final = 256
_CREDENTIALS: Final = struct.Struct("3i")
_NO_ANSWER = (DaemonUnreachable, DaemonBroken, DaemonSilent)


class PaxosWatch(Watch):
    """Listens for lost leases; one per supervisor. Raises DaemonUnreachable when it is made.

    address: what an owner's `notify` must be.
    """

    def __init__(self, run_directory: str | None) -> None:
        self._run_directory = run_directory
        self._lost = ""
        self._absent_since_s: float | None = None
        self._channel = self._connected()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._epoll = select.epoll()
        self.address = f"paxoslease-{secrets.token_hex(8)}"
        self._socket.bind(f"\0{self.address}")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.setblocking(False)
        self._epoll.register(self._socket, select.EPOLLIN)
        self._epoll.register(self._channel.socket, select.EPOLLIN)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to look at."""
        return self._epoll.fileno()

    @property
    def ask_again_s(self) -> float | None:
        """Return after how many seconds to ask again although nothing is readable."""
        return None if self._absent_since_s is None else _ASK_AGAIN_S

    def loss(self, owner: Owner) -> str:
        """Return why the owner's leases are lost; empty while they are held, as far as is known."""
        if not self._lost:
            self._lost = self._told(owner) or self._daemon_lost(owner)
        return self._lost

    def forget(self) -> None:
        """Forget a loss: the owner has its leases again."""
        self._lost = ""

    def _told(self, owner: Owner) -> str:
        """Read the messages that have come; those of other users and owners do not count."""
        reason = ""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    _MESSAGE_BYTES_MAX, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return reason
            if _uid_of(ancillary) not in (0, os.geteuid()):
                continue
            words = data.decode("utf-8", "replace").split()
            if words[:2] == ["lost", str(owner.pid)]:
                reason = "the lease daemon has lost the lockspace"

    def _daemon_lost(self, owner: Owner) -> str:
        """Return why nobody renews the leases any more; looks for a daemon that came back."""
        if self._absent_since_s is None:
            if not self._has_ended():
                return ""
            self._epoll.unregister(self._channel.socket)
            self._channel.socket.close()
            self._absent_since_s = time.monotonic()
        try:
            channel = self._connected()
            return self._found(channel, owner)
        except _NO_ANSWER as error:
            # It is gone, or just beginning, or ended again.
            if time.monotonic() - self._absent_since_s < DAEMON_ABSENT_MAX_S:
                return ""
            return f"the lease daemon is gone: {error}"

    def _connected(self) -> Channel:
        channel = Channel(Command.VERSION, socket_path(self._run_directory), _ANSWER_MAX_S)
        channel.socket.setblocking(False)
        return channel

    def _found(self, channel: Channel, owner: Owner) -> str:
        """Go on with a daemon that has come back; return why it does not have the leases."""
        reason = ""
        try:
            with Connection(self._run_directory, timeout_s=_ANSWER_MAX_S) as daemon:
                if not daemon.inquire(pid=owner.pid)[0]:
                    reason = "the lease daemon has ended, and the new one has no leases of it"
        except _NO_ANSWER:
            channel.socket.close()
            raise
        except DaemonError as error:
            reason = f"the lease daemon has ended, and the new one does not know it: {error}"
        self._channel = channel
        self._epoll.register(channel.socket, select.EPOLLIN)
        self._absent_since_s = None
        return reason

    def _has_ended(self) -> bool:
        try:
            return self._channel.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Stop listening."""
        self._epoll.close()
        self._socket.close()
        self._channel.socket.close()


def _uid_of(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the user that sent a message; -1 when the kernel does not say."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return int(_CREDENTIALS.unpack_from(data)[1])
    return -1
