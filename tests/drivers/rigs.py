"""Where our drivers are tested: daemons on this machine that stand for hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from paxoslease.drivers.conformance import Rig
from paxoslease.drivers.registry import open_driver
from tests.compat.peer import SanlockHost, SanlockMissing, require_sanlock
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
    """Two hosts with automatic leases in one directory. peers: their daemons."""

    driver = "paxos"

    def __init__(
        self, directory: Path, hosts: list[dict[str, Any]], peers: list[SanlockHost]
    ) -> None:
        super().__init__(directory, hosts)
        self.peers = peers


@contextmanager
def sanlock_rig(directory: Path) -> Iterator[PaxosRig]:
    """Give two real sanlock daemons that have joined one lockspace."""
    try:
        require_sanlock()
    except SanlockMissing as missing:
        pytest.skip(str(missing))
    leases, disks = directory / "leases", directory / "disks"
    leases.mkdir()
    disks.mkdir()
    with ExitStack() as stack:
        hosts = [stack.enter_context(SanlockHost(directory, name)) for name in ("one", "two")]
        options = [
            paxos_options(host.run_dir, leases, host_id) for host_id, host in enumerate(hosts, 1)
        ]
        for each in options:
            open_driver("paxos", **each).prepare()
        yield PaxosRig(disks, options, hosts)


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
