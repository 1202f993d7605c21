"""The watchdog's multiplexer: Debian's wdmd on a device that is played by the test.

wdmd 3.8.5 tests its clients every 10 s and lets a device with 60 s fire. `peer` because of wdmd;
where the real sanlock is in the same place of a test, what it does is compared.

Source: spec/timing-and-recovery.md 4 and 4.1.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

import paxoslease
from paxoslease.client import Connection, DaemonError
from paxoslease.wire import sanlock as wire
from tests.cli.ill_disk import ill_disk_on
from tests.compat.wdmd_rig import FIRE_TIMEOUT_S, TEST_INTERVAL_S, Wdmd, started_wdmd
from tests.daemon.agent import Agent
from tests.daemon.daemons import Daemon, Kind
from tests.daemon.restart_rig import await_end
from tests.system.fake_watchdog import PrivateRun
from tests.system.rig import MIB, Child

pytestmark = pytest.mark.peer

SPACE = "space"
WD_ERROR = -203
# wdmd compares whole seconds every 10 s. A client passes a test at 10.001 s before its expiry, and
# the next one comes 10 s later and a few ms: that is after the expiry that the real sanlock names,
# and before that of ours, who names one that is a second earlier.
LATE_S = 1


class Rig(NamedTuple):
    """A wdmd, the /run that it lives in, and a lease disk."""

    wdmd: Wdmd
    run: PrivateRun
    directory: Path
    disk: Path


def make_disk(path: Path, io_timeout: int) -> None:
    """Format the lockspace and r0 behind it."""
    paxoslease.format_lockspace(str(path), SPACE, io_timeout=io_timeout)
    paxoslease.format_resource(str(path), SPACE, "r0", offset=MIB)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    disk = tmp_path / "disk"
    make_disk(disk, 2)
    with started_wdmd(tmp_path) as (wdmd, run):
        yield Rig(wdmd, run, tmp_path, disk)


def only_claim(rig: Rig) -> tuple[int, int]:
    """Return renewal and expiry of the only client, (0, 0) when there is none."""
    claims = list(rig.wdmd.claims().values())
    return (claims[0].renewal, claims[0].expire) if len(claims) == 1 else (0, 0)


# -- the engine ----------------------------------------------------------------------------------

HOLDER = """
    import contextlib
    space = paxoslease.join(sys.argv[1], "space", 1, io_timeout=2, watchdog="wdmd")
    lease = space.lease("r0", sys.argv[1], offset=1 << 20)
    say("joined")
    for line in sys.stdin:
        if line == "leave\\n":
            break
        space.lost.wait()
        say("lost")
    with contextlib.suppress(paxoslease.LeaseLost):
        lease.release()
    space.leave()
    say("left")
"""


def test_engine(rig: Rig) -> None:
    """A membership is one client, renewed with every renewal, gone when it is left."""
    with Child(HOLDER, rig.disk, prefix=rig.run.prefix) as child:
        child.hear("joined", 40)
        claim = rig.wdmd.claims()[f"sanlock_{SPACE}:1"]
        assert (claim.pid, claim.is_dead, claim.refcount) == (child.pid, False, 1)
        # A second less than 8 io_timeouts, for a wdmd that is late. Both are rounded down to
        # seconds of another clock, which may part them by one.
        assert claim.expire - claim.renewal in (15, 16)
        rig.wdmd.until(lambda: only_claim(rig)[0] > claim.renewal, "it was told of a renewal")
        rig.wdmd.stop()
        # It looks for signals before it looks for requests: this one is answered after that one.
        assert rig.wdmd.claims(), "it goes on, since it is in use"
        child.tell("leave")
        child.hear("left")
        assert rig.wdmd.claims() == {}
    rig.wdmd.stop()
    assert rig.wdmd.process.wait(20) == 0
    device = rig.wdmd.device
    rig.wdmd.until(lambda: not device.is_open, "the device is closed")
    whats = device.whats()
    assert whats[:3] == ["open", f"set {FIRE_TIMEOUT_S}", "keepalive"]
    assert whats[-2:] == ["write V", "disarm"]
    assert "close" not in whats
    assert device.fires_s is None
    assert not device.has_fired


@pytest.mark.long
def test_engine_whose_storage_is_lost(rig: Rig) -> None:
    """While a lost lease is not given back wdmd stops petting in time, and goes on afterwards."""
    device = rig.wdmd.device
    with ill_disk_on(rig.disk) as ill, Child(HOLDER, ill.device, prefix=rig.run.prefix) as child:
        child.hear("joined", 40)
        ill.set("write-error")
        child.tell()
        rig.wdmd.until(lambda: device.count("close") == 1, "the device is closed", 60)
        _, expire = only_claim(rig)
        closed_s = device.events[-1].at_s
        assert device.whats()[-1] == "close"
        assert expire - TEST_INTERVAL_S <= closed_s < expire + LATE_S
        child.hear("lost")
        fires_s = device.fires_s
        assert fires_s is not None
        assert fires_s < expire + LATE_S + FIRE_TIMEOUT_S
        tests = rig.wdmd.log().count("test failed")
        rig.wdmd.until(lambda: rig.wdmd.log().count("test failed") > tests + 2, "it still fails")
        assert device.fires_s == fires_s
        child.tell("leave")
        child.hear("left")
        rig.wdmd.until(lambda: device.whats()[-2:] == ["open", "keepalive"], "it is petted again")
    assert not device.has_fired


# -- the daemons ---------------------------------------------------------------------------------

both = pytest.mark.parametrize("kind", ["real", "ours"])


class Host:
    """A daemon in wdmd's /run, with its helper; a context manager."""

    def __init__(self, kind: Kind, run: PrivateRun, directory: Path, disk: Path | str) -> None:
        self.disk = disk
        options = ("-w", "1")
        self.daemon = Daemon(kind, directory / "host", "host", options, prefix=run.prefix)
        self._helpers = self.daemon.children()
        self._agents: list[Agent] = []

    def agent(self) -> Agent:
        """Start a client."""
        self._agents.append(Agent(str(self.daemon.run_dir)))
        return self._agents[-1]

    def connection(self) -> Connection:
        """Return a connection that is not registered."""
        return Connection(str(self.daemon.run_dir), timeout_s=60)

    def join(self, io_timeout: int, *, is_used: bool = True) -> None:
        """Join the lockspace; is_used: say so, as it would be left after a crash else."""
        with self.connection() as connection:
            connection.add_lockspace(self.space(), io_timeout)
            if is_used:
                connection.set_config(SPACE.encode(), wire.Config.USED)

    def leave(self) -> None:
        """Leave it."""
        with self.connection() as connection:
            connection.set_config(SPACE.encode(), wire.Config.UNUSED)
            connection.rem_lockspace(self.space())

    def space(self) -> wire.Lockspace:
        """Return the lockspace as a request names it."""
        return wire.Lockspace(SPACE.encode(), 1, disk=wire.Disk(os.fsencode(self.disk)))

    def crash(self) -> None:
        """Kill the daemon with SIGKILL, and nothing else."""
        self.daemon.process.kill()
        self.daemon.process.wait()

    def start(self) -> None:
        """Start a daemon in the place of the one that was killed."""
        self.daemon.start_again()
        self._helpers += self.daemon.children()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self._agents:
            agent.end()
        self.daemon.kill()
        for pid in self._helpers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@both
def test_daemon_without_wdmd(tmp_path: Path, kind: Kind) -> None:
    """A join is refused at once when there is no wdmd."""
    make_disk(tmp_path / "disk", 2)
    with PrivateRun() as run, Host(kind, run, tmp_path, tmp_path / "disk") as host:
        with pytest.raises(DaemonError) as refusal:
            host.join(2)
        assert refusal.value.code == WD_ERROR
        with host.connection() as connection:
            assert connection.get_lockspaces() == ()


@pytest.mark.long
@both
def test_daemon_that_leaves(rig: Rig, kind: Kind) -> None:
    """What wdmd knows of a daemon's lockspace is the same with both; nothing when it is left."""
    with Host(kind, rig.run, rig.directory, rig.disk) as host:
        host.join(2)
        claim = rig.wdmd.claims()[f"sanlock_{SPACE}:1"]
        assert (claim.pid, claim.is_dead, claim.refcount) == (host.daemon.pid, False, 1)
        assert claim.expire - claim.renewal in ((16,) if kind == "real" else (15, 16))
        host.leave()
        rig.wdmd.until(lambda: rig.wdmd.claims() == {}, "the claim is gone")
    rig.wdmd.stop()
    assert rig.wdmd.process.wait(20) == 0
    rig.wdmd.until(lambda: not rig.wdmd.device.is_open, "the device is closed")
    assert rig.wdmd.device.whats()[-2:] == ["write V", "disarm"]
    assert "close" not in rig.wdmd.device.whats()


@pytest.mark.long
@both
def test_daemon_whose_storage_is_lost(rig: Rig, kind: Kind) -> None:
    """The device is closed before the expiry; when the killed client is gone it is petted again.

    Neither does that for a lockspace that was said to be used: then the host is reset.
    """
    device = rig.wdmd.device
    with ill_disk_on(rig.disk) as ill, Host(kind, rig.run, rig.directory, ill.device) as host:
        host.join(2, is_used=False)
        agent = host.agent()
        agent("register")
        agent("acquire", resources=[[SPACE, "r0", ill.device, MIB, 0]])
        ill.set("write-error")
        rig.wdmd.until(lambda: device.count("close") == 1, "the device is closed", 60)
        closed_s = device.events[-1].at_s
        _, expire = only_claim(rig)
        assert expire - TEST_INTERVAL_S <= closed_s < expire + LATE_S
        assert agent.process.poll() is None
        assert await_end(agent, 60) == -signal.SIGTERM
        rig.wdmd.until(lambda: device.whats()[-2:] == ["open", "keepalive"], "it is petted again")
        rig.wdmd.until(lambda: rig.wdmd.claims() == {}, "the claim is gone")
    assert not device.has_fired


@pytest.mark.long
def test_restarts_keep_the_claim(rig: Rig) -> None:
    """A re-exec and a crash with a successor keep the connection; nobody stops petting.

    The real sanlock knows neither: a crash is the reset of the host (the next test).
    """
    disk = rig.directory / "slower"
    make_disk(disk, 3)
    with Host("ours", rig.run, rig.directory, disk) as host:
        host.join(3)
        connected_by = host.daemon.pid
        for restart in ("exec", "crash"):
            renewal, _ = only_claim(rig)
            if restart == "exec":
                os.kill(host.daemon.pid, signal.SIGUSR2)
                rig.wdmd.until(
                    lambda: host.daemon.stderr().count("sanlock daemon started") == 2, "it is anew"
                )
            else:
                host.crash()
                claim = rig.wdmd.claims()[f"sanlock_{SPACE}:1"]
                assert (claim.pid, claim.is_dead) == (connected_by, False)
                host.start()
            rig.wdmd.until(
                lambda at=renewal: only_claim(rig)[0] > at + 3, f"renewed after {restart}"
            )
            with host.connection() as connection:
                assert len(connection.get_lockspaces()) == 1
        pets = rig.wdmd.device.count("keepalive")
        rig.wdmd.until(lambda: rig.wdmd.device.count("keepalive") > pets, "it is petted")
        assert rig.wdmd.claims()[f"sanlock_{SPACE}:1"].pid == connected_by
        host.leave()
        rig.wdmd.until(lambda: rig.wdmd.claims() == {}, "the claim is gone")
    assert rig.wdmd.device.count("close") == 0
    assert not rig.wdmd.device.has_fired


@pytest.mark.long
@both
def test_daemon_that_is_killed(rig: Rig, kind: Kind) -> None:
    """Without a successor the device is closed before the expiry, for good.

    The real sanlock's connection is gone with it, at once; ours is kept for a successor until the
    membership has expired. For wdmd both are a client that is not heard of any more.
    """
    device = rig.wdmd.device
    with Host(kind, rig.run, rig.directory, rig.disk) as host:
        host.join(2)
        _, expire = only_claim(rig)
        assert expire
        host.crash()
        assert next(iter(rig.wdmd.claims().values())).is_dead == (kind == "real")
        rig.wdmd.until(lambda: device.count("close") == 1, "the device is closed", 60)
        expire = max(expire, only_claim(rig)[1])
        closed_s = device.events[-1].at_s
        assert expire - TEST_INTERVAL_S <= closed_s < expire + LATE_S
        rig.wdmd.until(
            lambda: next(iter(rig.wdmd.claims().values())).is_dead, "the claim is nobody's", 60
        )
        tests = rig.wdmd.log().count("test failed")
        rig.wdmd.until(lambda: rig.wdmd.log().count("test failed") > tests + 2, "it still fails")
        assert device.events[-1].at_s == closed_s
        assert device.fires_s == closed_s + FIRE_TIMEOUT_S
        rig.wdmd.stop()
        assert rig.wdmd.claims(), "it does not end cleanly"
