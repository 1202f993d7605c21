"""Random requests on the socket: well formed, with fields at the limits and beyond."""

from __future__ import annotations

import struct
from typing import Final

from tests.daemon import wire
from tests.daemon.calls.calls import Raw
from tests.daemon.calls.drawing import Draw
from tests.daemon.wire import Cmd

MEMBERS_SPACE: Final = b"JS"  # the lockspace that is joined, when one is

# What needs no joined lockspace, and how often it is drawn.
LONELY: Final[dict[int, int]] = {
    Cmd.INQ_LOCKSPACE: 2,
    Cmd.REM_LOCKSPACE: 1,
    Cmd.STATUS: 2,
    Cmd.LOG_DUMP: 1,
    Cmd.ACQUIRE: 3,
    Cmd.RELEASE: 2,
    Cmd.INQUIRE: 2,
    Cmd.RESTRICT: 1,
    Cmd.REQUEST: 3,
    Cmd.ALIGN: 3,
    Cmd.EXAMINE_LOCKSPACE: 1,
    Cmd.EXAMINE_RESOURCE: 1,
    Cmd.HOST_STATUS: 1,
    Cmd.KILLPATH: 1,
    Cmd.WRITE_LOCKSPACE: 10,
    Cmd.WRITE_RESOURCE: 12,
    Cmd.READ_LOCKSPACE: 12,
    Cmd.READ_RESOURCE: 12,
    Cmd.READ_RESOURCE_OWNERS: 12,
    Cmd.GET_LOCKSPACES: 1,
    Cmd.GET_HOSTS: 1,
    Cmd.SET_LVB: 2,
    Cmd.GET_LVB: 2,
    Cmd.CONVERT: 2,
    Cmd.VERSION: 1,
    Cmd.REG_EVENT: 1,
    Cmd.END_EVENT: 1,
    Cmd.SET_EVENT: 1,
    Cmd.SET_CONFIG: 1,
    Cmd.RENEWAL: 1,
    Cmd.FORMAT_RINDEX: 6,
    Cmd.UPDATE_RINDEX: 8,
    Cmd.LOOKUP_RINDEX: 8,
    Cmd.CREATE_RESOURCE: 5,
    Cmd.DELETE_RESOURCE: 5,
    Cmd.REBUILD_RINDEX: 4,
}
_FLAGS: Final[dict[int, tuple[int, ...]]] = {
    Cmd.REM_LOCKSPACE: (1, 2),
    Cmd.ACQUIRE: (1, 2, 8),
    Cmd.CONVERT: (8,),
    Cmd.RELEASE: (1, 2, 4),
    Cmd.REQUEST: (1,),
    Cmd.RESTRICT: (2, 4),
    Cmd.KILLPATH: (1,),
    Cmd.WRITE_RESOURCE: (1,),
    Cmd.SET_EVENT: (1, 2, 4, 8, 16),
    Cmd.LOOKUP_RINDEX: (1,),
    Cmd.UPDATE_RINDEX: (1, 0x10000, 0x20000),
    Cmd.CREATE_RESOURCE: (1,),
    Cmd.DELETE_RESOURCE: (1,),
    Cmd.REBUILD_RINDEX: (1,),
    Cmd.FORMAT_RINDEX: (1,),
}
_SPACES: Final = frozenset(
    {Cmd.REM_LOCKSPACE, Cmd.INQ_LOCKSPACE, Cmd.EXAMINE_LOCKSPACE, Cmd.HOST_STATUS, Cmd.RENEWAL}
    | {Cmd.WRITE_LOCKSPACE, Cmd.READ_LOCKSPACE, Cmd.GET_HOSTS, Cmd.END_EVENT, Cmd.SET_CONFIG}
    | {Cmd.ADD_LOCKSPACE}
)
_LEASES: Final = frozenset(
    {Cmd.REQUEST, Cmd.WRITE_RESOURCE, Cmd.READ_RESOURCE, Cmd.READ_RESOURCE_OWNERS}
)
_INDEXES: Final = frozenset(range(Cmd.FORMAT_RINDEX, Cmd.REBUILD_RINDEX + 1))


class Requests:
    """Requests from a draw."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        # What was formatted: later requests are about the same places, as a rule.
        self._spaces: list[bytes] = []
        self._leases: list[bytes] = []
        self._indexes: list[bytes] = []

    def forget(self) -> None:
        """Forget what was formatted."""
        for kept in (self._spaces, self._leases, self._indexes):
            kept.clear()

    def _again(self, kept: list[bytes]) -> bytes | None:
        return self.draw.one(kept[-6:]) if kept and self.draw.chance(0.7) else None

    def lonely(self) -> Raw:
        """Return a request that nobody has to have joined a lockspace for."""
        cmd = self.draw.weighted(LONELY)
        return self.of(cmd)

    def of(self, cmd: int) -> Raw:
        """Return a request of a kind, on a connection of its own."""
        draw = self.draw
        payload, count, probes = self._payload(cmd)
        data = count if count is not None else draw.small()
        data2 = draw.small()
        if cmd == Cmd.WRITE_RESOURCE and draw.chance(0.5):
            data = draw.one((0, 1, 3, 250, 2000, 2001))
        length = None
        if draw.chance(0.05) and cmd not in (Cmd.SET_LVB, *_REGISTERED):
            length = draw.small(0.8)
        flags = draw.bits(_FLAGS.get(cmd, ()) or (1,), 0.05)
        if cmd == Cmd.RESTRICT:
            flags &= ~1  # every further request would be ignored
        if cmd in (Cmd.UPDATE_RINDEX, Cmd.LOOKUP_RINDEX, Cmd.REBUILD_RINDEX) and draw.chance(0.8):
            flags |= 1
        if cmd in _REGISTERED:
            data2 = wire.OWN if draw.chance(0.7) else draw.small()
            flags &= ~1 if cmd == Cmd.RELEASE else ~0
        if cmd == Cmd.GET_LVB:
            data2 = 0  # 3.8.5 announces bytes with an error, and does not send them
        version = 1 if draw.chance(0.95) else draw.one((0, 2, 0x7FFF, 0xFFFF))
        seq = 0 if draw.chance(0.8) else draw.small(1.0)
        sent = wire.request(
            cmd,
            payload,
            flags=flags,
            data=data,
            data2=data2,
            seq=seq,
            length=length,
            version=version,
        )
        return Raw(sent, probes=probes)

    # -- payloads --------------------------------------------------------------------------------

    def _payload(self, cmd: int) -> tuple[bytes, int | None, bool]:
        """Return a payload, what `data` must be for it, and whether it is read to its end."""
        draw = self.draw
        if cmd in _SPACES:
            space = None if cmd == Cmd.WRITE_LOCKSPACE else self._again(self._spaces)
            if space is not None:
                return space[:48] + struct.pack("<Q", draw.host_id()) + space[56:], None, True
            space = self.lockspace()
            if cmd == Cmd.WRITE_LOCKSPACE:
                self._spaces.append(space)
            return space, None, True
        if cmd in _LEASES:
            kept = None if cmd == Cmd.WRITE_RESOURCE else self._again(self._leases)
            if kept is not None:
                return kept, None, True
            lease, is_read = self.lease()
            if cmd == Cmd.WRITE_RESOURCE and is_read:
                self._leases.append(lease)
            return lease, None, is_read
        if cmd in _INDEXES:
            kept = None if cmd == Cmd.FORMAT_RINDEX else self._again(self._indexes)
            payload = self.rindex() if kept is None else kept
            if cmd == Cmd.FORMAT_RINDEX:
                self._indexes.append(payload)
            if cmd not in (Cmd.FORMAT_RINDEX, Cmd.REBUILD_RINDEX):
                payload += self.rentry(payload)
            return payload, None, True
        match cmd:
            case Cmd.ALIGN:
                return self.disk(), None, True
            case Cmd.REG_EVENT | Cmd.SET_EVENT:
                return self.lockspace() + self.event(), None, True
            case Cmd.EXAMINE_RESOURCE | Cmd.CONVERT:
                return self.resource(draw.one((0, 0, 1))), None, True
            case Cmd.GET_LVB:
                return self.resource(0), None, True
            case Cmd.SET_LVB:
                value = draw.random.randbytes(draw.one((1, 16, 511, 512, 513, 4095, 4096)))
                return self.resource(0) + value, None, True
            case Cmd.KILLPATH:
                path = draw.one((b"/bin/true", b"", b"x" * 127, b"y" * 128, b"rel"))
                args = draw.one((b"", b"a b", b"z" * 128, b"a\\ b"))
                return struct.pack("<128s128s", path, args), None, True
            case Cmd.ACQUIRE:
                leases = [self.lease()[0] for _ in range(draw.one((0, 1, 1, 1, 2, 3)))]
                return b"".join(leases) + self.options(), len(leases), True
            case Cmd.RELEASE:
                names = [self.resource(0) for _ in range(draw.one((0, 1, 1, 1, 2, 3)))]
                return b"".join(names), len(names), True
        return b"", None, True

    def disk(self) -> bytes:
        """Return a disk."""
        draw = self.draw
        pads = (0, 0) if draw.chance(0.9) else (draw.small(), draw.small())
        return struct.pack("<1024sQII", draw.path(), draw.offset(), *pads)

    def lockspace(self, name: bytes | None = None) -> bytes:
        """Return a lockspace."""
        draw = self.draw
        name = draw.space() if name is None else name
        name = b"" if draw.chance(0.1) else name
        flags = draw.sizes()
        pad = 0 if draw.chance(0.9) else draw.small(1.0)
        return struct.pack("<48sQII", name, draw.host_id(), flags, pad) + self.disk()

    def resource(self, num_disks: int) -> bytes:
        """Return a resource that announces disks."""
        draw = self.draw
        flags = draw.sizes() | draw.bits((1, 2, 4, 8), 0.02)
        names = (draw.space(), draw.resource())
        if draw.chance(0.1):
            names = (b"", b"")
        numbers = (draw.large(), draw.large(), draw.small(), draw.small(), flags, num_disks)
        return struct.pack("<48s48sQQIIII", *names, *numbers)

    def lease(self) -> tuple[bytes, bool]:
        """Return a resource with its disks, and whether all of it will be read."""
        draw = self.draw
        number = draw.one((1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4))
        if draw.chance(0.03):
            number = draw.one((0, 5, 6, 255, 0xFFFFFFFF))
        disks = b"".join(self.disk() for _ in range(number if number < 5 else 0))
        return self.resource(number) + disks, number < 5

    def rindex(self) -> bytes:
        """Return a resource index."""
        draw = self.draw
        most = draw.one((0, 0, 4, 6, 16)) if draw.chance(0.9) else draw.small(1.0)
        return struct.pack("<IIQ48s", draw.sizes(), most, 0, draw.space()) + self.disk()

    def rentry(self, rindex: bytes) -> bytes:
        """Return an entry of an index.

        Its offset lies not before the first place: 3.8.5 writes in front of its buffer then.
        """
        draw = self.draw
        name = b"" if draw.chance(0.2) else draw.resource()
        flags, begin = struct.unpack_from("<I1084xQ", rindex)
        align_size = ((flags >> 4 & 0xF) or 1) << 20
        offset = 0
        if draw.chance(0.6):
            offset = (begin + (2 + draw.one((0, 0, 1, 1, 2, 3, 4, 5, 9))) * align_size) % (1 << 40)
        if draw.chance(0.1):
            offset += draw.one((1, 100, 512, 4096))
        rest = (0, 0) if draw.chance(0.9) else (draw.small(), draw.small())
        return struct.pack("<48sQII", name, offset, *rest)

    def event(self) -> bytes:
        """Return a host event."""
        draw = self.draw
        return struct.pack("<4Q", draw.host_id(), draw.large(), draw.large(), draw.large())

    def options(self) -> bytes:
        """Return the options of an ACQUIRE."""
        draw = self.draw
        return struct.pack("<48sII", draw.one((b"", b"guest", b"o" * 48)), draw.small(), 0)


_REGISTERED: Final = frozenset(
    {Cmd.ACQUIRE, Cmd.RELEASE, Cmd.INQUIRE, Cmd.CONVERT, Cmd.KILLPATH, Cmd.RESTRICT}
)
