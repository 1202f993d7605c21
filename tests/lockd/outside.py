"""Other processes that lock the same files: another daemon, another host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, (fcntl.LOCK_SH if sys.argv[2] == "shared" else fcntl.LOCK_EX) | fcntl.LOCK_NB, 1)
print("locked", flush=True)
sys.stdin.read()
"""
_PROBE = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
try:
    fcntl.lockf(file, (fcntl.LOCK_SH if sys.argv[2] == "shared" else fcntl.LOCK_EX) | fcntl.LOCK_NB,
                1, int(sys.argv[3]))
except BlockingIOError:
    print("busy")
else:
    print("free")
"""


@contextmanager
def locked(path: Path, kind: str = "exclusive") -> Iterator[None]:
    """Let another process hold a lock, "exclusive" or "shared", on byte 0 of a file."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "locked\n"
            yield
        finally:
            holder.kill()


def is_free(path: Path, kind: str = "exclusive", byte: int = 0) -> bool:
    """Tell whether another process gets a lock on one byte of a file."""
    command = [sys.executable, "-c", _PROBE, str(path), kind, str(byte)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout == "free\n"
