"""The storage of a running guest's lease fails: libvirt's failure actions, carried out for real.

The disk of an explicit lease and its lockspace is a file of a FUSE file system that returns errors
or hangs when told to. The lease daemon runs libvirt's helper, or signals QEMU, in time: before
another host may take the lease. The guest's own disk has an automatic lease on a good disk, which
ends with the other. With the real sanlock the same happens.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.compat.peer import wait_until
from tests.daemon.daemons import Kind
from tests.daemon.scripts.faults import IllDisk, require_fuse
from tests.daemon.stage import MIB, Stage
from tests.guests.hosts import LeaseHost
from tests.guests.libvirt import LIMIT_S, disk_xml, lease_xml

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SPACE: Final = "vms"
IO_TIMEOUT_S: Final = 1
GRACE_S: Final = 40
# From the last renewal to the first SIGKILL; another host comes 20 s later.
IN_TIME_S: Final = 8 * IO_TIMEOUT_S + GRACE_S
KINDS: Final = ["ours", pytest.param("real", marks=pytest.mark.peer)]


class Bench:
    """A host with a lockspace on a disk that may fail, and guests with a lease there."""

    def __init__(self, host: LeaseHost, disk: IllDisk, image: Path) -> None:
        self.host = host
        self.libvirt = host.libvirt
        self.disk = disk
        self.image = image
        host.sanlock("init", "-s", f"{SPACE}:0:{disk.path}:0", "-o", str(IO_TIMEOUT_S))
        host.sanlock("init", "-r", f"{SPACE}:demo:{disk.path}:{MIB}")
        self.join()

    def join(self) -> None:
        """Join the lockspace; again after a failure it may take until a host is known as dead."""
        place = f"{SPACE}:{self.host.number}:{self.disk.path}:0"
        self.host.sanlock("add_lockspace", "-s", place, "-o", str(IO_TIMEOUT_S), limit_s=120)

    def repair(self) -> None:
        """Let the disk be well and join again, when what hung has ended."""
        self.disk.become("good")
        wait_until(lambda: not self.joined(), LIMIT_S, "the lockspace is let go")
        wait_until(self._can_join, 2 * LIMIT_S, "it is joined again")

    def _can_join(self) -> bool:
        try:
            self.join()
        except AssertionError:
            return False
        return True

    def joined(self) -> bool:
        """Tell whether the daemon has the lockspace."""
        return f"s {SPACE}:" in self.host.sanlock("status")

    def start(self, action: str) -> int:
        """Start the guest; return a pidfd of its QEMU."""
        devices = lease_xml(SPACE, "demo", self.disk.path, MIB) + disk_xml(self.image)
        self.libvirt.done("define", self.libvirt.domain("demo", devices, action))
        self.libvirt.done("start", "demo")
        assert self.leased()
        assert self.host.held(self.image) == "exclusive"
        return os.pidfd_open(self.libvirt.pid("demo"))

    def leased(self) -> bool:
        """Tell whether the guest has its lease."""
        return f"r {SPACE}:demo:" in self.host.sanlock("status")

    def state(self) -> str:
        """Return libvirt's state of the guest, and why."""
        return self.libvirt.done("domstate", "demo", "--reason")


@contextmanager
def bench_of(kind: Kind, directory: Path, image: Path) -> Iterator[Bench]:
    """Give a host of a kind whose disk is well at first, and at last."""
    require_fuse()
    with ExitStack() as stack:
        disk = IllDisk(stack.enter_context(Stage(kind, directory / "s")), 2)
        host = stack.enter_context(LeaseHost(kind, directory, 1))
        # First of all: a daemon that waits for its disk cannot be killed.
        stack.callback(disk.become, "good")
        yield Bench(host, disk, image)


def is_gone(pidfd: int) -> bool:
    """Tell whether a process has ended."""
    return bool(select.select([pidfd], [], [], 0)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["write-error", "write-hang", "read-hang"])
def test_pause(tmp_path: Path, image: Path, kind: Kind, fault: str) -> None:
    """The guest is suspended and holds nothing, so it lives on, and can be resumed later."""
    with bench_of(kind, tmp_path, image) as bench:
        qemu = bench.start("pause")
        try:
            failed_s = time.monotonic()
            bench.disk.become(fault)
            wait_until(lambda: bench.state() == "paused (user)", IN_TIME_S, "it is paused")
            wait_until(lambda: not bench.leased(), LIMIT_S, "its lease is let go")
            assert time.monotonic() - failed_s < IN_TIME_S
            assert bench.host.held(image) == "no"
            assert "Failed to acquire lock" in bench.libvirt.refused("resume", "demo")
            bench.repair()
            assert not is_gone(qemu)
            bench.libvirt.done("resume", "demo")
            assert bench.leased()
            assert bench.host.held(image) == "exclusive"
            assert not is_gone(qemu)
        finally:
            os.close(qemu)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("action", "fault", "reason"),
    [
        ("poweroff", "write-error", "destroyed"),
        ("poweroff", "write-hang", "destroyed"),
        ("", "write-hang", "shutdown"),
    ],
    ids=["poweroff-error", "poweroff-hang", "default-hang"],
)
def test_poweroff(
    tmp_path: Path, image: Path, kind: Kind, action: str, fault: str, reason: str
) -> None:
    """The guest is destroyed by libvirt's helper, or ended by SIGTERM where none is registered."""
    with bench_of(kind, tmp_path, image) as bench:
        qemu = bench.start(action)
        try:
            failed_s = time.monotonic()
            bench.disk.become(fault)
            wait_until(lambda: is_gone(qemu), IN_TIME_S, "it is gone")
            assert time.monotonic() - failed_s < IN_TIME_S
        finally:
            os.close(qemu)
        wait_until(lambda: bench.state() == f"shut off ({reason})", LIMIT_S, "libvirt knows why")
        bench.host.await_held(image, "no")
        assert "Failed to acquire lock" in bench.libvirt.refused("start", "demo")
        bench.repair()
        bench.libvirt.done("start", "demo")
        assert bench.leased()


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_fault_is_none(tmp_path: Path, image: Path, kind: Kind) -> None:
    """Nothing happens to a guest when renewals fail and then succeed again in time."""
    with bench_of(kind, tmp_path, image) as bench:
        os.close(bench.start("poweroff"))

        def renewals() -> list[str]:
            return bench.host.sanlock("renewal", "-s", SPACE).splitlines()

        for fault in ("write-error", "read-error"):
            bench.disk.become(fault)
            wait_until(
                lambda: not renewals()[-1].endswith("next_errors=0"), LIMIT_S, "a renewal fails"
            )
            before = len(renewals())
            bench.disk.become("good")
            wait_until(lambda before=before: len(renewals()) > before, LIMIT_S, "one succeeds")
        assert bench.state() == "running (booted)"
        assert bench.leased()


@pytest.mark.parametrize("kind", KINDS)
def test_actions_that_the_plugin_refuses(tmp_path: Path, image: Path, kind: Kind) -> None:
    """libvirt starts no guest with an action that nobody could carry out."""
    with LeaseHost(kind, tmp_path, 1) as host:
        for action in ("restart", "ignore"):
            demo = host.libvirt.domain("demo", disk_xml(image), action)
            said = host.libvirt.refused("create", demo)
            assert f"Failure action {action} is not supported by sanlock" in said
            assert host.held(image) == "no"
