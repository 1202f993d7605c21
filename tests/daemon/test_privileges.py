"""Identity, limits and the helper process: most of it as root, each in a process of its own."""

from __future__ import annotations

import grp
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoslease.daemon import privileges
from tests.compat.peer_client import wait_until
from tests.daemon import daemons, wire
from tests.daemon.scripts import common
from tests.daemon.stage import Stage

NEED_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives up its identity")
NOBODY = pwd.getpwnam("nobody")
PRELUDE = f"""
import logging, os, resource, select, signal, socket, subprocess, sys, threading, time
from paxoslease.daemon import privileges
from paxoslease.daemon.helper import start_helper
from paxoslease.daemon.privileges import Identity
from paxoslease.engine.processes import Process, Wishes, act_through
NOBODY = Identity("nobody", {NOBODY.pw_uid}, {NOBODY.pw_gid})
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(levelname)s %(message)s")

def readable(fd, limit_s=10):
    assert select.select([fd], [], [], limit_s)[0], "nothing came in time"

def await_alive(helper):
    readable(helper.fileno())
    assert helper.read_answers()
"""


def run(script: str, **options: object) -> list[str]:
    """Run a script in a process of its own; returns the lines that it printed."""
    code = PRELUDE + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    lines: list[str] = done.stdout.splitlines()
    return lines


# -- identity ----------------------------------------------------------------------------------


def test_names_become_ids() -> None:
    """Names are looked up; one alone leaves the other at its default."""
    default_uid, default_gid, default_name = 0, 0, "root"
    try:
        default_uid, default_gid = pwd.getpwnam("sanlock").pw_uid, grp.getgrnam("sanlock").gr_gid
        default_name = "sanlock"
    except KeyError:
        default_uid = default_gid = 0
    identity = privileges.identity_of
    assert identity("", "") == (default_name, default_uid, default_gid)
    assert identity("nobody", "") == ("nobody", NOBODY.pw_uid, default_gid)
    assert identity("", "daemon") == (default_name, default_uid, grp.getgrnam("daemon").gr_gid)
    assert identity("root", "root") == ("root", 0, 0)


def test_an_unknown_name_stands_for_root_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """As in the original, and numbers are no names."""
    assert privileges.identity_of("nosuch", "1") == ("root", 0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "user 'nosuch' not found, using uid: 0",
        "group '1' not found, using gid: 0",
    ]


@pytest.mark.parametrize(("value", "expected"), [(None, True), ("1", True), ("0", False)])
def test_the_environment_decides(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool
) -> None:
    """Unset or 1 is privileged, anything else is not."""
    monkeypatch.delenv("SANLOCK_PRIVILEGED", raising=False)
    if value is not None:
        monkeypatch.setenv("SANLOCK_PRIVILEGED", value)
    assert privileges.is_privileged() is expected


@NEED_ROOT
def test_the_identity_is_given_up_by_all_threads() -> None:
    """Ids, groups and threads; there is no way back, and /proc/self stays readable."""
    lines = run(
        """
        gate = threading.Event()
        threading.Thread(target=gate.wait, daemon=True).start()
        privileges.drop_privileges(NOBODY)
        for task in sorted(os.listdir("/proc/self/task")):
            for line in open(f"/proc/self/task/{task}/status"):
                if line.startswith(("Uid:", "Gid:", "Groups:", "CapEff:")):
                    print(*line.split())
        os.listdir("/proc/self/fd")
        try:
            os.setuid(0)
        except PermissionError:
            print("no way back")
        """
    )
    uid, gid = (" ".join([str(one)] * 4) for one in (NOBODY.pw_uid, NOBODY.pw_gid))
    groups = os.getgrouplist("nobody", NOBODY.pw_gid)
    assert len(groups) == 1
    thread = [f"Uid: {uid}", f"Gid: {gid}", f"Groups: {groups[0]}", "CapEff: 0000000000000000"]
    assert lines == [*thread, *thread, "no way back"]


@NEED_ROOT
def test_whoever_is_not_root_cannot_become_somebody_else() -> None:
    """It is a failed start, not a daemon with too many rights."""
    lines = run(
        """
        privileges.drop_privileges(NOBODY)
        try:
            privileges.drop_privileges(Identity("daemon", 1, 1))
        except privileges.StartFailed as error:
            print(error)
        """
    )
    assert lines == ["cannot become user daemon: Operation not permitted"]


# -- limits, priority, memory --------------------------------------------------------------------


def test_limits_are_lifted_or_the_start_fails() -> None:
    """All three are unlimited afterwards; where that is not allowed, the first is named."""
    before = {n: resource.getrlimit(getattr(resource, f"RLIMIT_{n}")) for n in ("MEMLOCK", "CORE")}
    lines = run(
        """
        try:
            privileges.raise_limits()
        except privileges.StartFailed as error:
            print(error)
        for name in ("MEMLOCK", "RTPRIO", "CORE"):
            print(name, *resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
        """
    )
    if lines[0].startswith("cannot"):
        assert lines[0].startswith("cannot set the limits for memlock: ")
        assert lines[1] == "MEMLOCK {} {}".format(*before["MEMLOCK"])
    else:
        assert lines == [f"{name} -1 -1" for name in ("MEMLOCK", "RTPRIO", "CORE")]


def test_files_may_be_as_many_as_there_can_be() -> None:
    """The soft limit becomes the hard one."""
    lines = run(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
        print(privileges.raise_open_files(), *resource.getrlimit(resource.RLIMIT_NOFILE))
        """
    )
    assert lines == ["512 512 512"]


def test_priority_is_had_or_said() -> None:
    """The urgent threads are real-time ones, and no other; or a line says why not."""
    lines = run(
        """
        gate = threading.Event()
        names = ("paxoslease-renew", "paxoslease-log-x")
        threads = [threading.Thread(target=gate.wait, name=n, daemon=True) for n in names]
        for thread in threads:
            thread.start()
        print(privileges.set_priority())
        rr = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        print(*(os.sched_getscheduler(t.native_id) == rr for t in threading.enumerate()))
        """
    )
    if lines[-2] == "True":
        assert lines == ["True", "True True False"]
    else:
        expected = "ERROR set scheduler RR|RESET_ON_FORK priority 99 failed: "
        assert lines[0].startswith(expected)
        assert lines[1:] == ["False", "False False False"]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_memory_is_locked_or_said(level: int) -> None:
    """Level 0 locks nothing, 1 what comes once it has been used, 2 from the start."""
    lines = run(
        f"""
        import mmap
        from pathlib import Path

        def kib(what):
            status = Path("/proc/self/status").read_text()
            return int(status.split(what + ":")[1].split()[0])

        print(privileges.lock_memory({level}))
        locked, resident = kib("VmLck"), kib("VmRSS")
        unused = mmap.mmap(-1, 8 << 20)
        print(kib("VmLck") - locked >= 8192, kib("VmRSS") - resident >= 8192)
        """
    )
    if lines[-2] == "False":
        assert lines[0].startswith(f"ERROR mlockall {level} failed: ")
        assert lines[-1] == "False False"
    else:
        assert lines == ["True", {0: "False False", 1: "True False", 2: "True True"}[level]]


# -- into the background -------------------------------------------------------------------------

BACKGROUND = """
is_up = privileges.into_background()
os.write(2, b"starting\\n")
{}
"""


def test_the_parent_ends_when_the_daemon_is_up() -> None:
    """The child has no terminal, no session of ours and no directory in use."""
    read_end, write_end = os.pipe()
    script = BACKGROUND.format(
        "is_up()\n"
        "links = [os.readlink(f'/proc/self/fd/{n}') for n in range(3)]\n"
        "same = os.getsid(0) == os.getpid()\n"
        f"os.write({write_end}, repr((os.getcwd(), same, links)).encode())\n"
    )
    command = [sys.executable, "-c", PRELUDE + script]
    done = subprocess.run(command, capture_output=True, pass_fds=[write_end], timeout=60)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        told = pipe.read().decode()
    assert (done.returncode, done.stderr) == (0, b"starting\n")
    assert told == repr(("/", True, ["/dev/null"] * 3))


def test_the_parent_tells_of_a_start_that_failed() -> None:
    """What the child says on standard error is seen, and the exit code is 1."""
    script = BACKGROUND.format("sys.exit('it cannot be')")
    command = [sys.executable, "-c", PRELUDE + script]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"starting\nit cannot be\n")


# -- the helper ----------------------------------------------------------------------------------


@NEED_ROOT
def test_the_helper_signals_what_the_daemon_may_not() -> None:
    """A client of root is killed on behalf of a daemon that is nobody."""
    lines = run(
        """
        client = subprocess.Popen(["sleep", "60"])
        helper = start_helper()
        privileges.drop_privileges(NOBODY)
        process = Process(1, client.pid, Wishes())
        process.signal(signal.SIGKILL)
        print("alone", process.is_alive)
        act_through(helper)
        process.signal(signal.SIGKILL)
        readable(process.pidfd)
        print("ended by", -client.wait())
        readable(helper.fileno())
        assert helper.read_answers()
        process.close()
        helper.close()
        """
    )
    assert lines[0].startswith("ERROR signal_refused")
    assert lines[1] == "alone True"
    assert lines[3] == "ended by 9"
    assert len(lines) == 4


@NEED_ROOT
def test_the_helper_sends_what_clients_may_be_sent_only() -> None:
    """Neither another signal nor a process that has ended; both are told."""
    lines = run(
        """
        client = subprocess.Popen(["sleep", "60"])
        pidfd = os.pidfd_open(client.pid)
        helper = start_helper()
        await_alive(helper)
        helper.signal(client.pid, pidfd, signal.SIGSTOP)
        readable(helper.fileno())
        helper.read_answers()
        client.kill()
        client.wait()
        helper.signal(7, pidfd, signal.SIGKILL)
        readable(helper.fileno())
        helper.read_answers()
        helper.close()
        """
    )
    assert lines[0].endswith(f"signal={int(signal.SIGSTOP)} error=Operation not permitted")
    assert lines[1] == "ERROR leases_outlive_process pid=7: somebody has its connection"
    assert len(lines) == 2


@NEED_ROOT
def test_the_helper_runs_killpaths_as_root(tmp_path: Path) -> None:
    """By the PATH, with its arguments as they are, as root, with usual signals, and it is waited
    for: the exit status comes back."""
    out = tmp_path / "out"
    lines = run(
        f"""
        helper = start_helper()
        privileges.drop_privileges(NOBODY)
        script = 'exec >{out}; id -u; printf "%s|" "$@"; grep SigIgn /proc/$$/status; exit 3'
        print(helper.run(["sh", "-c", script, "name", "a b", "", "c;d"]))
        try:
            helper.run(["nosuch-program"])
        except FileNotFoundError as error:
            print(error)
        helper.close()
        """
    )
    assert lines == ["3", "[Errno 2] No such file or directory: 'nosuch-program'"]
    uid, rest = out.read_text().split("\n", 1)
    assert uid == "0"
    arguments, ignored = rest.rsplit("|", 1)
    assert arguments == "a b||c;d"
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGTERM - 1)) == 0
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGCHLD - 1)) == 0


def test_a_killpath_that_hangs_keeps_no_signal_waiting(tmp_path: Path) -> None:
    """While one program runs on, another is run and a process is killed."""
    lines = run(
        f"""
        helper = start_helper()
        act_through(helper)
        os.mkfifo("{tmp_path}/pid")
        victim = subprocess.Popen(["sleep", "60"])
        killpath = ("sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 60")
        process = Process(1, victim.pid, Wishes(killpath))
        assert process.run_killpath(lambda: print("failed"))
        with open("{tmp_path}/pid") as pipe:
            hanging = int(pipe.read())
        print(helper.run(["true"]))
        process.signal(signal.SIGKILL)
        readable(process.pidfd)
        print("ended by", -victim.wait())
        process.close()
        os.kill(hanging, signal.SIGKILL)
        helper.close()
        """
    )
    assert lines[0].startswith("WARNING killpath_started")
    assert lines[1] == "0"
    assert "ended by 9" in lines
    assert "failed" not in lines


def test_the_helper_ends_with_the_daemon_only() -> None:
    """Signals to the process group do not end it; the daemon's end does, even by SIGKILL."""
    lines = run(
        """
        read_end, write_end = os.pipe()
        daemon = os.fork()
        if daemon == 0:
            os.setsid()
            helper = start_helper()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
                os.killpg(0, number)
            status = helper.run(["true"])
            os.write(write_end, f"{helper.pid} {status}".encode())
            time.sleep(60)
        pid, status = os.read(read_end, 100).decode().split()
        with os.fdopen(os.pidfd_open(int(pid)), "rb", 0) as handle:
            print(len(os.listdir(f"/proc/{pid}/fd")), status)
            os.kill(daemon, signal.SIGKILL)
            readable(handle)
        print(os.waitpid(daemon, 0)[1])
        """
    )
    assert lines == ["4 0", "9"]


def test_without_the_helper_signals_are_sent_directly() -> None:
    """Its death is said once, and then the daemon does what it can."""
    lines = run(
        """
        helper = start_helper()
        act_through(helper)
        await_alive(helper)
        os.kill(helper.pid, signal.SIGKILL)
        readable(helper.fileno())
        print(helper.read_answers(), helper.is_alive)
        client = subprocess.Popen(["sleep", "60"])
        process = Process(1, client.pid, Wishes())
        process.signal(signal.SIGKILL)
        readable(process.pidfd)
        print("ended by", -client.wait())
        print(helper.run(["true"]))
        process.close()
        helper.close()
        """
    )
    assert lines[0].startswith("CRITICAL helper_gone")
    assert lines[1] == "False False"
    assert lines[2].startswith("WARNING process_signalled")
    assert lines[3:] == ["ended by 9", "None"]


def test_a_helper_that_stands_still_holds_nobody_up() -> None:
    """Requests that it does not take are counted, and signals are sent directly."""
    lines = run(
        """
        helper = start_helper()
        act_through(helper)
        os.kill(helper.pid, signal.SIGSTOP)
        client = subprocess.Popen(["sleep", "60"])
        pidfd = os.pidfd_open(client.pid)
        logging.disable()
        for _ in range(100_000):
            if not helper.signal(client.pid, pidfd, 0):
                break
        print(helper.full, helper.is_alive)
        process = Process(1, client.pid, Wishes())
        process.signal(signal.SIGKILL)
        readable(process.pidfd)
        print("ended by", -client.wait())
        os.kill(helper.pid, signal.SIGCONT)
        process.close()
        helper.close()
        """
    )
    assert lines == ["1 True", "ended by 9"]


# -- a whole daemon ------------------------------------------------------------------------------

# Lifting limits needs a capability that not every root has; all else is as usual.
PRIVILEGED = """#!{python}
import os, sys
from paxoslease.cli.sanlock.main import main as run
from paxoslease.daemon import main
main.raise_limits = lambda: None
sys.exit(run([os.fsencode(word) for word in sys.argv[1:]]))
"""


@pytest.fixture
def nobodys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of nobody, and in it the program that a privileged daemon is started by."""
    path = Path(tempfile.mkdtemp(prefix="pl", dir="/tmp"))
    program = path / "sanlock"
    program.write_text(PRIVILEGED.format(python=sys.executable))
    program.chmod(0o755)
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    monkeypatch.setitem(daemons.PROGRAMS, "ours", str(program))
    yield path
    shutil.rmtree(path)


def ids_of(pid: int) -> dict[str, list[str]]:
    """Return the ids of a process: real, effective, saved, of the file system."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.startswith(("Uid:", "Gid:", "Groups:")))
    return {field[0]: field[1:] for field in fields}


@NEED_ROOT
def test_a_daemon_without_rights_still_stops_roots_processes(nobodys: Path) -> None:
    """It runs as nobody, opens nobody's disk, and kills a client of root when it must."""
    daemons.require("ours")
    options = ("-U", "nobody", "-G", "nogroup")
    with Stage("ours", nobodys / "stage") as stage:
        os.chown(stage.directory, NOBODY.pw_uid, NOBODY.pw_gid)
        host = stage.host("one", *options, env={"SANLOCK_PRIVILEGED": "1"})
        (helper,) = host.daemon.children()
        uid, gid = str(NOBODY.pw_uid), str(NOBODY.pw_gid)
        # The socket is there a moment before root's rights are given up; nobody is answered yet.
        dropped = {"Uid:": [uid] * 4, "Gid:": [gid] * 4, "Groups:": [gid]}
        wait_until(lambda: ids_of(host.daemon.pid) == dropped, 10, "it is still root")
        assert ids_of(helper) == {"Uid:": ["0"] * 4, "Gid:": ["0"] * 4, "Groups:": []}
        path = stage.file("leases", 4)
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        common.format_space(host, path)
        common.format_resources(host, path, 1)
        host.join("LS", 1, path, is_ready=False)
        client = host.client("client")
        reply = client.quietly(wire.acquire(common.lease(path, 1)))
        assert wire.result(reply) == 0
        place = wire.lockspace("LS", 1, path)
        reply = host.quietly(wire.request(wire.Cmd.REM_LOCKSPACE, place))
        assert wire.result(reply) == 0
        client.fate("the client")
        assert stage.notes[-1].lines == ("killed by SIGKILL",)
