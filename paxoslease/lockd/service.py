"""Start, restart and end of the lock daemon as a process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from paxoslease.lockd import handover
from paxoslease.lockd.daemon import Daemon, Settings, raise_descriptor_limit
from paxoslease.lockd.places import (
    ADMIN_SOCKET_NAME,
    SOCKET_NAME,
    Listener,
    PidFile,
    listen,
    passed_listeners,
)
from paxoslease.lockd.space import LockTable

_log = logging.getLogger(__name__)

_TRIAL_LIMIT_S: Final = 10.0
# A restart that a file system holds up must not hold up clients.
_QUIET_LIMIT_S: Final = 1.0
_RESTART_AGAIN_S: Final = 10.0
TRIAL_VARIABLE: Final = "PAXOSLEASE_LOCKD_TRIAL"


def serve(settings: Settings, ready: Callable[[Path | None], None]) -> int:
    """Run the daemon in the foreground; return the signal that ended it, 0 for the time-out.

    ready: called when clients can connect, with the socket's path. Raises AlreadyRunning,
    ConfigError, OSError when it cannot start.
    """
    return asyncio.run(_serve(settings, ready))


async def _serve(settings: Settings, ready: Callable[[Path | None], None]) -> int:
    raise_descriptor_limit()
    places = settings.places
    for path in (places.socket, places.pid_file, places.state):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    table = LockTable()
    state = handover.left_state(places.state)
    pid_file = handover.inherited_pid_file(state, places.pid_file) if state else None
    pid_file = pid_file or PidFile(places.pid_file)
    table.reserve(pid_file.descriptor)
    try:
        daemon = _daemon(settings, table, state)
        try:
            restart = _Restart(daemon, pid_file)
            daemon.start(restart.begin)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, handover.HANDLED_SIGNALS)
            ready(daemon.listener.path)
            await daemon.finished()
            return daemon.end_signal
        finally:
            for listener in (daemon.listener, daemon.admin_listener):
                if listener is not None:
                    listener.close()
    finally:
        pid_file.remove()


def _daemon(settings: Settings, table: LockTable, state: dict[str, Any] | None) -> Daemon:
    """Return the daemon with its socket: an earlier image's, the service manager's, or its own."""
    listeners: dict[str, Listener] = {}
    if state is not None:
        listeners = handover.inherited_listeners(state)
        handover.adopt_table(state, table)
    elif "LISTEN_PID" in os.environ:
        listeners = passed_listeners(os.environ, os.getpid())
    # They would count for the next image, which has the same pid.
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    listener = listeners.get(SOCKET_NAME) or listen(settings.places.socket)
    daemon = Daemon(settings, table, listener)
    daemon.admin_listener = listeners.get(ADMIN_SOCKET_NAME)
    if state is not None:
        handover.adopt_clients(state, daemon)
    return daemon


class _Restart:
    """SIGUSR1: become a new image of the program, after a trial whether there is one.

    A new image that does not start would take all locks with it. The trial is the same command,
    with a variable in its environment that lets it end when everything is loaded. While a file
    system hangs the restart is tried again from time to time.
    """

    def __init__(self, daemon: Daemon, pid_file: PidFile) -> None:
        self._daemon = daemon
        self._pid_file = pid_file
        self._trial: subprocess.Popen[bytes] | None = None
        self._replacing: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the trial, unless it is under way or the daemon is ending anyway."""
        if self._trial is not None or self._replacing is not None or self._daemon.is_ending:
            return
        loop = asyncio.get_running_loop()
        try:
            self._trial = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, TRIAL_VARIABLE: "1"},
            )
        except OSError as error:
            _log.error("restart_failed error=%s", error)
            return
        pidfd = os.pidfd_open(self._trial.pid)
        limit = loop.call_later(_TRIAL_LIMIT_S, self._trial.kill)
        loop.add_reader(pidfd, self._ended, pidfd, limit)

    def _ended(self, pidfd: int, limit: asyncio.TimerHandle) -> None:
        assert self._trial is not None
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        limit.cancel()
        status = self._trial.wait()
        self._trial = None
        if status:
            _log.error("restart_failed error=%s", f"the new program ends with status {status}")
            return
        if not self._daemon.is_ending:
            self._replacing = asyncio.get_running_loop().create_task(self._replace())

    async def _replace(self) -> None:
        """Become the new image as soon as nothing is under way."""
        is_quiet = await self._daemon.is_quiet(_QUIET_LIMIT_S)
        self._replacing = None
        if self._daemon.is_ending:
            return
        if is_quiet:
            handover.execute(self._daemon, self._pid_file)
        else:
            _log.warning("restart_waits operations=%d", self._daemon.work.count)
            asyncio.get_running_loop().call_later(_RESTART_AGAIN_S, self.begin)
        self._daemon.go_on()
