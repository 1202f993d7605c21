"""Going on where a predecessor stopped: its clients, lockspaces and leases, from what it noted.

After a re-exec, or a crash that the keeper has outlived, the connections are still there and
everybody goes on as if nothing had happened. If they are gone, a client whose process still lives
keeps its leases, which are released when the process ends. The leases of processes that have died
meanwhile are released. What was under way is brought to a known end first (protocol/outcome.py), so
a lease is either held as noted or not held; then a request that was being worked on is run again.

Whether a membership may be continued is for the engine to decide (protocol/adoption.py); if not,
it counts as failed, and its users are stopped like those of any lockspace that has failed. That is
why they are attached before it is tried.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from paxoslease.daemon.bridge import finished, surely_in_thread
from paxoslease.daemon.clients import Client, start_time
from paxoslease.daemon.connection import Connection
from paxoslease.daemon.entries import Entry, Phase
from paxoslease.daemon.spaces import Space, Stage
from paxoslease.engine.core import engine
from paxoslease.engine.processes import send_signal
from paxoslease.engine.state import LeaseState, load_lease, load_membership
from paxoslease.engine.watchdog_base import WatchdogState
from paxoslease.errors import BadState, LockspaceFailed, PaxosleaseError, StorageError
from paxoslease.wire import sanlock as wire

if TYPE_CHECKING:
    from paxoslease.daemon.handover import Handover
    from paxoslease.daemon.server import Daemon

_log = logging.getLogger(__name__)

Notes: TypeAlias = Mapping[str, Mapping[str, Any]]

_PATIENCE_S: Final = 3.0  # clients are served then, whatever the disks do
# What a value of another shape than ours ends in; another version may have written it.
_MALFORMED: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)
_PHASES: Final = {
    "": Phase.HELD,
    "acquire": Phase.ACQUIRING,
    "convert": Phase.CONVERTING,
    "release": Phase.RELEASING,
}


async def restore(
    daemon: Daemon,
    notes: Notes,
    connections: Mapping[int, Connection],
    watchdogs: Mapping[bytes, WatchdogState],
    handed_over: Handover | None,
) -> list[bytes]:
    """Take over what was noted: `notes` by key, as the journal has them.

    connections: those that are still there, by slot. handed_over: None after a crash; then a
    lockspace that nobody uses is left, unless the options say otherwise: who kills a daemon and
    starts it again expects it to be without it. Returns the names of the lockspaces that there
    were, when all are known to be good or not, or after a few seconds.

    Raises BadState, WatchdogError: it cannot be known what the clients hold.
    """
    try:
        return await _restore(daemon, notes, connections, watchdogs, handed_over)
    except _MALFORMED as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadState("notes of the predecessor", "value", "what we write", reason) from error


async def _restore(
    daemon: Daemon,
    notes: Notes,
    connections: Mapping[int, Connection],
    watchdogs: Mapping[bytes, WatchdogState],
    handed_over: Handover | None,
) -> list[bytes]:
    names: list[bytes] = []
    keeps_unused = handed_over is not None or daemon.options.keep_unused_lockspaces
    by_number: dict[int, Client] = {}
    for key, value in notes.items():
        if key.startswith("c"):
            client = _client(value, connections)
            by_number[client.number] = client
    found = [
        (_restore_space(daemon, value, notes, by_number, watchdogs), value)
        for key, value in notes.items()
        if key.startswith("s")
    ]
    for client in by_number.values():
        if not client.has_ended:
            daemon.clients.add(client)
            client.is_busy = client.connection is not None and client.connection.is_begun
            if client.connection is None:
                _follow_process(daemon, client)
            daemon.journal.client_changed(client)
    for key in [k for k in notes if k.startswith("e")]:
        if not _is_known(daemon, notes[key]):
            daemon.journal.drop(key)
    ended = [client for client in by_number.values() if client.has_ended]
    for (space, unknown), value in found:
        names.append(space.name)
        if handed_over is not None and space.membership is not None:
            table = handed_over.tables.get(space.name.hex())
            if table:
                space.membership.member.table.load(table)
        is_over = bool(value.get("is_over"))
        work = _go_on(daemon, space, unknown, ended, is_over=is_over, keeps_unused=keeps_unused)
        task = daemon.spaces.start(work)
        daemon.restoring[space.name] = task
        task.add_done_callback(partial(_restored, daemon, space.name))
    for client in ended:
        daemon.journal.client_ended(client)
    if daemon.restoring:
        await asyncio.wait(daemon.restoring.values(), timeout=_PATIENCE_S)
    return names


def _restored(daemon: Daemon, name: bytes, _: asyncio.Task[Any]) -> None:
    del daemon.restoring[name]


def _client(value: Mapping[str, Any], connections: Mapping[int, Connection]) -> Client:
    connection = connections.get(value["number"])
    pid = int(value["pid"])
    client = Client(int(value["number"]), pid, connection, int(value["started"]))
    client.name = bytes.fromhex(value["name"])
    client.restricted = wire.RestrictFlag(value["restricted"])
    client.killpath = bytes.fromhex(value["killpath"])
    client.killpath_args = bytes.fromhex(value["killpath_args"])
    client.killpath_pid = bool(value["killpath_pid"])
    if connection is not None:
        connection.client = client
        connection.is_muted = bool(value["is_muted"])
    elif start_time(pid) != value["started"] or not value["started"]:
        # Its process has ended, and with it whatever its children had of its connection.
        client.end()
    return client


def _kill(clients: Iterable[Client]) -> None:
    for client in clients:
        if client.pidfd >= 0:
            _log.critical("process killed: pid %d", client.pid)
            with suppress(ProcessLookupError, PermissionError):
                send_signal(client.pid, client.pidfd, signal.SIGKILL)


def _follow_process(daemon: Daemon, client: Client) -> None:
    """Have a client without a connection end with its process."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(client.pidfd)
        if client.connection is None:
            daemon.client_ended(client)

    if client.pidfd >= 0:
        loop.add_reader(client.pidfd, ended)
    else:
        daemon.client_ended(client)


def _restore_space(
    daemon: Daemon,
    value: Mapping[str, Any],
    notes: Notes,
    by_number: Mapping[int, Client],
    watchdogs: Mapping[bytes, WatchdogState],
) -> tuple[Space, list[tuple[Entry, str, LeaseState | None]]]:
    """Attach the users of a lockspace; returns it, and what was being done whose end is unknown."""
    wanted = wire.parse_lockspace(bytes.fromhex(value["wanted"]))
    state = load_membership(value["membership"])
    space = daemon.spaces.resume(wanted, state, watchdogs.get(wanted.name))
    space.used = bool(value["used"])
    space.used_by_orphans = bool(value["used_by_orphans"])
    unknown: list[tuple[Entry, str, LeaseState | None]] = []
    for key, noted in notes.items():
        if key.startswith(f"e{wanted.name.hex()}:"):
            unknown += _restore_entry(daemon, space, noted, by_number)
    return space, unknown


def _restore_entry(
    daemon: Daemon, space: Space, value: Mapping[str, Any], by_number: Mapping[int, Client]
) -> list[tuple[Entry, str, LeaseState | None]]:
    """Put a noted resource back; returns it with what was being done to it, if that is unknown."""
    resource = wire.parse_resource(bytes.fromhex(value["resource"]))
    lease = None if value["lease"] is None else load_lease(value["lease"])
    entry = Entry.load(value, space, resource)
    doing = str(value["doing"])
    membership = space.membership
    assert membership is not None
    entry.phase = _PHASES[doing]
    if not doing and lease is not None:
        entry.holding = membership.leases.restore(lease)
        entry.shared, entry.lver = lease.shared, lease.lver
    tokens = [token for token in value["tokens"] if token[0] in by_number]
    is_lost = not doing and lease is None
    if is_lost:
        _log.critical("r%d was lost before the restart", entry.number)
        _kill(by_number[token[0]] for token in tokens)
        if not tokens:
            return []
    daemon.registry.put_back(entry)
    for number, token_number, is_persistent, origin in tokens:
        client = by_number[number]
        daemon.registry.give_back(entry, client, token_number, is_persistent, origin)
    if is_lost:
        return []
    if not doing and not entry.tokens:
        is_orphan = value["phase"] == Phase.ORPHAN.value
        entry.phase = Phase.ORPHAN if is_orphan else Phase.RELEASING
    return [(entry, doing, lease)] if doing else []


async def _go_on(
    daemon: Daemon,
    space: Space,
    unknown: list[tuple[Entry, str, LeaseState | None]],
    ended: Sequence[Client],
    *,
    is_over: bool,
    keeps_unused: bool,
) -> None:
    """Continue a membership, then bring to an end what was under way.

    ended: clients that have ended meanwhile. is_over: it had failed or was being left, which is
    gone on with. keeps_unused: stay in it although nobody uses it.
    """
    try:
        await _continue(daemon, space)
    except PaxosleaseError as error:
        _log.critical("s%d is not to be continued: %s", space.number, error)
        daemon.spaces.failed(space, str(error), error.code)
        _end_clients(daemon, space, ended)
        return
    space.stage = Stage.JOINED
    space.settled.set()
    daemon.journal.space_changed(space)
    daemon.spaces.changed()
    if is_over:
        _log.warning("s%d is left on, host_id %d", space.number, space.wanted.host_id)
        for entry, _, _ in unknown:
            daemon.registry.forget(entry)
        daemon.spaces.leave(space)
        _end_clients(daemon, space, ended)
        return
    _log.warning("s%d continued, host_id %d", space.number, space.wanted.host_id)
    _open_disks(daemon, space)
    released = _end_clients(daemon, space, ended)
    settled = (_settle(daemon, entry, what, lease) for entry, what, lease in unknown)
    # Who asked for such a release is told that it is done.
    await asyncio.gather(*settled, *released)
    if not keeps_unused and not _is_used(daemon, space):
        daemon.spaces.leave(space)
        await space.ended.wait()


async def _continue(daemon: Daemon, space: Space) -> None:
    """Continue a membership. Raises PaxosleaseError when that fails, or its time has run out."""
    membership = space.membership
    assert membership is not None

    def join() -> None:
        membership.start_join()
        membership.await_join(None)

    joining = asyncio.ensure_future(surely_in_thread(join))
    while not joining.done() and not space.is_dead:
        change = asyncio.ensure_future(daemon.spaces.next_change())
        await asyncio.wait({joining, change}, return_when=asyncio.FIRST_COMPLETED)
        change.cancel()
    if not joining.done():
        # Its disk does not even let it be opened; others must not wait for that.
        joining.add_done_callback(lambda ended: ended.exception())
        raise LockspaceFailed(space.name, space.failure)
    await joining


def _open_disks(daemon: Daemon, space: Space) -> None:
    """Have the disks of what is held opened, each on its own: one that hangs holds up no other."""
    registry = daemon.registry
    paths = {
        os.fsdecode(disk.path)
        for entry in registry.of_space(space)
        for disk in entry.resource.disks
    }
    for path in sorted(paths):
        if path not in registry.opening and not engine().files.is_open(path):
            registry.opening[path] = registry.in_background(_open_disk(daemon, space, path))


async def _open_disk(daemon: Daemon, space: Space, path: str) -> None:
    """Open a disk of what is held; those who cannot do without it are stopped if it is gone."""
    try:
        await surely_in_thread(engine().files.fulfil, path)
    except StorageError as error:
        _log.critical("s%d has lost a disk: %s", space.number, error)
        for entry in daemon.registry.of_space(space):
            disks = [os.fsdecode(disk.path) for disk in entry.resource.disks]
            are_open = sum(map(engine().files.is_open, disks))
            if path in disks and 2 * are_open <= len(disks):
                _kill(token.client for token in entry.tokens)
    finally:
        daemon.registry.opening.pop(path, None)


def _end_clients(daemon: Daemon, space: Space, ended: Sequence[Client]) -> list[asyncio.Task[None]]:
    """Release what ended clients held, now that it is known whether anything may be written.

    Returns the releases of what had been given up before, but had not begun to be released.
    """
    released = [
        daemon.registry.abandoned(entry)
        for entry in daemon.registry.of_space(space)
        if entry.phase is Phase.RELEASING and entry.holding is not None
    ]
    for client in ended:
        daemon.registry.client_ended(client, space)
    return released


def _is_used(daemon: Daemon, space: Space) -> bool:
    if any(client.is_busy for client in daemon.clients):
        return True  # it may be acquiring
    entries = daemon.registry.of_space(space)
    return space.used or any(entry.tokens or entry.phase is Phase.ORPHAN for entry in entries)


async def _settle(daemon: Daemon, entry: Entry, what: str, lease: LeaseState | None) -> None:
    """Find out what became of an operation, and let it count as told or as never begun.

    Nobody was told how it ended. So an acquisition is given up, a release is finished, and a
    conversion is as the disk says.
    """
    membership = entry.space.membership
    assert membership is not None
    places = [(os.fsdecode(disk.path), disk.offset) for disk in entry.resource.disks]
    is_used = what == "convert"
    before = None if what == "acquire" else lease
    # A lease whose value block has to be written yet is kept, and then released with it. How one
    # was held that could not be noted nobody knows: all of it is given up.
    keep = before is not None and (
        is_used or (what == "release" and entry.is_lvb_dirty and not entry.shared)
    )
    if is_used and not keep:
        # Before anything is given up.
        users = [token.client for token in entry.tokens]
        _kill(users)
        for client in users:
            await client.ended.wait()
    try:
        holding = await surely_in_thread(
            lambda: membership.leases.start_settle(
                entry.resource.name, places, before=before, keep=keep
            )
        )
        assert holding.operation is not None
        settled = await finished(holding.operation)
    except PaxosleaseError as error:
        _log.error("r%d its end is unknown: %s", entry.number, error)
        if is_used:
            _kill(token.client for token in entry.tokens)
        daemon.registry.forget(entry)
        return
    _log.warning("r%d %s was cut short: %s", entry.number, what, settled.found.value)
    if settled.lease is None:
        # For a conversion this means that somebody took the lease: its user must not go on.
        if is_used:
            _kill(token.client for token in entry.tokens)
        daemon.registry.forget(entry)
        return
    entry.holding = holding
    entry.shared, entry.lver = settled.lease.shared, settled.lease.lver
    entry.phase = Phase.HELD
    daemon.journal.entry_changed(entry)
    if not entry.tokens:
        await daemon.registry.abandoned(entry)


def _is_known(daemon: Daemon, value: Mapping[str, Any]) -> bool:
    resource = wire.parse_resource(bytes.fromhex(value["resource"]))
    return daemon.registry.find(resource.lockspace, resource.name) is not None
