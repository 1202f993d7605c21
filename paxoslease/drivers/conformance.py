"""What every lock driver must do, as tests with real processes: for drivers of third parties too.

    from paxoslease.drivers.conformance import Conformance, Rig

    class MyRig(Rig):
        ...

    @pytest.fixture(scope="module")
    def rig(tmp_path_factory):
        ...                             # yields a MyRig

    class TestMyDriver(Conformance):
        pass

The tests are collected by pytest from the subclass. A driver whose class says `excludes = False`
must keep nobody out, one with `uses_state` must refuse a state that somebody else's use has made
old. Guests are `sleep` processes that register as a real guest does.

Source: spec/lock-drivers.md 15, "Invariants worth testing".
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Final, NamedTuple
from uuid import uuid4

import pytest

from paxoslease.drivers.base import Disk, Driver, FailureAction, Mode, Owner, Resource
from paxoslease.drivers.errors import ResourceBusy, StateOutdated
from paxoslease.drivers.migration import Arrival, Departure
from paxoslease.drivers.process import Guest, Order, OwnerProcess
from paxoslease.drivers.registry import open_driver

SOON_S: Final = 30.0
AT_ONCE_S: Final = 15.0
_LOOK_AGAIN_S: Final = 0.05
REFUSED: Final = (ResourceBusy, StateOutdated)
_SPAWN: Final = multiprocessing.get_context("spawn")


class Rig(ABC):
    """Where a driver is tested: one or more hosts on storage that they share.

    driver: its name. hosts: the options with which it is opened on each; several hosts are several
    daemons here, which exclude each other as they would on several machines.
    """

    driver: ClassVar[str]
    hosts: Sequence[Mapping[str, Any]]

    @abstractmethod
    def disk(self) -> str:
        """Return the path of a new disk, which exists and nobody uses."""


class Running(NamedTuple):
    """A guest's process on one host, registered, and the driver there."""

    driver: Driver
    process: OwnerProcess

    @property
    def owner(self) -> Owner:
        """Return by what it is known."""
        return self.process.owner

    def acquire(self, *resources: Resource, state: str | None = None) -> None:
        """Acquire for it, in the place of a management program."""
        self.driver.acquire(self.owner, resources, state=state)

    def release(self, *resources: Resource) -> str | None:
        """Release for it."""
        return self.driver.release(self.owner, resources)

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.process.popen.kill()
        self.process.popen.wait()


class Stage:
    """The guests of one test; all of them are gone when it ends."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._stack = ExitStack()
        self._number = 0

    def driver(self, host: int = 0) -> Driver:
        """Open the driver on a host; hosts beyond the last are the last."""
        return open_driver(self._rig.driver, **self.options(host))

    def options(self, host: int = 0) -> dict[str, Any]:
        """Return the driver's options on a host."""
        return dict(self._rig.hosts[min(host, len(self._rig.hosts) - 1)])

    def order(self, host: int = 0) -> Order:
        """Return what a guest's process is started by."""
        self._number += 1
        guest = Guest(uuid4(), f"guest-{self._number}", self._number)
        sleep = shutil.which("sleep")
        assert sleep is not None
        action = FailureAction.DEFAULT
        return Order(self._rig.driver, self.options(host), guest, action, sleep, ["600"])

    def register(self, host: int = 0) -> OwnerProcess:
        """Start a guest's process as far as its registration."""
        process = OwnerProcess(self.order(host))
        self._stack.callback(process.abandon)
        return process

    def guest(self, host: int = 0) -> Running:
        """Start a guest, which holds nothing yet."""
        process = self.register(host)
        process.go()
        return Running(self.driver(host), process)

    def close(self) -> None:
        """End all guests."""
        self._stack.close()


def soon(attempt: Callable[[], None]) -> None:
    """Try until it is not refused any more: what an owner's end frees is free a moment later."""
    end_s = time.monotonic() + SOON_S
    while True:
        try:
            attempt()
            return
        except ResourceBusy:
            if time.monotonic() > end_s:
                raise
        time.sleep(_LOOK_AGAIN_S)


def excluded(guest: Running, *resources: Resource, state: str | None = None) -> None:
    """Check that a guest does not get what others use; and gets it, if the driver says so."""
    begin_s = time.monotonic()
    if not guest.driver.excludes:
        guest.acquire(*resources, state=state)
        return
    # A state that somebody's use has made old is refused as such, whether that one is there or not.
    refusals = ResourceBusy if state is None else REFUSED
    with pytest.raises(refusals) as refusal:
        guest.acquire(*resources, state=state)
    assert time.monotonic() - begin_s < AT_ONCE_S, "an acquire must never wait for a holder"
    assert refusal.value.code < 0
    assert str(refusal.value)


def _acquire_elsewhere(
    name: str, options: Mapping[str, Any], owner: Owner, resources: Sequence[Resource]
) -> None:
    """Acquire as a management program that ends right afterwards."""
    open_driver(name, **options).acquire(owner, resources)


def _own_and_wait(
    channel: Connection[Any, Any],
    name: str,
    options: Mapping[str, Any],
    resources: Sequence[Resource],
) -> None:
    """Be an owner that acquires by itself and restricts itself; live until told otherwise."""
    owner = Owner(uuid4(), "by-itself", 1, os.getpid())
    registration = open_driver(name, **options).acquire(owner, resources, restrict=True)
    assert registration is not None
    channel.send(owner)
    channel.poll(None)


class Conformance:
    """The suite. A fixture `rig` must be known where the subclass is."""

    @pytest.fixture
    def stage(self, rig: Rig) -> Iterator[Stage]:
        """Yield a stage, whose guests end with the test."""
        stage = Stage(rig)
        try:
            yield stage
        finally:
            stage.close()

    def test_it_says_what_it_is(self, stage: Stage) -> None:
        """The constants by which people and programs choose a driver are there."""
        driver = stage.driver()
        assert driver.name
        assert driver.libvirt_name
        assert driver.description
        assert FailureAction.DEFAULT not in driver.unsupported

    def test_preparing_twice_is_harmless(self, stage: Stage) -> None:
        """A host is prepared at every start of its management program."""
        stage.driver().prepare()
        stage.driver().prepare()

    def test_one_exclusive_user_over_all_hosts(self, stage: Stage, rig: Rig) -> None:
        """At most one owner holds an exclusive resource, on this host and on others."""
        disk = Disk(rig.disk())
        one, beside, elsewhere = stage.guest(0), stage.guest(0), stage.guest(1)
        one.acquire(disk)
        excluded(beside, disk)
        excluded(elsewhere, disk)
        one.release(disk)
        elsewhere.acquire(disk)
        excluded(one, disk)

    def test_shared_users_exclude_an_exclusive_one(self, stage: Stage, rig: Rig) -> None:
        """Shared with shared is compatible; shared with exclusive is not, in either order."""
        path = rig.disk()
        shared, exclusive = Disk(path, Mode.SHARED), Disk(path)
        one, two, three = stage.guest(0), stage.guest(0), stage.guest(1)
        one.acquire(shared)
        two.acquire(shared)
        soon(lambda: three.acquire(shared))
        writer = stage.guest(0)
        excluded(writer, exclusive)
        for reader in (one, two, three):
            reader.release(shared)
        soon(lambda: writer.acquire(exclusive))
        excluded(one, shared)

    def test_readonly_disks_are_never_locked(self, stage: Stage, rig: Rig) -> None:
        """A read-only disk excludes nobody, is excluded by nobody, and is in no state."""
        path = rig.disk()
        reader, writer = stage.guest(), stage.guest()
        writer.acquire(Disk(path))
        reader.acquire(Disk(path, Mode.READONLY))
        assert reader.driver.inquire(reader.owner) is None
        assert reader.release(Disk(path, Mode.READONLY)) is None

    def test_all_or_nothing(self, stage: Stage, rig: Rig) -> None:
        """A refused acquire leaves nothing behind, whichever of its resources is in use."""
        disks = [Disk(rig.disk()) for _ in range(3)]
        holder, greedy, third = stage.guest(), stage.guest(), stage.guest()
        holder.acquire(disks[1])
        excluded(greedy, *disks)
        if holder.driver.excludes:
            third.acquire(disks[0], disks[2])

    def test_many_disks_at_once(self, stage: Stage, rig: Rig) -> None:
        """A guest may have as many disks as it likes, and they are still all or nothing."""
        disks = [Disk(rig.disk()) for _ in range(11)]
        one, two = stage.guest(), stage.guest()
        two.acquire(disks[-1])
        excluded(one, *disks)
        two.release(disks[-1])
        two.acquire(*disks)
        excluded(one, disks[0])
        two.release(*disks)
        one.acquire(*disks)

    def test_the_end_of_the_owner_frees_everything(self, stage: Stage, rig: Rig) -> None:
        """Its locks go with the owner's process, although somebody else asked for them."""
        disk = Disk(rig.disk())
        one, two = stage.guest(0), stage.guest(1)
        one.acquire(disk)
        excluded(two, disk)
        one.end()
        soon(lambda: two.acquire(disk))

    def test_locks_outlive_whoever_asked_for_them(self, stage: Stage, rig: Rig) -> None:
        """A management program can end, and another one can go on, while the guest runs."""
        disk = Disk(rig.disk())
        one, two = stage.guest(), stage.guest()
        arguments = (rig.driver, stage.options(), one.owner, [disk])
        program = _SPAWN.Process(target=_acquire_elsewhere, args=arguments)
        program.start()
        program.join(SOON_S)
        assert program.exitcode == 0
        excluded(two, disk)
        stage.driver().release(one.owner, [disk])
        two.acquire(disk)

    def test_an_owner_that_acquires_by_itself(self, stage: Stage, rig: Rig) -> None:
        """The owner's own connection can acquire; restricted, it holds on, and others release."""
        disk = Disk(rig.disk())
        ours, theirs = _SPAWN.Pipe()
        arguments = (theirs, rig.driver, stage.options(), [disk])
        program = _SPAWN.Process(target=_own_and_wait, args=arguments)
        program.start()
        try:
            theirs.close()
            assert ours.poll(SOON_S)
            owner = ours.recv()
            other = stage.guest()
            excluded(other, disk)
            stage.driver().release(owner, [disk])
            other.acquire(disk)
        finally:
            ours.close()
            program.join(SOON_S)

    def test_registering_takes_nothing(self, stage: Stage, rig: Rig) -> None:
        """A guest that is started but does not run yet holds nothing."""
        disk = Disk(rig.disk())
        waiting, other = stage.register(), stage.guest()
        assert waiting.popen.poll() is None
        other.acquire(disk)

    def test_a_start_that_is_given_up_frees_what_was_acquired(self, stage: Stage, rig: Rig) -> None:
        """If whoever starts a guest goes away before it runs, it never runs, and holds nothing."""
        disk = Disk(rig.disk())
        waiting, other = stage.register(), stage.guest()
        driver = stage.driver()
        driver.acquire(waiting.owner, [disk])
        excluded(other, disk)
        waiting.abandon()
        soon(lambda: other.acquire(disk))

    def test_what_a_guest_has_it_cannot_have_again(self, stage: Stage, rig: Rig) -> None:
        """An exclusive resource that the owner itself holds is in use like any other."""
        disk = Disk(rig.disk())
        guest = stage.guest()
        guest.acquire(disk)
        excluded(guest, disk)
        guest.release(disk)
        guest.acquire(disk)

    def test_a_second_release_is_harmless(self, stage: Stage, rig: Rig) -> None:
        """Every suspend of libvirt releases twice; the second finds nothing, and says nothing."""
        disk = Disk(rig.disk())
        guest = stage.guest()
        guest.acquire(disk)
        first = guest.release(disk)
        assert (first is not None) == guest.driver.uses_state
        assert guest.release(disk) is None
        guest.acquire(disk, state=first)

    def test_nobody_else_can_release(self, stage: Stage, rig: Rig) -> None:
        """A release in the name of another owner passes over what that one does not hold."""
        disk = Disk(rig.disk())
        holder, stranger = stage.guest(), stage.guest()
        holder.acquire(disk)
        assert stranger.release(disk) is None
        excluded(stranger, disk)

    def test_part_of_what_is_held_can_be_released(self, stage: Stage, rig: Rig) -> None:
        """Detaching one disk leaves the others locked; its state tells of that disk only."""
        kept, detached = Disk(rig.disk()), Disk(rig.disk())
        guest, other = stage.guest(), stage.guest()
        guest.acquire(kept, detached)
        whole = guest.driver.inquire(guest.owner)
        part = guest.release(detached)
        if guest.driver.uses_state:
            assert whole is not None
            assert part is not None
            assert len(part) < len(whole)
            assert part in whole
        other.acquire(detached)
        excluded(other, kept)

    def test_a_state_can_travel(self, stage: Stage, rig: Rig) -> None:
        """Release here and acquire with the state on another host gives the same locks there."""
        disks = [Disk(rig.disk()), Disk(rig.disk(), Mode.SHARED)]
        here, there = stage.guest(0), stage.guest(1)
        here.acquire(*disks)
        inquired = here.driver.inquire(here.owner)
        state = here.release(*disks)
        assert (state is not None) == here.driver.uses_state
        assert inquired == state
        there.acquire(*disks, state=state)
        excluded(here, disks[0])

    def test_a_state_is_refused_after_another_use(self, stage: Stage, rig: Rig) -> None:
        """Who was paused while another one had the disk must not run on."""
        disk = Disk(rig.disk())
        paused, other = stage.guest(0), stage.guest(1)
        paused.acquire(disk)
        state = paused.release(disk)
        other.acquire(disk)
        excluded(paused, disk, state=state)
        other.release(disk)
        if not paused.driver.uses_state:
            paused.acquire(disk, state=state)
            return
        with pytest.raises(StateOutdated):
            paused.acquire(disk, state=state)
        other.acquire(disk)  # nothing was left of what was refused

    def test_migration(self, stage: Stage, rig: Rig) -> None:
        """The source releases with its state, the destination acquires with it."""
        disk = Disk(rig.disk())
        source, destination, third = stage.guest(0), stage.guest(1), stage.guest(0)
        source.acquire(disk)
        departure = Departure(source.driver, source.owner, [disk])
        arrival = Arrival(destination.driver, destination.owner, [disk])
        early = departure.offer()
        if source.driver.excludes:
            with pytest.raises(ResourceBusy):
                arrival.take(early)
        handover = departure.leave()
        assert departure.leave() == handover  # libvirt releases twice
        assert early == handover
        arrival.take(handover)
        source.end()
        excluded(third, disk)

    def test_migration_fails_before_the_destination_has_taken(self, stage: Stage, rig: Rig) -> None:
        """The source goes on, whether the destination tried nothing or was never there."""
        disk = Disk(rig.disk())
        source, destination = stage.guest(0), stage.guest(1)
        source.acquire(disk)
        departure = Departure(source.driver, source.owner, [disk])
        handover = departure.leave()
        departure.stay()
        arrival = Arrival(destination.driver, destination.owner, [disk])
        if source.driver.excludes:
            with pytest.raises(REFUSED):
                arrival.take(handover)

    def test_migration_fails_after_the_destination_has_taken(self, stage: Stage, rig: Rig) -> None:
        """While the destination has the locks the source cannot go on; given back, it can."""
        disk = Disk(rig.disk())
        source, destination = stage.guest(0), stage.guest(1)
        source.acquire(disk)
        departure = Departure(source.driver, source.owner, [disk])
        arrival = Arrival(destination.driver, destination.owner, [disk])
        arrival.take(departure.leave())
        if source.driver.excludes:
            with pytest.raises(REFUSED):
                departure.stay()
        departure.stay(arrival.give_back())
        excluded(destination, disk)

    def test_migration_fails_with_the_destination(self, stage: Stage, rig: Rig) -> None:
        """A destination that died with the locks, before it was told to run, blocks nobody."""
        disk = Disk(rig.disk())
        source, destination = stage.guest(0), stage.guest(1)
        source.acquire(disk)
        departure = Departure(source.driver, source.owner, [disk])
        Arrival(destination.driver, destination.owner, [disk]).take(departure.leave())
        destination.end()
        if source.driver.uses_state:
            with pytest.raises(StateOutdated):
                soon(departure.stay)
        soon(lambda: departure.stay(trusting=True))
        excluded(stage.guest(1), disk)

    def test_migration_meets_a_third_one(self, stage: Stage, rig: Rig) -> None:
        """If a third guest has come in between, neither side goes on beside it."""
        disk = Disk(rig.disk())
        source, destination, third = stage.guest(0), stage.guest(1), stage.guest(1)
        source.acquire(disk)
        departure = Departure(source.driver, source.owner, [disk])
        handover = departure.leave()
        third.acquire(disk)
        arrival = Arrival(destination.driver, destination.owner, [disk])
        if not source.driver.excludes:
            return
        with pytest.raises(REFUSED):
            arrival.take(handover)
        with pytest.raises(REFUSED):
            departure.stay()

    def test_a_stopped_guest_keeps_its_locks(self, stage: Stage, rig: Rig) -> None:
        """SIGSTOP alone releases nothing: a guest that may go on is a guest that runs."""
        disk = Disk(rig.disk())
        one, two = stage.guest(0), stage.guest(1)
        one.acquire(disk)
        os.kill(one.owner.pid, signal.SIGSTOP)
        excluded(two, disk)
