"""The commands about lockspaces, their hosts and events.

Source: spec/wire-protocol.md 8 and 13; spec/errors.md 2.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from paxoslease.daemon import events
from paxoslease.daemon.connection import Call
from paxoslease.daemon.refusal import Refusal
from paxoslease.daemon.spaces import Space, Stage
from paxoslease.engine.operation import now_us
from paxoslease.protocol.hosts import HostState
from paxoslease.protocol.requests import HostEvent
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import Command

if TYPE_CHECKING:
    from paxoslease.daemon.server import Daemon, Handler

_HOST_ID_MAX: Final = 2000  # in the largest of lockspaces
_STATES: Final = {
    HostState.UNKNOWN: wire.HostFlag.UNKNOWN,
    HostState.FREE: wire.HostFlag.FREE,
    HostState.LIVE: wire.HostFlag.LIVE,
    HostState.FAIL: wire.HostFlag.FAIL,
    HostState.DEAD: wire.HostFlag.DEAD,
}


async def add_lockspace(daemon: Daemon, call: Call) -> None:
    """ADD_LOCKSPACE: join; the reply comes when it is done, or at once with ADD_ASYNC."""
    space = daemon.spaces.add(call.lockspace(), call.header.data)
    if not call.header.flags & wire.AddFlag.ASYNC:
        await space.settled.wait()
        await call.reply(space.join_number)
        return
    await call.reply(0)


async def inq_lockspace(daemon: Daemon, call: Call) -> None:
    """INQ_LOCKSPACE: is it joined? INQ_WAIT waits while that is being decided."""
    wanted = call.lockspace()
    while True:
        space = next((space for space in daemon.spaces if space.is_same(wanted)), None)
        if space is None:
            raise Refusal(errno.ENOENT)
        if space.stage is Stage.JOINED:
            break
        if not call.header.flags & wire.InquireFlag.WAIT:
            raise Refusal(errno.EINPROGRESS)
        await daemon.spaces.next_change()
    await call.reply(0)


async def rem_lockspace(daemon: Daemon, call: Call) -> None:
    """REM_LOCKSPACE: leave; the reply comes when it is gone, or at once with REM_ASYNC."""
    flags = call.header.flags
    space = daemon.spaces.remove(call.lockspace(), unused_only=bool(flags & wire.RemoveFlag.UNUSED))
    if not flags & wire.RemoveFlag.ASYNC:
        await space.ended.wait()
    await call.reply(0)


async def get_lockspaces(daemon: Daemon, call: Call) -> None:
    """GET_LOCKSPACES: the joined ones, those being removed, those being joined."""
    packed: list[bytes] = []
    for stage, flag in (
        (Stage.JOINED, wire.LockspaceFlag(0)),
        (Stage.REMOVING, wire.LockspaceFlag.REM),
        (Stage.ADDING, wire.LockspaceFlag.ADD),
    ):
        for space in daemon.spaces.of_stage(stage):
            disk = wire.Disk(*space.place)
            packed.append(
                wire.pack_lockspace(
                    wire.Lockspace(space.name, space.wanted.host_id, int(flag), disk)
                )
            )
    await call.reply(0, len(packed), b"".join(packed))


async def get_hosts(daemon: Daemon, call: Call) -> None:
    """GET_HOSTS: what is known of the hosts of a lockspace."""
    wanted = call.lockspace()
    space = daemon.spaces.joined(wanted.name)
    assert space.membership is not None
    member = space.membership.member
    table = member.table
    if not table.last_check_us:
        raise Refusal(errno.EAGAIN)
    hosts: list[wire.Host] = []
    states = table.states(now_us(), space.timing.watchdog_fire_timeout)
    ids = [wanted.host_id] if wanted.host_id else range(1, len(states) + 1)
    for host_id in ids:
        if host_id > len(states):
            continue
        seen = table.seen(host_id)
        if not wanted.host_id and not seen.timestamp:
            continue
        state = _STATES[HostState(int(states[host_id - 1]))]
        hosts.append(
            wire.Host(host_id, seen.generation, seen.timestamp, seen.io_timeout, int(state))
        )
    await call.reply(0, len(hosts), b"".join(wire.pack_host(host) for host in hosts))


async def set_config(daemon: Daemon, call: Call) -> None:
    """SET_CONFIG: whether a lockspace counts as used without leases, or by orphans."""
    space = daemon.spaces.joined(call.lockspace().name)
    daemon.spaces.set_config(space, call.header.data)
    daemon.journal.space_changed(space)
    await call.reply(0, call.header.data2)


def _named_space(daemon: Daemon, call: Call) -> Space:
    name = call.lockspace().name
    if not name:
        raise Refusal(errno.EINVAL)
    return daemon.spaces.joined(name)


async def reg_event(daemon: Daemon, call: Call) -> None:
    """REG_EVENT: the connection becomes one on which events are sent."""
    space = _named_space(daemon, call)
    assert space.listeners is not None
    if call.connection.client is not None:
        raise Refusal(errno.EINVAL)
    space.listeners.make_room()
    await call.reply(0, call.header.data2)
    events.take_over(call.connection, space)


async def end_event(daemon: Daemon, call: Call) -> None:
    """END_EVENT: close the event connections whose clients are done."""
    space = _named_space(daemon, call)
    assert space.listeners is not None
    space.listeners.tidy()
    await call.reply(0, call.header.data2)


async def set_event(daemon: Daemon, call: Call) -> None:
    """SET_EVENT: tell a host, or all, something with the next renewal (13.4)."""
    event = wire.parse_host_event(call.payload[wire.LOCKSPACE_BYTES :])
    if not 1 <= event.host_id <= _HOST_ID_MAX:
        raise Refusal(errno.EINVAL)
    space = _named_space(daemon, call)
    outbox = space.outbox
    assert outbox is not None
    assert space.membership is not None
    flags = wire.EventFlag(call.header.flags & 0x1F)
    table = space.membership.member.table
    if event.host_id > len(table.timestamp):
        raise Refusal(errno.EINVAL)
    generation = event.generation
    if flags & wire.EventFlag.CUR_GENERATION and not generation:
        generation = table.seen(event.host_id).generation
    if flags & wire.EventFlag.CLEAR_EVENT:
        outbox.set_event(0, HostEvent())
    elif flags & wire.EventFlag.CLEAR_HOSTID:
        outbox.unmark(event.host_id)
    else:
        host_id = 0 if flags & wire.EventFlag.ALL_HOSTS else event.host_id
        told = HostEvent(generation, event.event, event.data)
        replace = bool(flags & wire.EventFlag.REPLACE_EVENT)
        outbox.set_event(host_id, told, replace=replace)
    await call.reply(0)


HANDLERS: Final[dict[Command, Handler]] = {
    Command.ADD_LOCKSPACE: add_lockspace,
    Command.INQ_LOCKSPACE: inq_lockspace,
    Command.REM_LOCKSPACE: rem_lockspace,
    Command.GET_LOCKSPACES: get_lockspaces,
    Command.GET_HOSTS: get_hosts,
    Command.SET_CONFIG: set_config,
    Command.REG_EVENT: reg_event,
    Command.END_EVENT: end_event,
    Command.SET_EVENT: set_event,
}
