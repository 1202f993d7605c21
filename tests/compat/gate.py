"""Hold back single I/Os of a host on a disk that several hosts share (gated_fs.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.compat.peer import wait_until

ROOT = Path(__file__).parents[2]
LIMIT_S = 10.0


class FuseMissing(unittest.SkipTest):
    """There is no FUSE here."""


class Io(NamedTuple):
    """An I/O that waits at the gate."""

    number: int
    file: str
    verb: str
    offset: int
    size: int


class Gate:
    """The gates of all files of one disk; made by `gated_disk`."""

    def __init__(self, server: subprocess.Popen[bytes], directory: Path) -> None:
        self.directory = directory
        self._server = server
        self._lock = threading.Lock()
        self._gated: set[str] = set()
        self._waiting: dict[int, Io] = {}
        self._effects: dict[int, str | None] = {}
        self._reader = threading.Thread(target=self._listen)
        self._reader.start()

    def path(self, file: str) -> str:
        """Return the path by which a host uses the disk."""
        return str(self.directory / file)

    def close(self, file: str) -> None:
        """Hold back every I/O of this file from now on."""
        with self._lock:
            self._gated.add(file)
        self._order(gate=file, on=True)

    def open(self, file: str) -> None:
        """Hold back nothing of this file any more; what waits goes on waiting."""
        with self._lock:
            self._gated.discard(file)
        self._order(gate=file, on=False)

    def waiting(self, file: str) -> list[Io]:
        """Return the I/Os of this file that wait, the oldest first."""
        with self._lock:
            return [io for _, io in sorted(self._waiting.items()) if io.file == file]

    def let_pass(self, io: Io) -> bytes:
        """Let an I/O take effect and wait until it has; returns the first sector of its data."""
        data = self._decide("pass", io)
        assert data is not None
        return bytes.fromhex(data)

    def drop(self, io: Io) -> None:
        """Let an I/O fail without effect."""
        self._decide("drop", io)

    def _decide(self, verb: str, io: Io) -> str | None:
        self._order(**{verb: io.number})
        wait_until(lambda: io.number in self._effects, LIMIT_S, f"{io} is done")
        with self._lock:
            return self._effects.pop(io.number)

    def _order(self, **order: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        self._server.stdin.flush()

    def _listen(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            event: dict[str, Any] = json.loads(line)
            with self._lock:
                if "done" not in event:
                    if event["file"] in self._gated:
                        io = Io(*(event[key] for key in ("id", "file", "verb", "offset", "size")))
                        self._waiting[io.number] = io
                elif self._waiting.pop(event["id"], None) is not None:
                    self._effects[event["id"]] = event["data"]

    def end(self) -> None:
        """Unmount; what waits is let pass."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        subprocess.run(["umount", "--lazy", str(self.directory)], check=False)
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._reader.join()
        self._server.stdout.close()


@contextmanager
def gated_disk(directory: Path, backing: Path, zone: range, names: list[str]) -> Iterator[Gate]:
    """Mount files `names` over `backing` at `directory`; yields their gates, all of them open."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists() or shutil.which("fusermount3") is None:
        raise FuseMissing("I/O that can be held back needs root and FUSE (fusermount3)")
    directory.mkdir()
    command = [sys.executable, "-m", "tests.compat.gated_fs", str(directory), str(backing)]
    command += [str(zone.start), str(zone.stop), *names]
    server = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    gate = Gate(server, directory)
    try:
        wait_until(
            lambda: server.poll() is not None or (directory / names[0]).exists(),
            LIMIT_S,
            "FUSE is mounted",
        )
        yield gate
    finally:
        gate.end()
