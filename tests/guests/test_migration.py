"""Guests that move between two hosts: two libvirtds, each over a lock daemon of its own.

The lock goes with the guest: the source holds it while its CPUs run, the destination as soon as
its own do, nobody in between, and whatever fails leaves one guest at most running, under the lock.
QEMUs and libvirtds talk through UNIX sockets, and both hosts see the same files, hence `--unsafe`
(libvirt knows nothing of a shared file system there).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.compat.peer import wait_until
from tests.daemon.daemons import Kind
from tests.guests.hosts import Host, LeaseHost, LockdHost
from tests.guests.libvirt import LIMIT_S, disk_xml

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

MANNERS: Final = {
    "live": ["--live"],
    "p2p": ["--live", "--p2p"],
    "tunnelled": ["--live", "--p2p", "--tunnelled"],
    "offline": [],
}


class Road:
    """Two hosts, and the ways between them."""

    def __init__(self, one: Host, two: Host, directory: Path) -> None:
        self.one = one
        self.two = two
        self._directory = directory
        self._count = 0

    def words(self, manner: str, to: Host, *more: str) -> list[str]:
        """Return the words of virsh that move guest `demo` to a host."""
        words = ["migrate", "--unsafe", *MANNERS[manner], *more, "demo", to.libvirt.uri]
        if manner != "tunnelled":
            self._count += 1
            words += ["--migrateuri", f"unix://{self._directory}/q{self._count}"]
        return words

    def clear(self) -> None:
        """End all guests."""
        for host in (self.one, self.two):
            for name in host.libvirt.states():
                host.libvirt.virsh("destroy", name)


@contextmanager
def migrating(road: Road, image: Path) -> Iterator[subprocess.Popen[str]]:
    """Let a guest be on its way from the first host to the second, which takes some seconds."""
    here, there = road.one, road.two
    ballast = image.with_name("ballast")
    ballast.write_bytes(os.urandom(16 << 20))
    demo = here.libvirt.domain("demo", disk_xml(image), ballast=ballast)
    here.libvirt.done("create", demo)
    with here.libvirt.virsh_started(*road.words("live", there, "--bandwidth", "1")) as moving:
        wait_until(
            lambda: "Data processed" in here.libvirt.done("domjobinfo", "demo"),
            LIMIT_S,
            "the guest's memory is on its way",
        )
        assert there.libvirt.states() == {"demo": "paused"}
        assert (here.held(image), there.held(image)) == ("exclusive", "no")
        yield moving


def end_of(moving: subprocess.Popen[str]) -> str:
    """Wait for the end of a migration that fails; return why."""
    _, said = moving.communicate(timeout=LIMIT_S)
    assert moving.returncode != 0
    return said


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((LockdHost, "ours", "ours"), id="lockd-ours"),
        pytest.param((LockdHost, "ours", "real"), id="lockd-ours-and-virtlockd"),
        pytest.param((LockdHost, "real", "real"), id="lockd-virtlockd"),
        pytest.param((LeaseHost, "ours", "ours"), id="sanlock-ours"),
        pytest.param(
            (LeaseHost, "ours", "real"), id="sanlock-ours-and-real", marks=pytest.mark.peer
        ),
        pytest.param((LeaseHost, "real", "real"), id="sanlock-real", marks=pytest.mark.peer),
    ],
)
def hosts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Road]:
    """Give two hosts that stay for all tests."""
    make: type[Host] = request.param[0]
    kinds: tuple[Kind, Kind] = request.param[1:]
    directory = tmp_path_factory.mktemp("h")
    with make(kinds[0], directory, 1) as one, make(kinds[1], directory, 2) as two:
        yield Road(one, two, directory)


@pytest.fixture
def road(hosts: Road) -> Iterator[Road]:
    """Give two hosts without guests."""
    yield hosts
    hosts.clear()


def test_the_lock_goes_with_the_guest(road: Road, image: Path, second: Path) -> None:
    """There and back, in every manner that libvirt has; nobody else may run it on either host."""
    here, there = road.one, road.two
    disks = disk_xml(image) + disk_xml(second, "sda")
    here.libvirt.done("create", here.libvirt.domain("demo", disks))
    for manner in MANNERS:
        here.libvirt.done(*road.words(manner, there))
        assert (here.libvirt.states(), there.libvirt.states()) == ({}, {"demo": "running"})
        assert [here.held(disk) for disk in (image, second)] == ["no", "no"]
        assert [there.held(disk) for disk in (image, second)] == ["exclusive", "exclusive"]
        for host in (here, there):
            rival = host.libvirt.domain("rival", disk_xml(image))
            assert host.refusal(image, by=there) in host.libvirt.refused("create", rival)
        here, there = there, here
    here.libvirt.done("destroy", "demo")
    here.await_held(image, "no")


def test_a_paused_guest_moves_without_a_lock(road: Road, image: Path) -> None:
    """It holds nothing before nor after; the first resume acquires."""
    here, there = road.one, road.two
    here.libvirt.done("create", here.libvirt.domain("demo", disk_xml(image)))
    here.libvirt.done("suspend", "demo")
    here.libvirt.done(*road.words("live", there))
    assert (here.libvirt.states(), there.libvirt.states()) == ({}, {"demo": "paused"})
    assert (here.held(image), there.held(image)) == ("no", "no")
    there.libvirt.done("resume", "demo")
    assert there.held(image) == "exclusive"


def test_an_aborted_migration_leaves_the_lock_where_it_was(road: Road, image: Path) -> None:
    """The guest runs on at the source, and nothing is left at the destination."""
    here, there = road.one, road.two
    with migrating(road, image) as moving:
        here.libvirt.done("domjobabort", "demo")
        # "canceled by client", or that the other end of the socket is gone.
        assert "migration out" in end_of(moving)
    assert (here.libvirt.states(), there.libvirt.states()) == ({"demo": "running"}, {})
    assert (here.held(image), there.held(image)) == ("exclusive", "no")
    here.libvirt.done(*road.words("live", there))
    assert (here.held(image), there.held(image)) == ("no", "exclusive")


def test_somebody_in_between_keeps_both_from_running(road: Road, image: Path) -> None:
    """Who takes the lock when it is free for a moment has it: no side of the migration goes on."""
    here, there = road.one, road.two
    with migrating(road, image) as moving:
        # The destination learns of the end of the source's part only when it goes on.
        with there.libvirt.stopped():
            here.libvirt.done("migrate-setspeed", "demo", "1000")
            here.await_held(image, "no")
            here.libvirt.done("create", here.libvirt.domain("rival", disk_xml(image)))
            assert here.held(image) == "exclusive"
        assert there.refusal(image, by=here) in end_of(moving)
    assert there.libvirt.states() == {}
    assert here.libvirt.states() == {"demo": "paused", "rival": "running"}
    assert here.refusal(image, by=here) in here.libvirt.refused("resume", "demo")
    here.libvirt.done("destroy", "rival")
    here.await_held(image, "no")
    here.libvirt.done("resume", "demo")
    assert here.held(image) == "exclusive"
