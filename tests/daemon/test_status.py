"""The status streams: every key in its place, in the order that clients know."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from paxoslease.daemon import commands, status
from paxoslease.daemon.clients import Client
from paxoslease.daemon.connection import Connection
from paxoslease.daemon.entries import Entry, Phase, Token
from paxoslease.daemon.journal import Journal
from paxoslease.daemon.logs import LogRing
from paxoslease.daemon.options import DaemonOptions
from paxoslease.daemon.privileges import Identity
from paxoslease.daemon.renewals import Renewals
from paxoslease.daemon.server import Daemon
from paxoslease.daemon.spaces import Space, Stage
from paxoslease.disk.layout import Sizes
from paxoslease.errors import DiskError, DiskTimeout
from paxoslease.protocol.hosts import HostTable
from paxoslease.protocol.membership import Renewed
from paxoslease.timing import SECOND_US, Timing
from paxoslease.wire import sanlock as codec
from tests.compat.peer import wait_until
from tests.daemon import wire
from tests.daemon.daemons import Daemon as Process, require
from tests.daemon.line import Line
from tests.daemon.wire import Cmd

KEYS: Final = {
    1: "our_host_name use_watchdog high_priority mlock_level quiet_fail debug_renew debug_clients "
    "debug_cmds renewal_history_size gid uid sh_retries max_sectors_kb_ignore "
    "max_sectors_kb_align max_sectors_kb_num max_worker_threads write_init_io_timeout use_aio "
    "kill_grace_seconds helper_pid helper_kill_fd helper_full_count helper_last_status monotime "
    "version_str version_num version_hex smproto_hex",
    2: "ci fd pid flags restricted cmd_active cmd_last pid_dead kill_count kill_last suspend "
    "need_free",
    3: "list space_id io_timeout sector_size align_size host_generation renew_fail space_dead "
    "killing_pids used_retries external_used used_by_orphans renewal_read_extend_sec "
    "set_max_sectors_kb corrupt_result acquire_last_result renewal_last_result "
    "acquire_last_attempt acquire_last_success renewal_last_attempt renewal_last_success",
    4: "list flags sector_size align_size lver reused res_id token_id",
    5: "last_check last_live last_req owner_id owner_generation timestamp io_timeout owner_name",
    6: "timestamp read_ms write_ms next_timeouts next_errors",
}
_STATE: Final = struct.Struct("<IIi4xQ48sI4x")
SPACE: Final = codec.Lockspace(b"LS", 7, 0, codec.Disk(b"/dev/x", 1 << 20))


class Record(SimpleNamespace):
    """A record of a stream: its type, numbers, name, items in their order and what follows."""


def records(stream: bytes) -> list[Record]:
    """Take a stream apart, without the program's own codec."""
    found = []
    while stream:
        kind, flags, data32, data64, name, size = _STATE.unpack_from(stream)
        text, stream = stream[80 : 80 + size], stream[80 + size :]
        assert flags == 0
        assert text.endswith(b"\0")
        assert text.count(b"\0") == 1
        rest = {3: 1104, 4: 128}.get(kind, 0)
        if kind == 4:
            rest += 1040 * int.from_bytes(stream[124:128], "little")
        items = dict(item.split("=", 1) for item in text[:-1].decode().split(" "))
        assert " ".join(items) == KEYS[kind]
        tail, stream = stream[:rest], stream[rest:]
        assert len(tail) == rest
        found.append(
            Record(
                kind=kind, data32=data32, data64=data64, name=name.rstrip(b"\0"), **items, tail=tail
            )
        )
    return found


class Scene:
    """A daemon without a socket of its own, and connections to it."""

    def __init__(self, directory: Path, options: DaemonOptions) -> None:
        self.stack = ExitStack()
        journal = Journal(str(directory / "journal"), {})
        self.daemon = Daemon(options, b"host1", journal, LogRing())
        self.daemon.handle({**commands.HANDLERS, **status.HANDLERS})

    def connect(self) -> socket.socket:
        """Open a connection, served in the next free slot."""
        ours, theirs = socket.socketpair()
        self.stack.enter_context(ours)
        theirs.setblocking(False)
        ours.setblocking(False)
        self.daemon.go_on()
        self.daemon._accepting = asyncio.ensure_future(asyncio.sleep(60))
        self.daemon.admit(theirs)
        return ours

    async def ask(self, data: bytes) -> tuple[wire.Header, bytes]:
        """Ask on a connection of its own, read to the end."""
        line = self.connect()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(line, data)
        reply = b""
        async with asyncio.timeout(10):
            while part := await loop.sock_recv(line, 1 << 16):
                reply += part
        return wire.parse_header(reply), reply[32:]

    async def status(self, wanted: int = 0) -> list[Record]:
        """Return the records of a STATUS."""
        header, stream = await self.ask(wire.request(Cmd.STATUS, data=wanted))
        assert header.data == 0
        return records(stream)

    async def settle(self) -> None:
        """Let what is under way come to its next wait."""
        for _ in range(5):
            await asyncio.sleep(0)


def play(
    directory: Path, scene: Callable[[Scene], Any], options: DaemonOptions | None = None
) -> None:
    """Play a scene on a loop of its own."""

    async def run() -> None:
        stage = Scene(directory, options or DaemonOptions())
        with stage.stack:
            try:
                await scene(stage)
            finally:
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                await asyncio.sleep(0)
                for connection in stage.daemon.connections.values():
                    connection.socket.close()
                for client in stage.daemon.clients:
                    client.end()

    asyncio.run(run())


def joined(number: int, name: bytes = b"LS") -> Space:
    """Return a lockspace that is joined, with a membership that is only looked at."""
    space = Space(number, SPACE._replace(name=name), Timing(1), Renewals(3))
    space.stage = Stage.JOINED
    area = SimpleNamespace(sizes=Sizes(512, 1 << 20))
    table = HostTable(2000, 7)
    member = SimpleNamespace(
        space=SimpleNamespace(area=area), held=SimpleNamespace(generation=4), table=table
    )
    file = SimpleNamespace(fd=9, sector_size=512, is_block=False)
    space.membership = SimpleNamespace(member=member, file=file)  # type: ignore[assignment]
    return space


# -- STATUS --------------------------------------------------------------------------------------


def test_the_daemon_tells_its_options(tmp_path: Path) -> None:
    """Every option is where a client looks for it."""
    options = DaemonOptions(
        use_watchdog=False,
        high_priority=True,
        mlock_level=2,
        debug_renew=1,
        debug_commands=0xF0,
        renewal_history_size=5,
        shared_retries=3,
        max_sectors_kb_align=True,
        max_sectors_kb=64,
        grace_s=15,
    )

    async def scene(stage: Scene) -> None:
        stage.daemon.identity = Identity("sanlock", 102, 105)
        (told,) = await stage.status(1)
        assert (told.kind, told.data32, told.data64, told.name) == (1, 0, 0, b"host1")
        expected = {
            "our_host_name": "host1",
            "use_watchdog": "0",
            "high_priority": "1",
            "mlock_level": "2",
            "quiet_fail": "1",
            "debug_renew": "1",
            "debug_cmds": "0xf0",
            "renewal_history_size": "5",
            "gid": "105",
            "uid": "102",
            "sh_retries": "3",
            "max_sectors_kb_ignore": "0",
            "max_sectors_kb_align": "1",
            "max_sectors_kb_num": "64",
            "kill_grace_seconds": "15",
            "helper_pid": "-1",
            "version_str": "3.8.5",
            "version_hex": "03080500",
            "smproto_hex": "00000001",
        }
        assert {key: getattr(told, key) for key in expected} == expected

    play(tmp_path, scene, options)


@pytest.mark.parametrize(("wanted", "kinds"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (0, [])])
def test_the_filter_limits_what_is_told(tmp_path: Path, wanted: int, kinds: list[int]) -> None:
    """1 to 3 are more and more; anything else is everything."""

    async def scene(stage: Scene) -> None:
        space = joined(1)
        stage.daemon.spaces._all.append(space)
        left = held(space, 1)
        left.phase = Phase.ORPHAN
        stage.daemon.registry.put_back(left)
        kinds_of_all = [1, 2, 3, 4]
        for number in [wanted] if wanted else [0, 4, -1]:
            told = await stage.status(number)
            assert sorted({one.kind for one in told}) == (kinds or kinds_of_all)

    play(tmp_path, scene)


def test_the_header_comes_back(tmp_path: Path) -> None:
    """Flags, seq and data2 are the request's, the length is that of a header."""

    async def scene(stage: Scene) -> None:
        asked = wire.request(Cmd.STATUS, data=1, data2=9, seq=3, flags=7, length=99)
        header, _ = await stage.ask(asked)
        assert header == (wire.MAGIC, 1, Cmd.STATUS, 7, 32, 3, 0, 9)

    play(tmp_path, scene)


def test_connections_are_told_by_slot(tmp_path: Path) -> None:
    """Helper, listener, then who is connected, each with a name for what it does or is."""

    async def scene(stage: Scene) -> None:
        lines = [stage.connect() for _ in range(4)]
        lines[0].send(wire.request(Cmd.REGISTER))
        lines[1].send(wire.request(Cmd.INQ_LOCKSPACE, wire.lockspace("LS")))
        lines[2].send(wire.request(Cmd.VERSION))
        async with asyncio.timeout(10):
            while not all(stage.daemon.connections[n].command_last for n in (2, 3, 4)):
                await asyncio.sleep(0)
        client = next(iter(stage.daemon.clients))
        client.restricted = codec.RestrictFlag.SIGTERM | codec.RestrictFlag.SIGKILL
        client.killpath_pid = True
        client.command_active = Cmd.ACQUIRE
        told = (await stage.status(2))[1:]
        assert [int(one.ci) for one in told] == [0, 1, 2, 3, 4, 5, 6]
        names = [b"helper", b"listener", client.name, b"inq_lockspace", b"", b"", b"status"]
        assert [one.name for one in told] == names
        assert [one.data32 for one in told] == [-1, -1, client.pid, -1, -1, -1, -1]
        assert [int(one.cmd_last) for one in told] == [0, 0, 1, 16, 28, 0, 5]
        assert [one.suspend for one in told] == ["0"] * 7
        registered = told[2]
        assert (registered.pid, registered.flags) == (str(client.pid), "1")
        assert (registered.restricted, registered.cmd_active) == ("6", "7")
        client.name = b"guest"
        assert (await stage.status(2))[3].name == b"guest"

    play(tmp_path, scene)


def test_tries_to_stop_a_client_are_told(tmp_path: Path) -> None:
    """Signals and its killpath count; that the killpath was run is a flag."""

    async def scene(stage: Scene) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection = Connection(2, theirs)
            client = Client(2, connection.peer_pid, connection)
            stage.daemon.connections[2] = connection
            stage.daemon.clients.add(client)
            tried = SimpleNamespace(tries=3, tried_us=5 * SECOND_US, has_run_killpath=True)
            client.stopping[joined(1)] = tried  # type: ignore[assignment]
            told = records(b"".join(status._slots(stage.daemon, connection)))[2]
            assert (told.flags, told.kill_count, told.kill_last) == ("2", "3", "5")
            del stage.daemon.connections[2]

    play(tmp_path, scene)


def test_a_lockspace_is_told(tmp_path: Path) -> None:
    """Its stage, sizes, use and renewals, and behind the text what was asked for."""

    async def scene(stage: Scene) -> None:
        space = joined(5)
        space.used = True
        space.renewals.acquired(100 * SECOND_US)
        space.renewals.renewed(Renewed(102 * SECOND_US, 0, 0, None), 103 * SECOND_US)
        error = DiskTimeout("/dev/x", 0, "read", 1)
        space.renewals.renewed(Renewed(0, 0, 0, error), 105 * SECOND_US)
        coming = Space(6, SPACE._replace(name=b"NEW"), Timing(2), Renewals(3))
        stage.daemon.spaces._all += [joined(4, b"OLD"), coming, space]
        told = [one for one in await stage.status() if one.kind == 3]
        assert [(one.name, one.list) for one in told] == [
            (b"LS", "spaces"),
            (b"OLD", "spaces"),
            (b"NEW", "add"),
        ]
        one = told[0]
        assert (one.data32, one.data64) == (0, 7)
        expected = {
            "space_id": "5",
            "io_timeout": "1",
            "sector_size": "512",
            "align_size": "1048576",
            "host_generation": "4",
            "external_used": "1",
            "renewal_read_extend_sec": "1",
            "acquire_last_result": "1",
            "renewal_last_result": str(error.code),
            "acquire_last_success": "100",
            "renewal_last_attempt": "105",
            "renewal_last_success": "102",
        }
        assert {key: getattr(one, key) for key in expected} == expected
        disk = codec.Disk(b"/dev/x", 1 << 20, 512, 9)
        assert codec.parse_lockspace(one.tail) == codec.Lockspace(b"LS", 7, 0, disk)
        assert told[2].sector_size == "0"
        assert codec.parse_lockspace(told[2].tail).disk.descriptor == 0xFFFFFFFF

    play(tmp_path, scene)


def test_a_lockspace_that_fails_is_told(tmp_path: Path) -> None:
    """That it is dead, and by which damage; other failures are no damage."""

    async def scene(stage: Scene) -> None:
        damaged, late = joined(1, b"A"), joined(2, b"B")
        for space, number in ((damaged, -223), (late, -202)):
            space.is_dead = True
            space.failure, space.failure_number = "it failed", number
            stage.daemon.spaces._all.append(space)
        b, a = [one for one in await stage.status(3) if one.kind == 3]
        seen = a.renew_fail, a.space_dead, a.killing_pids, a.corrupt_result
        assert seen == ("1", "1", "1", "-223")
        assert (b.space_dead, b.corrupt_result) == ("1", "0")

    play(tmp_path, scene)


def held(space: Space, number: int, *, shared: bool = False, disks: int = 1) -> Entry:
    """Return a resource that is held, by nobody yet."""
    flags = codec.ResourceFlag.SHARED if shared else codec.ResourceFlag(0)
    places = tuple(codec.Disk(b"/dev/x", n << 20) for n in range(disks))
    resource = codec.Resource(b"LS", b"R%d" % number, places, lver=99, flags=flags)
    entry = Entry(number, space, resource, None)
    entry.phase, entry.lver = Phase.HELD, number * 10
    return entry


def test_resources_are_told_in_their_order(tmp_path: Path) -> None:
    """Held ones, the newest first and so their holders; then acquired, released, left behind."""

    async def scene(stage: Scene) -> None:
        space = joined(1)
        clients = [SimpleNamespace(pid=pid) for pid in (11, 22)]
        one, many = held(space, 1), held(space, 2, shared=True, disks=4)
        one.restricted, one.is_lvb_dirty = codec.RestrictFlag.SIGKILL, True
        one.tokens = [Token(1, clients[0], one, False)]  # type: ignore[arg-type]
        many.tokens = [Token(n + 2, c, many, False) for n, c in enumerate(clients)]  # type: ignore[arg-type]
        orphan, leaving, coming = held(space, 3), held(space, 4), held(space, 5)
        orphan.phase, orphan.pid = Phase.ORPHAN, 33
        leaving.phase = Phase.RELEASING
        coming.phase, coming.lver = Phase.ACQUIRING, 0
        coming.coming_pid, coming.coming_token = 55, 9
        for entry in (one, many, orphan, leaving, coming):
            stage.daemon.registry.put_back(entry)
        told = [record for record in await stage.status() if record.kind == 4]
        assert [(t.name, t.list, t.data32, t.token_id) for t in told] == [
            (b"R2", "held", 22, "3"),
            (b"R2", "held", 11, "2"),
            (b"R1", "held", 11, "1"),
            (b"R5", "add", 55, "9"),
            (b"R4", "rem", 0, "0"),
            (b"R3", "orphan", 33, "0"),
        ]
        assert [(t.flags, t.lver, t.data64) for t in told[1:3]] == [
            ("1", "20", 20),
            ("28", "10", 10),
        ]
        assert (told[3].sector_size, told[0].sector_size) == ("0", "512")
        resource = codec.parse_resource(told[0].tail)
        assert (resource.lver, resource.flags, resource.num_disks) == (0, 4, 4)
        assert resource.disks[3] == codec.Disk(b"/dev/x", 3 << 20, 512, 0xFFFFFFFF)

    play(tmp_path, scene)


# -- HOST_STATUS and RENEWAL ---------------------------------------------------------------------


@pytest.mark.parametrize("cmd", [Cmd.HOST_STATUS, Cmd.RENEWAL])
def test_an_unknown_lockspace_is_refused(tmp_path: Path, cmd: Cmd) -> None:
    """With -ENOSPC and nothing more; one that is being joined has nothing to tell."""

    async def scene(stage: Scene) -> None:
        asked = wire.request(cmd, wire.lockspace("LS"), data2=9, length=32)
        assert (await stage.ask(asked))[0][4:] == (32, 0, -28, 9)
        stage.daemon.spaces._all.append(Space(1, SPACE, Timing(1), Renewals(3)))
        header, stream = await stage.ask(asked)
        assert (header[4:], stream) == ((32, 0, 0, 9), b"")

    play(tmp_path, scene)


def test_hosts_are_told(tmp_path: Path) -> None:
    """Every host that was ever seen; a name from the disk cannot look like another item."""

    async def scene(stage: Scene) -> None:
        space = joined(1)
        assert space.membership is not None
        table = space.membership.member.table
        table.first_check_us, table.last_check_us = 5 * SECOND_US, 50 * SECOND_US
        for host_id, name in ((7, b"host1"), (9, b"two\n1 timestamp=5\x7f")):
            at = host_id - 1
            table.owner_id[at], table.generation[at] = host_id, 3
            table.timestamp[at], table.io_timeout[at] = 400 + host_id, 10
            table.last_live_us[at], table.names[at] = 40 * SECOND_US, name
        space.requested_us[9] = 45 * SECOND_US
        stage.daemon.spaces._all.append(space)
        _, stream = await stage.ask(wire.request(Cmd.HOST_STATUS, wire.lockspace("LS"), length=32))
        stream = stream.replace(b"two?1 ", b"two?1_")
        own, other = records(stream)
        assert (own.kind, own.data32, own.data64, own.name) == (5, 7, 407, b"")
        assert (own.last_req, own.owner_name) == ("0", "host1")
        assert (other.last_check, other.last_live, other.last_req) == ("50", "40", "45")
        assert (other.owner_id, other.owner_generation, other.io_timeout) == ("9", "3", "10")
        assert other.owner_name == "two?1_timestamp=5?"

    play(tmp_path, scene)


def test_renewals_are_told(tmp_path: Path) -> None:
    """The last ones, oldest first, with what went wrong after each; data2 is the io_timeout."""

    async def scene(stage: Scene) -> None:
        space = joined(1)
        renewals = space.renewals
        renewals.acquired(10 * SECOND_US)
        timeout = DiskTimeout("/dev/x", 0, "read", 1)
        for at in (12, 14, 16):
            renewals.renewed(Renewed(at * SECOND_US, 2500, 7900, None), at * SECOND_US)
        renewals.renewed(Renewed(0, 0, 0, timeout), 18 * SECOND_US)
        renewals.renewed(Renewed(0, 0, 0, timeout), 18 * SECOND_US)
        renewals.renewed(
            Renewed(0, 0, 0, DiskError("/dev/x", 0, "read", 5, "it broke")), 18 * SECOND_US
        )
        stage.daemon.spaces._all.append(space)
        header, stream = await stage.ask(wire.request(Cmd.RENEWAL, wire.lockspace("LS")))
        assert header[4:] == (32, 0, 0, 1)
        told = records(stream)
        assert [one.data64 for one in told] == [12, 14, 16]
        assert [(one.read_ms, one.write_ms) for one in told] == [("2", "7")] * 3
        assert [one.next_timeouts + one.next_errors for one in told] == ["00", "00", "21"]

    play(tmp_path, scene)


def test_a_history_of_no_size_is_empty() -> None:
    """The results are known all the same."""
    renewals = Renewals(0)
    renewals.acquired(SECOND_US)
    renewals.renewed(Renewed(0, 0, 0, DiskError("/dev/x", 0, "read", 5, "it broke")), 3 * SECOND_US)
    assert not renewals.kept
    assert (renewals.last_success_us, renewals.last_attempt_us) == (SECOND_US, 3 * SECOND_US)
    assert renewals.last_result < 0


@pytest.mark.peer
def test_the_real_one_has_the_same_keys(tmp_path: Path) -> None:
    """Both daemons tell the same of themselves, but for numbers that vary."""
    for kind in ("real", "ours"):
        require(kind)
    varying = {"fd", "helper_pid", "helper_kill_fd", "helper_last_status", "monotime"}
    told = {}
    for kind in ("real", "ours"):
        with Process(kind, tmp_path / kind, "host1") as process:
            told[kind] = [
                {key: value for key, value in vars(one).items() if key not in varying}
                for one in _undisturbed(process)
            ]
    assert told["ours"] == told["real"]


def _undisturbed(process: Process) -> list[Record]:
    """Return what a daemon tells when nobody but who asks is connected."""
    found: list[Record] = []

    def is_alone() -> bool:
        line = Line(str(process.socket_path))
        try:
            found[:] = records(line.ask(wire.request(Cmd.STATUS)).reply[32:])
        finally:
            line.close()
        return len(found) == 4 and found[-1].ci == "2"

    wait_until(is_alone, 10.0, f"only we are connected to {process.name}")
    return found
