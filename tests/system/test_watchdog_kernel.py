"""A watchdog device under a process that joins lockspaces: real system calls on a played device."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import paxoslease
from tests.cli.ill_disk import ill_disk_on
from tests.system.fake_watchdog import MAGIC_CLOSE, FakeWatchdog, PrivateRun, build_library
from tests.system.rig import MIB, Child, wait_for

W = 12
FAIL_S = 8
MARGIN_S = W / 6

# Joins `space` on each disk it is told, and holds r0 of the last one; then does as it is told.
HOLDER = f"""
    import contextlib
    try:
        spaces = [
            paxoslease.join(path, name, 1, io_timeout=1, watchdog="/dev/watchdog0",
                            watchdog_fire_timeout={W})
            for path, name in (word.split("=") for word in sys.argv[1:])
        ]
    except paxoslease.WatchdogError as error:
        say("refused", error)
        sys.stdin.readline()
        raise SystemExit(1)
    lease = spaces[-1].lease("r0", sys.argv[-1].split("=")[0], offset=1 << 20)
    say("joined")
    for line in sys.stdin:
        if line == "lose\\n":
            spaces[-1].lost.wait()
            say("lost", max(r.renewed_us for r in spaces[-1].renewals()))
        elif line == "drop\\n":
            with contextlib.suppress(paxoslease.LeaseLost):
                lease.release()
            say("dropped")
        elif line == "leave\\n":
            spaces.pop().leave()
            say("left")
"""


class Rig(NamedTuple):
    """A device, and a /run for its marker."""

    device: FakeWatchdog
    run: PrivateRun

    def child(self, *places: str) -> Child:
        """Start a process that has the device."""
        return Child(HOLDER, *places, prefix=self.run.prefix, env=self.device.env)


def make_disk(directory: Path, name: str) -> Path:
    """Format a lockspace and r0 behind it."""
    path = directory / name
    paxoslease.format_lockspace(str(path), name, io_timeout=1)
    paxoslease.format_resource(str(path), name, "r0", offset=MIB)
    return path


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    library = build_library(tmp_path)
    with FakeWatchdog(tmp_path, library) as device, PrivateRun() as run:
        yield Rig(device, run)


def passed(at_s: float) -> bool:
    """Tell whether a time of CLOCK_MONOTONIC has passed."""
    return time.monotonic() > at_s


def suspended_s() -> float:
    """Return how far CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def test_one_device_for_all_lockspaces(rig: Rig, tmp_path: Path) -> None:
    """It is opened once, petted often enough, kept until the last one is left, then disarmed."""
    one, two = make_disk(tmp_path, "one"), make_disk(tmp_path, "two")
    device = rig.device
    with rig.child(f"{one}=one", f"{two}=two") as child:
        child.hear("joined")
        pets = device.count("keepalive")
        wait_for(lambda: device.count("keepalive") > pets + 2)
        assert device.whats()[:2] == ["open", f"set {W}"]
        assert set(device.whats()[2:]) == {"keepalive"}
        child.tell("drop")
        child.tell("leave")
        child.hear("left")
        pets = device.count("keepalive")
        wait_for(lambda: device.count("keepalive") > pets + 1)
        child.tell("leave")
        child.hear("left")
        wait_for(lambda: not device.is_open)
        assert device.whats()[-2:] == ["write V", "disarm"]
        assert set(device.whats()[2:-2]) == {"keepalive"}
        gaps = [after.at_s - before.at_s for before, after in itertools.pairwise(device.events)]
        # Every W / 6, but for what a busy machine adds.
        assert max(gaps) < W / 2
    assert device.fires_s is None


@pytest.mark.long
def test_one_lockspace_that_fails(rig: Rig, tmp_path: Path) -> None:
    """The device is closed in time although another lockspace is well, and not touched again.

    Until the lost lease was given back: then it is opened and petted, and nothing is reset.
    """
    one, two = make_disk(tmp_path, "one"), make_disk(tmp_path, "two")
    device = rig.device
    with ill_disk_on(two) as ill, rig.child(f"{one}=one", f"{ill.device}=two") as child:
        child.hear("joined")
        ill.set("write-error")
        wait_for(lambda: device.count("close") == 1, 30)
        closed = device.events[-1]
        assert closed.what == "close"
        child.tell("lose")
        _, renewed_us = child.hear("lost")
        expire_s = int(renewed_us) / 1e6 - suspended_s() + FAIL_S
        assert expire_s - 2 * MARGIN_S < closed.at_s < expire_s
        wait_for(lambda: device.fires_s is not None and passed(closed.at_s + 2 * MARGIN_S), 30)
        assert device.events[-1] == closed
        assert device.fires_s == closed.at_s + W
        child.tell("drop")
        child.hear("dropped")
        wait_for(lambda: device.whats()[-2:] == ["keepalive", "keepalive"])
        assert device.whats().count("open") == 2
        child.tell("leave")
        child.hear("left")
        child.tell("leave")
        child.hear("left")
        wait_for(lambda: not device.is_open)
        assert device.whats()[-2:] == ["write V", "disarm"]
    assert not device.has_fired


@pytest.mark.parametrize("lacks", ["magic close", "time-out"])
def test_a_driver_that_will_not_do(rig: Rig, tmp_path: Path, lacks: str) -> None:
    """One that stops when it is closed, or does not tell its time-out, is refused and disarmed.

    The first would save a host whose daemon is killed; the second cannot be relied on.
    """
    if lacks == "time-out":
        rig.device.tells_timeout = False
    else:
        rig.device.options &= ~MAGIC_CLOSE
    with rig.child(f"{make_disk(tmp_path, 'one')}=one") as child:
        # It does not end, and would close the device by that.
        child.hear("refused")
        wait_for(lambda: not rig.device.is_open)
    assert rig.device.whats()[-1] == "disarm"
    assert rig.device.fires_s is None


def test_what_is_no_watchdog_is_left_alone(rig: Rig, tmp_path: Path) -> None:
    """A file that is named by mistake is not written to."""
    mistaken = tmp_path / "mistaken"
    mistaken.write_bytes(b"precious")
    place = f"{make_disk(tmp_path, 'one')}=one"
    with Child(
        HOLDER.replace("/dev/watchdog0", str(mistaken)), place, prefix=rig.run.prefix
    ) as child:
        child.hear("refused")
    assert mistaken.read_bytes() == b"precious"


def test_nobody_opens_it_after_an_unclean_end(rig: Rig, tmp_path: Path) -> None:
    """Whoever is killed leaves it to fire, and a successor in this boot does not touch it."""
    place = f"{make_disk(tmp_path, 'one')}=one"
    device = rig.device
    with rig.child(place) as child:
        child.hear("joined")
        os.kill(child.pid, signal.SIGKILL)
        wait_for(lambda: device.count("close") == 1)
    events = device.events
    with rig.child(place) as successor:
        assert "uncleanly" in successor.hear("refused")
    assert device.events == events
    assert device.fires_s == events[-1].at_s + W
