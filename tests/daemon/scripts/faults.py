"""A disk that returns errors or hangs, under leases; the lockspace lies on a good one."""

from __future__ import annotations

from tests.cli.ill_file import FuseMissing as FuseMissing, IllFile, require_fuse as require_fuse
from tests.daemon import wire
from tests.daemon.scripts.common import (
    SPACE,
    format_resources,
    format_space,
    lease,
    name,
    owners,
    read,
    status,
)
from tests.daemon.stage import MIB, Differs, Stage
from tests.daemon.wire import Cmd, acquire, convert, release, request


class IllDisk(IllFile):
    """A disk of a stage that can be made to fail or hang."""

    def __init__(self, stage: Stage, mib: int) -> None:
        backing = stage.file("backing", mib)
        super().__init__(stage.directory, backing)
        stage.keep(self.close)


def errors(stage: Stage) -> None:
    """EIO from the disk of the resources."""
    disk = IllDisk(stage, 12)
    host = stage.host("one")
    # Before the daemon is ended: one that waits for its disk cannot be killed.
    stage.keep(lambda: disk.become("good"))
    spaces = stage.file("spaces", 2)
    path = disk.path
    format_space(host, spaces)
    format_resources(host, path, 6)
    host.join(SPACE, 1, spaces, is_ready=False)
    holder = host.client("holder")
    holder.ask("R1 to R3", acquire(*(lease(path, number) for number in (1, 2, 3))))
    disk.become("read-error")
    holder.ask("acquire, no read", acquire(lease(path, 4)))
    holder.ask("acquire shared, no read", acquire(lease(path, 4, flags=wire.SHARED)))
    host.ask("read", read(path, 1))
    host.ask("owners", owners(path, 1))
    host.ask("read lockspace", request(Cmd.READ_LOCKSPACE, wire.lockspace(SPACE, 1, path)))
    host.ask("request, no read", request(Cmd.REQUEST, lease(path, 1, lver=9), data=1))
    host.ask("add lockspace", request(Cmd.ADD_LOCKSPACE, wire.lockspace("L2", 1, path), data=1))
    holder.ask("convert, no read", convert(name(1, flags=wire.SHARED)))
    holder.holds("after a convert without reads")
    holder.ask(
        "release, no read",
        release(name(1)),
        differs=Differs(
            "ours goes on with the conversion that failed; the release follows it",
            real=["result -5, data2 0, length 32", "then open"],
            ours=["result -202, data2 0, length 32", "then open"],
        ),
    )
    holder.holds("after a release without reads")
    disk.become("write-error")
    holder.ask("acquire, no write", acquire(lease(path, 4)))
    holder.ask(
        "acquire shared, no write",
        acquire(lease(path, 4, flags=wire.SHARED)),
        differs=Differs(
            "what the failed ballot may have left is still being cleared away",
            real=["result -211, data2 0, length 32", "then open"],
            ours=["result -11, data2 0, length 32", "then open"],
        ),
    )
    sizes = wire.SIZES_512_1M
    host.ask(
        "write resource",
        request(Cmd.WRITE_RESOURCE, wire.lease(SPACE, "R9", path, 9 * MIB, flags=sizes)),
    )
    space = wire.lockspace("L2", 0, path, 9 * MIB, sizes)
    host.ask("write lockspace", request(Cmd.WRITE_LOCKSPACE, space))
    host.ask("format index", request(Cmd.FORMAT_RINDEX, wire.rindex(SPACE, path, 9 * MIB)))
    host.ask("request, no write", request(Cmd.REQUEST, lease(path, 2, lver=9), data=1))
    holder.ask("convert, no write", convert(name(2, flags=wire.SHARED)))
    holder.ask("release, no write", release(name(3)))
    holder.holds("at last")
    disk.become("good")
    stage.until(lambda: b"list=rem" not in host.quietly(status()), "nothing is being released")
    other = host.client("other")

    def is_cleared_away() -> bool:
        return wire.result(other.quietly(acquire(lease(path, 4)))) == 0

    stage.until(is_cleared_away, "R4 can be had")
    other.ask("R1 and R3 when the disk is good", acquire(lease(path, 1), lease(path, 3)))


def hangs(stage: Stage) -> None:
    """A disk that does not answer: -202, and what is done when it does."""
    disk = IllDisk(stage, 8)
    host = stage.host("one")
    # Before the daemon is ended: one that waits for its disk cannot be killed.
    stage.keep(lambda: disk.become("good"))
    spaces = stage.file("spaces", 2)
    path = disk.path
    format_space(host, spaces)
    format_resources(host, path, 4)
    host.join(SPACE, 1, spaces, is_ready=False)
    holder, other = host.client("holder"), host.client("other")
    holder.ask("R1 and R2", acquire(lease(path, 1), lease(path, 2)))
    disk.become("read-hang")
    holder.ask("acquire, reads hang", acquire(lease(path, 3)))
    disk.become("write-hang")
    holder.ask("acquire, writes hang", acquire(lease(path, 4)))
    holder.ask("release, writes hang", release(name(1)))
    holder.holds("after the release")
    other.ask("R1 is being released", acquire(lease(path, 1)))
    host.ask(
        "the lockspace is not hurt", request(Cmd.INQ_LOCKSPACE, wire.lockspace(SPACE, 1, spaces))
    )
    disk.become("good")
    stage.until(lambda: b"list=rem" not in host.quietly(status()), "R1 is released", 20)
    other.ask("R1 is free", acquire(lease(path, 1)))
    other.ask("R3 is free", acquire(lease(path, 3)))
    stage.disk("R1 after all", path, MIB)


SCRIPTS = (errors, hangs)
