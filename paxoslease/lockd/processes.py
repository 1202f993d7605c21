"""The processes at the other end of a socket: who they are, and how they are stopped.

Source: spec/lock-drivers.md 7.2 and 7.3. A process is held by a pidfd from the moment it connects,
so that nobody else who has its number by then is ever signalled.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
from typing import Final, NamedTuple

_log = logging.getLogger(__name__)

_SO_PEERPIDFD: Final = 77  # <asm-generic/socket.h>, since Linux 6.5
_CREDENTIALS = struct.Struct("3i")

# virtlockd looks every 200 ms: SIGKILL at the ninth look, and after the fifteenth it gives up.
KILL_AFTER_S: Final = 1.6
GIVE_UP_AFTER_S: Final = 3.0


class Peer(NamedTuple):
    """Who connected a socket, at that time; `pidfd` is None when the process is gone."""

    pid: int
    uid: int
    pidfd: int | None


def peer_of(client: socket.socket) -> Peer:
    """Return who is at the other end; the caller owns the pidfd."""
    size = _CREDENTIALS.size
    pid, uid, _ = _CREDENTIALS.unpack(
        client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return Peer(pid, uid, _pidfd(client, pid))


def _pidfd(client: socket.socket, pid: int) -> int | None:
    try:
        return client.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        # An older kernel, or the process is gone; what follows tells.
        if pid <= 0:  # a process of another pid namespace
            return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


async def stop(pid: int, pidfd: int) -> None:
    """Stop a process that held locks: SIGTERM, and SIGKILL when it does not go. Owns the pidfd.

    Its locks are given up already. At most GIVE_UP_AFTER_S pass.
    """
    try:
        for number, patience_s in (
            (signal.SIGTERM, KILL_AFTER_S),
            (signal.SIGKILL, GIVE_UP_AFTER_S - KILL_AFTER_S),
        ):
            if await _has_ended(pidfd, 0):
                return
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                return
            except PermissionError as error:
                _log.error("signal_refused pid=%d signal=%d error=%s", pid, number, error)
                return
            _log.warning("process_signalled pid=%d signal=%d", pid, number)
            if await _has_ended(pidfd, patience_s):
                return
        _log.error("owner_lives_on pid=%d", pid)
    finally:
        os.close(pidfd)


async def _has_ended(pidfd: int, patience_s: float) -> bool:
    """Wait for the end of a process."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        # At 0 the loop still has to look at the descriptor once.
        await asyncio.wait_for(ended.wait(), max(patience_s, 0.001))
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True
