"""What a daemon gets from its predecessor beside the notes: descriptors, and what to do with them.

From the image before a re-exec (handover.py), or from the keeper after a crash (keeper.py).

When the notes cannot be used nobody knows what the clients hold. Then they are stopped, all of
them, and only when their last descriptors are closed is the watchdog disarmed and the way free for
a new beginning; until then no daemon starts, nothing is renewed, and the watchdog resets the host
in time.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from paxoslease.daemon.clients import start_time
from paxoslease.daemon.connection import Connection
from paxoslease.daemon.keeper import CLIENT, DEVICE, EVENT, WDMD
from paxoslease.daemon.options import DaemonOptions
from paxoslease.daemon.slip import Slip
from paxoslease.engine.processes import send_signal
from paxoslease.engine.watchdog import open_watchdog
from paxoslease.engine.watchdog_base import WatchdogState
from paxoslease.errors import BadState, PaxosleaseError

_log = logging.getLogger(__name__)

_END_S: Final = 10.0


class Inheritance:
    """The descriptors of a predecessor: connections by slot, the others by lockspace.

    problem: why what is under way on some connection is not known. registered: slots of connections
    that are those of registered clients.
    """

    def __init__(
        self,
        connections: dict[int, Connection] | None = None,
        listeners: dict[bytes, list[int]] | None = None,
        watchdogs: dict[bytes, WatchdogState] | None = None,
    ) -> None:
        self.connections = connections or {}
        self.listeners = listeners or {}
        self.watchdogs = watchdogs or {}
        self.problem: BadState | None = None
        self.registered = {n for n, one in self.connections.items() if one.slip is not None}

    def __bool__(self) -> bool:
        return bool(self.connections or self.listeners or self.watchdogs)

    def disarm(self, options: DaemonOptions, wanted: Iterable[bytes]) -> None:
        """Give up the claims on watchdogs but those of the lockspaces `wanted`.

        Only when nothing that uses leases of those lockspaces runs: their joins were not over, or
        they had been left.
        """
        for name in set(self.watchdogs) - set(wanted):
            claim = self.watchdogs.pop(name)
            _log.warning("watchdog_given_up lockspace=%r", name)
            try:
                watchdog = open_watchdog(claim.kind, name, 0, options.watchdog_fire_timeout)
                watchdog.attach(claim)
                watchdog.disarm()
                watchdog.close()
            except PaxosleaseError as error:
                _log.critical("watchdog_not_disarmed lockspace=%r error=%s", name, error)


def from_keeper(kept: Mapping[bytes, list[int]], options: DaemonOptions) -> Inheritance:
    """Sort what the keeper had. Raises OSError."""
    found = Inheritance()
    for key, descriptors in kept.items():
        kind, rest = key[:1], key[1:]
        if kind == CLIENT and len(descriptors) == 4:
            connection = Connection(int(rest), socket.socket(fileno=descriptors[0]))
            connection.socket.setblocking(False)
            found.connections[connection.number] = connection
            found.registered.add(connection.number)
            try:
                connection.take_over(Slip(*descriptors[1:]))
            except BadState as error:
                found.problem = error
        elif kind == EVENT and len(descriptors) == 1:
            name = bytes.fromhex(rest.partition(b":")[0].decode())
            found.listeners.setdefault(name, []).extend(descriptors)
        elif kind in (WDMD, DEVICE) and len(descriptors) == 1:
            watchdog = "wdmd" if kind == WDMD else options.watchdog
            found.watchdogs[rest] = WatchdogState(watchdog, descriptors[0], True)
        else:
            found.problem = BadState("what was kept", "key", "one of ours", key)
    return found


def stop_everybody(inheritance: Inheritance, notes: Iterable[Mapping[str, Any]]) -> bool:
    """Stop all clients that may hold leases; True when the last of them has ended.

    notes: of clients and resources, as far as they can be read. A registered client that holds
    nothing is left alone only if there are any and all can be. Waits some seconds.
    """
    waiting: list[int] = []
    opened: list[int] = []
    notes = list(notes)
    holders = _holders(notes, inheritance.registered)
    for number, connection in inheritance.connections.items():
        if number not in holders:
            continue
        waiting.append(connection.socket.fileno())
        opened.append(connection.peer_pidfd())
        _stop(connection.peer_pid, opened[-1])
    for note in notes:
        pid, slot = note.get("pid"), note.get("number")
        if (
            slot in inheritance.connections
            or slot not in holders
            or not isinstance(pid, int)
            or pid <= 0
        ):
            continue
        with suppress(OSError):
            opened.append(os.pidfd_open(pid))
            if start_time(pid) == note.get("started"):
                waiting.append(opened[-1])
                _stop(pid, opened[-1])
    has_ended = _await_all(waiting)
    for fd in opened:
        if fd >= 0:
            os.close(fd)
    return has_ended


def _holders(notes: Sequence[Mapping[str, Any]], kept: Iterable[int]) -> set[Any]:
    """Return the slots of the clients that may hold leases, or be about to.

    kept: of registered clients whose connections are there, whatever is noted of them.
    """
    registered: set[Any] = set(kept)
    holders: set[Any] = set()
    is_readable = bool(notes)
    for note in notes:
        if "started" in note:
            registered.add(note.get("number"))
        elif "tokens" in note:
            try:
                holders |= {token[0] for token in note["tokens"]}
                # Of one that is being acquired it is not known for whom.
                is_readable = is_readable and not note["doing"]
            except (KeyError, IndexError, TypeError):
                is_readable = False
        elif "gone" not in note and "boot" not in note and "wanted" not in note:
            is_readable = False
    return holders & registered if is_readable else registered


def _stop(pid: int, pidfd: int) -> None:
    if pidfd < 0:
        return
    _log.critical("process killed: pid %d", pid)
    with suppress(ProcessLookupError, PermissionError):
        send_signal(pid, pidfd, signal.SIGKILL)


def _await_all(descriptors: list[int]) -> bool:
    """Wait until all of these have ended, connections or processes."""
    poll = select.poll()
    for fd in descriptors:
        # A request that waits in a connection is not its end, the end of a process is an input.
        poll.register(fd, select.POLLIN | select.POLLRDHUP)
    left = set(descriptors)
    until = time.monotonic() + _END_S
    while left:
        ready = poll.poll(max(0.0, until - time.monotonic()) * 1000)
        if not ready:
            return False
        for fd, event in ready:
            if event & (select.POLLHUP | select.POLLRDHUP | select.POLLERR) or not _is_socket(fd):
                left.discard(fd)
                poll.unregister(fd)
            else:
                poll.modify(fd, select.POLLRDHUP)
    return True


def _is_socket(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
