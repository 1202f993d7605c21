"""How clients are killed: removal, a lockspace that fails, requests; killpath and restrictions."""

from __future__ import annotations

import os
from pathlib import Path

from tests.daemon import areas, wire
from tests.daemon.scripts.common import lease, name, prepare, status
from tests.daemon.stage import MIB, Differs, Host, Stage
from tests.daemon.wire import Cmd, acquire, inquire, killpath, release, request

NO_SIGKILL, NO_SIGTERM = 2, 4


def _restrict(flags: int) -> bytes:
    return request(Cmd.RESTRICT, flags=flags, data2=wire.OWN)


class _Path:
    """A killpath that writes down how it was called."""

    def __init__(self, stage: Stage, name: str) -> None:
        self._stage = stage
        self._name = name
        self.program = stage.directory / name
        self._seen = stage.directory / f"{name}.seen"
        quoted = f"'{self._seen}'"
        text = f'#!/bin/sh\nfor word in "$0" "$@"; do echo "$word"; done >{quoted}.new\n'
        self.program.write_text(f"{text}mv {quoted}.new {quoted}\n")
        self.program.chmod(0o755)

    def has_run(self) -> bool:
        """Return whether it has been called."""
        return self._seen.exists()

    def see(self, step: str, limit_s: float = 15.0) -> None:
        """Wait for its call and note its words."""
        self._stage.until(self.has_run, f"{self._name} is run", limit_s)
        words = self._seen.read_text().splitlines()
        self._stage.see(step, [self._stage.masks.text(word) for word in words])


def by_removal(stage: Stage) -> None:
    """REM_LOCKSPACE kills whoever holds a lease, at once and without a killpath."""
    host = stage.host("one")
    path = prepare(stage, host, 4)
    program = _Path(stage, "killpath")
    plain, gentle, polite, idle = (
        host.client(word) for word in ("plain", "gentle", "polite", "idle")
    )
    for number, client in enumerate((plain, gentle, polite), 1):
        client.quietly(acquire(lease(path, number)))
    plain.ask("killpath", killpath(str(program.program), "plain"))
    gentle.ask("no SIGKILL", _restrict(NO_SIGKILL))
    polite.ask("no SIGTERM", _restrict(NO_SIGTERM))
    idle.ask("all restricted and lifted again", _restrict(0))
    host.ask("status of restrictions", status())
    space = wire.lockspace("LS", 1, path)
    host.ask("refused when unused is wanted", request(Cmd.REM_LOCKSPACE, space, flags=2))
    host.ask("rem", request(Cmd.REM_LOCKSPACE, space))
    plain.fate("without restriction")
    gentle.fate("without SIGKILL")
    polite.fate("without SIGTERM")
    idle.ask("who held nothing lives", inquire())
    stage.see("the killpath", ["run" if program.has_run() else "not run"])
    stage.disk("R1 was not released", path, MIB)
    stage.disk("the lockspace was left", path, 0)


def by_failure(stage: Stage) -> None:
    """Another host overwrites our record: the lockspace fails at once."""
    host = stage.host("one")
    path = prepare(stage, host, 6, is_ready=True)
    program = _Path(stage, "killpath")
    script = str(program.program)
    plain, warned, strict, idle = (
        host.client(word) for word in ("plain", "warned", "strict", "idle")
    )
    for number, client in enumerate((plain, warned, strict), 1):
        client.quietly(acquire(lease(path, number)))
    args = 'a b\\ c \\\\d it\'s "q" $HOME six seven eight'
    warned.ask("killpath with the pid", killpath(script, args, flags=1))
    warned.ask("the flag stays", killpath(script, "lost " + "x" * 200))
    warned.ask("killpath again", killpath(script, args))
    strict.ask("no SIGTERM", _restrict(NO_SIGTERM))
    # The generation of our record, as another life of this host id would have it.
    areas.alter_leader(path, 0, 40, (9).to_bytes(8, "little"))
    plain.fate("without killpath")
    program.see("how the killpath was called")
    strict.fate("without SIGTERM")
    host.ask("acquire for who is being killed", acquire(lease(path, 4), pid=warned.pid))
    warned.holds("it still holds its lease")
    idle.ask("acquire by another", acquire(lease(path, 5)))
    space = wire.lockspace("LS", 1, path)
    host.ask("config", request(Cmd.SET_CONFIG, space, data=1))
    host.ask("request", request(Cmd.REQUEST, lease(path, 1, lver=9), data=1))
    host.ask(
        "lookup", request(Cmd.LOOKUP_RINDEX, wire.rindex("LS", path, 8 * MIB) + wire.rentry("a"))
    )
    host.ask("inq", request(Cmd.INQ_LOCKSPACE, space))
    host.ask("status while failing", status())
    host.ask("release by pid", release(pid=warned.pid, flags=1))
    stage.until(lambda: _is_gone(host, space), "the lockspace is dropped", 30)
    warned.ask("it lives on", inquire())
    stage.disk("R2 was not released", path, 2 * MIB)
    stage.disk("our record was not freed", path, 0)


def after_failure(stage: Stage) -> None:
    """Join again after our record was overwritten by somebody: whose it is now nobody knows."""
    host = stage.host("one")
    path = prepare(stage, host, 2, is_ready=True)
    holder = host.client("holder")
    holder.quietly(acquire(lease(path, 1)))
    holder.ask("no SIGTERM", _restrict(NO_SIGTERM))
    areas.alter_leader(path, 0, 40, (9).to_bytes(8, "little"))
    holder.fate("who held a lease")
    space = wire.lockspace("LS", 1, path)
    stage.until(lambda: _is_gone(host, space), "the lockspace is dropped", 30)
    joined = ["result 0, data2 0, length 32", "then open"]
    host.ask(
        "join again",
        request(Cmd.ADD_LOCKSPACE, space, data=1),
        limit_s=100,
        differs=Differs(
            "3.8.5 takes a record of its name for its own and waits 2 s only; a name is no proof",
            real=joined,
            ours=joined,
        ),
    )
    other = host.client("other")
    other.ask("acquire again", acquire(lease(path, 1)))
    stage.disk("R1 in the new life", path, MIB)


def _is_gone(host: Host, space: bytes) -> bool:
    return wire.result(host.quietly(request(Cmd.INQ_LOCKSPACE, space))) == -2


def _force(host: Host, path: Path, number: int, mode: int) -> bytes:
    wanted = lease(path, number)
    return host.ask(
        f"request R{number} mode {mode}", request(Cmd.REQUEST, wanted, flags=1, data=mode)
    )


def by_request(stage: Stage) -> None:
    """A request for the next version, seen by an EXAMINE: kill, warn, or nothing."""
    host = stage.host("one")
    path = prepare(stage, host, 6)
    program = _Path(stage, "killpath")
    clients = {word: host.client(word) for word in ("forced", "warned", "plain", "odd", "late")}
    clients["warned"].ask("killpath", killpath(str(program.program), "why not", flags=1))
    for number, client in enumerate(clients.values(), 1):
        client.quietly(acquire(lease(path, number)))
    # Requests go by the killpath that was set when the lease was acquired.
    clients["late"].ask("killpath too late", killpath("/bin/false", ""))
    for number, mode in enumerate((1, 2, 2, 9, 2), 1):
        _force(host, path, number, mode)
    host.ask("old version", request(Cmd.REQUEST, lease(path, 1, lver=1), data=1))
    host.ask("lower than the pending one", request(Cmd.REQUEST, lease(path, 1, lver=1), data=1))
    host.ask("equal to the pending one", request(Cmd.REQUEST, lease(path, 1, lver=2), data=1))
    host.ask("a greater one", request(Cmd.REQUEST, lease(path, 1, lver=7), data=1))
    host.ask("lower than that", request(Cmd.REQUEST, lease(path, 1, lver=5), data=1))
    host.ask("clear it", request(Cmd.REQUEST, lease(path, 6)))
    host.ask("free", request(Cmd.REQUEST, lease(path, 6, lver=9), data=1))
    stage.disk("R1 requested", path, MIB)
    host.ask("no disks", request(Cmd.REQUEST, name(1), data=1))
    host.ask("five disks", request(Cmd.REQUEST, wire.resource("LS", "R1", 5)), probes=False)
    host.ask("another lockspace", request(Cmd.REQUEST, wire.lease("XX", "R1", path, MIB), data=1))
    host.ask("no file", request(Cmd.REQUEST, wire.lease("LS", "R1", "/nowhere", 0, lver=9), data=1))
    host.ask(
        "no lease there",
        request(Cmd.REQUEST, wire.lease("LS", "R1", path, 8 * MIB, lver=9), data=1),
    )
    host.ask("examine one that is not held", request(Cmd.EXAMINE_RESOURCE, name(6)))
    host.ask("examine one", request(Cmd.EXAMINE_RESOURCE, name(1)))
    clients["forced"].fate("forced")
    host.ask("examine all", request(Cmd.EXAMINE_LOCKSPACE, wire.lockspace("LS")))
    program.see("graceful, with a killpath")
    clients["plain"].fate("graceful, without a killpath")
    clients["late"].fate("graceful, with a killpath set after the acquire")
    clients["odd"].holds("an unknown mode is ignored")
    clients["warned"].holds("who was warned holds it until it lets go")


def by_request_shared(stage: Stage) -> None:
    """A request for a shared lease: there is no single holder to kill."""
    host = stage.host("one")
    path = prepare(stage, host, 2)
    sharer = host.client("sharer")
    sharer.quietly(acquire(lease(path, 1)))
    _force(host, path, 1, 1)
    sharer.quietly(release(name(1)))
    # Left over, and greater than the version of the shared lease that is taken now.
    host.ask("a later request", request(Cmd.REQUEST, lease(path, 1, lver=50), data=1))
    areas.write(path, MIB + 512 + 8, (50).to_bytes(8, "little"))
    areas.write(path, MIB + 512 + 16, (1).to_bytes(4, "little"))
    sharer.quietly(acquire(lease(path, 1, flags=wire.SHARED)))
    # 3.8.5 may end before it is asked anything else.
    host.ask("examine", request(Cmd.EXAMINE_RESOURCE, name(1)), probes=False)

    def has_examined() -> bool:
        if host.daemon.process.poll() is not None:
            return True
        return stage.kind == "ours" and b"flags=3" not in host.quietly(status())

    stage.until(has_examined, "the request is looked at")
    ended = host.daemon.process.poll()
    shown = ["the daemon lives" if ended is None else f"the daemon ended with {ended}"]
    stage.see(
        "a shared holder is requested",
        shown,
        differs=Differs(
            "3.8.5 signals pid 0, its own process group (16.3)",
            real=[f"the daemon ended with -{int(os.WTERMSIG(9))}"],
            ours=["the daemon lives"],
        ),
    )


SCRIPTS = (by_removal, by_failure, by_request, by_request_shared)
LONG = (after_failure,)
