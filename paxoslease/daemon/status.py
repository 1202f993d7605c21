"""The status streams: STATUS, HOST_STATUS and RENEWAL.

Each is a header and a sequence of records, ended by the end of the connection. A record has a type,
a few numbers, a name and a text of key=value items, in the order that clients know.

Source: spec/wire-protocol.md 14; the real daemon, compared with.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from paxoslease.daemon.clients import Client
from paxoslease.daemon.connection import Call, Connection
from paxoslease.daemon.entries import Entry, Phase, Token
from paxoslease.daemon.spaces import Space, Stage
from paxoslease.disk.direct import DirectFile
from paxoslease.engine.operation import now_us
from paxoslease.timing import SECOND_US
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import Command, StateType

if TYPE_CHECKING:
    from paxoslease.daemon.server import Daemon, Handler

HELPER_SLOT, LISTENER_SLOT = 0, 1
_NOBODY: Final = -1
_FILE_SECTOR_SIZE: Final = 512
_DAEMON_ONLY, _WITH_CLIENTS, _WITH_LOCKSPACES = 1, 2, 3
_CORRUPT: Final = frozenset((*range(-229, -222), -260, -261))
_ORDER: Final = {Phase.ACQUIRING: "add", Phase.RELEASING: "rem", Phase.ORPHAN: "orphan"}
# What runs in the original's main thread: the connection is looked at again at once.
_AT_ONCE: Final = frozenset(
    (Command.STATUS, Command.HOST_STATUS, Command.RENEWAL, Command.LOG_DUMP, Command.VERSION)
)


def _items(**values: object) -> bytes:
    """Return a text of key=value items in their order; bytes and numbers as they are."""
    return b" ".join(
        b"%s=%s" % (key.encode(), value if isinstance(value, bytes) else str(value).encode())
        for key, value in values.items()
    )


def _seconds(time_us: int) -> int:
    return time_us // SECOND_US


# -- STATUS --------------------------------------------------------------------------------------


async def status(daemon: Daemon, call: Call) -> None:
    """STATUS: `data` says how much; the request's `data2` comes back."""
    call.closes = True
    wanted = call.header.data
    records = [_daemon(daemon)]
    if wanted != _DAEMON_ONLY:
        records += _slots(daemon, call.connection)
    if wanted not in (_DAEMON_ONLY, _WITH_CLIENTS):
        records += _lockspaces(daemon)
    if wanted not in (_DAEMON_ONLY, _WITH_CLIENTS, _WITH_LOCKSPACES):
        records += _resources(daemon)
    await _send(call, records)


async def _send(call: Call, records: list[bytes], data2: int | None = None) -> None:
    body = b"".join(records)
    data2 = call.header.data2 if data2 is None else data2
    await call.reply(0, data2, body, length=wire.HEADER_BYTES)


def _daemon(daemon: Daemon) -> bytes:
    options, helper = daemon.options, daemon.helper
    version = ".".join(map(str, wire.RELEASE))
    text = _items(
        our_host_name=daemon.host_name,
        use_watchdog=int(options.use_watchdog),
        high_priority=int(options.high_priority),
        mlock_level=options.mlock_level,
        quiet_fail=int(options.quiet_fail),
        debug_renew=options.debug_renew,
        debug_clients=int(options.debug_clients),
        debug_cmds=f"{options.debug_commands:#x}",
        renewal_history_size=options.renewal_history_size,
        gid=daemon.identity.gid,
        uid=daemon.identity.uid,
        sh_retries=options.shared_retries,
        max_sectors_kb_ignore=int(options.max_sectors_kb_ignore),
        max_sectors_kb_align=int(options.max_sectors_kb_align),
        max_sectors_kb_num=options.max_sectors_kb,
        max_worker_threads=options.max_worker_threads,
        write_init_io_timeout=options.write_init_io_timeout,
        use_aio=int(options.use_aio),
        kill_grace_seconds=options.grace_s,
        helper_pid=_NOBODY if helper is None else helper.pid,
        helper_kill_fd=_NOBODY if helper is None else helper.fileno(),
        helper_full_count=0 if helper is None else helper.full,
        helper_last_status=0 if helper is None else _seconds(helper.answered_us),
        monotime=_seconds(now_us()),
        version_str=version,
        version_num=version,
        version_hex=f"{wire.RELEASE_NUMBER:08x}",
        smproto_hex=f"{wire.PROTOCOL_VERSION:08x}",
    )
    return wire.pack_state(wire.State(StateType.DAEMON, name=daemon.host_name, text=text))


def _slots(daemon: Daemon, asking: Connection) -> Iterator[bytes]:
    """Return the records of clients by slot: the daemon's own two, then who is connected."""
    helper_fd = _NOBODY if daemon.helper is None else daemon.helper.fileno()
    yield _slot(HELPER_SLOT, helper_fd, b"helper")
    yield _slot(LISTENER_SLOT, daemon.listener_fd, b"listener")
    clients = {client.number: client for client in daemon.clients}
    for number in sorted({*daemon.connections, *clients}):
        connection = daemon.connections.get(number)
        yield _client(number, connection, clients.get(number), asking)


def _client(
    number: int, connection: Connection | None, client: Client | None, asking: Connection
) -> bytes:
    """Return the record of a connection, of its registered client, or of one that has none."""
    name, fd, running, last = b"", _NOBODY, 0, 0
    if connection is not None:
        name, fd = connection.name, connection.socket.fileno()
        running = connection.command_active
        last = running or connection.command_last
    if client is None:
        is_suspended = bool(running) and running not in _AT_ONCE
        return _slot(number, fd, name, command_last=last, suspended=is_suspended)
    processes = list(client.stopping.values())
    has_run_killpath = any(process.has_run_killpath for process in processes)
    return _slot(
        number,
        fd,
        client.name,
        pid=client.pid,
        flags=int(client.killpath_pid) | (2 if has_run_killpath else 0),
        restricted=int(client.restricted),
        command_active=client.command_active,
        command_last=last,
        has_ended=client.has_ended,
        tries=sum(process.tries for process in processes),
        tried_us=max((process.tried_us for process in processes), default=0),
        suspended=bool(running) and connection is not asking,
    )


def _slot(
    number: int,
    fd: int,
    name: bytes,
    *,
    pid: int = _NOBODY,
    flags: int = 0,
    restricted: int = 0,
    command_active: int = 0,
    command_last: int = 0,
    has_ended: bool = False,
    tries: int = 0,
    tried_us: int = 0,
    suspended: bool = False,
) -> bytes:
    text = _items(
        ci=number,
        fd=fd,
        pid=pid,
        flags=f"{flags:x}",
        restricted=f"{restricted:x}",
        cmd_active=command_active,
        cmd_last=command_last,
        pid_dead=int(has_ended),
        kill_count=tries,
        kill_last=_seconds(tried_us),
        suspend=int(suspended),
        need_free=0,
    )
    return wire.pack_state(wire.State(StateType.CLIENT, pid, name=name, text=text))


def _lockspaces(daemon: Daemon) -> Iterator[bytes]:
    extend_s = daemon.options.renewal_read_extend_s
    for stage in (Stage.JOINED, Stage.ADDING, Stage.REMOVING):
        for space in daemon.spaces.of_stage(stage):
            yield _lockspace(space, space.timing.io_timeout if extend_s is None else extend_s)


def _lockspace(space: Space, extend_s: int) -> bytes:
    sector_size = align_size = generation = device_sector_size = 0
    descriptor = _NOBODY
    if space.membership is not None:
        device_sector_size = _device_sector_size(space.membership.file)
        member = space.membership.member
        sector_size, align_size = member.space.area.sizes
        generation = 0 if member.held is None else member.held.generation
        descriptor = space.membership.file.fd
    renewals = space.renewals
    text = _items(
        list=space.stage.value,
        space_id=space.number,
        io_timeout=space.timing.io_timeout,
        sector_size=sector_size,
        align_size=align_size,
        host_generation=generation,
        renew_fail=int(bool(space.failure)),
        space_dead=int(space.is_dead),
        killing_pids=int(space.is_dead),
        used_retries=0,
        external_used=int(space.used),
        used_by_orphans=int(space.used_by_orphans),
        renewal_read_extend_sec=extend_s,
        set_max_sectors_kb=0,
        corrupt_result=space.failure_number if space.failure_number in _CORRUPT else 0,
        acquire_last_result=int(bool(renewals.acquired_us)),
        renewal_last_result=renewals.last_result,
        acquire_last_attempt=_seconds(renewals.acquired_us),
        acquire_last_success=_seconds(renewals.acquired_us),
        renewal_last_attempt=_seconds(renewals.last_attempt_us),
        renewal_last_success=_seconds(renewals.last_success_us),
    )
    host_id = space.wanted.host_id
    state = wire.State(StateType.LOCKSPACE, 0, host_id, space.name, text)
    disk = _disk(space.wanted.disk, device_sector_size, descriptor)
    return wire.pack_state(state) + wire.pack_lockspace(
        wire.Lockspace(space.name, host_id, 0, disk)
    )


def _device_sector_size(file: DirectFile) -> int:
    """Return what the original tells as a disk's sector size: the device's, 512 for a file."""
    return file.sector_size if file.is_block else _FILE_SECTOR_SIZE


def _disk(disk: wire.Disk, sector_size: int, descriptor: int) -> wire.Disk:
    return wire.Disk(disk.path, disk.offset, sector_size, descriptor & 0xFFFFFFFF)


def _resources(daemon: Daemon) -> Iterator[bytes]:
    """Return the records of resources: held, being acquired, being released, orphans."""
    entries = list(daemon.registry)[::-1]
    held = [entry for entry in entries if entry.phase not in _ORDER]
    for entry in held:
        for token in reversed(entry.tokens):
            yield _resource(entry, "held", token)
    for phase, word in _ORDER.items():
        for entry in entries:
            if entry.phase is phase:
                yield _resource(entry, word, None)


def _resource(entry: Entry, word: str, token: Token | None) -> bytes:
    sector_size = align_size = device_sector_size = 0
    if entry.space.membership is not None:
        # Of the lockspace's disk: the resource's own is as a rule the same.
        device_sector_size = _device_sector_size(entry.space.membership.file)
        sector_size, align_size = entry.space.membership.member.space.area.sizes
    is_known = entry.phase is not Phase.ACQUIRING
    restricted = entry.restricted
    flags = (
        (0x1 if entry.shared else 0)
        | (0x8 if restricted & wire.RestrictFlag.SIGKILL else 0)
        | (0x10 if restricted & wire.RestrictFlag.SIGTERM else 0)
        | (0x20 if entry.is_lvb_dirty else 0)
    )
    text = _items(
        list=word,
        flags=f"{flags:x}",
        sector_size=sector_size if is_known else 0,
        align_size=align_size if is_known else 0,
        lver=entry.lver,
        reused=entry.reused,
        res_id=entry.number,
        token_id=entry.coming_token if token is None else token.number,
    )
    pid = entry.pid if is_known else entry.coming_pid
    if token is not None:
        pid = token.client.pid
    resource = entry.resource
    state = wire.State(StateType.RESOURCE, pid, entry.lver, resource.name, text)
    disks = tuple(_disk(disk, device_sector_size, _NOBODY) for disk in resource.disks)
    mode = wire.ResourceFlag.SHARED if entry.shared else 0
    named = wire.Resource(resource.lockspace, resource.name, disks, flags=int(mode))
    return wire.pack_state(state) + wire.pack_resource(named, with_disks=True)


# -- HOST_STATUS and RENEWAL ---------------------------------------------------------------------


async def host_status(daemon: Daemon, call: Call) -> None:
    """HOST_STATUS: a record per host that was ever seen in a lockspace."""
    call.closes = True
    space = daemon.spaces.find(call.lockspace().name)
    if space is None:
        await call.reply(-errno.ENOSPC, call.header.data2)
        return
    await _send(call, list(_hosts(space)))


def _hosts(space: Space) -> Iterator[bytes]:
    if space.stage is Stage.ADDING or space.membership is None:
        return
    table = space.membership.member.table
    for row in table.rows(now_us(), space.timing.watchdog_fire_timeout):
        seen = table.seen(row.host_id)
        text = _items(
            last_check=_seconds(seen.last_check_us),
            last_live=_seconds(seen.last_live_us),
            last_req=_seconds(space.requested_us.get(row.host_id, 0)),
            owner_id=seen.owner_id,
            owner_generation=seen.generation,
            timestamp=seen.timestamp,
            io_timeout=seen.io_timeout,
            owner_name=_shown(seen.name),
        )
        yield wire.pack_state(wire.State(StateType.HOST, row.host_id, seen.timestamp, b"", text))


def _shown(name: bytes) -> bytes:
    """Return a name from the disk without what could look like another item's line."""
    return bytes(byte if byte >= 0x20 and byte != 0x7F else ord("?") for byte in name)


async def renewal(daemon: Daemon, call: Call) -> None:
    """RENEWAL: a record per renewal, oldest first; `data2` is the io_timeout if there is any."""
    call.closes = True
    space = daemon.spaces.find(call.lockspace().name)
    if space is None:
        await call.reply(-errno.ENOSPC, call.header.data2)
        return
    records = [
        wire.pack_state(
            wire.State(
                StateType.RENEWAL,
                0,
                _seconds(one.renewed_us),
                b"",
                _items(
                    timestamp=_seconds(one.renewed_us),
                    read_ms=one.read_us // 1000,
                    write_ms=one.write_us // 1000,
                    next_timeouts=one.timeouts,
                    next_errors=one.errors,
                ),
            )
        )
        for one in space.renewals.kept
    ]
    await _send(call, records, space.timing.io_timeout if records else None)


HANDLERS: Final[dict[Command, Handler]] = {
    Command.STATUS: status,
    Command.HOST_STATUS: host_status,
    Command.RENEWAL: renewal,
}
