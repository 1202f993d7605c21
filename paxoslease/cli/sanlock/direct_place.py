"""What all direct actions need: open files, sizes, and protocols run on them.

Direct actions use the storage without a daemon. Nothing keeps a daemon, of this host or another,
from using it at the same time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from paxoslease.cli.sanlock.grammar import Options
from paxoslease.daemon.refusal import Refusal, number_of
from paxoslease.daemon.storage import sizes_wanted
from paxoslease.disk.direct import DirectFile
from paxoslease.disk.layout import Area, Sizes
from paxoslease.engine.host import engine
from paxoslease.engine.operation import BYSTANDER, Context
from paxoslease.errors import StorageError
from paxoslease.protocol.effects import Protocol, Read
from paxoslease.timing import IO_TIMEOUT_DEFAULT_S, Timing
from paxoslease.wire.sanlock import Disk

__all__ = ["Refusal", "number_of"]

T = TypeVar("T")
MIB: Final = 1 << 20


@contextmanager
def opened(*disks: Disk, for_lockspace: bool = False) -> Iterator[Sequence[DirectFile]]:
    """Keep the files of disks open meanwhile.

    Raises DiskError, UnsuitableDevice; for a lockspace's disk Refusal (-ENODEV) instead.
    """
    paths = [os.fsdecode(disk.path) for disk in disks]
    files = engine().files
    held: list[str] = []
    found: list[DirectFile] = []
    try:
        for path in paths:
            try:
                found.append(files.hold(path))
            except StorageError as error:
                if for_lockspace:
                    raise Refusal(errno.ENODEV) from error
                raise
            held.append(path)
        yield found
    finally:
        for path in held:
            files.drop(path)


def perform(protocol: Protocol[T], files: Sequence[DirectFile], context: Context = BYSTANDER) -> T:
    """Run a protocol on open files. Raises what it raises; a time-out is told at once."""
    operation = engine().requests.start(protocol, {file.path: file for file in files}, context)
    operation.is_impatient = True
    return operation.result()


def sizes_of(options: Options, file: DirectFile) -> Sizes:
    """Return the sizes given, or those that the file or device has. Raises Refusal (-1)."""
    return sizes_wanted(options.size_flags, file)


def areas_of(
    options: Options, disks: Sequence[Disk], files: Sequence[DirectFile]
) -> tuple[Area, ...]:
    """Return the areas of a resource. Raises Refusal (-1) for sizes that no format has."""
    sizes = sizes_of(options, files[0])
    return tuple(
        Area(file.path, disk.offset, sizes) for file, disk in zip(files, disks, strict=True)
    )


def timing_of(options: Options) -> Timing:
    """Return the timing that -o asks for."""
    return Timing(options.io_timeout or IO_TIMEOUT_DEFAULT_S)


def read_at(
    options: Options, file: DirectFile, offset: int, length: int, *, is_cut: bool = False
) -> bytes:
    """Read bytes of an open file; with is_cut fewer at its end. Raises DiskError, DiskTimeout."""
    timeout_us = timing_of(options).io_us
    if is_cut:
        size = os.lseek(file.fd, 0, os.SEEK_END)
        length = min(length, max(0, size - offset) // file.sector_size * file.sector_size)
        if not length:
            return b""

    def read() -> Protocol[bytes]:
        data: bytes = yield Read(file.path, offset, length, timeout_us)
        return data

    return perform(read(), [file])
