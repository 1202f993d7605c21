"""The real virtlockd as an oracle, and as a rival in one lockspace directory."""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paxoslease.lockd.client import LockConnection, LockRefused
from paxoslease.wire.virtlock import (
    KEEPALIVE_PROGRAM,
    PROGRAM,
    AcquireFlag,
    Call,
    CreateLockspace,
    Header,
    Keepalive,
    New,
    Procedure,
    Register,
    ResourceCall,
    Restrict,
    pack_call,
    pack_keepalive,
    pack_message,
    parse_header,
)
from tests.lockd.rig import LIMIT_S, LockDaemon, Raw, our_daemon, virtlockd

AUTOCREATE, SHARED = AcquireFlag.AUTOCREATE, AcquireFlag.SHARED
PING, PONG = pack_keepalive(Keepalive.PING), pack_keepalive(Keepalive.PONG)
STEPS = 1500
OWNERS = (0, 100001, 100002, 100003, 0xFFFFFFFF)  # no process has such a pid
SPACES = (b"/sp1", b"/sp2", b"/deep/er", b"/unknown", b"/file", b"/dangling", b"/file/x")
NAMES = (b"a", b"b", b"c", b"no/where", b"sub", b"", b"\xff\xe9", b"n" * 300)
IMAGES = (b"/images/one", b"/images/two", b"/images/missing", b"/images/sub", b"/images/sub/x")


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[LockDaemon, LockDaemon]]:
    """Give the real virtlockd and our daemon, in directories with names of one length."""
    directories = tmp_path / "real", tmp_path / "ours"
    for directory in directories:
        directory.mkdir()
    with virtlockd(directories[0]) as real, our_daemon(directories[1]) as ours:
        yield real, ours


class Side:
    """One of the two daemons, its own files, its clients, and the foreign locks on its files."""

    def __init__(self, daemon: LockDaemon) -> None:
        self.daemon = daemon
        self.root = daemon.path.parent / "files"
        self.stand_in = b"@" * len(bytes(self.root))
        for name in ("images/sub", "sp1/sub"):
            (self.root / name).mkdir(parents=True)
        for name in ("images/one", "images/two", "file"):
            (self.root / name).touch()
        (self.root / "dangling").symlink_to("nothing")
        self.clients: dict[int, Raw] = {}
        self.removed: set[bytes] = set()
        self.foreign: dict[bytes, int] = {}

    def ask(self, client: int, message: bytes) -> list[bytes]:
        """Send a message; return all answers, and an empty one for the end of the connection.

        Paths begin with the stand-in for the side's own directory, which is as long as that.
        """
        if client not in self.clients:
            self.clients[client] = self.daemon.raw()
        raw = self.clients[client]
        answers: list[bytes] = []
        is_ping = parse_header(message)[:4] == parse_header(PING)[:4]
        try:
            raw.send(message.replace(self.stand_in, bytes(self.root)) + PING)
            while (answer := raw.message()) and (answer != PONG or is_ping):
                is_ping = is_ping and answer != PONG
                answers.append(answer.replace(bytes(self.root), self.stand_in))
        except ConnectionError:
            answer = b""
        if not answer:
            self.clients.pop(client).socket.close()
            answers.append(b"")
        return answers

    def lock(self, name: bytes, how: int) -> bool:
        """Lock a file as another host would; False where that is not possible."""
        if name in self.foreign:
            return False
        try:
            descriptor = os.open(bytes(self.root) + name, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.lockf(descriptor, how | fcntl.LOCK_NB, 1)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self.foreign[name] = descriptor
        return True

    def unlock(self) -> None:
        """Give up all foreign locks."""
        while self.foreign:
            os.close(self.foreign.popitem()[1])

    def files(self) -> dict[str, str]:
        """Return every file with its kind and mode."""
        found = {}
        for path in sorted(self.root.rglob("*"), key=bytes):
            found[str(path.relative_to(self.root))] = oct(path.lstat().st_mode)
        return found

    def close(self) -> None:
        """Close everything."""
        self.unlock()
        for raw in self.clients.values():
            raw.socket.close()


def _call(draw: random.Random, root: bytes) -> Call:
    """Draw a call that may succeed."""
    flags = draw.choice([*[0] * 20, 1, 4, 2**31])
    match draw.choice(["register", "register", "space", "new", "file", *["lock"] * 10]):
        case "register":
            owner_id = draw.choice([0, *[1] * 8, 2**32 - 1])
            return Register(draw.randbytes(16), b"vm", owner_id, draw.choice(OWNERS), flags)
        case "space":
            return CreateLockspace(draw.choice([b"", *(root + space for space in SPACES)]))
        case "new":
            # Not what is a file: there virtlockd pretends to have made a lockspace.
            return New(draw.choice([b"", *(root + space for space in SPACES[:3])]), flags)
        case "file":
            procedure = draw.choice([Procedure.CREATE_RESOURCE, Procedure.DELETE_RESOURCE])
        case _:
            procedure = draw.choice([Procedure.ACQUIRE_RESOURCE, Procedure.RELEASE_RESOURCE])
            if procedure is Procedure.ACQUIRE_RESOURCE:
                flags = draw.choice([0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 7])
    if draw.random() < 0.4:
        image = draw.choice(IMAGES[:2] if draw.random() < 0.7 else IMAGES)
        return ResourceCall(procedure, b"", root + image, flags)
    is_usual = draw.random() < 0.7
    space = draw.choice(SPACES[:2] if is_usual else SPACES)
    return ResourceCall(
        procedure, root + space, draw.choice(NAMES[:3] if is_usual else NAMES), flags
    )


def _odd(draw: random.Random, root: bytes) -> bytes:
    """Draw a message that something is wrong with."""
    call = pack_call(_call(draw, root), draw.getrandbits(32))
    payload = call[28:]
    cut = draw.randrange(len(payload) + 1)
    header = Header(
        draw.choice([PROGRAM, PROGRAM, PROGRAM, KEEPALIVE_PROGRAM, 0x06900690, -1]),
        draw.choice([1, 1, 1, 0, -2]),
        draw.choice([*range(-1, 10)]),
        draw.choice([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 2**32 - 1]),
        draw.getrandbits(32),
        draw.choice([0, 0, 0, 1, 2, 3, 2**32 - 1]),
    )
    if header.kind == 4:
        payload = draw.choice([bytes(4), bytes(4), b"\0\0\0\x21"]) + payload
    return pack_message(header, payload[:cut] if draw.random() < 0.5 else payload)


def _outside(draw: random.Random, sides: tuple[Side, Side]) -> None:
    """Let others do something to the files, the same on both sides."""
    name = draw.choice([*IMAGES, *(s + b"/" + n for s in SPACES[:3] for n in NAMES[:3])])
    match draw.choice(["lock", "share", "unlock", "touch", "remove"]):
        case "lock":
            done = [side.lock(name, fcntl.LOCK_EX) for side in sides]
        case "share":
            done = [side.lock(name, fcntl.LOCK_SH) for side in sides]
        case "unlock":
            done = [side.unlock() for side in sides]
        case "touch":
            # A file in the place of one that is locked: virtlockd would remove it with the lock.
            if name in sides[0].removed:
                return
            done = [_tried(Path(os.fsdecode(bytes(s.root) + name)).touch) for s in sides]
        case _:
            # Not what this process has locked: it would come to lock the name's next file too.
            if name in sides[0].foreign:
                return
            sides[0].removed.add(name)
            done = [_tried(Path(os.fsdecode(bytes(s.root) + name)).unlink) for s in sides]
    assert done[0] == done[1], name


def _tried(action: Callable[[], None]) -> type[OSError] | None:
    try:
        action()
    except OSError as error:
        return type(error)
    return None


@pytest.mark.parametrize("seed", range(4))
def test_the_same_answers_as_virtlockd(both: tuple[LockDaemon, LockDaemon], seed: int) -> None:
    """Hundreds of random calls, good and odd, between acts of others: every byte is the same."""
    draw = random.Random(seed)
    sides = Side(both[0]), Side(both[1])
    root = sides[0].stand_in
    seen: dict[tuple[int, int, bytes], int] = {}
    try:
        for step in range(STEPS):
            if draw.random() < 0.15:
                _outside(draw, sides)
                continue
            client = draw.randrange(4)
            if draw.random() < 0.02:
                message = pack_call(Restrict(draw.choice([0, 1])), step)
            elif draw.random() < 0.1:
                message = _odd(draw, root)
            else:
                message = pack_call(_call(draw, root), step)
            real, ours = (side.ask(client, message) for side in sides)
            assert ours == real, f"step {step} of seed {seed}: {message!r}"
            for answer in filter(None, real):
                header = parse_header(answer)
                key = header.procedure, header.status, answer[28:32]
                seen[key] = seen.get(key, 0) + 1
            # A restricted connection has no use any more.
            if any(b"has been restricted" in answer for answer in real):
                for side in sides:
                    side.clients.pop(client).socket.close()
            if step % 20 == 0:
                assert sides[1].files() == sides[0].files(), f"step {step} of seed {seed}"
        assert sides[1].files() == sides[0].files()
        assert len(seen) > 20, "the steps reach much of the protocol"
        assert seen[Procedure.ACQUIRE_RESOURCE, 0, b""] > 50
        assert seen[Procedure.RELEASE_RESOURCE, 0, b""] > 30
    finally:
        for side in sides:
            side.close()


class Holders:
    """Who holds a resource right now, as the holders themselves see it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[str, bool] = {}
        self.wrong: list[str] = []
        self.grants: dict[str, int] = {}
        self.refusals = 0

    def begin(self, name: str, *, shared: bool) -> None:
        """Say that the lock was got."""
        with self._guard:
            if self._held and not (shared and all(self._held.values())):
                self.wrong.append(f"{name} got it beside {self._held}")
            self._held[name] = shared
            self.grants[name] = self.grants.get(name, 0) + 1

    def end(self, name: str) -> None:
        """Say that the lock is going to be given up."""
        with self._guard:
            del self._held[name]


def _contend(
    connection: LockConnection, name: str, directory: bytes, holders: Holders, until_s: float
) -> None:
    draw = random.Random(name)
    while time.monotonic() < until_s and not holders.wrong:
        shared = draw.random() < 0.3
        try:
            connection.acquire(directory, b"key", AUTOCREATE | (SHARED if shared else 0))
        except LockRefused as refused:
            if not refused.is_busy:
                raise
            holders.refusals += 1
            continue
        holders.begin(name, shared=shared)
        holders.end(name)
        connection.release(directory, b"key")


def test_never_both_in_one_directory(both: tuple[LockDaemon, LockDaemon], tmp_path: Path) -> None:
    """virtlockd and ours contend for a lock file that comes and goes: one holder at a time."""
    directory = bytes(tmp_path / "space")
    holders = Holders()
    connections = [daemon.connect(100001 + i) for i, daemon in enumerate(both)]
    for connection in connections:
        connection.create_lockspace(directory)
    until_s = time.monotonic() + 4
    errors: list[BaseException] = []

    def contend(connection: LockConnection, name: str) -> None:
        try:
            _contend(connection, name, directory, holders, until_s)
        except BaseException as error:  # shown below, in the thread of the test
            errors.append(error)

    threads = [
        threading.Thread(target=contend, args=arguments)
        for arguments in zip(connections, ("real", "ours"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    for connection in connections:
        connection.close()
    assert not errors
    assert not holders.wrong
    assert min(holders.grants.values()) > 50, holders.grants
    assert holders.refusals > 50
    assert os.listdir(directory) == []


@pytest.mark.parametrize("first", [0, 1])
def test_each_respects_the_others_locks(
    both: tuple[LockDaemon, LockDaemon], tmp_path: Path, first: int
) -> None:
    """On a disk itself and on a lock file, exclusive and shared, in both directions."""
    directory, image = bytes(tmp_path / "space"), tmp_path / "disk.img"
    image.touch()
    with both[first].connect(100001) as one, both[1 - first].connect(100002) as other:
        for connection in (one, other):
            connection.create_lockspace(directory)
        for place, flags in (((b"", bytes(image)), 0), ((directory, b"key"), AUTOCREATE)):
            one.acquire(*place, flags)
            for wanted in (flags, flags | SHARED):
                with pytest.raises(LockRefused, match="is locked"):
                    other.acquire(*place, wanted)
            one.release(*place)
            one.acquire(*place, flags | SHARED)
            other.acquire(*place, flags | SHARED)
            one.release(*place)
            with pytest.raises(LockRefused, match="is locked"):
                one.acquire(*place, flags)
            other.release(*place)
            one.acquire(*place, flags)
            one.release(*place)
    assert image.exists()
    assert os.listdir(directory) == []


def test_one_at_a_place(tmp_path: Path) -> None:
    """Ours does not start where virtlockd's pid file is held."""
    with virtlockd(tmp_path) as real:
        with real.connect() as connection:
            connection.create_lockspace(b"")
        ours = tmp_path / "ours"
        ours.mkdir()
        with (
            pytest.raises(AssertionError, match="runs already"),
            our_daemon(ours, "--pid-file", tmp_path / "virtlockd.pid"),
        ):
            raise RuntimeError("it started")
