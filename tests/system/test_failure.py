"""Hosts that die, hang, sleep or lose their disk: who may go on, and when."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoslease import LeaseHeld, LeaseLost, LockspaceFailed
from tests.conftest import MakeLoop, frozen, loop_device, run
from tests.system.rig import DEAD_S, FIRE_TIMEOUT, IO_TIMEOUT, Child, boottime, join, make_disk

FAIL_S = 8 * IO_TIMEOUT

HOLDER = """
path = sys.argv[1]
space = join(path, 1, host_name="holder")
lease = space.lease("r0", path, offset=1 << 20)
while not space.renewals():
    time.sleep(0.05)
say("holding", lease.fencing_token)
sys.stdin.readline()
"""


def test_killed_holder_is_succeeded_after_dead_and_not_before(tmp_path: Path) -> None:
    """After SIGKILL of the holder another host gets the lease when it is safe, and soon then."""
    disk = make_disk(tmp_path / "disk")
    with Child(HOLDER, disk.path) as holder, join(disk, 2) as space:
        holder.hear("holding")
        with pytest.raises(LeaseHeld):
            disk.lease(space, 0)
        holder.process.kill()
        killed = boottime()
        with disk.lease(space, 0, wait=30) as lease:
            after_s = boottime() - killed
            assert lease.fencing_token == 2
        # Its last renewal may have been 2 s, and be seen 2 s after it was made.
        assert DEAD_S - 2 * IO_TIMEOUT - 0.6 <= after_s <= DEAD_S + 3 * IO_TIMEOUT


STOPPED = """
path = sys.argv[1]
space = join(path, 1)
lease = space.lease("r0", path, offset=1 << 20)
say("holding")
sys.stdin.readline()
said = time.monotonic()
lost = lease.lost.wait(1.0)
say("lost", lost, time.monotonic() - said, lease.lost.reason.replace(" ", "_"))
try:
    space.lease("r1", path, offset=2 << 20)
except paxoslease.LockspaceFailed:
    say("refused")
lease.release()
space.leave(timeout=5)
say("left")
"""


def test_host_that_slept_past_its_lease_knows_it_on_waking(tmp_path: Path) -> None:
    """A process that was stopped for longer than its lease lasts finds it lost when it goes on."""
    disk = make_disk(tmp_path / "disk")
    with Child(STOPPED, disk.path) as child, join(disk, 2):
        child.hear("holding")
        child.process.send_signal(signal.SIGSTOP)
        time.sleep(FAIL_S + 0.5)  # the very thing under test: time that passes unseen
        child.process.send_signal(signal.SIGCONT)
        child.tell()
        _, lost, took_s, reason = child.hear("lost")
        assert lost == "True"
        assert float(took_s) < 0.5
        assert "renewed" in reason
        child.hear("refused")
        child.hear("left")
        assert child.end() == 0


LOSER = """
path, healthy = sys.argv[1:]
space = join(path, 1)
other = join(healthy, 1) if healthy != "-" else None
lease = space.lease("r0", path, offset=1 << 20)
term = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
stubborn = subprocess.Popen(
    [sys.executable, "-c",
     "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True);"
     "time.sleep(600)"],
    stdout=subprocess.PIPE)
stubborn.stdout.readline()
guards = [space.guard(term), space.guard(stubborn)]
say("holding")
sys.stdin.readline()
asked = time.monotonic()
try:
    lease.release()
except (paxoslease.DiskTimeout, paxoslease.LeaseLost) as error:
    say("release", type(error).__name__, time.monotonic() - asked)
lease.lost.wait(30)
say("lost", boottime(), space._membership.member.held.renewed_us / 1e6)
say("ended", term.wait(), boottime())
say("ended", stubborn.wait(), boottime())
say("healthy", other.lost.is_set() if other else False, len(other.renewals()) if other else 0)
if other:
    other.leave()
try:
    space.leave(timeout=1)
except TimeoutError:
    say("waits")
sys.stdin.readline()
space.leave(timeout=20)
say("left")
"""


@pytest.fixture
def freezer(make_loop: MakeLoop, mounted: Path) -> Iterator[Path]:
    """Give the root of a file system that can be frozen, with a loop device on a file in it."""
    del make_loop
    with open(mounted / "backing", "wb") as file:
        file.truncate(4 << 20)
    return mounted


def _check_stopped(child: Child) -> None:
    """Check that everything of a host stopped after it had failed and before it counts as dead."""
    _, lost_at, renewed_at = child.hear("lost", 30)
    failed_after_s = float(lost_at) - float(renewed_at)
    assert FAIL_S <= failed_after_s < FAIL_S + 0.5
    _, first, first_at = child.hear("ended")
    _, second, second_at = child.hear("ended")
    assert int(first) == -signal.SIGTERM
    assert int(second) == -signal.SIGKILL
    for ended_at in (first_at, second_at):
        assert float(ended_at) - float(renewed_at) < DEAD_S


@pytest.mark.timeout(90)
def test_lost_disk_stops_processes_before_others_may_go_on(freezer: Path, tmp_path: Path) -> None:
    """A host whose writes hang loses its leases and stops its processes before it counts as dead.

    Once on a device, where writes hang in the kernel's queue; once on the frozen file system
    itself, where submitting one hangs. A lockspace on another disk goes on.
    """
    healthy = make_disk(tmp_path / "healthy")
    with loop_device(freezer / "backing", 512) as device:
        lost = make_disk(device)
        file = make_disk(freezer / "file", sector_size=4096)
        with (
            Child(LOSER, lost.path, healthy.path) as on_device,
            Child(LOSER, file.path, "-") as on_file,
        ):
            for child in (on_device, on_file):
                child.hear("holding")
            with frozen(freezer):
                on_device.tell()
                on_file.tell()
                _, error, after_s = on_device.hear("release")
                assert error == "DiskTimeout"
                assert float(after_s) < 2.5 * IO_TIMEOUT
                _, error, after_s = on_file.hear("release")
                assert error == "LeaseLost"
                assert float(after_s) < FAIL_S + 0.5
                for child in (on_device, on_file):
                    _check_stopped(child)
                _, is_lost, renewals = on_device.hear("healthy")
                assert is_lost == "False"
                assert int(renewals) >= 4
                # A release is in flight: until it has landed the watchdog is not disarmed.
                on_device.hear("waits")
                on_file.hear("waits")
            for child in (on_device, on_file):
                child.tell()
                child.hear("left")
                assert child.end() == 0


def test_device_that_returns_errors_loses_the_lease(tmp_path: Path, make_loop: MakeLoop) -> None:
    """I/O errors of the lease's disk are raised to callers; nothing pretends to be released."""
    disk = make_disk(make_loop(512, 4 << 20))
    backing = run("losetup", "--noheadings", "--output", "BACK-FILE", disk.path)
    space = join(disk, 1)
    lease = disk.lease(space, 0)
    with open(backing, "r+b") as file:
        file.truncate(0)
    with pytest.raises(Exception, match=r"failed|expected"):
        disk.lease(space, 1)
    assert lease.lost.wait(FAIL_S + 2)
    with pytest.raises((LeaseLost, LockspaceFailed)):
        lease.read_lvb()
    lease.release()
    space.leave(timeout=5)


assert FIRE_TIMEOUT > 1
