"""The watchdogs: a device played by an object, wdmd played by a socket."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoslease.engine.watchdog import NoWatchdog, WdmdWatchdog, open_watchdog
from paxoslease.engine.watchdog_device import Device, DeviceOwner, DeviceWatchdog
from paxoslease.errors import WatchdogError
from tests.system.rig import wait_for

SECOND = 1_000_000
W = 60


class FakeDevice(Device):
    """A watchdog device that records what is done to it, and fires W after the last ping."""

    def __init__(self, clock: Clock, settable: bool = True) -> None:
        super().__init__("/dev/fake")
        self.clock = clock
        self.settable = settable
        self.calls: list[str] = []
        self.fires_us: int | None = None

    def open(self, fire_timeout_s: int) -> int:
        self.calls.append("open")
        self.timeout_s = fire_timeout_s if self.settable else 15
        self._ping()
        return self.timeout_s

    def _ping(self) -> None:
        self.fires_us = self.clock.us + self.timeout_s * SECOND

    def keepalive(self) -> None:
        self.calls.append("keepalive")
        self._ping()

    def close(self, *, disarm: bool) -> None:
        self.calls.append("disarm" if disarm else "close")
        self._ping()  # the kernel pings once more
        if disarm:
            self.fires_us = None


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.us = 1000 * SECOND


class Rig:
    """A device and its owner, whose thread the test plays."""

    def __init__(self, directory: Path, settable: bool = True) -> None:
        self.clock = Clock()
        self.device = FakeDevice(self.clock, settable)
        self.owner = self.new_owner(directory)
        self.directory = directory

    def new_owner(self, directory: Path, boot: str = "this boot") -> DeviceOwner:
        owner = DeviceOwner(
            self.device,
            W,
            marker_directory=str(directory),
            boot_id=lambda: boot,
            clock_us=lambda: self.clock.us,
        )
        owner.run_thread = False  # `pass_time` calls `test` instead
        return owner

    def pass_time(self, seconds: float) -> None:
        """Let time pass in steps as long as the owner's thread would sleep."""
        until = self.clock.us + int(seconds * SECOND)
        while self.clock.us < until:
            self.clock.us = min(until, self.clock.us + self.owner.test())


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_device_is_petted_while_everybody_is_good(rig: Rig) -> None:
    """The device is petted at least every 10 s while all memberships renew in time."""
    rig.owner.start()
    for _ in range(20):
        rig.owner.arm(1, rig.clock.us + 80 * SECOND)
        rig.pass_time(20)
        assert rig.device.fires_us is not None
        assert rig.device.fires_us - rig.clock.us >= 50 * SECOND
    assert "close" not in rig.device.calls


def test_device_fires_no_later_than_expiry_and_fire_timeout(rig: Rig) -> None:
    """A membership that is not renewed has the host reset no later than its expiry + W."""
    rig.owner.start()
    expire_us = rig.clock.us + 80 * SECOND
    rig.owner.arm(1, expire_us)
    rig.owner.arm(2, expire_us + 500 * SECOND)
    rig.pass_time(200)
    assert rig.device.calls.count("close") == 1
    assert rig.device.fires_us is not None
    assert rig.device.fires_us <= expire_us + W * SECOND
    rig.owner.arm(2, rig.clock.us + 500 * SECOND)  # the other one is fine: no help
    rig.pass_time(100)
    assert rig.device.calls[-1] == "close"


def test_starved_owner_does_not_ping_by_closing(rig: Rig) -> None:
    """If closing comes too late, its ping would put off the reset: the device stays open."""
    rig.owner.start()
    rig.owner.arm(1, rig.clock.us + 80 * SECOND)
    rig.owner.test()
    due_us = rig.device.fires_us
    rig.clock.us += 90 * SECOND
    rig.owner.test()
    assert rig.device.fires_us == due_us
    rig.pass_time(30)
    assert rig.device.fires_us == due_us


def test_recovered_membership_has_the_device_petted_again(rig: Rig) -> None:
    """Once all processes are gone and it is disarmed, the device is opened and petted again."""
    rig.owner.start()
    rig.owner.arm(1, rig.clock.us + 20 * SECOND)
    rig.pass_time(30)
    assert rig.device.calls[-1] == "close"
    rig.owner.disarm(1)
    rig.owner.test()
    assert rig.device.calls[-2:] == ["open", "keepalive"]
    rig.owner.end()
    assert rig.device.fires_us is None


def test_abandoned_device_is_disarmed_at_a_clean_end(rig: Rig) -> None:
    """A device that was closed to fire is opened and disarmed when all ends well after all."""
    rig.owner.start()
    rig.owner.arm(1, rig.clock.us + 20 * SECOND)
    rig.pass_time(30)
    rig.owner.disarm(1)
    rig.owner.end()
    assert rig.device.calls[-2:] == ["open", "disarm"]
    assert rig.device.fires_us is None


def test_armed_device_is_not_disarmed_at_the_end(rig: Rig) -> None:
    """A process that gives up while a membership is armed leaves the device to fire."""
    rig.owner.start()
    rig.owner.arm(1, rig.clock.us + 80 * SECOND)
    rig.owner.end()
    assert rig.device.calls[-1] == "close"
    assert rig.device.fires_us is not None


def test_device_is_disarmed_with_the_last_user(rig: Rig) -> None:
    """The device is shared by all memberships, and disarmed by the last one."""
    rig.owner.start()
    rig.owner.start()
    rig.owner.end()
    assert "disarm" not in rig.device.calls
    rig.owner.end()
    assert rig.device.calls == ["open", "disarm"]


def test_wrong_fire_timeout_is_refused(tmp_path: Path) -> None:
    """A device whose time-out cannot be set to W is disarmed and refused, every time."""
    rig = Rig(tmp_path, settable=False)
    for _ in range(2):
        with pytest.raises(ValueError, match="fires after 15 s"):
            rig.owner.start()
    assert rig.device.fires_us is None


def test_unclean_end_keeps_a_successor_off_until_the_next_boot(rig: Rig) -> None:
    """After an unclean end nobody opens the device in the same boot: opening it pings."""
    rig.owner.start()
    successor = rig.new_owner(rig.directory)
    with pytest.raises(ValueError, match="ended uncleanly"):
        successor.start()
    assert rig.device.calls == ["open"]
    rebooted = rig.new_owner(rig.directory, boot="next boot")
    rebooted.start()
    rebooted.end()
    rig.new_owner(rig.directory).start()


def test_thread_pets_and_stops(tmp_path: Path) -> None:
    """The owner's own thread pets a real clock's device, and ends with the last user."""
    clock = Clock()
    device = FakeDevice(clock)
    owner = DeviceOwner(device, 1, marker_directory=str(tmp_path), boot_id=lambda: "boot")
    watchdog = DeviceWatchdog(b"space", owner)
    watchdog.connect()
    wait_for(lambda: device.calls.count("keepalive") >= 2)
    watchdog.pet(0, 1)
    wait_for(lambda: device.calls[-1] == "keepalive" or len(device.calls) > 3)
    watchdog.disarm()
    watchdog.close()
    assert device.calls[-1] == "disarm"
    assert not [t for t in threading.enumerate() if t.name == "paxoslease-watchdog"]


MESSAGE = struct.Struct("=IIIIIIQQQ128s")


class FakeWdmd:
    """Listens like wdmd and keeps what it is told; answers STATUS and OPEN_WATCHDOG."""

    def __init__(self, path: Path, fire_timeout_s: int, openable: bool) -> None:
        self.path = str(path)
        self.fire_timeout_s = fire_timeout_s
        self.openable = openable
        self.messages: list[tuple[int, bytes, int, int]] = []
        self.gone = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while True:
                data = connection.recv(MESSAGE.size, socket.MSG_WAITALL)
                if len(data) < MESSAGE.size:
                    break
                _, command, _, _, _, wanted, _, renewal, expire, name = MESSAGE.unpack(data)
                self.messages.append((command, name.rstrip(b"\0"), renewal, expire))
                if command == 5 or (command == 7 and self.openable):
                    if command == 7:
                        self.fire_timeout_s = wanted
                    reply = (0, command, 0, 0, 10, self.fire_timeout_s, 0, 0, 0, b"")
                    connection.sendall(MESSAGE.pack(*reply))
        self.gone.set()

    def close(self) -> None:
        self._listener.close()
        self._thread.join()


@pytest.fixture
def wdmd(tmp_path: Path) -> Iterator[FakeWdmd]:
    server = FakeWdmd(tmp_path / "wdmd.sock", W, openable=False)
    yield server
    server.close()


def test_wdmd_is_spoken_to_as_sanlock_does(wdmd: FakeWdmd) -> None:
    """One connection per membership: register, count, test with every renewal, clear, close."""
    watchdog = WdmdWatchdog(b"space", 7, W, wdmd.path)
    watchdog.connect()
    watchdog.pet(5 * SECOND, 85 * SECOND + 999_999)
    watchdog.pet(25 * SECOND, 105 * SECOND)
    watchdog.disarm()
    watchdog.close()
    assert wdmd.gone.wait(5)
    name = b"sanlock_space:7"
    commands = [message[0] for message in wdmd.messages]
    assert commands == [5, 1, 2, 4, 4, 4, 3]
    assert all(message[1] == name for message in wdmd.messages)
    first, second, last = wdmd.messages[3:6]
    # CLOCK_BOOTTIME is never behind CLOCK_MONOTONIC, seconds are rounded down, wdmd may be late.
    assert first[3] <= 84
    assert second[3] - first[3] in (19, 20)
    assert last[2:] == (0, 0)


def test_wdmd_with_another_timeout_is_refused(tmp_path: Path) -> None:
    """A lockspace is not joined under a wdmd whose fire time-out is not the cluster's."""
    server = FakeWdmd(tmp_path / "wdmd.sock", 30, openable=False)
    with pytest.raises(WatchdogError, match="30"):
        WdmdWatchdog(b"space", 7, W, server.path).connect()
    server.close()


def test_newer_wdmd_is_asked_for_the_timeout(tmp_path: Path) -> None:
    """A wdmd that can open its device with another time-out is asked to."""
    server = FakeWdmd(tmp_path / "wdmd.sock", 60, openable=True)
    watchdog = WdmdWatchdog(b"space", 7, 30, server.path)
    watchdog.connect()
    assert server.fire_timeout_s == 30
    watchdog.close()
    server.close()


def test_missing_wdmd_is_said(tmp_path: Path) -> None:
    """Without wdmd the error says where it was looked for."""
    path = str(tmp_path / "nobody")
    with pytest.raises(WatchdogError, match="nobody"):
        WdmdWatchdog(b"space", 7, W, path).connect()


def test_dead_wdmd_is_an_error_of_the_pet(wdmd: FakeWdmd) -> None:
    """A renewal that cannot be told to wdmd is an error, not silence."""
    watchdog = WdmdWatchdog(b"space", 7, W, wdmd.path)
    watchdog.connect()
    watchdog.pet(SECOND, 81 * SECOND)
    assert watchdog._socket is not None
    watchdog._socket.shutdown(socket.SHUT_WR)
    with pytest.raises(WatchdogError):
        watchdog.pet(2 * SECOND, 82 * SECOND)
    watchdog.close()


def test_no_watchdog_says_what_it_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    """Going without a watchdog is said once per lockspace, loudly."""
    watchdog = open_watchdog("none", b"space", 1, W)
    assert isinstance(watchdog, NoWatchdog)
    with caplog.at_level(logging.WARNING):
        watchdog.connect()
    watchdog.pet(1, 2)
    watchdog.disarm()
    watchdog.close()
    assert len(caplog.records) == 1
    assert "take over" in caplog.text
