"""How the daemon becomes a newer program without ending: its state goes through a file and exec.

POSIX locks belong to the process and stay as long as no descriptor of their file is closed, exec
or not. So the descriptors of all locks, clients and sockets stay open, a file says what they are,
and the program executes itself. The layout is virtlockd's (spec/lock-drivers.md 7.5): when the
file that a running virtlockd executes on SIGUSR1 has been replaced by this program, it takes over
virtlockd's locks and clients. What virtlockd does not know of, half a request for instance, stands
in a member of its own, "paxoslease".

No operation is under way then, and no other thread is left. A descriptor that an operation has just
opened would be closed by exec, and with it any lock on its file would go.

Signals are blocked from before exec until the new image can handle them: one that comes meanwhile
would end the process, and all locks with it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Final

from paxoslease.lockd.connection import Connection
from paxoslease.lockd.daemon import Daemon
from paxoslease.lockd.files import Identity, identity_of
from paxoslease.lockd.places import ADMIN_SOCKET_NAME, SOCKET_NAME, Listener, PidFile
from paxoslease.lockd.processes import Peer, peer_of
from paxoslease.lockd.session import Owner, Session
from paxoslease.lockd.space import LockTable, Resource
from paxoslease.wire.virtlock import AcquireFlag

_log = logging.getLogger(__name__)

HANDLED_SIGNALS: Final = (
    signal.SIGUSR1,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
)
_EXTRA: Final = "paxoslease"
_SIZE_MAX: Final = 256 << 20
_KEEPALIVE_OFF: Final = 4294967295
_FIRST_KEPT: Final = 3
# What may be wrong with a file that somebody else wrote.
_BROKEN = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)


# -- the old image ---------------------------------------------------------------------------


def execute(daemon: Daemon, pid_file: PidFile | None) -> None:
    """Become a new image of the program. Returns when that is not possible; nothing has changed.

    To be called when the daemon is quiet.
    """
    path = daemon.settings.places.state
    descriptors = _descriptors(daemon, pid_file)
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    try:
        daemon.work.end_threads()
        _write(path, exported(daemon, pid_file))
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError as error:
        _log.error("restart_failed error=%s", error)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    path.unlink(missing_ok=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)


def _descriptors(daemon: Daemon, pid_file: PidFile | None) -> list[int]:
    """Return every descriptor that the new image needs."""
    found = daemon.table.descriptors()
    found += [connection.socket.fileno() for connection in daemon.connections.values()]
    found += [c.pidfd for c in daemon.connections.values() if c.pidfd is not None]
    found += daemon.stopping
    listeners = (daemon.listener, daemon.admin_listener)
    found += [listener.socket.fileno() for listener in listeners if listener]
    return found + ([pid_file.descriptor] if pid_file else [])


def _write(path: Path, state: dict[str, Any]) -> None:
    """Write the state into a new file: not into one that is there, which may be anybody's."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    with open(descriptor, "w", encoding="ascii") as file:
        json.dump(state, file)


def exported(daemon: Daemon, pid_file: PidFile | None) -> dict[str, Any]:
    """Return all state as it is written."""
    clients = [_client(number, c) for number, c in daemon.connections.items()]
    admin = daemon.admin_listener
    spaces = {
        directory: [_resource(resource) for resource in lockspace.resources.values()]
        for directory, lockspace in daemon.table.lockspaces.items()
    }
    default = spaces.pop(b"")
    return {
        "daemon": {
            "servers": {
                "virtlockd": _server(daemon, [daemon.listener], clients),
                "admin": _server(daemon, [admin] if admin else [], []),
            }
        },
        "defaultLockspace": {"resources": default},
        "lockspaces": [
            {"directory": os.fsdecode(directory), "resources": resources}
            for directory, resources in spaces.items()
        ],
        "magic": str(os.getpid()),
        _EXTRA: {
            "pid_file": pid_file.descriptor if pid_file else -1,
            "stopping": [[pid, pidfd] for pidfd, (pid, _) in daemon.stopping.items()],
            "parked": [[number, *identity] for number, identity in daemon.table.parked()],
        },
    }


def _server(
    daemon: Daemon, listeners: list[Listener], clients: list[dict[str, Any]]
) -> dict[str, Any]:
    services = [
        {
            "auth": 0,
            "readonly": False,
            "nrequests_client_max": 1,
            "socks": [_socket(listener.socket, unlink=listener.is_ours, is_client=False)],
        }
        for listener in listeners
    ]
    return {
        "min_workers": 0,
        "max_workers": 0,
        "priority_workers": 0,
        "max_clients": daemon.settings.max_clients,
        "max_anonymous_clients": daemon.settings.max_clients,
        "keepaliveInterval": _KEEPALIVE_OFF,
        "keepaliveCount": 0,
        "next_client_id": daemon.next_client_id,
        "services": services,
        "clients": clients,
    }


def _socket(open_socket: socket.socket, *, unlink: bool, is_client: bool) -> dict[str, Any]:
    return {
        "fd": open_socket.fileno(),
        "errfd": -1,
        "pid": 0,
        "isClient": is_client,
        "unlinkUNIX": unlink,
    }


def _client(number: int, connection: Connection) -> dict[str, Any]:
    owner = connection.session.owner or Owner(bytes(16), b"", 0, 0)
    return {
        "id": number,
        "auth": 0,
        "auth_pending": False,
        "readonly": False,
        "nrequests_max": 1,
        "conn_time": int(time.time()),
        "sock": _socket(connection.socket, unlink=False, is_client=True),
        "privateData": {
            "restricted": connection.session.is_restricted,
            "ownerPid": owner.pid,
            "ownerId": owner.owner_id,
            "ownerName": os.fsdecode(owner.name),
            "ownerUUID": str(uuid.UUID(bytes=owner.uuid)),
        },
        _EXTRA: {
            "pidfd": -1 if connection.pidfd is None else connection.pidfd,
            "kept": connection.kept.hex(),
            "received_size": connection.received_size,
            "descriptors_left": connection.descriptors_left,
            "unsent": connection.unsent.hex(),
        },
    }


def _resource(resource: Resource) -> dict[str, Any]:
    return {
        "name": os.fsdecode(resource.name),
        "path": os.fsdecode(resource.path),
        "fd": resource.descriptor,
        "lockHeld": True,
        "flags": int(resource.flags),
        "owners": resource.owners,
        _EXTRA: {"identity": resource.identity},
    }


# -- the new image ---------------------------------------------------------------------------


def left_state(path: Path) -> dict[str, Any] | None:
    """Return what an earlier image of this very process left, and remove the file.

    None when there is nothing, or what is there is another process's.
    """
    try:
        with path.open("rb") as file:
            path.unlink()
            state = json.loads(file.read(_SIZE_MAX))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.error("state_unreadable path=%s error=%s", path, error)
        return None
    if not isinstance(state, dict) or state.get("magic") != str(os.getpid()):
        _log.warning("state_of_another_process path=%s", path)
        return None
    if not _is_whole(state):
        _log.error("state_unreadable path=%s error=%s", path, "members are missing")
        return None
    return state


def _is_whole(state: dict[str, Any]) -> bool:
    """Tell whether a state has what must be there before its single entries are looked at."""
    try:
        server = state["daemon"]["servers"]["virtlockd"]
        spaces = [state["defaultLockspace"], *state["lockspaces"]]
        lists = [server["clients"], server["services"], *(space["resources"] for space in spaces)]
        return all(isinstance(found, list) for found in lists)
    except (KeyError, TypeError):
        return False


def inherited_listeners(state: dict[str, Any]) -> dict[str, Listener]:
    """Return the sockets that the earlier image listened on, by the service manager's names."""
    found = {}
    servers = state["daemon"]["servers"]
    for name, key in ((SOCKET_NAME, "virtlockd"), (ADMIN_SOCKET_NAME, "admin")):
        for service in servers.get(key, {}).get("services", []):
            for sock in service["socks"]:
                listening = socket.socket(fileno=_kept(sock["fd"]))
                found[name] = Listener(listening, is_ours=bool(sock["unlinkUNIX"]))
    return found


def inherited_pid_file(state: dict[str, Any], path: Path) -> PidFile | None:
    """Return the pid file that the earlier image held, None if it was not this program."""
    descriptor = state.get(_EXTRA, {}).get("pid_file", -1)
    return PidFile(path, _kept(descriptor)) if descriptor >= 0 else None


def adopt_table(state: dict[str, Any], table: LockTable) -> None:
    """Take over all locks. What cannot be taken over is logged: its owner has no lock any more."""
    spaces = [("", state["defaultLockspace"])]
    spaces += [(space["directory"], space) for space in state["lockspaces"]]
    for directory, space in spaces:
        table.adopt_lockspace(os.fsencode(directory))
        for entry in space["resources"]:
            try:
                _adopt_resource(entry, os.fsencode(directory), table)
            except _BROKEN as error:
                _log.error("lock_not_adopted resource=%r error=%r", entry, error)
    for descriptor, *identity in state.get(_EXTRA, {}).get("parked", []):
        table.park(_kept(descriptor), Identity(*identity))


def _adopt_resource(entry: dict[str, Any], directory: bytes, table: LockTable) -> None:
    descriptor = _kept(entry["fd"])
    told = entry.get(_EXTRA, {}).get("identity")
    identity = Identity(*told) if told else identity_of(descriptor)
    resource = Resource(
        os.fsencode(entry["name"]),
        os.fsencode(entry["path"]),
        descriptor,
        identity,
        AcquireFlag(entry["flags"]),
        [int(owner) for owner in entry["owners"]],
    )
    table.adopt(directory, resource)


def adopt_clients(state: dict[str, Any], daemon: Daemon) -> None:
    """Take over all clients, and the processes that were being stopped."""
    server = state["daemon"]["servers"]["virtlockd"]
    for entry in server["clients"]:
        try:
            _adopt_client(entry, daemon)
        except _BROKEN as error:
            _log.error("client_not_adopted client=%r error=%r", entry, error)
    daemon.next_client_id = max(daemon.next_client_id, int(server.get("next_client_id", 1)))
    for pid, pidfd in state.get(_EXTRA, {}).get("stopping", []):
        daemon.stop_process(pid, _kept(pidfd))
    for entry in state["daemon"]["servers"].get("admin", {}).get("clients", []):
        os.close(_kept(entry["sock"]["fd"]))


def _adopt_client(entry: dict[str, Any], daemon: Daemon) -> None:
    private, extra = entry["privateData"], entry.get(_EXTRA, {})
    client = socket.socket(fileno=_kept(entry["sock"]["fd"]))
    peer = peer_of(client)
    if extra.get("pidfd", -1) >= 0:
        if peer.pidfd is not None:
            os.close(peer.pidfd)
        peer = Peer(peer.pid, peer.uid, _kept(extra["pidfd"]))
    owner = None
    if private["ownerId"]:
        name, identity = os.fsencode(private["ownerName"] or ""), uuid.UUID(private["ownerUUID"])
        owner = Owner(identity.bytes, name, private["ownerId"], private["ownerPid"])
    session = Session(daemon.table, owner, is_restricted=private["restricted"])
    connection = daemon.add_connection(client, session, peer, entry["id"])
    connection.kept += bytes.fromhex(extra.get("kept", ""))
    connection.received_size = extra.get("received_size", 0)
    connection.descriptors_left = extra.get("descriptors_left", 0)
    connection.unsent = bytes.fromhex(extra.get("unsent", ""))


def _kept(descriptor: int) -> int:
    """Return a descriptor that is open, close-on-exec again."""
    if descriptor < _FIRST_KEPT:
        raise ValueError(f"descriptor {descriptor} is a standard one")
    os.set_inheritable(descriptor, False)
    return descriptor
