"""What can go wrong with a lock, as the error and as the words that virtlockd's clients know.

Source: spec/lock-drivers.md 10.2. Texts are bytes because names from clients are.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from paxoslease.errors import PaxosleaseError
from paxoslease.wire.virtlock import ErrorCode, ErrorDomain, Failure

_PATTERNS = {
    ErrorCode.INTERNAL_ERROR: b"internal error: %s",
    ErrorCode.OPERATION_DENIED: b"operation forbidden: %s",
    ErrorCode.SYSTEM_ERROR: b"%s",
    ErrorCode.RPC: b"%s",
    ErrorCode.OPERATION_INVALID: b"Requested operation is not valid: %s",
    ErrorCode.RESOURCE_BUSY: b"resource busy: %s",
}
_NUMBERS: dict[int, int] = {
    ErrorCode.INVALID_ARG: -errno.EINVAL,
    ErrorCode.OPERATION_DENIED: -errno.EPERM,
    ErrorCode.RPC: -errno.EPROTO,
    ErrorCode.OPERATION_INVALID: -errno.EINVAL,
    ErrorCode.RESOURCE_BUSY: -errno.EBUSY,
}


@dataclass(eq=False)
class LockRefused(PaxosleaseError):
    """A lock daemon refused a call: raised where it is refused, and again at the client."""

    failure: Failure
    hint = "the lock daemon's answer; libvirt shows the same words"

    def __str__(self) -> str:
        return (self.failure.message or b"refused").decode("utf-8", "backslashreplace")

    @property
    def code(self) -> int:
        """Return the negated errno that says most about it."""
        if self.failure.code == ErrorCode.SYSTEM_ERROR and self.failure.int1 > 0:
            return -self.failure.int1
        return _NUMBERS.get(self.failure.code, self.number)

    @property
    def is_busy(self) -> bool:
        """Tell whether somebody holds the lock, or on release: nobody does."""
        return self.failure.code == ErrorCode.RESOURCE_BUSY


def _refused(code: ErrorCode, domain: ErrorDomain, detail: bytes, int1: int = -1) -> LockRefused:
    pattern = _PATTERNS[code]
    message = pattern.replace(b"%s", detail)
    return LockRefused(Failure(code, domain, message, pattern, detail, int1))


def _system(domain: ErrorDomain, detail: bytes, error: OSError) -> LockRefused:
    number = error.errno or errno.EIO
    text = detail + b": " + os.strerror(number).encode()
    return _refused(ErrorCode.SYSTEM_ERROR, domain, text, number)


# -- of the lock table -----------------------------------------------------------------------


def busy(name: bytes) -> LockRefused:
    """Somebody holds the resource."""
    detail = b"Lockspace resource '%s' is locked" % name
    return _refused(ErrorCode.RESOURCE_BUSY, ErrorDomain.LOCKSPACE, detail)


def not_locked(name: bytes) -> LockRefused:
    """Nobody holds the resource that is to be released."""
    detail = b"Lockspace resource '%s' is not locked" % name
    return _refused(ErrorCode.RESOURCE_BUSY, ErrorDomain.LOCKSPACE, detail)


def not_owner(pid: int) -> LockRefused:
    """Others hold the resource that is to be released; pids are unsigned but shown signed."""
    detail = b"owner %d does not hold the resource lock" % (pid - ((pid >> 31) << 32))
    return _refused(ErrorCode.INTERNAL_ERROR, ErrorDomain.LOCKSPACE, detail)


def cannot_open(path: bytes, error: OSError, *, creating: bool) -> LockRefused:
    """The file of a resource cannot be opened."""
    verb = b"open/create" if creating else b"open"
    detail = b"Unable to %s resource %s" % (verb, path)
    return _system(ErrorDomain.LOCKSPACE, detail, error)


def cannot_lock(path: bytes, error: OSError) -> LockRefused:
    """The kernel refuses the lock, not because somebody has it."""
    return _system(ErrorDomain.LOCKSPACE, b"Unable to acquire lock on '%s'" % path, error)


def cannot_create(path: bytes, error: OSError) -> LockRefused:
    """The file of a resource cannot be made."""
    return _system(ErrorDomain.NONE, b"cannot create file '%s'" % path, error)


def cannot_delete(path: bytes, error: OSError) -> LockRefused:
    """The file of a resource cannot be removed."""
    detail = b"Unable to delete lockspace resource %s" % path
    return _system(ErrorDomain.LOCKSPACE, detail, error)


def not_a_directory(path: bytes) -> LockRefused:
    """A lockspace cannot be made where something else is."""
    detail = b"Lockspace location %s exists, but is not a directory" % path
    return _refused(ErrorCode.INTERNAL_ERROR, ErrorDomain.LOCKSPACE, detail)


def cannot_make_directory(path: bytes, error: OSError) -> LockRefused:
    """The directory of a lockspace cannot be made."""
    return _system(ErrorDomain.LOCKSPACE, b"Unable to create lockspace %s" % path, error)


def no_lockspace(path: bytes) -> LockRefused:
    """The lockspace is not known."""
    detail = b"Lockspace for path %s does not exist" % path
    return _refused(ErrorCode.INTERNAL_ERROR, ErrorDomain.RPC, detail)


def lockspace_exists(path: bytes) -> LockRefused:
    """The lockspace that is to be new is known."""
    detail = b"Lockspace for path %s already exists" % path
    return _refused(ErrorCode.INTERNAL_ERROR, ErrorDomain.RPC, detail)


def default_lockspace_exists() -> LockRefused:
    """The lockspace without a directory cannot be made."""
    detail = b"the default lockspace already exists"
    return _refused(ErrorCode.OPERATION_INVALID, ErrorDomain.RPC, detail)


# -- of the connection -----------------------------------------------------------------------


def unregistered() -> LockRefused:
    """The connection has not said whom it speaks for."""
    detail = b"lock owner details have not been registered"
    return _refused(ErrorCode.OPERATION_INVALID, ErrorDomain.RPC, detail)


def restricted() -> LockRefused:
    """The connection has given up its rights."""
    detail = b"lock manager connection has been restricted"
    return _refused(ErrorCode.OPERATION_DENIED, ErrorDomain.RPC, detail)


def unsupported_flags(unknown: int, procedure_name: str) -> LockRefused:
    """A call has flags that its procedure does not know; `procedure_name` as in CamelCase."""
    function = b"virLockSpaceProtocolDispatch" + procedure_name.encode()
    message = b"unsupported flags (0x%x) in function %s" % (unknown, function)
    code, domain = ErrorCode.INVALID_ARG, ErrorDomain.RPC
    return LockRefused(Failure(code, domain, message, function, b"flags", 0, 0))


def rpc_error(text: str) -> LockRefused:
    """A call cannot be understood: spec/lock-drivers.md 8.3."""
    return _refused(ErrorCode.RPC, ErrorDomain.RPC, text.encode())
