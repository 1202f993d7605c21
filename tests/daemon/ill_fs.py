"""A file system whose files are one disk, each the way of one host to it, and each may fall ill.

Run as a program: `python -m tests.daemon.ill_fs DIRECTORY BACKING SEED NAME...`. Orders come as
lines of JSON on stdin: {"file", "delay_s", "errors", "stalled"} says how a file is from now on:
every I/O takes up to delay_s longer, a part of them (0 to 1) fails, before or after it took effect,
and none goes on while it is stalled. {"file", "lost": true} fails without effect what is under way,
as the reset of a host does.
"""

from __future__ import annotations

import errno
import json
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import mfusepy

from tests.compat.gated_fs import GatedDisk

REQUESTS_MAX = 200


class Health:
    """How a file is."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.errors = 0.0
        self.stalled = False
        self.resets = 0


class ChaosDisk(GatedDisk):
    """The files, without gates."""

    def __init__(self, backing: str, names: list[str], seed: str) -> None:
        super().__init__(backing, range(0), names)
        self._health = {name: Health() for name in names}
        self._draw = random.Random(seed)

    def init_with_config(self, conn_info: Any, config_3: Any) -> None:
        """Let many requests be under way: a host whose I/O stands still must not hold up others."""
        conn_info.max_background = REQUESTS_MAX

    def _do(self, path: str, verb: str, offset: int, size: int, work: Callable[[], bytes]) -> bytes:
        health = self._health[path[1:]]
        with self._word:
            resets = health.resets

            def is_lost() -> bool:
                return health.resets != resets

            delay_s = self._draw.uniform(0, health.delay_s)
            if delay_s > 0:
                self._word.wait_for(is_lost, delay_s)
            self._word.wait_for(lambda: is_lost() or not health.stalled)
            fails = self._draw.random() < health.errors
            if is_lost() or (fails and self._draw.random() < 0.5):
                raise mfusepy.FuseOSError(errno.EIO)
            data = work()
            if fails:
                raise mfusepy.FuseOSError(errno.EIO)
            return data

    def obey(self) -> None:
        """Carry out orders until stdin ends; then everything is well."""
        for line in sys.stdin:
            order = json.loads(line)
            health = self._health[order["file"]]
            with self._word:
                if "lost" in order:
                    health.resets += 1
                else:
                    health.delay_s = order["delay_s"]
                    health.errors = order["errors"]
                    health.stalled = order["stalled"]
                self._word.notify_all()
        with self._word:
            self._health = {name: Health() for name in self._health}
            for health in self._health.values():
                health.resets += 1
            self._word.notify_all()


def main() -> None:
    """Serve until unmounted."""
    directory, backing, seed, *names = sys.argv[1:]
    disk = ChaosDisk(backing, names, seed)
    threading.Thread(target=disk.obey, daemon=True).start()
    mfusepy.FUSE(disk, directory, foreground=True, direct_io=True, max_threads=REQUESTS_MAX)


if __name__ == "__main__":
    main()
