"""What one connection may do, and the answers that it gets: bytes in, bytes out, no socket.

Answering is an operation (see `work`), since it may have to wait for a file system.

Source: spec/lock-drivers.md 8.3 (odd input, order of the checks), 8.4 (keepalive), 9 (procedures).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from paxoslease.lockd import failures
from paxoslease.lockd.failures import LockRefused
from paxoslease.lockd.space import LockTable
from paxoslease.lockd.work import Operation
from paxoslease.wire.virtlock import (
    HEADER_SIZE,
    KEEPALIVE_PROGRAM,
    PROGRAM,
    VERSION,
    AcquireFlag,
    Call,
    CreateLockspace,
    Header,
    Keepalive,
    MessageType,
    New,
    Procedure,
    Register,
    ResourceCall,
    Restrict,
    Status,
    pack_keepalive,
    pack_reply,
    parse_call,
    parse_descriptor_count,
    parse_header,
)
from paxoslease.wire.xdr import WORD_SIZE, XdrError

_CALLS = (MessageType.CALL, MessageType.CALL_WITH_FDS)
_NAMES = {p: p.name.title().replace("_", "") for p in Procedure}
_KNOWN_FLAGS = {Procedure.ACQUIRE_RESOURCE: int(AcquireFlag.SHARED | AcquireFlag.AUTOCREATE)}


class Owner(NamedTuple):
    """Whom a connection speaks for. `owner_id` is never 0."""

    uuid: bytes
    name: bytes
    owner_id: int
    pid: int


class Session:
    """One connection's rights, and its way to the table of locks."""

    def __init__(
        self, table: LockTable, owner: Owner | None = None, *, is_restricted: bool = False
    ) -> None:
        self._table = table
        self.owner = owner
        self.is_restricted = is_restricted

    def answer(self, message: bytes, is_there: Callable[[], bool]) -> Operation[bytes]:
        """Serve a message; return what is to be sent, nothing for what gets no answer.

        is_there: tells whether the client still waits for it. Raises XdrError, before it waits for
        anything, when the message has no header, or should say how many descriptors follow it and
        does not: there is no answer then but to hang up.
        """
        header = parse_header(message)
        if header[:4] == (KEEPALIVE_PROGRAM, VERSION, Keepalive.PING, MessageType.MESSAGE):
            return pack_keepalive(Keepalive.PONG)
        if header.kind not in _CALLS:
            return b""
        arguments_at = HEADER_SIZE
        if header.kind == MessageType.CALL_WITH_FDS:
            parse_descriptor_count(message)
            arguments_at += WORD_SIZE
        try:
            yield from self._perform(_call(header, message, arguments_at), is_there)
        except LockRefused as refused:
            return pack_reply(header, refused.failure)
        return pack_reply(header)

    def _perform(self, call: Call, is_there: Callable[[], bool]) -> Operation[None]:
        if not isinstance(call, CreateLockspace):
            unknown = call.flags & ~_KNOWN_FLAGS.get(call.procedure, 0)
            if unknown:
                raise failures.unsupported_flags(unknown, _NAMES[call.procedure])
        if self.is_restricted:
            raise failures.restricted()
        match call:
            case Register():
                self._register(call)
            case CreateLockspace():
                yield from self._table.create_lockspace(call.path)
            case Restrict():
                self._registered()
                self.is_restricted = True
            case New():
                self._registered()
                yield from self._table.new_lockspace(call.path)
            case ResourceCall():
                yield from self._on_resource(call, self._registered().pid, is_there)

    def _register(self, call: Register) -> None:
        if not call.owner_id:
            raise failures.unregistered()
        self.owner = Owner(call.uuid, call.name, call.owner_id, call.pid)

    def _registered(self) -> Owner:
        if self.owner is None:
            raise failures.unregistered()
        return self.owner

    def _on_resource(
        self, call: ResourceCall, pid: int, is_there: Callable[[], bool]
    ) -> Operation[None]:
        where = call.path, call.name
        match call.procedure:
            case Procedure.CREATE_RESOURCE:
                return self._table.create_resource(*where)
            case Procedure.DELETE_RESOURCE:
                return self._table.delete_resource(*where)
            case Procedure.ACQUIRE_RESOURCE:
                return self._table.acquire(*where, pid, AcquireFlag(call.flags), is_there)
            case _:
                return self._table.release(*where, pid)


def _call(header: Header, message: bytes, arguments_at: int) -> Call:
    """Decode a call; the order of the checks is virtlockd's."""
    if (header.program, header.version) != (PROGRAM, VERSION):
        where = f"program {header.program} version {header.version}"
        raise failures.rpc_error(f"Cannot find {where}")
    if header.status != Status.OK:
        raise failures.rpc_error(f"Unexpected message status {header.status}")
    try:
        procedure = Procedure(header.procedure)
    except ValueError:
        raise failures.rpc_error(f"unknown procedure: {header.procedure}") from None
    try:
        return parse_call(procedure, message, arguments_at)
    except XdrError:
        raise failures.rpc_error("Unable to decode message payload") from None
