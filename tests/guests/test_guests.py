"""What libvirt does with a guest's disks, under either lock manager, over our daemons and the real.

The same steps and the same words with virtlockd and sanlock as with ours. There are two hosts,
each with a lock daemon of its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.compat.peer import wait_until
from tests.daemon.daemons import Kind
from tests.guests.conftest import make_image
from tests.guests.hosts import Host, LeaseHost, LockdHost
from tests.guests.libvirt import LIMIT_S, disk_xml

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


class Pair(NamedTuple):
    """Two hosts under one lock manager."""

    here: Host
    there: Host


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((LockdHost, "ours"), id="lockd-ours"),
        pytest.param((LockdHost, "real"), id="lockd-virtlockd"),
        pytest.param((LeaseHost, "ours"), id="sanlock-ours"),
        pytest.param((LeaseHost, "real"), id="sanlock-real", marks=pytest.mark.peer),
    ],
)
def hosts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Give two hosts that stay for all tests."""
    make: type[Host] = request.param[0]
    kind: Kind = request.param[1]
    directory = tmp_path_factory.mktemp("h")
    with make(kind, directory, 1) as here, make(kind, directory, 2) as there:
        yield Pair(here, there)


@pytest.fixture
def pair(hosts: Pair) -> Iterator[Pair]:
    """Give two hosts without guests."""
    yield hosts
    for host in hosts:
        for name in host.libvirt.states():
            host.libvirt.virsh("destroy", name)
        for name in host.libvirt.done("list", "--all", "--name").split():
            host.libvirt.done("undefine", name, "--managed-save")


def create(host: Host, name: str, devices: str, *words: str) -> None:
    """Start a guest."""
    host.libvirt.done("create", host.libvirt.domain(name, devices), *words)


def refused(host: Host, image: Path, *, by: Host, devices: str | None = None) -> None:
    """Check that another guest is refused because of a disk, and that nothing is left of it."""
    before = host.libvirt.states()
    rival = host.libvirt.domain("rival", devices or disk_xml(image))
    assert host.refusal(image, by=by) in host.libvirt.refused("create", rival)
    assert host.libvirt.states() == before


def test_a_disk_is_for_one_guest(pair: Pair, image: Path) -> None:
    """A second guest is refused, here and on another host, until the first is destroyed."""
    here, there = pair
    create(here, "demo", disk_xml(image))
    assert here.held(image) == "exclusive"
    refused(here, image, by=here)
    refused(there, image, by=here)
    shared = disk_xml(image, mode="shareable")
    refused(there, image, by=here, devices=shared)
    assert here.libvirt.states() == {"demo": "running"}
    here.libvirt.done("destroy", "demo")
    here.await_held(image, "no")
    create(there, "rival", disk_xml(image))
    assert there.held(image) == "exclusive"
    refused(here, image, by=there)


def test_a_killed_guest_frees_its_disk(pair: Pair, image: Path) -> None:
    """However it ends."""
    here, there = pair
    create(here, "demo", disk_xml(image))
    os.kill(here.libvirt.pid("demo"), signal.SIGKILL)
    here.await_held(image, "no")
    wait_until(lambda: not here.libvirt.states(), LIMIT_S, "libvirt has seen the end")
    create(there, "rival", disk_xml(image))


def test_a_shareable_disk(pair: Pair, image: Path) -> None:
    """It is for any number of guests that say so, and for no other."""
    here, there = pair
    shared = disk_xml(image, mode="shareable")
    create(here, "one", shared)
    create(here, "two", shared)
    create(there, "three", shared)
    assert here.held(image) == there.held(image) == "shared"
    demo = here.libvirt.domain("demo", disk_xml(image))
    here.libvirt.refused("create", demo)
    for host, name in ((here, "one"), (here, "two"), (there, "three")):
        host.libvirt.done("destroy", name)
    there.await_held(image, "no")
    here.await_held(image, "no")
    here.libvirt.done("create", demo)
    assert here.held(image) == "exclusive"


def test_a_read_only_disk_is_not_locked(pair: Pair, image: Path, second: Path) -> None:
    """Not for a reader, and not against one."""
    here, there = pair
    readonly = disk_xml(image, mode="readonly")
    create(here, "one", readonly)
    create(there, "two", readonly)
    assert (here.held(image), there.held(image)) == ("no", "no")
    create(here, "demo", disk_xml(image))
    assert here.held(image) == "exclusive"
    create(there, "three", readonly + disk_xml(second, "sda"))
    assert (there.held(image), there.held(second)) == ("no", "exclusive")


def test_hot_plug_and_unplug(pair: Pair, image: Path, second: Path, tmp_path: Path) -> None:
    """The lock comes before the disk, and goes when the guest has let go of it."""
    here, there = pair
    create(here, "demo", disk_xml(image))
    disk = (str(second), "sda", "--targetbus", "scsi", "--live")
    attach = ("attach-disk", "demo", *disk)
    create(there, "rival", disk_xml(second))
    assert here.refusal(second, by=there) in here.libvirt.refused(*attach)
    assert "sda" not in here.libvirt.done("domblklist", "demo")
    assert (here.held(image), here.held(second)) == ("exclusive", "no")
    there.libvirt.done("destroy", "rival")
    there.await_held(second, "no")
    here.libvirt.done(*attach)
    assert here.held(second) == "exclusive"
    create(there, "rival", disk_xml(make_image(tmp_path / "c.img")))
    attach_there = ("attach-disk", "rival", *disk)
    assert there.refusal(second, by=here) in there.libvirt.refused(*attach_there)
    here.libvirt.done("detach-disk", "demo", "sda", "--live")
    here.await_held(second, "no")
    assert here.held(image) == "exclusive"
    there.libvirt.done(*attach_there)
    assert there.held(second) == "exclusive"


def test_a_snapshot_moves_the_lock_to_the_overlay(pair: Pair, image: Path, tmp_path: Path) -> None:
    """The new top of the chain is locked, and what is below it is not any more."""
    here = pair.here
    create(here, "demo", disk_xml(image))
    overlay = tmp_path / "overlay.qcow2"
    here.libvirt.done(
        *("snapshot-create-as", "demo", "--disk-only", "--no-metadata"),
        *("--diskspec", f"vda,file={overlay}"),
    )
    assert (here.held(image), here.held(overlay)) == ("no", "exclusive")


def test_a_paused_guest_holds_nothing(pair: Pair, image: Path, second: Path) -> None:
    """Another one can run meanwhile, and then the paused one cannot go on before that one ends."""
    here, there = pair
    devices = disk_xml(image) + disk_xml(second, "sda")
    create(here, "demo", devices, "--paused")
    assert (here.held(image), here.held(second)) == ("no", "no")
    here.libvirt.done("resume", "demo")
    assert (here.held(image), here.held(second)) == ("exclusive", "exclusive")
    here.libvirt.done("suspend", "demo")
    assert (here.held(image), here.held(second)) == ("no", "no")
    create(there, "rival", disk_xml(image))
    assert here.refusal(image, by=there) in here.libvirt.refused("resume", "demo")
    assert here.libvirt.states() == {"demo": "paused"}
    there.libvirt.done("destroy", "rival")
    there.await_held(image, "no")
    here.libvirt.done("resume", "demo")
    assert (here.held(image), here.held(second)) == ("exclusive", "exclusive")
    refused(there, image, by=here)


def test_a_managed_save_and_a_restore(pair: Pair, image: Path) -> None:
    """A saved guest holds nothing; it is restored under its lock, or not at all."""
    here, there = pair
    here.libvirt.done("define", here.libvirt.domain("demo", disk_xml(image)))
    here.libvirt.done("start", "demo")
    here.libvirt.done("managedsave", "demo")
    assert here.libvirt.done("domstate", "demo") == "shut off"
    here.await_held(image, "no")
    create(there, "rival", disk_xml(image))
    assert here.refusal(image, by=there) in here.libvirt.refused("start", "demo")
    # libvirt has not thrown the saved state away because of that.
    assert "managed save image exists" in here.libvirt.refused("undefine", "demo")
    there.libvirt.done("destroy", "rival")
    there.await_held(image, "no")
    here.libvirt.done("start", "demo")
    assert b"-incoming" in Path(f"/proc/{here.libvirt.pid('demo')}/cmdline").read_bytes()
    assert here.held(image) == "exclusive"
    refused(there, image, by=here)


def test_restarts_under_running_guests(pair: Pair, image: Path, second: Path) -> None:
    """Guests keep their disks while lock daemon and libvirtd are exchanged, and do all after it."""
    here, there = pair
    create(here, "demo", disk_xml(image))
    create(here, "asleep", disk_xml(second), "--paused")
    pid = here.libvirt.pid("demo")
    if here.kind == "ours" or here.manager == "lockd":
        for _ in range(2):
            here.restart_daemon()
    assert here.held(image) == "exclusive"
    here.libvirt.restart()
    assert here.held(image) == "exclusive"
    assert here.libvirt.pid("demo") == pid
    refused(here, image, by=here)
    refused(there, image, by=here)
    here.libvirt.done("resume", "asleep")
    assert here.held(second) == "exclusive"
    here.libvirt.done("suspend", "demo")
    assert here.held(image) == "no"
    here.libvirt.done("resume", "demo")
    assert here.held(image) == "exclusive"
    os.kill(pid, signal.SIGKILL)
    here.await_held(image, "no")
    assert here.held(second) == "exclusive"
    create(there, "rival", disk_xml(image))
