"""Domain XML: which disks and leases are locked, and how."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from paxoslease.drivers.base import Disk, ExplicitLease, FailureAction, Mode
from paxoslease.drivers.domain import parse_domain, read_domain, uuid_of_name
from paxoslease.errors import ConfigError

DOMAIN = """<?xml version="1.0" encoding="utf-8"?>
<domain type='kvm' id='3'>
  <name>demo</name>
  <uuid>c7945027-0221-5a99-828a-6f7c8d6f06bb</uuid>
  <on_lockfailure>pause</on_lockfailure>
  <devices>
    <disk type='file' device='disk'><source file='/srv/a&amp;b.img'/>
      <backingStore type='file'><source file='/srv/base.img'/></backingStore></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/lv'/><shareable/></disk>
    <disk type='file' device='disk'><source file='/srv/both.img'/><readonly/><shareable/></disk>
    <disk type='file' device='cdrom'><source file='/srv/cd.iso'/></disk>
    <disk type='file' device='cdrom'/>
    <disk type='network' device='disk'><source protocol='rbd' name='pool/x'/></disk>
    <lease><lockspace>vms</lockspace><key>demo</key>
      <target path='/dev/vg/leases' offset='1048576'/></lease>
    <interface type='file'><source file='/not/a/disk'/></interface>
  </devices>
</domain>
"""


def test_resources_of_a_domain() -> None:
    """Leases come first, then disks in their order; only top images with a path here."""
    domain = parse_domain(DOMAIN)
    assert domain.name == "demo"
    assert domain.uuid == UUID("c7945027-0221-5a99-828a-6f7c8d6f06bb")
    assert domain.on_lockfailure is FailureAction.PAUSE
    assert domain.resources == (
        ExplicitLease("vms", "demo", "/dev/vg/leases", 1048576),
        Disk("/srv/a&b.img"),
        Disk("/dev/vg/lv", Mode.SHARED),
        Disk("/srv/both.img", Mode.READONLY),
        Disk("/srv/cd.iso", Mode.READONLY),
    )


def test_a_domain_without_uuid_has_the_same_one_everywhere() -> None:
    """The uuid that stands in for a missing one depends on the name only."""
    one = parse_domain("<domain><name>x</name></domain>")
    assert one == (uuid_of_name("x"), "x", (), FailureAction.DEFAULT)
    assert uuid_of_name("y") != one.uuid


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<domain>", "no element found"),
        ("<network/>", "is not <domain>"),
        ("<domain/>", "no <name>"),
        ("<domain><name>x</name><uuid>zz</uuid></domain>", "not a UUID"),
        ("<domain><name>x</name><on_lockfailure>cry</on_lockfailure></domain>", "'cry'"),
        ("<!DOCTYPE d [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>", "declaration"),
        (
            "<domain><name>x</name><devices><disk type='volume'><source pool='p' volume='v'/>"
            "</disk></devices></domain>",
            "cannot be resolved",
        ),
        (
            "<domain><name>x</name><devices><lease><lockspace>l</lockspace><key>k</key>"
            "<target path='/p' offset='-1'/></lease></devices></domain>",
            "not a number",
        ),
        (
            "<domain><name>x</name><devices><lease><lockspace>l</lockspace><key>k</key>"
            "</lease></devices></domain>",
            "no path or name",
        ),
    ],
)
def test_what_cannot_be_understood_is_refused(text: str, word: str) -> None:
    """Nothing is skipped that could be a disk to lock, and nothing hostile is expanded."""
    with pytest.raises(ConfigError, match=word):
        parse_domain(text)


def test_files_are_read_with_a_limit_and_as_utf8(tmp_path: Path) -> None:
    """A file that is no text, or much too long, is refused with its path."""
    path = tmp_path / "guest.xml"
    path.write_text(DOMAIN)
    assert read_domain(str(path)).name == "demo"
    path.write_bytes(b"\xff\xfe<")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 0"):
        read_domain(str(path))
    path.write_bytes(b" " * (5 << 20))
    with pytest.raises(ConfigError, match="longer than"):
        read_domain(str(path))
