"""Unmodified libvirt with our daemon in virtlockd's place; what guests do is in tests/guests."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.daemon.daemons import Kind
from tests.guests.hosts import LockdHost
from tests.guests.libvirt import disk_xml
from tests.lockd.outside import is_free, locked
from tests.lockd.rig import await_that

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Give a small disk image."""
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.parametrize("kind", ["ours", "real"])
def test_the_lock_is_on_byte_0_for_everybody(tmp_path: Path, image: Path, kind: Kind) -> None:
    """Other programs that lock see a guest's lock, shared or not, and libvirt sees theirs."""
    with LockdHost(kind, tmp_path, 1) as host:
        libvirt = host.libvirt
        demo = libvirt.domain("demo", disk_xml(image))
        with locked(image):
            assert host.refusal(image, by=host) in libvirt.refused("create", demo)
        libvirt.done("create", demo)
        assert not is_free(image, "shared")
        libvirt.done("destroy", "demo")
        await_that(lambda: is_free(image), "the lock is free")
        libvirt.done("create", libvirt.domain("share", disk_xml(image, mode="shareable")))
        assert not is_free(image)
        assert is_free(image, "shared")


def test_the_end_of_the_daemon_is_the_end_of_the_guests(tmp_path: Path, image: Path) -> None:
    """SIGTERM leaves no guest running without its lock."""
    with LockdHost("ours", tmp_path, 1) as host:
        libvirt = host.libvirt
        demo = libvirt.domain("demo", disk_xml(image))
        libvirt.done("create", demo)
        assert host.daemon.end() == 0
        await_that(lambda: not libvirt.states(), "the guest is gone")
        assert "socket" in libvirt.refused("create", demo)


def test_lock_files_for_disks(tmp_path: Path, image: Path) -> None:
    """With a lockspace directory a file named after the path's hash exists while a guest runs."""
    directory = tmp_path / "files"
    with LockdHost("ours", tmp_path, 1, f'file_lockspace_dir = "{directory}"\n') as host:
        libvirt = host.libvirt
        assert directory.stat().st_mode & 0o7777 == 0o700
        libvirt.done("create", libvirt.domain("demo", disk_xml(image)))
        name = hashlib.sha256(bytes(image)).hexdigest()
        assert os.listdir(directory) == [name]
        rival = libvirt.domain("rival", disk_xml(image))
        assert f"Lockspace resource '{name}' is locked" in libvirt.refused("create", rival)
        libvirt.done("destroy", "demo")
        await_that(lambda: not os.listdir(directory), "the lock file is gone")
