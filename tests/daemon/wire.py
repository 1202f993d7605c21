"""sanlock's messages as the tests write and read them: a second, independent view.

Written from spec/wire-protocol.md only, so that a mistake in the program's own codec cannot hide
itself. Requests are built from parts, replies are told as lines of text in which every byte has
its place: what is not said by a field is shown as `left over`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple

MAGIC: Final = 0x04282010
HEADER_SIZE: Final = 32
OWN: Final = 0xFFFFFFFF  # data2: the sending connection itself


class Cmd(IntEnum):
    """The dispatch table of section 5."""

    REGISTER = 1
    ADD_LOCKSPACE = 2
    REM_LOCKSPACE = 3
    SHUTDOWN = 4
    STATUS = 5
    LOG_DUMP = 6
    ACQUIRE = 7
    RELEASE = 8
    INQUIRE = 9
    RESTRICT = 10
    REQUEST = 11
    ALIGN = 12
    EXAMINE_LOCKSPACE = 13
    EXAMINE_RESOURCE = 14
    HOST_STATUS = 15
    INQ_LOCKSPACE = 16
    KILLPATH = 17
    WRITE_LOCKSPACE = 18
    WRITE_RESOURCE = 19
    READ_LOCKSPACE = 20
    READ_RESOURCE = 21
    GET_LOCKSPACES = 22
    GET_HOSTS = 23
    READ_RESOURCE_OWNERS = 24
    SET_LVB = 25
    GET_LVB = 26
    CONVERT = 27
    VERSION = 28
    SHUTDOWN_WAIT = 29
    REG_EVENT = 30
    END_EVENT = 31
    SET_EVENT = 32
    SET_CONFIG = 33
    RENEWAL = 34
    FORMAT_RINDEX = 35
    UPDATE_RINDEX = 36
    LOOKUP_RINDEX = 37
    CREATE_RESOURCE = 38
    DELETE_RESOURCE = 39
    REBUILD_RINDEX = 40


NO_REPLY: Final = frozenset({Cmd.REGISTER, Cmd.SHUTDOWN})
STREAMS: Final = frozenset({Cmd.STATUS, Cmd.HOST_STATUS, Cmd.RENEWAL})

# Flags of section 7.
LVER, NUM_HOSTS, SHARED, PERSISTENT = 1, 2, 4, 8
SIZES_512_1M: Final = 0x110
SIZES_4K_8M: Final = 0x280

# -- requests ----------------------------------------------------------------------------------


def request(
    cmd: int,
    payload: bytes = b"",
    *,
    flags: int = 0,
    data: int = 0,
    data2: int = 0,
    seq: int = 0,
    length: int | None = None,
    magic: int = MAGIC,
    version: int = 1,
) -> bytes:
    """Build a request; `length` only where it must lie."""
    length = HEADER_SIZE + len(payload) if length is None else length
    words = (magic, version, cmd, flags, length, seq, data & OWN, data2 & OWN)
    return struct.pack("<8I", *words) + payload


def disk(path: str | os.PathLike[str], offset: int = 0) -> bytes:
    """Build a disk."""
    return struct.pack("<1024sQII", os.fsencode(path), offset, 0, 0)


def lockspace(
    name: str | bytes,
    host_id: int = 0,
    path: str | os.PathLike[str] = "",
    offset: int = 0,
    flags: int = 0,
) -> bytes:
    """Build a lockspace."""
    name = os.fsencode(name)
    return struct.pack("<48sQII", name, host_id, flags, 0) + disk(path, offset)


def resource(
    space: str | bytes,
    name: str | bytes,
    disks: int = 0,
    *,
    flags: int = 0,
    lver: int = 0,
    data32: int = 0,
) -> bytes:
    """Build a resource struct that announces `disks` disks."""
    names = (os.fsencode(space), os.fsencode(name))
    return struct.pack("<48s48sQQIIII", *names, lver, 0, data32, 0, flags, disks)


def lease(
    space: str | bytes,
    name: str | bytes,
    path: str | os.PathLike[str],
    offset: int,
    *,
    flags: int = 0,
    lver: int = 0,
    data32: int = 0,
) -> bytes:
    """Build a resource with one disk."""
    head = resource(space, name, 1, flags=flags, lver=lver, data32=data32)
    return head + disk(path, offset)


def options(owner: str = "") -> bytes:
    """Build the options that end an ACQUIRE."""
    return struct.pack("<48sII", os.fsencode(owner), 0, 0)


def acquire(*leases: bytes, pid: int = OWN, flags: int = 0, owner: str = "") -> bytes:
    """Build an ACQUIRE."""
    payload = b"".join(leases) + options(owner)
    return request(Cmd.ACQUIRE, payload, flags=flags, data=len(leases), data2=pid)


def release(*names: bytes, pid: int = OWN, flags: int = 0) -> bytes:
    """Build a RELEASE of resources without disks."""
    return request(Cmd.RELEASE, b"".join(names), flags=flags, data=len(names), data2=pid)


def convert(name: bytes, *, pid: int = OWN, flags: int = 0) -> bytes:
    """Build a CONVERT."""
    return request(Cmd.CONVERT, name, flags=flags, data2=pid)


def inquire(pid: int = OWN) -> bytes:
    """Build an INQUIRE."""
    return request(Cmd.INQUIRE, data2=pid)


def killpath(path: str, args: str, *, flags: int = 0, pid: int = OWN) -> bytes:
    """Build a KILLPATH."""
    payload = struct.pack("<128s128s", os.fsencode(path), os.fsencode(args))
    return request(Cmd.KILLPATH, payload, flags=flags, data2=pid)


def host_event(host_id: int, generation: int = 0, event: int = 0, data: int = 0) -> bytes:
    """Build a host event."""
    return struct.pack("<4Q", host_id, generation, event, data)


def rindex(
    space: str,
    path: str | os.PathLike[str],
    offset: int,
    *,
    flags: int = SIZES_512_1M,
    max_resources: int = 0,
) -> bytes:
    """Build a resource index."""
    return struct.pack("<IIQ48s", flags, max_resources, 0, os.fsencode(space)) + disk(path, offset)


def rentry(name: str = "", offset: int = 0) -> bytes:
    """Build an index entry."""
    return struct.pack("<48sQII", os.fsencode(name), offset, 0, 0)


# -- replies -----------------------------------------------------------------------------------


class Header(NamedTuple):
    """A header; `data` and `data2` signed."""

    magic: int
    version: int
    cmd: int
    flags: int
    length: int
    seq: int
    data: int
    data2: int


def parse_header(reply: bytes) -> Header:
    """Take the first 32 bytes apart."""
    return Header(*struct.unpack_from("<6I2i", reply))


def result(reply: bytes) -> int:
    """Return the result of a reply."""
    return parse_header(reply).data


def rest_size(cmd: int, header: Header) -> int | None:
    """Return how many bytes follow the header; None: until the end of the file."""
    if cmd in STREAMS:
        return None
    if cmd == Cmd.LOG_DUMP:
        return max(0, header.data)
    return max(0, header.length - HEADER_SIZE)


class Masks:
    """Which words of a reply vary from run to run, and what is shown instead."""

    # Keys of the status texts that hold times, descriptors, slots, pids or running numbers.
    varying: Final = frozenset(
        {"ci", "fd", "helper_pid", "helper_kill_fd", "helper_last_status", "helper_full_count"}
        | {"monotime", "space_id", "res_id", "token_id", "acquire_last_attempt"}
        | {"acquire_last_success", "renewal_last_attempt", "renewal_last_success", "last_check"}
        | {
            "last_live",
            "last_req",
            "reused",
            "timestamp",
            "read_ms",
            "write_ms",
            "kill_last",
            "kill_count",
        }
    )

    def __init__(self) -> None:
        self._texts: list[tuple[str, str]] = []
        self._pids: dict[int, str] = {}
        self._more_varying: frozenset[str] = frozenset()

    def forget_last_commands(self) -> None:
        """Show neither last commands nor client names: a restart sets them back."""
        self._more_varying = frozenset({"cmd_last"})

    def hide(self, key: str) -> None:
        """Never show an item of the status texts."""
        self._more_varying |= {key}

    def client_name(self, shown: str, pid: str) -> str:
        """Show the display name of a client."""
        is_reset = "cmd_last" in self._more_varying and shown == "''"
        return repr(pid) if is_reset else shown

    def add_text(self, text: str, shown: str) -> None:
        """Show `shown` wherever `text` stands, the longest first."""
        self._texts.append((text, shown))
        self._texts.sort(key=lambda pair: -len(pair[0]))

    def add_pid(self, pid: int, shown: str) -> None:
        """Show a process by name."""
        self._pids[pid] = shown

    def pid(self, pid: int) -> str:
        """Show a pid."""
        return self._pids.get(pid, str(pid))

    def text(self, text: str) -> str:
        """Show a text."""
        for old, new in self._texts:
            text = text.replace(old, new)
        if text.isdecimal():
            text = self.pid(int(text))
        return text

    def item(self, item: str) -> str:
        """Show a `key=value` item of a status text."""
        key, equals, value = item.partition("=")
        if (
            key.endswith("_ms")
            or key in self._more_varying
            or (key in self.varying and value not in ("0", "-1"))
        ):
            return f"{key}=*"
        return f"{key}{equals}{self.text(value)}"


def name_text(field: bytes, masks: Masks) -> str:
    """Show a NUL-terminated field, and what stands behind the NUL if anything does."""
    name, _, tail = field.partition(b"\0")
    shown = masks.text(name.decode(errors="backslashreplace"))
    junk = tail.rstrip(b"\0")
    return f"{shown!r} junk {junk.hex()}" if junk else repr(shown)


def time_text(seconds: int) -> str:
    """Show a time: whether there is one."""
    return "*" if seconds else "0"


def _disk(data: bytes, masks: Masks) -> str:
    path, offset, pad1, pad2 = struct.unpack("<1024sQii", data)
    pads = f" pads {pad1},{'fd' if pad2 > 0 else pad2}" if pad1 or pad2 else ""
    return f"{name_text(path, masks)}:{offset}{pads}"


def _lockspace(data: bytes, masks: Masks) -> str:
    name, host_id, flags = struct.unpack_from("<48sQI", data)
    # The word at 60 is left as it is: 3.8.5 sends stale bytes there (8.4).
    shown = f"lockspace {name_text(name, masks)} host_id={host_id} flags={flags:#x}"
    return f"{shown} {_disk(data[64:], masks)}"


def _resource(data: bytes, masks: Masks) -> str:
    space, name, lver, data64, data32, unused, flags, disks = struct.unpack("<48s48sQQIIII", data)
    rest = f"lver={lver} data64={data64} data32={data32} unused={unused}"
    names = f"{name_text(space, masks)} {name_text(name, masks)}"
    return f"resource {names} {rest} flags={flags:#x} disks={disks}"


def _host(data: bytes) -> str:
    host_id, generation, timestamp, io_timeout, flags = struct.unpack("<QQQII", data)
    seen = f"timestamp={time_text(timestamp)} io_timeout={io_timeout} flags={flags}"
    return f"host {host_id} generation={generation} {seen}"


def _rentry(data: bytes, masks: Masks) -> str:
    name, offset, flags, unused = struct.unpack("<48sQII", data)
    return f"rentry {name_text(name, masks)} offset={offset} flags={flags} unused={unused}"


def _pieces(data: bytes, size: int, show: Callable[[bytes], str]) -> list[str]:
    whole = len(data) - len(data) % size
    lines = [show(data[at : at + size]) for at in range(0, whole, size)]
    return lines + ([f"left over: {data[whole:].hex()}"] if data[whole:] else [])


STATE_TYPES: Final = {1: "daemon", 2: "client", 3: "lockspace", 4: "resource", 5: "host"}


def states(data: bytes, masks: Masks) -> list[str]:
    """Tell the records of a status stream (section 14).

    Clients that are not registered come before the others, and those of earlier requests are left
    out: whether they are there, and in which slots, depends on when their ends were noticed.
    """
    records: list[list[str]] = []
    at = 0
    while len(data) - at >= 80:
        kind, flags, data32, data64, name, size = struct.unpack_from("<IIi4xQ48sI", data, at)
        text = data[at + 80 : at + 80 + size]
        at += 80 + size
        number = masks.pid(data32) if kind in (2, 4) else data32
        number64 = time_text(data64) if kind in (5, 6) else data64
        told = name_text(name, masks)
        if kind == 2:
            told = masks.client_name(told, str(number))
        shown = f"{STATE_TYPES.get(kind, kind)} {told} {number} {number64}"
        end = "" if text.endswith(b"\0") and text.count(b"\0") == 1 else " badly ended"
        items = text.rstrip(b"\0").decode(errors="backslashreplace").split(" ")
        record = [f"{shown} flags={flags}{end}"]
        record.append("    " + " ".join(masks.item(item) for item in items))
        if kind == 3:
            record.append("    " + _lockspace(data[at : at + 1104], masks))
            at += 1104
        elif kind == 4:
            record.append("    " + _resource(data[at : at + 128], masks))
            disks = int.from_bytes(data[at + 124 : at + 128], "little")
            at += 128
            for _ in range(disks):
                record.append("    disk " + _disk(data[at : at + 1040], masks))
                at += 1040
        records.append(record)
    left_over = [[f"left over: {data[at:].hex()}"]] if data[at:] else []
    return [line for record in _in_order(records) + left_over for line in record]


def _in_order(records: list[list[str]]) -> list[list[str]]:
    clients = [record for record in records if record[0].startswith("client ")]
    if not clients:
        return records
    first = records.index(clients[0])
    known = {f"client {name!r}" for name in ("helper", "listener", "status")}
    others = [record for record in clients if " pid=-1 " not in record[1]]
    unregistered = [record for record in clients if record not in others]
    lasting = [record for record in unregistered if record[0].rsplit(" ", 3)[0] in known]
    return records[:first] + lasting + others + records[first + len(clients) :]


def _renewals(data: bytes, masks: Masks) -> list[str]:
    """Tell a renewal history, whose length depends on when it was asked for."""
    lines = states(data, masks)
    return [line for at, line in enumerate(lines) if line not in lines[:at]]


def tell(cmd: int, reply: bytes, masks: Masks) -> list[str]:
    """Return a reply as lines in which nothing varies from run to run."""
    if len(reply) < HEADER_SIZE:
        return [f"short reply: {reply.hex()}"] if reply else ["no reply"]
    header, rest = parse_header(reply), reply[HEADER_SIZE:]
    is_log = cmd == Cmd.LOG_DUMP
    shown = [
        f"result {'bytes of text' if is_log and header.data == len(rest) else header.data}",
        f"data2 {header.data2}" if cmd != Cmd.VERSION else f"version {header.data2:#x}",
    ]
    if (header.magic, header.version, header.cmd) != (MAGIC, 1, cmd):
        shown.append(f"magic {header.magic:#x} version {header.version:#x} cmd {header.cmd}")
    if header.flags or header.seq:
        shown.append(f"flags {header.flags:#x} seq {header.seq}")
    # A text holds a path, and that is longer or shorter with each run.
    shown.append(f"length {'*' if cmd == Cmd.INQUIRE and header.length > 40 else header.length}")
    return [", ".join(shown), *("  " + line for line in _body(cmd, rest, masks))]


def _body(cmd: int, rest: bytes, masks: Masks) -> list[str]:
    match cmd:
        case Cmd.STATUS | Cmd.HOST_STATUS:
            return states(rest, masks)
        case Cmd.RENEWAL:
            return _renewals(rest, masks)
        case Cmd.LOG_DUMP:
            return ["log text"] if rest and not rest.endswith((b"\n", b"\0")) else ["no log text"]
        case Cmd.INQUIRE:
            return [masks.text(repr(rest.decode(errors="backslashreplace")))] if rest else []
        case Cmd.GET_LOCKSPACES | Cmd.READ_LOCKSPACE:
            return _pieces(rest, 1104, lambda data: _lockspace(data, masks))
        case Cmd.GET_HOSTS:
            return _pieces(rest, 32, _host)
        case Cmd.READ_RESOURCE:
            return _pieces(rest, 128, lambda data: _resource(data, masks))
        case Cmd.READ_RESOURCE_OWNERS:
            owners = _pieces(rest[128:], 32, _host)
            return [*_pieces(rest[:128], 128, lambda data: _resource(data, masks)), *owners]
        case _ if Cmd.FORMAT_RINDEX <= cmd <= Cmd.REBUILD_RINDEX:
            return _pieces(rest, 64, lambda data: _rentry(data, masks))
        case _:
            data = rest.rstrip(b"\0")
            return [f"{len(rest)} bytes: {data.hex()}"] if rest else []
