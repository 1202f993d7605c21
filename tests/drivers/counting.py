"""A guest whose progress can be seen, under `paxoslease guard`."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paxoslease.drivers.processes import Handle
from tests.cli.tool import COMMAND, await_that

# Says its pid, then counts until it is ended: a guest whose progress can be seen.
COUNTER = """
import os, sys, time
path = sys.argv[1]
n = 0
while True:
    n += 1
    with open(path + ".new", "w") as file:
        file.write(f"{os.getpid()} {n}")
    os.replace(path + ".new", path)
    time.sleep(0.02)
"""


class CountingGuest:
    """Such a guest; `progress` is where it says how far it has come."""

    def __init__(self, progress: Path) -> None:
        self.progress = progress

    @contextmanager
    def under(self, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
        """Run it under a guard with these arguments; both are gone when the block ends."""
        command = [*COMMAND, *arguments, sys.executable, "-c", COUNTER, str(self.progress)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                await_that(lambda: self.progress.exists() or process.poll() is not None, "it runs")
                assert process.poll() is None
                yield process
            finally:
                process.kill()
                if self.progress.exists():
                    with Handle(self.pid) as guest:
                        guest.signal_group(signal.SIGKILL)
                        guest.wait_gone(5)

    @property
    def pid(self) -> int:
        """Return the pid of the counter."""
        return int(self.progress.read_text().split()[0])

    @property
    def count(self) -> int:
        """Return how far the counter has come."""
        return int(self.progress.read_text().split()[1])

    def runs(self) -> None:
        """Wait until the counter has gone on."""
        before = self.count
        await_that(lambda: self.count > before, "the guest runs")
