"""What the registry keeps: a resource that this host holds, and each client's hold on it.

Source: spec/wire-protocol.md 6.4, 9 and 14.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from paxoslease.daemon.bridge import in_thread
from paxoslease.daemon.clients import Client
from paxoslease.engine.host import engine
from paxoslease.engine.leases import Holding
from paxoslease.errors import StorageError
from paxoslease.wire import sanlock as wire

if TYPE_CHECKING:
    from paxoslease.daemon.spaces import Space

Key = tuple[bytes, bytes]


class Phase(Enum):
    """What is done with an entry, in the words of a status."""

    ACQUIRING = "add"
    HELD = "held"
    CONVERTING = "converting"
    RELEASING = "rem"
    ORPHAN = "orphan"


class Token:
    """One client's hold on an entry. origin: of the request for which it was acquired (slip.py)."""

    __slots__ = ("client", "entry", "is_persistent", "number", "origin")

    def __init__(
        self, number: int, client: Client, entry: Entry, is_persistent: bool, origin: int = 0
    ) -> None:
        self.number = number
        self.client = client
        self.entry = entry
        self.is_persistent = is_persistent
        self.origin = origin


class Entry:
    """A resource that this host holds, or is about to.

    lvb: the value block attached, None for none. pid: of the client that acquired it exclusively, 0
    for none. killpath, killpath_args, restricted: that client's, as they were then. reused: how
    often the resource was held before. doing, lease_before: what is under way, and the lease as it
    was noted when that began. coming_token, coming_pid: of the client for which it is
    being acquired.
    """

    def __init__(
        self, number: int, space: Space, resource: wire.Resource, client: Client | None
    ) -> None:
        self.number = number
        self.space = space
        self.resource = resource
        self.shared = resource.is_shared
        self.phase = Phase.ACQUIRING
        self.tokens: list[Token] = []
        self.holding: Holding | None = None
        self.pid = 0
        self.killpath = b""
        self.killpath_args = b""
        self.restricted = wire.RestrictFlag(0)
        if client is not None:
            self.take_over(client)
        self.lvb: bytearray | None = None
        self.is_lvb_dirty = False
        self.doing = ""
        self.lease_before: dict[str, Any] | None = None
        self.lver = 0
        self.reused = 0
        self.coming_token = 0
        self.coming_pid = 0 if client is None else client.pid

    def take_over(self, client: Client) -> None:
        """Note the client that uses it now, as it wants to be told of requests."""
        self.pid = 0 if self.shared else client.pid
        self.killpath, self.killpath_args = client.killpath, client.killpath_args
        self.restricted = client.restricted

    @property
    def key(self) -> Key:
        """Return the names by which the entry is found."""
        return self.resource.lockspace, self.resource.name

    def dump(self, lease: dict[str, Any] | None, doing: str) -> dict[str, Any]:
        """Return it as plain data: `lease` as the engine dumps it, `doing`: what is under way."""
        return {
            "resource": wire.pack_resource(self.resource, with_disks=True).hex(),
            "number": self.number,
            "phase": self.phase.value,
            "shared": self.shared,
            "tokens": [[t.client.number, t.number, t.is_persistent, t.origin] for t in self.tokens],
            "pid": self.pid,
            "killpath": self.killpath.hex(),
            "killpath_args": self.killpath_args.hex(),
            "restricted": int(self.restricted),
            "lvb": None if self.lvb is None else self.lvb.hex(),
            "lvb_dirty": self.is_lvb_dirty,
            "lver": self.lver,
            "lease": lease,
            "doing": doing,
        }

    @classmethod
    def load(cls, value: Mapping[str, Any], space: Space, resource: wire.Resource) -> Entry:
        """Return what `dump` told, without its lease and tokens; it is being worked on."""
        entry = cls(int(value["number"]), space, resource, None)
        entry.phase = Phase.CONVERTING
        entry.shared = bool(value["shared"])
        entry.pid = int(value["pid"])
        entry.killpath = bytes.fromhex(value["killpath"])
        entry.killpath_args = bytes.fromhex(value["killpath_args"])
        entry.restricted = wire.RestrictFlag(value["restricted"])
        entry.lvb = None if value["lvb"] is None else bytearray.fromhex(value["lvb"])
        entry.is_lvb_dirty = bool(value["lvb_dirty"])
        entry.lver = int(value["lver"])
        return entry

    @property
    def owner(self) -> Client | None:
        """Return the client that holds it exclusively."""
        return self.tokens[0].client if self.tokens and not self.shared else None


class HeldFiles:
    """Opens files off the loop and keeps them open meanwhile, so that nothing blocks it.

    needed: how many of the paths must be there, all by default. missing: those that are not, and
    why. Raises DiskError, UnsuitableDevice on entering: the last of them, as 3.8.5 tells it.
    """

    def __init__(self, paths: Sequence[str], needed: int | None = None) -> None:
        self._paths = paths
        self._needed = len(paths) if needed is None else needed
        self._held: list[str] = []
        self.missing: dict[str, StorageError] = {}

    async def __aenter__(self) -> HeldFiles:
        try:
            for path in dict.fromkeys(self._paths):
                await self._hold(path)
            failed = [path for path in self._paths if path in self.missing]
            if failed and len(self._paths) - len(failed) < self._needed:
                raise self.missing[failed[-1]]
        except BaseException:
            self.close()
            raise
        return self

    async def _hold(self, path: str) -> None:
        files = engine().files
        try:
            if not files.hold_open(path):
                await in_thread(files.hold, path)
        except StorageError as error:
            self.missing[path] = error
        else:
            self._held.append(path)

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the files back."""
        for path in self._held:
            engine().files.drop(path)
        self._held.clear()
