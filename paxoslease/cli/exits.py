"""Exit codes of the command, and how an error becomes one.

They are part of the interface: scripts depend on them.
"""

from __future__ import annotations

import errno
from enum import IntEnum

from paxoslease.channel import DaemonBroken, DaemonError, DaemonSilent, DaemonUnreachable
from paxoslease.drivers.errors import (
    ActionUnsupported,
    DriverUnknown,
    LeaseRequired,
    ResourceBusy,
    ResourceUnusable,
    StateInvalid,
    StateOutdated,
)
from paxoslease.errors import (
    Cancelled,
    ConfigError,
    DeviceInUse,
    HostIdBusy,
    HostIdInvalid,
    LeaseBusy,
    LeaseHeld,
    LeaseLost,
    LeaseShared,
    LeaseUnsupported,
    LockspaceFailed,
    LostRace,
    PaxosleaseError,
    StorageError,
    WaitTimeout,
    WrongVersion,
)


class Exit(IntEnum):
    """What the command's exit code says."""

    OK = 0
    FAILED = 1  # anything that has no code of its own; `check` found something wrong
    USAGE = 2  # the command line, or a value in it
    STORAGE = 3  # a device or file, or what is on it
    BUSY = 4  # somebody else holds the lease or the host id
    LOST = 5  # a lease was lost while it was held; the command was stopped
    INTERRUPTED = 130  # SIGINT; other signals accordingly, see interrupts.py


EXIT_HELP = """exit codes:
  0    done
  1    failed; `check`: something is wrong on the disk
  2    the command line cannot be understood or a value is out of range
  3    a device, a file, or what is on it cannot be used
  4    another host holds the lease or the host id
  5    a lease was lost while it was held; what it guarded was stopped
  130  interrupted (SIGINT); 143 by SIGTERM, 129 by SIGHUP"""


# What the daemon says when somebody else has the lease or the host id (spec/errors.md).
_HELD = frozenset((-errno.EAGAIN, -errno.EEXIST, -212, -213, -243, -244, -245, -246, -247, -262))
# When the place cannot be used, or what is on it; and by which command a path is meant.
_UNUSABLE = {
    *(-errno.EIO, -errno.ENODEV, -errno.EMSGSIZE),
    *(-202, -210, -211, -242, -270, -271),
    *range(-230, -213),
}
_NAMES_A_PATH = ("acquire", "request")


def exit_of(error: PaxosleaseError) -> Exit:
    """Return the exit code for an error that ends the command."""
    if isinstance(error, WaitTimeout):
        return exit_of(error.last)
    if isinstance(error, DaemonError):
        return _exit_of_daemon(error)
    if isinstance(error, LeaseHeld | LeaseShared | LostRace | LeaseBusy | HostIdBusy):
        return Exit.BUSY
    if isinstance(error, ResourceBusy | StateOutdated):
        return Exit.BUSY
    if isinstance(error, LeaseLost | LockspaceFailed):
        return Exit.LOST
    if isinstance(error, ConfigError | HostIdInvalid | LeaseUnsupported | WrongVersion):
        return Exit.USAGE
    if isinstance(error, DriverUnknown | LeaseRequired | ActionUnsupported | StateInvalid):
        return Exit.USAGE
    if isinstance(error, DeviceInUse | StorageError | ResourceUnusable):
        return Exit.STORAGE
    if isinstance(error, Cancelled):
        return Exit.INTERRUPTED
    return Exit.FAILED


def _exit_of_daemon(error: DaemonError) -> Exit:
    """Return the exit code for what the daemon refused: the same as without a daemon."""
    if isinstance(error, DaemonUnreachable | DaemonBroken | DaemonSilent):
        return Exit.FAILED
    if error.code in _HELD:
        return Exit.BUSY
    if error.code in (-errno.EINVAL, -231):
        return Exit.USAGE
    if error.code == -errno.ENOENT and error.command in _NAMES_A_PATH:
        return Exit.STORAGE
    return Exit.STORAGE if error.code in _UNUSABLE else Exit.FAILED
