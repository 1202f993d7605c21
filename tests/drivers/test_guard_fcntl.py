"""`paxoslease guard` with record locks: what it does when the lock daemon ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from paxoslease.drivers.processes import Handle
from tests.cli.tool import COMMAND, await_that, call, refused
from tests.drivers.counting import COUNTER, CountingGuest
from tests.lockd.rig import LockDaemon, our_daemon


class Bench(CountingGuest):
    """A lock daemon that can be ended and started again, and a guest."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        super().__init__(directory / "progress")
        self.disk = directory / "disk.img"
        self.disk.touch()
        self.start_daemon()

    def start_daemon(self) -> None:
        """Start a lock daemon, which knows nothing of those before it."""
        self.daemon: LockDaemon = self._stack.enter_context(our_daemon(self.directory))

    def arguments(self, *more: object) -> list[str]:
        """Return the command line of a guard, without what it runs."""
        socket = f"socket={self.directory / 'socket'}"
        words = ["guard", "--driver", "fcntl", "--option", socket, "--disk", str(self.disk)]
        return [*words, *map(str, more), "--"]

    @contextmanager
    def guard(self, *more: object) -> Iterator[subprocess.Popen[str]]:
        """Run the counter under a guard; both are gone when the block ends."""
        with self.under(self.arguments(*more)) as process:
            yield process


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Give a lock daemon."""
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def line(guard: subprocess.Popen[str]) -> str:
    """Return the next line that a guard says."""
    assert guard.stderr is not None
    return guard.stderr.readline()


def test_one_at_a_time(bench: Bench) -> None:
    """A second guard is refused, and waits if that is wanted."""
    with bench.guard() as guard:
        refused(call(*bench.arguments(), "true"), 4, "is in use")
        guard.send_signal(signal.SIGTERM)
        assert guard.wait(20) == 128 + signal.SIGTERM
    assert call(*bench.arguments("--wait", 10), "sh", "-c", "exit 3").code == 3


def test_a_restart_in_place_changes_nothing(bench: Bench) -> None:
    """The guest goes on, and still excludes others."""
    with bench.guard() as guard:
        bench.daemon.send_signal(signal.SIGUSR1)
        await_that(lambda: bench.daemon.log.read_text().count("listens on") == 2, "it restarts")
        bench.runs()
        refused(call(*bench.arguments(), "true"), 4, "is in use")
        assert guard.poll() is None


def test_poweroff(bench: Bench) -> None:
    """The locks ended with the daemon: so does the guest."""
    with bench.guard() as guard:
        bench.daemon.end(signal.SIGKILL)
        assert guard.wait(20) == 5
        assert "the lock daemon has ended, and its locks with it; it is stopped" in line(guard)


def test_poweroff_of_a_guest_that_does_not_listen(bench: Bench) -> None:
    """SIGKILL follows."""
    stubborn = "trap '' TERM; echo $$ 1 > $0; while :; do sleep 0.1; done"
    command = [*COMMAND, *bench.arguments("--stop-after", 1)]
    command += ["sh", "-c", stubborn, str(bench.progress)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as guard:
        await_that(lambda: bench.progress.exists() and bench.progress.read_text(), "it runs")
        bench.daemon.end(signal.SIGKILL)
        assert guard.wait(20) == 5
        assert "is stopped" in line(guard)
        assert "has not ended within 1 s and is killed" in line(guard)
        with Handle(bench.pid) as guest:
            assert guest.is_gone


def test_pause_and_resume(bench: Bench) -> None:
    """It stands still without locks, and goes on when a new daemon gives them again."""
    with bench.guard("--on-lockfailure", "pause") as guard:
        bench.daemon.end(signal.SIGKILL)
        assert "it is paused" in line(guard)
        assert "is not released" in line(guard)
        stood_at = bench.count
        guard.send_signal(signal.SIGUSR1)  # would end it when it goes on
        guard.send_signal(signal.SIGCONT)
        assert "it stays paused: lock driver fcntl: no daemon at" in line(guard)
        bench.start_daemon()
        assert bench.count == stood_at
        guard.send_signal(signal.SIGCONT)
        assert "has its locks again" in line(guard)
        bench.runs()
        refused(call(*bench.arguments(), "true"), 4, "is in use")
        bench.daemon.end(signal.SIGKILL)
        assert "it is paused" in line(guard)


def test_restart(bench: Bench) -> None:
    """It is started anew when there is a daemon again."""
    with bench.guard("--on-lockfailure", "restart") as guard:
        first = bench.pid
        bench.daemon.end(signal.SIGKILL)
        assert "it is stopped" in line(guard)
        assert "started again as soon as" in line(guard)
        assert "not yet: lock driver fcntl: no daemon at" in line(guard)
        bench.start_daemon()
        await_that(lambda: bench.pid != first, "it is started again")
        bench.runs()
        refused(call(*bench.arguments(), "true"), 4, "is in use")
        guard.send_signal(signal.SIGTERM)
        assert guard.wait(20) == 128 + signal.SIGTERM


def test_ignore(bench: Bench) -> None:
    """It goes on, which is said; its own exit code is passed on."""
    with bench.guard("--on-lockfailure", "ignore") as guard:
        bench.daemon.end(signal.SIGKILL)
        assert "it goes on without locks, as was wanted" in line(guard)
        bench.runs()
        guard.send_signal(signal.SIGTERM)
        assert guard.wait(20) == 128 + signal.SIGTERM


def test_a_restart_that_is_interrupted_ends(bench: Bench) -> None:
    """While it waits for its locks a signal ends the guard itself."""
    with bench.guard("--on-lockfailure", "restart") as guard:
        bench.daemon.end(signal.SIGKILL)
        for _ in range(3):
            said = line(guard)
        assert "not yet" in said
        guard.send_signal(signal.SIGINT)
        assert guard.wait(20) == 128 + signal.SIGINT


def test_a_guard_that_waits_can_be_interrupted(bench: Bench) -> None:
    """A signal ends it at once, with the process that it had started; nothing ran."""
    touched = bench.directory / "touched"
    with bench.guard():
        command = [*COMMAND, *bench.arguments("--wait", 60), "touch", str(touched)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
            children = Path(f"/proc/{waiting.pid}/task/{waiting.pid}/children")
            await_that(children.read_text, "it has started a process")
            child = int(children.read_text().split()[0])
            waiting.send_signal(signal.SIGTERM)
            assert waiting.wait(20) == 128 + signal.SIGTERM
            with Handle(child) as process:
                assert process.wait_gone(10)
    assert not touched.exists()


@pytest.mark.parametrize("name", ["HUP", "QUIT", "USR1", "USR2"])
def test_signals_go_to_the_command(bench: Bench, name: str) -> None:
    """Whatever would end a guard is passed on, and the command decides."""
    polite = f"trap 'exit 9' {name}; echo $$ 1 > $0; while :; do sleep 0.05; done"
    command = [*COMMAND, *bench.arguments(), "sh", "-c", polite, str(bench.progress)]
    with subprocess.Popen(command) as guard:
        await_that(lambda: bench.progress.exists() and bench.progress.read_text(), "it runs")
        guard.send_signal(getattr(signal, f"SIG{name}"))
        assert guard.wait(20) == 9


STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + COUNTER


def started_by_a_shell(bench: Bench, ending: str) -> list[str]:
    """Return the command line of a guard whose command starts the guest beside itself."""
    guest = ["sh", "-c", f'"$@" & {ending}', "sh", sys.executable, "-c", STUBBORN]
    return [*COMMAND, *bench.arguments(), *guest, str(bench.progress)]


def test_what_a_lost_command_has_started_is_ended_with_it(bench: Bench) -> None:
    """A guest behind a shell does not outlive the loss of its locks, even if it does not listen."""
    with subprocess.Popen(started_by_a_shell(bench, "wait")) as guard:
        await_that(bench.progress.exists, "it runs")
        with Handle(bench.pid) as guest:
            bench.daemon.end(signal.SIGKILL)
            assert guard.wait(20) == 5
            assert guest.wait_gone(10)


def test_what_goes_on_after_the_command_keeps_the_locks(bench: Bench) -> None:
    """A guest that was put into the background is still the owner, with or without a guard."""
    with subprocess.Popen(
        started_by_a_shell(bench, "while [ ! -e $4 ]; do sleep 0.01; done; exit 3"),
        stderr=subprocess.PIPE,
        text=True,
    ) as guard:
        assert guard.wait(20) == 3
        assert f"what it has started goes on, with its locks and unwatched: {bench.pid}" in line(
            guard
        )
    with Handle(bench.pid) as guest:
        bench.runs()
        refused(call(*bench.arguments(), "true"), 4, "is in use")
        guest.kill()
        assert guest.wait_gone(10)
    assert call(*bench.arguments("--wait", 10), "true").code == 0


def test_one_disk_is_one_lock_however_it_is_named(bench: Bench, tmp_path: Path) -> None:
    """A relative path means the file that it leads to from here, not a lock of its own."""
    locks = tmp_path / "locks"
    locks.mkdir()
    shared = ("--option", f"file_lockspace_dir={locks}")
    socket = ("--option", f"socket={bench.directory / 'socket'}")
    with bench.guard(*shared):
        words = ("guard", "--driver", "fcntl", *shared, *socket, "--disk", bench.disk.name)
        refused(call(*words, "--", "true", cwd=bench.disk.parent), 4, f"{bench.disk} is in use")
