"""`paxoslease status`, `log`, `restart`, `shutdown`: the daemon itself."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from typing import Any

from paxoslease.cli.connecting import REQUEST_SECONDS, add_command, connect, items, text
from paxoslease.cli.exits import Exit
from paxoslease.cli.output import print_json, print_table
from paxoslease.errors import ConfigError
from paxoslease.wire import sanlock as wire

_RESTART_SECONDS = 30.0
_SHUTDOWN_SECONDS = 10.0
_LIST = {"spaces": "joined", "add": "joining", "rem": "leaving"}


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands."""
    add_command(commands, "status", "show the daemon's lockspaces, clients and leases", _status)
    add_command(commands, "log", "print the daemon's log of all levels, from memory", _log)
    add_command(
        commands,
        "restart",
        "have the daemon execute its program anew, with every lease kept",
        _restart,
        "Have the daemon execute its program anew (after an upgrade, say). Lockspaces, leases, "
        "clients and their connections are kept; clients notice a short pause.",
    )
    shutdown = add_command(
        commands,
        "shutdown",
        "end the daemon",
        _shutdown,
        "End the daemon. Refused while it has lockspaces; --force leaves them, and kills whoever "
        "holds leases of them.",
    )
    shutdown.add_argument("--force", action="store_true", help="leave all lockspaces first")


def _status(arguments: argparse.Namespace) -> int:
    daemon: dict[str, Any] = {}
    spaces: list[dict[str, Any]] = []
    clients: list[dict[str, Any]] = []
    leases = 0
    with connect(arguments, timeout_s=REQUEST_SECONDS) as connection:
        for state, subject in connection.status():
            shown = items(state)
            if state.type == wire.StateType.DAEMON:
                daemon = {
                    "host_name": text(state.name),
                    "version": shown.get("version_str", ""),
                    "now": int(shown.get("monotime", "0")),
                    "watchdog": shown.get("use_watchdog") == "1",
                }
            elif state.type == wire.StateType.LOCKSPACE and isinstance(subject, wire.Lockspace):
                spaces.append(_space(subject, shown, daemon.get("now", 0)))
            elif state.type == wire.StateType.CLIENT and state.data32 > 0:
                clients.append({"pid": state.data32, "name": text(state.name), "leases": 0})
            elif state.type == wire.StateType.RESOURCE:
                leases += 1
                for client in clients:
                    if client["pid"] == state.data32:
                        client["leases"] += 1
    if arguments.json:
        print_json({**daemon, "lockspaces": spaces, "clients": clients, "leases": leases})
        return Exit.OK
    print(
        f"daemon of host {daemon.get('host_name', '?')}, compatible with sanlock "
        f"{daemon.get('version', '?')}, {'with' if daemon.get('watchdog') else 'without'} watchdog"
    )
    _print_part("lockspaces", spaces)
    _print_part("clients", clients)
    print(f"{leases} leases (`paxoslease leases` lists them)" if leases else "no leases")
    return Exit.OK


def _space(subject: wire.Lockspace, shown: dict[str, str], now: int) -> dict[str, Any]:
    state = _LIST.get(shown.get("list", ""), "")
    if shown.get("space_dead") == "1" and state == "joined":
        state = "failed"
    renewed = int(shown.get("renewal_last_success", "0"))
    return {
        "lockspace": text(subject.name),
        "host_id": subject.host_id,
        "generation": int(shown.get("host_generation", "0")),
        "state": state,
        "io_timeout": int(shown.get("io_timeout", "0")),
        "renewed_ago_s": max(0, now - renewed) if renewed else None,
        "place": f"{text(subject.disk.path)}:{subject.disk.offset}",
    }


def _print_part(what: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        heads = [key.replace("_", " ") for key in rows[0]]
        print_table(heads, [["" if v is None else v for v in row.values()] for row in rows])
    else:
        print(f"no {what}")


def _log(arguments: argparse.Namespace) -> int:
    with connect(arguments, timeout_s=REQUEST_SECONDS) as connection:
        data = connection.log_dump()
    if arguments.json:
        print_json({"lines": data.decode("utf-8", "backslashreplace").splitlines()})
    else:
        sys.stdout.write(data.decode("utf-8", "backslashreplace") + "\n")
    return Exit.OK


def _restart(arguments: argparse.Namespace) -> int:
    """Send the signal, and wait until the new image answers."""
    with connect(arguments, timeout_s=_RESTART_SECONDS) as connection:
        connection.version()  # there is one
        pid = _pid(arguments)
        before = _started(pid)
        began = time.monotonic()
        os.kill(pid, signal.SIGUSR2)
        while _started(pid) == before and time.monotonic() - began < _RESTART_SECONDS:
            time.sleep(0.02)
        if _started(pid) == before:
            sys.stderr.write("paxoslease: the daemon goes on as it is; `paxoslease log` says why\n")
            return Exit.FAILED
        connection.version()
    took_s = time.monotonic() - began
    if arguments.json:
        print_json({"pid": pid, "took_s": round(took_s, 3)})
    else:
        print(f"daemon {pid} restarted in {took_s:.2f} s")
    return Exit.OK


def _pid(arguments: argparse.Namespace) -> int:
    """Return the process id of the daemon that answers."""
    from paxoslease.client import socket_path

    path = os.path.join(os.path.dirname(socket_path(arguments.run_dir)), "sanlock.pid")
    try:
        with open(path, "rb") as file:
            return int(file.read(32))
    except OSError as error:
        raise ConfigError("run directory", f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError("run directory", f"{path} has no process id in it") from error


def _started(pid: int) -> str:
    """Return what changes when a process executes another image: where its stack is."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[25].decode()
    except (OSError, IndexError):
        return ""


def _shutdown(arguments: argparse.Namespace) -> int:
    with connect(arguments) as connection:
        connection.version()  # there is one
        daemon = os.pidfd_open(_pid(arguments))
        connection.shutdown_wait(force=int(arguments.force))
    # It answers a moment before it ends, and until then no other can start.
    try:
        select.select([daemon], [], [], _SHUTDOWN_SECONDS)
    finally:
        os.close(daemon)
    if arguments.json:
        print_json({"state": "ended"})
    else:
        print("the daemon has ended")
    return Exit.OK
