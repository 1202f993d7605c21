"""The table of locks, on real files and against other processes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoslease.lockd import files, space
from paxoslease.lockd.failures import LockRefused
from paxoslease.lockd.files import Identity
from paxoslease.lockd.space import LockTable
from paxoslease.wire.virtlock import AcquireFlag
from tests.lockd.operations import done
from tests.lockd.outside import is_free, locked

NONE = AcquireFlag(0)
SHARED = AcquireFlag.SHARED
AUTOCREATE = AcquireFlag.AUTOCREATE


@pytest.fixture
def table() -> Iterator[LockTable]:
    """Give an empty table; whatever is held at the end is released."""
    made = LockTable()
    yield made
    for owner in {owner for _, resource in made.held() for owner in resource.owners}:
        leave(made, owner)


def leave(table: LockTable, owner: int) -> int:
    """Let an owner leave; return how many resources it had."""
    drops = table.release_owner(owner)
    for drop in drops:
        done(drop)
    return len(drops)


def refused(reason: str, *call: object) -> LockRefused:
    """Check that a call is refused with these words."""
    function, *arguments = call
    with pytest.raises(LockRefused, match=reason) as caught:
        done(function(*arguments))  # type: ignore[operator]
    return caught.value


def test_an_exclusive_lock_keeps_others_out(table: LockTable, image: Path) -> None:
    """Another owner, the same owner and another process are refused until it is released."""
    name = bytes(image)
    done(table.acquire(b"", name, 10, NONE))
    assert refused("is locked", table.acquire, b"", name, 11, NONE).is_busy
    assert refused("is locked", table.acquire, b"", name, 10, SHARED).is_busy
    assert not is_free(image, "shared")
    assert is_free(image, byte=1), "only byte 0 is locked"
    refused("owner 11 does not hold", table.release, b"", name, 11)
    done(table.release(b"", name, 10))
    assert is_free(image)
    assert refused("is not locked", table.release, b"", name, 10).is_busy
    assert image.exists()


def test_shared_locks_are_counted(table: LockTable, image: Path) -> None:
    """Readers share, one of them twice; a writer must wait for the last one."""
    name = bytes(image)
    for owner in (10, 11, 10):
        done(table.acquire(b"", name, owner, SHARED))
    refused("is locked", table.acquire, b"", name, 12, NONE)
    assert is_free(image, "shared")
    for owner in (10, 10, 11):
        assert not is_free(image)
        done(table.release(b"", name, owner))
    assert is_free(image)


def test_locks_of_other_processes(table: LockTable, image: Path) -> None:
    """A foreign write lock refuses everybody, a foreign read lock only writers."""
    name = bytes(image)
    with locked(image):
        refused("is locked", table.acquire, b"", name, 10, SHARED)
        refused("is locked", table.acquire, b"", name, 10, AUTOCREATE)
    with locked(image, "shared"):
        refused("is locked", table.acquire, b"", name, 10, NONE)
        done(table.acquire(b"", name, 10, SHARED))
    assert not is_free(image)


def test_made_files_exist_while_they_are_held(table: LockTable, tmp_path: Path) -> None:
    """AUTOCREATE makes a private file and removes it, unless a foreign reader still needs it."""
    directory = bytes(tmp_path)
    done(table.create_lockspace(directory))
    made = tmp_path / "key"
    for flags in (AUTOCREATE, AUTOCREATE | SHARED):
        done(table.acquire(directory, b"key", 10, flags))
        assert made.stat().st_mode & 0o7777 == 0o600
        done(table.release(directory, b"key", 10))
        assert not made.exists()
    done(table.acquire(directory, b"key", 10, AUTOCREATE | SHARED))
    with locked(made, "shared"):
        done(table.release(directory, b"key", 10))
    assert made.exists()


def test_a_file_replaced_before_the_lock_is_not_taken_for_it(
    table: LockTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on a file that was removed meanwhile is none: the new file is locked instead."""
    directory, made = bytes(tmp_path), tmp_path / "key"
    done(table.create_lockspace(directory))
    real, calls = files.fcntl.lockf, []

    def lockf(*arguments: int) -> None:
        if not calls:
            made.unlink()
            (tmp_path / "keep the inode number").touch()
            made.touch()
        calls.append(arguments)
        real(*arguments)

    monkeypatch.setattr(files.fcntl, "lockf", lockf)
    done(table.acquire(directory, b"key", 10, AUTOCREATE))
    monkeypatch.undo()
    assert len(calls) == 2
    assert not is_free(made)


@pytest.mark.parametrize("flags", [AUTOCREATE, AUTOCREATE | SHARED])
def test_a_lock_file_replaced_under_the_lock_is_another_ones(
    table: LockTable, tmp_path: Path, flags: AcquireFlag
) -> None:
    """What was put in the place of a lock file stays at the release: virtlockd removes it.

    Another host may hold it, which would then exclude nobody any more.
    """
    directory, made = bytes(tmp_path), tmp_path / "key"
    done(table.create_lockspace(directory))
    done(table.acquire(directory, b"key", 10, flags))
    made.rename(tmp_path / "aside")
    made.touch()
    with locked(made):
        done(table.release(directory, b"key", 10))
        assert made.exists()
        refused("is locked", table.acquire, directory, b"key", 10, flags)
    assert is_free(tmp_path / "aside")


@pytest.mark.parametrize("kind", ["hard link", "symbolic link", "detour"])
def test_a_second_name_is_busy_and_takes_nothing(
    table: LockTable, image: Path, tmp_path: Path, kind: str
) -> None:
    """Asking for a held file by another name leaves its lock in the kernel alone."""
    other = tmp_path / "other"
    if kind == "hard link":
        other.hardlink_to(image)
    elif kind == "symbolic link":
        other.symlink_to(image)
    second = bytes(other) if kind != "detour" else bytes(tmp_path) + b"//disk.img"
    done(table.acquire(b"", bytes(image), 10, NONE))
    refused("is locked", table.acquire, b"", second, 11, NONE)
    refused("is locked", table.acquire, b"", second, 11, AUTOCREATE)
    refused("is locked", table.create_resource, b"", second)
    refused("is locked", table.delete_resource, b"", second)
    refused("is locked", table.create_resource, b"", bytes(image))
    assert not is_free(image)
    done(table.release(b"", bytes(image), 10))
    done(table.acquire(b"", second, 11, NONE))


def test_a_name_that_moves_onto_a_held_file_takes_nothing(
    table: LockTable, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor that is found out too late stays open as long as the lock must live."""
    other = tmp_path / "other"
    other.symlink_to(image)
    done(table.acquire(b"", bytes(image), 10, NONE))
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(files, "identity_at", lambda _: None)
    refused("is locked", table.acquire, b"", bytes(other), 11, NONE)
    refused("is locked", table.create_resource, b"", bytes(other))
    assert not is_free(image)
    done(table.release(b"", bytes(image), 10))
    assert is_free(image)
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_files_of_the_daemon_are_not_for_clients(table: LockTable, image: Path) -> None:
    """A reserved file is busy, and its lock stays."""
    descriptor = os.open(image, os.O_RDWR)
    try:
        files.fcntl.lockf(descriptor, files.fcntl.LOCK_EX, 1)
        table.reserve(descriptor)
        refused("is locked", table.acquire, b"", bytes(image), 10, NONE)
        refused("is locked", table.delete_resource, b"", bytes(image))
        assert not is_free(image)
    finally:
        os.close(descriptor)


def test_everything_of_an_owner(table: LockTable, image: Path, tmp_path: Path) -> None:
    """All locks of one owner go, in every lockspace and however often taken; others stay."""
    directory = bytes(tmp_path / "space")
    done(table.create_lockspace(directory))
    for owner in (10, 10, 11):
        done(table.acquire(b"", bytes(image), owner, SHARED))
    done(table.acquire(directory, b"a", 10, AUTOCREATE))
    done(table.acquire(directory, b"b", 11, AUTOCREATE))
    assert leave(table, 10) == 2
    assert [(r.name, r.owners) for _, r in table.held()] == [(bytes(image), [11]), (b"b", [11])]
    assert not (tmp_path / "space/a").exists()
    assert leave(table, 10) == 0


def test_lockspaces(table: LockTable, tmp_path: Path) -> None:
    """They are made with all parents, private; what cannot be one is refused."""
    deep = tmp_path / "a/b/c"
    done(table.create_lockspace(bytes(deep)))
    assert {p.stat().st_mode & 0o7777 for p in (deep, deep.parent)} == {0o700}
    done(table.create_lockspace(bytes(deep)))
    done(table.create_lockspace(b""))
    refused("already exists", table.new_lockspace, bytes(deep))
    refused("default lockspace already", table.new_lockspace, b"")
    refused("does not exist", table.acquire, bytes(deep) + b"/", b"x", 10, AUTOCREATE)
    done(table.new_lockspace(bytes(deep) + b"/"))
    (tmp_path / "file").touch()
    refused("is not a directory", table.new_lockspace, bytes(tmp_path / "file"))
    error = refused("Unable to create", table.create_lockspace, bytes(tmp_path / "file/x"))
    assert error.code == -errno.ENOTDIR
    error = refused("too long", table.create_lockspace, b"d/" * 30000)
    assert error.code == -errno.ENAMETOOLONG
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    error = refused("Unable to create", table.create_lockspace, bytes(tmp_path / "dangling"))
    assert error.code == -errno.ENOTDIR


def test_resource_files(table: LockTable, tmp_path: Path) -> None:
    """Create and delete do not mind what is there already, and never wait."""
    directory = bytes(tmp_path)
    done(table.create_lockspace(directory))
    for _ in range(2):
        done(table.create_resource(directory, b"r"))
    assert (tmp_path / "r").stat().st_mode & 0o7777 == 0o600
    for _ in range(2):
        done(table.delete_resource(directory, b"r"))
    os.mkfifo(tmp_path / "pipe")
    assert refused("pipe", table.create_resource, directory, b"pipe").code == -errno.ENXIO
    error = refused("cannot create file", table.create_resource, directory, b"no/r")
    assert error.code == -errno.ENOENT
    assert refused("s a directory", table.delete_resource, b"", directory).code == -errno.EISDIR


def test_devices_are_not_removed(table: LockTable, tmp_path: Path) -> None:
    """Whatever a client asks for, a device stays: virtlockd removes it."""
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("to make a device needs root")
    done(table.acquire(b"", bytes(device), 10, AUTOCREATE))
    done(table.release(b"", bytes(device), 10))
    assert refused("not permitted", table.delete_resource, b"", bytes(device)).code == -errno.EPERM
    assert device.is_char_device()


def test_nothing_is_left_open_by_a_refusal(table: LockTable, image: Path) -> None:
    """Whatever is refused, no descriptor stays."""
    before = os.listdir("/proc/self/fd")
    with locked(image):
        refused("is locked", table.acquire, b"", bytes(image), 10, NONE)
    refused("Unable to open", table.acquire, b"", bytes(image.parent), 10, NONE)
    refused("Unable to open/create", table.acquire, b"", b"/no/where", 10, AUTOCREATE)
    assert os.listdir("/proc/self/fd") == before


def test_a_lock_that_did_not_survive_is_not_adopted(table: LockTable, image: Path) -> None:
    """What somebody else took meanwhile is refused with his lock in the way."""
    descriptor = os.open(image, os.O_RDWR)
    identity = files.identity_of(descriptor)
    assert identity == Identity(image.stat().st_dev, image.stat().st_ino)
    resource = space.Resource(bytes(image), bytes(image), descriptor, identity, NONE, [10])
    with locked(image), pytest.raises(BlockingIOError):
        table.adopt(b"", resource)
    table.adopt(b"", resource)
    assert not is_free(image)
    done(table.release(b"", bytes(image), 10))
    assert is_free(image)


def test_two_names_of_one_file_are_adopted(table: LockTable, image: Path, tmp_path: Path) -> None:
    """virtlockd may have granted both: the lock stays until the second is released."""
    other = tmp_path / "other"
    other.hardlink_to(image)
    for owner, name in ((10, bytes(image)), (11, bytes(other))):
        descriptor = os.open(name, os.O_RDWR)
        identity = files.identity_of(descriptor)
        table.adopt(b"", space.Resource(name, name, descriptor, identity, NONE, [owner]))
    done(table.release(b"", bytes(image), 10))
    assert not is_free(image)
    done(table.release(b"", bytes(other), 11))
    assert is_free(image)
