"""The fcntl driver beside the suite: names, files, and the end of the daemon."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from paxoslease.drivers.base import Disk, Driver, ExplicitLease, Mode, Owner
from paxoslease.drivers.conformance import Stage
from paxoslease.drivers.errors import (
    DaemonUnreachable,
    LeaseRequired,
    ResourceBusy,
    ResourceUnusable,
)
from paxoslease.drivers.fcntl import _Registered
from paxoslease.drivers.registry import open_driver
from paxoslease.errors import ConfigError
from paxoslease.lockd.client import LockRefused
from tests.drivers.rigs import FcntlRig
from tests.lockd.rig import LockDaemon, await_that, our_daemon


class Place:
    """A lock daemon, a directory of lock files, and guests."""

    def __init__(self, directory: Path, daemon: LockDaemon) -> None:
        self.directory = directory
        self.daemon = daemon
        self.locks = directory / "locks"
        options = {"socket": str(daemon.path), "file_lockspace_dir": str(self.locks)}
        self.stage = Stage(FcntlRig(directory, [options]))
        self.driver: Driver = self.stage.driver()
        self.driver.prepare()

    def driver_with(self, **options: object) -> Driver:
        """Open the driver with other options."""
        return open_driver("fcntl", socket=str(self.daemon.path), **options)

    def files(self) -> list[str]:
        """Return the lock files that are there."""
        return [path.name for path in self.locks.iterdir()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Give a lock daemon with indirect locks."""
    with our_daemon(tmp_path) as daemon:
        place = Place(tmp_path, daemon)
        try:
            yield place
        finally:
            place.stage.close()


def test_lock_files_are_there_while_somebody_holds_them(place: Place) -> None:
    """A disk's lock file is named by the hash of its path, and goes with its last holder."""
    disk = Disk("/dev/no/such/disk", Mode.SHARED)
    one, two = place.stage.guest(), place.stage.guest()
    assert place.files() == []
    one.acquire(disk)
    two.acquire(disk)
    assert place.files() == [hashlib.sha256(disk.path.encode()).hexdigest()]
    one.release(disk)
    assert len(place.files()) == 1
    two.end()
    await_that(lambda: place.files() == [], "the end of the last holder removes the file")


def test_an_explicit_lease_is_a_file_of_a_lockspace(place: Place) -> None:
    """Its directory must be a lockspace already, its file must be there, its offset is 0."""
    lease = ExplicitLease(place.locks.name, "key", str(place.directory))
    one, two = place.stage.guest(), place.stage.guest()
    with pytest.raises(ResourceUnusable, match="Unable to open resource"):
        one.acquire(lease)
    (place.locks / "key").touch()
    one.acquire(lease)
    with pytest.raises(ResourceBusy):
        two.acquire(lease)
    one.release(lease)
    two.acquire(lease)
    with pytest.raises(ConfigError, match="offset"):
        one.acquire(lease._replace(offset=512))
    with pytest.raises(ResourceUnusable, match="does not exist"):
        one.acquire(lease._replace(path="/elsewhere"))


def test_without_automatic_leases_a_guest_needs_one(place: Place) -> None:
    """A disk that would be written without any lease is refused, unless that is wanted."""
    guest = place.stage.guest()
    strict = place.driver_with(auto_disk_leases=0)
    lax = place.driver_with(auto_disk_leases=0, require_lease_for_disks=0)
    with pytest.raises(LeaseRequired, match="/a"):
        strict.acquire(guest.owner, [Disk("/a"), Disk("/b", Mode.SHARED)])
    strict.acquire(guest.owner, [Disk("/b", Mode.SHARED), Disk("/c", Mode.READONLY)])
    lax.acquire(guest.owner, [Disk("/a")])
    (place.locks / "key").touch()
    lease = ExplicitLease(place.locks.name, "key", str(place.directory))
    strict.acquire(guest.owner, [lease, Disk("/a")])
    assert place.files() == ["key"]


def test_a_refused_acquire_leaves_no_files(place: Place) -> None:
    """What was locked before the refusal is unlocked again, and its file is gone."""
    one, two = place.stage.guest(), place.stage.guest()
    one.acquire(Disk("/b"))
    with pytest.raises(ResourceBusy, match="/b is in use"):
        two.acquire(Disk("/a"), Disk("/b"), Disk("/c"))
    assert place.files() == [hashlib.sha256(b"/b").hexdigest()]


def test_the_restart_of_the_daemon_in_place_is_no_loss(place: Place) -> None:
    """Locks, the owner's connection and the supervisor's survive a re-exec."""
    guest, other = place.stage.guest(), place.stage.guest()
    guest.acquire(Disk("/a"))
    watch = place.driver.watch()
    assert watch is not None
    with watch:
        place.daemon.send_signal(signal.SIGUSR1)
        await_that(lambda: place.daemon.log.read_text().count("listens on") == 2, "it says so")
        with pytest.raises(ResourceBusy):
            other.acquire(Disk("/a"))
        assert watch.loss(guest.owner) == ""
    guest.end()
    await_that(lambda: place.files() == [], "the new image frees what the owner had")


def test_the_end_of_the_daemon_is_a_loss(place: Place) -> None:
    """A watch tells it, once, and sees the next daemon after `forget`."""
    guest = place.stage.guest()
    guest.acquire(Disk("/a"))
    watch = place.driver.watch()
    assert watch is not None
    with watch:
        assert watch.loss(guest.owner) == ""
        place.daemon.end(signal.SIGKILL)
        await_that(lambda: watch.loss(guest.owner), "the loss is told")
        assert "has ended" in watch.loss(guest.owner)
        with pytest.raises(DaemonUnreachable):
            place.driver.release(guest.owner, [Disk("/a")])
        with our_daemon(place.directory):
            watch.forget()
            assert watch.loss(guest.owner) == ""


def test_a_restricted_owner_can_do_nothing(place: Place) -> None:
    """Its own connection is refused everything."""
    owner = Owner(uuid4(), "guest", 1, os.getpid())
    registration = place.driver.acquire(owner, restrict=True)
    assert isinstance(registration, _Registered)
    with pytest.raises(LockRefused, match="restricted"):
        registration.connection.acquire(bytes(place.locks), b"x")
    registration.close()


def test_a_daemon_that_is_not_there(tmp_path: Path) -> None:
    """Every operation says where it was looked for."""
    path = str(tmp_path / "nowhere")
    driver = open_driver("fcntl", socket=path, file_lockspace_dir=str(tmp_path))
    owner = Owner(uuid4(), "guest", 1, os.getpid())
    for operation in (
        driver.prepare,
        driver.watch,
        lambda: driver.acquire(owner, [Disk("/a")]),
        lambda: driver.release(owner, [Disk("/a")]),
    ):
        with pytest.raises(DaemonUnreachable, match=path):
            operation()
