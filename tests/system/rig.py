"""What the system tests stand on: a small lease disk, hosts as processes, waiting with a limit."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paxoslease

MIB = 1 << 20
SPACE = "space"
# A host is dead 10 s after its last renewal.
IO_TIMEOUT = 1
FIRE_TIMEOUT = 2
DEAD_S = 8 * IO_TIMEOUT + FIRE_TIMEOUT

_PRELUDE = f"""
import os, signal, subprocess, sys, threading, time
import paxoslease
def say(*words):
    print(*words, flush=True)
def join(path, host_id, **more):
    return paxoslease.join(path, {SPACE!r}, host_id, io_timeout={IO_TIMEOUT},
                           watchdog_fire_timeout={FIRE_TIMEOUT}, **more)
def boottime():
    return time.clock_gettime(time.CLOCK_BOOTTIME)
"""


class Disk(NamedTuple):
    """A lockspace at offset 0 and resources r0, r1, ... behind it."""

    path: str

    def place(self, number: int) -> tuple[str, int]:
        return self.path, (number + 1) * MIB

    def want(self, number: int) -> paxoslease.WantedLease:
        return paxoslease.WantedLease(f"r{number}", *self.place(number))

    def lease(self, space: paxoslease.Lockspace, number: int, **more: Any) -> paxoslease.Lease:
        path, offset = self.place(number)
        return space.lease(f"r{number}", path, offset=offset, **more)


def make_disk(path: Path | str, resources: int = 2, sector_size: int = 512) -> Disk:
    """Format a lockspace and resources of 1 MiB each."""
    disk = Disk(str(path))
    sizes = {"sector_size": sector_size, "align_size": MIB}
    paxoslease.format_lockspace(disk.path, SPACE, io_timeout=IO_TIMEOUT, **sizes)
    names = [f"r{number}" for number in range(resources)]
    for _ in paxoslease.format_resources(disk.path, SPACE, names, offset=MIB, **sizes):
        continue
    return disk


def join(disk: Disk, host_id: int, **more: Any) -> paxoslease.Lockspace:
    """Join as a host in this process."""
    return paxoslease.join(
        disk.path,
        SPACE,
        host_id,
        io_timeout=IO_TIMEOUT,
        watchdog_fire_timeout=FIRE_TIMEOUT,
        **more,
    )


def boottime() -> float:
    """Return the engine's clock in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wait_for(condition: Callable[[], Any], limit_s: float = 10.0) -> Any:
    """Wait until a condition holds, and return what it returned."""
    until = time.monotonic() + limit_s
    pause = threading.Event()
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < until, "it did not come about in time"
        pause.wait(0.01)


class Child:
    """A program in a process of its own; what it says is read line by line.

    prefix: the command that executes it. env: what it has in its environment beside ours.
    """

    def __init__(
        self,
        program: str,
        *arguments: object,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        program = _PRELUDE + textwrap.dedent(program)
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "default", **(env or {})},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self._lines.put(None)

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self, first: str, limit_s: float = 20.0) -> list[str]:
        """Wait for the line that begins with a word; returns its words, and drops those before."""
        until = time.monotonic() + limit_s
        while True:
            line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            assert line is not None, f"it ended before it said {first!r}"
            words = line.split()
            if words and words[0] == first:
                return words

    def tell(self, line: str = "") -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self, limit_s: float = 20.0) -> int:
        """Wait for the end, and return the exit status."""
        return self.process.wait(limit_s)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
