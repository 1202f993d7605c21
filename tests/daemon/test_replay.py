"""Known answers: exchanges recorded with the real sanlock 3.8.5, asked again in the same order.

`data/wire.jsonl.gz` holds one exchange per line (spec/wire-protocol.md 20). Played again are those
of one host that need no fault on the disk. Paths and pids are put in place of the recorded ones,
leases that the recording had from before are formatted first, and replies are compared as lines
in which times, descriptors and the like are masked.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.daemon import wire
from tests.daemon.compare import shown_difference
from tests.daemon.daemons import Kind, require
from tests.daemon.stage import MIB, Client, Host, Stage
from tests.daemon.wire import Cmd, request

RECORDED: Final = Path(__file__).parent / "data" / "wire.jsonl.gz"
FILES: Final = {"leases": 40, "leasesF": 4, "leasesE": 24, "da": 2, "db": 2, "dc": 2}
PID: Final = 25007
FORMATTED_BEFORE: Final = (
    ("R3", 3),
    ("R4", 4),
    ("R5", 5),
    ("R6", 6),
)  # in `leases`, formatted long before
LAST: Final = "rebuild_rindex/no-lockspace"

# Not asked again, and why.
LEFT_OUT: Final = {
    "log_dump/fresh-daemon": "the text of the log is free",
    "framing/unknown-command-99": "whether such a connection stays open is not for clients to see",
    "framing/bad-magic": "the same",
    "framing/proto-major-1": "the same",
    "inquire/space-in-path": "the recording does not tell what was held",
}
# The real one leaves bytes of the request unread.
UNREAD: Final = {"write_resource/five-disks"}


def _lease(name: str, area: int, flags: int = 0, path: str = "/mnt/leases") -> bytes:
    return wire.lease("LS1", name, path, area * MIB, flags=flags)


# What was done before an exchange without having been recorded.
BEFORE: Final[dict[str, tuple[Any, ...]]] = {
    "get_hosts/own-host-only-after-first-renewal": ("ready",),
    "get_lvb/persisted": ("take with value", _lease("R6", 6)),
    "release/rename": ("take", _lease("R4", 4)),
    "read_resource_owners/ex": ("take", _lease("R1", 1), _lease("R2", 2, wire.SHARED)),
    "acquire/three-disks": ("empty",),
    "acquire/two-of-three-disks-missing": ("empty",),
    "inquire/escaped-colon": ("empty", _lease("RW", 1, 0, "/mnt/co:lon")),
    "acquire/name-48-chars": ("empty",),
    "acquire/persistent-ex-and-sh": ("empty",),
    "status/orphans": ("hang up",),
    "acquire/orphan-only-none-exists": ("format", "R4", 4),
    "release/orphan-one": (
        "orphan",
        _lease("R1", 1, wire.PERSISTENT),
        _lease("R2", 2, wire.PERSISTENT),
    ),
}
# Where ours answers otherwise, on purpose (spec/wire-protocol.md 21).
BETTER: Final[dict[str, Sequence[str]]] = {
    # 3.8.5 takes a new lease where there is no orphan.
    "acquire/orphan-only-none-exists": ["result -2, data2 0, flags 0x4 seq 0, length 32"],
    # 3.8.5 enters a name twice.
    "create_resource/duplicate-name": [
        "result -17, data2 0, length 96",
        "  rentry '' offset=0 flags=0 unused=0",
    ],
    # 3.8.5 runs on into the fields behind the name.
    "inquire/name-48-chars": [
        "result 0, data2 1, length *",
        f"  'LS1:{'N' * 48}:$DIR/da:1048576:1\\x00'",
    ],
}


class Exchange(NamedTuple):
    """One recorded exchange."""

    name: str
    cmd: int
    is_registered: bool
    request: bytes
    reply: bytes
    closed: bool | None


def recorded() -> Iterator[Exchange]:
    """Read what can be asked again, in the order of the recording."""
    with gzip.open(RECORDED, "rt") as file:
        for line in file:
            row = json.loads(line)
            if row["source"] != "crafted" or row["host"] != "host1":
                continue
            data = (bytes.fromhex(row["request_hex"]), bytes.fromhex(row["reply_hex"]))
            is_registered = row["conn"].startswith("registered")
            if row["name"] not in LEFT_OUT and row["cmd"] != Cmd.REGISTER:
                yield Exchange(row["name"], row["cmd"], is_registered, *data, row["closed"])
            if row["name"] == LAST:
                return


class Replay:
    """A daemon, the client that stands for the recorded pid, and the files."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.host: Host = stage.host("host1")
        for name, mib in FILES.items():
            stage.file(name, mib)
        for name, area in FORMATTED_BEFORE:
            self._format(name, stage.directory / "leases", area)
        self._format("RW", stage.file("co:lon", 2), 1)
        self._client: Client = self.host.client("registered", opens=False)
        self._at: int | None = None
        self.then = wire.Masks()
        self.then.add_text("/mnt", "$DIR")
        self.then.add_pid(PID, "<registered>")

    def _format(self, name: str, path: Path, area: int) -> None:
        lease = wire.lease("LS1", name, path, area * MIB, flags=wire.SIZES_512_1M)
        self.host.quietly(request(Cmd.WRITE_RESOURCE, lease))

    def asked(self, recorded_request: bytes) -> bytes:
        """Put our paths and pid into a recorded request."""
        data = bytearray(recorded_request)
        for found in re.finditer(rb"/mnt/[ -~]*", recorded_request):
            place = bytes(self.stage.directory) + found[0].removeprefix(b"/mnt")
            data[found.start() : found.start() + 1024] = place.ljust(1024, b"\0")
        assert len(data) == len(recorded_request)
        if wire.parse_header(recorded_request).data2 == PID:
            data[28:32] = struct.pack("<I", self._client.pid)
        return bytes(data)

    def difference(self, exchange: Exchange) -> str:
        """Ask again and return what is different from the recorded reply."""
        if exchange.name in BEFORE:
            self._prepare(*BEFORE[exchange.name])
        step, data = exchange.name, self.asked(exchange.request)
        probes = step not in UNREAD
        if exchange.is_registered:
            # No probe: STATUS tells the last command of a registered connection.
            self._client.ask(step, data, at=self._line(), probes=False)
        else:
            self.host.ask(step, data, probes=probes)
        seen = self.stage.notes[-1].lines
        told = [self.then.text(line) for line in self.meant(exchange)]
        if exchange.is_registered or not probes:
            told.append("then not looked at")
        else:
            told.append(f"then {'closed' if exchange.closed else 'open'}")
        return shown_difference(step, "recorded", tuple(told), "now", seen)

    def meant(self, exchange: Exchange) -> list[str]:
        """Tell the recorded reply, or the better one of ours."""
        if self.stage.kind == "ours" and exchange.name in BETTER:
            return list(BETTER[exchange.name])
        return wire.tell(exchange.cmd, exchange.reply, self.then)

    def _line(self) -> int:
        """Return the registered connection, made when it is needed."""
        if self._at is None:
            self._at = self._client.open()
            self._client.register(self._at)
        return self._at

    def _prepare(self, do: str, *what: Any) -> None:
        """Do what the recording does not show."""
        match do:
            case "ready":
                self.host.await_hosts("LS1")
            case "format":
                self._format(what[0], self.stage.directory / "leases", what[1])
            case "hang up":
                self._hang_up()
            case "orphan":
                self._hang_up()
                self._take(*what)
                self._hang_up()
            case "empty":
                self._client.quietly(wire.release(flags=1), at=self._line())
                self._take(*what)
            case _:
                self._take(*what, flags=1 if do == "take with value" else 0)

    def _take(self, *leases: bytes, flags: int = 0) -> None:
        for lease in leases:
            wanted = self.asked(wire.acquire(lease, flags=flags))
            reply = self._client.quietly(wanted, at=self._line(), probes=False)
            assert reply, f"no answer before {self.stage.notes[-1]}"
            assert wire.result(reply) == 0, f"{wire.result(reply)} for {lease[:60]!r}"

    def _hang_up(self) -> None:
        self._client.close(self._line())
        self._at = None
        self._client.await_unknown()
        status = request(Cmd.STATUS)
        self.stage.until(lambda: b"list=rem" not in self.host.quietly(status), "all is released")


@pytest.mark.parametrize("kind", [pytest.param("real", marks=pytest.mark.peer), "ours"])
def test_recorded_answers_come_again(kind: Kind, tmp_path: Path) -> None:
    """What the real daemon answered once, it and ours answer again."""
    require(kind)
    with Stage(kind, tmp_path / "s") as stage:
        replay = Replay(stage)
        found = [replay.difference(exchange) for exchange in recorded()]
    assert len(found) > 150
    different = "\n".join(text for text in found if text)
    assert not different, f"\n{different}"
