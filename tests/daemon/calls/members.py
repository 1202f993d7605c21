"""Random requests of clients of a daemon that has joined a lockspace.

Its leases lie in the areas of the file `one`, and some elsewhere. Who holds what is told by whoever
makes the calls, so that most of them make sense.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

from tests.daemon import wire
from tests.daemon.calls.calls import Raw, Reconnect
from tests.daemon.calls.drawing import MIB, Draw
from tests.daemon.calls.requests import Requests
from tests.daemon.wire import LVER, NUM_HOSTS, PERSISTENT, SHARED, Cmd

SPACE: Final = b"JS"
CLIENTS: Final = ("a", "b", "c")
# Name, and file and MiB of each disk.
PLACES: Final[dict[bytes, tuple[tuple[bytes, int], ...]]] = {
    b"R1": ((b"one", 1),),
    b"R2": ((b"one", 2),),
    b"R3": ((b"one", 3),),
    b"R4": ((b"one", 4),),
    b"R5": ((b"with:colon", 1),),
    b"D2": ((b"one", 6), (b"two", 1)),
    b"D3": ((b"one", 7), (b"two", 2), (b"wide", 0)),
}
LVB, ORPHAN, NOWAIT = 1, 2, 8
ALL, RENAME, RELEASE_ORPHAN = 1, 2, 4

# The private lease of the index: ours says on the disk that it has let go of it.
IGNORED: Final = {"two": (5 * MIB, 6 * MIB)}

# Mode of what each client holds, by name: "SH" or the lver; several times when shared so.
Held = Mapping[str, Sequence[tuple[bytes, bytes]]]


class Members:
    """Requests of clients that hold leases."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.others = Requests(draw)
        self.held: Held = {}

    def formats(self) -> list[bytes]:
        """Return the requests that format everything."""
        found = []
        for name in PLACES:
            lease = self.lease(name, flags=wire.SIZES_512_1M)
            found.append(wire.request(Cmd.WRITE_RESOURCE, lease))
        return found

    def lease(self, name: bytes, *, flags: int = 0, lver: int = 0, data32: int = 0) -> bytes:
        """Return one of the leases with its disks."""
        places = PLACES[name]
        head = wire.resource(SPACE, name, len(places), flags=flags, lver=lver, data32=data32)
        here = self.draw.here
        return head + b"".join(wire.disk(here + b"/" + file, at * MIB) for file, at in places)

    def next(self) -> Raw | Reconnect:
        """Return the next request."""
        kind = self.draw.weighted(
            {
                self.acquire: 30,
                self.release: 22,
                self.convert: 10,
                self.set_lvb: 5,
                self.get_lvb: 6,
                self.inquire: 6,
                self.owners: 8,
                self.read: 4,
                self.request: 5,
                self.killpath: 2,
                self.restrict: 2,
                self.examine: 2,
                self.status: 4,
                self.lockspace: 8,
                self.event: 3,
                self.index: 8,
                self.reconnect: 3,
            }
        )
        return kind()

    # -- pieces ----------------------------------------------------------------------------------

    def _names(self, client: str) -> list[bytes]:
        return [name for name, _ in self.held.get(client, ())]

    def _name_of_others(self) -> bytes:
        draw = self.draw
        return draw.one(list(PLACES)) if draw.chance(0.95) else draw.resource(0.5)

    def _held_name(self, client: str) -> bytes:
        names = self._names(client)
        if names and self.draw.chance(0.85):
            return self.draw.one(names)
        return self._name_of_others()

    def _by(self, client: str, data: bytes) -> Raw:
        """Send it on the client's own connection, or for it on another."""
        if self.draw.chance(0.85):
            return Raw(data, client)
        other = self.draw.one(("", *CLIENTS))
        return Raw(data, other, pid_of=client)

    def _bare(self, name: bytes, flags: int = 0) -> bytes:
        return struct.pack("<48s48s", SPACE, name) + struct.pack("<QQIIII", 0, 0, 0, 0, flags, 0)

    def _is_shared_by_others(self, client: str, name: bytes) -> bool:
        count = sum(
            (name, b"SH") == (held, mode) for who in self.held for held, mode in self.held[who]
        )
        return count > 1

    # -- leases ----------------------------------------------------------------------------------

    def acquire(self) -> Raw:
        """Acquire a few leases."""
        draw = self.draw
        leases = []
        for _ in range(draw.one((1, 1, 1, 1, 2, 2, 3))):
            flags = SHARED if draw.chance(0.45) else 0
            flags |= PERSISTENT if draw.chance(0.15) else 0
            lver = data32 = 0
            if draw.chance(0.08):
                flags |= LVER
                lver = draw.one((0, 1, 2, 3, 5))
            if draw.chance(0.04):
                flags |= NUM_HOSTS
                data32 = draw.one((1, 3, 2000))
            name = draw.one(list(PLACES))
            lease = self.lease(name, flags=flags, lver=lver, data32=data32)
            if draw.chance(0.06):
                lease = self.others.lease()[0]
                lease = SPACE.ljust(48, b"\0") + lease[48:] if draw.chance(0.8) else lease
            leases.append(lease)
        flags = LVB if draw.chance(0.3) else 0
        flags |= ORPHAN if draw.chance(0.25) else 0
        flags |= NOWAIT if draw.chance(0.2) else 0
        owner = draw.one(("", "", "guest", "o" * 48))
        return self._by(draw.one(CLIENTS), wire.acquire(*leases, flags=flags, owner=owner))

    def release(self) -> Raw:
        """Release some, all, orphans, or one under another name."""
        draw = self.draw
        client = draw.one(CLIENTS)
        name = self._held_name(client)
        if draw.chance(0.7):
            names = [name]
            if draw.chance(0.2):
                names.append(self._held_name(client))
            data = wire.release(*(self._bare(name, SHARED * draw.chance(0.1)) for name in names))
        elif draw.chance(0.4):
            data = wire.release(flags=ALL)
        elif draw.chance(0.6):
            name = b"" if draw.chance(0.1) else self._name_of_others()
            data = wire.release(self._bare(name), flags=RELEASE_ORPHAN)
        else:
            new = draw.one((name, name, b"new", b"x" * 48))
            data = wire.release(self._bare(name), self._bare(new), flags=RENAME)
        return self._by(client, data)

    def convert(self) -> Raw:
        """Convert a lease."""
        draw = self.draw
        client = draw.one(CLIENTS)
        name = self._held_name(client)
        flags = SHARED if draw.chance(0.5) or self._is_shared_by_others(client, name) else 0
        return self._by(client, wire.convert(self._bare(name, flags), flags=draw.one((0, 0, 8))))

    def set_lvb(self) -> Raw:
        """Set a value block."""
        draw = self.draw
        value = draw.random.randbytes(draw.one((1, 8, 16, 511, 512, 513, 4096)))
        name = self._held_name(draw.one(CLIENTS))
        return Raw(wire.request(Cmd.SET_LVB, self._bare(name) + value))

    def get_lvb(self) -> Raw:
        """Read a value block."""
        name = self._held_name(self.draw.one(CLIENTS))
        return Raw(wire.request(Cmd.GET_LVB, self._bare(name)))

    def inquire(self) -> Raw:
        """Ask what a client holds."""
        return self._by(self.draw.one(CLIENTS), wire.inquire())

    def owners(self) -> Raw:
        """Read who owns a lease."""
        lease = self.lease(self.draw.one(list(PLACES)))
        return Raw(wire.request(Cmd.READ_RESOURCE_OWNERS, lease))

    def read(self) -> Raw:
        """Read a lease."""
        return Raw(wire.request(Cmd.READ_RESOURCE, self.lease(self.draw.one(list(PLACES)))))

    def request(self) -> Raw:
        """Ask an owner for something that it does not do."""
        draw = self.draw
        name = self._held_name(draw.one(CLIENTS))
        # Of a lease on several disks ours asks on all of them.
        name = name if name in PLACES and len(PLACES[name]) == 1 else b"R1"
        lease = self.lease(name, lver=draw.one((0, 0, 1, 2, 5, 50)))
        flags, force_mode = draw.one((0, 1)), draw.one((0, 9))
        return Raw(wire.request(Cmd.REQUEST, lease, flags=flags, data=force_mode))

    def killpath(self) -> Raw:
        """Set a killpath."""
        sent = self.others.of(Cmd.KILLPATH).data
        return Raw(sent[:28] + struct.pack("<I", wire.OWN) + sent[32:], self.draw.one(CLIENTS))

    def restrict(self) -> Raw:
        """Restrict signals."""
        flags = self.draw.one((0, 2, 4, 6))
        return Raw(wire.request(Cmd.RESTRICT, flags=flags, data2=wire.OWN), self.draw.one(CLIENTS))

    def examine(self) -> Raw:
        """Have the requests looked at."""
        if self.draw.chance(0.5):
            return Raw(wire.request(Cmd.EXAMINE_LOCKSPACE, wire.lockspace(SPACE)))
        name = self._held_name(self.draw.one(CLIENTS))
        return Raw(wire.request(Cmd.EXAMINE_RESOURCE, self._bare(name)))

    def status(self) -> Raw:
        """Ask for everything."""
        return Raw(wire.request(Cmd.STATUS, data=self.draw.one((0, 0, 0, 1, 2, 3))))

    # -- lockspaces ------------------------------------------------------------------------------

    def lockspace(self) -> Raw:
        """Ask for the lockspace, its hosts, or something of it."""
        draw = self.draw
        name = SPACE if draw.chance(0.85) else draw.space(0.5)
        here = draw.here + b"/space"
        place = (name, draw.one((1, 1, 1, 0, 2)), here, draw.one((0, 0, 0, MIB)))
        space = struct.pack("<48sQII", name, place[1], 0, 0) + wire.disk(here, place[3])
        cmd = draw.one(
            (
                *(Cmd.INQ_LOCKSPACE, Cmd.GET_HOSTS, Cmd.GET_LOCKSPACES, Cmd.HOST_STATUS),
                *(Cmd.SET_CONFIG, Cmd.ADD_LOCKSPACE, Cmd.END_EVENT, Cmd.RENEWAL),
                Cmd.REM_LOCKSPACE,
            )
        )
        if cmd == Cmd.GET_LOCKSPACES:
            return Raw(wire.request(cmd))
        if cmd == Cmd.SET_CONFIG:
            return Raw(wire.request(cmd, space, data=draw.one((1, 2, 4, 8, 0, 3)), data2=5))
        if cmd == Cmd.GET_HOSTS and draw.chance(0.3):
            host_id = draw.one((1, 2, 3, 2000, 2001, 1 << 40))
            space = space[:48] + struct.pack("<Q", host_id) + space[56:]
        if cmd == Cmd.ADD_LOCKSPACE:
            # Of the same name or place: nothing is joined.
            space = SPACE.ljust(48, b"\0") + space[48:] if draw.chance(0.7) else space
            if space[:48].rstrip(b"\0") != SPACE and place[3]:
                space = SPACE.ljust(48, b"\0") + space[48:]
            return Raw(wire.request(cmd, space, data=1))
        if cmd == Cmd.REM_LOCKSPACE:
            # What is not there.
            space = space[:48] + struct.pack("<Q", 7) + space[56:]
        return Raw(wire.request(cmd, space, data2=draw.small()))

    def event(self) -> Raw:
        """Send an event, not in turn with others."""
        draw = self.draw
        host_id = draw.one((1, 2, 3, 0, 2000, 2001))
        event = wire.host_event(host_id, draw.large(), draw.large(), draw.large())
        flags = 8 | draw.one((0, 1, 2, 4, 16))
        space = wire.lockspace(SPACE if draw.chance(0.9) else b"K")
        return Raw(wire.request(Cmd.SET_EVENT, space + event, flags=flags))

    def index(self) -> Raw:
        """Use a resource index in the lockspace."""
        draw = self.draw
        index = wire.rindex("JS", draw.here.decode() + "/two", 4 * MIB, max_resources=8)
        cmd = draw.one(
            (
                *(Cmd.FORMAT_RINDEX, Cmd.CREATE_RESOURCE, Cmd.CREATE_RESOURCE),
                *(Cmd.LOOKUP_RINDEX, Cmd.LOOKUP_RINDEX, Cmd.UPDATE_RINDEX),
                *(Cmd.DELETE_RESOURCE, Cmd.REBUILD_RINDEX),
            )
        )
        if cmd in (Cmd.FORMAT_RINDEX, Cmd.REBUILD_RINDEX):
            return Raw(wire.request(cmd, index))
        name = draw.one(("ra", "rb", "rc", "rd", ""))
        offset = draw.one((0, 0, 6, 7, 8, 9, 11)) * MIB
        flags = draw.one((0x10000, 0x10000, 0x20000, 0)) if cmd == Cmd.UPDATE_RINDEX else 0
        if cmd == Cmd.CREATE_RESOURCE:
            name, offset = f"n{draw.random.getrandbits(40):x}", 0
        return Raw(wire.request(cmd, index + wire.rentry(name, offset), flags=flags))

    def reconnect(self) -> Reconnect:
        """End a client's connection and open another."""
        return Reconnect(self.draw.one(CLIENTS))
