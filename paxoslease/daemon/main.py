"""Start a daemon, and end it: the order in which things come up and go down.

A daemon that finds a handover in its environment goes on where the image before it stopped; one
that finds a journal in its run directory where a predecessor crashed.

Source: spec/wire-protocol.md 1; spec/cli.md 6; spec/timing-and-recovery.md 5.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Final

from paxoslease.daemon import commands, handover, indexes, keeper, logs, status, storage
from paxoslease.daemon.handover import RESTART_SIGNAL, STOP_SIGNALS, Handover
from paxoslease.daemon.helper import Helper, go_on_as_helper, start_helper
from paxoslease.daemon.inherit import Inheritance, from_keeper, stop_everybody
from paxoslease.daemon.journal import Journal, read_journal, salvage
from paxoslease.daemon.logs import LogRing, open_log
from paxoslease.daemon.manager import tell_manager
from paxoslease.daemon.options import DaemonOptions
from paxoslease.daemon.privileges import (
    Identity,
    drop_privileges,
    identity_of,
    into_background,
    is_privileged,
    lock_memory,
    raise_limits,
    raise_open_files,
    set_priority,
)
from paxoslease.daemon.restore import Notes, restore
from paxoslease.daemon.run_directory import (
    DEFAULT,
    RunDirectory,
    StartFailed,
    open_run_directory,
    path_of_environment,
)
from paxoslease.daemon.server import BACKLOG, Daemon
from paxoslease.engine.core import engine
from paxoslease.engine.processes import act_through
from paxoslease.errors import BadState, PaxosleaseError
from paxoslease.wire.sanlock import RELEASE

_log = logging.getLogger(__name__)

JOURNAL_NAME: Final = "paxoslease.state"
_NAME_BYTES: Final = 48
_NOT_STARTED: Final = 1

# A child that shares our memory until it executes something could outlive us for as long as the
# disk takes from which it is loaded; a successor relies on our I/O being over (protocol/adoption).
subprocess._USE_VFORK = False  # type: ignore[misc]


class _End(Enum):
    """How a daemon ended: shut down, with all clients stopped, or with things yet to be done."""

    SHUT_DOWN = 1
    STOPPED = 2
    UNCLEAR = 3


class Started:
    """What is there before the loop runs, new or from the image before this one.

    inherited: what a keeper had of a predecessor that died.
    """

    def __init__(
        self,
        directory: RunDirectory,
        listener: socket.socket,
        helper: Helper | None,
        identity: Identity,
        log: LogRing,
        handed_over: Handover | None,
        kept: Mapping[bytes, list[int]],
    ) -> None:
        self.directory = directory
        self.listener = listener
        self.helper = helper
        self.identity = identity
        self.log = log
        self.handed_over = handed_over
        self.inherited = kept

    def kept(self) -> dict[str, int]:
        """Return the descriptors that the next image gets."""
        kept = {"lock": self.directory.fileno(), "listener": self.listener.fileno()}
        if self.helper is not None and self.helper.is_alive:
            kept["helper"] = self.helper.fileno()
        if self.log.file_descriptor >= 0:
            kept["log"] = self.log.file_descriptor
        return kept


def run(options: DaemonOptions) -> int:
    """Run a daemon until it is shut down; returns the exit code."""
    go_on_as_helper()
    _name_program_in_full()
    # A client that hangs up is an error of one call, also where the program was started like C's.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    handed_over = handover.receive()
    if handed_over is None:
        _stop_plainly()
    is_up: Callable[[], None] | None = None
    if handed_over is None and not options.foreground:
        is_up = into_background()
    log = open_log(options, fd=handed_over.kept.get("log", -1) if handed_over else -1)
    try:
        started = _start(options, log, handed_over)
    except (StartFailed, OSError) as error:
        # Before the writers run; standard error is the caller's still.
        print(error, file=sys.stderr, flush=True)
        log.detach()
        return _NOT_STARTED
    log.start_writers()
    end = _End.UNCLEAR
    try:
        end = asyncio.run(_main(options, started, is_up))
    finally:
        if started.helper is not None:
            started.helper.close(is_over=end is not _End.UNCLEAR)
        started.directory.close()
        log.detach()
    return 0 if end is _End.SHUT_DOWN else _NOT_STARTED


def _name_program_in_full() -> None:
    """Let the program be found when it is executed again, from whatever directory."""
    for index, word in enumerate(sys.orig_argv):
        if word == sys.argv[0] and os.path.exists(word):
            sys.orig_argv[index] = os.path.abspath(word)
            return


def _stop_plainly() -> None:
    """Have signals that come before the loop runs end the start, or ask for nothing.

    After a restart they are blocked so long (handover.py): then there are leases to be seen to.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: sys.exit(0))
    signal.signal(RESTART_SIGNAL, signal.SIG_IGN)


def _start(options: DaemonOptions, log: LogRing, handed_over: Handover | None) -> Started:
    """Bring up everything that needs the rights we began with. Raises StartFailed, OSError."""
    path = path_of_environment()
    identity = identity_of(options.user, options.group)
    privileged = is_privileged()
    if handed_over is not None:
        return _take_over(path, identity, log, handed_over)
    if path != DEFAULT:
        _log.warning("Using non-standard run directory '%s'", path)
    if privileged:
        raise_limits()
    else:
        _log.warning("Running in unprivileged mode")
    raise_open_files()
    directory = open_run_directory(path, identity.uid, identity.gid, is_privileged=privileged)
    directory.lock()
    claimed = keeper.claim(path)
    if claimed is None:
        helper = start_helper(path)
    else:
        helper = Helper(claimed.pid, claimed.channel)
        helper.renew()
    listener = directory.listen(BACKLOG)
    if privileged:
        drop_privileges(identity)
    kept = {} if claimed is None else claimed.kept
    return Started(directory, listener, helper, identity, log, None, kept)


def _take_over(path: str, identity: Identity, log: LogRing, handed_over: Handover) -> Started:
    """Take what the image before this one had; it has the identity already."""
    kept = handed_over.kept
    directory = RunDirectory(path, identity.uid, identity.gid)
    directory.take_over(kept["lock"])
    listener = socket.socket(fileno=kept["listener"])
    if "helper" in kept:
        helper = Helper(handed_over.helper_pid, socket.socket(fileno=kept["helper"]))
        helper.renew()
    else:
        helper = start_helper(path)  # without root's rights; but it keeps what must be kept
    return Started(directory, listener, helper, identity, log, handed_over, {})


async def _main(options: DaemonOptions, started: Started, is_up: Callable[[], None] | None) -> _End:
    """Serve until it is shut down, if it can be begun."""
    signal.pthread_sigmask(signal.SIG_BLOCK, handover.HANDLED_SIGNALS)
    journal_path = os.path.join(started.directory.path, JOURNAL_NAME)
    handed_over = started.handed_over
    name = os.fsencode(handed_over.host_name) if handed_over else host_name_of(options)
    inheritance = _inheritance(started, options)
    act_through(started.helper)
    try:
        notes = handed_over.journal if handed_over else _notes(journal_path, inheritance)
    except BadState as error:
        return _end_all(error, inheritance, journal_path, options)
    journal = Journal(journal_path, notes)
    if handed_over:
        journal.begin_anyhow()
    else:
        journal.begin()
    daemon = _new_daemon(options, name, journal, started)
    lock_memory(options.mlock_level)
    engine()  # its threads are to run before priorities are set
    if options.high_priority:
        set_priority()
    _log.warning(
        "sanlock daemon started %s host %s (%s)",
        ".".join(map(str, RELEASE)),
        os.fsdecode(name),
        os.uname().nodename,
    )
    daemon.take_connections(inheritance.connections)
    try:
        connections, watchdogs = inheritance.connections, inheritance.watchdogs
        names = await restore(daemon, notes, connections, watchdogs, handed_over)
    except PaxosleaseError as error:
        return _end_all(error, inheritance, journal_path, options)
    # Not before: a daemon that does not know its lockspaces yet would end, or restart without them.
    _catch_signals(daemon, started)
    inheritance.disarm(options, names)
    if handed_over is None:
        daemon.close_strangers()
    daemon.take_listeners(inheritance.listeners)
    daemon.keep_all()
    if is_up is not None:
        is_up()
    tell_manager("READY=1")
    await daemon.serve(started.listener)
    journal.close()
    return _End.SHUT_DOWN


def _new_daemon(options: DaemonOptions, name: bytes, journal: Journal, started: Started) -> Daemon:
    daemon = Daemon(options, name, journal, started.log)
    daemon.identity = started.identity
    daemon.handle(
        {
            **commands.HANDLERS,
            **storage.HANDLERS,
            **indexes.HANDLERS,
            **logs.HANDLERS,
            **status.HANDLERS,
        }
    )
    if started.helper is not None:
        daemon.use_helper(started.helper)
    return daemon


def _inheritance(started: Started, options: DaemonOptions) -> Inheritance:
    if started.handed_over is None:
        return from_keeper(started.inherited, options)
    return handover.inheritance_of(started.handed_over)


def _notes(path: str, inheritance: Inheritance) -> Notes:
    """Return what a predecessor noted. Raises BadState: what its clients hold is not known."""
    notes = read_journal(path)
    if inheritance.problem is not None:
        raise inheritance.problem
    if notes is None and inheritance:
        raise BadState("journal", "file", "notes about the clients that are there", "none")
    return notes or {}


def _end_all(error: Exception, inheritance: Inheritance, path: str, options: DaemonOptions) -> _End:
    """Stop everybody whose leases are not known, and make way for a new beginning if they end."""
    _log.critical("the state of the predecessor is not usable: %s", error)
    if not stop_everybody(inheritance, salvage(path)):
        _log.critical("clients still run, whose leases are not known: no daemon may start")
        return _End.UNCLEAR
    inheritance.disarm(options, ())
    with suppress(FileNotFoundError):
        os.unlink(path)
    _log.critical("all clients have been stopped; the daemon can be started anew")
    return _End.STOPPED


def _catch_signals(daemon: Daemon, started: Started) -> None:
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, lambda: daemon.ask_shutdown(is_forced=False))
    restarting: list[asyncio.Task[None]] = []

    def restart() -> None:
        if not restarting or restarting[-1].done():
            work = handover.restart(daemon, started.kept())
            restarting[:] = [asyncio.ensure_future(work)]

    loop.add_signal_handler(RESTART_SIGNAL, restart)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handover.HANDLED_SIGNALS)


def host_name_of(options: DaemonOptions) -> bytes:
    """Return the host's name: as told, or a random one of this life and the node's name."""
    name = options.host_name or f"{uuid.uuid4()}.{os.uname().nodename}"
    return os.fsencode(name)[:_NAME_BYTES]
