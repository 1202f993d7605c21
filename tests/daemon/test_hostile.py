"""Clients that stop, lie, flood or never read: meanwhile the others are served."""

from __future__ import annotations

import random
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.daemon import wire
from tests.daemon.daemons import require
from tests.daemon.line import Line
from tests.daemon.scripts.common import SPACE, lease, name, prepare
from tests.daemon.stage import MIB, Client, Host, Stage
from tests.daemon.wire import Cmd, acquire, release, request

BOUND_S: Final = 3.0  # on two busy cores; alone it is milliseconds
PATIENCE_S: Final = 30.0  # what an unregistered client is given to finish a request
MEMORY_KIB: Final = 64 << 10  # what no client may make the daemon grow by
LARGEST: Final = 0xFFFFFFFF
DEADLY: Final = {Cmd.SHUTDOWN, Cmd.SHUTDOWN_WAIT, Cmd.REM_LOCKSPACE, Cmd.RESTRICT}


class Scene:
    """Our daemon in a lockspace, and a bystander who wants to be served all the time."""

    def __init__(self, host: Host, path: Path, bystander: Client) -> None:
        self.host = host
        self.path = path
        self.bystander = bystander

    def lines(self, stack: ExitStack, count: int) -> list[Line]:
        """Open connections that end with `stack`."""
        lines = [Line(str(self.host.daemon.socket_path)) for _ in range(count)]
        for line in lines:
            stack.callback(line.close)
        return lines

    def assert_served(self) -> None:
        """Others get their answers, and soon."""
        begin = time.monotonic()
        reply = self.host.quietly(request(Cmd.VERSION), limit_s=BOUND_S)
        assert len(reply) == 32, "a new connection gets no answer"
        for sent in (acquire(lease(self.path, 1)), release(name(1))):
            reply = self.bystander.quietly(sent, limit_s=BOUND_S)
            assert reply, "the bystander gets no answer"
            assert wire.result(reply) == 0
        assert time.monotonic() - begin < BOUND_S

    def memory_kib(self) -> int:
        """Return the resident memory of the daemon."""
        status = Path(f"/proc/{self.host.daemon.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1])

    def descriptors(self) -> int:
        """Return how many descriptors the daemon has open."""
        return len(list(Path(f"/proc/{self.host.daemon.pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    require("ours")
    with Stage("ours", tmp_path_factory.mktemp("h")) as stage:
        host = stage.host("one")
        path = prepare(stage, host, 4)
        yield Scene(host, path, host.client("bystander"))
        assert host.daemon.process.poll() is None, host.daemon.stderr()


@contextmanager
def memory_bounded(scene: Scene) -> Iterator[None]:
    """The daemon does not grow by much, and goes back to the descriptors it had."""
    scene.assert_served()
    memory_kib, descriptors = scene.memory_kib(), scene.descriptors()
    yield
    scene.assert_served()
    assert scene.memory_kib() - memory_kib < MEMORY_KIB
    scene.host.stage.until(
        lambda: scene.descriptors() <= descriptors, "the descriptors are closed", PATIENCE_S + 10
    )


def test_a_few_bytes_and_no_more(scene: Scene) -> None:
    """Clients that stop anywhere in a header or in the payload of any command."""
    space = wire.lockspace(SPACE, 1, scene.path)
    with ExitStack() as stack, memory_bounded(scene):
        for size in (1, 4, 10, 31):
            for line in scene.lines(stack, 5):
                line.send(request(Cmd.VERSION)[:size])
        for cmd in set(Cmd) - DEADLY:
            (line,) = scene.lines(stack, 1)
            line.send(request(cmd, space, data=1)[:37])
        scene.assert_served()
        stack.close()


@pytest.mark.long
def test_who_stops_is_given_up(scene: Scene) -> None:
    """An unregistered connection that stopped in a request is closed; a registered one is not."""
    half = request(Cmd.VERSION)[:10]
    with ExitStack() as stack:
        (line,) = scene.lines(stack, 1)
        line.send(half)
        registered = scene.host.client("half")
        assert wire.result(registered.quietly(acquire(lease(scene.path, 2)))) == 0
        registered.send(half)
        assert line.receive(1, PATIENCE_S + 10) == (b"", "ended")
        reply = scene.host.quietly(wire.inquire(registered.pid))
        assert wire.parse_header(reply).data2 == 1
        released = scene.host.quietly(release(name(2), pid=registered.pid))
        assert wire.result(released) == 0
        registered.end()
        scene.assert_served()


def test_garbage(scene: Scene) -> None:
    """Bytes without sense, some of them with a magic."""
    draw = random.Random(1)
    with ExitStack() as stack, memory_bounded(scene):
        for number, line in enumerate(scene.lines(stack, 40)):
            noise = draw.randbytes(draw.randrange(1, 20_000))
            head = struct.pack("<I", wire.MAGIC) if number % 2 else b""
            try:
                line.send(head + noise)
            except (BrokenPipeError, ConnectionResetError):
                continue  # it was closed on the way, as it may be
        scene.assert_served()
        stack.close()


def _lies(path: Path) -> Iterator[tuple[str, bytes]]:
    """Give requests whose counts, lengths, offsets or names are not what they should be."""
    space = wire.lockspace(SPACE, 1, path)
    held = name(3)
    for count in (LARGEST, 1 << 31, 9, 1000):
        payload = lease(path, 4) + wire.options()
        yield f"acquire {count}", request(Cmd.ACQUIRE, payload, data=count, data2=-1)
        yield f"release {count}", request(Cmd.RELEASE, held, data=count, data2=-1)
        many = wire.resource(SPACE, "R4", count) + wire.disk(path)
        yield f"disks {count}", request(Cmd.ACQUIRE, many + wire.options(), data=1, data2=-1)
        for cmd in (Cmd.WRITE_RESOURCE, Cmd.READ_RESOURCE, Cmd.READ_RESOURCE_OWNERS, Cmd.REQUEST):
            yield f"{cmd.name} {count}", request(cmd, many, data=1)
    for length in (0, 31, 32, 159, 160, 161, 32 + 128 + 4097, 1 << 31, LARGEST):
        yield f"set_lvb {length}", request(Cmd.SET_LVB, held + b"x", length=length)
        yield f"length {length}", request(Cmd.INQ_LOCKSPACE, space, length=length)
    yield "get_lvb", request(Cmd.GET_LVB, held, data2=LARGEST)
    for offset in (1, 1 << 41, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        index = wire.rindex(SPACE, path, 0) + wire.rentry("", offset)
        for flags in (0, 0x10000, 0x20000):
            yield f"update {offset}", request(Cmd.UPDATE_RINDEX, index, flags=flags)
        yield f"lookup {offset}", request(Cmd.LOOKUP_RINDEX, index)
        far = wire.lockspace(SPACE, 2, path, offset)
        yield f"read {offset}", request(Cmd.READ_LOCKSPACE, far)
        yield f"add {offset}", request(Cmd.ADD_LOCKSPACE, far, data=1)
        lost = wire.lease(SPACE, "R4", path, offset)
        yield f"read resource {offset}", request(Cmd.READ_RESOURCE, lost)
        yield f"acquire at {offset}", wire.acquire(lost)
    endless = b"n" * 48
    place = struct.pack("<48sQII", endless, LARGEST, LARGEST, LARGEST) + b"p" * 1024 + b"\xff" * 16
    for cmd in (Cmd.ADD_LOCKSPACE, Cmd.INQ_LOCKSPACE, Cmd.GET_HOSTS, Cmd.HOST_STATUS, Cmd.RENEWAL):
        yield f"no end in {cmd.name}", request(cmd, place, data=LARGEST)


def test_counts_that_lie(scene: Scene) -> None:
    """Every count, length and offset that a client can give, too great or too small."""
    with ExitStack() as stack, memory_bounded(scene):
        liar = scene.host.client("liar")
        for what, data in _lies(scene.path):
            (line,) = scene.lines(stack, 1)
            line.send(data)
            line.end_sending()
            reply, how = line.receive(None, limit_s=10)
            assert how == "whole", f"{what}: neither an answer nor an end"
            assert not reply or len(reply) >= 32, what
            at = liar.open()
            liar.register(at)
            liar.quietly(data, at=at, limit_s=0.05, probes=False)
            liar.close(at)
            assert scene.host.daemon.process.poll() is None, what
        scene.assert_served()
        liar.kill()
        stack.close()


def test_random_requests(scene: Scene) -> None:
    """Headers that are right before payloads that are not."""
    draw = random.Random(2)
    commands = sorted(set(Cmd) - DEADLY)
    with ExitStack() as stack, memory_bounded(scene):
        for _ in range(400):
            cmd = draw.choice(commands)
            payload = bytearray(draw.randbytes(draw.choice((56, 128, 1104, 1168, 1224))))
            # No path that is there by chance, relative ones included.
            payload[64:64] = b"/nowhere/"
            words = {"flags": draw.choice((0, 1, 2, 4, 8)), "data": draw.randrange(4)}
            data = request(cmd, bytes(payload), **words, data2=draw.choice((0, -1, 1, 8)))
            (line,) = scene.lines(stack, 1)
            try:
                line.send(data)
            except (BrokenPipeError, ConnectionResetError):
                continue  # it was closed on the way, as it may be
        scene.assert_served()
        stack.close()


@pytest.mark.parametrize("cmd", [Cmd.LOG_DUMP, Cmd.STATUS, Cmd.HOST_STATUS, Cmd.GET_LOCKSPACES])
def test_who_asks_and_never_reads(scene: Scene, cmd: Cmd) -> None:
    """Asking for much, again and again, without reading any of it."""
    payload = wire.lockspace(SPACE) if cmd == Cmd.HOST_STATUS else b""
    asked = request(cmd, payload, length=32) * (100_000 // (32 + len(payload)))
    with memory_bounded(scene):
        deaf = scene.host.client("deaf")
        for _ in range(20):
            # Registered: others are disconnected after the first answer.
            at = deaf.open()
            deaf.register(at)
            deaf.send(asked, at=at)
        scene.assert_served()
        deaf.kill()


def test_connections_without_number(scene: Scene) -> None:
    """1,500 connections at once; when they end, nothing of them is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("not enough descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    with ExitStack() as stack, memory_bounded(scene):
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        lines = scene.lines(stack, 1500)
        for line in lines[::3]:
            line.send(request(Cmd.VERSION)[:10])
        scene.assert_served()
        stack.close()


def test_who_asks_and_hangs_up(scene: Scene) -> None:
    """A thousand requests whose clients do not wait for the answer."""
    space = wire.lockspace(SPACE, 1, scene.path)
    asked = [
        request(Cmd.STATUS),
        request(Cmd.GET_HOSTS, space),
        request(Cmd.INQ_LOCKSPACE, space),
        request(Cmd.READ_RESOURCE, lease(scene.path, 1)),
        request(Cmd.WRITE_RESOURCE, wire.lease(SPACE, "RX", scene.path, 6 * MIB)),
    ]
    with memory_bounded(scene):
        for number in range(1000):
            line = Line(str(scene.host.daemon.socket_path))
            line.send(asked[number % len(asked)])
            line.close()
        scene.assert_served()
