"""The registry of leases: what one command does between two steps of another."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paxoslease.daemon.clients import Client
from paxoslease.daemon.entries import Entry, Phase
from paxoslease.daemon.refusal import Refusal
from paxoslease.daemon.registry import AcquireFailed, Registry
from paxoslease.daemon.winning import win
from paxoslease.engine.leases import Holding
from paxoslease.errors import LeaseBusy
from paxoslease.wire.sanlock import (
    AcquireFlag,
    Disk,
    Resource,
    ResourceFlag,
    pack_resource,
    parse_resource,
)


class Journal:
    """Notes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def doing(self, entry: Entry, what: str) -> Any:
        """Fail: nothing is to be done with the disk here."""
        raise AssertionError(f"{what} of {entry.resource.name!r} although somebody holds it")


class Space:
    """A lockspace that is joined, without a membership."""

    name = b"space"
    is_dead = False
    membership = None


class Spaces:
    """One lockspace."""

    def __init__(self) -> None:
        self.space = Space()

    def usable(self, name: bytes) -> Any:
        """Return the lockspace."""
        return self.space

    def changed(self) -> None:
        """Do nothing."""


_NAMED = Resource(b"space", b"r", flags=int(ResourceFlag.SHARED), disks=(Disk(b"/disk", 1 << 20),))
SHARED = parse_resource(pack_resource(_NAMED, with_disks=True))


def _held_by(registry: Registry, client: Client, flags: int = 0) -> Entry:
    """Return an entry that a client holds shared."""
    spaces: Any = registry._spaces
    entry = Entry(1, spaces.space, SHARED, client)
    entry.phase = Phase.HELD
    entry.holding = Holding(b"r", ())
    registry.put_back(entry)
    registry.give_back(entry, client, 2, bool(flags), 0)
    return entry


async def _both(*works: Awaitable[Any]) -> list[Any]:
    """Begin things in this order, in one turn of the loop, and wait for them."""
    return await asyncio.gather(*works, return_exceptions=True)


@pytest.fixture
def registry() -> Registry:
    spaces: Any = Spaces()
    journal: Any = Journal()
    return Registry(spaces, journal, 8)


async def _acquire(registry: Registry, client: Client) -> bool:
    try:
        await registry.acquire_all(client, [SHARED], AcquireFlag(0))
    except AcquireFailed:
        return False
    return True


def test_lease_that_is_shared_anew_is_not_released(registry: Registry) -> None:
    """Another client gets a shared lease in the moment in which its holder gives it back."""

    async def run() -> None:
        first, second = Client(2, os.getpid(), None), Client(3, os.getpid(), None)
        entry = _held_by(registry, first)
        got, _ = await _both(_acquire(registry, second), registry.release(first.tokens[0]))
        assert got is True
        assert [token.client for token in entry.tokens] == [second]
        assert entry.phase is Phase.HELD
        first.end()
        second.end()

    asyncio.run(run())


def test_lease_of_a_client_that_ended_is_not_shared(registry: Registry) -> None:
    """Between the end of a client and the release of its lease nobody gets a share of that."""

    async def run() -> None:
        first, second = Client(2, os.getpid(), None), Client(3, os.getpid(), None)
        entry = _held_by(registry, first)
        registry.client_ended(first)
        assert await _acquire(registry, second) is False
        assert entry.tokens == []
        first.end()
        second.end()

    asyncio.run(run())


def test_sh_retries_are_patience(registry: Registry, tmp_path: Path) -> None:
    """Three tries of half a second each are a second and a half in which ours tries."""
    wants: list[Any] = []

    def start_acquire(*names: Any, want: Any, **how: Any) -> Any:
        wants.append(want)
        raise LeaseBusy(b"space", b"r", "held")

    async def run() -> None:
        client = Client(2, os.getpid(), None)
        entry = _held_by(registry, client)
        path = tmp_path / "disk"
        path.touch()
        entry.resource = entry.resource._replace(disks=(Disk(bytes(path), 0),))
        leases: Any = SimpleNamespace(start_acquire=start_acquire)
        membership: Any = SimpleNamespace(leases=leases)
        entry.space.membership = membership
        with pytest.raises(Refusal):
            await win(entry, no_wait=False, shared_retries=3)
        client.end()

    asyncio.run(run())
    assert [want.patience_us for want in wants] == [1_500_000]
