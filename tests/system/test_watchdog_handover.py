"""Watchdogs that are handed over to a successor: the claim goes on, nobody pings for nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoslease.engine.watchdog import NoWatchdog, WdmdWatchdog
from paxoslease.engine.watchdog_base import WatchdogState
from paxoslease.engine.watchdog_device import DeviceWatchdog
from paxoslease.errors import WatchdogError
from tests.system.test_watchdog import SECOND, FakeWdmd, Rig, W


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def wdmd(tmp_path: Path) -> Iterator[FakeWdmd]:
    server = FakeWdmd(tmp_path / "wdmd.sock", W, openable=False)
    yield server
    server.close()


# -- wdmd --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_armed", [True, False])
def test_a_connection_to_wdmd_goes_on(wdmd: FakeWdmd, is_armed: bool) -> None:
    """The successor speaks on the same connection, and registers only if nobody did."""
    first = WdmdWatchdog(b"space", 7, W, wdmd.path)
    first.connect()
    if is_armed:
        first.pet(5 * SECOND, 85 * SECOND)
    state = first.detach()
    assert state == WatchdogState("wdmd", first.descriptor, is_armed)
    assert os.get_inheritable(state.fd)
    # What exec does: the descriptor stays, the object is gone.
    assert first._socket is not None
    first._socket.detach()
    second = WdmdWatchdog(b"space", 7, W, wdmd.path)
    assert not second.is_connected
    second.attach(state)
    assert second.is_connected
    assert not os.get_inheritable(state.fd)
    second.pet(25 * SECOND, 105 * SECOND)
    second.disarm()
    second.close()
    assert wdmd.gone.wait(5)
    commands = [message[0] for message in wdmd.messages]
    assert commands == ([5, 1, 2, 4, 4, 4, 3] if is_armed else [5, 1, 2, 4, 4, 3])


def test_a_handover_that_is_called_off(wdmd: FakeWdmd) -> None:
    """It goes on as before, and its descriptor does not outlive exec."""
    watchdog = WdmdWatchdog(b"space", 7, W, wdmd.path)
    watchdog.connect()
    state = watchdog.detach()
    watchdog.undetach()
    assert not os.get_inheritable(state.fd)
    watchdog.pet(5 * SECOND, 85 * SECOND)
    watchdog.disarm()
    watchdog.close()
    with pytest.raises(WatchdogError, match="gone"):
        watchdog.detach()


def test_what_is_no_connection_to_wdmd_is_refused(wdmd: FakeWdmd) -> None:
    """A file, another socket, a number without meaning, another kind; the descriptor stays open."""
    watchdog = WdmdWatchdog(b"space", 7, W, wdmd.path)
    ours, theirs = socket.socketpair()
    unbound = socket.socket()
    null = os.open("/dev/null", os.O_RDONLY)
    for fd in (ours.fileno(), unbound.fileno(), null, 987654, -1):
        with pytest.raises(WatchdogError):
            watchdog.attach(WatchdogState("wdmd", fd, True))
        assert not watchdog.is_connected
    with pytest.raises(WatchdogError):
        watchdog.attach(WatchdogState("/dev/watchdog", null, True))
    os.close(null)
    for one in (ours, theirs, unbound):
        one.close()
    watchdog.connect()
    watchdog.close()


# -- a device ----------------------------------------------------------------------------------


def hand_over(rig: Rig, fd: int) -> None:
    """Put a descriptor where the device's would be."""
    rig.device._fd = fd


@pytest.fixture
def fd() -> Iterator[int]:
    number = os.open("/dev/null", os.O_WRONLY)
    yield number
    os.close(number)


def take_over(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> DeviceWatchdog:
    """Return a successor's watchdog on the same device; the predecessor's thread is gone."""
    monkeypatch.setattr(rig.device, "adopt", lambda fd: W)
    rig.owner = rig.new_owner(rig.directory)
    return DeviceWatchdog(b"space", rig.owner)


def test_a_device_goes_on(rig: Rig, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor neither opens nor pings it before its membership is armed, then pets it."""
    first = DeviceWatchdog(b"space", rig.owner)
    first.connect()
    first.pet(0, rig.clock.us + 80 * SECOND)
    rig.pass_time(20)
    hand_over(rig, fd)
    state = first.detach()
    assert state == WatchdogState("/dev/fake", fd, True)
    assert os.get_inheritable(fd)
    second = take_over(rig, monkeypatch)
    rig.device.calls.clear()
    due_us = rig.device.fires_us
    second.attach(state)
    rig.pass_time(15)
    assert (rig.device.calls, rig.device.fires_us) == ([], due_us)
    second.pet(0, rig.clock.us + 80 * SECOND)
    rig.pass_time(15)
    assert set(rig.device.calls) == {"keepalive"}
    second.disarm()
    second.close()
    assert rig.device.calls[-1] == "disarm"
    rig.new_owner(rig.directory).start()  # a clean end leaves no marker


def test_a_device_that_nobody_arms_fires(
    rig: Rig, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two memberships one is not good: neither helps the other."""
    rig.owner.start()
    due_us = rig.device.fires_us
    hand_over(rig, fd)
    good, bad = take_over(rig, monkeypatch), DeviceWatchdog(b"space", rig.owner)
    bad._owner = rig.owner
    for watchdog in (good, bad):
        watchdog.attach(WatchdogState("/dev/fake", fd, True))
    good.pet(0, rig.clock.us + 800 * SECOND)
    rig.pass_time(70)
    assert rig.device.fires_us == due_us
    bad.close()
    good.close()
    assert rig.device.calls[-1] == "close"


def test_a_second_copy_of_the_descriptor_is_closed(
    rig: Rig, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may give one copy for each membership."""
    rig.owner.start()
    hand_over(rig, fd)
    first = take_over(rig, monkeypatch)
    second = DeviceWatchdog(b"space", rig.owner)
    first.attach(WatchdogState("/dev/fake", fd, True))
    copy = os.dup(fd)
    second.attach(WatchdogState("/dev/fake", copy, True))
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(copy)
    os.fstat(fd)
    for watchdog in (first, second):
        watchdog.disarm()
        watchdog.close()
    assert rig.device.calls[-1] == "disarm"


def test_what_is_no_watchdog_device_is_refused(rig: Rig, fd: int, tmp_path: Path) -> None:
    """Another kind, no descriptor, a device that was left to fire, one that is no watchdog."""
    watchdog = DeviceWatchdog(b"space", rig.owner)
    for state in (WatchdogState("wdmd", fd, True), WatchdogState("/dev/fake", -1, True)):
        with pytest.raises(WatchdogError, match="handed over"):
            watchdog.attach(state)
    with pytest.raises(WatchdogError, match="ioctl"):
        watchdog.attach(WatchdogState("/dev/fake", fd, True))
    assert not watchdog.is_connected
    watchdog.connect()
    with pytest.raises(WatchdogError, match="left to fire"):
        watchdog.detach()
    watchdog.close()


def test_none_is_handed_over_to_none() -> None:
    """Without a watchdog there is nothing to hand over, and nothing else is taken for it."""
    none = NoWatchdog(b"space")
    assert none.is_connected
    none.attach(none.detach())
    none.undetach()
    assert none.descriptor == -1
    with pytest.raises(WatchdogError):
        none.attach(WatchdogState("wdmd", 3, True))
