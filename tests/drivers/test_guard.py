"""`paxoslease guard` as a process: locks before the command, and what comes of their loss."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from paxoslease.disk.records import pack_leader, unpack_leader
from paxoslease.drivers.processes import Handle
from paxoslease.drivers.registry import open_driver
from tests.cli.tool import COMMAND, await_that, call, refused
from tests.compat.peer import SanlockHost
from tests.drivers.counting import CountingGuest
from tests.drivers.rigs import OurLeaseDaemon, paxos_options, sanlock

LOCKSPACE = "__LIBVIRT__DISKS__"
DOMAIN = """<domain type='kvm'><name>demo</name>
  <on_lockfailure>{action}</on_lockfailure>
  <devices><disk type='file'><source file='{disk}'/></disk></devices></domain>
"""


class Bench(CountingGuest):
    """A host with a lease daemon and automatic leases, and files for guests."""

    def __init__(
        self, directory: Path, host: SanlockHost | OurLeaseDaemon, host_id: int = 1
    ) -> None:
        self.directory = directory
        self.host = host
        self.leases = directory / "leases"
        self.leases.mkdir(exist_ok=True)
        self.disk = directory / "disk.img"
        self.disk.touch()
        super().__init__(directory / f"progress-{host_id}")
        self.options: dict[str, Any] = paxos_options(host.run_dir, self.leases, host_id)
        self.driver = open_driver("paxos", **self.options)

    def arguments(self, *more: object, action: str | None = None) -> list[str]:
        """Return the command line of a guard, without what it runs."""
        words = ["guard", "--driver", "paxos"]
        for key, value in self.options.items():
            words += ["--option", f"{key}={value}"]
        if action is not None:
            definition = self.directory / "guest.xml"
            definition.write_text(DOMAIN.format(action=action, disk=self.disk))
            words += ["--domain", str(definition)]
        else:
            words += ["--disk", str(self.disk)]
        return [*words, *map(str, more), "--"]

    @contextmanager
    def guard(self, *more: object, action: str | None = None) -> Iterator[subprocess.Popen[str]]:
        """Run the counter under a guard; both are gone when the block ends."""
        with self.under(self.arguments(*more, action=action)) as process:
            yield process

    def lose(self) -> None:
        """Let the lockspace fail at once: somebody overwrites this host's record."""
        with (self.leases / LOCKSPACE).open("r+b") as file:
            file.seek(0)
            self.record = file.read(512)
            file.seek(0)
            file.write(bytes(512))
            os.fsync(file.fileno())

    def repair(self) -> None:
        """Put the record back, as one that was left: a failed one would be waited for a minute."""
        left = unpack_leader(self.record)._replace(timestamp=0).sealed()
        with (self.leases / LOCKSPACE).open("r+b") as file:
            file.write(pack_leader(left, 512))
            os.fsync(file.fileno())

    def joined(self) -> bool:
        """Tell whether the daemon has the lockspace."""
        return LOCKSPACE in self.host.status()


@pytest.fixture(
    params=[
        pytest.param(OurLeaseDaemon, id="ours"),
        pytest.param(sanlock, id="sanlock", marks=[pytest.mark.peer, pytest.mark.long]),
    ]
)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Give a host of its own: its lockspace fails in most tests."""
    with request.param(tmp_path, "host") as host:
        yield Bench(tmp_path, host)


def test_the_exit_code_is_the_commands() -> None:
    """With nop nothing is locked, which is said, and the command's status is passed on."""
    done = call("guard", "--driver", "nop", "--", "sh", "-c", "exit 7")
    assert done.code == 7
    assert done.err.count("NO LOCKS AT ALL") == 1
    assert call("guard", "--driver", "nop", "--", "sh", "-c", "kill -9 $$").code == 137
    assert call("guard", "--driver", "nop", "--", "/dev/null").code == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--driver", "nap"], 2, "not installed"),
        (["--driver", "nop", "--option", "speed=1"], 2, "no such option"),
        (["--driver", "nop", "--option", "speed"], 2, "not KEY=VALUE"),
        (["--driver", "nop", "--config", "/no/such/file"], 2, "no file"),
        (["--driver", "nop", "--domain", "/no/such/file"], 2, "no file"),
        (["--driver", "nop", "--lease", "a:b"], 2, "is not LOCKSPACE:KEY:PATH"),
        (["--driver", "nop", "--disk", "/a", "--disk", "/a"], 2, "given twice"),
        (["--driver", "paxos", "--option", "run_directory=/no/such"], 1, "no daemon at"),
        (["--driver", "paxos", "--option", "auto_disk_leases=1"], 2, "host's id"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    words: list[str], code: int, said: str, tmp_path: Path
) -> None:
    """One line and a hint; the command was never started."""
    touched = tmp_path / "touched"
    refused(call("guard", *words, "--", "touch", touched), code, said)
    assert not touched.exists()


def test_the_command_runs_under_its_locks(bench: Bench) -> None:
    """A second guard is refused while the first runs, and gets the lock when that one ends."""
    with bench.guard() as first:
        second = call(*bench.arguments(), "true")
        refused(second, 4, str(bench.disk), "is in use")
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 128 + signal.SIGTERM
        assert call(*bench.arguments("--wait", "20"), "sh", "-c", "exit 3").code == 3


def test_the_command_keeps_its_locks_when_its_guard_is_killed(bench: Bench) -> None:
    """The locks are the command's: it goes on, and still excludes others, to its own end."""
    with bench.guard() as guard:
        guard.kill()
        guard.wait(20)
        bench.runs()
        refused(call(*bench.arguments(), "true"), 4, "is in use")
        os.kill(bench.pid, signal.SIGKILL)
        assert call(*bench.arguments("--wait", "20"), "true").code == 0


@pytest.mark.parametrize("action", ["poweroff", "default"])
def test_a_lost_lease_stops_the_command(bench: Bench, action: str) -> None:
    """The guest is ended, and the exit code says why."""
    with bench.guard(action=action) as guard:
        bench.lose()
        assert guard.wait(40) == 5
        assert guard.stderr is not None
        said = guard.stderr.read()
        assert "the lease daemon has lost the lockspace; the command was stopped" in said
        with Handle(bench.pid) as guest:
            assert guest.is_gone


def test_a_lost_lease_pauses_the_command_and_a_signal_resumes_it(bench: Bench) -> None:
    """It stands still while it has no lease, and goes on under the lease that it had."""
    with bench.guard(action="pause") as guard:
        assert guard.stderr is not None
        bench.lose()
        assert "it is paused" in guard.stderr.readline()
        await_that(lambda: not bench.joined(), "the daemon has let go of the lockspace", 40)
        stood_at = bench.count
        guard.send_signal(signal.SIGCONT)
        assert "it stays paused" in guard.stderr.readline()
        assert bench.count == stood_at
        bench.repair()
        guard.send_signal(signal.SIGCONT)
        assert "has its locks again" in guard.stderr.readline()
        bench.runs()
        refused(call(*bench.arguments(), "true"), 4, "is in use")


def test_a_lost_lease_pauses_a_command_whose_guard_is_gone(bench: Bench) -> None:
    """The lease daemon has it paused, lets go of its leases, and does not kill it."""
    with bench.guard(action="pause") as guard:
        guard.kill()
        guard.wait(20)
        bench.lose()
        await_that(lambda: not bench.joined(), "the daemon has let go of the lockspace", 40)
        with Handle(bench.pid) as guest:
            assert guest.wait_stopped(0)
            assert not guest.is_gone


def test_a_paused_command_does_not_run_on_after_another_one(bench: Bench) -> None:
    """If somebody else has had the disk meanwhile, resuming is refused; it can only be ended."""
    with bench.guard(action="pause") as guard:
        assert guard.stderr is not None
        bench.lose()
        assert "it is paused" in guard.stderr.readline()
        await_that(lambda: not bench.joined(), "the daemon has let go of the lockspace", 40)
        bench.repair()
        assert call(*bench.arguments(), "true").code == 0
        stood_at = bench.count
        guard.send_signal(signal.SIGCONT)
        assert "was held by somebody else" in guard.stderr.readline()
        assert bench.count == stood_at
        guard.send_signal(signal.SIGTERM)
        assert guard.wait(20) == 5
        assert bench.count == stood_at


def test_a_lost_lease_restarts_the_command(bench: Bench) -> None:
    """It is ended, and started anew when the lease is to be had again."""
    with bench.guard(action="restart") as guard:
        assert guard.stderr is not None
        first = bench.pid
        bench.lose()
        # That it is stopped is told unless it has ended before its guard had a look.
        said = guard.stderr.readline()
        assert "it is stopped" in said or "started again" in said
        while "not yet" not in said:
            said = guard.stderr.readline()
            assert said
        bench.repair()
        await_that(lambda: bench.pid != first, "it is started again", 40)
        bench.runs()
        guard.send_signal(signal.SIGTERM)
        assert guard.wait(20) == 128 + signal.SIGTERM


def test_the_end_of_the_daemon_is_a_loss(bench: Bench) -> None:
    """Nobody renews the leases any more: the guest is stopped long before others may take over."""
    with bench.guard() as guard:
        bench.host.kill_daemon()
        assert guard.wait(30) == 5
        assert guard.stderr is not None
        assert "the lease daemon is gone" in guard.stderr.read()


def test_ignoring_is_not_offered_with_leases(bench: Bench) -> None:
    """The daemon kills what goes on without a lease, so nobody may promise anything else."""
    done = call(*bench.arguments("--on-lockfailure", "ignore"), "true")
    refused(done, 2, "does not support the failure action ignore")


def test_a_restart_of_our_daemon_changes_nothing(tmp_path: Path) -> None:
    """It executes its program anew under a running guest, which keeps its lease."""
    with OurLeaseDaemon(tmp_path, "host") as host:
        bench = Bench(tmp_path, host)
        with bench.guard() as guard:
            restarted = call("restart", "--run-dir", host.run_dir)
            assert restarted.code == 0, restarted
            bench.runs()
            refused(call(*bench.arguments(), "true"), 4, "is in use")
            assert guard.poll() is None
            guard.send_signal(signal.SIGTERM)
            assert guard.wait(20) == 128 + signal.SIGTERM
            assert call(*bench.arguments("--wait", "20"), "true").code == 0


def test_a_crash_of_our_daemon_that_is_mended_at_once_changes_nothing(tmp_path: Path) -> None:
    """A daemon that is started again takes the leases over; its guests have lost nothing."""
    with OurLeaseDaemon(tmp_path, "host") as host:
        bench = Bench(tmp_path, host)
        with bench.guard() as guard:
            host.kill_daemon()
            host.start()
            await_that(host.listens, "the new daemon listens")
            bench.runs()
            await_that(bench.joined, "the new daemon goes on with the lockspace")
            refused(call(*bench.arguments(), "true"), 4, "is in use")
            assert guard.poll() is None


@pytest.mark.long
def test_another_host_takes_over_when_it_is_safe(tmp_path: Path) -> None:
    """The guest of a host whose daemon has died is gone long before another host may start it."""
    with OurLeaseDaemon(tmp_path, "one") as one, OurLeaseDaemon(tmp_path, "two") as two:
        here, there = Bench(tmp_path, one), Bench(tmp_path, two, 2)
        there.driver.prepare()
        with here.guard() as guard, Handle(here.pid) as guest:
            one.kill_daemon()
            touched = tmp_path / "touched"
            words = there.arguments("--wait", 110)
            command = [*COMMAND, *words, "touch", str(touched)]
            with subprocess.Popen(command) as successor:
                assert guest.wait_gone(40)
                assert not touched.exists()
                assert successor.poll() is None
                assert guard.wait(20) == 5
                assert successor.wait(110) == 0
                assert touched.exists()
