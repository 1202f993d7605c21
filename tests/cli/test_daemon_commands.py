"""`paxoslease daemon`, and the commands that talk to it, as processes."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import paxoslease
from paxoslease.cli.exits import exit_of
from paxoslease.client import Connection, connect
from paxoslease.wire import sanlock as wire
from tests.compat.peer_client import wait_until

PROGRAM = str(Path(sys.executable).with_name("paxoslease"))


class Rig:
    """A daemon in a run directory, a lockspace that it has joined, and a registered client."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = str(directory / "leases")
        self.process = self.start()
        self.client: Connection

    def start(self) -> subprocess.Popen[bytes]:
        """Start the daemon and wait until it answers."""
        command = [PROGRAM, "daemon", "--run-dir", str(self.directory), "--watchdog", "none"]
        process = subprocess.Popen(
            [*command, "--host-name", "host-a", "--set", "io_timeout = 1"],
            stderr=subprocess.DEVNULL,
        )
        wait_until(self.answers, 20, "the daemon does not answer")
        return process

    def answers(self) -> bool:
        """Tell whether the daemon answers."""
        try:
            connect(str(self.directory), timeout_s=5)
        except paxoslease.DaemonUnreachable:
            return False
        return True

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command; returns what it says, on standard error if it fails."""
        done = subprocess.run(
            [PROGRAM, words[0], "--run-dir", str(self.directory), *words[1:]],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    def tell(self, *words: str) -> Any:
        """Run a command that reports; returns its JSON."""
        return json.loads(self.run(*words, "--json"))

    def lease(self, number: int) -> str:
        """Return resource `number` as commands take it."""
        return f"vms:r{number}:{self.disk}:{number}M"


def answers(client: Connection) -> bool:
    """Tell whether there is a daemon."""
    try:
        client.version()
    except paxoslease.DaemonUnreachable:
        return False
    return True


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("d")
    rig = Rig(directory)
    paxoslease.format_lockspace(rig.disk, "vms", io_timeout=1)
    for _ in paxoslease.format_resources(
        rig.disk, "vms", [f"r{n}" for n in range(1, 13)], offset=1 << 20
    ):
        continue
    rig.client = Connection(str(directory), timeout_s=30)
    try:
        rig.run("join", f"vms:{rig.disk}", "--host-id", "1")
        rig.client.register()
        yield rig
    finally:
        rig.client.close()
        rig.process.kill()
        rig.process.wait()


def test_join_and_leave_say_what_is(rig: Rig) -> None:
    """Joining again is no error, leaving what is not there is."""
    again = rig.tell("join", f"vms:{rig.disk}", "--host-id", "1")
    assert again == {"lockspace": "vms", "host_id": 1, "state": "joined already"}
    assert "not joined" in rig.run("leave", "nothing", code=2)


def test_a_join_that_is_refused_says_why(rig: Rig) -> None:
    """The exit code is that of commands without a daemon, and the daemon's log has the reason."""
    said = rig.run("join", f"vms:{rig.disk}", "--host-id", "2", code=2)
    assert f"'vms' is joined already, as host 1 at {rig.disk}:0" in said
    said = rig.run("join", f"other:{rig.disk}", "--host-id", "1", code=2)
    assert f"'vms' is joined already, as host 1 at {rig.disk}:0" in said
    nowhere = f"{rig.directory}/nowhere"
    said = rig.run("join", f"other:{nowhere}", "--host-id", "1", code=3)
    assert "the path cannot be opened" in said
    assert "hint: look at how the path is written" in said
    told = [line for line in rig.tell("log")["lines"] if "join failed -19" in line]
    assert f"{nowhere} " in told[-1]
    said = rig.run("join", f"other:{rig.disk}:1M", "--host-id", "1", code=3)
    assert "paxoslease inspect" in said


def test_a_join_without_the_watchdog_says_what_is_missing(rig: Rig, tmp_path: Path) -> None:
    """The log names the watchdog that is not there, not only the system's error."""
    command = [PROGRAM, "daemon", "--run-dir", str(tmp_path), "--watchdog", "/dev/nope"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with Connection(str(tmp_path), timeout_s=30) as client:
            wait_until(lambda: answers(client), 20, "the daemon does not answer")
            space = wire.Lockspace(b"vms", 3, 0, wire.Disk(rig.disk.encode(), 0))
            with pytest.raises(paxoslease.DaemonError, match="-203"):
                client.add_lockspace(space)
            assert b"no watchdog: /dev/nope: No such file" in client.log_dump()
    finally:
        process.kill()
        process.wait()


def test_paths_are_those_of_who_asks(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon has another current directory: a relative path is made whole before it is sent."""
    monkeypatch.chdir(rig.directory)
    here = Path(rig.disk).name
    assert rig.tell("join", f"vms:{here}", "--host-id", "1")["state"] == "joined already"
    rig.run("acquire", "--pid", str(os.getpid()), f"vms:r7:{here}:7M")
    (row,) = rig.tell("leases")
    assert row["place"] == f"{rig.disk}:{7 << 20}"
    rig.run("release", "--pid", str(os.getpid()), "--all")


def test_a_row_is_a_line(rig: Rig) -> None:
    """Where no terminal gives the width, tables are not folded: programs read them by line."""
    name = "a-resource-with-a-name-that-is-as-long-as-can-be"
    with Connection(str(rig.directory), timeout_s=30) as client:
        client.write_resource(
            wire.Resource(b"vms", name.encode(), (wire.Disk(rig.disk.encode(), 20 << 20),))
        )
    rig.run("acquire", "--pid", str(os.getpid()), f"vms:{name}:{rig.disk}:20M")
    _, row = rig.run("leases").splitlines()
    assert name in row
    assert f"{rig.disk}:{20 << 20}" in row
    rig.run("release", "--pid", str(os.getpid()), "--all")


def test_a_batch_of_twelve_is_had_shown_and_released(rig: Rig) -> None:
    """More than eight leases in one request; `leases` shows them, `release` gives them back."""
    pid = str(os.getpid())
    wanted = [rig.lease(n) for n in range(1, 13)]
    assert len(rig.tell("acquire", "--pid", pid, *wanted)["leases"]) == 12
    shown = rig.tell("leases", "--pid", pid)
    assert {row["resource"] for row in shown} == {f"r{n}" for n in range(1, 13)}
    assert {(row["mode"], row["state"]) for row in shown} == {("exclusive", "held")}
    assert "r3" in rig.run("leases")
    rig.run("release", "--pid", pid, "vms:r3")
    assert len(rig.tell("leases")) == 11
    assert "-1 EPERM" in rig.run("release", "--pid", pid, "vms:r3", code=1)
    rig.run("release", "--pid", pid, "--all")
    assert rig.tell("leases") == []


def test_a_batch_is_all_or_nothing_and_names_the_one(rig: Rig) -> None:
    """One that is not to be had keeps all others from being held, and is named."""
    pid = str(os.getpid())
    wrong = f"vms:other:{rig.disk}:5M"
    said = rig.run("acquire", "--pid", pid, rig.lease(1), wrong, rig.lease(2), code=3)
    assert "vms:other" in said
    assert "-227" in said
    assert rig.tell("leases") == []
    with pytest.raises(paxoslease.AcquireFailed) as failed:
        rig.client.acquire(
            [
                wire.Resource(b"vms", name, (wire.Disk(rig.disk.encode(), offset << 20),))
                for name, offset in ((b"r1", 1), (b"r9", 8))
            ]
        )
    assert failed.value.resource is not None
    assert failed.value.resource.name == b"r9"


def test_the_daemon_tells_of_itself(rig: Rig) -> None:
    """status, hosts, renewals and log, for people and for programs."""
    status = rig.tell("status")
    assert status["host_name"] == "host-a"
    assert [s["state"] for s in status["lockspaces"]] == ["joined"]
    assert os.getpid() in [client["pid"] for client in status["clients"]]
    assert "host-a" in rig.run("status")
    wait_until(lambda: bool(rig.tell("renewals", "vms")), 10, "no renewal")
    hosts = rig.tell("hosts")
    assert [(h["host_id"], h["name"], h["state"]) for h in hosts] == [(1, "host-a", "live")]
    assert "joined host_id 1" in rig.run("log")


def test_a_request_reaches_the_holder(rig: Rig) -> None:
    """Asked to give its lease up, a process gets SIGTERM."""
    program = f"""
import sys
from paxoslease.client import Connection
client = Connection({str(rig.directory)!r})
client.register()
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        rig.run("acquire", "--pid", str(holder.pid), rig.lease(7))
        rig.run("request", rig.lease(7))
        # Our own host looks when it is told to; other hosts see a mark in our next renewal.
        rig.client.examine_resource(wire.Resource(b"vms", b"r7"))
        assert holder.wait(20) == -15
    wait_until(lambda: rig.tell("leases") == [], 10, "the lease is still there")


def test_restart_keeps_what_is_held(rig: Rig) -> None:
    """The daemon executes itself anew: same pid, same lease, same connection."""
    pid = str(os.getpid())
    rig.run("acquire", "--pid", pid, rig.lease(4))
    before = rig.tell("leases")
    assert rig.tell("restart")["pid"] == rig.process.pid
    assert rig.tell("leases") == before
    count, _ = rig.client.inquire()
    assert count == 1
    rig.client.release_all()


def test_shutdown_waits_for_force_while_there_is_a_lockspace(rig: Rig, tmp_path: Path) -> None:
    """Without --force it is refused; a daemon without lockspaces ends."""
    assert "-16" in rig.run("shutdown", code=1)
    assert rig.answers()
    other = Rig(tmp_path)
    other.run("shutdown")
    assert other.process.poll() == 0
    assert "no daemon" in other.run("status", code=1)


def test_commands_without_a_daemon_say_so(tmp_path: Path) -> None:
    """All in the same way, with what can be done, for people and for programs."""
    for words in (["status"], ["restart"], ["shutdown"], ["leave", "vms"], ["leases"]):
        command = [PROGRAM, *words, "--run-dir", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1, words
        assert f"no daemon at {tmp_path}/sanlock.sock: No such file" in done.stderr
        assert "hint: start the daemon" in done.stderr
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=30)
        assert (done.returncode, json.loads(done.stdout)["error"]) == (1, "DaemonUnreachable")
    denied = str(paxoslease.DaemonUnreachable("status", -13, "/run/x"))
    assert denied == "the daemon's socket /run/x may not be used: Permission denied"


def test_each_line_of_the_log_is_written_once_and_waits_for_nobody(tmp_path: Path) -> None:
    """Standard error gets what the log gets; if nobody reads it, the daemon goes on."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    command = [PROGRAM, "daemon", "--run-dir", str(tmp_path), "--watchdog", "none"]
    process = subprocess.Popen(command, stderr=writer)
    os.close(writer)
    client = Connection(str(tmp_path), timeout_s=10)

    try:
        wait_until(lambda: answers(client), 20, "the daemon does not answer")
        first = os.read(reader, 4096).decode()
        assert first.count("Using non-standard run directory") == 1
        absent = wire.Lockspace(b"vms", 1, 0, wire.Disk(f"{tmp_path}/none".encode(), 0))
        for _ in range(60):  # some lines each, more than the pipe takes
            with pytest.raises(paxoslease.DaemonError, match="-19"):
                client.add_lockspace(absent)
    finally:
        client.close()
        process.kill()
        process.wait()
        os.close(reader)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--io-timeout", "0"], "not a number from 1 to 255"),
        (["--set", "io_timeout = 256"], "not between 1 and 255"),
        (["--set", "watchdog_fire_timeout = 0"], "not between 1 and 3600"),
        (["--set", "kill_grace = 61"], "not between 0 and 60"),
        (["--set", "renewal_history = -1"], "not between 0 and"),
        (["--watchdog", "bogus"], "neither 'none' nor 'wdmd' nor a device"),
        (["--host-name", "x" * 49], "at most 48 fit"),
        (["--set", "user=nobody"], "a text is written in quotes"),
        (["--config", "/"], "Is a directory"),
        (["--set", "io_timeout = 'x'"], "not of type int"),
        (["--set", "nonsense = 1"], "no setting"),
        (["--set", "io_timeout"], "--set"),
        (["--config", "/nonexistent"], "no file"),
    ],
)
def test_a_setting_that_is_none_is_refused(words: list[str], said: str) -> None:
    """The daemon does not start with settings that it does not understand."""
    done = subprocess.run([PROGRAM, "daemon", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("number", "code"),
    [
        *((number, 4) for number in (-243, -247, -11, -17, -262)),
        *((number, 3) for number in (-2, -5, -19, -90, -202, -223, -229)),
        *((number, 2) for number in (-22, -231)),
        *((number, 1) for number in (-28, -3, -203)),
    ],
)
def test_a_refusal_has_the_same_exit_code_as_without_a_daemon(number: int, code: int) -> None:
    """Scripts tell 'somebody has it' and 'the place is bad' from everything else by it."""
    assert exit_of(paxoslease.DaemonError("acquire", number)) == code
