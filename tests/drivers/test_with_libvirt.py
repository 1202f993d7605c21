"""Hosts with libvirt's own plugins and hosts with our drivers exclude each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from paxoslease.drivers.base import Disk, Mode
from paxoslease.drivers.conformance import Stage
from paxoslease.drivers.domain import read_domain
from paxoslease.drivers.errors import ResourceBusy
from tests.drivers.rigs import (
    FcntlRig,
    LeaseDaemonMaker,
    OurLeaseDaemon,
    PaxosRig,
    paxos_options,
    sanlock,
)
from tests.guests.hosts import LeaseHost, LockdHost
from tests.guests.libvirt import disk_xml
from tests.lockd.rig import await_that, our_daemon

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_a_guest_of_libvirt_and_one_of_ours(tmp_path: Path, indirect: bool) -> None:
    """The same definition, on two hosts with a lock daemon each: only one can run it."""
    (tmp_path / "ours").mkdir()
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1 << 20))
    key = f'file_lockspace_dir = "{tmp_path / "locks"}"\n' if indirect else ""
    with (
        our_daemon(tmp_path / "ours") as ours,
        LockdHost("ours", tmp_path, 1, key) as host,
    ):
        options = {"socket": str(ours.path)}
        if indirect:
            options["file_lockspace_dir"] = str(tmp_path / "locks")
        stage = Stage(FcntlRig(tmp_path, [options]))
        stage.driver().prepare()
        libvirt = host.libvirt
        try:
            definition = libvirt.domain("demo", disk_xml(image))
            disks = read_domain(definition).resources
            assert disks == (Disk(str(image)),)
            guest = stage.guest()
            libvirt.done("create", definition)
            with pytest.raises(ResourceBusy):
                guest.acquire(*disks)
            libvirt.done("suspend", "demo")
            guest.acquire(*disks)
            assert "resource busy" in libvirt.refused("resume", "demo")
            guest.end()
            await_that(lambda: libvirt.virsh("resume", "demo").returncode == 0, "the lock is free")
            libvirt.done("destroy", "demo")
            shared = libvirt.domain("share", disk_xml(image, mode="shareable"))
            assert read_domain(shared).resources == (Disk(str(image), Mode.SHARED),)
            libvirt.done("create", shared)
            reader = stage.guest()
            reader.acquire(*read_domain(shared).resources)
            with pytest.raises(ResourceBusy):
                stage.guest().acquire(*disks)
        finally:
            stage.close()


@pytest.mark.peer
@pytest.mark.parametrize("make", [OurLeaseDaemon, sanlock], ids=["ours", "sanlock"])
def test_a_guest_of_libvirt_with_leases_and_one_of_ours(
    tmp_path: Path, make: LeaseDaemonMaker
) -> None:
    """libvirt's sanlock plugin on one host, the paxos driver on another: only one can run it."""
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1 << 20))
    disk = Disk(str(image))
    with LeaseHost("real", tmp_path, 1) as host, make(tmp_path, "ours") as ours:
        options = paxos_options(ours.run_dir, host.leases, 2)
        stage = Stage(PaxosRig(tmp_path, [options]))
        stage.driver().prepare()
        libvirt = host.libvirt
        try:
            libvirt.done("define", libvirt.domain("demo", disk_xml(image)))
            guest = stage.guest()
            guest.acquire(disk)
            assert "held by another host" in libvirt.refused("start", "demo")
            guest.release(disk)
            libvirt.done("start", "demo")
            with pytest.raises(ResourceBusy):
                guest.acquire(disk)
            libvirt.done("suspend", "demo")
            guest.acquire(disk)
            assert "held by another host" in libvirt.refused("resume", "demo")
            guest.end()
            await_that(lambda: libvirt.virsh("resume", "demo").returncode == 0, "the lease is free")
            with pytest.raises(ResourceBusy):
                stage.guest().acquire(disk)
        finally:
            stage.close()
