"""What the numbers mean that a lease daemon answers with.

Zero is success, and a few commands have positive results. Negative numbers down to -199 are negated
errno values; those from -201 on are sanlock's own. `meaning` says in a sentence what happened, for
people who never saw the number.

Source: spec/errors.md 1 and 2.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from paxoslease.wire.sanlock import Command

OWN_FIRST: Final = -201  # smaller numbers are sanlock's own, larger ones errno values

# number: (sanlock's name without SANLK_, what it means)
_OWN: Final = {
    -201: ("ERROR", "it was aborted, or another process of this host still holds the lease"),
    -202: ("AIO_TIMEOUT", "the storage did not answer within the I/O time-out"),
    -203: ("WD_ERROR", "the watchdog daemon cannot be reached, or refuses"),
    -210: ("DBLOCK_READ", "the ballot area of the lease cannot be read on most of its disks"),
    -211: ("DBLOCK_WRITE", "the ballot area of the lease cannot be written on most of its disks"),
    -212: ("DBLOCK_LVER", "another host acquired the lease in a later ballot"),
    -213: ("DBLOCK_MBAL", "another host acquired the lease in the same ballot"),
    -214: ("DBLOCK_CHECKSUM", "a host's block of the lease is damaged, or has another sector size"),
    -220: ("LEADER_READ", "the leader record cannot be read on most of the disks"),
    -221: ("LEADER_WRITE", "the leader record cannot be written on most of the disks"),
    -222: ("LEADER_DIFF", "the disks of the lease disagree, or most of them are missing"),
    -223: ("LEADER_MAGIC", "there is no lease at that place"),
    -224: ("LEADER_VERSION", "the format of the lease has a version that is not known"),
    -225: ("LEADER_SECTORSIZE", "the sector size of the lease is neither 512 nor 4096"),
    -226: ("LEADER_LOCKSPACE", "the lease belongs to another lockspace"),
    -227: ("LEADER_RESOURCE", "the lease belongs to another resource"),
    -228: ("LEADER_NUMHOSTS", "the lease was made for fewer hosts than this host's id"),
    -229: ("LEADER_CHECKSUM", "the record of the lease is damaged"),
    -230: (
        "ADDLS_SIZES",
        "the lockspace states sector and align sizes that do not belong together",
    ),
    -231: ("ADDLS_INVALID_HOSTID", "the host id is larger than the lockspace allows"),
    -240: ("ACQUIRE_LVER", "the lease has another version than the one asked for"),
    -241: ("ACQUIRE_LOCKSPACE", "the lockspace went away meanwhile"),
    -242: ("ACQUIRE_IDDISK", "the lockspace cannot be read to see whether the owner is alive"),
    -243: ("ACQUIRE_IDLIVE", "another host, which is alive, holds the lease"),
    -244: ("ACQUIRE_OWNED", "another host won the lease"),
    -245: ("ACQUIRE_OTHER", "another host won the lease, and its win was completed for it"),
    -246: ("ACQUIRE_SHRETRY", "other hosts were sharing the lease at the same moment; try again"),
    -247: ("ACQUIRE_OWNED_RETRY", "another host holds the lease and is not known to be dead yet"),
    -250: ("RELEASE_LVER", "the lease on the disk has another version than the one released"),
    -251: ("RELEASE_OWNER", "the lease on the disk is free already, or another host's"),
    -260: ("RENEW_OWNER", "another host took over the host id"),
    -261: ("RENEW_DIFF", "somebody changed this host's record"),
    -262: ("HOSTID_BUSY", "another host uses the host id"),
    -270: ("REQUEST_MAGIC", "the request record of the lease is damaged"),
    -271: ("REQUEST_VERSION", "the request record of the lease has a version that is not known"),
    -272: ("REQUEST_OLD", "the lease has reached the version asked for"),
    -273: ("REQUEST_LVER", "a request for a later version is pending"),
    -274: ("RINDEX_MAGIC", "there is no resource index at that place"),
    -275: ("RINDEX_VERSION", "the format of the index has a version that is not known"),
    -276: ("RINDEX_LOCKSPACE", "the index belongs to another lockspace"),
    -277: ("RINDEX_OFFSET", "the offset is no place of the index"),
    -278: ("RINDEX_DIFF", "name and offset do not belong together in the index"),
}

_PLACE: Final = {
    -19: "the path cannot be opened",
    -22: "a name, path or host id is missing or not possible, or the offset is not aligned",
    -90: "the offset is beyond the end of the file or device",
}
_TARGET: Final = {
    -3: "no registered process has that pid",
    -16: "the process is not registered, is being stopped, or another of its commands runs",
}
_LEASE: Final = {
    -2: "the path does not exist",
    -7: "too many resources in one request",
    -11: "other hosts hold the lease shared, or this host is still releasing it",
    -17: "a process of this host holds the lease already",
    -25: "the process ended meanwhile",
    -28: "the lockspace is not joined, or is failing",
    -34: "a resource has one to four disks",
    -117: "an orphan of a process that ended holds the lease",
}
_JOINED: Final = {-2: "the lockspace is not joined"}
# What an errno value means for some commands, where the system's text would mislead.
_BY_COMMAND: Final[dict[Command, dict[int, str]]] = {
    Command.ADD_LOCKSPACE: {
        **_PLACE,
        -11: "the lockspace is just being left",
        -22: "a name, path or host id is not possible, the offset is not aligned, or the lockspace "
        "is joined already by another host id or at another place",
        -17: "the lockspace is joined already",
        -115: "the lockspace is being joined already",
    },
    Command.INQ_LOCKSPACE: {**_JOINED, -115: "the lockspace is being joined or left"},
    Command.REM_LOCKSPACE: {
        **_JOINED,
        -16: "the lockspace is in use",
        -115: "the lockspace is being left already",
    },
    Command.GET_HOSTS: {**_JOINED, -11: "the other hosts were not looked at yet; try again"},
    Command.SET_CONFIG: {**_JOINED, -28: "the lockspace is failing or being left"},
    Command.SET_EVENT: {**_JOINED, -16: "another event is still being advertised"},
    Command.REG_EVENT: {**_JOINED, -50: "too many programs wait for events of this lockspace"},
    Command.END_EVENT: _JOINED,
    Command.HOST_STATUS: {-28: "the lockspace is not known"},
    Command.RENEWAL: {-28: "the lockspace is not known"},
    Command.ACQUIRE: {**_PLACE, **_LEASE, **_TARGET},
    Command.CONVERT: {
        **_LEASE,
        **_TARGET,
        -2: "the process does not hold the lease",
        -114: "the lease is in that mode already",
    },
    Command.RELEASE: {**_TARGET, -1: "the process does not hold the lease"},
    Command.INQUIRE: _TARGET,
    Command.KILLPATH: _TARGET,
    Command.REQUEST: {**_PLACE, **_LEASE},
    Command.SET_LVB: {
        -2: "no process of this host holds the lease",
        -7: "the value is longer than a sector",
        -22: "the lease is held without a value block",
    },
    Command.GET_LVB: {
        -2: "no process of this host holds the lease",
        -22: "the lease is held without a value block",
    },
    Command.ALIGN: _PLACE,
    Command.READ_LOCKSPACE: _PLACE,
    Command.WRITE_LOCKSPACE: {**_PLACE, -1: "sector and align size do not belong together"},
    Command.READ_RESOURCE: _PLACE,
    Command.READ_RESOURCE_OWNERS: _PLACE,
    Command.WRITE_RESOURCE: {**_PLACE, -1: "sector and align size do not belong together"},
    Command.LOOKUP_RINDEX: {-2: "the lockspace is not joined, or the index has no such resource"},
    Command.CREATE_RESOURCE: {-2: "the lockspace is not joined, or the index is full"},
    Command.DELETE_RESOURCE: {-2: "the lockspace is not joined, or the index has no such resource"},
    Command.SHUTDOWN_WAIT: {-16: "lockspaces are joined"},
}


def name_of(number: int) -> str:
    """Return the symbol for a number: SANLK_..., an errno name, or the number itself."""
    if number in _OWN:
        return f"SANLK_{_OWN[number][0]}"
    return errno.errorcode.get(-number, str(number))


def meaning(number: int, command: int | None = None) -> str:
    """Say what a negative result means, of a command where that matters, without a full stop."""
    if number in _OWN:
        return _OWN[number][1]
    special = _BY_COMMAND.get(command, {}).get(number)  # type: ignore[call-overload]
    if special is not None:
        return str(special)
    if OWN_FIRST < number < 0:
        return os.strerror(-number)
    return f"number {number}, which has no known meaning"


def all_numbers() -> tuple[int, ...]:
    """Return sanlock's own numbers, largest first."""
    return tuple(_OWN)
