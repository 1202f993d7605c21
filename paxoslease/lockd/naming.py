"""Which resource of the lock daemon stands for a disk or a lease: spec/lock-drivers.md 5.3.

Two hosts exclude each other only if they arrive at the same name, so this is done exactly as
libvirt's lockd plugin does it, byte for byte and with the same programs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from paxoslease.errors import ConfigError, PaxosleaseError
from paxoslease.wire.virtlock import AcquireFlag

_LVS: Final = ("lvs", "--noheadings", "--unbuffered", "--nosuffix", "--options", "uuid")
_SCSI_ID: Final = ("/lib/udev/scsi_id", "--replace-whitespace", "--whitelisted", "--device")
_DEVICES: Final = b"/dev"
# A device that hangs must not hang the start of a guest for ever.
_PROGRAM_LIMIT_S: Final = 60.0
_OUTPUT_SIZE_MAX: Final = 4096


@dataclass(eq=False)
class DeviceUnnamed(PaxosleaseError):
    """The program that knows a device's name could not be run to its end."""

    program: str
    path: str
    reason: str
    template = "{program} cannot tell the name of {path}: {reason}"
    hint = "install it, or leave its lockspace directory out of the configuration"
    number = -errno.ENODEV


class ResourceName(NamedTuple):
    """A resource, and the flags to ask with; `lockspace` is empty for the default one."""

    lockspace: bytes
    name: bytes
    flags: AcquireFlag


class Directories(NamedTuple):
    """The lockspace directories of a configuration, empty where a kind is not configured."""

    file: bytes = b""
    lvm: bytes = b""
    scsi: bytes = b""

    def configured(self) -> list[bytes]:
        """Return those that must be made before use, in libvirt's order."""
        return [directory for directory in self if directory]


def name_of_disk(path: bytes, directories: Directories, *, shared: bool = False) -> ResourceName:
    """Return the resource of a disk, whose path is taken as written.

    By UUID for a logical volume, by SCSI id for a device, by the path's hash for anything else,
    where the directory for that is configured; else the disk itself is what is locked. May run
    programs, which takes as long as the device needs. Raises DeviceUnnamed.
    """
    sharing = AcquireFlag.SHARED if shared else AcquireFlag(0)
    indirect = sharing | AcquireFlag.AUTOCREATE
    # A plain test of the text, as libvirt's is: "/development" passes and is then no device.
    if path.startswith(_DEVICES):
        if directories.lvm and (uuid := lvm_uuid(path)):
            return ResourceName(directories.lvm, uuid, indirect)
        if directories.scsi and (scsi := scsi_id(path)):
            return ResourceName(directories.scsi, scsi, indirect)
    if directories.file:
        return ResourceName(directories.file, path_hash(path), indirect)
    return ResourceName(b"", path, sharing)


def name_of_lease(path: bytes, lockspace: bytes, key: bytes, offset: int) -> ResourceName:
    """Return the resource of a lease; nothing makes its lockspace and its file. ConfigError."""
    if offset:
        raise ConfigError("offset", f"{offset} is not 0: a file lock has no offset")
    if not path or not lockspace:
        raise ConfigError("lease", "a file lock needs both a path and a lockspace")
    return ResourceName(path + b"/" + lockspace, key, AcquireFlag(0))


def path_hash(path: bytes) -> bytes:
    """Return the name of a lock file for a path: SHA-256 in lower-case hexadecimal digits."""
    return hashlib.sha256(path).hexdigest().encode()


def lvm_uuid(path: bytes) -> bytes:
    """Return the UUID of a logical volume, nothing when the path is none. Raises DeviceUnnamed."""
    return _said(_LVS, path)


def scsi_id(path: bytes) -> bytes:
    """Return the SCSI id of a device, nothing when it has none. Raises DeviceUnnamed."""
    return _said(_SCSI_ID, path)


def _said(command: Sequence[str], path: bytes) -> bytes:
    """Return what a program says about a path, without blanks before it and the line's end."""
    try:
        done = subprocess.run(
            [*command, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=_PROGRAM_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceUnnamed(command[0], os.fsdecode(path), str(error)) from None
    if done.returncode != 0:
        return b""
    return done.stdout[:_OUTPUT_SIZE_MAX].lstrip(b" \t").split(b"\n", 1)[0]
