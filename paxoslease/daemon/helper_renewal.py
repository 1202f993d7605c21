"""A helper of the code that is installed now: it executes its program anew, as the daemon does.

The daemon cannot make a helper with root's rights once it has given its own up, so after an upgrade
the helper itself has to change. It does so when a daemon that is of other code asks for it:

  - First a child of it starts the program and has it say that it could be a helper. Until it has,
    and if it does not, the old helper serves as ever.
  - Then exec keeps the pid, the rights, the channel with what is on its way in it, the socket for
    successors, and all that is kept. The rest is in a file in memory. What a daemon that dies in
    that moment leaves is kept as before; one that lives has copies of its own.
  - Not while a watchdog device is to be closed within SPARE_US: nobody would do it in time.

A helper that is older than this does not know the request and ignores it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

VARIABLE: Final = "PAXOSLEASE_HELPER"
TRIAL: Final = "PAXOSLEASE_HELPER_TRIAL"
SPARE_US: Final = 3_000_000

_SOURCES: Final = ("helper.py", "helper_renewal.py", "keeper.py", "run_directory.py")
_FITS: Final = b"fits"


def _code() -> int:
    """Return what tells the code of a helper from other code."""
    found = 0
    for name in _SOURCES:
        with suppress(OSError):  # installed without sources: then it counts as the same
            found = zlib.crc32(Path(__file__).with_name(name).read_bytes(), found)
    return found & 0x7FFFFFFF


CODE: Final = _code()


class Trial:
    """A child that finds out whether the program can be a helper."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._reader, writer = os.pipe()
        try:
            if os.fork() == 0:
                _try(writer)
        except OSError:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)

    def fileno(self) -> int:
        """Return the descriptor that is readable when it has ended."""
        return self._reader

    def end(self) -> bool:
        """Tell how it ended; to be called once."""
        try:
            return os.read(self._reader, len(_FITS)) == _FITS
        finally:
            os.close(self._reader)


def _try(report: int) -> NoReturn:
    """Execute the program with the request to say that it can be a helper."""
    try:
        # Whatever is kept must not be kept by this process, too.
        os.closerange(3, report)
        os.closerange(report + 1, os.sysconf("SC_OPEN_MAX"))
        os.set_inheritable(report, True)
        os.environ[TRIAL] = str(report)
        _execute()
    finally:
        os._exit(1)


def _execute() -> NoReturn:
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def try_program(timeout_s: float) -> bool:
    """Find out whether the program that is there now can be started. Blocks.

    For the daemon itself. Raises OSError, subprocess.TimeoutExpired.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        subprocess.run(
            [sys.executable, *sys.orig_argv[1:]],
            env={**os.environ, TRIAL: str(writer)},
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
        with suppress(BlockingIOError):
            return os.read(reader, len(_FITS)) == _FITS
        return False
    finally:
        os.close(reader)
        os.close(writer)


class Left(NamedTuple):
    """What a helper leaves to the one that it becomes: its channel, and its store as plain data."""

    channel: socket.socket
    store: dict[str, Any]


def become_new(channel: socket.socket, store: dict[str, Any], descriptors: Iterable[int]) -> None:
    """Execute the program anew. Raises OSError: then nothing has changed.

    descriptors: what `store` names.
    """
    inherited = [channel.fileno(), *descriptors]
    memory = os.memfd_create("paxoslease-helper", 0)
    try:
        with os.fdopen(memory, "wb", closefd=False) as out:
            out.write(json.dumps({"channel": channel.fileno(), "store": store}).encode())
        for descriptor in inherited:
            os.set_inheritable(descriptor, True)
        os.environ[VARIABLE] = str(memory)
        _execute()
    finally:
        os.environ.pop(VARIABLE, None)
        for descriptor in inherited:
            os.set_inheritable(descriptor, False)
        os.close(memory)


def receive() -> Left | None:
    """Return what the helper before this one left, None when this is to be no helper.

    Does not return when this is only to say that it could be one.
    """
    report = os.environ.pop(TRIAL, None)
    if report is not None:
        os.write(int(report), _FITS)
        os._exit(0)
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(int(number), "rb") as file:
        file.seek(0)
        left = json.load(file)
    channel = socket.socket(fileno=left["channel"])
    channel.set_inheritable(False)
    return Left(channel, left["store"])
