"""`paxoslease-sanlock direct` beside the original: what is printed, and what is on the disk.

Both run the same steps, each on a file of its own; after each step the files must be equal, but for
times. Where ours does something else on purpose (docs/compatibility.md) it is told alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.compat.peer import wait_until
from tests.daemon.daemons import PROGRAMS, Kind, require

pytestmark = pytest.mark.peer

GOLDEN: Final = Path(__file__).with_name("golden")
KINDS: Final[tuple[Kind, Kind]] = ("real", "ours")
FILE_BYTES: Final = 24 << 20
LIMIT_S: Final = 60.0

# The magic numbers of records (spec/disk-format.md 2), as they lie on the disk.
_LEADERS: Final = (b"\x10\x20\x21\x12", b"\x10\x20\x15\x06", b"\x16\x20\x28\x11")
_REQUEST: Final = b"\x11\x20\x29\x08"

FORMATS: Final = """
init -s L:1:@:0
init -s L:1:@:0 -o 2 -n 3
init -s L:1:@:0 -o 300
init -s L:1:@:0 -o -1
init -s :1:@:22020096
init -s L:1:/nope:0
init -s L:1:@:5
init -s L:1:@:512
init -s L:1:@:0
init -s L:1
init -s L:1:@:0 -Z 512
init -s L:1:@:26214400
init -s K:1:@:8388608 -Z 4096 -A 2M
init
init -r L:R:@:1M -n 7
init -r L:R2:@:2097152
init -r L:R3:@:3M -n 5000
init -r L:R4:@:4M -Z 512
init -r L:RR:@:4194304:@:5242880
init -r L:R:/nope:0
init -r L:R:@:7340032:/nope:0
init -r L:R
init -r K:S:@:10485760 -Z 4096 -A 2M
init -r K:S:@:10485760 -Z 512 -A 2M
read_leader -s L:1:@:0
read_leader -s L:3:@:0
read_leader -s X:1:@:0
read_leader -s L:1:@:1048576
read_leader -s L:1:@:15728640
read_leader -s K:2:@:8388608
read_leader -s K:2:@:8388608 -Z 4096 -A 2M
read_leader -s K:2:@:8388608 -Z 4096
read_leader -r L:R:@:1M
read_leader -r L:X:@:1M
read_leader -r X:R:@:1M
read_leader -r ::@:1M
read_leader -r L:R:@:9M
read_leader -r L:R:@:0
read_leader -r K:S:@:10485760
read_leader -r L:R:@:1048576 -Z 512
read_leader -r L:R:@:1048576 -Z 4096
read_leader -s L:1:@:0 -r L:R:@:1048576
init -r L:R:@:0:@:0:@:0:@:0:@:0:
init -r L:R:@:0:@:0:@:0:@:0:
init -r L:R:@:0:@:0:@:0:@:0:@:0\\
dump @
dump @ -f 1
dump @:0:24M -f 2
dump @:1M
dump @:1048576:1048576
dump @:0:1
dump @:0:512
dump @:3M:2M
dump @:8388608
dump @:8388608 -f 1
dump @:5
dump @:512
dump @:99999999
dump @:12582912:1048576
dump @ -Z 512
dump /nope
dump
next_free @ -Z 512 -A 1M
next_free /nope -Z 512 -A 1M
next_free
format -x L:@:12582912
format -x L:@:12582912 -Z 512
format -x L:/nope:12582912
format
lookup
read_leader -s L:1:@:12582912
lookup -x L:@:12582912 -e :14680065
lookup -x L:@:12582912
lookup -x X:@:12582912
lookup -x L:@:0
lookup -x L:@:5
update -x L:@:12582912 -e aa:14680064
init -r L:cc:@:15728640
update -x L:@:12582912 -e bb:16777216
update -x L:@:12582912 -e bb
update -x L:@:12582912 -e :16777216
update -x L:@:12582912 -e bb:16777217
update -x L:@:12582912 -e :16777217
update -x L:@:12582912
lookup -x L:@:12582912
lookup -x L:@:12582912 -e aa
lookup -x L:@:12582912 -e bb:14680064
lookup -x L:@:12582912 -e aa:14680064
lookup -x L:@:12582912 -e :14680064
lookup -x L:@:12582912 -e :15728640
lookup -x L:@:12582912 -e zz
dump @:12582912:8M -f 1 -Z 512 -A 1M
dump @:12582912:8M -Z 512 -A 1M
update -x L:@:12582912 -e bb:16777216 -z 0
rebuild -x L:@:12582912
rebuild
dump @:12582912:8M -f 2 -Z 512 -A 1M
foo
"""

LEASES: Final = """
init -s L:1:@:0 -o 1
init -r L:R:@:1048576
init -r L:Q:@:2097152
acquire_id -s L:1:@:0 -e hostA -o 1
read_leader -s L:1:@:0
renew_id -s L:1:@:0 -e hostA -o 1
renew_id -s L:2:@:0 -e hostA
renew_id -s L:0:@:0 -e hostA
release_id -s L:2:@:0 -e hostA
acquire_id -s L:0:@:0
acquire_id -s L:1:/nope:0
acquire_id -s X:1:@:0
acquire_id
acquire -r L:R:@:1048576 -i 1 -g 1
read_leader -r L:R:@:1048576
dump @ -f 2
acquire -r L:R:@:1048576 -i 2 -g 1
acquire -r L:X:@:1048576 -i 2 -g 1
acquire -r L:R:/nope:1048576 -i 2 -g 1
acquire -r L:Q:@:2097152 -i 2001 -g 1
acquire -r L:Q:@:2097152 -i 1 -g 3
acquire -r L:Q:@:2097152 -i 1 -g 4
dump @ -f 2
"""


class Pair:
    """A file for each program, alike at the start."""

    def __init__(self, directory: Path) -> None:
        self.files = {kind: directory / f"{kind}-file" for kind in KINDS}
        for file in self.files.values():
            with file.open("wb") as opened:
                opened.truncate(FILE_BYTES)

    def run(self, kind: Kind, step: str) -> tuple[int, str]:
        """Run a step of one of them."""
        file = self.files[kind]
        words = [word.replace("@", str(file)) for word in step.split()]
        done = subprocess.run(
            [PROGRAMS[kind], "direct", *words], stdout=subprocess.PIPE, timeout=LIMIT_S
        )
        return done.returncode, _timeless(done.stdout.decode(errors="replace"), file)

    def both(self, step: str) -> None:
        """Run a step of both and compare what they print, and their exit codes."""
        assert self.run("ours", step) == self.run("real", step), step

    def compare_files(self, step: str) -> None:
        """Compare the files, byte for byte; they differ in no more than times and checksums."""
        real, ours = (self.files[kind].read_bytes() for kind in KINDS)
        assert len(ours) == len(real), step
        differing = {at // 512 for at in range(0, len(real), 512) if _differ(real, ours, at)}
        assert not differing, (step, differing)


def _differ(real: bytes, ours: bytes, at: int) -> bool:
    """Tell whether a sector differs in what is no time, no checksum and no rubbish."""
    one, other = bytearray(real[at : at + 512]), bytearray(ours[at : at + 512])
    if one == other:
        return False
    if one[:4] in _LEADERS:
        varying = ((152, 160), (168, 172), (192, 200))  # timestamp, checksum, write_timestamp
    elif one[:4] == _REQUEST:
        varying = ((20, 24),)  # padding that the original does not clear
    else:
        varying = ((32, 40), (48, 52))  # a dblock's inp3 and checksum
    for start, end in varying:
        one[start:end] = other[start:end] = bytes(end - start)
    return one != other


def _timeless(text: str, file: Path) -> str:
    text = text.replace(str(file), "FILE")
    text = re.sub(r"\b(timestamp|inp3|checksum|sum) (0x)?[0-9a-f]+", r"\1 N", text)
    return re.sub(r" 0000\d{6} (?=\d{4} )", " N ", text)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Return two equal files."""
    require("real")
    require("ours")
    return Pair(tmp_path)


def _steps(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line)


@pytest.mark.long
def test_formats(pair: Pair) -> None:
    """Formatting, reading, walking and the index: the same words, and the same bytes."""
    for step in _steps(FORMATS):
        pair.both(step)
        if step.startswith(("init", "format", "update", "rebuild")):
            pair.compare_files(step)


def test_cleared(pair: Pair) -> None:
    """A cleared resource bears the moment, and is found by nobody."""
    pair.both("init -r L:R:@:1048576 -z 0")
    pair.compare_files("init -z")
    pair.both("dump @:1048576:1048576")
    assert pair.run("ours", "read_leader -r L:R:@:1048576")[0] == 1


@pytest.mark.long
def test_leases(pair: Pair) -> None:
    """Host ids and resources taken by hand look on the disk as the original leaves them."""
    for step in _steps(LEASES):
        pair.both(step)
        pair.compare_files(step)


@pytest.mark.parametrize(("sector_size", "align_mib"), [(512, 1), (4096, 8)])
def test_golden_areas(pair: Pair, sector_size: int, align_mib: int) -> None:
    """Whatever was found in the captured areas is printed the same."""
    images = [
        image
        for image in json.loads((GOLDEN / "index.json").read_text())["images"]
        if image["sector_size"] == sector_size
        and image["align_size"] == align_mib << 20
        and not image["first_sector"]
    ]
    for file in pair.files.values():
        with file.open("r+b") as opened:
            opened.truncate(len(images) * align_mib << 20)
            for number, image in enumerate(images):
                opened.seek(number * align_mib << 20)
                opened.write((GOLDEN / image["file"]).read_bytes())
    for detail in range(3):
        size = f"{len(images) * align_mib}M -f {detail} -Z {sector_size} -A {align_mib}M"
        pair.both(f"dump @:0:{size}")


def test_release_frees(pair: Pair) -> None:
    """Ours frees what it is told to release; the original says so and does not."""
    pair.run("ours", "init -s L:1:@:0")
    pair.run("ours", "init -r L:R:@:1048576")
    assert pair.run("ours", "acquire -r L:R:@:1048576 -i 1 -g 1")[0] == 0
    for other in ("-i 1 -g 2", "-i 2 -g 1"):
        refused = pair.run("ours", f"release -r L:R:@:1048576 {other}")
        assert refused == (1, "release done -251\n")
    assert pair.run("ours", "release -r L:R:@:1048576") == (1, "release done -22\n")
    assert pair.run("ours", "release -r L:R:@:1048576 -i 1 -g 1") == (0, "release done 0\n")
    assert pair.run("ours", "acquire -r L:R:@:1048576 -i 2 -g 1")[0] == 0


def test_shared_release(pair: Pair) -> None:
    """A lease taken shared is given up shared."""
    pair.run("ours", "init -r L:R:@:1048576")
    assert pair.run("ours", "acquire -r L:R:@:1048576:SH -i 1 -g 1")[0] == 0
    assert " SH\n" in pair.run("ours", "dump @:1048576")[1]
    assert pair.run("ours", "release -r L:R:@:1048576:SH -i 1 -g 1")[0] == 0
    assert " SH\n" not in pair.run("ours", "dump @:1048576")[1]


def test_next_free(pair: Pair) -> None:
    """The first place behind an offset that holds nothing; the original knows no offset."""
    for number in (0, 1, 3):
        pair.run("ours", f"init -r L:R{number}:@:{number << 20}")
    assert pair.run("ours", "next_free @ -Z 512 -A 1M") == (0, f"{2 << 20}\n")
    assert pair.run("ours", "next_free @") == (0, f"{2 << 20}\n")
    assert pair.run("ours", "next_free @:3M") == (0, f"{4 << 20}\n")


@pytest.mark.parametrize("kind", KINDS)
def test_release_id(pair: Pair, kind: Kind) -> None:
    """A host id that was acquired by hand can be given up by hand."""
    pair.run(kind, "init -s L:1:@:0 -o 1")
    assert pair.run(kind, "acquire_id -s L:1:@:0 -e hostA -o 1")[0] == 0
    assert pair.run(kind, "release_id -s L:1:@:0 -e hostA -o 1") == (0, "release_id done 0\n")
    assert "timestamp N" in pair.run(kind, "read_leader -s L:1:@:0")[1]


def test_late_release_id(pair: Pair) -> None:
    """Ours does not free a host id that may be another's by now."""
    pair.run("ours", "init -s L:1:@:0 -o 1")
    assert pair.run("ours", "acquire_id -s L:1:@:0 -e hostA -o 1")[0] == 0
    late_s = time.monotonic() + 9  # more than 8 times the I/O time-out
    wait_until(lambda: time.monotonic() > late_s, 20.0, "the host id is of no use any more")
    assert pair.run("ours", "release_id -s L:1:@:0 -o 1") == (1, "release_id done -201\n")


def test_write_leader(pair: Pair, tmp_path: Path) -> None:
    """Fields are changed as a file says, and the rest of the record stays."""
    fields = tmp_path / "fields"
    fields.write_text("lver 7\nfoo 3\nlver\n\nflags 10\nresource_name Q\n  num_hosts 9 x\n")
    pair.both("init -r L:R:@:1048576")
    pair.both(f"write_leader -r L:R:@:1048576 -F {fields}")
    pair.compare_files("write_leader")
    for step in ("-r L:R:@:1048576 -F /nope", "-r L:R:@:1048576"):
        pair.both(f"write_leader {step}")
    pair.both("read_leader -r L:Q:@:1048576")


def test_write_leader_checksum(pair: Pair, tmp_path: Path) -> None:
    """Ours writes the checksum that it tells: the one given with -f 1, else the right one."""
    fields = tmp_path / "fields"
    fields.write_text("checksum 0x5\nowner_id 2\n")
    pair.run("ours", "init -s L:1:@:0")
    for force, code in ((0, 0), (1, 1)):
        done = pair.run("ours", f"write_leader -s L:2:@:0 -F {fields} -f {force}")
        assert done[0] == 0
        assert pair.run("ours", "read_leader -s L:2:@:0")[0] == code
