"""The client side of the lease daemon's socket: one method for each command.

A `Connection` speaks sanlock's protocol, so it works with any daemon that does, ours or the
original. Values are those of `wire/sanlock.py`. What the daemon refuses is a `DaemonError` whose
`code` is the daemon's number.

A program that holds leases registers: from then on its connection *is* the program for the daemon,
and what it holds is released when the connection ends. The descriptor can be inherited by a program
that is executed in this one's place. Only what concerns the registered program goes over that
connection; everything else gets a short one of its own, as the original's library does it.

This module loads neither the engine nor numpy: short commands start with it.

Source: spec/wire-protocol.md 4, 5, 6 and 18.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, NamedTuple, Self

from paxoslease.channel import (
    AcquireFailed as AcquireFailed,
    Channel,
    DaemonBroken,
    DaemonError,
    DaemonSilent,
    DaemonUnreachable,
    Events,
    Record,
)
from paxoslease.client_storage import StorageClient, socket_path
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import (
    SELF,
    AcquireFlag,
    AddFlag,
    Command,
    Config,
    Header,
    Host,
    HostEvent,
    InquireFlag,
    Lockspace,
    ReleaseFlag,
    RemoveFlag,
    Resource,
)

__all__ = [
    "Connection",
    "DaemonBroken",
    "DaemonError",
    "DaemonSilent",
    "DaemonUnreachable",
    "Events",
    "Record",
    "Renewals",
    "Version",
    "socket_path",
]

_LOG_MAX: Final = 1 << 20


class Version(NamedTuple):
    """What the daemon says of itself: its release and the version of the protocol."""

    release: int
    protocol: int


class Renewals(NamedTuple):
    """The history of a lockspace: io_timeout in seconds, and a record for each renewal."""

    io_timeout: int
    records: tuple[Record, ...]


def connect(run_directory: str | None = None, *, timeout_s: float | None = None) -> Connection:
    """Return a connection to the lease daemon. Raises DaemonUnreachable when there is none.

    run_directory: default $SANLOCK_RUN_DIR, or /run/sanlock. timeout_s: for each command; None
    waits as long as it takes.
    """
    connection = Connection(run_directory, timeout_s=timeout_s)
    connection.version()
    return connection


class Connection(StorageClient):
    """A client of the daemon in a run directory.

    timeout_s: how long a command may take, None for as long as it does. One thread at a time.
    Every method raises DaemonError or one of its kinds: DaemonUnreachable, DaemonBroken (which also
    ends a registration), DaemonSilent (likewise, since the answer may come yet).
    """

    def __init__(self, run_directory: str | None = None, *, timeout_s: float | None = None) -> None:
        super().__init__(run_directory, timeout_s=timeout_s)
        self._own: Channel | None = None
        self._protocol: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the registration, and with it everything that this client holds."""
        if self._own is not None:
            self._own.socket.close()
            self._own = None

    def fileno(self) -> int:
        """Return the descriptor of the registered connection, -1 without one."""
        return -1 if self._own is None else self._own.socket.fileno()

    @contextmanager
    def _for(self, command: Command, pid: int) -> Iterator[Channel]:
        """Give a command the registered connection, or one of its own when it is for another."""
        if pid != SELF:
            with self._alone(command) as channel:
                yield channel
            return
        channel = self._registered(command)
        try:
            yield channel
        except (DaemonBroken, DaemonSilent):
            self.close()
            raise

    def _registered(self, command: Command) -> Channel:
        if self._own is None:
            self._own = Channel(command, self.path, self.timeout_s)
        else:
            self._own.timeout_s = self.timeout_s
            self._own.begin(command)
        return self._own

    def _do_for(
        self, command: Command, payload: bytes, pid: int, *, data: int = 0, flags: int = 0
    ) -> Header:
        """Carry out a command for a registered client; its answer is a header."""
        with self._for(command, pid) as channel:
            header = channel.ask(payload, data=data, data2=pid, flags=flags)
            channel.refuse(header)
            return header

    # -- this client ---------------------------------------------------------------------------

    def register(self, *, inheritable: bool = False) -> None:
        """Become a client that can hold leases. The daemon does not answer, it just knows.

        inheritable: keep the descriptor open in a program that is executed.
        """
        with self._for(Command.REGISTER, SELF) as channel:
            channel.tell()
            channel.socket.set_inheritable(inheritable)

    def restrict(self, flags: int) -> None:
        """Restrict what the daemon may do to this client, see RestrictFlag."""
        self._do_for(Command.RESTRICT, b"", SELF, flags=flags)

    def killpath(self, path: bytes, args: bytes = b"", *, flags: int = 0) -> None:
        """Name a program that stops this client when its lockspace fails, see KillpathFlag."""
        self._do_for(Command.KILLPATH, wire.pack_killpath(path, args), SELF, flags=flags)

    # -- lockspaces ----------------------------------------------------------------------------

    def add_lockspace(self, space: Lockspace, io_timeout: int = 0, *, wait: bool = True) -> None:
        """Join a lockspace. io_timeout: s, 0 for the daemon's default."""
        flags = 0 if wait else AddFlag.ASYNC
        payload = wire.pack_lockspace(space)
        self._do(Command.ADD_LOCKSPACE, payload, data=io_timeout, flags=flags)

    def inq_lockspace(self, space: Lockspace, *, wait: bool = False) -> None:
        """Succeed when a lockspace is joined; -115 while that is going on, -2 if not known."""
        flags = InquireFlag.WAIT if wait else 0
        self._do(Command.INQ_LOCKSPACE, wire.pack_lockspace(space), flags=flags)

    def rem_lockspace(
        self, space: Lockspace, *, wait: bool = True, unused_only: bool = False
    ) -> None:
        """Leave a lockspace, which kills every client that holds leases in it.

        unused_only: refuse (-16) when there are any.
        """
        flags = (0 if wait else RemoveFlag.ASYNC) | (RemoveFlag.UNUSED if unused_only else 0)
        self._do(Command.REM_LOCKSPACE, wire.pack_lockspace(space), flags=flags)

    def get_lockspaces(self) -> tuple[Lockspace, ...]:
        """Return the lockspaces: joined, being left, being joined; see LockspaceFlag."""
        with self._alone(Command.GET_LOCKSPACES) as channel:
            header = channel.ask()
            channel.refuse(header)
            found = channel.items(header.data2, wire.LOCKSPACE_BYTES)
        return tuple(map(wire.parse_lockspace, found))

    def get_hosts(self, lockspace: bytes, host_id: int = 0) -> tuple[Host, ...]:
        """Return the hosts of a lockspace that ever were, or one of them; see HostFlag."""
        payload = wire.pack_lockspace(Lockspace(lockspace, host_id))
        with self._alone(Command.GET_HOSTS) as channel:
            header = channel.ask(payload)
            channel.refuse(header)
            return tuple(map(wire.parse_host, channel.items(header.data2, wire.HOST_BYTES)))

    def set_config(self, lockspace: bytes, value: Config | int) -> None:
        """Say whether a lockspace counts as used, see Config."""
        payload = wire.pack_lockspace(Lockspace(lockspace))
        self._do(Command.SET_CONFIG, payload, data=value)

    def set_event(self, lockspace: bytes, event: HostEvent, *, flags: int = 0) -> None:
        """Send an event to a host, or to all; see EventFlag."""
        payload = wire.pack_lockspace(Lockspace(lockspace)) + wire.pack_host_event(event)
        self._do(Command.SET_EVENT, payload, flags=flags)

    def reg_event(self, lockspace: bytes) -> Events:
        """Listen to events of other hosts, on a connection of its own."""
        channel = Channel(Command.REG_EVENT, self.path, self.timeout_s)
        payload = wire.pack_lockspace(Lockspace(lockspace)) + wire.pack_host_event(HostEvent(0))
        try:
            channel.refuse(channel.ask(payload))
        except BaseException:
            channel.socket.close()
            raise
        return Events(channel, lockspace)

    def end_event(self, events: Events) -> None:
        """Listen no more."""
        events.close()
        self._do(Command.END_EVENT, wire.pack_lockspace(Lockspace(events.lockspace)))

    # -- leases --------------------------------------------------------------------------------

    def acquire(
        self,
        resources: Sequence[Resource],
        *,
        pid: int = SELF,
        flags: int = 0,
        owner_name: bytes = b"",
    ) -> None:
        """Acquire leases, all or none of them, for this client or a registered pid.

        A resource's flags and lver say how, see ResourceFlag and AcquireFlag. The owner name is
        shown in the status of the daemon. More than eight at once, up to 1024, need a daemon of
        paxoslease: sanlock's refuses them (-7). Raises AcquireFailed, which names the resource that
        was not to be had; sanlock's daemon does not tell which.
        """
        packed = b"".join(wire.pack_resource(one, with_disks=True) for one in resources)
        payload = packed + wire.pack_options(owner_name)
        count = len(resources)
        version = self.protocol if count > 1 else wire.PROTOCOL_VERSION
        if count > wire.RESOURCES_MAX and version < wire.BATCH_VERSION:
            raise DaemonError("acquire", -7)
        with self._for(Command.ACQUIRE, pid) as channel:
            header = channel.ask(payload, data=count, data2=pid, flags=flags, version=version)
            if header.result < 0:
                which = resources[header.data2 - 1] if 0 < header.data2 <= count else None
                raise AcquireFailed("acquire", header.result, which)

    @property
    def protocol(self) -> int:
        """Return the version of the protocol that the daemon speaks: BATCH_VERSION is ours.

        Asked on the registered connection, if there is one: it outlives a crash of the daemon.
        """
        if self._protocol is None:
            pid = SELF if self._own is not None else 0
            with self._for(Command.VERSION, pid) as channel:
                self._protocol = channel.ask(version=wire.BATCH_VERSION).version
        return self._protocol

    def release(self, resources: Sequence[Resource], *, pid: int = SELF) -> None:
        """Release leases; those of a list that are not held (-1) do not keep the others."""
        self._release(resources, pid, 0)

    def release_all(self, *, pid: int = SELF) -> None:
        """Release everything."""
        self._release((), pid, ReleaseFlag.ALL)

    def release_renaming(self, resource: Resource, name: bytes, *, pid: int = SELF) -> None:
        """Release a lease and give the resource another name at once."""
        named = resource._replace(name=name)
        self._release((resource, named), pid, ReleaseFlag.RENAME)

    def release_orphans(self, resource: Resource, *, pid: int = SELF) -> int:
        """Drop the orphan of a resource, or without its name all of the lockspace.

        Returns how many there were. Some registered pid is needed.
        """
        return self._release((resource,), pid, ReleaseFlag.ORPHAN)

    def _release(self, resources: Sequence[Resource], pid: int, flags: int) -> int:
        packed = b"".join(wire.pack_resource(one, with_disks=False) for one in resources)
        header = self._do_for(Command.RELEASE, packed, pid, data=len(resources), flags=flags)
        return header.result

    def inquire(self, *, pid: int = SELF) -> tuple[int, bytes]:
        """Return how many leases a client holds, and the text that describes them.

        The text is `lockspace:name:path:offset:lver` for each, with blanks between; empty for none.
        """
        with self._for(Command.INQUIRE, pid) as channel:
            header = channel.ask(data2=pid)
            text = channel.extra(header)  # a refusal may have some too
            channel.refuse(header)
        return header.data2, wire.cut(text)

    def convert(self, resource: Resource, *, pid: int = SELF, nowait: bool = False) -> None:
        """Make a lease shared, or exclusive, as the resource's SHARED flag says."""
        flags = AcquireFlag.OWNER_NOWAIT if nowait else 0
        payload = wire.pack_resource(resource, with_disks=False)
        self._do_for(Command.CONVERT, payload, pid, flags=flags)

    def request(self, resource: Resource, force_mode: int, *, flags: int = 0) -> None:
        """Ask the holder of a lease to give it up by `resource.lver`, see RequestFlag.

        force_mode: 1 kills the holder, 2 runs its killpath.
        """
        payload = wire.pack_resource(resource, with_disks=True)
        self._do(Command.REQUEST, payload, data=force_mode, flags=flags)

    def examine_lockspace(self, space: Lockspace) -> None:
        """Have the daemon look at once for requests to all leases in a lockspace."""
        self._do(Command.EXAMINE_LOCKSPACE, wire.pack_lockspace(space))

    def examine_resource(self, resource: Resource) -> None:
        """Have the daemon look at once for a request to one lease."""
        self._do(Command.EXAMINE_RESOURCE, wire.pack_resource(resource, with_disks=False))

    def set_lvb(self, resource: Resource, value: bytes) -> None:
        """Set the beginning of the value block of a lease that this host holds with one."""
        self._do(Command.SET_LVB, wire.pack_resource(resource, with_disks=False) + value)

    def get_lvb(self, resource: Resource) -> bytes:
        """Return the value block, one sector, of a lease that this host holds with one."""
        payload = wire.pack_resource(resource, with_disks=False)
        with self._alone(Command.GET_LVB) as channel:
            header = channel.ask(payload)
            channel.refuse(header)
            return channel.extra(header)

    # -- the daemon ----------------------------------------------------------------------------

    def status(self, kind: int = 0) -> Iterator[Record]:
        """Yield the state of the daemon, clients, lockspaces and resources.

        kind: 1 for the daemon only, 2 with clients, 3 with lockspaces, 0 for all.
        """
        with self._alone(Command.STATUS) as channel:
            channel.refuse(channel.ask(data=kind))
            yield from channel.records()

    def host_status(self, lockspace: bytes) -> Iterator[Record]:
        """Yield what is known of each host that was ever seen in a lockspace."""
        with self._alone(Command.HOST_STATUS) as channel:
            channel.refuse(channel.ask(wire.pack_lockspace(Lockspace(lockspace))))
            yield from channel.records()

    def renewals(self, lockspace: bytes) -> Renewals:
        """Return the latest renewals of a lockspace, oldest first."""
        with self._alone(Command.RENEWAL) as channel:
            header = channel.ask(wire.pack_lockspace(Lockspace(lockspace)))
            channel.refuse(header)
            return Renewals(header.data2, tuple(channel.records()))

    def log_dump(self) -> bytes:
        """Return the latest lines of the daemon's log."""
        with self._alone(Command.LOG_DUMP) as channel:
            header = channel.ask()
            channel.refuse(header)
            if header.data > _LOG_MAX:
                raise channel.broken(f"the answer announces a log of {header.data} bytes")
            return channel.receive(header.data)

    def version(self) -> Version:
        """Return the daemon's release, as 0x03080500, and its protocol's version."""
        header = self._do(Command.VERSION)
        return Version(header.data2, header.version)

    def shutdown(self, *, force: int = 0) -> None:
        """Ask the daemon to end, and do not wait: it ignores that while lockspaces are joined."""
        with self._alone(Command.SHUTDOWN) as channel:
            channel.tell(data=force)

    def shutdown_wait(self, *, force: int = 0) -> None:
        """End the daemon and wait until it has left every lockspace."""
        self._do(Command.SHUTDOWN_WAIT, data=force)
