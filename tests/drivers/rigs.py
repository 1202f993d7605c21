"""Where our drivers are tested: daemons on this machine that stand for hosts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pytest

from paxoslease.client import Connection
from paxoslease.drivers.conformance import Rig
from paxoslease.drivers.registry import open_driver
from tests.cli.tool import await_that
from tests.compat.peer import SanlockHost, SanlockMissing
from tests.lockd.rig import LockDaemon


class FilesRig(Rig):
    """Disks are empty files of a directory."""

    def __init__(self, directory: Path, hosts: list[dict[str, Any]]) -> None:
        self.directory = directory
        self.hosts = hosts
        self._number = 0

    def disk(self) -> str:
        """Return a new file."""
        self._number += 1
        path = self.directory / f"disk {self._number}.img"
        path.touch()
        return str(path)


class NopRig(FilesRig):
    """Nothing but files."""

    driver = "nop"


class PaxosRig(FilesRig):
    """Two hosts with automatic leases in one directory."""

    driver = "paxos"


class LeaseDaemon(Protocol):
    """A lease daemon, whichever."""

    run_dir: Path


LeaseDaemonMaker = Callable[[Path, str], AbstractContextManager[LeaseDaemon]]


def sanlock(directory: Path, name: str) -> SanlockHost:
    """Give a real sanlock daemon; skip the test where there is none."""
    try:
        return SanlockHost(directory, name)
    except SanlockMissing as missing:
        pytest.skip(str(missing))


class OurLeaseDaemon:
    """The lease daemon of this package."""

    def __init__(self, directory: Path, name: str) -> None:
        self.run_dir = directory / name
        self.run_dir.mkdir()
        self.log_path = self.run_dir / "stderr"
        self.name = name
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        settings = ["--set", "high_priority=false", "--set", "lock_memory=0"]
        command = [sys.executable, "-m", "paxoslease.cli.main", "daemon", "--watchdog", "none"]
        command += ["--run-dir", str(self.run_dir), "--host-name", self.name, *settings]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "SANLOCK_PRIVILEGED": "0", "SANLOCK_RUN_DIR": str(self.run_dir)},
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            await_that(self.listens, "the lease daemon listens")
        except BaseException:
            self.kill_daemon()
            raise
        return self

    def listens(self) -> bool:
        """Tell whether it takes connections."""
        assert self.process.poll() is None, self.log_path.read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.run_dir / "sanlock.sock")) == 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill_daemon()

    def kill_daemon(self) -> None:
        """End it by force; its helper ends by itself."""
        self.process.kill()
        self.process.wait()

    def status(self) -> str:
        """Return what the daemon says of itself."""
        with Connection(str(self.run_dir), timeout_s=20) as daemon:
            return " ".join(space.name.decode() for space in daemon.get_lockspaces())


@contextmanager
def paxos_rig(directory: Path, make: LeaseDaemonMaker) -> Iterator[PaxosRig]:
    """Give two lease daemons that have joined one lockspace."""
    leases, disks = directory / "leases", directory / "disks"
    leases.mkdir()
    disks.mkdir()
    with ExitStack() as stack:
        daemons = [stack.enter_context(make(directory, name)) for name in ("one", "two")]
        options = [
            paxos_options(daemon.run_dir, leases, host_id)
            for host_id, daemon in enumerate(daemons, 1)
        ]
        for each in options:
            open_driver("paxos", **each).prepare()
        yield PaxosRig(disks, options)


def paxos_options(run_directory: Path, leases: Path, host_id: int) -> dict[str, Any]:
    """Return the driver's options on a host with automatic leases and short time-outs."""
    return {
        "auto_disk_leases": True,
        "disk_lease_dir": str(leases),
        "host_id": host_id,
        "io_timeout": 1,
        "run_directory": str(run_directory),
    }


class FcntlRig(FilesRig):
    """Two hosts with a lock daemon each, on one file system."""

    driver = "fcntl"


LockDaemonMaker = Callable[[Path], AbstractContextManager[LockDaemon]]


@contextmanager
def fcntl_rig(directory: Path, make: LockDaemonMaker, *, indirect: bool) -> Iterator[FcntlRig]:
    """Give two lock daemons. indirect: files that stand for the disks are locked."""
    disks = directory / "disks"
    disks.mkdir()
    with ExitStack() as stack:
        options: list[dict[str, Any]] = []
        for name in ("one", "two"):
            place = directory / name
            place.mkdir()
            daemon = stack.enter_context(make(place))
            options.append({"socket": str(daemon.path)})
            if indirect:
                options[-1]["file_lockspace_dir"] = str(directory / "locks")
            open_driver("fcntl", **options[-1]).prepare()
        yield FcntlRig(disks, options)
