"""What random calls have found: echoed fields, orders of checks, files that are missing."""

from __future__ import annotations

import itertools
import struct

from tests.daemon import areas, wire
from tests.daemon.scripts.common import formatted, lease, name, prepare
from tests.daemon.stage import MIB, Differs, Stage
from tests.daemon.wire import Cmd, acquire, inquire, release, rentry, request, rindex


def echoes(stage: Stage) -> None:
    """What a reply repeats of its request, errors included."""
    host = stage.host("one")
    path = formatted(stage, host, 1)
    space, event = wire.lockspace("LS", 1, path), wire.host_event(1)
    for cmd, payload in {
        Cmd.SET_CONFIG: space,
        Cmd.REG_EVENT: space + event,
        Cmd.END_EVENT: space,
        Cmd.HOST_STATUS: space,
        Cmd.RENEWAL: space,
        Cmd.GET_HOSTS: space,
        Cmd.SET_EVENT: space + event,
    }.items():
        host.ask(f"{cmd.name}, data2 and an error", request(cmd, payload, data=1, data2=77))
    numbers = struct.pack("<QQIIII", 5, 6, 7, 8, wire.SIZES_512_1M, 1)
    odd = struct.pack("<48s48s", b"LS\0behind", b"R1\0behind") + numbers + wire.disk(path, MIB)
    for cmd in (Cmd.READ_RESOURCE, Cmd.READ_RESOURCE_OWNERS):
        host.ask(f"{cmd.name}, fields that nobody reads", request(cmd, odd))
    areas.alter_leader(path, MIB, 56 + 20, b"behind")
    areas.alter_leader(path, MIB, 104 + 30, b"behind")
    host.ask("bytes behind the names on the disk", request(Cmd.READ_RESOURCE, lease(path, 1)))
    areas.alter_leader(path, 0, 56 + 20, b"behind")
    host.ask("bytes behind the name of a lockspace", request(Cmd.READ_LOCKSPACE, space))


def orders(stage: Stage) -> None:
    """Which of several mistakes is told."""
    host = stage.host("one")
    path = formatted(stage, host, 1)
    for host_id in (0, 1, 2000, 2001, 1 << 63):
        payload = wire.lockspace("LS", 1, path) + wire.host_event(host_id)
        host.ask(f"event for host {host_id}, not joined", request(Cmd.SET_EVENT, payload))
    killpath = wire.killpath("/bin/true", "", pid=0x3FFFFFFF)
    host.ask("killpath for a pid that nobody has", killpath)
    client = host.client("client")
    client.ask("no disks, not joined", acquire(wire.resource("LS", "R1")))
    index = rindex("LS", path, 0)
    host.quietly(request(Cmd.FORMAT_RINDEX, index))
    for flags in (1, 0x10001, 0x20001):
        entry = rentry("ra", 2 * MIB + 512)
        host.ask(
            f"update {flags:#x}, unaligned", request(Cmd.UPDATE_RINDEX, index + entry, flags=flags)
        )
    # Its places are not aligned either, and are found by name alone.
    unaligned = rindex("LS", path, 6 * MIB + 512)
    host.quietly(request(Cmd.FORMAT_RINDEX, unaligned))
    at_first = request(Cmd.LOOKUP_RINDEX, unaligned + rentry("", 8 * MIB + 512), flags=1)
    host.ask("a place of an unaligned index", at_first)


def releases(stage: Stage) -> None:
    """RELEASE with more or fewer resources than its form has, on a connection that holds leases."""
    host = stage.host("one")
    path = prepare(stage, host, 3)
    holder = host.client("holder")
    for number in (1, 2, 3):
        holder.quietly(acquire(lease(path, number)))
    orphans, everything = 4, 1
    two = (name(1), name(2))
    host.ask("of nobody", release(*two, pid=0x3FFFFFFF, flags=orphans))
    host.ask("of nobody, no resource", release(pid=0x3FFFFFFF, flags=orphans))
    host.ask("of nobody, a new name for two", release(*two, name(3), pid=0x3FFFFFFF, flags=2))
    host.ask("of nobody, no new name", release(name(1), pid=0x3FFFFFFF, flags=2))
    holder.ask("two orphans", release(*two, flags=orphans))
    holder.ask("nothing is lost", inquire())
    holder.ask("all, and two named", release(*two, flags=everything))
    holder.ask("the connection goes on", inquire())


def files(stage: Stage) -> None:
    """Resources on several files of which some cannot be opened."""
    host = stage.host("one")
    good = [stage.file(f"disk{number}", 4) for number in range(4)]
    for path in good:
        payload = wire.lease("LS", "R", path, MIB, flags=wire.SIZES_512_1M)
        host.quietly(request(Cmd.WRITE_RESOURCE, payload))
    bad = {"M": stage.directory / "missing", "D": stage.directory}
    for count in (2, 3, 4):
        for kinds in itertools.product("GMD", repeat=count):
            if "G" not in kinds or set(kinds) == {"G"}:
                continue
            paths = [bad.get(kind, path) for kind, path in zip(kinds, good, strict=False)]
            disks = b"".join(wire.disk(path, MIB) for path in paths)
            resource = wire.resource("LS", "R", count, flags=wire.SIZES_512_1M) + disks
            shown = "".join(kinds)
            # Most must be there, and the first, which is read.
            is_first_alone = kinds[0] != "G" and kinds.count("G") > count // 2
            for cmd in (Cmd.READ_RESOURCE, Cmd.READ_RESOURCE_OWNERS):
                differs = _unopened(kinds[0], count) if is_first_alone else None
                host.ask(f"{cmd.name} {shown}", request(cmd, resource), differs=differs)
    disks = b"".join(wire.disk(path, 2 * MIB) for path in (good[0], good[1], bad["M"]))
    resource = wire.resource("LS", "R", 3, flags=wire.SIZES_512_1M) + disks
    differs = Differs(
        "3.8.5 formats what it has opened before it comes to what it has not",
        real=["result -9, data2 0, length 32", "then open"],
        ours=["result -2, data2 0, length 32", "then open"],
    )
    host.ask("write, the third is missing", request(Cmd.WRITE_RESOURCE, resource), differs=differs)


def careful(stage: Stage) -> None:
    """Numbers that 3.8.5 believes, and what ours makes of them."""
    host = stage.host("one")
    path = formatted(stage, host, 3)
    sizes = wire.SIZES_512_1M
    write = request(Cmd.WRITE_RESOURCE, wire.lease("LS", "R4", path, 4 * MIB, flags=sizes), data=-1)
    host.ask("negative num_hosts", write)
    stage.see(
        "negative num_hosts on the disk",
        [str(struct.unpack("<q", areas.read(path, 4 * MIB + 16, 8))[0])],
        differs=Differs(
            "3.8.5 writes a number of hosts for which no lease has room",
            real=["-1"],
            ours=["2000"],
        ),
    )
    areas.alter_leader(path, MIB, 16, struct.pack("<q", -1))
    resource = "  resource 'LS' 'R1' lver=0 data64=0 data32=0 unused=0 flags=%s disks=1"
    host.ask(
        "read negative num_hosts",
        request(Cmd.READ_RESOURCE, lease(path, 1)),
        differs=Differs(
            "ours believes no record with more hosts than there is room for",
            real=["result 0, data2 0, length 160", resource % "0x110", "then open"],
            ours=["result -228, data2 0, length 160", resource % "0x0", "then open"],
        ),
    )
    areas.write(path, 2 * MIB + 1024, b"\1")
    resource = resource.replace("R1", "R2")
    host.ask(
        "owners beside a damaged ballot",
        request(Cmd.READ_RESOURCE_OWNERS, lease(path, 2)),
        differs=Differs(
            "3.8.5 does not look at the sums of ballots here",
            real=["result 0, data2 0, length 160", resource % "0x0", "then open"],
            ours=["result -214, data2 0, length 160", resource % "0x0", "then open"],
        ),
    )
    far = (1 << 55) + 1
    host.ask(
        "a host id so large that its place wraps around",
        request(Cmd.READ_LOCKSPACE, wire.lockspace("LS", far, path)),
        differs=Differs(
            "3.8.5 reads where the place is after the overflow: here that of host 1",
            real=[
                "result 0, data2 1, length 1136",
                f"  lockspace 'LS' host_id={far} flags=0x110 '$DIR/leases':0",
                "then open",
            ],
            ours=[
                "result -22, data2 0, length 1136",
                f"  lockspace 'LS' host_id={far} flags=0x0 '$DIR/leases':0",
                "then open",
            ],
        ),
    )
    _value_blocks(stage)
    host.ask(
        "an error of GET_LVB that was to send bytes",
        request(Cmd.GET_LVB, name(1), data2=16),
        limit_s=1.0,
        differs=Differs(
            "3.8.5 announces bytes that it does not send, and its client waits for them",
            real=["result -2, data2 0, length 48", "then silent"],
            ours=["result -2, data2 0, length 32", "then open"],
        ),
    )


def _value_blocks(stage: Stage) -> None:
    """A value block that is asked for when the lease is there already, without one."""
    host = stage.host("two")
    path = prepare(stage, host, 2)
    first, second = host.client("first"), host.client("second")
    first.quietly(acquire(lease(path, 1, flags=wire.SHARED)))
    second.ask("shared, with a block", acquire(lease(path, 1, flags=wire.SHARED), flags=1))
    first.quietly(acquire(lease(path, 2, flags=wire.PERSISTENT)))
    first.kill()
    second.ask("an orphan, with a block", acquire(lease(path, 2), flags=3))
    block = "  512 bytes: "
    for number in (1, 2):
        host.ask(
            f"the block of R{number}",
            request(Cmd.GET_LVB, name(number)),
            differs=Differs(
                "3.8.5 reads a block only with a lease that it acquires",
                real=["result -22, data2 0, length 32", "then open"],
                ours=["result 0, data2 0, length 544", block, "then open"],
            ),
        )


def several(stage: Stage) -> None:
    """Several leases in one ACQUIRE of which the first is not to be had."""
    host = stage.host("one")
    path = prepare(stage, host, 2)
    client = host.client("client")
    wrong = lease(path, 1, flags=wire.LVER, lver=9)
    client.ask("the first has another lver", acquire(wrong, lease(path, 2)))
    client.ask("nothing is held", inquire())
    leader = struct.unpack("<Q", areas.read(path, 2 * MIB + 48, 8))
    stage.see(
        "lver of the second on the disk",
        [str(leader[0])],
        differs=Differs(
            "ours tries for all at once, and gives back what it has got",
            real=["0"],
            ours=["1"],
        ),
    )
    wide = stage.file("wide", 8)
    large = wire.lease("LS", "W", wide, 0, flags=wire.SIZES_4K_8M)
    host.quietly(request(Cmd.WRITE_RESOURCE, large))
    client.ask(
        "sectors of another size than the lockspace's",
        acquire(large),
        differs=Differs(
            "3.8.5 looks for the ballots as if it had the lockspace's sector size",
            real=["result -214, data2 0, length 32", "then open"],
            ours=["result 0, data2 0, length 32", "then open"],
        ),
    )


def _unopened(kind: str, count: int) -> Differs:
    shown = f"  resource 'LS' 'R' lver=0 data64=0 data32=0 unused=0 flags=0x110 disks={count}"
    lines = ["result %d, data2 0, length 160", shown, "then open"]
    number = {"M": -2, "D": -21}[kind]
    return Differs(
        "the number of open(2), where 3.8.5 tries to read what it has not opened",
        real=[lines[0] % -9, *lines[1:]],
        ours=[lines[0] % number, *lines[1:]],
    )


SCRIPTS = (echoes, orders, releases, files, careful, several)
