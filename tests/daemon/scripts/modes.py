"""Shared and exclusive, conversion, value blocks, orphans: on one host."""

from __future__ import annotations

from tests.daemon import areas, wire
from tests.daemon.scripts.common import lease, name, owners, prepare, status
from tests.daemon.stage import MIB, Differs, Stage
from tests.daemon.wire import Cmd, acquire, convert, inquire, release, request

SH = wire.SHARED


def sharing(stage: Stage) -> None:
    """Several clients share a lease, and convert it."""
    host = stage.host("one")
    path = prepare(stage, host, 3)
    one, two = host.client("first"), host.client("second")
    one.ask("first shares", acquire(lease(path, 1, flags=SH)))
    one.ask("first shares twice", acquire(lease(path, 1, flags=SH)))
    one.holds("held twice")
    two.ask("second shares", acquire(lease(path, 1, flags=SH)))
    two.ask("second wants it exclusively", acquire(lease(path, 1)))
    host.ask("status of sharers", status())
    host.ask("owners", owners(path, 1))
    one.ask("first lets go once", release(name(1)))
    one.holds("held once")
    one.ask("first lets go", release(name(1)))
    stage.disk("R1 still shared", path, MIB)
    two.ask("already shared", convert(name(1, flags=SH)))
    two.ask("to exclusive", convert(name(1)))
    two.holds("exclusive has an lver")
    stage.disk("R1 exclusive", path, MIB)
    two.ask("already exclusive", convert(name(1)))
    one.ask("first cannot share", acquire(lease(path, 1, flags=SH)))
    two.ask("back to shared", convert(name(1, flags=SH)))
    stage.disk("R1 shared again", path, MIB)
    one.ask("now it can", acquire(lease(path, 1, flags=SH)))
    two.ask("convert what is not held", convert(name(2)))
    host.ask("convert by pid, already", convert(name(1, flags=SH), pid=two.pid))
    two.kill()
    one.holds("the other sharer stays")
    one.ask("last lets go", release(name(1)))
    stage.disk("R1 free", path, MIB)
    host.ask("no owners", owners(path, 1))


def sharing_unsafely(stage: Stage) -> None:
    """What 3.8.5 gets wrong: a conversion while another client of the host shares the lease."""
    host = stage.host("one")
    path = prepare(stage, host, 1)
    one, two = host.client("first"), host.client("second")
    for client in (one, two):
        client.quietly(acquire(lease(path, 1, flags=SH)))
    one.ask(
        "to exclusive while another shares",
        convert(name(1)),
        differs=Differs(
            "3.8.5 does not look at the other sharers of its own host (9.4)",
            real=["result 0, data2 0, length 32", "then open"],
            ours=["result -11, data2 0, length 32", "then open"],
        ),
    )
    two.holds("the other one believes it has it")
    one.ask(
        "release of the converted",
        release(name(1)),
        differs=Differs(
            "it follows from the conversion",
            real=["result -201, data2 0, length 32", "then open"],
            ours=["result 0, data2 0, length 32", "then open"],
        ),
    )


def values(stage: Stage) -> None:
    """Lock value blocks."""
    host = stage.host("one")
    path = prepare(stage, host, 2)
    holder = host.client("holder")
    get, put = Cmd.GET_LVB, Cmd.SET_LVB
    holder.ask("R1 with a value", acquire(lease(path, 1), flags=1))
    holder.ask("R2 without", acquire(lease(path, 2)))
    for number, what in ((1, "held"), (2, "held without a value"), (3, "not held")):
        host.ask(f"get, {what}", request(get, name(number)))
        host.ask(f"set, {what}", request(put, name(number) + b"hello"))
    host.ask("get all", request(get, name(1)))
    host.ask("set in part", request(put, name(1) + b"J"))
    host.ask("get after", request(get, name(1)))
    host.ask("get 8", request(get, name(1), data2=8))
    host.ask("set 512", request(put, name(1) + bytes(range(256)) * 2))
    host.ask("set 513", request(put, name(1) + bytes(513)))
    host.ask("set 5000", request(put, name(1) + bytes(5000)), probes=False)
    stage.disk("before the release", path, MIB)
    host.ask("status of a dirty value", status())
    holder.ask("release", release(name(1)))
    stage.disk("after the release", path, MIB)
    holder.ask("again with a value", acquire(lease(path, 1), flags=1))
    host.ask("it was kept", request(get, name(1)))
    host.ask("another value", request(put, name(1) + b"second"))
    holder.ask("to shared writes it", convert(name(1, flags=SH)))
    stage.disk("after the conversion", path, MIB)
    host.ask("set while shared", request(put, name(1) + b"lost"))
    holder.ask("release shared", release(name(1)))
    stage.disk("a shared holder's value is lost", path, MIB)
    holder.ask("shared with a value", acquire(lease(path, 1, flags=SH), flags=1))
    host.ask("get while shared", request(get, name(1)))
    holder.kill()


def orphans(stage: Stage) -> None:
    """Persistent leases whose client has gone."""
    host = stage.host("one")
    path = prepare(stage, host, 5)
    holder = host.client("holder")
    keep = wire.PERSISTENT
    holder.ask(
        "persistent leases",
        acquire(
            lease(path, 1, flags=keep), lease(path, 2, flags=keep | SH), lease(path, 3, flags=keep)
        ),
    )
    holder.ask("an ordinary one", acquire(lease(path, 4)))
    holder.kill()
    stage.until(lambda: b"list=rem" not in host.quietly(status()), "R4 is released")
    host.ask("status of orphans", status())
    stage.disk("R1 as an orphan", path, MIB)
    heir = host.client("heir")
    heir.ask("without the flag", acquire(lease(path, 1)))
    heir.ask("in another mode", acquire(lease(path, 1, flags=SH), flags=2))
    heir.ask("shared orphan exclusively", acquire(lease(path, 2), flags=2))
    heir.ask("adopt", acquire(lease(path, 1), flags=2))
    heir.ask("adopt the shared one, only", acquire(lease(path, 2, flags=SH), flags=4))
    heir.holds("two adopted")
    heir.ask("orphan flag without an orphan", acquire(lease(path, 4), flags=2))
    heir.ask(
        "orphan only, without an orphan",
        acquire(lease(path, 5), flags=4),
        differs=Differs(
            "3.8.5 takes a new lease instead (9.1)",
            real=["result 0, data2 0, flags 0x4 seq 0, length 32", "then open"],
            ours=["result -2, data2 0, flags 0x4 seq 0, length 32", "then open"],
        ),
    )
    heir.quietly(release(name(5)))
    heir.ask("orphan only, with a value", acquire(lease(path, 5), flags=5))
    heir.ask("drop one", release(name(3), flags=4))
    heir.ask("drop it again", release(name(3), flags=4))
    heir.kill()
    stage.until(lambda: b"list=rem" not in host.quietly(status()), "the adopted are released")
    host.ask("adopted leases are ordinary", status())
    again = host.client("again")
    again.quietly(acquire(lease(path, 1, flags=keep), lease(path, 2, flags=keep)))
    again.kill()
    other = host.client("other")
    host.ask("drop all, by an unregistered connection", release(wire.resource("LS", ""), flags=4))
    other.ask("drop all of a lockspace", release(wire.resource("LS", ""), flags=4))
    other.ask("none is left", release(wire.resource("LS", ""), flags=4))


def orphans_hold(stage: Stage) -> None:
    """USED_BY_ORPHANS keeps the lockspace until its orphans are gone."""
    host = stage.host("one")
    path = prepare(stage, host, 2)
    space = wire.lockspace("LS", 1, path)
    host.ask("used by orphans", request(Cmd.SET_CONFIG, space, data=4))
    holder = host.client("holder")
    holder.quietly(acquire(lease(path, 1, flags=wire.PERSISTENT)))
    holder.kill()
    host.ask("rem unused", request(Cmd.REM_LOCKSPACE, space, flags=2))
    host.ask("rem, not waiting", request(Cmd.REM_LOCKSPACE, space, flags=1))
    other = host.client("other")

    def is_failing() -> bool:
        again = request(Cmd.SET_CONFIG, space, data=4)
        return wire.result(host.quietly(again)) == -28

    stage.until(is_failing, "the removal has begun")
    host.ask("it is still there", request(Cmd.INQ_LOCKSPACE, space))
    other.ask("drop the orphan", release(name(1), flags=4))

    def is_gone() -> bool:
        return wire.result(host.quietly(request(Cmd.INQ_LOCKSPACE, space))) == -2

    stage.until(is_gone, "the lockspace is gone")
    stage.disk("R1 was not released", path, MIB)
    other.ask("it is not killed", inquire())


def wide_sectors(stage: Stage) -> None:
    """Sectors of 4096 bytes: 8 MiB areas, and 1 MiB areas, where a value block has no place."""
    host = stage.host("one")
    path, narrow = stage.file("wide", 24), stage.file("narrow", 16)
    step, flags = 8 * MIB, wire.SIZES_4K_8M
    space = wire.lockspace("LS", 0, path, 0, flags)
    host.ask("format", request(Cmd.WRITE_LOCKSPACE, space, data2=1))
    wanted = wire.lease("LS", "R1", path, step, flags=flags)
    host.ask("format R1", request(Cmd.WRITE_RESOURCE, wanted))
    host.join("LS", 1, path, is_ready=False)
    holder = host.client("holder")
    holder.ask("acquire", acquire(wanted, flags=1))
    host.ask("set", request(Cmd.SET_LVB, name(1) + bytes(range(256)) * 16))
    host.ask("set too much", request(Cmd.SET_LVB, name(1) + bytes(4097)), probes=False)
    host.ask("get", request(Cmd.GET_LVB, name(1)))
    host.ask("status", status())
    stage.disk("R1", path, step, sector_size=4096)
    holder.ask("release", release(name(1)))
    value = areas.read(path, step + 2002 * 4096, 4096)
    stage.see("the value on the disk", [str(value == bytes(range(256)) * 16)])
    of_512 = wire.lease("LS", "R512", path, 2 * step, flags=wire.SIZES_512_1M)
    host.ask("format a lease with 512", request(Cmd.WRITE_RESOURCE, of_512))
    holder.ask("a lease with 512 in a lockspace with 4096", acquire(of_512))
    # 4096-byte sectors in areas of 1 MiB, in a lockspace of their own.
    space = wire.lockspace("L1", 0, narrow, 0, 0x210)
    host.quietly(request(Cmd.WRITE_LOCKSPACE, space, data2=1))
    wanted = wire.lease("L1", "R1", narrow, MIB, flags=0x210)
    host.ask("format in 1 MiB", request(Cmd.WRITE_RESOURCE, wanted))
    far = wire.lockspace("L1", 251, narrow)
    host.ask("host id beyond 250", request(Cmd.ADD_LOCKSPACE, far, data=1))
    host.join("L1", 1, narrow, is_ready=False)
    holder.ask(
        "a value where it has no place",
        acquire(wanted, flags=1),
        differs=Differs(
            "the value block would lie in a foreign lease (9.7)",
            real=["result 0, data2 0, flags 0x1 seq 0, length 32", "then open"],
            ours=["result -22, data2 0, flags 0x1 seq 0, length 32", "then open"],
        ),
    )
    holder.quietly(release(flags=1))
    holder.ask("without a value", acquire(wanted))
    stage.disk("R1 in 1 MiB", narrow, MIB, sector_size=4096)


SCRIPTS = (wide_sectors, sharing, sharing_unsafely, values, orphans, orphans_hold)
