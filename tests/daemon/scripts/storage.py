"""Commands that need no joined lockspace: framing, version, log, formatting and reading."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tests.daemon import wire
from tests.daemon.stage import MIB, Differs, Host, Stage
from tests.daemon.wire import Cmd, request


def framing(stage: Stage) -> None:
    """Headers that are wrong, cut, split and joined."""
    host = stage.host("one")
    host.ask("version", request(Cmd.VERSION))
    host.ask("version, fields are not echoed", request(Cmd.VERSION, flags=5, seq=77, data=7))
    host.ask("version of another major", request(Cmd.VERSION, version=1 << 16))
    space = wire.lockspace("LS", 1, "/nowhere")
    host.ask("seq and flags are echoed", request(Cmd.INQ_LOCKSPACE, space, seq=9, flags=0x100))
    host.ask("minor version", request(Cmd.INQ_LOCKSPACE, space, version=0xFFFF))
    host.ask("version 0", request(Cmd.INQ_LOCKSPACE, space, version=0))
    for length in (32, 99999):
        host.ask(
            f"length {length} is not believed", request(Cmd.INQ_LOCKSPACE, space, length=length)
        )
    for step, sent in {
        "unknown command 0": request(0),
        "unknown command 41": request(41),
        "unknown command 99": request(99),
        "another magic": request(Cmd.VERSION, magic=0x12345678),
        "another major version": request(Cmd.GET_LOCKSPACES, version=1 << 16),
    }.items():
        line = host.line()
        line.send(sent)
        differs = Differs(
            "3.8.5 drops the header and lets the client wait for ever (21.2)",
            real=["then open"],
            ours=["then closed"],
        )
        stage.see(step, [f"then {line.probe()}"], differs=differs)
    line = host.line()
    for byte in request(Cmd.INQ_LOCKSPACE, space):
        line.send(bytes([byte]))
    reply, how = line.receive(32)
    stage.see("sent byte by byte", [*wire.tell(Cmd.INQ_LOCKSPACE, reply, stage.masks), how])
    line.send(request(Cmd.VERSION) * 3)
    reply, how = line.receive(96)
    stage.see("three at once", [reply.hex(), how, line.probe()])
    for step, cut in {"in the header": 10, "after the header": 32, "in the payload": 500}.items():
        line = host.line()
        line.send(request(Cmd.INQ_LOCKSPACE, space)[:cut])
        line.end_sending()
        reply, how = line.receive(None)
        stage.see(f"cut {step}", [*wire.tell(Cmd.INQ_LOCKSPACE, reply, stage.masks), how])
    line = host.line()
    line.send(request(Cmd.ALIGN, wire.disk("/nowhere")))
    line.end_sending()
    reply, how = line.receive(None)
    stage.see("half-closed after the request", [*wire.tell(Cmd.ALIGN, reply, stage.masks), how])


def alone(stage: Stage) -> None:
    """What a fresh daemon tells about itself, and its files."""
    host = stage.host("one")
    host.ask("no lockspaces", request(Cmd.GET_LOCKSPACES))
    host.ask("log", request(Cmd.LOG_DUMP))
    for filter_type in (0, 1, 2, 3, 9):
        host.ask(f"status {filter_type}", request(Cmd.STATUS, data=filter_type, data2=9, seq=3))
    host.ask("restrict on an unregistered connection", request(Cmd.RESTRICT, flags=2, data2=-1))
    restricted = host.line()
    restricted.send(request(Cmd.RESTRICT, flags=1, data2=-1))
    reply, how = restricted.receive(32)
    stage.see("restrict all", [*wire.tell(Cmd.RESTRICT, reply, stage.masks), how])
    restricted.send(request(Cmd.VERSION))
    stage.see("a restricted connection", [str(restricted.receive(32, limit_s=1.0))])
    _no_lockspace(host)
    _files(stage, host)


def _no_lockspace(host: Host) -> None:
    """Every command that wants a lockspace, without one."""
    space = wire.lockspace("LS", 1, "/nowhere")
    event = wire.host_event(1)
    for cmd, payload in {
        Cmd.INQ_LOCKSPACE: space,
        Cmd.REM_LOCKSPACE: space,
        Cmd.GET_HOSTS: space,
        Cmd.SET_CONFIG: space,
        Cmd.SET_EVENT: space + event,
        Cmd.REG_EVENT: space + event,
        Cmd.END_EVENT: space,
        Cmd.EXAMINE_LOCKSPACE: space,
        Cmd.EXAMINE_RESOURCE: wire.resource("LS", "R"),
        Cmd.REQUEST: wire.lease("LS", "R", "/nowhere", 0, lver=1),
        Cmd.SET_LVB: wire.resource("LS", "R") + b"value",
        Cmd.GET_LVB: wire.resource("LS", "R"),
        Cmd.LOOKUP_RINDEX: wire.rindex("LS", "/nowhere", 0) + wire.rentry("r"),
        Cmd.UPDATE_RINDEX: wire.rindex("LS", "/nowhere", 0) + wire.rentry("r"),
        Cmd.CREATE_RESOURCE: wire.rindex("LS", "/nowhere", 0) + wire.rentry("r"),
        Cmd.DELETE_RESOURCE: wire.rindex("LS", "/nowhere", 0) + wire.rentry("r"),
        Cmd.REBUILD_RINDEX: wire.rindex("LS", "/nowhere", 0),
    }.items():
        data = 1 if cmd == Cmd.SET_CONFIG else 0
        host.ask(f"{cmd.name} without the lockspace", request(cmd, payload, data=data))
    # As the command sends them, with a length that leaves the payload out.
    for cmd in (Cmd.HOST_STATUS, Cmd.RENEWAL):
        host.ask(f"{cmd.name} without the lockspace", request(cmd, space, length=32))
    nameless = wire.lockspace("", 1, "/nowhere")
    for cmd in (Cmd.REG_EVENT, Cmd.SET_EVENT):
        host.ask(f"{cmd.name} without a name", request(cmd, nameless + event))
    host.ask("END_EVENT without a name", request(Cmd.END_EVENT, nameless))
    host.ask("SET_CONFIG with an odd value", request(Cmd.SET_CONFIG, space, data=3))


def _files(stage: Stage, host: Host) -> None:
    """Socket, pid file and the lock that a second daemon meets."""
    run_dir = host.daemon.run_dir
    for name in ("sanlock.sock", "sanlock.pid"):
        found = (run_dir / name).stat()
        owner = f"{found.st_uid}:{found.st_gid}"
        stage.see(f"file {name}", [stat.filemode(found.st_mode), owner])
    pid_file = run_dir / "sanlock.pid"
    stage.see("pid file", [stage.masks.text(line) for line in pid_file.read_text().splitlines()])
    status = os.spawnve(
        os.P_WAIT, host.daemon.command[0], [*host.daemon.command, "-S", "-1"], host.daemon.env
    )
    stage.see("a second daemon in the run directory", [f"exit {status}"])
    host.ask("the first one goes on", request(Cmd.VERSION))


def formatting(stage: Stage) -> None:
    """Write and read lockspaces and resources, right and wrong."""
    host = stage.host("one")
    path = stage.file("leases", 16)
    wide = stage.file("wide", 24)
    nowhere = stage.directory / "nowhere"
    sizes = wire.SIZES_512_1M
    spaces: dict[str, tuple[Path | str, int, int, int]] = {
        "512/1M": (path, 0, sizes, 1),
        "default sizes": (path, MIB, 0, 0),
        "io_timeout above 8 bits": (path, 2 * MIB, sizes, 300),
        "4K/8M": (wide, 0, wire.SIZES_4K_8M, 2),
        "sector flag alone": (path, 3 * MIB, 0x100, 1),
        "align flag alone": (path, 3 * MIB, 0x10, 1),
        "impossible pair": (path, 3 * MIB, 0x120, 1),
        "no path": ("", 0, sizes, 1),
        "no file": (nowhere, 0, sizes, 1),
        "a directory": (stage.directory, 0, sizes, 1),
        "unaligned": (path, 3 * MIB + 100, sizes, 1),
        "beyond the end": (path, 100 * MIB, sizes, 1),
    }
    for step, (where, offset, flags, io_timeout) in spaces.items():
        payload = wire.lockspace("LS", 7, where, offset, flags)
        host.ask(
            f"write lockspace, {step}", request(Cmd.WRITE_LOCKSPACE, payload, data2=io_timeout)
        )
    stage.disk("lockspace 512/1M", path, 0)
    stage.disk("lockspace with the default", path, MIB)
    stage.disk("lockspace with a long io_timeout", path, 2 * MIB)
    stage.disk("lockspace 4K/8M", wide, 0, sector_size=4096)
    for step, where, offset, host_id, name in (
        ("any name, host 1", path, 0, 0, ""),
        ("host 3", path, 0, 3, "LS"),
        ("host 2001", path, 0, 2001, "LS"),
        ("4K/8M", wide, 0, 1, "LS"),
        ("long io_timeout", path, 2 * MIB, 1, "LS"),
        ("another name", path, 0, 1, "XX"),
        ("nothing there", path, 5 * MIB, 1, "LS"),
        ("no file", nowhere, 0, 1, "LS"),
        ("no path", "", 0, 1, "LS"),
        ("beyond the end", path, 300 * MIB, 1, "LS"),
        ("unaligned", path, 100, 1, "LS"),
    ):
        payload = wire.lockspace(name, host_id, where, offset, 0x200)
        host.ask(f"read lockspace, {step}", request(Cmd.READ_LOCKSPACE, payload))
    _resources(stage, host, path, wide)
    for step, disk in {"file": str(path), "no file": str(nowhere), "": "", "dir": "/tmp"}.items():
        host.ask(f"align of {step!r}", request(Cmd.ALIGN, wire.disk(disk)))


def _resources(stage: Stage, host: Host, path: Path, wide: Path) -> None:
    write, read, sizes = Cmd.WRITE_RESOURCE, Cmd.READ_RESOURCE, wire.SIZES_512_1M
    nowhere = stage.directory / "nowhere"
    for step, payload, data, flags in (
        ("512/1M", wire.lease("LS", "R1", path, 4 * MIB, flags=sizes), 0, 0),
        ("default sizes", wire.lease("LS", "R2", path, 5 * MIB), 0, 0),
        ("num_hosts", wire.lease("LS", "R3", path, 6 * MIB, flags=sizes), 9, 0),
        ("too many hosts", wire.lease("LS", "R4", path, 7 * MIB, flags=sizes), 3000, 0),
        ("cleared", wire.lease("LS", "R5", path, 8 * MIB, flags=sizes), 0, 1),
        ("4K/8M", wire.lease("LS", "R6", wide, 8 * MIB, flags=wire.SIZES_4K_8M), 0, 0),
        ("no disks", wire.resource("LS", "R", 0, flags=sizes), 0, 0),
        ("five disks", wire.resource("LS", "R", 5) + wire.disk(path) * 5, 0, 0),
        ("no file", wire.lease("LS", "R", nowhere, 0, flags=sizes), 0, 0),
        ("no path", wire.lease("LS", "R", "", 0, flags=sizes), 0, 0),
        ("a directory", wire.lease("LS", "R", stage.directory, 0, flags=sizes), 0, 0),
        ("align flag alone", wire.lease("LS", "R", path, 9 * MIB, flags=0x10), 0, 0),
        ("unaligned", wire.lease("LS", "R", path, 9 * MIB + 100, flags=sizes), 0, 0),
        ("beyond the end", wire.lease("LS", "R", path, 100 * MIB, flags=sizes), 0, 0),
    ):
        sent = request(write, payload, data=data, flags=flags)
        host.ask(f"write resource, {step}", sent, probes=step != "five disks")
    for area in range(4, 10):
        stage.disk(f"area {area}", path, area * MIB)
    stage.disk("resource 4K/8M", wide, 8 * MIB, sector_size=4096)
    for step, payload in {
        "any names": wire.lease("", "", path, 4 * MIB),
        "names given": wire.lease("LS", "R1", path, 4 * MIB),
        "other sizes than on disk": wire.lease("LS", "R1", path, 4 * MIB, flags=0x280),
        "4K/8M": wire.lease("LS", "R6", wide, 8 * MIB),
        "another lockspace": wire.lease("XX", "R1", path, 4 * MIB),
        "another resource": wire.lease("LS", "XX", path, 4 * MIB),
        "cleared": wire.lease("LS", "R5", path, 8 * MIB),
        "never written": wire.lease("LS", "R", path, 9 * MIB),
        "a lockspace": wire.lease("LS", "R", path, 0),
        "no file": wire.lease("LS", "R", nowhere, 0),
        "a directory": wire.lease("LS", "R", stage.directory, 0),
        "no disks": wire.resource("LS", "R", 0),
        "five disks": wire.resource("LS", "R", 5) + wire.disk(path) * 5,
        "beyond the end": wire.lease("LS", "R", path, 300 * MIB),
        "unaligned": wire.lease("LS", "R", path, 4 * MIB + 100),
    }.items():
        # Of too many disks the real one leaves the bytes unread.
        probes = step != "five disks"
        host.ask(f"read resource, {step}", request(read, payload), probes=probes)
        owners = request(Cmd.READ_RESOURCE_OWNERS, payload)
        host.ask(f"read owners, {step}", owners, probes=probes)


def connections(stage: Stage) -> None:
    """Many connections, one after the other and at once."""
    host = stage.host("one")
    for _ in range(50):
        host.quietly(request(Cmd.VERSION))
    lines = [host.line() for _ in range(100)]
    stage.see("a hundred at once", sorted({line.probe() for line in lines}))
    for line in lines:
        line.close()
    host.ask("after them", request(Cmd.VERSION))


SCRIPTS = (framing, alone, formatting, connections)
