"""Making lockspaces, resources and indexes on real devices and files.

Before anything is written: the place is locked against other formatters, it must be large enough
(a regular file is created or extended), and it must hold nothing else, unless forced. Nothing is
written outside of the areas; a file that a failed format created is removed again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from paxoslease.disk.direct import open_direct
from paxoslease.disk.layout import Area, Sizes, check_name, check_sizes, default_sizes
from paxoslease.disk.records import (
    CLEARED_MAGIC,
    DELTA_MAGIC,
    PAXOS_MAGIC,
    RINDEX_MAGIC,
    cut_name,
    unpack_leader,
    unpack_rindex_header,
)
from paxoslease.engine.host import engine
from paxoslease.errors import DeviceInUse, DiskError, TooSmall, UnsuitableDevice
from paxoslease.protocol import formatting
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.effects import Protocol, Read
from paxoslease.timing import FORMAT_TIMEOUT_US, IO_TIMEOUT_DEFAULT_S

_AT_ONCE = 8
_CHUNK = 1 << 20
_BEING_FORMATTED = "something that another program formats now"


def format_lockspace(
    path: str,
    name: str,
    *,
    offset: int = 0,
    io_timeout: int = IO_TIMEOUT_DEFAULT_S,
    sector_size: int | None = None,
    align_size: int | None = None,
    force: bool = False,
) -> None:
    """Make a lockspace.

    offset: bytes, a multiple of the align size. io_timeout: s, what the first host of each id waits
    by. Sizes default to those of the device or of the file system: 512 and 1 MiB, or 4096 and
    8 MiB. force: destroy what is there.

    Raises ConfigError, DeviceInUse, UnsuitableDevice, DiskError, DiskTimeout.
    """
    raw = check_name("lockspace name", name)
    sizes = _sizes(path, sector_size, align_size)
    space = Lockspace(raw, Area(os.fspath(path), offset, sizes))
    formatting.check_place(space.area)
    with _place(path, [space.area], force=force):
        engine().run_once(formatting.format_lockspace(space, io_timeout), space.area.path)


def format_resource(
    path: str,
    lockspace: str,
    name: str,
    *,
    offset: int = 0,
    num_hosts: int = 0,
    sector_size: int | None = None,
    align_size: int | None = None,
    force: bool = False,
) -> None:
    """Make a resource of a lockspace. num_hosts: the largest host id that can use it; 0 for all.

    Other arguments and errors as format_lockspace.
    """
    made = format_resources(
        path,
        lockspace,
        [name],
        offset=offset,
        num_hosts=num_hosts,
        sector_size=sector_size,
        align_size=align_size,
        force=force,
    )
    for _ in made:
        continue


def format_resources(
    path: str,
    lockspace: str,
    names: Sequence[str],
    *,
    offset: int = 0,
    num_hosts: int = 0,
    sector_size: int | None = None,
    align_size: int | None = None,
    force: bool = False,
) -> Iterator[tuple[str, str, int]]:
    """Make resources one behind the other; yields (name, path, offset) as each is done.

    Several are written at once. Arguments and errors as format_resource.
    """
    space = check_name("lockspace name", lockspace)
    raws = [check_name("resource name", name) for name in names]
    sizes = _sizes(path, sector_size, align_size)
    first = Area(os.fspath(path), offset, sizes)
    formatting.check_place(first)
    areas = [first.following(index) for index in range(len(raws))]
    owner = engine()
    with _place(path, areas, force=force), ExitStack() as stack:
        file = owner.files.hold(first.path)
        stack.callback(owner.files.drop, first.path)
        running: list[tuple[str, Area, Any]] = []
        stack.callback(_finish, running)
        for name, raw, area in zip(names, raws, areas, strict=True):
            if len(running) >= _AT_ONCE:
                yield _done(running.pop(0))
            protocol = formatting.format_resource(space, raw, area, num_hosts)
            running.append((name, area, owner.requests.start(protocol, {area.path: file})))
        while running:
            yield _done(running.pop(0))


def _done(running: tuple[str, Area, Any]) -> tuple[str, str, int]:
    name, area, operation = running
    operation.result()
    return name, area.path, area.offset


def _finish(running: list[tuple[str, Area, Any]]) -> None:
    """Wait for writes that are still under way after an error or an early end."""
    for _, _, operation in running:
        operation.future.exception()


def format_index(
    path: str,
    lockspace: str,
    *,
    offset: int = 0,
    sector_size: int | None = None,
    align_size: int | None = None,
    max_resources: int = 0,
    force: bool = False,
) -> None:
    """Make a resource index: two areas, behind which its resources will lie.

    max_resources: how many entries may be used; 0 for the default of 4096. Other arguments and
    errors as format_lockspace.
    """
    space = check_name("lockspace name", lockspace)
    sizes = _sizes(path, sector_size, align_size)
    area = Area(os.fspath(path), offset, sizes)
    protocol: Protocol[None] = (
        formatting.format_index(space, area, max_resources)
        if max_resources
        else formatting.format_index(space, area)
    )
    formatting.check_place(area)
    with _place(path, [area, area.following(1)], force=force):
        engine().run_once(protocol, area.path)


def _sizes(path: str, sector_size: int | None, align_size: int | None) -> Sizes:
    """Return the sizes asked for; what is not asked for follows from the device."""
    if sector_size is None:
        sector_size = 512
        if align_size is not None and align_size > 1 << 20:
            sector_size = 4096
        else:
            sector_size = _device_sector_size(path)
    if align_size is None:
        return (
            default_sizes(sector_size) if sector_size == 4096 else check_sizes(sector_size, 1 << 20)
        )
    return check_sizes(sector_size, align_size)


def _device_sector_size(path: str) -> int:
    """Return the sector size that a path asks for, if need be by a nameless file beside it."""
    if os.path.exists(path):
        with open_direct(path) as file:
            return file.sector_size
    directory = os.path.dirname(os.path.abspath(path))
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        # No such directory is found out when the file is created; a file system without nameless
        # files (NFS) allows any alignment.
        return 512
    try:
        with open_direct(f"/proc/self/fd/{fd}") as file:
            return file.sector_size
    except UnsuitableDevice as error:
        raise UnsuitableDevice(path, 0, error.reason) from None
    finally:
        os.close(fd)


@contextmanager
def _place(path: str, areas: list[Area], *, force: bool) -> Iterator[None]:
    """Make sure that areas can be written, and keep other formatters off meanwhile."""
    end = areas[-1].offset + areas[-1].sizes.align_size
    created = _create(path)
    is_ours = False
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DiskError(path, 0, "open", error.errno or 0, error.strerror or "") from error
    try:
        _lock(fd, path, areas[0].offset)
        is_ours = True
        size = os.lseek(fd, 0, os.SEEK_END)
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        if size < end and not is_file:
            reason = f"it ends at {size}, the area at {end}"
            raise TooSmall(path, areas[0].offset, reason)
        with open_direct(path) as file:
            if file.sector_size > areas[0].sizes.sector_size:
                reason = (
                    f"its sectors have {file.sector_size} bytes, too large for a format with "
                    f"{areas[0].sizes.sector_size}"
                )
                raise UnsuitableDevice(path, areas[0].offset, reason)
        if not force:
            _refuse_used(fd, path, areas, size, is_file)
        if size < end:
            os.ftruncate(fd, end)
        try:
            yield
        except BaseException:
            if size < end and not created:
                os.ftruncate(fd, size)
            raise
    except BaseException:
        # Who made the file but came second to the lock would remove what the other one writes.
        if created and is_ours:
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def _create(path: str) -> bool:
    """Create a file that is not there; True when it was created."""
    if os.path.exists(path):
        return False
    if os.path.realpath(path).startswith("/dev/") and not _is_on_shm(path):
        # A mistyped device must not become a file in memory that looks like one.
        raise DiskError(path, 0, "open", errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    except OSError as error:
        raise DiskError(path, 0, "create", error.errno or 0, error.strerror or "") from error
    return True


def _is_on_shm(path: str) -> bool:
    return os.path.realpath(path).startswith("/dev/shm/")


def _lock(fd: int, path: str, offset: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise DiskError(path, 0, "lock", error.errno or 0, error.strerror or "") from error
        raise DeviceInUse(path, offset, _BEING_FORMATTED) from None
    if not _is_still_there(fd, path):
        raise DeviceInUse(path, offset, _BEING_FORMATTED)


def _is_still_there(fd: int, path: str) -> bool:
    """Tell whether a path still leads to an open file: a failed format removes what it made."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _refuse_used(fd: int, path: str, areas: list[Area], size: int, is_file: bool) -> None:
    """Raise DeviceInUse when the areas, or the whole device, hold something."""
    for area in areas:
        end = min(size, area.offset + area.sizes.align_size)
        at = area.offset
        while at < end:
            at = _next_data(fd, at, end) if is_file else at
            chunk = _read(fd, path, at, min(_CHUNK, end - at)) if at < end else b""
            if chunk.count(0) != len(chunk):
                raise DeviceInUse(path, area.offset, _what_is_there(fd, path, area.offset))
            at += max(1, len(chunk))
    signature = _signature(path)
    if signature:
        raise DeviceInUse(path, 0, signature)


def _read(fd: int, path: str, offset: int, length: int) -> bytes:
    """Read past the page cache, which may not know what another host has written.

    Only the end of a file, when no whole sector, is read through it. Raises DiskError, DiskTimeout.
    """
    owner = engine()
    file = owner.files.hold(path)
    try:
        first = offset - offset % file.sector_size
        whole = (offset + length) - (offset + length) % file.sector_size
        if whole > first:
            data: bytes = owner.run_once(_reading(path, first, whole - first), path)
            return data[offset - first :]
        return os.pread(fd, length, offset)
    except OSError as error:
        raise DiskError(path, offset, "read", error.errno or 0, error.strerror or "") from error
    finally:
        owner.files.drop(path)


def _reading(path: str, offset: int, length: int) -> Protocol[bytes]:
    data: bytes = yield Read(path, offset, length, FORMAT_TIMEOUT_US)
    return data


def _next_data(fd: int, at: int, end: int) -> int:
    """Return where a file's next data begins: holes need not be read."""
    try:
        return min(end, os.lseek(fd, at, os.SEEK_DATA))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        return at


def _what_is_there(fd: int, path: str, offset: int) -> str:
    length = min(4096, os.lseek(fd, 0, os.SEEK_END) - offset)
    head = _read(fd, path, offset, length)[:512].ljust(512, b"\0")
    leader = unpack_leader(head)
    name = cut_name(leader.resource_name).decode("utf-8", "backslashreplace")
    space = cut_name(leader.space_name).decode("utf-8", "backslashreplace")
    if leader.magic == DELTA_MAGIC:
        return f"the lockspace {space}"
    if leader.magic == PAXOS_MAGIC:
        return f"the resource {name} of lockspace {space}"
    if leader.magic == CLEARED_MAGIC:
        return f"the deleted resource {name} of lockspace {space}"
    if leader.magic == RINDEX_MAGIC:
        owner = cut_name(unpack_rindex_header(head).lockspace_name)
        return f"a resource index of lockspace {owner.decode('utf-8', 'backslashreplace')}"
    return "data"


def _signature(path: str) -> str:
    """Return what libblkid finds at the start of a device or file, '' for nothing.

    Without blkid(8) only the areas themselves were looked at.
    """
    blkid = shutil.which("blkid", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
    if blkid is None:
        return ""
    command = [blkid, "-p", "-o", "export", path]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    values = dict(line.split("=", 1) for line in found.stdout.splitlines() if "=" in line)
    kind = values.get("TYPE") or values.get("PTTYPE")
    if kind is None:
        return "several signatures" if found.returncode == 8 else ""
    return f"a partition table ({kind})" if "PTTYPE" in values else f"{kind}"
