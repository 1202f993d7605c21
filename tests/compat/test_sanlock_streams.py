"""What the daemon streams is printed as the original prints it, sorted or not.

A daemon that only plays one sends both programs the same records.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from paxoslease.wire.sanlock import (
    Disk,
    Lockspace,
    Resource,
    ResourceFlag,
    State,
    StateType,
    pack_lockspace,
    pack_resource,
    pack_state,
)
from tests.compat.recorder import Recorder
from tests.daemon.daemons import PROGRAMS, require

pytestmark = pytest.mark.peer

STATUS: Final = 5
LOG_DUMP: Final = 6
HOST_STATUS: Final = 15
RENEWAL: Final = 34

DISK: Final = Disk(b"/mnt/a b:c", 1 << 20)


def client(pid: int, name: bytes) -> bytes:
    """Return the record of a client."""
    return pack_state(State(StateType.CLIENT, pid, 0, name, b"ci=2 fd=11 pid=%d" % pid))


def space(name: bytes, where: bytes) -> bytes:
    """Return the record of a lockspace on one of the daemon's lists."""
    state = State(StateType.LOCKSPACE, 0, 1, name, b"list=%b space_id=5" % where)
    return pack_state(state) + pack_lockspace(Lockspace(name, 1, 0, DISK))


def lease(name: bytes, pid: int, where: bytes, lockspace: bytes = b"LS1", flags: int = 0) -> bytes:
    """Return the record of a lease of one process, or of none."""
    state = State(StateType.RESOURCE, pid, 7, name, b"list=%b flags=0" % where)
    resource = Resource(lockspace, name, (DISK, Disk(b"/q", 5)), flags=flags)
    return pack_state(state) + pack_resource(resource, with_disks=True)


RECORDS: Final = (
    pack_state(State(StateType.DAEMON, 0, 0, b"host1", b"our_host_name=host1 gid=0"))
    + client(-1, b"helper")
    + client(-1, b"listener")
    + client(70, b"")
    + client(80, b"guest one")
    + client(-1, b"status")
    + space(b"LS1", b"spaces")
    + space(b"LS2", b"add")
    + space(b"LS3", b"rem")
    + lease(b"R1", 80, b"held")
    + lease(b"R2", 70, b"held", flags=ResourceFlag.SHARED)
    + lease(b"R2", 80, b"held", flags=ResourceFlag.SHARED)
    + lease(b"R3", 70, b"add", b"LS2")
    + lease(b"R4", 99, b"rem")
    + lease(b"R5", 99, b"orphan", b"LSX")
    + lease(b"R6", 0, b"orphan")
)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """Run a daemon that sends records."""
    require("real")
    require("ours")
    with Recorder(tmp_path, 0) as made:
        yield made


@pytest.mark.parametrize("words", ["", "-o p", "-o s", "-o x", "-D", "-D -o p", "-D -o s"])
@pytest.mark.parametrize("records", [RECORDS, b""], ids=["all", "none"])
def test_status(recorder: Recorder, words: str, records: bytes) -> None:
    """The daemon's state, in each order, with and without the items of each record."""
    recorder.streams[STATUS] = records
    same(recorder, f"status {words}")


def test_status_of_four_disks(recorder: Recorder) -> None:
    """A resource of four disks, over which the original dies, is printed."""
    state = pack_state(State(StateType.RESOURCE, 1, 2, b"R", b"list=held"))
    resource = Resource(b"L", b"R", (Disk(b"/p", 1),) * 4)
    recorder.streams[STATUS] = state + pack_resource(resource, with_disks=True)
    said = recorder.run(PROGRAMS["ours"], ["client", "status"])
    assert said.out == b"r L:R:/p:1:/p:1:/p:1:/p:1:2 p 1\n"


@pytest.mark.parametrize("words", ["-s LS1", "-s LS1 -D", "", "-D"])
def test_host_status(recorder: Recorder, words: str) -> None:
    """The hosts of one lockspace, or of all."""
    recorder.streams[STATUS] = RECORDS
    recorder.streams[HOST_STATUS] = b"".join(
        pack_state(State(StateType.HOST, host, 3000 + host, b"", b"last_check=1 owner_id=2"))
        for host in (1, 2, 2000)
    )
    same(recorder, f"host_status {words}")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_renewal(recorder: Recorder, count: int) -> None:
    """The renewals, a line for each."""
    record = pack_state(State(StateType.RENEWAL, 0, 7, b"", b"timestamp=7 read_ms=0 write_ms=1"))
    recorder.streams[RENEWAL] = record * count
    same(recorder, "renewal -s LS1")


@pytest.mark.parametrize("log", [b"", b"one line", b"two\nlines", b"x" * (1 << 20)])
def test_log_dump(recorder: Recorder, log: bytes) -> None:
    """The log, with an end of line behind it."""
    recorder.streams[LOG_DUMP] = log
    same(recorder, "log_dump")


def same(recorder: Recorder, words: str) -> None:
    """Run both programs, and compare what they print and their exit codes."""
    real = recorder.run(PROGRAMS["real"], ["client", *words.split()])
    assert recorder.run(PROGRAMS["ours"], ["client", *words.split()]) == real
