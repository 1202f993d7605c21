"""A daemon that is executed anew, or killed and started again, loses nothing that it should keep.

`how` is the way of the restart: exec (SIGUSR2) or crash (SIGKILL, then another process).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoslease.client import Connection, DaemonError
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import (
    AcquireFlag,
    Command,
    Config,
    EventFlag,
    Header,
    HostEvent,
    ResourceFlag,
    RestrictFlag,
)
from tests.compat.peer import Resource, SanlockClient
from tests.conftest import frozen, run
from tests.daemon import daemons
from tests.daemon.agent import Agent, Refused
from tests.daemon.restart_rig import MIB, SPACE, RestartedHost, await_end

LSPACE = SPACE.encode()
both = pytest.mark.parametrize("how", ["exec", "crash"])


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartedHost]:
    with RestartedHost(tmp_path_factory.mktemp("host")) as host:
        host.format()
        host.join()
        yield host


@pytest.fixture
def host(shared_host: RestartedHost) -> Iterator[RestartedHost]:
    """Give a host that others use, too; what a test leaves there has to be usable."""
    yield shared_host
    assert shared_host.is_joined()


@pytest.fixture
def own_host(tmp_path: Path) -> Iterator[RestartedHost]:
    """Give a host for this test alone."""
    with RestartedHost(tmp_path) as made:
        made.format()
        made.join()
        yield made


# -- what is kept --------------------------------------------------------------------------------


@both
def test_clients_keep_their_leases_and_connections(host: RestartedHost, how: str) -> None:
    """Exclusive and shared leases are held as before, through the same connections."""
    first, second = host.agent(), host.agent()
    shared = host.resource(1, ResourceFlag.SHARED)
    first("acquire", resources=[host.resource(0), shared])
    second("acquire", resources=[shared])
    before = first("held")
    host.restart(how)
    assert first("held") == before
    assert second("held") == {"r1": "SH"}
    with pytest.raises(Refused, match="EEXIST"):
        second("acquire", resources=[host.resource(0)])
    first("release", resources=[host.resource(0)])
    second("acquire", resources=[host.resource(0)])
    assert second("held")["r0"] == str(int(before["r0"]) + 1)
    first.end()
    second.end()


@both
def test_dead_clients_lose_their_leases(host: RestartedHost, how: str) -> None:
    """What a client held that ends while nobody serves it is free when somebody does."""
    dying, living = host.agent(), host.agent()
    dying("acquire", resources=[host.resource(0)])
    if how == "exec":
        os.kill(host.daemon.pid, signal.SIGSTOP)
        host.ask_restart()
        dying.end()
        os.kill(host.daemon.pid, signal.SIGCONT)
    else:
        host.crash()
        dying.end()
        host.start()

    def is_free() -> bool:
        try:
            living("acquire", resources=[host.resource(0)])
        except Refused:
            return False
        return True

    host.until(is_free, "the dead client's lease is free")
    living.end()


@both
def test_child_keeps_the_connection(host: RestartedHost, how: str) -> None:
    """A client lives as long as its connection: as long as a child that has inherited it."""
    with Connection(str(host.daemon.run_dir)) as connection:
        code = (
            "import os,sys,time\n"
            "from paxoslease.client import Connection\n"
            f"c = Connection({str(host.daemon.run_dir)!r})\n"
            "c.register(inheritable=True)\n"
            "c.inquire()\n"
            "if os.fork(): print(os.getpid(), flush=True); os._exit(0)\n"
            "sys.stdin.read()\n"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=daemons.REPOSITORY,
        )
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.wait()
        resource = wire.Resource(LSPACE, b"r2", disks=(wire.Disk(os.fsencode(host.disk), 3 * MIB),))
        connection.acquire([resource], pid=pid)
        host.restart(how)
        assert connection.inquire(pid=pid)[0] == 1
        assert parent.stdin is not None
        parent.stdin.close()
        parent.stdout.close()

        def is_forgotten() -> bool:
            try:
                connection.inquire(pid=pid)
            except DaemonError:
                return True
            return False

        host.until(is_forgotten, "the child's end is noticed")


@both
def test_orphans_stay(host: RestartedHost, how: str) -> None:
    """A persistent lease without a holder is still there to be taken over."""
    persistent = host.resource(3, ResourceFlag.PERSISTENT)
    dying = host.agent()
    dying("acquire", resources=[persistent])
    version = dying("held")["r3"]
    dying.end()
    heir = host.agent()
    host.until(lambda: not host._is_known(dying.pid), "the end of the client is known")
    host.restart(how)
    heir("acquire", resources=[host.resource(3)], flags=int(AcquireFlag.ORPHAN_ONLY))
    assert heir("held")["r3"] == version
    heir.end()


@both
def test_value_block_is_kept_until_it_is_written(host: RestartedHost, how: str) -> None:
    """A value block that was set and not written yet is written with the release."""
    resource = host.resource(4)
    agent = host.agent()
    agent("acquire", resources=[resource], flags=int(AcquireFlag.LVB))
    agent("set_lvb", resource=resource, value=f"said before {how}")
    host.restart(how)
    assert agent("get_lvb", resource=resource) == f"said before {how}"
    agent("release", resources=[resource])
    agent("acquire", resources=[resource], flags=int(AcquireFlag.LVB))
    assert agent("get_lvb", resource=resource) == f"said before {how}"
    agent.end()


@both
def test_half_a_request_is_completed(host: RestartedHost, how: str) -> None:
    """A request of which half has come is answered when the rest comes."""
    agent = host.agent()
    request = wire.pack_header(Header(Command.INQUIRE, length=32, data2=wire.SELF))
    agent("send", data=request[:20].hex())
    host.until_served()
    host.restart(how)
    agent("send", data=request[20:].hex())
    answer = wire.parse_header(bytes.fromhex(agent("receive", size=32)))
    assert (answer.command, answer.data) == (Command.INQUIRE, 0)
    agent.end()


@pytest.fixture(scope="module")
def other_host(
    shared_host: RestartedHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RestartedHost]:
    """Give another host of the same lockspace."""
    with RestartedHost(tmp_path_factory.mktemp("other"), 2, shared_host.disk) as other:
        other.join()
        yield other


@both
def test_event_connections_go_on(host: RestartedHost, other_host: RestartedHost, how: str) -> None:
    """Who listens to other hosts hears them after a restart, too."""
    agent = host.agent()
    agent("reg_event", name=SPACE)
    host.restart(how)
    with other_host.connection() as connection:
        event = HostEvent(host.host_id, event=7)
        connection.set_event(LSPACE, event, flags=EventFlag.CUR_GENERATION)
    heard: list[list[int]] = []

    def has_heard() -> bool:
        found = agent("event")
        heard.extend([found] if found else [])
        return bool(heard)

    host.until(has_heard, "the event is heard")
    assert heard[0] == [2, 7]
    agent.end()


@both
def test_events_end_with_the_listener(host: RestartedHost, how: str) -> None:
    """A listener that hangs up is not kept by anybody."""
    agent = host.agent()
    agent("reg_event", name=SPACE)
    host.restart(how)
    agent.end()
    host.restart(how)


@both
def test_restrictions_are_kept(host: RestartedHost, how: str) -> None:
    """What a client said of how it may be stopped counts after a restart."""
    agent = host.agent()
    agent("acquire", resources=[host.resource(5)])
    agent("restrict", flags=int(RestrictFlag.SIGKILL))
    host.restart(how)
    host.leave()
    assert await_end(agent) == -signal.SIGTERM
    host.join()


@both
def test_idle_daemon_restarts(tmp_path: Path, how: str) -> None:
    """A daemon without a lockspace can be restarted; a crash of it leaves nobody behind."""
    with RestartedHost(tmp_path) as idle:
        if how == "exec":
            idle.exec()
            return
        agent = idle.agent()
        idle.crash()
        idle.until(lambda: not idle.helper_lives, "nothing is kept")
        with pytest.raises(Refused):
            agent("held")


def test_join_that_is_under_way_ends_first(tmp_path: Path) -> None:
    """A lockspace that is being joined is joined before the program is executed anew."""
    with RestartedHost(tmp_path) as host:
        host.format()
        adding, waiting = host.agent(registers=False), host.agent(registers=False)
        where = {"name": SPACE, "host_id": 1, "path": str(host.disk)}
        adding.begin("add_lockspace", io_timeout=1, **where)
        host.until(host.is_joined, "the join has begun")
        waiting.begin("await_lockspace", **where)
        host.ask_restart()
        assert waiting.result() is None
        assert adding.result() is None
        host.until(lambda: host.starts() == 2, "the daemon is executed anew")
        assert host.is_joined()


def test_join_that_is_cut_short_is_given_up(tmp_path: Path) -> None:
    """A crash during a join ends it; the client sees that, and can begin again."""
    with RestartedHost(tmp_path) as host:
        host.format()
        agent = host.agent(registers=False)
        where = {"name": SPACE, "host_id": 1, "path": str(host.disk)}
        agent.begin("add_lockspace", io_timeout=1, **where)
        host.until(host.is_joined, "the join has begun")
        host.crash()
        with pytest.raises(Refused):
            agent.result()
        host.start()
        assert not host.is_joined()
        with host.connection() as connection:
            connection.add_lockspace(host.space(), host.io_timeout, wait=False)


def test_exec_that_fails_is_called_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that cannot be executed changes nothing: the daemon goes on."""
    interpreter = tmp_path / "python"
    interpreter.symlink_to(sys.executable)
    program = tmp_path / "sanlock"
    code = "import sys; from paxoslease.cli.sanlock.main import run_and_exit; run_and_exit()"
    program.write_text(f"#!{interpreter}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setitem(daemons.PROGRAMS, "ours", str(program))
    paths = [str(daemons.REPOSITORY), sysconfig.get_path("purelib")]
    with RestartedHost(tmp_path, env={"PYTHONPATH": ":".join(paths)}) as host:
        host.format()
        host.join()
        agent = host.agent()
        agent("acquire", resources=[host.resource(0)])
        interpreter.unlink()
        host.ask_restart()
        host.until(lambda: host.log_has("called off"), "it is called off")
        assert agent("held") == {"r0": "1"}
        agent("release", resources=[host.resource(0)])
        assert host.starts() == 1
        interpreter.symlink_to(sys.executable)
        host.exec()
        assert agent("held") == {}


# -- what is under way ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartedHost]:
    """Give a host whose disk can be frozen."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    if subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode != 0:
        pytest.skip("there are no loop devices here")
    directory = tmp_path_factory.mktemp("slow")
    backing, mounted = directory / "backing", directory / "mounted"
    with backing.open("wb") as file:
        file.truncate(64 * MIB)
    mounted.mkdir()
    device = run("losetup", "--find", "--show", "--sector-size", "512", str(backing))
    try:
        run("mkfs.ext4", "-q", device)
        run("mount", device, str(mounted))
        try:
            with RestartedHost(directory, disk=mounted / "disk") as made:
                made.format()
                made.join()
                yield made
                made.leave()
        finally:
            run("umount", str(mounted))
    finally:
        # It goes when nobody has it any more: other tests' private namespaces may, for a while.
        run("losetup", "--detach", device)


class Noted:
    """Sees in the journal that an operation has begun since this was made."""

    def __init__(self, host: RestartedHost, operation: str) -> None:
        self._host = host
        self._path = host.daemon.run_dir / "paxoslease.state"
        self._line = f'"doing":"{operation}"'.encode()
        self._before = self._count()

    def _count(self) -> int:
        return self._path.read_bytes().count(self._line)

    def wait(self) -> None:
        """Wait for it."""
        self._host.until(lambda: self._count() > self._before, "the operation has begun")


def _crash_in_the_middle(host: RestartedHost, agent: Agent, operation: str, **what: object) -> None:
    """Have the daemon die over an operation whose write hangs, and another one answer it."""
    with frozen(host.disk.parent):
        noted = Noted(host, operation)
        agent.begin(operation, **what)
        noted.wait()
        host.daemon.process.kill()
        # It is not dead before its writes have ended.
    host.daemon.process.wait()
    host.start()


def test_requests_are_answered_by_the_successor(slow_host: RestartedHost) -> None:
    """A request that a crash cuts short is answered, once, as if nothing had happened."""
    host, agent = slow_host, slow_host.agent()
    resource = host.resource(0)
    _crash_in_the_middle(host, agent, "acquire", resources=[resource])
    assert agent.result() is None
    assert list(agent("held")) == ["r0"]
    _crash_in_the_middle(host, agent, "convert", resource=host.resource(0, ResourceFlag.SHARED))
    assert agent.result() is None
    assert agent("held") == {"r0": "SH"}
    _crash_in_the_middle(host, agent, "convert", resource=resource)
    assert agent.result() is None
    assert agent("held")["r0"].isdigit()
    _crash_in_the_middle(host, agent, "release", resources=[resource])
    assert agent.result() is None
    assert agent("held") == {}
    agent("acquire", resources=[resource], flags=int(AcquireFlag.LVB))
    agent("set_lvb", resource=resource, value="not to be lost")
    _crash_in_the_middle(host, agent, "release", resources=[resource])
    assert agent.result() is None
    agent("acquire", resources=[resource], flags=int(AcquireFlag.LVB))
    assert agent("get_lvb", resource=resource) == "not to be lost"
    agent.end()


def test_operation_of_a_client_that_is_gone_is_undone(slow_host: RestartedHost) -> None:
    """What was being acquired for a client that has died meanwhile is free afterwards."""
    host, dying, living = slow_host, slow_host.agent(), slow_host.agent()
    with frozen(host.disk.parent):
        noted = Noted(host, "acquire")
        dying.begin("acquire", resources=[host.resource(0)])
        noted.wait()
        host.daemon.process.kill()
        dying.end()
    host.daemon.process.wait()
    host.start()
    host.until(lambda: _acquires(living, host.resource(0)), "the lease is free")
    living.end()


def test_acquisition_that_is_given_up_stays_noted(slow_host: RestartedHost) -> None:
    """A crash while an acquisition is being given up leaves nothing of it on the disk."""
    host, dying, living = slow_host, slow_host.agent(), slow_host.agent()
    asking = host.agent(registers=False)
    with frozen(host.disk.parent):
        noted = Noted(host, "acquire")
        asking.begin("acquire", resources=[host.resource(0)], pid=dying.pid)
        noted.wait()
        dying.end()
        with pytest.raises(Refused, match="ENOTTY"):
            asking.result()
        with pytest.raises(Refused, match="EAGAIN"):
            living("acquire", resources=[host.resource(0)])
        host.daemon.process.kill()
    host.daemon.process.wait()
    host.start()
    assert host.log_has("acquire was cut short")
    host.until(lambda: _acquires(living, host.resource(0)), "the lease is free")
    living.end()


def test_removal_that_is_under_way_goes_on(own_host: RestartedHost) -> None:
    """A lockspace that was being left when the daemon died is left by the next one."""
    host, agent = own_host, own_host.agent()
    agent("ignore_sigterm")
    agent("restrict", flags=int(RestrictFlag.SIGKILL))
    agent("acquire", resources=[host.resource(0)])
    with host.connection() as connection:
        connection.set_config(LSPACE, Config.UNUSED)
        connection.rem_lockspace(host.space(), wait=False)
    host.crash()
    host.start()
    host.until(lambda: host.log_has("is left on"), "the removal goes on")
    with pytest.raises(Refused):
        agent("acquire", resources=[host.resource(1)])
    agent("close")
    host.until(lambda: not host.is_joined(), "the lockspace is gone")


# -- what is not kept ----------------------------------------------------------------------------


def test_too_late_is_refused(own_host: RestartedHost, tmp_path: Path) -> None:
    """A membership that was not renewed in time is not continued: its users are stopped."""
    host, asked, told = own_host, own_host.agent(), own_host.agent()
    script, called = tmp_path / "killpath", tmp_path / "called"
    script.write_text(f'#!/bin/sh\necho "$@" > {called}; kill -9 {told.pid}\n')
    script.chmod(0o755)
    asked("acquire", resources=[host.resource(0)])
    told("acquire", resources=[host.resource(1)])
    told("killpath", path=str(script), args="a b")
    crashed_at = time.monotonic()
    host.crash()
    host.until(lambda: not host.helper_lives, "what was kept is given up", 30)
    assert time.monotonic() - crashed_at < 10
    with pytest.raises(Refused):
        asked("held")
    host.start()
    assert await_end(asked) == -signal.SIGTERM
    assert await_end(told) == -signal.SIGKILL
    assert called.read_text() == "a b\n"
    with host.connection() as connection:
        connection.set_config(LSPACE, Config.UNUSED)
    host.until(lambda: not host.is_joined(), "the lockspace is cleared")
    assert host.log_has("is not to be continued")


def test_without_its_keeper_a_client_keeps_its_leases(host: RestartedHost) -> None:
    """When the keeper has died, too, connections are gone; leases last as long as processes."""
    agent, other = host.agent(), host.agent()
    agent("acquire", resources=[host.resource(0)])
    host.crash()
    host.kill_helper()
    host.start()
    with pytest.raises(Refused):
        agent("held")
    other("close")
    other("register")
    with pytest.raises(Refused, match="EEXIST"):
        other("acquire", resources=[host.resource(0)])
    agent.end()
    host.until(lambda: not host._is_known(agent.pid), "its end is noticed")
    host.until(lambda: _acquires(other, host.resource(0)), "its lease is free")
    other.end()


def test_lost_keeper_is_replaced_by_a_restart(host: RestartedHost) -> None:
    """A daemon whose helper has died has another one after it was executed anew."""
    agent = host.agent()
    agent("acquire", resources=[host.resource(7)])
    before = agent("held")
    host.kill_helper()
    host.until(lambda: host.log_has("the helper process"), "the loss is known")
    host.exec()
    host.crash()
    host.start()
    assert agent("held") == before
    agent.end()


def _acquires(agent: Agent, resource: list[object]) -> bool:
    try:
        agent("acquire", resources=[resource])
    except Refused:
        return False
    return True


def _start_refused(host: RestartedHost) -> None:
    """Start a daemon that is to end by itself."""
    with host.daemon.log_path.open("ab") as log:
        done = subprocess.run(
            host.daemon.command, env=host.daemon.env, stderr=log, check=False, timeout=30
        )
    assert done.returncode == 1


def test_damaged_journal_is_not_believed(own_host: RestartedHost) -> None:
    """One wrong bit in the journal: clients are stopped, and only then all begins anew."""
    host, agent = own_host, own_host.agent()
    agent("acquire", resources=[host.resource(0)])
    host.crash()
    path = host.daemon.run_dir / "paxoslease.state"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    _start_refused(host)
    assert agent.process.wait(5) == -signal.SIGKILL
    assert host.log_has("the state of the predecessor is not usable")
    host.start()
    assert not host.is_joined()


def test_lost_journal_is_not_taken_for_none(own_host: RestartedHost) -> None:
    """Clients without a journal that tells of them are stopped."""
    host, agent = own_host, own_host.agent()
    agent("acquire", resources=[host.resource(0)])
    host.crash()
    (host.daemon.run_dir / "paxoslease.state").unlink()
    _start_refused(host)
    assert agent.process.wait(5) == -signal.SIGKILL
    host.start()
    assert not host.is_joined()


def test_cut_last_line_does_not_count(host: RestartedHost) -> None:
    """A line that its writer did not live to finish is no damage."""
    agent = host.agent()
    agent("acquire", resources=[host.resource(0)])
    before = agent("held")
    host.crash()
    with (host.daemon.run_dir / "paxoslease.state").open("ab") as journal:
        journal.write(b'12345678 {"key":"e')
    host.start()
    assert agent("held") == before
    agent.end()


def test_journal_of_another_boot_is_void(tmp_path: Path) -> None:
    """What was noted before the machine was started again is of no interest."""
    with RestartedHost(tmp_path) as host:
        host.format()
        host.join()
        host.crash()
        host.kill_helper()
        path = host.daemon.run_dir / "paxoslease.state"
        lines = []
        for line in path.read_bytes().splitlines():
            value = json.loads(line[9:])
            if value["key"] == "boot":
                value["boot"] = "another"
            text = json.dumps(value).encode()
            lines.append(b"%08x %s\n" % (zlib.crc32(text), text))
        path.write_bytes(b"".join(lines))
        host.start()
        assert not host.is_joined()


# -- the keeper ----------------------------------------------------------------------------------


def test_keeper_gives_nothing_to_strangers(host: RestartedHost) -> None:
    """Only the process with the lock on the pid file gets what is kept."""
    agent = host.agent()
    agent("acquire", resources=[host.resource(0)])
    before = agent("held")
    host.crash()
    path = host.daemon.run_dir / "paxoslease.keeper"
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.settimeout(10)
        stranger.connect(str(path))
        message, ancillary, _, _ = stranger.recvmsg(4096, 4096)
    assert (message, ancillary) == (b"", [])
    host.start()
    assert agent("held") == before
    agent.end()


def test_end_of_the_output_is_seen(tmp_path: Path) -> None:
    """Who reads what a daemon prints sees the end with it, whatever is kept."""
    with RestartedHost(tmp_path) as host:
        host.format()
        host.crash()
        host.until(lambda: not host.helper_lives, "nothing is kept")
        process = subprocess.Popen(
            host.daemon.command, env=host.daemon.env, stderr=subprocess.PIPE, start_new_session=True
        )
        host.until(lambda: _connects(host), "the daemon listens")
        host.join()
        process.kill()
        begin = time.monotonic()
        process.communicate(timeout=10)
        assert time.monotonic() - begin < 2
        host.start()
        assert host.is_joined()


def _connects(host: RestartedHost) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(host.daemon.socket_path)) == 0


# -- the original's library ----------------------------------------------------------------------


@pytest.mark.peer
@both
def test_clients_of_the_library_notice_nothing(host: RestartedHost, how: str) -> None:
    """A program that uses libsanlock goes on through the same connection."""
    resource = Resource(SPACE, "r6", str(host.disk), 7 * MIB)
    with SanlockClient(host.daemon.env) as client:
        client.register()
        client.acquire(resource)
        token = client.fencing_token(resource)
        host.restart(how)
        assert client.fencing_token(resource) == token
        client.release(resource)
        client.acquire(resource)
        assert client.fencing_token(resource) == token + 1
        client.release(resource)
