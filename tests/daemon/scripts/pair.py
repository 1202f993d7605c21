"""Two daemons, two hosts, one lockspace."""

from __future__ import annotations

import signal
import struct
from pathlib import Path

from tests.daemon import areas, wire
from tests.daemon.line import Line
from tests.daemon.scripts.common import (
    SPACE,
    format_resources,
    format_space,
    formatted,
    lease,
    name,
    owners,
    prepare,
    status,
)
from tests.daemon.stage import MIB, Client, Differs, Host, Stage
from tests.daemon.wire import Cmd, acquire, convert, inquire, killpath, release, request

SH = wire.SHARED
SHORT_HOLD = 0x1


def _both(stage: Stage, resources: int) -> tuple[Host, Host, Path]:
    one, two = stage.host("one"), stage.host("two")
    path = formatted(stage, one, resources)
    one.begin_join(SPACE, 1, path)
    two.begin_join(SPACE, 2, path)
    for host in (one, two):
        host.await_hosts(SPACE, 2)
    return one, two, path


def exclusion(stage: Stage) -> None:
    """What one host holds the other is refused."""
    one, two, path = _both(stage, 6)
    one.ask("hosts", request(Cmd.GET_HOSTS, wire.lockspace(SPACE)))
    two.ask("hosts seen by the other", request(Cmd.GET_HOSTS, wire.lockspace(SPACE)))
    one.ask("host status", request(Cmd.HOST_STATUS, wire.lockspace(SPACE), length=32))
    stage.disk("lockspace of two", path, 0)
    ann, bob = one.client("ann"), two.client("bob")
    ann.ask("ann takes R1", acquire(lease(path, 1)))
    bob.ask("bob is refused", acquire(lease(path, 1)))
    bob.ask("bob may not share", acquire(lease(path, 1, flags=SH)))
    bob.ask("nor without waiting", acquire(lease(path, 1), flags=8))
    two.ask("bob reads the owner", owners(path, 1))
    ann.ask("ann releases", release(name(1)))
    bob.ask("bob takes it", acquire(lease(path, 1)))
    stage.disk("R1 changed hands", path, MIB)
    ann.ask("ann is refused", acquire(lease(path, 1)))
    bob.ask("bob converts to shared", convert(name(1, flags=SH)))
    ann.ask("ann shares", acquire(lease(path, 1, flags=SH)))
    one.ask("two owners", owners(path, 1))
    stage.disk("R1 shared by both", path, MIB)
    ann.ask("ann cannot convert", convert(name(1)))
    ann.holds("ann still shares")
    ann.ask("ann may not take it twice", acquire(lease(path, 1)))
    carl = two.client("carl")
    carl.ask("exclusive where two share", acquire(lease(path, 1)))
    bob.ask("bob lets go", release(name(1)))
    ann.ask("ann converts", convert(name(1)))
    stage.disk("R1 converted", path, MIB)
    ann.ask("values travel", acquire(lease(path, 2), flags=1))
    one.ask("set", request(Cmd.SET_LVB, name(2) + b"from one"))
    ann.ask("to the disk", release(name(2)))
    bob.ask("to the other", acquire(lease(path, 2), flags=1))
    two.ask("get", request(Cmd.GET_LVB, name(2), data2=16))
    few = lease(path, 3, flags=wire.SIZES_512_1M)
    one.ask("a resource for one host", request(Cmd.WRITE_RESOURCE, few, data=1))
    bob.ask("host 2 is one too many", acquire(lease(path, 3)))
    ann.ask("host 1 is not", acquire(lease(path, 3)))
    _short_hold(path, 4)
    bob.ask("held only for a moment, for ever", acquire(lease(path, 4, flags=SH)), limit_s=30)
    one.ask("ann's host leaves", request(Cmd.REM_LOCKSPACE, wire.lockspace(SPACE, 1, path)))
    ann.fate("ann")
    bob.ask("her lease is free at once", acquire(lease(path, 1)))
    stage.disk("R1 after the owner's host left", path, MIB)


def _short_hold(path: Path, number: int) -> None:
    """Let host 1 own a lease as if it were in the middle of a shared acquire."""
    offset = number * MIB
    for at, value in ((8, 0x10 | SHORT_HOLD), (32, 1), (40, 1), (48, 1), (152, 5), (176, 1)):
        size = 4 if at == 8 else 8
        areas.alter_leader(path, offset, at, value.to_bytes(size, "little"))
    areas.alter_leader(path, offset, 184, (1).to_bytes(8, "little"))
    block = struct.pack("<6Q", 2001, 2001, 1, 1, 5, 1)
    sector = block + struct.pack("<II", areas.crc32c(block), 0) + bytes(512 - 56)
    areas.write(path, offset + 2 * 512, sector)


def requests(stage: Stage) -> None:
    """One host asks the other for its lease, through the disk."""
    one, two, path = _both(stage, 4)
    ann, amy, bob = one.client("ann"), one.client("amy"), two.client("bob")
    seen = stage.directory / "seen"
    program = stage.directory / "killpath"
    program.write_text(f"#!/bin/sh\necho \"$1\" >'{seen}.new'\nmv '{seen}.new' '{seen}'\n")
    program.chmod(0o755)
    amy.ask("amy's killpath", killpath(str(program), "called"))
    ann.ask("ann takes R1", acquire(lease(path, 1)))
    amy.ask("amy takes R2", acquire(lease(path, 2)))
    two.ask("bob's host wants R1 by force", request(Cmd.REQUEST, lease(path, 1), flags=1, data=1))
    two.ask("and R2 gracefully", request(Cmd.REQUEST, lease(path, 2, lver=2), data=2))
    stage.disk("the request", path, MIB)
    ann.fate("ann")
    stage.until(seen.exists, "amy's killpath is run")
    stage.see("amy's killpath was", [seen.read_text().strip()])
    amy.holds("amy holds it until she lets go")
    stage.until(lambda: b"list=rem" not in one.quietly(status()), "R1 is released")
    ann.await_unknown()
    bob.ask("bob gets R1", acquire(lease(path, 1)))
    lines = areas.tell(path, MIB, 512)
    stage.see("R1 with bob", [line for line in lines if " request " not in line])
    stage.see(
        "what is left of the request",
        [line for line in lines if " request " in line],
        differs=Differs(
            "a record left over could kill a later holder; whoever takes a lease clears it",
            real=["1: request 0x8292011 0x10001 lver=2 mode=1"],
            ours=["1: request 0x8292011 0x10001 lver=0 mode=0"],
        ),
    )


def events(stage: Stage) -> None:
    """Events between hosts."""
    one, two, path = _both(stage, 1)
    space = wire.lockspace(SPACE)
    set_event, unregister = Cmd.SET_EVENT, Cmd.END_EVENT

    def send(step: str, *event: int, flags: int = 0) -> None:
        two.ask(step, request(set_event, space + wire.host_event(*event), flags=flags))

    listener = one.line()
    one.ask_on(listener, "register", request(Cmd.REG_EVENT, space + wire.host_event(0)))
    send("set", 1, 0, 7, 8)
    send("the same event number", 1, 0, 7, 9)
    send("another one is too early", 1, 0, 6, 9)
    send("host id 0", 0, 0, 1)
    send("host id 2001", 2001, 0, 1)
    send("clear needs a host id", 0, flags=4)
    _see_event(stage, listener, "the event")
    send("replaced, with the generation", 1, 0, 6, 10, flags=0x9)
    stage.until(lambda: _is_event(listener, 6), "the second event", 10)
    stage.disk("events on the disk", path, 0)
    send("clear a host", 1, flags=2)
    send("clear", 1, flags=4)
    send("all hosts", 1, 0, 5, 5, flags=0x10)
    stage.until(lambda: _is_event(listener, 5), "the event for all", 10)
    listener.send((1).to_bytes(4, "little"))
    listener.close()
    one.ask("end", request(unregister, space))
    one.ask("end again", request(unregister, space))


def listeners(stage: Stage) -> None:
    """At most 32 connections listen to one lockspace; those that ended make room."""
    host = stage.host("one")
    path = prepare(stage, host, 1)
    register = request(Cmd.REG_EVENT, wire.lockspace(SPACE) + wire.host_event(0))
    lines = [host.line() for _ in range(32)]
    for line in lines:
        line.ask(register)
    host.ask("a 33rd", register)
    host.ask("status shows none of them", request(Cmd.STATUS, data=2))
    lines[0].close()
    extra = host.line()
    host.ask_on(extra, "room again", register)
    host.ask("rem", request(Cmd.REM_LOCKSPACE, wire.lockspace(SPACE, 1, path)))
    stage.see("its listeners", [str(extra.receive(None, limit_s=5))])


def _see_event(stage: Stage, line: Line, step: str) -> None:
    data, how = line.receive(80)
    # The first of the two may go out before the second comes, and more than once.
    while how == "whole" and struct.unpack_from("<Q", data, 56)[0] == 8:
        data, how = line.receive(80)
    header = struct.unpack_from("<8I", data)
    event = struct.unpack_from("<6Q", data, 32)
    stage.see(step, [str(header), str(event), how])


def _is_event(line: Line, number: int) -> bool:
    data, _ = line.receive(80, limit_s=5)
    found: int = struct.unpack_from("<Q", data, 48)[0]
    return found == number


def _await_silence(stage: Stage, client: Client, path: Path) -> None:
    """Wait until the host of `client` has seen that the owner of R1 renews no more."""
    nowait = acquire(lease(path, 1), flags=8)

    def is_noticed() -> bool:
        return wire.result(client.quietly(nowait)) == -247

    stage.until(is_noticed, "the owner's silence is noticed")


def paused(stage: Stage) -> None:
    """The owner's host renews no more: acquires wait, and what the target is asked meanwhile."""
    one, two, path = _both(stage, 3)
    ann, bob, carl = one.client("ann"), two.client("bob"), two.client("carl")
    ann.quietly(acquire(lease(path, 1)))
    one.daemon.process.send_signal(signal.SIGSTOP)
    _await_silence(stage, bob, path)
    bob.ask("not waiting", acquire(lease(path, 1), flags=8))
    bob.send(acquire(lease(path, 1)))

    def is_waiting() -> bool:
        return b"list=add" in two.quietly(status())

    stage.until(is_waiting, "bob waits")
    two.ask("inquire who waits", inquire(bob.pid))
    two.ask("release of who waits", release(name(2), pid=bob.pid))
    two.ask("acquire for who waits", acquire(lease(path, 2), pid=bob.pid))
    two.ask("convert for who waits", convert(name(2), pid=bob.pid))
    carl.ask("what another acquires", acquire(lease(path, 1)))
    two.ask("others are served", request(Cmd.GET_LOCKSPACES))
    carl.ask("and other leases", acquire(lease(path, 2)))
    two.ask("status while waiting", status())
    space = wire.lockspace(SPACE, 2, path)
    two.ask("unused is refused", request(Cmd.REM_LOCKSPACE, space, flags=2))
    # A renewal, as the daemon that is stopped would write it if it went on.
    timestamp = int.from_bytes(areas.read(path, 152, 8), "little") + 5
    areas.alter_leader(path, 0, 152, timestamp.to_bytes(8, "little"))
    bob.answer("the owner is back", Cmd.ACQUIRE, limit_s=20)
    bob.ask("bob is served again", inquire())


def host_id_taken(stage: Stage) -> None:
    """Another living host has the host id: found out after 60 seconds and more."""
    one, two, path = _both(stage, 1)
    three = stage.host("three")
    three.ask(
        "join with a host id in use",
        request(Cmd.ADD_LOCKSPACE, wire.lockspace(SPACE, 1, path), data=1),
        limit_s=100,
    )
    for host in (one, two):
        host.ask(
            f"{host.daemon.name} is not hurt",
            request(Cmd.INQ_LOCKSPACE, wire.lockspace(SPACE, 0, path)),
        )
    stage.disk("the record in use", path, 0)


def owner_dead(stage: Stage) -> None:
    """The owner's host dies: it is taken over after 8 * io_timeout + 60 seconds."""
    one, two, path = _both(stage, 3)
    ann, bob, carl = one.client("ann"), two.client("bob"), two.client("carl")
    ann.quietly(acquire(lease(path, 1)))
    ann.quietly(acquire(lease(path, 2, flags=SH)))
    ann.quietly(acquire(lease(path, 3)))
    one.daemon.kill()
    _await_silence(stage, bob, path)
    bob.send(acquire(lease(path, 1)))
    leaver = two.client("leaver")
    asker = two.line()
    asker.send(acquire(lease(path, 3), pid=leaver.pid))

    def state() -> int:
        reply = two.quietly(request(Cmd.GET_HOSTS, wire.lockspace(SPACE, 1)))
        return reply[32 + 28] & 0xF

    stage.until(lambda: state() == 4, "host 1 fails", 30)
    carl.ask("shared by a failing host", acquire(lease(path, 2)))
    leaver.kill()
    bob.answer("bob takes over", Cmd.ACQUIRE, limit_s=100)
    stage.disk("R1 taken over", path, MIB)
    outcome = asker.answer(Cmd.ACQUIRE, 40)
    stage.see("for a client that left", wire.tell(Cmd.ACQUIRE, outcome.reply, stage.masks))
    stage.until(lambda: state() == 5, "host 1 is dead", 30)
    carl.ask("a dead host's share does not count", acquire(lease(path, 2)))
    two.ask("hosts", request(Cmd.GET_HOSTS, wire.lockspace(SPACE)))
    owner = "  host 2 generation=1 timestamp=* io_timeout=0 flags=0"
    names = "resource 'LS' 'R2' lver=3 data64=0 data32=0 unused=0"
    two.ask(
        "owners",
        owners(path, 2),
        differs=Differs(
            "3.8.5 zeroes the block of the dead sharer, ours writes into no other host's block",
            real=[
                "result 0, data2 1, length 192",
                f"  {names} flags=0x0 disks=1",
                owner,
                "then open",
            ],
            ours=[
                "result 0, data2 2, length 224",
                f"  {names} flags=0x4 disks=1",
                owner,
                "  host 1 generation=1 timestamp=0 io_timeout=0 flags=0",
                "then open",
            ],
        ),
    )


def no_way_to_look(stage: Stage) -> None:
    """The owner's life cannot be looked at: the path of the lockspace has gone."""
    one, two = stage.host("one"), stage.host("two")
    spaces, path = stage.file("spaces", 4), stage.file("leases", 4)
    format_space(one, spaces)
    format_resources(one, path, 1)
    one.begin_join(SPACE, 1, spaces)
    two.begin_join(SPACE, 2, spaces)
    for host in (one, two):
        host.await_hosts(SPACE, 2)
    ann, bob = one.client("ann"), two.client("bob")
    ann.ask("ann takes R1", acquire(lease(path, 1)))
    moved = spaces.rename(stage.directory / "moved")
    bob.ask(
        "bob's host is asked meanwhile",
        acquire(lease(path, 1)),
        differs=Differs(
            "3.8.5 opens the path again, ours reads what it has open",
            real=["result -242, data2 0, length 32", "then open"],
            ours=["result -243, data2 0, length 32", "then open"],
        ),
    )
    two.ask("bob's host is in the lockspace", request(Cmd.GET_LOCKSPACES))
    moved.rename(spaces)
    bob.ask("bob is refused", acquire(lease(path, 1)))
    stage.disk("R1", path, MIB)


SCRIPTS = (no_way_to_look, exclusion, requests, events, listeners, paused)
LONG = (host_id_taken, owner_dead)
