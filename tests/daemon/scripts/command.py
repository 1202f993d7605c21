"""Debian's commands, `sanlock client` and `sanlock direct`, and its Python module."""

from __future__ import annotations

import signal

from tests.daemon.scripts.common import SPACE, lease, prepare
from tests.daemon.stage import MIB, Stage
from tests.daemon.wire import Cmd, acquire, request

OURS = "paxoslease."  # files in the run directory that only our daemon has


def lockspaces(stage: Stage) -> None:
    """`sanlock client` for lockspaces and formatting."""
    host = stage.host("one")
    path = stage.file("leases", 16)
    cli, space = host.cli, f"LS:1:{path}:0"
    cli("version", "version")
    cli("no lockspaces", "gets", "-h", "1")
    cli("init lockspace", "init", "-s", space, "-o", "1")
    cli("init resource", "init", "-r", f"LS:R1:{path}:1M")
    cli("init with hosts", "init", "-r", f"LS:R2:{path}:2M", "-n", "5", "-m", "7")
    cli("init cleared", "init", "-r", f"LS:R3:{path}:3M", "-z", "1")
    cli("init sizes", "init", "-r", f"LS:R4:{path}:4M", "-Z", "512", "-A", "1M")
    cli("init half a size", "init", "-r", f"LS:R4:{path}:4M", "-Z", "512")
    cli("init nothing", "init")
    for number in (2, 3):
        stage.disk(f"R{number}", path, number * MIB)
    cli("read lockspace", "read", "-s", space, "-D")
    cli("read resource", "read", "-r", f"LS:R1:{path}:1M", "-D")
    cli("read cleared", "read", "-r", f"LS:R3:{path}:3M")
    cli("read nothing", "read")
    cli("align", "align", "-s", f"x:0:{path}:0")
    cli("add of a missing file", "add_lockspace", "-s", "LS:1:/nowhere:0")
    cli("add", "add_lockspace", "-s", space, "-o", "1")
    cli("add again", "add_lockspace", "-s", space, "-o", "1")
    cli("inq", "inq_lockspace", "-s", space)
    cli("gets", "gets")
    host.await_hosts(SPACE)
    cli("gets with hosts", "gets", "-h", "1")
    cli("status", "status")
    cli("status in full", "status", "-D")
    for key in ("p", "s"):
        cli(f"status by {key}", "status", "-o", key)
    cli("host status", "host_status")
    cli("host status in full", "host_status", "-s", "LS", "-D")
    cli("host status unknown", "host_status", "-s", "XX")
    cli("renewal unknown", "renewal", "-s", "XX")
    cli("set used", "set_config", "-s", "LS", "-u", "1")
    cli("set unused", "set_config", "-s", "LS", "-u", "0")
    cli("set nothing", "set_config", "-s", "LS")
    cli("set event", "set_event", "-s", "LS", "-i", "2", "-g", "3", "-e", "4", "-d", "5")
    cli("examine lockspace", "examine", "-s", space)
    cli("examine resource", "examine", "-r", "LS:R1")
    cli("request", "request", "-r", f"LS:R1:{path}:1M:9", "-f", "2")
    index = f"LS:{path}:10M"
    cli("format", "format", "-x", index)
    cli("create", "create", "-x", index, "-e", "ra")
    cli("lookup", "lookup", "-x", index, "-e", "ra")
    cli("lookup free", "lookup", "-x", index)
    cli("update", "update", "-x", index, "-e", "zz:15M")
    cli("update remove", "update", "-x", index, "-e", ":15M", "-z", "1")
    cli("delete", "delete", "-x", index, "-e", "ra")
    cli("delete again", "delete", "-x", index, "-e", "ra")
    cli("rebuild", "rebuild", "-x", index)
    host.direct("dump", "dump", f"{path}:0:{4 * MIB}")
    host.direct("read leader", "read_leader", "-r", f"LS:R2:{path}:2M")
    cli("shutdown", "shutdown")
    cli("shutdown waiting", "shutdown", "-w", "1")
    cli("rem", "rem_lockspace", "-s", space)
    cli("rem again", "rem_lockspace", "-s", space)
    cli("unknown", "nonsense")


def leases(stage: Stage) -> None:
    """`sanlock client` for leases of a registered process."""
    host = stage.host("one")
    path = prepare(stage, host, 4)
    cli = host.cli
    holder = host.client("holder")
    pid = str(holder.pid)
    one, two = f"LS:R1:{path}:1M", f"LS:R2:{path}:2M"
    cli("acquire", "acquire", "-r", one, "-r", f"{two}:SH", "-p", pid)
    cli("acquire again", "acquire", "-r", one, "-p", pid)
    cli("acquire without a pid", "acquire", "-r", one)
    cli("acquire with an lver", "acquire", "-r", f"LS:R3:{path}:3M:5", "-p", pid)
    cli("inquire", "inquire", "-p", pid)
    cli("inquire in full", "inquire", "-p", pid, "-D")
    cli("status", "status")
    cli("status by process", "status", "-o", "p")
    cli("owners", "read", "-r", one, "-h", "1")
    cli("owners shared", "read", "-r", two, "-h", "1")
    cli("convert", "convert", "-r", f"{one}:SH", "-p", pid)
    cli("convert again", "convert", "-r", f"{one}:SH", "-p", pid)
    cli("release", "release", "-r", "LS:R1", "-p", pid)
    cli("release again", "release", "-r", "LS:R1", "-p", pid)
    cli("release all", "release", "-a", "1", "-p", pid)
    cli("nothing left", "inquire", "-p", pid)
    cli("persistent", "acquire", "-r", f"LS:R3:{path}:3M", "-P", "1", "-n", "40", "-p", pid)
    holder.kill()
    cli("unknown", "inquire", "-p", pid)
    other = host.client("other")
    cli("orphan", "acquire", "-r", f"LS:R3:{path}:3M", "-O", "1", "-p", str(other.pid))
    cli("command", "command", "-r", one, "-c", "/bin/echo", "run", "under", "a", "lease")
    cli("command refused", "command", "-r", f"LS:R3:{path}:3M", "-c", "/bin/echo", "never")
    stage.until(lambda: b"list=rem" not in host.quietly(request(Cmd.STATUS)), "R1 is released")
    stage.disk("R1 after the command", path, MIB)


def module(stage: Stage) -> None:
    """Every function of the `sanlock` module."""
    host = stage.host("one")
    path = stage.file("leases", 16)
    sizes = {"align": MIB, "sector": 512}
    place = {"path": str(path), "offset": 0}
    user = host.python("user")
    call = user.call
    call("write lockspace", "write_lockspace", lockspace=b"LS", **place, iotimeout=1, **sizes)
    call("read lockspace", "read_lockspace", **place, **sizes)
    one = {"lockspace": b"LS", "resource": b"R1", "disks": [(str(path), MIB)]}
    call("write resource", "write_resource", **one, **sizes)
    call("read resource", "read_resource", path=str(path), offset=MIB, **sizes)
    call("read resource, none", "read_resource", path=str(path), offset=5 * MIB, **sizes)
    where = {"lockspace": b"LS", "host_id": 1, **place}
    call("add", "add_lockspace", **where, iotimeout=1, wait=False)
    call("inq", "inq_lockspace", **where, wait=True)
    call("lockspaces", "get_lockspaces")
    host.await_hosts(SPACE)
    call("hosts", "get_hosts", lockspace=b"LS")
    call("host 1", "get_hosts", lockspace=b"LS", host_id=1)
    call("owners, none", "read_resource_owners", **one, **sizes)
    script = "/bin/true"
    call("killpath", "killpath", path=script, args=["a", "b c"], with_fd=0)
    call("acquire", "acquire", **one, with_fd=0, lvb=True)
    call("acquire again", "acquire", **one, with_fd=0)
    call("inquire", "inquire", pid=user.client.pid)
    call("inquire by descriptor", "inquire", with_fd=0)
    call("owners", "read_resource_owners", **one, **sizes)
    call("set value", "set_lvb", **one, data=b"a value")
    call("get value", "get_lvb", **one, size=16)
    call("request", "request", **one, version=9, action=1)
    call("release", "release", **one, with_fd=0)
    call("release again", "release", **one, with_fd=0)
    call("set event", "set_event", lockspace=b"LS", host_id=2, generation=0, event=4)
    call("rem unused", "rem_lockspace", **where, unused=True)
    call("rem again", "rem_lockspace", **where)


def ends(stage: Stage) -> None:
    """The ways to end a daemon that is in a lockspace."""
    host = stage.host("one")
    path = prepare(stage, host, 1)
    holder = host.client("holder")
    holder.quietly(acquire(lease(path, 1)))
    host.ask("shutdown is ignored", request(Cmd.SHUTDOWN))
    host.ask("shutdown, waiting, is refused", request(Cmd.SHUTDOWN_WAIT))
    for word in ("SIGTERM", "SIGINT", "SIGHUP"):
        host.daemon.process.send_signal(signal.Signals[word])
        host.ask(f"{word} is ignored", request(Cmd.GET_LOCKSPACES))
    host.ask("by force, waiting", request(Cmd.SHUTDOWN_WAIT, data=1), limit_s=30)
    stage.see("it has ended", [f"exit {host.daemon.wait()}"])
    holder.fate("who held a lease")
    stage.disk("the lockspace was left", path, 0)
    names = sorted(entry.name for entry in host.daemon.run_dir.iterdir())
    stage.see("what it leaves behind", [name for name in names if not name.startswith(OURS)])
    host.daemon.start_again()
    host.join(SPACE, 1, path, is_ready=False)
    host.ask("by force, not waiting", request(Cmd.SHUTDOWN, data=1))
    stage.see("the end by force", [f"exit {host.daemon.wait()}"])
    stage.disk("the lockspace was left again", path, 0)


def ends_idle(stage: Stage) -> None:
    """The ways to end a daemon that is in no lockspace."""
    host = stage.host("one")
    host.daemon.process.send_signal(signal.SIGTERM)
    host.daemon.wait()
    for word in ("SIGTERM", "SIGINT", "SIGHUP"):
        host.daemon.start_again()
        host.daemon.process.send_signal(signal.Signals[word])
        stage.see(f"{word} without a lockspace", [f"exit {host.daemon.wait()}"])
    for step, data in {"orderly": 0, "by force": 1}.items():
        host.daemon.start_again()
        host.ask(f"{step}", request(Cmd.SHUTDOWN, data=data))
        stage.see(f"{step}, the end", [f"exit {host.daemon.wait()}"])
    host.daemon.start_again()
    host.ask("waiting", request(Cmd.SHUTDOWN_WAIT))
    stage.see("waiting, the end", [f"exit {host.daemon.wait()}"])
    host.daemon.start_again()
    host.daemon.kill()
    host.daemon.start_again()
    host.ask("it starts after a crash", request(Cmd.VERSION))


SCRIPTS = (lockspaces, leases, module, ends, ends_idle)
