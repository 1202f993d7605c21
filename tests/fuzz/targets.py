"""What is given bytes from outside, each as a function of bytes that returns or finds a mistake.

A target lets pass the errors that are documented for such bytes, and nothing else: any other
exception, a wait without end, or more work than the input is worth, is a mistake. The tests run
them with hypothesis for a moment, tools/fuzz.py for as long as it is told.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import MagicMock

from paxoslease.daemon import commands, logs, status
from paxoslease.daemon.connection import RESOURCES_MAX, Call
from paxoslease.daemon.journal import Journal, read_journal, salvage
from paxoslease.daemon.logs import LogRing
from paxoslease.daemon.options import DaemonOptions
from paxoslease.daemon.refusal import Refusal
from paxoslease.daemon.restore import restore
from paxoslease.daemon.server import Daemon
from paxoslease.daemon.spaces import Space
from paxoslease.disk.areas import (
    delta_columns,
    find_entry,
    first_free_entry,
    lockspace_area,
    nonzero_host_sectors,
    resource_area,
    rindex_area,
    rindex_lease_area,
    used_entries,
)
from paxoslease.disk.decode import decode_device
from paxoslease.disk.layout import MIB, SIZES_512
from paxoslease.disk.records import (
    Where,
    bitmap_of,
    hosts_of_bitmap,
    parse_delta,
    parse_host_sector,
    parse_paxos,
    parse_request,
    parse_rindex_header,
    unpack_rindex_entry,
)
from paxoslease.engine.state import boot_identity, load_lease, load_membership
from paxoslease.errors import BadRecord, BadState, PaxosleaseError
from paxoslease.wire import sanlock, virtlock
from paxoslease.wire.xdr import XdrError

NOTES: Final[dict[str, dict[str, Any]]] = json.loads(
    Path(__file__).with_name("notes.json").read_text(encoding="utf-8")
)
NEED_MAX: Final = 16 * MIB
ANSWER_LIMIT_S: Final = 20.0


class Target(NamedTuple):
    """A function to be fuzzed, and inputs to begin with."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def _told(error: PaxosleaseError) -> None:
    """Demand that an error has something to say."""
    assert str(error)


# -- sanlock's protocol ------------------------------------------------------------------------

_DISK = sanlock.Disk(b"/nowhere/leasedisk", MIB)
_RESOURCE = sanlock.Resource(b"LS", b"R", (_DISK, _DISK), 1, 2, 3, 4)


def _request(command: sanlock.Command, payload: bytes = b"", data: int = 0) -> bytes:
    header = sanlock.Header(command, 0, sanlock.HEADER_BYTES + len(payload), data)
    return sanlock.pack_header(header) + payload


def _requests() -> tuple[bytes, ...]:
    command = sanlock.Command
    resource = sanlock.pack_resource(_RESOURCE, with_disks=True)
    space = sanlock.pack_lockspace(sanlock.Lockspace(b"LS", 1, 0, _DISK))
    rindex = sanlock.pack_rindex(sanlock.Rindex(b"LS", _DISK))
    payloads: dict[sanlock.Command, tuple[bytes, int]] = {
        command.ACQUIRE: (2 * resource + sanlock.pack_options(b"me"), 2),
        command.RELEASE: (sanlock.pack_resource(_RESOURCE, with_disks=False), 1),
        command.KILLPATH: (sanlock.pack_killpath(b"/nowhere/true", b"a\\ b"), 0),
        command.SET_LVB: (sanlock.pack_resource(_RESOURCE, with_disks=False) + b"value", 0),
        command.WRITE_RESOURCE: (resource, 0),
        command.SET_EVENT: (space + sanlock.pack_host_event(sanlock.HostEvent(2, 1, 1, 1)), 0),
        command.CREATE_RESOURCE: (rindex + sanlock.pack_rentry(sanlock.Rentry(b"R", 1)), 0),
    }
    found = [_request(one, *payloads.get(one, (space, 0))) for one in command]
    return (*found, _request(command.REGISTER) + _request(command.INQUIRE, data=7))


def requests(data: bytes) -> None:
    """Take requests apart as a connection does; every answer is bounded by what was sent."""
    while len(data) >= sanlock.HEADER_BYTES:
        header = sanlock.parse_header(data[: sanlock.HEADER_BYTES])
        rest = data[sanlock.HEADER_BYTES :]
        for most in (sanlock.RESOURCES_MAX, RESOURCES_MAX):
            payload = b""
            need = sanlock.payload_need(header, payload, most)
            while need > len(payload):
                assert need <= NEED_MAX, need
                if need > len(rest):
                    return
                payload = rest[:need]
                more = sanlock.payload_need(header, payload, most)
                assert more >= need, "the need shrinks"
                need = more
        _parse_payload(header, payload)
        data = rest[len(payload) :]


def _parse_payload(header: sanlock.Header, payload: bytes) -> None:
    size = len(payload)
    if header.command == sanlock.Command.ACQUIRE and header.data <= sanlock.RESOURCES_MAX:
        resources, options = sanlock.parse_resources(payload, header.data)
        assert len(resources) == header.data
        assert all(one.num_disks == len(one.disks) or not one.disks for one in resources)
        sanlock.parse_options(options)
    if size >= sanlock.RESOURCE_BYTES:
        one = sanlock.parse_resource(payload)
        again = sanlock.parse_resource(sanlock.pack_resource(one, with_disks=bool(one.disks)))
        assert again == one._replace(num_disks=len(one.disks) or one.num_disks)
    if size >= sanlock.LOCKSPACE_BYTES:
        space = sanlock.parse_lockspace(payload[: sanlock.LOCKSPACE_BYTES])
        assert sanlock.parse_lockspace(sanlock.pack_lockspace(space)) == space
        sanlock.parse_rindex(payload[: sanlock.RINDEX_BYTES])
    if size == 2 * sanlock.KILLPATH_BYTES:
        path, args = sanlock.parse_killpath(payload)
        assert sanlock.parse_killpath(sanlock.pack_killpath(path, args)) == (path, args)


class _Mistakes(logging.Handler):
    """Remembers what the daemon takes for a mistake of its own."""

    def __init__(self) -> None:
        super().__init__(logging.CRITICAL)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(self.format(record))


async def _parse_only(daemon: Daemon, call: Call) -> None:
    """Stand in for what would open the files that the fuzzer names."""
    if len(call.payload) >= sanlock.LOCKSPACE_BYTES:
        call.lockspace()
    if len(call.payload) >= sanlock.RESOURCE_BYTES:
        call.resource()
    raise Refusal(22)


def _daemon(directory: str) -> Daemon:
    journal = Journal(os.path.join(directory, "state"))
    daemon = Daemon(DaemonOptions(watchdog="none"), b"fuzz", journal, LogRing(ring_bytes=4096))
    handlers = dict.fromkeys(sanlock.Command, _parse_only)
    touching = (sanlock.Command.ADD_LOCKSPACE,)
    for table in (commands.HANDLERS, logs.HANDLERS, status.HANDLERS):
        handlers.update({key: value for key, value in table.items() if key not in touching})
    daemon.handle(handlers)
    return daemon


async def _converse(directory: str, data: bytes) -> None:
    """Send bytes to a daemon and read what it answers until it hangs up."""
    daemon = _daemon(directory)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen(1)
        serving = asyncio.ensure_future(daemon.serve(listener))
        await asyncio.sleep(0)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        daemon.admit(theirs)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await asyncio.gather(_send(loop, ours, data), _receive(loop, ours))
                while daemon.connections:
                    await asyncio.sleep(0)
        finally:
            ours.close()
            serving.cancel()
            await asyncio.wait([serving])
    assert not list(daemon.clients), "a client outlives its connection"


async def _send(loop: asyncio.AbstractEventLoop, ours: socket.socket, data: bytes) -> None:
    try:
        await loop.sock_sendall(ours, data)
        ours.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
            raise


async def _receive(loop: asyncio.AbstractEventLoop, ours: socket.socket) -> None:
    got = b""
    try:
        while piece := await loop.sock_recv(ours, 65536):
            got = (got + piece)[:4]
    except ConnectionResetError:
        return
    magic = struct.pack("<I", sanlock.MAGIC)
    assert got == magic[: len(got)], "what came back is no reply"


def connection(data: bytes) -> None:
    """Feed a connection of a daemon in this process; it must end, and no handler fall over."""
    mistakes = _Mistakes()
    logger = logging.getLogger("paxoslease")
    logger.addHandler(mistakes)
    try:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(_converse(directory, data))
    finally:
        logger.removeHandler(mistakes)
    assert mistakes.found == []


# -- what is on a disk -------------------------------------------------------------------------

_WHERE = Where("/nowhere", 0)


def records(data: bytes) -> None:
    """Parse one sector as every kind of record."""
    sector = data[:4096].ljust(4096, b"\0")
    for parse in (
        lambda: parse_delta(sector, _WHERE, b"LS"),
        lambda: parse_delta(sector[:512], _WHERE, None),
        lambda: parse_paxos(sector, _WHERE, b"LS", b"R"),
        lambda: parse_paxos(sector[:512], _WHERE, None, None),
        lambda: parse_host_sector(sector[:512], _WHERE),
        lambda: parse_request(sector[:512], _WHERE),
        lambda: parse_rindex_header(sector, _WHERE, b"LS"),
        lambda: parse_rindex_header(sector[:512], _WHERE, None),
    ):
        try:
            parse()
        except BadRecord as error:
            _told(error)
    unpack_rindex_entry(sector[:64])
    hosts = hosts_of_bitmap(bitmap_of(sector[:512]))
    assert all(1 <= host_id <= 2048 for host_id in hosts)


def _image() -> bytearray:
    lockspace, first = lockspace_area(b"LS", SIZES_512, 1)
    found = (
        first + lockspace[len(first) :],
        resource_area(b"LS", b"R", SIZES_512, 8),
        rindex_area(b"LS", SIZES_512, 2 * MIB),
        rindex_lease_area(b"LS", SIZES_512),
    )
    return bytearray(b"".join(found))


_IMAGE: Final = _image()


def patched(data: bytes) -> bytearray:
    """Return a formatted disk of four areas with patches: sector, place in it, length, bytes."""
    image = bytearray(_IMAGE)
    at = 0
    while at + 4 <= len(data):
        sector, place, length = struct.unpack_from("<HBB", data, at)
        piece = data[at + 4 : at + 4 + length]
        begin = (sector % (len(image) // 512)) * 512 + 2 * place
        image[begin : begin + len(piece)] = piece
        at += 4 + length
    return image[: len(_IMAGE)]


def areas(data: bytes) -> None:
    """Decode a damaged disk, and look at its areas as the protocols do."""
    image = patched(data)
    for found in decode_device(lambda at, n: bytes(image[at : at + n]), "/nowhere", len(image)):
        assert 0 <= found.offset < len(image)
        assert all(str(problem) for problem in found.problems)
    for at in range(0, len(image), MIB):
        area = image[at : at + MIB]
        columns = delta_columns(area, SIZES_512, b"LS", 1)
        assert len(columns.rows) == len(columns.names)
        nonzero_host_sectors(area, 512, 2000)
        most = int.from_bytes(area[40:44], "little")
        find_entry(area, SIZES_512, most, b"R")
        first_free_entry(area, SIZES_512, most)
        used_entries(area, SIZES_512, most)


# -- what a predecessor left -------------------------------------------------------------------


def journal(data: bytes) -> None:
    """Read a journal: lines as they come, or with the checksums that they ought to have."""
    lines = data[1:].split(b"\n")
    if data[:1] != b"\0":
        lines = [b"%08x %b" % (zlib.crc32(line), line) for line in lines]
    boot = json.dumps({"boot": boot_identity(), "key": "boot"}).encode()
    lines.append(b"%08x %b" % (zlib.crc32(boot), boot))
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "state")
        Path(path).write_bytes(b"\n".join(lines) + b"\n")
        try:
            found = read_journal(path)
        except BadState:
            found = None
        assert all(isinstance(value, dict) for value in (found or {}).values())
        salvage(path)


def states(data: bytes) -> None:
    """Load a membership and a lease from whatever JSON can say."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    for load in (load_membership, load_lease):
        try:
            load(value)
        except BadState as error:
            _told(error)


def restored(data: bytes) -> None:
    """Take over from a predecessor whose notes say anything; nobody is killed and nothing begun."""
    try:
        notes = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(notes, dict) or not all(isinstance(v, dict) for v in notes.values()):
        return  # read_journal returns nothing else
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_restore(directory, notes))


async def _restore(directory: str, notes: dict[str, dict[str, Any]]) -> None:
    daemon = _daemon(directory)

    def resume(wanted: sanlock.Lockspace, state: Any, claim: Any) -> Space:
        space = Space(1, wanted, state.timing, daemon.spaces._renewals())
        space.membership = MagicMock()  # the engine takes what it is given
        return space

    def start(work: Any) -> asyncio.Future[None]:
        work.close()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended.set_result(None)
        return ended

    daemon.spaces.resume = resume  # type: ignore[method-assign]
    daemon.spaces.start = start  # type: ignore[method-assign,assignment]
    try:
        await restore(daemon, notes, {}, {}, None)
    except PaxosleaseError as error:
        _told(error)


# -- virtlockd's protocol ----------------------------------------------------------------------


def virtlock_messages(data: bytes) -> None:
    """Take a message of libvirt's apart in every way."""
    for parse in (
        lambda: virtlock.parse_length(data),
        lambda: virtlock.parse_header(data),
        lambda: virtlock.parse_descriptor_count(data),
        lambda: virtlock.parse_failure(data),
        *(lambda p=procedure: virtlock.parse_call(p, data) for procedure in virtlock.Procedure),
    ):
        try:
            parse()
        except XdrError as error:
            _told(error)


def _calls() -> tuple[bytes, ...]:
    calls = (
        virtlock.Register(bytes(16), b"guest", 1, 7),
        virtlock.ResourceCall(virtlock.Procedure.ACQUIRE_RESOURCE, b"/nowhere", b"R"),
    )
    return tuple(virtlock.pack_call(call, 1) for call in calls)


def _text(value: object) -> bytes:
    return json.dumps(value).encode()


_ENTRY_KEYS: Final = [key for key in NOTES if key.startswith("e")]
_SPACE_KEY: Final = next(key for key in NOTES if key.startswith("s"))

TARGETS: Final[dict[str, Target]] = {
    "requests": Target(requests, _requests()),
    "connection": Target(connection, _requests()),
    "records": Target(records, tuple(bytes(_IMAGE[at : at + 512]) for at in (0, MIB, 2 * MIB))),
    "areas": Target(areas, (b"\x00\x00\x00\x04abcd", b"\x00\x08\x00\x10" + bytes(16))),
    "journal": Target(journal, (b"\1" + b"\n".join(map(_text, NOTES.values())), b"\0x")),
    "states": Target(
        states,
        (_text(NOTES[_SPACE_KEY]["membership"]), *(_text(NOTES[k]["lease"]) for k in _ENTRY_KEYS)),
    ),
    "restored": Target(restored, (_text(NOTES),)),
    "virtlock": Target(virtlock_messages, _calls()),
}
