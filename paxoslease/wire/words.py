"""The words of sanlock's protocol: its commands and their flags.

Source: spec/wire-protocol.md 5 and 7.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Command(IntEnum):
    """The commands of the protocol (spec/wire-protocol.md 5)."""

    REGISTER = 1
    ADD_LOCKSPACE = 2
    REM_LOCKSPACE = 3
    SHUTDOWN = 4
    STATUS = 5
    LOG_DUMP = 6
    ACQUIRE = 7
    RELEASE = 8
    INQUIRE = 9
    RESTRICT = 10
    REQUEST = 11
    ALIGN = 12
    EXAMINE_LOCKSPACE = 13
    EXAMINE_RESOURCE = 14
    HOST_STATUS = 15
    INQ_LOCKSPACE = 16
    KILLPATH = 17
    WRITE_LOCKSPACE = 18
    WRITE_RESOURCE = 19
    READ_LOCKSPACE = 20
    READ_RESOURCE = 21
    GET_LOCKSPACES = 22
    GET_HOSTS = 23
    READ_RESOURCE_OWNERS = 24
    SET_LVB = 25
    GET_LVB = 26
    CONVERT = 27
    VERSION = 28
    SHUTDOWN_WAIT = 29
    REG_EVENT = 30
    END_EVENT = 31
    SET_EVENT = 32
    SET_CONFIG = 33
    RENEWAL = 34
    FORMAT_RINDEX = 35
    UPDATE_RINDEX = 36
    LOOKUP_RINDEX = 37
    CREATE_RESOURCE = 38
    DELETE_RESOURCE = 39
    REBUILD_RINDEX = 40


# -- flags (spec/wire-protocol.md 7) -------------------------------------------------------------


class AddFlag(IntFlag):
    """Header flags of ADD_LOCKSPACE."""

    ASYNC = 0x1


class RemoveFlag(IntFlag):
    """Header flags of REM_LOCKSPACE."""

    ASYNC = 0x1
    UNUSED = 0x2


class InquireFlag(IntFlag):
    """Header flags of INQ_LOCKSPACE."""

    WAIT = 0x1


class WriteFlag(IntFlag):
    """Header flags of WRITE_RESOURCE."""

    CLEAR = 0x1


class AcquireFlag(IntFlag):
    """Header flags of ACQUIRE and, the last one, of CONVERT."""

    LVB = 0x1
    ORPHAN = 0x2
    ORPHAN_ONLY = 0x4
    OWNER_NOWAIT = 0x8


class ReleaseFlag(IntFlag):
    """Header flags of RELEASE."""

    ALL = 0x1
    RENAME = 0x2
    ORPHAN = 0x4


class RequestFlag(IntFlag):
    """Header flags of REQUEST."""

    NEXT_LVER = 0x1


class RestrictFlag(IntFlag):
    """Header flags of RESTRICT."""

    ALL = 0x1
    SIGKILL = 0x2
    SIGTERM = 0x4


class KillpathFlag(IntFlag):
    """Header flags of KILLPATH."""

    PID = 0x1


class EventFlag(IntFlag):
    """Header flags of SET_EVENT."""

    CUR_GENERATION = 0x1
    CLEAR_HOSTID = 0x2
    CLEAR_EVENT = 0x4
    REPLACE_EVENT = 0x8
    ALL_HOSTS = 0x10


class Config(IntEnum):
    """What SET_CONFIG can set: a value, not a mask."""

    USED = 1
    UNUSED = 2
    USED_BY_ORPHANS = 4
    UNUSED_BY_ORPHANS = 8


class RindexFlag(IntFlag):
    """Header flags of the resource index commands."""

    NO_LOCKSPACE = 0x1
    ADD = 0x10000
    REMOVE = 0x20000


class ResourceFlag(IntFlag):
    """The flags of a resource."""

    LVER = 0x1
    NUM_HOSTS = 0x2
    SHARED = 0x4
    PERSISTENT = 0x8


class LockspaceFlag(IntFlag):
    """What GET_LOCKSPACES tells of a lockspace."""

    ADD = 0x1
    REM = 0x2


class HostFlag(IntEnum):
    """The state of a host in GET_HOSTS."""

    UNKNOWN = 1
    FREE = 2
    LIVE = 3
    FAIL = 4
    DEAD = 5


class SizeFlag(IntFlag):
    """Sector and align size, among the flags of lockspaces, resources and indexes."""

    ALIGN_1M = 0x10
    ALIGN_2M = 0x20
    ALIGN_4M = 0x40
    ALIGN_8M = 0x80
    SECTOR_512 = 0x100
    SECTOR_4K = 0x200
