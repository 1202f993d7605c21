"""Lockspaces: join, ask, configure, leave."""

from __future__ import annotations

from tests.daemon import wire
from tests.daemon.stage import MIB, Host, Stage
from tests.daemon.wire import Cmd, lockspace, request


def _format(host: Host, name: str, path: object, offset: int = 0) -> None:
    payload = lockspace(name, 0, str(path), offset, wire.SIZES_512_1M)
    host.quietly(request(Cmd.WRITE_LOCKSPACE, payload, data2=1))


def _add(*place: object, io_timeout: int = 1, is_async: bool = False) -> bytes:
    name, host_id, path, *offset = place
    payload = lockspace(str(name), int(str(host_id)), str(path), *map(int, map(str, offset)))
    return request(Cmd.ADD_LOCKSPACE, payload, data=io_timeout, flags=int(is_async))


def joining(stage: Stage) -> None:
    """Join, with every refusal that comes before, during and after."""
    host = stage.host("one")
    path = stage.file("leases", 4)
    _format(host, "LS", path)
    _format(host, "XX", path, MIB)
    host.ask("add without a host id", _add("LS", 0, path))
    host.ask("add without a name", _add("", 1, path))
    host.ask("add without a path", _add("LS", 1, ""))
    host.ask("add of a missing file", _add("LS", 1, stage.directory / "nowhere"))
    host.ask("add of a directory", _add("LS", 1, stage.directory))
    host.ask("add under another name", _add("YY", 1, path))
    host.ask("add where nothing is", _add("LS", 1, path, 2 * MIB))
    host.ask("add of a host id too big", _add("LS", 2001, path))
    host.ask("add, not waiting", _add("LS", 1, path, is_async=True))
    host.ask("add again meanwhile", _add("LS", 1, path))
    place = lockspace("LS", 1, path)
    host.ask("inq while adding", request(Cmd.INQ_LOCKSPACE, place))
    host.ask("lockspaces while adding", request(Cmd.GET_LOCKSPACES))
    host.ask("hosts while adding", request(Cmd.GET_HOSTS, place))
    host.ask("host status while adding", request(Cmd.HOST_STATUS, place, length=32))
    host.ask("renewals while adding", request(Cmd.RENEWAL, place, length=32, data2=3))
    host.ask("config while adding", request(Cmd.SET_CONFIG, place, data=1))
    host.ask("inq, waiting", request(Cmd.INQ_LOCKSPACE, place, flags=1))
    host.ask("add of what is joined", _add("LS", 1, path))
    host.ask("add with another host id", _add("LS", 2, path))
    host.ask("add with another offset", _add("LS", 1, path, MIB))
    host.ask("add of the same place under another name", _add("ZZ", 1, path))
    for step, asked in {
        "as joined": lockspace("LS", 1, path, 0),
        "any host id": lockspace("LS", 0, path, 0),
        "another host id": lockspace("LS", 2, path, 0),
        "another offset": lockspace("LS", 1, path, MIB),
        "another path": lockspace("LS", 1, "/nowhere", 0),
        "another name": lockspace("XX", 1, path, 0),
    }.items():
        host.ask(f"inq {step}", request(Cmd.INQ_LOCKSPACE, asked))
    host.ask("lockspaces", request(Cmd.GET_LOCKSPACES))
    host.await_hosts("LS")
    host.ask("hosts", request(Cmd.GET_HOSTS, lockspace("LS")))
    host.ask("one host", request(Cmd.GET_HOSTS, lockspace("LS", 1)))
    host.ask("a free host", request(Cmd.GET_HOSTS, lockspace("LS", 7)))
    host.ask("a host out of range", request(Cmd.GET_HOSTS, lockspace("LS", 2001)))
    host.ask("host status", request(Cmd.HOST_STATUS, lockspace("LS"), length=32))
    host.ask("renewals", request(Cmd.RENEWAL, lockspace("LS"), length=32))
    host.ask("status", request(Cmd.STATUS, data=3))
    stage.disk("lockspace in use", path, 0)
    host.ask("rem", request(Cmd.REM_LOCKSPACE, place))
    stage.disk("lockspace left", path, 0)
    host.ask("inq after rem", request(Cmd.INQ_LOCKSPACE, place))
    host.ask("rem again", request(Cmd.REM_LOCKSPACE, place))


def leaving(stage: Stage) -> None:
    """The ways to leave, and what a lockspace in use says to them."""
    host = stage.host("one")
    path = stage.file("leases", 4)
    _format(host, "LS", path)
    host.join("LS", 1, path)
    place = lockspace("LS", 1, path)
    for value in (1, 2, 4, 8, 0, 3, 16):
        host.ask(f"config {value}", request(Cmd.SET_CONFIG, place, data=value))
    host.quietly(request(Cmd.SET_CONFIG, place, data=1))
    host.ask("status when used", request(Cmd.STATUS, data=3))
    host.ask("rem, not waiting", request(Cmd.REM_LOCKSPACE, place, flags=1))

    def is_failing() -> bool:
        refused = request(Cmd.SET_CONFIG, place, data=1)
        return wire.result(host.quietly(refused)) == -28

    stage.until(is_failing, "the removal has begun")
    host.ask("config used while it is being removed", request(Cmd.SET_CONFIG, place, data=1))
    host.ask("config orphans while it is being removed", request(Cmd.SET_CONFIG, place, data=4))
    host.ask("inq while removal waits", request(Cmd.INQ_LOCKSPACE, place))
    host.ask("add while removal waits", _add("LS", 1, path))
    host.ask("hosts while removal waits", request(Cmd.GET_HOSTS, place))
    host.ask("unused lets it go", request(Cmd.SET_CONFIG, place, data=2))

    def is_gone() -> bool:
        return wire.result(host.quietly(request(Cmd.INQ_LOCKSPACE, place))) == -2

    stage.until(is_gone, "the lockspace is gone")
    host.ask("lockspaces after", request(Cmd.GET_LOCKSPACES))
    host.join("LS", 1, path)
    stage.disk("the second life", path, 0)
    host.ask("rem of what is not used", request(Cmd.REM_LOCKSPACE, place, flags=2))


def aborted(stage: Stage) -> None:
    """A removal during the join, and the default io_timeout."""
    host = stage.host("one")
    path = stage.file("leases", 4)
    # An io_timeout of 10 on disk makes the join last 20 s.
    payload = lockspace("LS", 0, path, 0, wire.SIZES_512_1M)
    host.quietly(request(Cmd.WRITE_LOCKSPACE, payload, data2=10))
    line = host.line()
    line.send(_add("LS", 1, path, io_timeout=0))
    place = lockspace("LS", 1, path)

    def is_adding() -> bool:
        return wire.result(host.quietly(request(Cmd.INQ_LOCKSPACE, place))) == -115

    stage.until(is_adding, "the join has begun")
    host.ask("rem while adding", request(Cmd.REM_LOCKSPACE, place))
    outcome = line.answer(Cmd.ADD_LOCKSPACE)
    told = wire.tell(Cmd.ADD_LOCKSPACE, outcome.reply, stage.masks)
    stage.see("the join that was aborted", [*told, outcome.end])
    host.ask("nothing is left", request(Cmd.GET_LOCKSPACES))


def without_wdmd(stage: Stage) -> None:
    """A watchdog is wanted, and there is no wdmd."""
    host = stage.host("one", "-w", "1")
    path = stage.file("leases", 2)
    _format(host, "LS", path)
    host.ask("add without wdmd", _add("LS", 1, path))
    host.ask("nothing is joined", request(Cmd.GET_LOCKSPACES))
    stage.disk("the record was not touched", path, 0)
    host.ask("status", request(Cmd.STATUS, data=1))


SCRIPTS = (without_wdmd, joining, leaving, aborted)
