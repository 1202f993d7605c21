"""libvirt's RPC messages and the program that virtlockd speaks in them.

Source: spec/lock-drivers.md 8 (framing), 9 (procedures), 10.1 (errors). A message is

     0        4                          28
     +--------+--------------------------+---------------------------+
     | length | header, 6 words          | payload (procedure)       |
     +--------+--------------------------+---------------------------+

where the length counts itself. Pack and parse only: what a message does is decided elsewhere.
Parsing takes hostile bytes and raises XdrError; numbers that have no name stay plain numbers.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from paxoslease.wire.xdr import (
    WORD_SIZE,
    Unpacker,
    XdrError,
    pack_optional_string,
    pack_signed,
    pack_string,
    pack_word,
)

PROGRAM: Final = 0x0EA7BEEF
KEEPALIVE_PROGRAM: Final = 0x6B656570
VERSION: Final = 1  # of both programs

HEADER_SIZE: Final = 28  # the length word included
MESSAGE_SIZE_MAX: Final = 33554436
STRING_SIZE_MAX: Final = 65536
ERROR_STRING_SIZE_MAX: Final = 4194304
DESCRIPTORS_MAX: Final = 32
UUID_SIZE: Final = 16

# No procedure looks at more than this of a message: header, descriptor count, two strings, flags.
USED_SIZE_MAX: Final = HEADER_SIZE + WORD_SIZE + 2 * (WORD_SIZE + STRING_SIZE_MAX) + WORD_SIZE

_HEADER = struct.Struct(">IiiiIII")
assert _HEADER.size == HEADER_SIZE


class MessageType(IntEnum):
    """What a message is: spec/lock-drivers.md 8.1."""

    CALL = 0
    REPLY = 1
    MESSAGE = 2
    STREAM = 3
    CALL_WITH_FDS = 4
    REPLY_WITH_FDS = 5
    STREAM_HOLE = 6


class Status(IntEnum):
    """How a call went."""

    OK = 0
    ERROR = 1
    CONTINUE = 2


class Procedure(IntEnum):
    """The procedures of virtlockd's program: spec/lock-drivers.md 9."""

    REGISTER = 1
    RESTRICT = 2
    NEW = 3
    CREATE_RESOURCE = 4
    DELETE_RESOURCE = 5
    ACQUIRE_RESOURCE = 6
    RELEASE_RESOURCE = 7
    CREATE_LOCKSPACE = 8


class Keepalive(IntEnum):
    """The procedures of the keepalive program: spec/lock-drivers.md 8.4."""

    PING = 1
    PONG = 2


class AcquireFlag(IntFlag):
    """Flags of ACQUIRE_RESOURCE; the other procedures have none."""

    SHARED = 1
    AUTOCREATE = 2


class ErrorCode(IntEnum):
    """The codes that virtlockd's errors carry: spec/lock-drivers.md 10.1."""

    INTERNAL_ERROR = 1
    INVALID_ARG = 8
    OPERATION_DENIED = 29
    SYSTEM_ERROR = 38
    RPC = 39
    OPERATION_INVALID = 55
    RESOURCE_BUSY = 87


class ErrorDomain(IntEnum):
    """The part of libvirt that an error comes from."""

    NONE = 0
    RPC = 7
    LOCKSPACE = 51


class Header(NamedTuple):
    """The header of a message without its length; `kind` is a MessageType.

    Program, version and procedure are signed, as virtlockd shows them.
    """

    program: int
    version: int
    procedure: int
    kind: int
    serial: int
    status: int


def parse_length(data: bytes) -> int:
    """Return the length that the first four bytes of a message announce, the header included.

    Raises XdrError for lengths that no message can have. A length below HEADER_SIZE is returned:
    virtlockd waits for those bytes before it hangs up.
    """
    length = Unpacker(data).word()
    if not WORD_SIZE < length <= MESSAGE_SIZE_MAX:
        raise XdrError(0, f"a message of {length} bytes")
    return length


def parse_header(data: bytes) -> Header:
    """Parse the header of a message, which begins with its length."""
    if len(data) < HEADER_SIZE:
        raise XdrError(len(data), f"a message of {len(data)} bytes is shorter than its header")
    return Header(*_HEADER.unpack_from(data)[1:])


def parse_descriptor_count(message: bytes) -> int:
    """Return how many descriptors follow a CALL_WITH_FDS; the word behind the header says it."""
    count = Unpacker(message, HEADER_SIZE).word()
    if count > DESCRIPTORS_MAX:
        raise XdrError(HEADER_SIZE, f"{count} descriptors exceed {DESCRIPTORS_MAX}")
    return count


def pack_message(header: Header, payload: bytes = b"") -> bytes:
    """Pack a message."""
    return _HEADER.pack(HEADER_SIZE + len(payload), *header) + payload


# -- calls -----------------------------------------------------------------------------------


class Register(NamedTuple):
    """Name the owner that this connection speaks for. `owner_id` is the guest's running id."""

    uuid: bytes
    name: bytes
    owner_id: int
    pid: int
    flags: int = 0

    @property
    def procedure(self) -> Procedure:
        """Return the number of the procedure."""
        return Procedure.REGISTER

    def pack(self) -> bytes:
        """Pack the arguments."""
        assert len(self.uuid) == UUID_SIZE
        numbers = struct.pack(">III", self.owner_id, self.pid, self.flags)
        return self.uuid + pack_string(self.name) + numbers


class Restrict(NamedTuple):
    """Forbid everything on this connection from now on."""

    flags: int = 0

    @property
    def procedure(self) -> Procedure:
        """Return the number of the procedure."""
        return Procedure.RESTRICT

    def pack(self) -> bytes:
        """Pack the arguments."""
        return pack_word(self.flags)


class New(NamedTuple):
    """Make a lockspace that must not exist."""

    path: bytes
    flags: int = 0

    @property
    def procedure(self) -> Procedure:
        """Return the number of the procedure."""
        return Procedure.NEW

    def pack(self) -> bytes:
        """Pack the arguments."""
        return pack_string(self.path) + pack_word(self.flags)


class ResourceCall(NamedTuple):
    """Create, delete, acquire or release a resource: four procedures with the same arguments.

    `path` is the lockspace, empty for the default one. Only ACQUIRE_RESOURCE has flags, those of
    AcquireFlag.
    """

    procedure: Procedure
    path: bytes
    name: bytes
    flags: int = 0

    def pack(self) -> bytes:
        """Pack the arguments."""
        return pack_string(self.path) + pack_string(self.name) + pack_word(self.flags)


class CreateLockspace(NamedTuple):
    """Make a lockspace unless it is there."""

    path: bytes

    @property
    def procedure(self) -> Procedure:
        """Return the number of the procedure."""
        return Procedure.CREATE_LOCKSPACE

    def pack(self) -> bytes:
        """Pack the arguments."""
        return pack_string(self.path)


Call = Register | Restrict | New | ResourceCall | CreateLockspace


def parse_call(procedure: Procedure, data: bytes, offset: int = HEADER_SIZE) -> Call:
    """Parse a procedure's arguments, which begin at `offset`; surplus bytes are ignored."""
    unpacker = Unpacker(data, offset)
    match procedure:
        case Procedure.REGISTER:
            uuid = unpacker.opaque(UUID_SIZE)
            name = unpacker.string(STRING_SIZE_MAX)
            return Register(uuid, name, unpacker.word(), unpacker.word(), unpacker.word())
        case Procedure.RESTRICT:
            return Restrict(unpacker.word())
        case Procedure.NEW:
            return New(unpacker.string(STRING_SIZE_MAX), unpacker.word())
        case Procedure.CREATE_LOCKSPACE:
            return CreateLockspace(unpacker.string(STRING_SIZE_MAX))
        case _:
            path, name = unpacker.string(STRING_SIZE_MAX), unpacker.string(STRING_SIZE_MAX)
            return ResourceCall(procedure, path, name, unpacker.word())


def pack_call(call: Call, serial: int) -> bytes:
    """Pack a call as a whole message."""
    header = Header(PROGRAM, VERSION, call.procedure, MessageType.CALL, serial, Status.OK)
    return pack_message(header, call.pack())


def pack_keepalive(procedure: Keepalive) -> bytes:
    """Pack a ping or a pong; its serial number is always 0."""
    kind = MessageType.MESSAGE
    return pack_message(Header(KEEPALIVE_PROGRAM, VERSION, procedure, kind, 0, Status.OK))


# -- errors ----------------------------------------------------------------------------------


class Failure(NamedTuple):
    """An error as it travels: spec/lock-drivers.md 10.1.

    `str1` is the pattern of the message and `str2` what was put into it; `int1` is the errno of a
    system error.
    """

    code: int
    domain: int
    message: bytes | None
    str1: bytes | None
    str2: bytes | None
    int1: int = -1
    int2: int = -1
    level: int = 2
    str3: bytes | None = None


def pack_failure(failure: Failure) -> bytes:
    """Pack an error, without a guest and without a network."""
    return b"".join(
        (
            pack_signed(failure.code),
            pack_signed(failure.domain),
            pack_optional_string(failure.message),
            pack_signed(failure.level),
            pack_word(0),
            pack_optional_string(failure.str1),
            pack_optional_string(failure.str2),
            pack_optional_string(failure.str3),
            pack_signed(failure.int1),
            pack_signed(failure.int2),
            pack_word(0),
        )
    )


def parse_failure(data: bytes, offset: int = HEADER_SIZE) -> Failure:
    """Parse an error; the guest and the network that it may name are dropped."""
    unpacker = Unpacker(data, offset)
    code, domain = unpacker.signed(), unpacker.signed()
    message = unpacker.optional_string(ERROR_STRING_SIZE_MAX)
    level = unpacker.signed()
    if unpacker.word():
        unpacker.string(ERROR_STRING_SIZE_MAX)
        unpacker.opaque(UUID_SIZE)
        unpacker.signed()
    str1 = unpacker.optional_string(ERROR_STRING_SIZE_MAX)
    str2 = unpacker.optional_string(ERROR_STRING_SIZE_MAX)
    str3 = unpacker.optional_string(ERROR_STRING_SIZE_MAX)
    int1, int2 = unpacker.signed(), unpacker.signed()
    if unpacker.word():
        unpacker.string(ERROR_STRING_SIZE_MAX)
        unpacker.opaque(UUID_SIZE)
    return Failure(code, domain, message, str1, str2, int1, int2, level, str3)


def pack_reply(call: Header, failure: Failure | None = None) -> bytes:
    """Pack the answer to a call: virtlockd's procedures return nothing, or an error."""
    status, payload = (Status.OK, b"") if failure is None else (Status.ERROR, pack_failure(failure))
    return pack_message(call._replace(kind=MessageType.REPLY, status=status), payload)
