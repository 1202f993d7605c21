"""Run Debian's wdmd on a fake device in a /run of its own, and ask it about its clients."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.system.fake_watchdog import FakeWatchdog, PrivateRun, build_library

WDMD: Final = "/usr/sbin/wdmd"
FIRE_TIMEOUT_S: Final = 60
TEST_INTERVAL_S: Final = 10
_POLL_S: Final = 0.1  # most conditions start a program
_NOISE: Final = ("poll_timeout", "client_pid_dead")


class Claim(NamedTuple):
    """A client as wdmd dumps it. Times: s of CLOCK_MONOTONIC, 0 for no claim."""

    name: str
    pid: int
    is_dead: bool
    refcount: int
    renewal: int
    expire: int


class Wdmd:
    """wdmd, and the device that it has; a context manager that leaves nothing behind."""

    def __init__(self, run: PrivateRun, device: FakeWatchdog, directory: Path) -> None:
        self.device = device
        self._run = run
        self._log_path = directory / "wdmd.log"
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*run.prefix, WDMD, "-D", "-H", "0", "-S", "0"],
                env={**os.environ, **device.env},
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        self.until(lambda: device.count("keepalive") > 0, "wdmd has armed the device")

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = 40.0) -> None:
        """Wait for a condition, with the log if it does not come about."""
        begin_s = time.monotonic()
        while not condition():
            if time.monotonic() - begin_s > limit_s:
                lines = self.log().splitlines()
                told = [line for line in lines if not any(word in line for word in _NOISE)]
                last = "\n".join(told[-40:])
                raise AssertionError(f"not within {limit_s} s: {what}\n{last}")
            time.sleep(_POLL_S)

    def log(self) -> str:
        """Return what it has logged."""
        return self._log_path.read_text(errors="replace")

    def dump(self) -> str:
        """Return what `wdmd --dump` prints."""
        command = [*self._run.prefix, WDMD, "--dump"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout

    def claims(self) -> dict[str, Claim]:
        """Return its clients by name, but for its own connections."""
        found = {}
        for line in self.dump().splitlines():
            words = line.split()
            if not line.startswith("client") or "sanlock_" not in line:
                continue
            field = dict(zip(words[2::2], words[3::2], strict=False))
            found[field["name"]] = Claim(
                field["name"],
                int(field["pid"]),
                field["dead"] != "0",
                int(field["ref"]),
                int(field["renewal"]),
                int(field["expire"]),
            )
        return found

    def stop(self) -> None:
        """Ask it to end."""
        self.process.send_signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def require_wdmd() -> None:
    """Raise SkipTest when wdmd is not installed."""
    if shutil.which(WDMD) is None:
        raise unittest.SkipTest("wdmd is not installed (Debian package sanlock)")


@contextmanager
def started_wdmd(directory: Path) -> Iterator[tuple[Wdmd, PrivateRun]]:
    """Start wdmd in a /run of its own; gives that, too."""
    require_wdmd()
    library = build_library(directory)
    with (
        FakeWatchdog(directory, library) as device,
        PrivateRun() as run,
        Wdmd(run, device, directory) as wdmd,
    ):
        yield wdmd, run
