"""Who the daemon is, and what the system allows it: identity, limits, priority, locked memory.

The order matters, and is `daemon/main.py`'s: into the background; identity looked up; limits raised
while it is still root; the helper forked; run directory, lock, socket, log file; then the identity
given up; memory locked; and priority last, when the threads that need it run.

Source: spec/wire-protocol.md 1; the real daemon, observed with strace.
"""

from __future__ import annotations

import ctypes
import grp
import logging
import os
import pwd
import resource
import sys
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from paxoslease.daemon.run_directory import StartFailed

_log = logging.getLogger(__name__)

PRIVILEGED: Final = "SANLOCK_PRIVILEGED"
DEFAULT_NAME: Final = "sanlock"
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_MADV_POPULATE_READ: Final = 22
_PR_SET_DUMPABLE: Final = 4
_STACK_BYTES: Final = 1 << 20
_UNLIMITED: Final = ("MEMLOCK", "RTPRIO", "CORE")
# Threads whose lateness costs leases: what they do is short and rare.
URGENT: Final = ("MainThread", "paxoslease-renew", "paxoslease-guard", "paxoslease-watchdog")


class Identity(NamedTuple):
    """As whom the daemon runs. user: the name that its groups are looked up by."""

    user: str
    uid: int
    gid: int


def is_privileged() -> bool:
    """Tell whether the environment wants the daemon to begin as root and give that up."""
    return os.environ.get(PRIVILEGED, "1") == "1"


def identity_of(user: str, group: str) -> Identity:
    """Return who the daemon is to be: names, not numbers; empty ones for the defaults.

    Without names it is sanlock:sanlock where both exist, otherwise root. A name that does not exist
    stands for 0, as in the original, and is said loudly.
    """
    default_uid, default_gid = _uid_of(DEFAULT_NAME), _gid_of(DEFAULT_NAME)
    uid, gid, name = 0, 0, "root"
    if default_uid is not None and default_gid is not None:
        uid, gid, name = default_uid, default_gid, DEFAULT_NAME
    if user:
        found = _uid_of(user)
        if found is None:
            _log.error("user '%s' not found, using uid: 0", user)
        uid, name = (found, user) if found is not None else (0, "root")
    if group:
        found = _gid_of(group)
        if found is None:
            _log.error("group '%s' not found, using gid: 0", group)
        gid = found or 0
    return Identity(name, uid, gid)


def _uid_of(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid_of(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def drop_privileges(identity: Identity) -> None:
    """Become the daemon's user for good, all threads of it. Raises StartFailed.

    Core dumps stay possible, and /proc/self ours: the kernel forbids both to whoever has changed
    its identity.
    """
    if identity.uid == 0 and identity.gid == 0:
        return
    try:
        os.initgroups(identity.user, identity.gid)
        os.setgid(identity.gid)
        os.setuid(identity.uid)
    except OSError as error:
        raise StartFailed(f"cannot become user {identity.user}: {error.strerror}") from error
    if os.getresuid() != (identity.uid,) * 3 or os.getresgid() != (identity.gid,) * 3:
        raise StartFailed(f"cannot become user {identity.user}: the system took half of it")
    if _libc().prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) != 0:
        _log.warning("no core dumps: %s", os.strerror(ctypes.get_errno()))


def raise_limits() -> None:
    """Lift the limits of locked memory, real-time priority and core files. Raises StartFailed."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for name in _UNLIMITED:
        number = getattr(resource, f"RLIMIT_{name}")
        if resource.getrlimit(number) == unlimited:
            continue
        try:
            resource.setrlimit(number, unlimited)
        except (OSError, ValueError) as error:
            raise StartFailed(f"cannot set the limits for {name.lower()}: {error}") from error


def raise_open_files() -> int:
    """Allow as many open files as there may be; returns how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def set_priority() -> bool:
    """Have the urgent threads that run now scheduled before all others (SCHED_RR).

    What they start later is not: neither programs nor other threads. False, and a line in the log,
    when that is not allowed.
    """
    highest = os.sched_param(os.sched_get_priority_max(os.SCHED_RR))
    for thread in threading.enumerate():
        if thread.name not in URGENT or thread.native_id is None:
            continue
        try:
            os.sched_setscheduler(thread.native_id, os.SCHED_RR | os.SCHED_RESET_ON_FORK, highest)
        except OSError as error:
            _log.error(
                "set scheduler RR|RESET_ON_FORK priority %d failed: %s",
                highest.sched_priority,
                error.strerror,
            )
            return False
    return True


def lock_memory(level: int) -> bool:
    """Keep the daemon's memory from being paged out: 0 none of it, 1 what is there, 2 all.

    Level 1: what has been used stays in memory, and all code is brought there, so that nothing has
    to be read from a disk when it is needed most; memory that is only reserved is not filled. To be
    called when all code is loaded. False, and a line in the log, when that is not allowed.
    """
    threading.stack_size(_STACK_BYTES)
    if level not in (1, 2):
        return True
    how = _MCL_CURRENT | _MCL_FUTURE | (_MCL_ONFAULT if level == 1 else 0)
    if _libc().mlockall(how) != 0:
        _log.error("mlockall %d failed: %s", level, os.strerror(ctypes.get_errno()))
        return False
    if level == 1:
        _bring_code_to_memory()
    return True


def _bring_code_to_memory() -> None:
    """Read in what is mapped from files. Older kernels cannot; there it comes with its use."""
    libc = _libc()
    with open("/proc/self/maps") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        span, rights, _, _, inode = line.split()[:5]
        if inode != "0" and rights.startswith("r"):
            first, end = (int(address, 16) for address in span.split("-"))
            pages = ctypes.c_void_p(first), ctypes.c_size_t(end - first)
            if libc.madvise(*pages, _MADV_POPULATE_READ) != 0:
                _log.debug("madvise %s: %s", span, os.strerror(ctypes.get_errno()))


def into_background() -> Callable[[], None]:
    """Go on in a child without a terminal. Before any thread is started.

    The parent waits until the returned function is called, and then exits with 0; if the child ends
    before, with 1. Standard error is the caller's until then, so that it sees why.
    """
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        os._exit(0 if os.read(read_end, 1) else 1)
    os.close(read_end)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)

    def is_up() -> None:
        sys.stderr.flush()
        os.dup2(null, 2)
        os.close(null)
        try:
            os.write(write_end, b"1")
        except BrokenPipeError:
            _log.warning("nobody waited for the start")
        os.close(write_end)

    return is_up


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
