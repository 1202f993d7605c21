"""Restarting in place: the process executes its program anew and keeps everything that it holds.

What can end is let end, what waits is cancelled (its request is kept and run again), all I/O comes
to rest, and then exec replaces the image: same pid, same descriptors, same lock on the pid file.
The new image finds what it needs in a file in memory, whose descriptor an environment variable
names. Clients notice a short pause. If anything does not come to rest, or exec fails, the old image
goes on as if nothing had been asked for.

Between the last renewal of the old image and the first of the new one lie the time to come to rest
(at most REST_S), the start of the program and one read; M2 counts on from the old one's renewal,
and the engine refuses what would be too late (protocol/adoption.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from paxoslease.daemon import helper_renewal
from paxoslease.daemon.bridge import in_thread
from paxoslease.daemon.connection import Connection
from paxoslease.daemon.inherit import Inheritance
from paxoslease.daemon.refusal import Refusal
from paxoslease.daemon.slip import Slip
from paxoslease.daemon.spaces import Stage
from paxoslease.engine.adoption import Quiet
from paxoslease.engine.core import engine
from paxoslease.engine.watchdog_base import WatchdogState
from paxoslease.errors import PaxosleaseError

if TYPE_CHECKING:
    from paxoslease.daemon.server import Daemon

_log = logging.getLogger(__name__)

VARIABLE: Final = "PAXOSLEASE_HANDOVER"
REST_S: Final = 2.0
OPEN_S: Final = 5.0
TRIAL_S: Final = 30.0
STEADY_S: Final = 300.0
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RESTART_SIGNAL: Final = signal.SIGUSR2
HANDLED_SIGNALS: Final = frozenset((*STOP_SIGNALS, RESTART_SIGNAL))


class Handover(NamedTuple):
    """What an image leaves to the next one.

    kept: descriptors of the caller's, by name. connections, listeners, watchdogs, journal, host
    tables: as their modules dump them.
    """

    kept: dict[str, int]
    connections: list[dict[str, Any]]
    listeners: dict[str, list[int]]
    watchdogs: dict[str, list[Any]]
    journal: dict[str, dict[str, Any]]
    host_name: str
    helper_pid: int
    tables: Mapping[str, list[list[Any]]] = MappingProxyType({})  # not there in older images


def receive() -> Handover | None:
    """Return what the image before this one left, None when there was none."""
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return None
    with os.fdopen(int(number), "rb") as file:
        file.seek(0)
        handover = Handover(**json.load(file))
    for fd in _descriptors(handover):
        os.set_inheritable(fd, False)
    return handover


def _descriptors(handover: Handover) -> list[int]:
    return [
        *handover.kept.values(),
        *(one["fd"] for one in handover.connections),
        *(fd for one in handover.connections for fd in one["slip"]),
        *(fd for fds in handover.listeners.values() for fd in fds),
        *(claim[1] for claim in handover.watchdogs.values() if claim[1] >= 0),
    ]


def connections_of(handover: Handover) -> dict[int, Connection]:
    """Return the connections that were handed over, by slot. Raises BadState, OSError."""
    found: dict[int, Connection] = {}
    for one in handover.connections:
        connection = Connection(one["number"], socket.socket(fileno=one["fd"]))
        connection.socket.setblocking(False)
        connection.is_muted = one["is_muted"]
        if one["slip"]:
            connection.take_over(Slip(*one["slip"]))
        else:
            connection.partial = bytearray.fromhex(one["partial"])
            connection.unsent = bytes.fromhex(one["unsent"])
            connection.is_begun = one["is_begun"]
        found[connection.number] = connection
    return found


def listeners_of(handover: Handover) -> dict[bytes, list[int]]:
    """Return the event connections, by lockspace."""
    return {bytes.fromhex(name): fds for name, fds in handover.listeners.items()}


def inheritance_of(handover: Handover) -> Inheritance:
    """Return the descriptors that were handed over. Raises OSError."""
    return Inheritance(connections_of(handover), listeners_of(handover), watchdogs_of(handover))


def watchdogs_of(handover: Handover) -> dict[bytes, WatchdogState]:
    """Return the claims on watchdogs, by lockspace."""
    return {
        bytes.fromhex(name): WatchdogState(*claim) for name, claim in handover.watchdogs.items()
    }


async def restart(daemon: Daemon, kept: Mapping[str, int]) -> None:
    """Execute the program anew. Returns only when that is called off; then all goes on.

    kept: descriptors that are to be handed over beside the daemon's own.
    """
    if not await _await_steady(daemon):
        _log.error("restart called off: lockspaces are still being joined or left")
        return
    if not (await _can_be_started() and await _can_open_again()):
        return
    if daemon.is_ending:
        _log.error("restart called off: the daemon is shut down")
        return
    try:
        if await daemon.pause():
            await _execute(daemon, kept)
        else:
            _log.error("restart called off: a request does not end")
    except Exception:
        # Nobody waits for this task: what went wrong is said here or nowhere.
        _log.critical("restart called off: internal error", exc_info=True)
    finally:
        daemon.go_on()


async def _await_steady(daemon: Daemon) -> bool:
    """Wait until no lockspace is being joined or left: these are not to be cut short."""
    try:
        async with asyncio.timeout(STEADY_S):
            while not _is_steady(daemon):
                await daemon.spaces.next_change()
    except TimeoutError:
        return False
    return True


def _is_steady(daemon: Daemon) -> bool:
    return all(s.stage is Stage.JOINED and not s.is_dead for s in daemon.spaces)


async def _can_be_started() -> bool:
    """See that the program that is there now can be started, while this one serves yet.

    One that is half installed, or cannot be found from here, would end with all leases.
    """
    try:
        fits = await in_thread(helper_renewal.try_program, TRIAL_S)
    except (OSError, subprocess.TimeoutExpired, Refusal) as error:
        _log.error("restart called off: the program cannot be started: %s", error)
        return False
    if not fits:
        _log.error("restart called off: the program that is installed now does not start")
    return fits


async def _can_open_again() -> bool:
    """See that the next image can open what is open, while clients are served yet.

    It would stand there with leases and no way to renew them. A disk that does not answer may hold
    this up for ever, and must not hold up more.
    """
    try:
        async with asyncio.timeout(OPEN_S):
            changed = await in_thread(engine().files.changed_paths)
    except TimeoutError:
        _log.error("restart called off: a disk does not answer")
        return False
    except Refusal:
        _log.error("restart called off: too many disks do not answer")
        return False
    if changed:
        _log.error("restart called off: not to be opened again: %s", ", ".join(changed))
    return not changed


async def _execute(daemon: Daemon, kept: Mapping[str, int]) -> None:
    """Bring everything to rest and hand it over. All goes on if this ends, in whatever way."""
    quiet = Quiet()
    try:
        memberships = [s.membership for s in daemon.spaces if s.membership is not None]
        unrest = await in_thread(quiet.begin, memberships, REST_S)
        if unrest:
            _log.error("restart called off: %s", "; ".join(unrest))
        elif daemon.is_ending:
            _log.error("restart called off: the daemon is shut down")
        elif not _is_steady(daemon):
            # What was asked for last may have begun while requests came to their ends.
            _log.error("restart called off: a lockspace is being joined or left, or has failed")
        else:
            _hand_over(daemon, kept)
    except (OSError, PaxosleaseError, Refusal) as error:
        _log.error("restart called off: %s", error)
    finally:
        # Nothing was executed, whatever the reason: without renewals every lease would be lost.
        quiet.end()


def _hand_over(daemon: Daemon, kept: Mapping[str, int]) -> None:
    """Execute the program anew, with everything at rest. Raises OSError, PaxosleaseError."""
    claimed = [space.watchdog for space in daemon.spaces if space.watchdog is not None]
    file = -1
    try:
        for space in daemon.spaces:
            daemon.journal.space_changed(space)
        handover = Handover(
            dict(kept),
            [one.dump() for one in daemon.connections.values()],
            {s.name.hex(): s.listeners.descriptors() for s in daemon.spaces if s.listeners},
            {s.name.hex(): list(s.watchdog.detach()) for s in daemon.spaces if s.watchdog},
            daemon.journal.dump(is_final=True),
            os.fsdecode(daemon.host_name),
            daemon.helper.pid if daemon.helper is not None else -1,
            {s.name.hex(): s.membership.member.table.dump() for s in daemon.spaces if s.membership},
        )
        for fd in _descriptors(handover):
            os.set_inheritable(fd, True)
        file = os.memfd_create("paxoslease-handover", 0)
        with os.fdopen(file, "wb", closefd=False) as out:
            out.write(json.dumps(handover._asdict()).encode())
        os.environ[VARIABLE] = str(file)
        _log.warning("restarting")
        daemon.log.drain()
        # Until the next image catches them they would end it, and all leases with it.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
        os.environ.pop(VARIABLE, None)
        if file >= 0:
            os.close(file)
        for watchdog in claimed:
            watchdog.undetach()
