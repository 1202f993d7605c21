"""The keeper: what the daemon tells it, and what it makes of that."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from paxoslease.daemon import helper as helper_module, keeper
from paxoslease.daemon.helper import Helper
from paxoslease.daemon.keeper import Keeper, Store
from paxoslease.daemon.manager import tell_manager


class Pair:
    """A daemon's side and a helper's side; the test moves the messages."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = ours
        self.keeper = Keeper(Helper(-1, ours))
        self.store = Store("")
        self.theirs.setblocking(False)

    def deliver(self) -> int:
        """Give the store what has come; returns how many messages that were."""
        count = 0
        while True:
            try:
                message, descriptors = keeper.receive(self.theirs)
            except BlockingIOError:
                return count
            assert self.store.take(message, descriptors) == 0
            count += 1

    def close(self) -> None:
        """Close everything."""
        self.store.take(keeper._pack(keeper.SWEEP), [])
        self.store.take(keeper._pack(keeper.SWEEP, number=1), [])
        self.theirs.close()
        self.channel.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def _name(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def test_full_channel_blocks_nobody(pair: Pair, tmp_path: Path) -> None:
    """What the channel does not take is told later, of each key the last."""
    first, last = tmp_path / "first", tmp_path / "last"
    first.touch()
    last.touch()

    async def run() -> None:
        with first.open() as one, last.open() as other:
            for number in range(2000):
                pair.keeper.keep(b"c%d" % number, one.fileno())
            for number in range(0, 2000, 2):
                pair.keeper.keep(b"c%d" % number, other.fileno())
            for number in range(1, 2000, 4):
                pair.keeper.drop(b"c%d" % number)
            assert pair.keeper._changes
            while pair.keeper._changes or pair.deliver():
                pair.deliver()
                await asyncio.sleep(0.001)

    asyncio.run(run())
    kept = pair.store._kept
    assert set(kept) == {b"c%d" % n for n in range(2000) if n % 4 != 1}
    assert {_name(kept[b"c%d" % n][0]) for n in range(0, 2000, 2)} == {str(last)}
    assert {_name(kept[b"c%d" % n][0]) for n in range(3, 2000, 4)} == {str(first)}


def test_sweep_drops_what_is_not_kept_anew(pair: Pair, tmp_path: Path) -> None:
    """After a restart the daemon tells what there is, and the rest is given up."""
    path = tmp_path / "file"
    path.touch()

    async def run() -> None:
        with path.open() as file:
            for key in (b"c1", b"c2", b"wspace"):
                pair.keeper.keep(key, file.fileno())
            pair.keeper.expire(b"space", 5)
            pair.keeper.expire(b"other", 6)
            pair.deliver()
            pair.keeper.begin_sweep()
            pair.keeper.keep(b"c2", file.fileno())
            pair.keeper.expire(b"space", 7)
            pair.deliver()
            assert set(pair.store._kept) == {b"c1", b"c2", b"wspace"}
            pair.keeper.end_sweep()
            pair.deliver()

    asyncio.run(run())
    assert set(pair.store._kept) == {b"c2"}
    assert pair.store._expiries == {b"space": 7}


def test_sweep_keeps_what_waited_to_be_told(pair: Pair, tmp_path: Path) -> None:
    """What the channel had not taken when the sweep began is kept, as it is then."""
    path = tmp_path / "file"
    path.touch()

    async def run() -> None:
        with path.open() as file:
            number = 0
            while not pair.keeper._changes:
                pair.keeper.keep(b"c%d" % number, file.fileno())
                number += 1
            pair.keeper.keep(b"wspace", file.fileno())
            pair.keeper.begin_sweep()
            pair.keeper.keep(b"wspace", file.fileno())
            pair.keeper.end_sweep()
            while pair.keeper._changes or pair.deliver():
                pair.deliver()
                await asyncio.sleep(0.001)

    asyncio.run(run())
    assert set(pair.store._kept) == {b"wspace"}


def test_store_leaves_room_to_serve_a_successor(pair: Pair) -> None:
    """It never has so many descriptors open that it could not accept a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader, writer = os.pipe()
    message = keeper._pack(keeper.KEEP, b"c1", number=2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (writer + 8, hard))
    try:
        assert pair.store.take(message, [reader, writer]) == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not pair.store._kept


class _Refusing:
    """A channel on which nothing can be sent, for some reason."""

    def __init__(self, code: int) -> None:
        self.code = code

    def sendmsg(self, *_: object) -> int:
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN])
def test_helper_that_cannot_be_told_now_is_not_lost(code: int) -> None:
    """A signal that cannot be passed on is sent directly; the next one may go through."""
    helper = Helper(-1, cast(socket.socket, _Refusing(code)))
    assert not helper.signal(1, 2, 9)
    assert helper.is_alive
    assert helper.full == 1


def test_helper_outlives_a_fork_that_fails(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    """A killpath that cannot be run is told; what the process keeps does not end by it."""

    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("paxoslease.daemon.helper.os.fork", refused)
    reader, writer = os.pipe()
    try:
        message = helper_module._MESSAGE.pack(helper_module._RUN, 0, 0, 0) + b"/bin/true\0"
        helper_module._do(pair.theirs, message, [writer])
        code, _ = helper_module._OUTCOME.unpack(os.read(reader, 8))
        assert code == errno.EAGAIN
    finally:
        os.close(reader)
        os.close(writer)


def test_descriptors_that_did_not_come_are_told(pair: Pair) -> None:
    """A message whose descriptors were lost on the way (too many are open) keeps nothing."""
    message = keeper._pack(keeper.KEEP, b"c1", number=2)
    reader, writer = os.pipe()
    os.close(writer)
    assert pair.store.take(message, [reader]) != 0
    assert not pair.store._kept


def test_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that waits for it hears that the daemon is up, and its pid."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        tell_manager("READY=1")
        assert manager.recv(100) == b"READY=1\nMAINPID=%d" % os.getpid()


def test_messages_stay_as_they_are() -> None:
    """A daemon speaks with the helper of an older version, a helper with a newer daemon.

    So kinds, fields and keys never change; new kinds get new numbers.
    """
    kinds = (keeper.KEEP, keeper.DROP, keeper.EXPIRE, keeper.SWEEP, keeper.BYE, keeper.RENEW)
    assert kinds == (16, 17, 18, 19, 20, 21)
    assert (keeper.KEPT, keeper.READY) == (32, 33)
    assert keeper._MESSAGE.format == "=iiiiq"
    assert (keeper.CLIENT, keeper.EVENT, keeper.WDMD, keeper.DEVICE) == (b"c", b"e", b"w", b"d")
    assert keeper.SOCKET_NAME == "paxoslease.keeper"
    assert helper_module._MESSAGE.format == "=iiii"
    assert (helper_module._ALIVE, helper_module._SIGNAL, helper_module._RUN) == (0, 1, 2)
    assert helper_module._OUTCOME.format == "=ii"


def test_kinds_that_are_not_known_are_ignored(pair: Pair) -> None:
    """A newer daemon may ask for what this one does not know; nothing is lost by that."""
    reader, writer = os.pipe()
    assert pair.store.take(keeper._pack(keeper.KEEP, b"c1", number=2), [reader, writer]) == 0
    assert pair.store.take(keeper._pack(99, b"c1", number=7, time_us=5), []) == 0
    assert set(pair.store._kept) == {b"c1"}


def test_store_is_the_same_after_it_was_handed_on(pair: Pair) -> None:
    """What a helper leaves to the one that it becomes is all that there is."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    assert pair.store.take(keeper._pack(keeper.KEEP, b"dLS", number=1, time_us=3), [reader]) == 0
    assert pair.store.take(keeper._pack(keeper.KEEP, b"c2", number=1), [writer]) == 0
    assert pair.store.take(keeper._pack(keeper.EXPIRE, b"LS", time_us=9), []) == 0
    assert pair.store.take(keeper._pack(keeper.SWEEP), []) == 0
    left = pair.store.dump()
    loaded = Store.load(json.loads(json.dumps(left)))
    assert loaded.dump() == left
    assert sorted(loaded.descriptors()) == sorted([reader, writer])
    assert not os.get_inheritable(reader)
