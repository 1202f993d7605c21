"""The paxos driver beside the suite: files, names, owners, versions."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from paxoslease.client import Connection, DaemonSilent
from paxoslease.drivers import killpath
from paxoslease.drivers.base import Disk, ExplicitLease, FailureAction, Mode, Owner
from paxoslease.drivers.conformance import Stage
from paxoslease.drivers.errors import (
    DaemonUnreachable,
    LeaseRequired,
    OwnerUnknown,
    ResourceBusy,
    ResourceUnusable,
    StateInvalid,
)
from paxoslease.drivers.lease_files import Access, access_of, ensure_lease
from paxoslease.drivers.paxos import _Registered
from paxoslease.drivers.registry import open_driver
from paxoslease.errors import ConfigError
from paxoslease.wire import sanlock as wire
from tests.drivers.rigs import OurLeaseDaemon, PaxosRig, paxos_rig, sanlock

MIB = 1 << 20
SPACE = "__LIBVIRT__DISKS__"


class Place:
    """Two hosts with automatic leases, and guests on them."""

    def __init__(self, rig: PaxosRig) -> None:
        self.rig = rig
        self.leases = Path(rig.hosts[0]["disk_lease_dir"])
        self.stage = Stage(rig)

    def disk(self) -> Disk:
        """Return a new disk."""
        return Disk(self.rig.disk())

    def daemon(self, host: int) -> Connection:
        """Return a connection to a host's daemon."""
        return Connection(self.rig.hosts[host]["run_directory"], timeout_s=30)

    def lease(self, name: str) -> ExplicitLease:
        """Make an explicit lease behind the lockspace's own file."""
        path = self.leases.parent / f"{name}.lease"
        path.write_bytes(bytes(MIB))
        lease = wire.Resource(SPACE.encode(), name.encode(), (wire.Disk(os.fsencode(path)),))
        with self.daemon(0) as daemon:
            daemon.write_resource(lease)
        return ExplicitLease(SPACE, name, str(path), 0)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(OurLeaseDaemon, id="ours"),
        pytest.param(sanlock, id="sanlock", marks=pytest.mark.peer),
    ],
)
def rig(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PaxosRig]:
    """Give two hosts with a lease daemon each."""
    with paxos_rig(tmp_path_factory.mktemp("paxos"), request.param) as rig:
        yield rig


@pytest.fixture
def place(rig: PaxosRig) -> Iterator[Place]:
    """Give a stage on them."""
    place = Place(rig)
    try:
        yield place
    finally:
        place.stage.close()


def test_files_are_made_as_libvirt_makes_them(place: Place) -> None:
    """The lockspace's file, a file per disk by the MD5 of its path, 1 MiB each, for their owner."""
    guest, disk = place.stage.guest(), place.disk()
    guest.acquire(disk)
    name = hashlib.md5(disk.path.encode()).hexdigest()
    for file in (place.leases / SPACE, place.leases / name):
        found = file.stat()
        assert found.st_size == MIB
        assert stat.S_IMODE(found.st_mode) == 0o600
    assert not list(place.leases.glob(".*"))
    assert guest.driver.inquire(guest.owner) == f"{SPACE}:{name}:{place.leases / name}:0:1"
    file = wire.Disk(os.fsencode(place.leases / name))
    with place.daemon(1) as daemon:
        _, owners = daemon.read_resource_owners(
            wire.Resource(SPACE.encode(), name.encode(), (file,))
        )
    assert [host.host_id for host in owners] == [1]


def test_of_two_hosts_that_make_a_file_at_once_one_wins(place: Place) -> None:
    """A file is complete when it has its name, and is never made twice."""
    name = hashlib.md5(b"contended").hexdigest()
    made: list[int] = []

    def make(run_directory: str) -> None:
        with Connection(run_directory, timeout_s=30) as daemon:
            path = ensure_lease(daemon, str(place.leases), Access(), name)
            made.append(os.stat(path).st_ino)

    threads = [
        threading.Thread(target=make, args=(place.rig.hosts[i % 2]["run_directory"],))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 6
    assert len(set(made)) == 1
    assert not list(place.leases.glob(".*"))


def test_explicit_leases(place: Place) -> None:
    """A lease that the administrator has made is taken as it is, beside those of disks."""
    lease, disk = place.lease("explicit"), place.disk()
    one, two = place.stage.guest(0), place.stage.guest(1)
    one.acquire(disk, lease)
    state = one.driver.inquire(one.owner)
    assert state is not None
    assert state.startswith(f"{SPACE}:explicit:{lease.path}:0:1 ")
    with pytest.raises(ResourceBusy, match="lease explicit of lockspace") as refusal:
        two.acquire(lease)
    assert refusal.value.code in (-243, -247)  # not seen to renew yet, right after its join
    assert "held by host 1" in str(refusal.value)
    shared = lease._replace(mode=Mode.SHARED)
    one.release(lease)
    two.acquire(shared)
    one.acquire(shared)
    assert ":SH" in (two.driver.inquire(two.owner) or "")


def test_an_owner_that_is_not_registered_is_an_error(place: Place) -> None:
    """libvirt would report success and run the guest without a lease."""
    driver = place.stage.driver()
    stranger = Owner(uuid4(), "stranger", 1, os.getppid())
    with pytest.raises(OwnerUnknown):
        driver.acquire(stranger, [place.disk()])
    assert driver.release(stranger, [place.disk()]) is None
    assert driver.inquire(stranger) is None


@pytest.mark.parametrize(
    ("lease", "code"),
    [
        (ExplicitLease("missing", "r", "/no/such/file"), -28),
        (ExplicitLease(SPACE, "r", "/no/such/file"), -2),
        (ExplicitLease(SPACE, "r", "/dev/zero"), -22),
    ],
)
def test_what_cannot_be_locked_says_why(place: Place, lease: ExplicitLease, code: int) -> None:
    """The daemon's number becomes an error with the lease's name."""
    guest = place.stage.guest()
    with pytest.raises(ResourceUnusable, match="lease r of lockspace") as refusal:
        guest.acquire(lease)
    assert refusal.value.code == code


def test_the_one_in_the_way_is_named(place: Place) -> None:
    """Of many resources, as far as the daemon or the disk tells; and none of them is taken."""
    disks = [place.disk() for _ in range(20)]
    one, two = place.stage.guest(0), place.stage.guest(1)
    one.acquire(disks[13])
    with pytest.raises(ResourceBusy) as refusal:
        two.acquire(*disks)
    assert refusal.value.resource == f"{disks[13]} (held by host 1)"
    assert two.driver.inquire(two.owner) is None


def test_a_restricted_owner_can_do_nothing(place: Place) -> None:
    """The daemon does not even answer on that connection; others still speak for the owner."""
    disk = place.disk()
    driver = open_driver("paxos", **{**place.rig.hosts[0], "daemon_timeout": 1})
    owner = Owner(uuid4(), "here", 1, os.getpid())
    registration = driver.acquire(owner, restrict=True)
    assert isinstance(registration, _Registered)
    with pytest.raises(DaemonSilent):
        registration.connection.inquire()
    registration.close()
    registration = driver.acquire(owner, [disk], restrict=True)
    assert registration is not None
    assert driver.release(owner, [disk]) is not None
    registration.close()


@pytest.mark.parametrize("what", ["lockspace", "key", "path"])
def test_names_that_the_protocol_would_cut_are_refused(place: Place, what: str) -> None:
    """A cut name would be another lease."""
    lease = ExplicitLease("a", "b", "/c")._replace(**{what: "/" * 1025})
    with pytest.raises(ConfigError, match="longer than"):
        place.stage.driver().acquire(Owner(uuid4(), "x", 1, os.getppid()), [lease])


def test_states_are_read_before_anything_is_taken(place: Place) -> None:
    """A text that is no state acquires nothing; one of other resources demands nothing."""
    guest, disk = place.stage.guest(), place.disk()
    with pytest.raises(StateInvalid):
        guest.acquire(disk, state="nonsense")
    assert guest.driver.inquire(guest.owner) is None
    guest.acquire(disk, state="LS:other:/p:0:7")


def test_a_watch_believes_only_whom_it_may(place: Place) -> None:
    """A message of an ordinary user, or about another owner, is no loss."""
    guest = place.stage.guest()
    with place.stage.driver().watch() as watch:  # type: ignore[union-attr]
        killpath.tell(watch.address, guest.owner.pid + 1, FailureAction.POWEROFF)
        if os.geteuid() == 0:
            tell = "from paxoslease.drivers.killpath import *; import os; os.setuid(65534); "
            tell += f"tell({watch.address!r}, {guest.owner.pid}, FailureAction.POWEROFF)"
            subprocess.run([sys.executable, "-c", tell], check=True, timeout=60)
        assert watch.loss(guest.owner) == ""
        killpath.tell(watch.address, guest.owner.pid, FailureAction.POWEROFF)
        assert "has lost the lockspace" in watch.loss(guest.owner)
        watch.forget()
        assert watch.loss(guest.owner) == ""


def test_an_orphaned_registration_frees_its_leases(place: Place) -> None:
    """A registration that is closed by the owner itself is an end like any other."""
    disk = place.disk()
    driver = place.stage.driver()
    owner = Owner(uuid4(), "here", 1, os.getpid())
    registration = driver.acquire(owner, [disk], action=FailureAction.POWEROFF)
    assert registration is not None
    assert registration.fileno() >= 0
    assert not os.get_inheritable(registration.fileno())
    registration.keep_across_exec()
    assert os.get_inheritable(registration.fileno())
    registration.close()
    assert driver.inquire(owner) is None


def test_without_automatic_leases_a_guest_needs_one(place: Place) -> None:
    """A disk that would be written without any lease is refused."""
    guest = place.stage.guest()
    options = {"run_directory": place.rig.hosts[0]["run_directory"]}
    driver = open_driver("paxos", **options)
    driver.prepare()
    with pytest.raises(LeaseRequired):
        driver.acquire(guest.owner, [Disk("/a")])
    driver.acquire(guest.owner, [place.lease("manual"), Disk("/a")])
    open_driver("paxos", require_lease_for_disks=0, **options).acquire(guest.owner, [Disk("/a")])


def test_who_may_use_the_files() -> None:
    """Users and groups are given by name or number; a group may write."""
    assert access_of(None, None) == (-1, -1)
    assert access_of("root", "+7") == (0, 7)
    assert (Access(0, -1).mode, Access(-1, 7).mode) == (0o600, 0o660)
    with pytest.raises(ConfigError):
        access_of("no-such-user", None)


def test_a_daemon_that_is_not_there(tmp_path: Path) -> None:
    """Every operation says where it was looked for."""
    options = {"auto_disk_leases": 1, "host_id": 1, "disk_lease_dir": str(tmp_path)}
    driver = open_driver("paxos", run_directory=str(tmp_path), **options)
    owner = Owner(uuid4(), "guest", 1, os.getpid())
    for operation in (
        driver.prepare,
        driver.watch,
        lambda: driver.acquire(owner, [Disk("/a")]),
        lambda: driver.release(owner, [Disk("/a")]),
        lambda: driver.inquire(owner),
    ):
        with pytest.raises(DaemonUnreachable, match=str(tmp_path)):
            operation()
    assert list(tmp_path.iterdir()) == []
