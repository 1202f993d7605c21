"""Commands of the lease daemon that need no registered client: leases on the disk, and indexes.

Each goes over a connection of its own. `client.py` builds on this.

Source: spec/wire-protocol.md 5, 11, 12 and 18.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from paxoslease.channel import Channel
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import (
    Command,
    Header,
    Host,
    Lockspace,
    Rentry,
    Resource,
    Rindex,
    RindexFlag,
    WriteFlag,
)

RUN_DIRECTORY: Final = "/run/sanlock"
SOCKET_NAME: Final = "sanlock.sock"


def socket_path(run_directory: str | None = None) -> str:
    """Return where the daemon listens: in the directory given, $SANLOCK_RUN_DIR or the usual."""
    directory = run_directory or os.environ.get("SANLOCK_RUN_DIR") or RUN_DIRECTORY
    return f"{directory}/{SOCKET_NAME}"


class StorageClient:
    """What a daemon does with the storage for anybody who asks.

    timeout_s: how long a command may take, None for as long as it does.
    Every method raises DaemonError or one of its kinds.
    """

    def __init__(self, run_directory: str | None = None, *, timeout_s: float | None = None) -> None:
        self.path = socket_path(run_directory)
        self.timeout_s = timeout_s

    @contextmanager
    def _alone(self, command: Command) -> Iterator[Channel]:
        """Give a command a connection of its own."""
        channel = Channel(command, self.path, self.timeout_s)
        with channel.socket:
            yield channel

    def _do(
        self,
        command: Command,
        payload: bytes = b"",
        *,
        data: int = 0,
        data2: int = 0,
        flags: int = 0,
    ) -> Header:
        """Carry out a command whose answer is a header."""
        with self._alone(command) as channel:
            header = channel.ask(payload, data=data, data2=data2, flags=flags)
            channel.refuse(header)
            return header

    # -- storage -------------------------------------------------------------------------------

    def align(self, path: bytes) -> int:
        """Return the align size in bytes that a file or device gets by default."""
        return self._do(Command.ALIGN, wire.pack_disk(wire.Disk(path))).result

    def write_lockspace(self, space: Lockspace, io_timeout: int = 0, *, max_hosts: int = 0) -> None:
        """Format a lockspace, whatever is there. io_timeout: s, 0 for 10."""
        payload = wire.pack_lockspace(space)
        self._do(Command.WRITE_LOCKSPACE, payload, data=max_hosts, data2=io_timeout)

    def write_resource(
        self,
        resource: Resource,
        *,
        max_hosts: int = 0,
        num_hosts: int = 0,
        clear: bool = False,
    ) -> None:
        """Format a resource, or clear it, whatever is there.

        The original takes `max_hosts` for the num_hosts on the disk (spec/wire-protocol.md 5).
        """
        flags = WriteFlag.CLEAR if clear else 0
        payload = wire.pack_resource(resource, with_disks=True)
        self._do(Command.WRITE_RESOURCE, payload, data=max_hosts, data2=num_hosts, flags=flags)

    def read_lockspace(self, space: Lockspace) -> tuple[Lockspace, int]:
        """Return a lockspace as it is on the disk, and its io_timeout in seconds."""
        with self._alone(Command.READ_LOCKSPACE) as channel:
            header = channel.ask(wire.pack_lockspace(space))
            channel.refuse(header)
            return wire.parse_lockspace(channel.receive(wire.LOCKSPACE_BYTES)), header.data2

    def read_resource(self, resource: Resource) -> Resource:
        """Return names, lver and sizes of a resource on the disk, without its disks."""
        payload = wire.pack_resource(resource, with_disks=True)
        with self._alone(Command.READ_RESOURCE) as channel:
            header = channel.ask(payload)
            body = channel.receive(wire.RESOURCE_BYTES)  # behind a refusal too
            channel.refuse(header)
            return wire.parse_resource(body)

    def read_resource_owners(self, resource: Resource) -> tuple[Resource, tuple[Host, ...]]:
        """Return a resource on the disk and who owns or shares it."""
        payload = wire.pack_resource(resource, with_disks=True)
        with self._alone(Command.READ_RESOURCE_OWNERS) as channel:
            header = channel.ask(payload)
            channel.refuse(header)
            found = wire.parse_resource(channel.receive(wire.RESOURCE_BYTES))
            hosts = channel.items(header.data2, wire.HOST_BYTES)
        return found, tuple(map(wire.parse_host, hosts))

    # -- the resource index --------------------------------------------------------------------

    def format_rindex(self, rindex: Rindex) -> None:
        """Format a resource index, whatever is there."""
        self._do(Command.FORMAT_RINDEX, wire.pack_rindex(rindex))

    def rebuild_rindex(self, rindex: Rindex, *, flags: int = 0) -> None:
        """Make an index anew from the resources behind it."""
        self._do(Command.REBUILD_RINDEX, wire.pack_rindex(rindex), flags=flags)

    def lookup_rindex(self, rindex: Rindex, entry: Rentry, *, flags: int = 0) -> Rentry:
        """Return an entry by name or offset; the first free place without either."""
        return self._entry(Command.LOOKUP_RINDEX, rindex, entry, flags=flags)

    def update_rindex(
        self, rindex: Rindex, entry: Rentry, *, remove: bool = False, flags: int = 0
    ) -> Rentry:
        """Add or remove an entry; the resource itself is not touched."""
        flags |= RindexFlag.REMOVE if remove else RindexFlag.ADD
        return self._entry(Command.UPDATE_RINDEX, rindex, entry, flags=flags)

    def create_resource(
        self, rindex: Rindex, name: bytes, *, max_hosts: int = 0, num_hosts: int = 0
    ) -> int:
        """Format a resource in the first free place and enter it; returns its offset."""
        entry = Rentry(name)
        made = self._entry(Command.CREATE_RESOURCE, rindex, entry, data=max_hosts, data2=num_hosts)
        return made.offset

    def delete_resource(self, rindex: Rindex, entry: Rentry) -> None:
        """Remove a resource from the index and clear it."""
        self._entry(Command.DELETE_RESOURCE, rindex, entry)

    def _entry(
        self,
        command: Command,
        rindex: Rindex,
        entry: Rentry,
        *,
        flags: int = 0,
        data: int = 0,
        data2: int = 0,
    ) -> Rentry:
        payload = wire.pack_rindex(rindex) + wire.pack_rentry(entry)
        with self._alone(command) as channel:
            channel.refuse(channel.ask(payload, data=data, data2=data2, flags=flags))
            return wire.parse_rentry(channel.receive(wire.RENTRY_BYTES))
