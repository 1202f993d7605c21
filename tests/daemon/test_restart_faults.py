"""Restarts while something is wrong: disks that hang, a run directory that is full."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoslease.client import Connection
from paxoslease.daemon.journal import Journal, read_journal
from paxoslease.wire.sanlock import AcquireFlag, Config, Disk, Lockspace, Resource, ResourceFlag
from tests.compat.peer import wait_until
from tests.daemon.agent import Refused
from tests.daemon.daemons import REPOSITORY
from tests.daemon.restart_rig import IO_TIMEOUT_S, MIB, SPACE, RestartedHost, await_end
from tests.daemon.scripts.faults import FuseMissing, require_fuse

OTHER = "OTHER"


class HangingDisk:
    """A second lockspace, on a file system that answers nothing while it is told to hang."""

    def __init__(self, directory: Path) -> None:
        self._where = directory / "hanging"
        self._where.mkdir()
        backing = directory / "hanging-backing"
        with backing.open("wb") as file:
            file.truncate(4 * MIB)
        words = [str(self._where), str(backing), "0", "disk"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.daemon.ill_fs", *words],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
        )
        self.path = self._where / "disk"
        wait_until(lambda: os.path.ismount(self._where), 10, "the file system is mounted")

    def hang(self) -> None:
        """Answer nothing from now on, not even who opens the file."""
        self._process.send_signal(signal.SIGSTOP)
        wait_until(self._stands_still, 10, "the file system hangs")

    def _stands_still(self) -> bool:
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        return all(
            (task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks
        )

    def slow_down(self, delay_s: float) -> None:
        """Let every read and write take up to so much longer."""
        order = {"file": "disk", "delay_s": delay_s, "errors": 0.0, "stalled": False}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def go_on(self) -> None:
        """Answer again."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it; whoever waits for it gets an error."""
        if self._process.returncode is not None:
            return
        self._process.kill()
        self._process.communicate()
        subprocess.run(["fusermount3", "-u", "-z", str(self._where)], check=True)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[HangingDisk]:
    try:
        require_fuse()
    except FuseMissing as error:
        pytest.skip(str(error))
    disk = HangingDisk(tmp_path)
    yield disk
    disk.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[RestartedHost]:
    with RestartedHost(tmp_path) as made:
        made.format()
        made.join()
        yield made


def _join_other(host: RestartedHost, path: Path) -> None:
    """Join a second lockspace, in which there is r0."""
    space = Lockspace(OTHER.encode(), 1, disk=Disk(os.fsencode(path)))
    with host.connection() as connection:
        connection.write_lockspace(space._replace(host_id=0), IO_TIMEOUT_S)
        connection.add_lockspace(space, IO_TIMEOUT_S)
        place = Disk(os.fsencode(path), MIB)
        connection.write_resource(Resource(OTHER.encode(), b"r0", disks=(place,)))


def _other(path: Path) -> list[object]:
    return [OTHER, "r0", str(path), MIB, 0]


def _serves(host: RestartedHost, limit_s: float = 15.0) -> None:
    """See that a request is answered."""
    with Connection(str(host.daemon.run_dir), timeout_s=limit_s) as connection:
        connection.get_lockspaces()


def test_disk_that_hangs_does_not_hold_up_a_restart(
    host: RestartedHost, hanging: HangingDisk
) -> None:
    """The restart is called off, and clients are served all the time."""
    _join_other(host, hanging.path)
    agent = host.agent()
    agent("acquire", resources=[host.resource(0)])
    hanging.hang()
    host.ask_restart()
    host.until(lambda: host.log_has("called off"), "it is called off")
    _serves(host)
    agent("release", resources=[host.resource(0)])
    hanging.close()


def test_disk_that_hangs_does_not_hold_up_a_successor(
    host: RestartedHost, hanging: HangingDisk
) -> None:
    """After a crash the leases of other lockspaces are gone on with.

    Who uses leases of the lockspace on that disk is stopped when he has to be.
    """
    _join_other(host, hanging.path)
    agent, lost = host.agent(), host.agent()
    agent("acquire", resources=[host.resource(0)])
    lost("acquire", resources=[_other(hanging.path)])
    renewed = time.monotonic()
    host.crash()
    hanging.hang()
    host.daemon.start_again()
    host._note_helpers()
    _serves(host)
    assert list(agent("held")) == ["r0"]
    agent("acquire", resources=[host.resource(1)])
    assert await_end(lost) == -signal.SIGTERM
    assert time.monotonic() < renewed + 8 * IO_TIMEOUT_S + 5
    host.until(lambda: host.log_has("lockspace gone"), "the lockspace is cleared")
    agent("release", resources=[host.resource(0), host.resource(1)])
    hanging.close()


def test_lockspace_whose_disk_is_gone_ends_alone(host: RestartedHost, tmp_path: Path) -> None:
    """After a crash only those are stopped whose lockspace cannot be gone on with."""
    path = tmp_path / "other"
    with path.open("wb") as file:
        file.truncate(4 * MIB)
    _join_other(host, path)
    agent, lost = host.agent(), host.agent()
    agent("acquire", resources=[host.resource(0)])
    lost("acquire", resources=[_other(path)])
    host.crash()
    path.unlink()
    host.start()
    assert await_end(lost) == -signal.SIGTERM
    assert list(agent("held")) == ["r0"]
    agent("release", resources=[host.resource(0)])


def test_lease_whose_disk_is_gone_ends_alone(host: RestartedHost, tmp_path: Path) -> None:
    """After a crash those are stopped whose leases lie on a disk that is not there any more."""
    path = tmp_path / "other"
    with path.open("wb") as file:
        file.truncate(4 * MIB)
    resource = _elsewhere(host, path)
    agent, lost = host.agent(), host.agent()
    agent("acquire", resources=[host.resource(0)])
    lost("acquire", resources=[resource])
    host.crash()
    path.unlink()
    host.start()
    assert await_end(lost) == -signal.SIGKILL
    assert list(agent("held")) == ["r0"]
    agent("release", resources=[host.resource(0)])


def _elsewhere(host: RestartedHost, path: Path) -> list[object]:
    """Make a resource of the lockspace on another disk; return it as an agent takes it."""
    with host.connection() as connection:
        place = Disk(os.fsencode(path), MIB)
        connection.write_resource(Resource(SPACE.encode(), b"elsewhere", disks=(place,)))
    return [SPACE, "elsewhere", str(path), MIB, 0]


def _as_shared(resource: list[object]) -> list[object]:
    return [*resource[:4], int(ResourceFlag.SHARED)]


@pytest.mark.parametrize("how", ["exec", "crash"])
def test_conversion_that_ends_late_is_known(
    host: RestartedHost, hanging: HangingDisk, how: str
) -> None:
    """A conversion of which its client was told that it failed: what comes of it counts.

    The client sees in which mode it has the lease, and a restart does not take it for lost.
    """
    resource = _elsewhere(host, hanging.path)
    agent = host.agent()
    agent("acquire", resources=[resource])
    hanging.hang()
    with pytest.raises(Refused):
        agent("convert", resource=_as_shared(resource))
    hanging.go_on()
    host.until(lambda: agent("held") == {"elsewhere": "SH"}, "the conversion is known")
    host.restart(how)
    assert agent("held") == {"elsewhere": "SH"}
    agent("convert", resource=resource)
    agent("release", resources=[resource])


def test_conversion_that_a_restart_cuts_short(host: RestartedHost, hanging: HangingDisk) -> None:
    """A restart while a slow conversion is under way: it is answered, once, and nothing is lost."""
    resource = _elsewhere(host, hanging.path)
    agent = host.agent()
    agent("acquire", resources=[resource])
    hanging.slow_down(0.8)
    agent.begin("convert", resource=_as_shared(resource))
    host.exec()
    assert agent.result() is None
    assert agent("held") == {"elsewhere": "SH"}
    agent("release", resources=[resource])


CHILD_KEEPS_IT = """
import os, sys
from paxoslease.client import Connection
connection = Connection(sys.argv[1])
connection.register(inheritable=True)
connection.inquire()
if os.fork():
    sys.stdin.readline()
    os._exit(0)
os.close(0)
os.close(1)
while True:
    os.read(int(sys.argv[2]), 1) or os._exit(0)
"""


def _with_pid(pid: int) -> subprocess.Popen[bytes]:
    """Start a process with a number that is free."""
    for _ in range(500):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "600"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    raise AssertionError("the number is not to be had")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses numbers of processes")
@pytest.mark.parametrize("how", ["none", "exec", "crash"])
def test_number_of_a_client_that_another_has(host: RestartedHost, how: str) -> None:
    """A child has a client's connection, a stranger its number: the stranger is not signalled."""
    reader, writer = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD_KEEPS_IT, str(host.daemon.run_dir), str(reader)],
        stdin=subprocess.PIPE,
        cwd=REPOSITORY,
        pass_fds=[reader],
    )
    os.close(reader)
    host.until(lambda: host._is_known(parent.pid), "the client is registered")
    with host.connection() as connection:
        place = Disk(os.fsencode(host.disk), MIB)
        connection.acquire([Resource(SPACE.encode(), b"r0", disks=(place,))], pid=parent.pid)
    parent.communicate(b"end\n")
    stranger = _with_pid(parent.pid)
    try:
        if how != "none":
            host.restart(how)
        with host.connection() as connection:
            connection.set_config(SPACE.encode(), Config.UNUSED)
            connection.rem_lockspace(host.space(), wait=False)
        host.until(
            lambda: host.log_has("somebody has its connection") or stranger.poll() is not None,
            "it has been tried",
        )
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        os.close(writer)
    host.until(lambda: host.log_has("lockspace gone"), "the child's end is the client's")


@pytest.mark.parametrize("doing", ["convert", "release"])
def test_lease_that_was_not_to_be_noted_is_given_up(host: RestartedHost, doing: str) -> None:
    """Something was done with a lease of which it is not known how it was held before."""
    agent, other = host.agent(), host.agent()
    resource = host.resource(0)
    agent("acquire", resources=[resource], flags=int(AcquireFlag.LVB))
    agent("set_lvb", resource=resource, value="changed")
    host.crash()
    path = str(host.daemon.run_dir / "paxoslease.state")
    noted = read_journal(path)
    assert noted is not None
    (key,) = (key for key in noted if key.startswith("e"))
    noted[key] |= {"doing": doing, "lease": None}
    if doing == "release":
        noted[key]["tokens"] = []
    Journal(path, noted).begin()
    host.start()
    if doing == "convert":
        assert await_end(agent) == -signal.SIGKILL

    def is_free() -> bool:
        try:
            other("acquire", resources=[resource])
        except Refused:
            return False
        return True

    host.until(is_free, "the lease is free")
    host.exec()
