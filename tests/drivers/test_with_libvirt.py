"""Hosts with libvirt's own plugins and hosts with our drivers exclude each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from paxoslease.drivers.base import Disk, Mode
from paxoslease.drivers.conformance import Stage
from paxoslease.drivers.domain import read_domain
from paxoslease.drivers.errors import ResourceBusy
from tests.compat.peer import SanlockHost
from tests.daemon.libvirt import Libvirt, disk_xml
from tests.drivers.rigs import (
    FcntlRig,
    LeaseDaemonMaker,
    OurLeaseDaemon,
    PaxosRig,
    paxos_options,
    sanlock,
)
from tests.lockd.libvirtd import libvirtd
from tests.lockd.rig import await_that, our_daemon

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_a_guest_of_libvirt_and_one_of_ours(tmp_path: Path, indirect: bool) -> None:
    """The same definition, on two hosts with a lock daemon each: only one can run it."""
    for name in ("one", "two", "libvirt"):
        (tmp_path / name).mkdir()
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1 << 20))
    with our_daemon(tmp_path / "one") as theirs, our_daemon(tmp_path / "two") as ours:
        options = {"socket": str(ours.path)}
        keys = []
        if indirect:
            options["file_lockspace_dir"] = str(tmp_path / "locks")
            keys.append(f'file_lockspace_dir = "{tmp_path / "locks"}"')
        stage = Stage(FcntlRig(tmp_path, [options]))
        stage.driver().prepare()
        try:
            with libvirtd(tmp_path / "libvirt", theirs.path, *keys) as libvirt:
                definition = libvirt.domain("demo", image)
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
                await_that(
                    lambda: libvirt.virsh("resume", "demo").returncode == 0, "the lock is free"
                )
                libvirt.done("destroy", "demo")
                shared = libvirt.domain("share", image, shareable=True)
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
    with (
        SanlockHost(tmp_path, "theirs") as theirs,
        make(tmp_path, "ours") as ours,
        Libvirt(tmp_path / "libvirt", theirs.env) as libvirt,
    ):
        options = paxos_options(ours.run_dir, libvirt.leases, 2)
        stage = Stage(PaxosRig(tmp_path, [options]))
        stage.driver().prepare()
        try:
            libvirt.define("demo", disk_xml(image))
            guest = stage.guest()
            guest.acquire(disk)
            assert libvirt.virsh("start", "demo").status != 0
            guest.release(disk)
            assert libvirt.virsh("start", "demo").status == 0
            with pytest.raises(ResourceBusy):
                guest.acquire(disk)
            assert libvirt.virsh("suspend", "demo").status == 0
            guest.acquire(disk)
            assert libvirt.virsh("resume", "demo").status != 0
            guest.end()
            await_that(lambda: libvirt.virsh("resume", "demo").status == 0, "the lease is free")
            with pytest.raises(ResourceBusy):
                stage.guest().acquire(disk)
        finally:
            stage.close()
