"""QEMU under `paxoslease guard`, and the storage of its lease fails while it runs."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from paxoslease.drivers.processes import Handle
from tests.cli.tool import COMMAND, await_that, call, refused
from tests.daemon.scripts.faults import IllDisk, require_fuse
from tests.daemon.stage import Stage
from tests.drivers.rigs import OurLeaseDaemon

QEMU: Final = shutil.which("qemu-system-x86_64")
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(QEMU is None, reason="QEMU is not installed"),
]

IO_TIMEOUT_S: Final = 1
GRACE_S: Final = 40
# From the last renewal to the first SIGKILL; another host comes 20 s later.
IN_TIME_S: Final = 8 * IO_TIMEOUT_S + GRACE_S
JOINED_AGAIN_S: Final = 120.0


class Bench:
    """A lease daemon that has joined a lockspace on a disk that may fail, and a guest's disk."""

    def __init__(self, daemon: OurLeaseDaemon, disk: IllDisk, directory: Path) -> None:
        self.daemon = daemon
        self.disk = disk
        self.image = directory / "guest.img"
        self.image.write_bytes(bytes(1 << 20))
        self._pid_path = directory / "qemu.pid"
        run_dir = ("--run-dir", daemon.run_dir)
        space = f"vms:{disk.path}"
        times = ("--io-timeout", IO_TIMEOUT_S)
        assert call("format", "lockspace", space, *times).code == 0
        lease = f"demo:{disk.path}:1M"
        assert call("format", "resource", lease, "--lockspace", "vms").code == 0
        self._join = [*COMMAND, "join", space, "--host-id", "1", *map(str, (*times, *run_dir))]
        self.join()

    def join(self) -> None:
        """Join the lockspace; again after a failure it takes until a host is known as dead."""
        subprocess.run(self._join, check=True, timeout=JOINED_AGAIN_S)

    def joined(self) -> bool:
        """Tell whether the daemon has the lockspace."""
        return "vms" in self.daemon.status()

    def arguments(self, *more: object) -> list[str]:
        """Return the command line of a guard, without what it runs."""
        words = ["guard", "--driver", "paxos", "--option", f"run_directory={self.daemon.run_dir}"]
        words += ["--lease", f"vms:demo:{self.disk.path}:1M"]
        return [*words, *map(str, more), "--"]

    @contextmanager
    def guard(self, action: str) -> Iterator[subprocess.Popen[str]]:
        """Run QEMU under a guard; both are gone when the block ends."""
        command = [*COMMAND, *self.arguments("--on-lockfailure", action)]
        command += [str(QEMU), "-m", "32", "-nodefaults", "-display", "none"]
        command += ["-drive", f"file={self.image},format=raw,if=virtio"]
        command += ["-pidfile", str(self._pid_path)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                await_that(lambda: self.pid or process.poll() is not None, "QEMU runs", 60)
                assert process.poll() is None
                yield process
            finally:
                process.kill()
                if self.pid:
                    with Handle(self.pid) as guest:
                        guest.kill()
                        guest.wait_gone(5)

    @property
    def pid(self) -> int:
        """Return the pid of QEMU, 0 without one: it removes the file when it ends in order."""
        try:
            return int(self._pid_path.read_text() or 0)
        except FileNotFoundError:
            return 0


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Give a lease daemon whose disk is well at first, and at last."""
    require_fuse()
    with ExitStack() as stack:
        disk = IllDisk(stack.enter_context(Stage("ours", tmp_path / "s")), 2)
        daemon = stack.enter_context(OurLeaseDaemon(tmp_path, "one"))
        # First of all: a daemon that waits for its disk cannot be killed.
        stack.callback(disk.become, "good")
        yield Bench(daemon, disk, tmp_path)


def said_by(guard: subprocess.Popen[str]) -> str:
    """Return the next line that a guard says."""
    assert guard.stderr is not None
    return guard.stderr.readline()


@pytest.mark.parametrize("fault", ["write-error", "write-hang", "read-hang"])
def test_pause(bench: Bench, fault: str) -> None:
    """QEMU stands still in time and is not killed; it goes on when its lease is to be had again."""
    with bench.guard("pause") as guard, Handle(bench.pid) as qemu:
        failed_s = time.monotonic()
        bench.disk.become(fault)
        assert qemu.wait_stopped(IN_TIME_S)
        assert time.monotonic() - failed_s < IN_TIME_S
        assert "it is paused" in said_by(guard)
        await_that(lambda: not bench.joined(), "the lockspace is let go", 60)
        guard.send_signal(signal.SIGCONT)
        assert "it stays paused" in said_by(guard)
        bench.disk.become("good")
        bench.join()
        assert not qemu.is_gone
        assert qemu.wait_stopped(0)
        guard.send_signal(signal.SIGCONT)
        assert "has its locks again" in said_by(guard)
        await_that(lambda: not qemu.wait_stopped(0), "QEMU runs")
        refused(call(*bench.arguments(), "true"), 4, "is in use")


@pytest.mark.parametrize("fault", ["write-error", "write-hang", "read-hang"])
def test_poweroff(bench: Bench, fault: str) -> None:
    """QEMU is ended in time."""
    with bench.guard("poweroff") as guard, Handle(bench.pid) as qemu:
        failed_s = time.monotonic()
        bench.disk.become(fault)
        assert qemu.wait_gone(IN_TIME_S)
        assert time.monotonic() - failed_s < IN_TIME_S
        assert guard.wait(20) == 5
        assert "the lease daemon has lost the lockspace" in said_by(guard)


def test_restart(bench: Bench) -> None:
    """QEMU is ended in time, and a new one runs as soon as the lease is to be had."""
    with bench.guard("restart") as guard:
        first = bench.pid
        with Handle(first) as qemu:
            bench.disk.become("write-hang")
            assert qemu.wait_gone(IN_TIME_S)
        bench.disk.become("good")
        await_that(lambda: not bench.joined(), "the lockspace is let go", 60)
        bench.join()
        await_that(lambda: bench.pid not in (0, first), "a new QEMU runs", 60)
        assert guard.poll() is None
        refused(call(*bench.arguments(), "true"), 4, "is in use")
