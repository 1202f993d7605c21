"""The daemon as its own multiplexer: one watchdog device for all of its lockspaces.

The device is played by the test (tests/system/fake_watchdog.py), as is the /run with its marker.

Source: spec/timing-and-recovery.md 4.2.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import paxoslease
from paxoslease.client import Connection, DaemonError
from paxoslease.wire import sanlock as wire
from tests.cli.ill_disk import ill_disk_on
from tests.compat.peer import wait_until
from tests.daemon.agent import Agent
from tests.daemon.daemons import Daemon
from tests.daemon.restart_rig import await_end
from tests.system.fake_watchdog import FakeWatchdog, PrivateRun, build_library
from tests.system.rig import MIB

W = 15
IO_TIMEOUT = 1
FAIL_S = 8 * IO_TIMEOUT
INTERVAL_S = W / 6
GRACE_S = 4
WD_ERROR = -203
STARTED = "sanlock daemon started"
SETTINGS = f"""
watchdog = "/dev/watchdog0"
watchdog_fire_timeout = {W}
io_timeout = {IO_TIMEOUT}
kill_grace = {GRACE_S}
lock_memory = 0
"""


class DeviceDaemon(Daemon):
    """Our daemon under its own command, set up by a file to own the device."""

    def _start(self) -> subprocess.Popen[bytes]:
        settings = self.run_dir / "daemon.toml"
        settings.write_text(SETTINGS)
        ours = Path(sys.executable).with_name("paxoslease")
        self.command = [*self.prefix, str(ours), "daemon", "--config", str(settings)]
        return super()._start()


class Host:
    """A daemon that has the device, and its helpers; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._stack = ExitStack()
        self.device = self._stack.enter_context(FakeWatchdog(directory, build_library(directory)))
        run = self._stack.enter_context(PrivateRun())
        self.daemon = DeviceDaemon(
            "ours", directory / "host", "host", env=self.device.env, prefix=run.prefix
        )
        self._helpers = self.daemon.children()
        self.disks: dict[str, str] = {}
        for name in ("one", "two"):
            self.disks[name] = str(directory / name)
            paxoslease.format_lockspace(self.disks[name], name, io_timeout=IO_TIMEOUT)
            paxoslease.format_resource(self.disks[name], name, "r0", offset=MIB)

    def connection(self) -> Connection:
        """Return a connection that is not registered."""
        return Connection(str(self.daemon.run_dir), timeout_s=60)

    def join(self, name: str) -> None:
        """Join a lockspace."""
        with self.connection() as connection:
            connection.add_lockspace(self._space(name))

    def leave(self, name: str) -> None:
        """Leave a lockspace."""
        with self.connection() as connection:
            connection.rem_lockspace(self._space(name))

    def _space(self, name: str) -> wire.Lockspace:
        return wire.Lockspace(name.encode(), 1, disk=wire.Disk(os.fsencode(self.disks[name])))

    def spaces(self) -> int:
        """Return how many lockspaces there are."""
        with self.connection() as connection:
            return len(connection.get_lockspaces())

    def agent(self) -> Agent:
        """Start a client."""
        agent = Agent(str(self.daemon.run_dir))
        self._stack.callback(agent.end)
        return agent

    def holder(self) -> Agent:
        """Start a client that holds r0 of lockspace two, and outlives SIGTERM."""
        agent = self.agent()
        agent("register")
        agent("ignore_sigterm")
        agent("acquire", resources=[["two", "r0", self.disks["two"], MIB, 0]])
        return agent

    def expire_s(self, name: str) -> float:
        """Return when a lockspace expires, as CLOCK_MONOTONIC; at most a second too early."""
        with self.connection() as connection:
            records = connection.renewals(name.encode()).records
        fields = dict(word.split("=") for word in records[-1].state.text.decode().split())
        ahead_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        return int(fields["timestamp"]) - ahead_s + FAIL_S

    def crash(self) -> None:
        """Kill the daemon with SIGKILL, and nothing else."""
        self.daemon.process.kill()
        self.daemon.process.wait()

    def start(self) -> None:
        """Start a daemon in the place of the one that was killed."""
        self.daemon.start_again()
        self._helpers += self.daemon.children()

    def kill_helper(self) -> None:
        """Kill the process that keeps the device open."""
        for pid in self._helpers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop_helper(self, number: int = signal.SIGSTOP) -> None:
        """Stop it as a busy machine does, or let it go on."""
        for pid in self._helpers:
            os.kill(pid, number)

    def until_petted(self, times: int = 2) -> None:
        """Wait until the device was petted again, some times."""
        pets = self.device.count("keepalive")
        self.until(lambda: self.device.count("keepalive") >= pets + times, "it is petted")

    def until_disarmed(self) -> None:
        """Wait until the device was closed, after 'V'."""
        self.until(lambda: not self.device.is_open, "it is closed")
        assert self.device.whats()[-2:] == ["write V", "disarm"]
        assert self.device.fires_s is None

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = 40.0) -> None:
        """Wait for a condition."""
        wait_until(condition, limit_s, f"{what}; {self.device.whats()}")

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.kill()
        self.kill_helper()
        self._stack.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as made:
        yield made


def test_lockspaces_share_the_device(host: Host) -> None:
    """It is opened once for all of them, and disarmed with the last."""
    host.join("one")
    host.join("two")
    host.leave("two")
    host.until_petted()
    host.leave("one")
    host.until_disarmed()
    whats = host.device.whats()
    assert whats[:2] == ["open", f"set {W}"]
    assert set(whats[2:-2]) == {"keepalive"}
    assert not host.device.has_fired


def test_device_that_the_helper_still_has(host: Host) -> None:
    """Whoever joins right after the last lockspace was left waits until the helper has let go."""
    host.join("one")
    host.stop_helper()
    host.leave("one")
    agent = host.agent()
    agent.begin("add_lockspace", name="one", host_id=1, path=host.disks["one"], io_timeout=1)
    host.until(lambda: "busy" in host.device.whats(), "the device was found busy")
    host.stop_helper(signal.SIGCONT)
    agent.result()
    host.until_petted()
    assert host.device.whats().count("disarm") == 1
    assert "close" not in host.device.whats()


@pytest.mark.long
def test_one_lockspace_fails(host: Host) -> None:
    """The device is not petted from an interval before its expiry until its users are gone.

    It is closed in time by the daemon and by its helper, opened again afterwards, and never fires.
    """
    device = host.device
    with ill_disk_on(Path(host.disks["two"])) as ill:
        host.disks["two"] = ill.device
        host.join("one")
        host.join("two")
        agent = host.holder()
        host.until_petted()
        ill.set("write-error")
        host.until(lambda: time.monotonic() > host.expire_s("two") + 1, "it has expired")
        expire_s = host.expire_s("two")
        await_end(agent, 60)
        killed_s = time.monotonic()
        assert killed_s >= expire_s + GRACE_S
        times_s = [event.at_s for event in device.events if event.what != "close"]
        assert not [at for at in times_s if expire_s + 1 - INTERVAL_S < at < expire_s + GRACE_S]
        closed_s = [event.at_s for event in device.events if event.what == "close"]
        assert [at for at in closed_s if at < expire_s + 1] == closed_s
        host.until_petted()
        host.until(lambda: host.spaces() == 1, "the lockspace is gone")
        host.leave("one")
        host.until_disarmed()
        whats = [what for what in device.whats() if what != "keepalive"]
        assert whats == ["open", f"set {W}", "close", "open", f"set {W}", "write V", "disarm"]
    assert not device.has_fired


@pytest.mark.long
@pytest.mark.parametrize("dies_first", ["nobody", "daemon"])
def test_killed_with_its_helper_after_the_expiry(host: Host, dies_first: str) -> None:
    """However late the last process that has the device ends, the reset is not put off by that.

    As when a service manager gives up on a daemon whose storage is lost, and kills all of it.
    """
    device = host.device
    with ill_disk_on(Path(host.disks["two"])) as ill:
        host.disks["two"] = ill.device
        host.join("one")
        host.join("two")
        host.holder()
        ill.set("write-error")
        host.until(lambda: "failed" in host.daemon.stderr(), "a renewal has failed")
        expire_s = host.expire_s("two")
        if dies_first == "daemon":
            host.crash()
        host.until(lambda: time.monotonic() > expire_s + 2, "it has expired")
        host.kill_helper()
        if dies_first == "nobody":
            host.crash()
        host.until(lambda: not device.is_open, "it is closed")
        assert device.fires_s is not None
        assert device.fires_s <= expire_s + 1 + W


@pytest.mark.long
def test_restarts_keep_the_device(host: Host) -> None:
    """Neither a re-exec nor a crash with a successor opens, closes or leaves it unpetted."""
    for name in ("one", "two"):
        host.join(name)
    host.until_petted()
    for restart in ("exec", "crash"):
        if restart == "exec":
            os.kill(host.daemon.pid, signal.SIGUSR2)
            host.until(lambda: host.daemon.stderr().count(STARTED) == 2, "it is executed anew")
        else:
            host.crash()
            host.start()
        host.until_petted()
        assert host.spaces() == 2
    assert host.device.count("open") == 1
    assert host.device.count("close") == 0
    for name in ("one", "two"):
        host.leave(name)
    host.until_disarmed()
    assert not host.device.has_fired


@pytest.mark.long
def test_killed_for_good(host: Host) -> None:
    """Nobody pets it any more, nor opens it in this boot once it was closed uncleanly."""
    device = host.device
    host.join("one")
    host.until_petted()
    expire_s = host.expire_s("one")
    host.crash()
    pets = device.events
    host.until(lambda: device.events != pets, "it is closed, before the expiry")
    events = device.events
    assert [event.what for event in events[len(pets) :]] == ["close"]
    assert events[-1].at_s < expire_s + 1 + 2 * IO_TIMEOUT
    assert device.fires_s == events[-1].at_s + W
    host.start()
    with pytest.raises(DaemonError) as refusal:
        host.join("two")
    assert refusal.value.code == WD_ERROR
    assert device.events == events
    assert "ended uncleanly in this boot" in host.daemon.stderr()
