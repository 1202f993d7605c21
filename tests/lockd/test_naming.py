"""Names of disks and leases, as libvirt's lockd plugin makes them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from paxoslease.errors import ConfigError
from paxoslease.lockd import naming
from paxoslease.lockd.naming import (
    DeviceUnnamed,
    Directories,
    ResourceName,
    name_of_disk,
    name_of_lease,
)
from paxoslease.wire.virtlock import AcquireFlag

DIRECT, SHARED, AUTOCREATE = AcquireFlag(0), AcquireFlag.SHARED, AcquireFlag.AUTOCREATE
IMAGE = b"/var/lib/libvirt/images/a.img"
UUID = b"06UgP5-2rhb-w3Bo-3mdR-WeoL-pytO-SAa2ky"


def program(path: Path, script: str) -> tuple[str, ...]:
    """Make a program that stands for lvs or scsi_id."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return (str(path), "--option")


def test_a_disk_itself() -> None:
    """Without directories the disk is what is locked."""
    assert name_of_disk(IMAGE, Directories()) == ResourceName(b"", IMAGE, DIRECT)
    assert name_of_disk(IMAGE, Directories(), shared=True) == ResourceName(b"", IMAGE, SHARED)


def test_the_hash_of_a_path() -> None:
    """The name that libvirt sent in the worked example of spec/lock-drivers.md 11."""
    name = b"17756750d91ae11b47d32396242a9e833937f02ab48569201fe29b1a94ecb520"
    directories = Directories(file=b"/files")
    found = name_of_disk(IMAGE, directories)
    assert found == ResourceName(b"/files", name, AUTOCREATE)
    assert name_of_disk(IMAGE, directories, shared=True).flags == AUTOCREATE | SHARED
    assert name_of_disk(IMAGE + b"/", directories).name != found.name


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logical volume by its UUID, else a device by its SCSI id, else by its path."""
    lvs = f'[ "$2" = /dev/vg/lv ] || exit 5; echo "  {UUID.decode()}"'
    monkeypatch.setattr(naming, "_LVS", program(tmp_path / "lvs", lvs))
    scsi = '[ "$2" = /dev/sda ] && echo 3600508b4; true'
    monkeypatch.setattr(naming, "_SCSI_ID", program(tmp_path / "scsi", scsi))
    every = Directories(b"/files", b"/lvm", b"/scsi")
    assert every.configured() == [b"/files", b"/lvm", b"/scsi"]
    assert name_of_disk(b"/dev/vg/lv", every) == ResourceName(b"/lvm", UUID, AUTOCREATE)
    assert name_of_disk(b"/dev/sda", every) == ResourceName(b"/scsi", b"3600508b4", AUTOCREATE)
    assert name_of_disk(b"/dev/vdb", every).lockspace == b"/files"
    assert name_of_disk(b"/devices/x", every).lockspace == b"/files"
    assert name_of_disk(b"/srv/dev", every).lockspace == b"/files"
    bare = name_of_disk(b"/dev/vdb", every._replace(file=b""), shared=True)
    assert bare == ResourceName(b"", b"/dev/vdb", SHARED)


def test_a_program_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That lvs says no is an answer; that it cannot be run, or hangs, is an error."""
    directories = Directories(lvm=b"/lvm")
    monkeypatch.setattr(naming, "_LVS", (str(tmp_path / "missing"),))
    with pytest.raises(DeviceUnnamed, match=r"name of /dev/sda: .*No such file"):
        name_of_disk(b"/dev/sda", directories)
    monkeypatch.setattr(naming, "_LVS", program(tmp_path / "lvs", "exec sleep 60"))
    monkeypatch.setattr(naming, "_PROGRAM_LIMIT_S", 0.2)
    with pytest.raises(DeviceUnnamed, match="timed out"):
        name_of_disk(b"/dev/sda", directories)


def test_leases() -> None:
    """A lease is a file in a lockspace that somebody else must have made."""
    found = name_of_lease(b"/srv/leases", b"vms", b"guest-1", 0)
    assert found == ResourceName(b"/srv/leases/vms", b"guest-1", DIRECT)
    with pytest.raises(ConfigError, match="4096 is not 0"):
        name_of_lease(b"/srv/leases", b"vms", b"guest-1", 4096)
    with pytest.raises(ConfigError, match="needs both"):
        name_of_lease(b"/srv/leases", b"", b"guest-1", 0)
