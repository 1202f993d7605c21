"""What tests of several areas share: loop devices, and a disk that hangs."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fcntl import ioctl
from pathlib import Path

import pytest
from hypothesis import settings

# A change is judged by what it changes, so the default suite always tries the same examples.
# HYPOTHESIS_PROFILE=fresh (and `make check-long`) tries others.
settings.register_profile("same", derandomize=True)
settings.register_profile("fresh", derandomize=False, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

MakeLoop = Callable[[int, int], str]
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878


def run(*command: str) -> str:
    """Run a program, fail with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


@contextmanager
def loop_device(backing: Path, sector_size: int) -> Iterator[str]:
    """Give the path of a loop device on a file."""
    device = run("losetup", "--find", "--show", "--sector-size", str(sector_size), str(backing))
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        _await_detached(device, backing)


def _await_detached(device: str, backing: Path) -> None:
    """Wait until a loop device has let go of its file.

    Whoever has the device open at that moment, if only to look at it (losetup, blkid), puts the
    detaching off until he closes it.
    """
    held = Path("/sys/block", Path(device).name, "loop/backing_file")
    deadline_s = time.monotonic() + 10
    while True:
        try:
            if held.read_text().strip() != str(backing.resolve()):
                return  # it is somebody else's by now
        except FileNotFoundError:
            return
        assert time.monotonic() < deadline_s, f"{device} still has {backing}"
        time.sleep(0.002)


@pytest.fixture
def make_loop(tmp_path: Path) -> Iterator[MakeLoop]:
    """Give a function (sector_size, size_bytes) -> path of a new loop device full of zeroes."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    if subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode != 0:
        pytest.skip("there are no loop devices here")
    with ExitStack() as stack:

        def make(sector_size: int, size_bytes: int) -> str:
            descriptor, backing = tempfile.mkstemp(dir=tmp_path, prefix="loop")
            os.truncate(descriptor, size_bytes)
            os.close(descriptor)
            return stack.enter_context(loop_device(Path(backing), sector_size))

        yield make


@pytest.fixture
def mounted(make_loop: MakeLoop, tmp_path: Path) -> Iterator[Path]:
    """Give the root of a small ext4 on a loop device with 4096-byte sectors."""
    device = make_loop(4096, 64 << 20)
    directory = tmp_path / "mounted"
    directory.mkdir()
    run("mkfs.ext4", "-q", device)
    run("mount", device, str(directory))
    try:
        yield directory
    finally:
        # Never left behind: it would be in the way of whoever clears this directory.
        done = subprocess.run(["umount", str(directory)], check=False, timeout=60)
        if done.returncode != 0:
            run("umount", "--lazy", str(directory))
            pytest.fail("something was still open on the file system")


@contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Let every write to a file system hang until the end of the block."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        ioctl(fd, _FIFREEZE, 0)
        try:
            yield
        finally:
            ioctl(fd, _FITHAW, 0)
    finally:
        os.close(fd)
