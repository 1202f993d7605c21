"""The run directory: who runs in it, and the socket that clients connect to.

The pid file is locked for the life of the daemon, so a second one ends before it touches anything.
What an earlier daemon left behind (pid file, socket) is no obstacle.

The lock is a POSIX record lock, as the original's, so that either finds the other. Such a lock is
lost as soon as *any* descriptor of the file is closed in the process that holds it: nobody else in
the daemon may open the pid file.

Source: spec/wire-protocol.md 1.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from typing import Final

DEFAULT: Final = "/run/sanlock"
VARIABLE: Final = "SANLOCK_RUN_DIR"
SOCKET_NAME: Final = "sanlock.sock"
PID_NAME: Final = "sanlock.pid"
SOCKET_PATH_MAX: Final = 106  # clients cut longer ones there

_FLOCK: Final = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


class StartFailed(Exception):
    """The daemon cannot start: the message says why, and what it is about."""


class RunDirectory:
    """A run directory. `lock` comes first; the owner is the daemon's, who may not be root."""

    def __init__(self, path: str, uid: int, gid: int) -> None:
        self.path = path
        self._uid = uid
        self._gid = gid
        self._pid_fd = -1

    @property
    def socket_path(self) -> str:
        """Return the path of the socket, as clients know it."""
        whole = os.fsencode(os.path.join(self.path, SOCKET_NAME))
        return os.fsdecode(whole[:SOCKET_PATH_MAX])

    @property
    def pid_path(self) -> str:
        """Return the path of the pid file."""
        return os.path.join(self.path, PID_NAME)

    def lock(self) -> None:
        """Take the run directory for this process, and note its pid. Raises StartFailed.

        To be called by the process that stays: a lock is not inherited by a child.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self.pid_path, flags, 0o644)
        except OSError as error:
            raise StartFailed(f"lockfile open error {self.pid_path}: {error.strerror}") from error
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = f"lockfile setlk error {self.pid_path}: {error.strerror}"
            if error.errno in (errno.EAGAIN, errno.EACCES):
                message += f": a daemon runs there already, pid {_holder(fd)}"
            os.close(fd)
            raise StartFailed(message) from error
        try:
            os.fchmod(fd, 0o644)
            os.ftruncate(fd, 0)
            os.write(fd, b"%d\n" % os.getpid())
        except OSError as error:
            os.close(fd)
            raise StartFailed(f"lockfile write error {self.pid_path}: {error.strerror}") from error
        self._pid_fd = fd

    def fileno(self) -> int:
        """Return the descriptor that holds the lock, to be handed over to the next image."""
        return self._pid_fd

    def take_over(self, fd: int) -> None:
        """Hold a lock by the descriptor that the image before this one held it by."""
        self._pid_fd = fd

    def listen(self, backlog: int = 5) -> socket.socket:
        """Return the listening socket, in the place of any old one. Raises StartFailed.

        Only for whoever has the lock. Mode 0660 from the first moment on.
        """
        path = self.socket_path
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _remove_socket(path)
            mask = os.umask(0o117)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            _give(path, self._uid, self._gid)
            listener.listen(backlog)
        except OSError as error:
            listener.close()
            raise StartFailed(f"socket error {path}: {error.strerror}") from error
        return listener

    def close(self) -> None:
        """Give up the lock. Neither file is removed: another daemon may have come already."""
        if self._pid_fd >= 0:
            os.close(self._pid_fd)
            self._pid_fd = -1


def path_of_environment() -> str:
    """Return the run directory that the environment names, or the usual one."""
    return os.environ.get(VARIABLE) or DEFAULT


def open_run_directory(path: str, uid: int, gid: int, *, is_privileged: bool) -> RunDirectory:
    """Return the run directory, made if it is not there, owned by the daemon.

    A privileged daemon's belongs to group 0: its user's group has no business in it but the socket.
    Raises StartFailed.
    """
    mask = os.umask(0o002)
    try:
        os.mkdir(path, 0o775)
    except FileExistsError:
        if not os.path.isdir(path):
            raise StartFailed(f"run directory {path} is not a directory") from None
    except OSError as error:
        raise StartFailed(f"run directory {path} cannot be made: {error.strerror}") from error
    finally:
        os.umask(mask)
    try:
        _give(path, uid, 0 if is_privileged else gid)
    except OSError as error:
        raise StartFailed(f"run directory {path} cannot be owned: {error.strerror}") from error
    return RunDirectory(path, uid, gid)


def _give(path: str, uid: int, gid: int) -> None:
    """Change the owner, unless it is right: who is not root may then use what he has."""
    found = os.stat(path, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        # Whoever may write here must not have root give him other files.
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.chown(path, uid, gid, follow_symlinks=False)


def _remove_socket(path: str) -> None:
    """Remove an earlier daemon's socket; anything else of that name is left alone."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(mode):
        os.unlink(path)


def lock_holder(fd: int) -> int:
    """Return the pid of another process that holds the lock on a file, 0 for none."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def _holder(fd: int) -> str:
    """Return the pid that holds the lock on a file, or what it says of itself, for a message."""
    pid = lock_holder(fd)
    # A holder in another pid namespace has no number here.
    return str(pid) if pid > 0 else os.pread(fd, 32, 0).decode("ascii", "replace").strip()
