"""A connection by itself: how long half a request may take."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from paxoslease.lockd.connection import Connection
from paxoslease.lockd.daemon import Daemon, Settings
from paxoslease.lockd.places import listen, places_at
from paxoslease.lockd.processes import peer_of
from paxoslease.lockd.session import Session
from paxoslease.lockd.space import LockTable
from paxoslease.wire.virtlock import Procedure, Register, ResourceCall, pack_call

LIMIT_S = 0.3
REGISTER = pack_call(Register(bytes(16), b"vm", 1, os.getpid()), 0)


class Stage:
    """A daemon in this process, and a client of it, which is this process as well."""

    def __init__(self, path: Path) -> None:
        self.daemon = Daemon(Settings(places_at(path)), LockTable(), listen(path))
        self.client, end = socket.socketpair()
        self.client.setblocking(False)
        session = Session(self.daemon.table)
        self.connection = Connection(end, session, peer_of(end), 1, self.daemon, LIMIT_S)
        self.daemon.connections[1] = self.connection
        self.connection.start()

    def close(self) -> None:
        """Close everything."""
        self.client.close()
        self.connection.close()
        self.daemon.hangups.close()
        self.daemon.work.end_threads()
        self.daemon.listener.close()

    async def ask(self, message: bytes) -> bytes:
        """Send a message and return the answer."""
        self.client.sendall(message)
        return await self.received()

    async def received(self) -> bytes:
        """Return what comes next, nothing when the daemon has hung up."""
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(self.client, 4096)

    @property
    def is_open(self) -> bool:
        """Tell whether the daemon has not hung up."""
        return self.connection.socket.fileno() >= 0


async def on_stage(tmp_path: Path, run: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a test on a stage of its own."""
    with closing(Stage(tmp_path / "socket")) as stage:
        await run(stage)


def test_half_a_request_has_a_limit(tmp_path: Path) -> None:
    """It takes the place of a client, and is hung up on; whole requests begin anew each time."""

    async def run(stage: Stage) -> None:
        for _ in range(3):
            stage.client.sendall(REGISTER[:10])
            await asyncio.sleep(LIMIT_S / 2)
            assert len(await stage.ask(REGISTER[10:])) == 28
        await asyncio.sleep(2 * LIMIT_S)
        assert stage.is_open, "nothing said is no half request"
        stage.client.sendall(REGISTER[:10])
        assert await stage.received() == b""
        assert not stage.daemon.connections

    asyncio.run(on_stage(tmp_path, run))


def test_half_a_request_of_a_guest_has_none(tmp_path: Path) -> None:
    """Its end would be the end of a guest: not while it holds a lock, and as before without one."""
    image = tmp_path / "disk.img"
    image.touch()
    place = b"", bytes(image)
    acquire = pack_call(ResourceCall(Procedure.ACQUIRE_RESOURCE, *place), 1)
    release = pack_call(ResourceCall(Procedure.RELEASE_RESOURCE, *place), 2)

    async def run(stage: Stage) -> None:
        assert len(await stage.ask(REGISTER)) == 28
        assert len(await stage.ask(acquire)) == 28
        stage.client.sendall(release[:10])
        await asyncio.sleep(4 * LIMIT_S)
        assert stage.is_open
        assert len(await stage.ask(release[10:])) == 28
        stage.client.sendall(release[:10])
        assert await stage.received() == b""

    asyncio.run(on_stage(tmp_path, run))
