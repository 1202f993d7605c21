"""Leases of registered clients on one host: targets, acquire, release, inquire."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.daemon import wire
from tests.daemon.scripts.common import lease, name, owners, prepare, read, status
from tests.daemon.stage import MIB, Differs, Stage
from tests.daemon.wire import Cmd, acquire, convert, inquire, killpath, release, request


def targets(stage: Stage) -> None:
    """Who may be meant by a command, and who may not (section 6)."""
    host = stage.host("one")
    path = prepare(stage, host, 3)
    unknown = 4_000_000
    for step, pid in {"an unknown pid": unknown, "an unregistered connection": wire.OWN}.items():
        host.ask(f"acquire for {step}", acquire(lease(path, 1), pid=pid))
        host.ask(f"release for {step}", release(name(1), pid=pid))
        host.ask(f"inquire {step}", inquire(pid))
        host.ask(f"convert for {step}", convert(name(1), pid=pid))
    host.ask("killpath of a connection not registered", killpath("/bin/true", ""))
    holder = host.client("holder")
    holder.ask("inquire oneself, nothing held", inquire())
    holder.ask("acquire for oneself", acquire(lease(path, 1), owner="boss"))
    host.ask("status with an owner name", status())
    holder.ask("acquire nothing", acquire())
    host.ask("acquire for another", acquire(lease(path, 2), pid=holder.pid))
    host.ask("status after an acquire without owner name", status())
    host.ask("inquire another", inquire(holder.pid))
    second = holder.open()
    holder.register(second)
    holder.ask("a second connection holds nothing", inquire(), at=second)
    holder.ask("what the first holds", acquire(lease(path, 1)), at=second)
    holder.ask("its own lease", acquire(lease(path, 3)), at=second)
    holder.holds("the pid means the first connection")
    holder.close(second)
    other = host.client("other")

    def is_free() -> bool:
        return wire.result(other.quietly(acquire(lease(path, 3)))) == 0

    stage.until(is_free, "the second connection's lease is released")
    other.ask("taken over", inquire())
    holder.ask("other commands on a registered connection", request(Cmd.GET_LOCKSPACES))
    holder.ask("status on a registered connection", request(Cmd.GET_HOSTS, wire.lockspace("XX")))
    other.kill()

    def is_released() -> bool:
        return b"list=rem" not in host.quietly(status())

    stage.until(is_released, "what it held is released")
    host.ask("owners after a client died", owners(path, 3))
    stage.disk("R3 after its client died", path, 3 * MIB)
    holder.ask("register again drops nothing", inquire())


def acquiring(stage: Stage) -> None:
    """Every result of ACQUIRE that one host can see."""
    host = stage.host("one")
    path = prepare(stage, host, 12)
    holder, other = host.client("holder"), host.client("other")
    ask, take = holder.ask, acquire
    ask("R1", take(lease(path, 1)))
    stage.disk("R1 held", path, MIB)
    ask("R1 again", take(lease(path, 1)))
    other.ask("R1 by another", take(lease(path, 1)))
    other.ask("R1 shared by another", take(lease(path, 1, flags=wire.SHARED)))
    ask("R2 and R3, one shared", take(lease(path, 2), lease(path, 3, flags=wire.SHARED)))
    stage.disk("R3 shared", path, 3 * MIB)
    holder.holds("three held")
    host.ask("status of three", status())
    other.ask("all or nothing", take(lease(path, 4), lease(path, 1)))
    other.ask("nothing", inquire())
    stage.disk("R4 rolled back", path, 4 * MIB)
    many = [lease(path, number) for number in range(4, 12)]
    other.ask("eight at once", take(*many))
    other.ask("eight held", inquire())
    other.ask("release of eight", release(*(name(number) for number in range(4, 12))))
    other.ask("nine at once", take(*many, lease(path, 12)), limit_s=2)
    holder2 = host.client("holder2")
    for step, wanted in {
        "no lockspace": wire.lease("XX", "R4", path, 4 * MIB),
        "another resource name": wire.lease("LS", "R5", path, 4 * MIB),
        "nothing there": wire.lease("LS", "R", path, 14 * MIB),
        "a lockspace area": wire.lease("LS", "R", path, 0),
        "no file": wire.lease("LS", "R", stage.directory / "nowhere", 0),
        "a directory": wire.lease("LS", "R", stage.directory, 0),
        "beyond the end": wire.lease("LS", "R", path, 300 * MIB),
        "unaligned": wire.lease("LS", "R4", path, 4 * MIB + 100),
        "no disks": wire.resource("LS", "R4"),
        "lver that differs": lease(path, 4, flags=wire.LVER, lver=77),
    }.items():
        holder2.ask(step, take(wanted))
    five = wire.resource("LS", "R4", 5) + wire.disk(path, 4 * MIB) * 5
    host.client("five").ask("five disks", take(five), probes=False)
    holder2.ask("lver 0 is none", take(lease(path, 4, flags=wire.LVER)))
    holder2.ask("it has lver 2", inquire())
    holder2.ask("let go", release(name(4)))
    holder2.ask("lver that agrees", take(lease(path, 4, flags=wire.LVER, lver=2)))
    wanted = lease(path, 5, flags=wire.NUM_HOSTS, data32=33)
    holder2.ask("num_hosts", take(wanted))
    stage.disk("R5 with num_hosts", path, 5 * MIB)
    for number in (4, 5):
        host.ask(f"read R{number}", read(path, number))
        host.ask(f"owners of R{number}", owners(path, number))


def releasing(stage: Stage) -> None:
    """Every form of RELEASE, and what it leaves on the disk."""
    host = stage.host("one")
    path = prepare(stage, host, 4)
    holder = host.client("holder")
    ask = holder.ask
    ask("release what is not held", release(name(1)))
    ask("release all of nothing", release(flags=1))
    ask("R1 to R3", acquire(*(lease(path, number) for number in (1, 2, 3))))
    ask("one", release(name(2)))
    stage.disk("R2 released", path, 2 * MIB)
    ask("one of two is not held", release(name(2), name(1)))
    holder.holds("the other one went")
    ask("R1 and R2 again", acquire(lease(path, 1), lease(path, 2)))
    holder.holds("freed slots are used again")
    host.ask("by pid", release(name(3), pid=holder.pid))
    ask("all", release(flags=1))
    holder.holds("nothing is left")
    ask("rename what is not held", release(name(1), wire.resource("LS", "NEW"), flags=2))
    ask("R4", acquire(lease(path, 4)))
    ask("rename", release(name(4), wire.resource("LS", "NEW"), flags=2))
    stage.disk("renamed", path, 4 * MIB)
    host.ask("read it under its new name", read(path, 4))
    new = wire.lease("LS", "NEW", path, 4 * MIB)
    host.ask("read the new name", request(Cmd.READ_RESOURCE, new))
    ask("acquire the new name", acquire(new))
    ask("rename back", release(wire.resource("LS", "NEW"), name(4), flags=2))
    ask("R1 with path in release", acquire(lease(path, 1)))
    # Only the names count, whatever else a caller leaves in the struct.
    other_flags = wire.resource("LS", "R1", 3, flags=wire.SHARED, lver=99)
    ask("release with other fields", release(other_flags))


def telling(stage: Stage) -> None:
    """INQUIRE's text for odd names and paths."""
    host = stage.host("one")
    path = prepare(stage, host, 1)
    for word in ("colon:ed", "back\\slash", "sp ace"):
        copy = stage.directory / word
        os.link(path, copy)
        client = host.client(f"holder {word}")
        client.ask(f"acquire by {word}", acquire(lease(copy, 1)))
        differs = None
        if " " in word:
            differs = Differs(
                "3.8.5 cannot tell a path with a space (9.3)",
                real=["result -81, data2 1, length 33", "  '\\x00'", "then open"],
                ours=[
                    "result 0, data2 1, length *",
                    "  'LS:R1:$DIR/sp\\\\ ace:1048576:3\\x00'",
                    "then open",
                ],
            )
        client.holds(f"inquire {word}", differs=differs)
        client.quietly(release(flags=1))
    holder = host.client("holder of long names")
    for size in (47, 48):
        long = "n" * size
        flags = wire.SIZES_512_1M
        wanted = wire.lease("LS", long, path, 2 * MIB, flags=flags)
        host.ask(f"format a name of {size}", request(Cmd.WRITE_RESOURCE, wanted))
        holder.ask(f"acquire a name of {size}", acquire(wanted))
        if size < 48:
            holder.holds(f"inquire a name of {size}")
        holder.ask(f"release a name of {size}", release(wire.resource("LS", long)))


def lifetimes(stage: Stage) -> None:
    """A client lives as long as anybody has its descriptor; a second REGISTER changes nothing."""
    host = stage.host("one")
    path = prepare(stage, host, 2)
    parent = host.client("parent")
    parent.ask("the parent takes R1", acquire(lease(path, 1)))
    child = parent.fork()
    parent.kill_only()
    host.ask("the child keeps it", inquire(parent.pid))
    other = host.client("other")
    other.ask("nobody else gets it", acquire(lease(path, 1)))
    os.kill(child, signal.SIGKILL)
    parent.await_unknown()

    def is_free() -> bool:
        return wire.result(other.quietly(acquire(lease(path, 1)))) == 0

    stage.until(is_free, "the lease is released")
    other.quietly(release(flags=1))
    other.ask("other takes R2", acquire(lease(path, 2)))
    other.register()
    other.ask(
        "after a second REGISTER",
        inquire(),
        differs=Differs(
            "3.8.5 forgets what the client holds (6.1)",
            real=["result 0, data2 0, length 32", "then open"],
            ours=[
                "result 0, data2 1, length *",
                "  'LS:R2:$DIR/leases:2097152:1\\x00'",
                "then open",
            ],
        ),
    )


def disks(stage: Stage) -> None:
    """A lease on three disks."""
    host = stage.host("one")
    prepare(stage, host, 1)
    three = [stage.file(word, 2) for word in ("da", "db", "dc")]
    places = b"".join(wire.disk(where, MIB) for where in three)
    wanted = wire.resource("LS", "R3D", 3, flags=wire.SIZES_512_1M) + places
    host.ask("format", request(Cmd.WRITE_RESOURCE, wanted))
    holder = host.client("holder")
    holder.ask("acquire", acquire(wanted))
    holder.holds("held")
    host.ask("status", status())
    host.cli("status by process", "status", "-o", "p")
    for where in three:
        stage.disk(f"{where.name} held", where, MIB)
    holder.ask("to shared", convert(wire.resource("LS", "R3D", flags=wire.SHARED)))
    holder.ask("to exclusive", convert(wire.resource("LS", "R3D")))
    holder.ask("release", release(wire.resource("LS", "R3D")))
    for where in three:
        stage.disk(f"{where.name} free", where, MIB)
    host.ask("read", request(Cmd.READ_RESOURCE, wanted))
    nowhere = stage.directory / "nowhere"
    lost: dict[str, tuple[tuple[Path, ...], int, int]] = {
        "first missing": ((nowhere, three[1], three[2]), 0, -2),
        "second missing": ((three[0], nowhere, three[2]), -222, -2),
        "third missing": ((three[0], three[1], nowhere), -222, -2),
        "third empty": ((three[0], three[1], stage.file("de", 2)), -222, 0),
        "two empty": ((three[0], stage.file("df", 2), stage.file("dg", 2)), -222, -223),
    }
    for step, (chosen, real, ours) in lost.items():
        places = b"".join(wire.disk(where, MIB) for where in chosen)
        outcomes = [
            [f"result {result}, data2 0, length 32", "then open"] for result in (real, ours)
        ]
        holder.ask(
            f"acquire, {step}",
            acquire(wire.resource("LS", "R3D", 3) + places),
            differs=Differs(
                "every path has to be there, and then a majority is enough; 3.8.5 wants all but"
                " the first",
                *outcomes,
            ),
        )
        holder.quietly(release(flags=1))


SCRIPTS = (lifetimes, disks, targets, acquiring, releasing, telling)
