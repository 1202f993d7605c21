"""The commands about a client itself and the daemon, and the table of all commands.

Source: spec/wire-protocol.md 5, 6, 10 and 15.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from paxoslease.daemon import indexes, lease_commands, space_commands, storage
from paxoslease.daemon.clients import Client
from paxoslease.daemon.connection import Call
from paxoslease.daemon.refusal import Refusal
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import Command

if TYPE_CHECKING:
    from paxoslease.daemon.server import Daemon, Handler


async def register(daemon: Daemon, call: Call) -> None:
    """REGISTER: no reply. A second one changes nothing: it would cost the client its leases."""
    connection = call.connection
    call.is_answered = True
    if connection.client is not None:
        return
    client = Client(connection.number, connection.peer_pid, connection)
    connection.client = client
    daemon.clients.add(client)
    daemon.registered(client, connection)


async def restrict(daemon: Daemon, call: Call) -> None:
    """RESTRICT: which signals a client must not get; or that nothing more is asked here."""
    flags = wire.RestrictFlag(call.header.flags & 0x7)
    if flags & wire.RestrictFlag.ALL:
        call.connection.is_muted = True
    client = call.connection.client
    if client is not None:
        client.restricted = flags
        client.update_wishes()
        daemon.journal.client_changed(client)
    await call.reply(0)


async def killpath(daemon: Daemon, call: Call) -> None:
    """KILLPATH: the program that tells a client to stop. Only for oneself."""
    client = call.connection.client
    pid = call.header.data2
    if pid != wire.SELF and daemon.clients.find(pid) is None:
        raise Refusal(errno.ESRCH)
    if client is None or pid not in (wire.SELF, client.pid) or client.is_busy:
        raise Refusal(errno.EBUSY)
    client.killpath, client.killpath_args = wire.parse_killpath(call.payload)
    if call.header.flags & wire.KillpathFlag.PID:
        client.killpath_pid = True
    client.update_wishes()
    daemon.journal.client_changed(client)
    await call.reply(0)


async def version(daemon: Daemon, call: Call) -> None:
    """VERSION: of the daemon and of the protocol; asked with a newer header, of the newer one."""
    minor = (
        wire.BATCH_VERSION if call.header.version == wire.BATCH_VERSION else wire.PROTOCOL_VERSION
    )
    header = wire.Header(
        Command.VERSION, data2=wire.RELEASE_NUMBER, version=minor, length=wire.HEADER_BYTES
    )
    await call.send(wire.pack_header(header))


async def shutdown(daemon: Daemon, call: Call) -> None:
    """SHUTDOWN: no reply; ignored while a lockspace exists, unless forced."""
    call.closes = True
    call.is_answered = True
    daemon.ask_shutdown(is_forced=bool(call.header.data))


async def shutdown_wait(daemon: Daemon, call: Call) -> None:
    """SHUTDOWN_WAIT: the reply comes when all is done; all its fields are zero then."""
    if not daemon.ask_shutdown(is_forced=bool(call.header.data)):
        raise Refusal(errno.EBUSY)
    call.closes = True
    daemon.farewell_begins()
    try:
        await daemon.cleared.wait()
        await call.send(wire.pack_header(wire.Header(0)))
    finally:
        daemon.farewell_ends()


HANDLERS: Final[dict[Command, Handler]] = {
    **lease_commands.HANDLERS,
    **space_commands.HANDLERS,
    **storage.HANDLERS,
    **indexes.HANDLERS,
    Command.REGISTER: register,
    Command.RESTRICT: restrict,
    Command.KILLPATH: killpath,
    Command.VERSION: version,
    Command.SHUTDOWN: shutdown,
    Command.SHUTDOWN_WAIT: shutdown_wait,
}
