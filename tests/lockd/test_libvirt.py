"""Unmodified libvirt with our daemon in virtlockd's place; the first story is told by both."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lockd.libvirtd import Libvirt, libvirtd
from tests.lockd.outside import is_free, locked
from tests.lockd.rig import LockDaemon, await_that, our_daemon, virtlockd

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Give a small disk image."""
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LockDaemon]:
    """Give our lock daemon."""
    (tmp_path / "lockd").mkdir()
    with our_daemon(tmp_path / "lockd") as started:
        yield started


@pytest.fixture
def libvirt(tmp_path: Path, daemon: LockDaemon) -> Iterator[Libvirt]:
    """Give a libvirtd that uses our lock daemon."""
    (tmp_path / "libvirt").mkdir()
    with libvirtd(tmp_path / "libvirt", daemon.path) as started:
        yield started


def busy(name: object) -> str:
    """Return libvirt's words for a lock that somebody has."""
    return f"resource busy: Lockspace resource '{name}' is locked"


def story(libvirt: Libvirt, image: Path) -> None:
    """Start, refuse, suspend, resume, share, kill: what libvirt does with its lock manager."""
    demo, rival = libvirt.domain("demo", image), libvirt.domain("rival", image)
    libvirt.done("create", demo)
    assert not is_free(image)
    assert busy(image) in libvirt.refused("create", rival)
    assert libvirt.states() == {"demo": "running"}

    # A paused guest holds nothing; it cannot go on while another one does.
    libvirt.done("suspend", "demo")
    assert is_free(image)
    libvirt.done("create", rival)
    assert busy(image) in libvirt.refused("resume", "demo")
    libvirt.done("destroy", "rival")
    await_that(lambda: is_free(image), "the rival's lock is free")
    libvirt.done("resume", "demo")
    assert not is_free(image)

    # However it ends.
    os.kill(libvirt.pid("demo"), signal.SIGKILL)
    await_that(lambda: is_free(image), "the killed guest's lock is free")
    await_that(lambda: not libvirt.states(), "libvirt has seen the end")

    for name in ("share1", "share2"):
        libvirt.done("create", libvirt.domain(name, image, shareable=True))
    assert not is_free(image)
    assert is_free(image, "shared")
    assert busy(image) in libvirt.refused("create", demo)
    libvirt.done("destroy", "share1")
    libvirt.done("destroy", "share2")
    await_that(lambda: is_free(image), "the shared lock is free")

    with locked(image):
        assert busy(image) in libvirt.refused("create", demo)
    libvirt.done("create", demo, "--paused")
    assert is_free(image)
    libvirt.done("destroy", "demo")


def test_the_story_with_virtlockd(tmp_path: Path, image: Path) -> None:
    """The control: the story as it goes with virtlockd itself."""
    for name in ("lockd", "libvirt"):
        (tmp_path / name).mkdir()
    with (
        virtlockd(tmp_path / "lockd") as real,
        libvirtd(tmp_path / "libvirt", real.path) as libvirt,
    ):
        story(libvirt, image)


def test_the_story_with_ours(libvirt: Libvirt, image: Path) -> None:
    """The same, word by word, with our daemon."""
    story(libvirt, image)


def test_a_restart_under_running_guests(
    libvirt: Libvirt, daemon: LockDaemon, image: Path, tmp_path: Path
) -> None:
    """Guests, their locks and their ways to end are the same after SIGUSR1."""
    second = tmp_path / "b.img"
    second.write_bytes(bytes(1 << 20))
    demo, rival = libvirt.domain("demo", image), libvirt.domain("rival", image)
    libvirt.done("create", demo)
    for _ in range(2):
        times = daemon.log.read_text().count("listens on")
        daemon.send_signal(signal.SIGUSR1)
        await_that(
            lambda times=times: daemon.log.read_text().count("listens on") > times,
            "the new image listens",
        )
    assert not is_free(image)
    assert busy(image) in libvirt.refused("create", rival)
    libvirt.done("attach-disk", "demo", str(second), "vdb", "--targetbus", "virtio", "--live")
    assert not is_free(second)
    libvirt.done("suspend", "demo")
    assert is_free(image)
    assert is_free(second)
    libvirt.done("resume", "demo")
    libvirt.done("destroy", "demo")
    await_that(lambda: is_free(image) and is_free(second), "the locks are free")


def test_the_end_of_the_daemon_is_the_end_of_the_guests(
    libvirt: Libvirt, daemon: LockDaemon, image: Path
) -> None:
    """SIGTERM leaves no guest running without its lock."""
    libvirt.done("create", libvirt.domain("demo", image))
    assert daemon.end() == 0
    await_that(lambda: not libvirt.states(), "the guest is gone")
    assert "socket" in libvirt.refused("create", libvirt.domain("demo", image))


def test_lock_files_for_disks(tmp_path: Path, daemon: LockDaemon, image: Path) -> None:
    """With a lockspace directory a file named after the path's hash exists while a guest runs."""
    (tmp_path / "libvirt").mkdir()
    directory = tmp_path / "files"
    option = f'file_lockspace_dir = "{directory}"'
    with libvirtd(tmp_path / "libvirt", daemon.path, option) as libvirt:
        assert directory.stat().st_mode & 0o7777 == 0o700
        libvirt.done("create", libvirt.domain("demo", image))
        name = hashlib.sha256(bytes(image)).hexdigest()
        assert os.listdir(directory) == [name]
        assert busy(name) in libvirt.refused("create", libvirt.domain("rival", image))
        libvirt.done("destroy", "demo")
        await_that(lambda: not os.listdir(directory), "the lock file is gone")
