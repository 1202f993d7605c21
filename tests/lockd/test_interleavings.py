"""Operations of the lock table that overlap in any way: what it says is what the kernel says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from paxoslease.lockd import work
from paxoslease.lockd.failures import LockRefused
from paxoslease.lockd.files import Identity, identity_of, is_locked
from paxoslease.lockd.space import LockTable
from paxoslease.lockd.work import OnFiles, Operation, Turn, Until, Work
from paxoslease.wire.virtlock import AcquireFlag
from tests.lockd.operations import done, next_step
from tests.lockd.outside import is_free

NONE, SHARED, AUTOCREATE = AcquireFlag(0), AcquireFlag.SHARED, AcquireFlag.AUTOCREATE
OWNERS = (10, 11, 12)
STEPS = 4000
OPERATIONS_MAX = 6


class Scheduler:
    """Stands in for the threads: each call is done, and later told, when the test says so."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._waiting: list[tuple[Callable[[], object], Callable[..., None]]] = []
        self._ended: list[Callable[[], None]] = []

    def call(self, function: Callable[[], object], outcome: Callable[..., None]) -> None:
        """Take a call."""
        self._waiting.append((function, outcome))

    @property
    def has_more(self) -> bool:
        """Tell whether anything waits."""
        return bool(self._waiting or self._ended)

    def step(self) -> None:
        """Do any of the calls, or tell the outcome of any."""
        number = self._draw.randrange(len(self._waiting) + len(self._ended))
        if number >= len(self._waiting):
            self._ended.pop(number - len(self._waiting))()
            return
        function, outcome = self._waiting.pop(number)
        try:
            result = function()
        except OSError as error:
            self._ended.append(lambda error=error: outcome(None, error))  # type: ignore[misc]
        else:
            self._ended.append(lambda: outcome(result, None))


def check(table: LockTable) -> None:
    """Check that every resource in the table is locked in the kernel, each file for one name."""
    files: dict[Identity, bytes] = {}
    for _, resource in table.held():
        # None: its owner has left, and the release waits for its turn.
        assert resource.flags & SHARED or len(resource.owners) <= 1
        assert identity_of(resource.descriptor) == resource.identity
        assert files.setdefault(resource.identity, resource.path) == resource.path
        assert is_locked(resource.descriptor, resource.flags), resource


def answered(operation: Operation[None]) -> Operation[None]:
    """Let an operation be refused."""
    with contextlib.suppress(LockRefused):
        yield from operation


def begin(draw: random.Random, table: LockTable, tmp_path: Path) -> list[Operation[None]]:
    """Draw operations that begin now."""
    spaces = [b"", bytes(tmp_path / "sp"), bytes(tmp_path / "sp") + b"/"]
    space = draw.choice(spaces)
    names = [b"a", b"b", b"link", b"hard"]
    name = draw.choice(names) if space else bytes(tmp_path / "sp") + b"/" + draw.choice(names)
    owner = draw.choice(OWNERS)
    match draw.choice(["acquire"] * 5 + ["release"] * 3 + ["create", "delete", "leave"]):
        case "acquire":
            flags = draw.choice([NONE, SHARED, AUTOCREATE, AUTOCREATE | SHARED])
            is_there = draw.choice([True] * 5 + [False])
            return [answered(table.acquire(space, name, owner, flags, lambda: is_there))]
        case "release":
            return [answered(table.release(space, name, owner))]
        case "create":
            return [answered(table.create_resource(space, name))]
        case "delete":
            return [answered(table.delete_resource(space, name))]
        case _:
            return table.release_owner(owner)


@pytest.mark.parametrize("seed", range(6))
def test_the_table_says_what_the_kernel_says(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever overlaps, by whatever names: no lock without an owner, no owner without a lock."""
    draw = random.Random(seed)
    directory = tmp_path / "sp"
    directory.mkdir()
    (directory / "a").touch()
    (directory / "link").symlink_to("a")
    (directory / "hard").hardlink_to(directory / "a")
    monkeypatch.setattr(work, "_Threads", lambda _: scheduler)
    scheduler = Scheduler(draw)
    before = sorted(os.listdir("/proc/self/fd"))
    granted = 0

    async def run() -> None:
        nonlocal granted
        table, tasks = LockTable(), Work(lambda: None)
        for space in (bytes(directory), bytes(directory) + b"/"):
            done(table.create_lockspace(space))
        for number in range(STEPS):
            if tasks.count < OPERATIONS_MAX and draw.random() < 0.4:
                for operation in begin(draw, table, tmp_path):
                    tasks.start(operation, lambda _: None)
            elif scheduler.has_more:
                scheduler.step()
            await asyncio.sleep(0)  # the next in turn
            check(table)
            granted += len(list(table.held()))
            if number % 500 == 499:
                for owner in OWNERS:
                    for operation in table.release_owner(owner):
                        tasks.start(operation, lambda _: None)
                while tasks.count:
                    if scheduler.has_more:
                        scheduler.step()
                    await asyncio.sleep(0)
                assert not list(table.held())
                assert not table.descriptors()

    asyncio.run(run())
    assert sorted(os.listdir("/proc/self/fd")) == before, "nothing stays open"
    assert granted > STEPS / 4


def test_one_file_asked_for_by_two_names_at_once(tmp_path: Path) -> None:
    """Both are open before either is known to be: one gets it, and the other costs it nothing."""
    image, other = tmp_path / "image", tmp_path / "other"
    image.touch()
    other.hardlink_to(image)
    table = LockTable()
    first = table.acquire(b"", bytes(image), 10, NONE)
    second = table.acquire(b"", bytes(other), 11, NONE)
    step, other_step = first.send(None), second.send(None)
    while isinstance(step, Turn):
        step = first.send(None)
    while isinstance(other_step, Turn):
        other_step = second.send(None)
    assert isinstance(step, OnFiles)
    assert isinstance(other_step, OnFiles)
    opened, other_opened = step.function(), other_step.function()
    step = first.send(opened)
    other_step = second.send(other_opened)
    assert isinstance(other_step, Until)
    assert not other_step.condition()
    with pytest.raises(StopIteration):
        next_step(first, step)
    assert other_step.condition()
    with pytest.raises(LockRefused, match="is locked"):
        next_step(second, second.send(None))
    assert not is_free(image)
    done(table.release(b"", bytes(image), 10))
    assert is_free(image)
    assert not table.descriptors()
