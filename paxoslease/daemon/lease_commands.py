"""The commands about leases: acquire, release, inquire, convert, examine, value blocks.

Source: spec/wire-protocol.md 6.2 and 9; spec/errors.md 2.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from paxoslease.daemon.clients import Client
from paxoslease.daemon.connection import Call
from paxoslease.daemon.entries import Entry, Phase, Token
from paxoslease.daemon.refusal import Refusal, number_of
from paxoslease.daemon.registry import AcquireFailed
from paxoslease.daemon.spaces import Stage
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import Command

if TYPE_CHECKING:
    from paxoslease.daemon.server import Daemon, Handler


_UNKNOWN: Final = -202


class Target:
    """The registered client that a command is for; it has one command at a time (6.2)."""

    def __init__(self, daemon: Daemon, call: Call) -> None:
        pid = call.header.data2
        if pid == wire.SELF:
            client = call.connection.client
            if client is None:
                raise Refusal(errno.EBUSY)
        else:
            client = daemon.clients.find(pid)
            if client is None:
                raise Refusal(errno.ESRCH)
        is_dying = any(space.is_dead for space in client.spaces())
        if (is_dying and call.command == Command.ACQUIRE) or client.is_busy:
            raise Refusal(errno.EBUSY)
        self.client = client
        self._daemon = daemon
        self._command = call.header.command

    def __enter__(self) -> Client:
        self.client.is_busy = True
        self.client.command_active = self._command
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.is_busy = False
        self.client.command_active = 0
        self.client.command_last = self._command
        if self.client.has_ended:
            self._daemon.forget_client(self.client)


async def acquire(daemon: Daemon, call: Call) -> None:
    """ACQUIRE: all of the resources, or none."""
    count = call.header.data
    with Target(daemon, call) as client:
        if count > wire.RESOURCES_MAX and call.header.version < wire.BATCH_VERSION:
            raise Refusal(errno.E2BIG)
        resources, rest = wire.parse_resources(call.payload, count)
        client.name = wire.parse_options(rest[: wire.OPTIONS_BYTES])
        flags = wire.AcquireFlag(call.header.flags & 0xF)
        try:
            await daemon.registry.acquire_all(
                client, resources, flags, call.origin, is_again=call.is_again
            )
        except AcquireFailed as failed:
            # The number of the resource that failed is told to those who ask in our version.
            which = failed.index + 1 if call.header.version == wire.BATCH_VERSION else 0
            result = number_of(failed.reason)
        else:
            result = which = 0
            daemon.journal.client_changed(client)
    await call.reply(result, which)


async def release(daemon: Daemon, call: Call) -> None:
    """RELEASE: named leases, all of them, one under a new name, or orphans.

    Begun before a restart and run again, what is not held any more was released by then. Whether
    such a resource has got its new name is not known.
    """
    flags = call.header.flags
    registry = daemon.registry
    with Target(daemon, call) as client:
        if flags & wire.ReleaseFlag.ALL:
            result = await _release_tokens(daemon, list(client.tokens))
        elif flags & wire.ReleaseFlag.ORPHAN:
            (wanted,) = _bare_resources(call, 1)
            result = registry.release_orphans(wanted.lockspace, wanted.name)
        elif flags & wire.ReleaseFlag.RENAME:
            first, second = _bare_resources(call, 2)
            token = _token(client, first)
            if token is None:
                raise Refusal(_UNKNOWN if call.is_again else errno.EPERM)
            result = await _release_tokens(daemon, [token], second.name)
        else:
            if call.header.data > wire.RELEASES_MAX:
                raise Refusal(errno.E2BIG)
            tokens: list[Token] = []
            result = 0
            for wanted in _bare_resources(call, call.header.data):
                token = _token(client, wanted, tokens)
                if token is None:
                    result = 0 if call.is_again else -errno.EPERM
                else:
                    tokens.append(token)
            result = await _release_tokens(daemon, tokens) or result
    await call.reply(result)


def _bare_resources(call: Call, count: int) -> list[wire.Resource]:
    """Return the first so many resources. Raises Refusal (-EINVAL): there are fewer."""
    size = wire.RESOURCE_BYTES
    if len(call.payload) < size * count:
        raise Refusal(errno.EINVAL)
    return [
        wire.parse_resource(call.payload[at : at + size]) for at in range(0, size * count, size)
    ]


def _token(client: Client, wanted: wire.Resource, taken: list[Token] | None = None) -> Token | None:
    """Return a client's hold on a resource, another one than those `taken`."""
    for token in client.tokens:
        if token.entry.key == (wanted.lockspace, wanted.name) and token not in (taken or []):
            return token
    return None


async def _release_tokens(
    daemon: Daemon, tokens: list[Token], new_name: bytes | None = None
) -> int:
    """Release all of these; returns the last error."""
    result = 0
    for number in await daemon.registry.release_all(tokens, new_name):
        result = number or result
    return result


async def inquire(daemon: Daemon, call: Call) -> None:
    """INQUIRE: the leases of a client, as text (9.3)."""
    with Target(daemon, call) as client:
        count = len(client.tokens)
        text = b" ".join(_as_state(token) for token in client.in_places())
    await call.reply(0, count, text + b"\0" if count else b"")


def _as_state(token: Token) -> bytes:
    entry = token.entry
    places = b"".join(
        b":%s:%d" % (_escaped(disk.path), disk.offset) for disk in entry.resource.disks
    )
    version = b"SH" if entry.shared else b"%d" % entry.lver
    return b"%s:%s%s:%s" % (entry.resource.lockspace, entry.resource.name, places, version)


def _escaped(path: bytes) -> bytes:
    """Return a path with a backslash before every colon and blank that has none."""
    out = bytearray()
    is_taken = False
    for byte in path:
        if byte in b": " and not is_taken:
            out += b"\\"
        is_taken = byte == 0x5C and not is_taken
        out.append(byte)
    return bytes(out)


async def convert(daemon: Daemon, call: Call) -> None:
    """CONVERT: a held lease into the other mode."""
    wanted = call.resource()
    with Target(daemon, call) as client:
        token = _token(client, wanted)
        if token is None:
            raise Refusal(errno.ENOENT)
        if call.is_again:
            await daemon.registry.until_converted(token.entry)
        if not call.is_again or token.entry.shared != wanted.is_shared:
            await daemon.registry.convert(token, shared=wanted.is_shared)
    await call.reply(0)


async def examine_resource(daemon: Daemon, call: Call) -> None:
    """EXAMINE_RESOURCE: look whether somebody asks for a held lease."""
    wanted = call.resource()
    entry = daemon.registry.find(wanted.lockspace, wanted.name)
    if entry is not None:
        daemon.attendant.examine(entry)
    await call.reply(0)


async def examine_lockspace(daemon: Daemon, call: Call) -> None:
    """EXAMINE_LOCKSPACE: the same for all of a lockspace."""
    space = daemon.spaces.find(call.lockspace().name, Stage.JOINED)
    if space is not None:
        daemon.attendant.examine_space(space)
    await call.reply(0)


async def set_lvb(daemon: Daemon, call: Call) -> None:
    """SET_LVB: written when the lease is released or converted to shared."""
    size = call.header.length - wire.HEADER_BYTES - wire.RESOURCE_BYTES
    if size > wire.LVB_MAX:
        call.connection.is_muted = True  # the bytes behind are no requests
        if call.connection.client is not None:
            daemon.journal.client_changed(call.connection.client)
        raise Refusal(errno.E2BIG)
    lvb, entry = _lvb(daemon, call)
    if size <= 0:
        raise Refusal(errno.EINVAL)
    if size > len(lvb):
        raise Refusal(errno.E2BIG)
    lvb[:size] = call.payload[wire.RESOURCE_BYTES :]
    entry.is_lvb_dirty = True
    daemon.journal.entry_changed(entry)
    await call.reply(0)


async def get_lvb(daemon: Daemon, call: Call) -> None:
    """GET_LVB: as it was read with the lease, or set since."""
    lvb, _ = _lvb(daemon, call)
    size = min(call.header.data2 or len(lvb), len(lvb))
    await call.reply(0, 0, bytes(lvb[:size]))


def _lvb(daemon: Daemon, call: Call) -> tuple[bytearray, Entry]:
    """Return the value block of a held resource, whoever holds it (9.7). Raises Refusal."""
    wanted = call.resource()
    entry = daemon.registry.find(wanted.lockspace, wanted.name)
    if entry is None or entry.phase is not Phase.HELD:
        raise Refusal(errno.ENOENT)
    if entry.lvb is None:
        raise Refusal(errno.EINVAL)
    return entry.lvb, entry


HANDLERS: Final[dict[Command, Handler]] = {
    Command.ACQUIRE: acquire,
    Command.RELEASE: release,
    Command.INQUIRE: inquire,
    Command.CONVERT: convert,
    Command.EXAMINE_RESOURCE: examine_resource,
    Command.EXAMINE_LOCKSPACE: examine_lockspace,
    Command.SET_LVB: set_lvb,
    Command.GET_LVB: get_lvb,
}
