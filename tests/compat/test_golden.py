"""Golden images of sanlock 3.8.5: every record reads as stated, and is written back byte for byte.

`golden/index.json` lists what each image holds; the images are the first sectors of areas made by
real daemons and formatters. spec/disk-format.md describes them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from paxoslease.disk import areas
from paxoslease.disk.layout import LVB_SECTOR, Area, Sizes
from paxoslease.disk.records import (
    HOST_SECTOR_BYTES,
    RELEASED,
    SHARED,
    Where,
    bitmap_of,
    bitmap_of_hosts,
    cut_name,
    hosts_of_bitmap,
    leader_checksum,
    pack_host_sector,
    pack_leader,
    pack_request,
    pack_rindex_entry,
    pack_rindex_header,
    parse_delta,
    parse_host_sector,
    parse_paxos,
    parse_request,
    parse_rindex_header,
    unpack_leader,
    unpack_rindex_entry,
)

GOLDEN = Path(__file__).parent / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
IMAGES = {image["file"]: image for image in INDEX["images"]}
RECORDS = [
    pytest.param(image, record, id=f"{image['file']}:{record['sector']}")
    for image in INDEX["images"]
    for record in image["records"]
]


def sector_bytes(image: dict[str, Any], sector: int) -> bytes:
    data = (GOLDEN / image["file"]).read_bytes()
    size = image["sector_size"]
    start = (sector - image["first_sector"]) * size
    return data[start : start + size]


def of_kind(*kinds: str) -> pytest.MarkDecorator:
    chosen = [p for p in RECORDS if p.values[1]["record"] in kinds]
    assert chosen
    return pytest.mark.parametrize(("image", "record"), chosen)


def where_of(image: dict[str, Any], record: dict[str, Any]) -> Where:
    return Where(image["file"], image["area_offset_on_device"] + record["byte_offset_in_area"])


def check_leader_fields(record: dict[str, Any], leader: Any, data: bytes) -> None:
    for field in leader._fields:
        stated = record[field]
        found = getattr(leader, field)
        if field in ("magic", "version", "flags", "checksum"):
            stated = int(stated, 16)
        elif field in ("space_name", "resource_name"):
            found = cut_name(found).decode()
        assert found == stated, field
    assert record["checksum_valid"] is (leader_checksum(data) == leader.checksum)


@pytest.mark.parametrize("file", IMAGES)
def test_images_are_the_recorded_ones(file: str) -> None:
    """The copies here are the recorded bytes, so that the other tests mean something."""
    data = (GOLDEN / file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == IMAGES[file]["sha256"]
    assert (
        len(data) == IMAGES[file]["bytes"] == IMAGES[file]["sectors"] * IMAGES[file]["sector_size"]
    )


@of_kind("leader_record (delta lease)")
def test_delta_lease(image: dict[str, Any], record: dict[str, Any]) -> None:
    """A delta lease parses to the stated fields and bitmap and packs to the same sector."""
    data = sector_bytes(image, record["sector"])
    leader = parse_delta(data, where_of(image, record), record["space_name"].encode())
    check_leader_fields(record, leader, data)
    assert leader.sizes == Sizes(image["sector_size"], image["align_size"])
    assert list(hosts_of_bitmap(bitmap_of(data))) == record["bitmap_host_ids"]
    bitmap = bitmap_of_hosts(tuple(record["bitmap_host_ids"]))
    assert pack_leader(leader.sealed(), image["sector_size"], bitmap) == data
    if not record["bitmap_host_ids"]:
        assert pack_leader(leader, image["sector_size"]) == data


@of_kind("leader_record (paxos lease)")
def test_paxos_leader(image: dict[str, Any], record: dict[str, Any]) -> None:
    """A paxos lease's leader parses to the stated fields and packs to the same sector."""
    data = sector_bytes(image, record["sector"])
    names = record["space_name"].encode(), record["resource_name"].encode()
    if image["file"] in ("res_512_cleared.bin", "rindex_512_deleted_resource.bin"):
        leader = unpack_leader(data)
    else:
        leader = parse_paxos(data, where_of(image, record), *names)
        assert leader.sizes == Sizes(image["sector_size"], image["align_size"])
    check_leader_fields(record, leader, data)
    assert pack_leader(leader.sealed(), image["sector_size"]) == data


@of_kind("paxos_dblock + mode_block")
def test_host_sector(image: dict[str, Any], record: dict[str, Any]) -> None:
    """A host's dblock and mode block parse to the stated fields and pack to the same sector."""
    data = sector_bytes(image, record["sector"])
    sector = parse_host_sector(data, where_of(image, record))
    for field in ("mbal", "bal", "inp", "inp2", "inp3", "lver"):
        assert getattr(sector, field) == record[field], field
    assert sector.released is bool(record["flags"] & RELEASED)
    assert record["flags"] & ~RELEASED == 0
    mode = record["mode_block"]
    assert sector.shared_generation == (mode["generation"] if mode["flags"] & SHARED else None)
    if image["file"] == "res_512_shared_failed_convert.bin" and record["host_id"] == 1:
        # The one case in which sanlock leaves old content in the ignored bytes (5.7): a ballot
        # write of a conversion, out of a buffer that was not cleared. We write zeros there.
        assert data[56:58] == b"GX"
        data = (data[:56].ljust(128, b"\0") + data[128:144]).ljust(len(data), b"\0")
    assert pack_host_sector(sector, image["sector_size"]) == data
    assert int.from_bytes(data[48:52], "little") == int(record["checksum"], 16)


@of_kind("request_record")
def test_request(image: dict[str, Any], record: dict[str, Any]) -> None:
    """A request record parses to the stated fields; written back, only its padding may differ."""
    data = sector_bytes(image, record["sector"])
    request = parse_request(data, where_of(image, record))
    assert (request.lver, request.force_mode) == (record["lver"], record["force_mode"])
    assert request.magic == int(record["magic"], 16)
    assert request.version == int(record["version"], 16)
    packed = pack_request(request, image["sector_size"])
    assert packed[:20] + packed[24:] == data[:20] + data[24:]
    assert packed[20:24] == bytes(4)


@of_kind("rindex_header")
def test_rindex_header(image: dict[str, Any], record: dict[str, Any]) -> None:
    """An index header parses to the stated fields and packs to the same sector."""
    data = sector_bytes(image, record["sector"])
    where = where_of(image, record)
    header = parse_rindex_header(data, where, record["lockspace_name"].encode())
    for field in header._fields:
        stated, found = record[field], getattr(header, field)
        if field in ("magic", "version"):
            stated = int(stated, 16)
        if field == "lockspace_name":
            found = cut_name(found).decode()
        assert found == stated, field
    assert header.sizes == Sizes(image["sector_size"], image["align_size"])
    assert pack_rindex_header(header, image["sector_size"]) == data


@of_kind("rindex_entry[]")
def test_rindex_entries(image: dict[str, Any], record: dict[str, Any]) -> None:
    """Each index entry parses to the stated fields and packs to the same bytes."""
    data = sector_bytes(image, record["sector"])
    per_sector = image["sector_size"] // 64
    first = (record["sector"] - 1) * per_sector
    stated = {entry["index"]: entry for entry in record["entries"]}
    area = Area("image", image["area_offset_on_device"], Sizes(512, 1 << 20))
    for i in range(per_sector):
        entry = unpack_rindex_entry(data, 64 * i)
        expected = stated.get(first + i, {"res_offset": 0, "flags": 0, "unused": 0, "name": ""})
        assert entry.res_offset == expected["res_offset"]
        assert (entry.flags, entry.unused) == (expected["flags"], expected["unused"])
        assert cut_name(entry.name).decode() == expected["name"]
        assert entry.is_free is (not expected["name"] and not expected["res_offset"])
        if not entry.is_free:
            assert entry.res_offset == area.following(2 + first + i).offset
        assert pack_rindex_entry(entry) == data[64 * i : 64 * i + 64]


@of_kind("LVB sector")
def test_lvb(image: dict[str, Any], record: dict[str, Any]) -> None:
    """The lock value block lies where the layout says."""
    area = Area("image", 0, Sizes(image["sector_size"], image["align_size"]))
    assert record["sector"] == LVB_SECTOR
    assert area.lvb == record["byte_offset_in_area"]
    assert sector_bytes(image, record["sector"]).startswith(record["ascii_prefix"].encode())


@pytest.mark.parametrize("file", IMAGES)
def test_no_record_is_forgotten(file: str) -> None:
    """Every sector that is not listed is all zero, so the tests above saw everything there is."""
    image = IMAGES[file]
    listed = {record["sector"] for record in image["records"]}
    for sector in range(image["first_sector"], image["first_sector"] + image["sectors"]):
        if sector not in listed:
            assert not any(sector_bytes(image, sector)), sector


FORMATTED = [image for image in INDEX["images"] if "full_area_sha256" in image]


@pytest.mark.parametrize("image", FORMATTED, ids=lambda image: image["file"])
def test_formatted_area(image: dict[str, Any]) -> None:
    """A whole area as we format it is, byte for byte, the one that sanlock formatted."""
    sizes = Sizes(image["sector_size"], image["align_size"])
    first = image["records"][0]
    if first["record"] == "rindex_header":
        lockspace = first["lockspace_name"].encode()
        area = areas.rindex_area(
            lockspace, sizes, image["area_offset_on_device"], first["max_resources"]
        )
    elif first["record"] == "leader_record (delta lease)":
        body, commit = areas.lockspace_area(
            first["space_name"].encode(), sizes, first["io_timeout"]
        )
        # The second write makes it valid: only then is it what sanlock left behind.
        assert body[:4] == bytes(4)
        assert body[4:168] == commit[4:168]
        area = commit + body[len(commit) :]
    else:
        area = areas.resource_area(
            first["space_name"].encode(),
            first["resource_name"].encode(),
            sizes,
            first["num_hosts"],
        )
    assert len(area) == image["full_area_bytes"] == sizes.align_size
    assert hashlib.sha256(area).hexdigest() == image["full_area_sha256"]


@pytest.mark.parametrize("file", ["res_512_cleared.bin", "rindex_512_deleted_resource.bin"])
def test_cleared_resource(file: str) -> None:
    """A cleared resource as we write it starts with the same sectors as sanlock's."""
    image = IMAGES[file]
    leader = image["records"][0]
    area = areas.resource_area(
        leader["space_name"].encode(),
        leader["resource_name"].encode(),
        Sizes(image["sector_size"], image["align_size"]),
        leader["num_hosts"],
        cleared_at_s=leader["write_timestamp"],
    )
    data = bytearray((GOLDEN / file).read_bytes())
    data[image["sector_size"] + 20 : image["sector_size"] + 24] = bytes(4)  # undefined padding
    assert area[: image["bytes"]] == data
    assert not any(area[image["bytes"] :])


def test_known_answers_of_the_checksum() -> None:
    """The checksum gives the answers of spec/disk-format.md 3."""
    from paxoslease.disk.native import crc32c

    assert crc32c(b"") == 0xFFFFFFFE
    assert crc32c(b"123456789") == 0xE8C7BB34
    assert crc32c(bytes(48)) == 0xCB5AD842
    assert crc32c(bytes(168)) == 0x7E11FBD1
    assert crc32c(bytes(range(48))) == 0xDFF3D1D1
    assert crc32c((GOLDEN / "ls_512_1M_fresh.bin").read_bytes()[:168]) == 0x67584BF4


def test_host_sector_columns_read_the_same() -> None:
    """A ballot's scan of an image finds the host sectors that the index lists, and no other."""
    for image in INDEX["images"]:
        if not image["file"].startswith("res_") or image["first_sector"]:
            continue
        listed = [
            (r["host_id"], sector_bytes(image, r["sector"])[:HOST_SECTOR_BYTES])
            for r in image["records"]
            if r["record"] == "paxos_dblock + mode_block"
        ]
        num_hosts = image["sectors"] - 2
        data = memoryview((GOLDEN / image["file"]).read_bytes())
        found = areas.nonzero_host_sectors(data, image["sector_size"], num_hosts)
        assert list(found) == [(h, d) for h, d in listed if any(d)], image["file"]
