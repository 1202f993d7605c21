"""Random calls of Debian's `sanlock` module."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from tests.daemon.calls.calls import Function
from tests.daemon.calls.drawing import MIB, Draw

_ALIGN: Final = (MIB, 2 * MIB, 4 * MIB, 8 * MIB)


class Functions:
    """Calls of the module from a draw."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self._lonely: dict[Callable[[], Function], int] = {
            self.write_lockspace: 10,
            self.read_lockspace: 10,
            self.write_resource: 12,
            self.read_resource: 12,
            self.read_resource_owners: 12,
            self.get_alignment: 3,
            self.inq_lockspace: 2,
            self.rem_lockspace: 1,
            self.get_hosts: 1,
            self.get_lockspaces: 1,
            self.acquire: 3,
            self.release: 3,
            self.inquire: 2,
            self.request: 3,
            self.killpath: 2,
            self.set_lvb: 2,
            self.get_lvb: 2,
            self.reg_event: 1,
            self.set_event: 2,
        }

    def lonely(self) -> Function:
        """Return a call that nobody has to have joined a lockspace for."""
        return self.draw.weighted(self._lonely)()

    # -- arguments -------------------------------------------------------------------------------

    def _path(self) -> str:
        return os.fsdecode(self.draw.path())

    def _space(self) -> bytes:
        return self.draw.space().partition(b"\0")[0]

    def _resource(self) -> bytes:
        return self.draw.resource().partition(b"\0")[0]

    def _place(self) -> dict[str, Any]:
        place: dict[str, Any] = {"path": self._path()}
        if self.draw.chance(0.8):
            place["offset"] = self.draw.offset()
        return place

    def _disks(self) -> list[tuple[str, int]]:
        number = self.draw.one((1, 1, 1, 1, 1, 1, 2, 3, 4))
        if self.draw.chance(0.02):
            number = self.draw.one((0, 5))
        return [(self._path(), self.draw.offset()) for _ in range(number)]

    def _lease(self) -> dict[str, Any]:
        return {"lockspace": self._space(), "resource": self._resource(), "disks": self._disks()}

    def _sizes(self) -> dict[str, Any]:
        draw = self.draw
        if draw.chance(0.1):
            return {"align": draw.one((0, 1, MIB + 1, 16 * MIB)), "sector": draw.one((0, 1, 512))}
        if draw.chance(0.1):
            return {"align": draw.one(_ALIGN), "sector": draw.one((4096, 4096, 4096, 512))}
        flags = draw.sizes(0.0)
        if not flags or (flags == 0x110 and draw.chance(0.3)):
            return {}
        return {"align": (flags >> 4 & 0xF) * MIB, "sector": 4096 if flags & 0x200 else 512}

    # -- formatting and reading ------------------------------------------------------------------

    def write_lockspace(self) -> Function:
        """Format a lockspace."""
        kwargs = {"lockspace": self._space(), **self._place(), **self._sizes()}
        if self.draw.chance(0.5):
            kwargs["iotimeout"] = self.draw.small(0.5)
        if self.draw.chance(0.3):
            kwargs["max_hosts"] = self.draw.small(0.5)
        return Function("write_lockspace", kwargs)

    def read_lockspace(self) -> Function:
        """Read a lockspace."""
        return Function("read_lockspace", {**self._place(), **self._sizes()})

    def write_resource(self) -> Function:
        """Format a resource."""
        draw = self.draw
        kwargs = {**self._lease(), **self._sizes()}
        for key in ("max_hosts", "num_hosts"):
            if draw.chance(0.3):
                kwargs[key] = draw.small(0.5)
        if draw.chance(0.2):
            kwargs["clear"] = draw.chance(0.5)
        return Function("write_resource", kwargs)

    def read_resource(self) -> Function:
        """Read a resource."""
        return Function("read_resource", {**self._place(), **self._sizes()})

    def read_resource_owners(self) -> Function:
        """Read the owners of a resource."""
        return Function("read_resource_owners", {**self._lease(), **self._sizes()})

    def get_alignment(self) -> Function:
        """Ask for the align size of a path."""
        return Function("get_alignment", {"path": self._path()})

    # -- lockspaces ------------------------------------------------------------------------------

    def _member(self) -> dict[str, Any]:
        return {"lockspace": self._space(), "host_id": self.draw.host_id(), **self._place()}

    def inq_lockspace(self) -> Function:
        """Ask for a lockspace."""
        return Function("inq_lockspace", {**self._member(), "wait": self.draw.chance(0.3)})

    def rem_lockspace(self) -> Function:
        """Leave a lockspace."""
        return Function("rem_lockspace", {**self._member(), "unused": self.draw.chance(0.3)})

    def get_hosts(self) -> Function:
        """Ask for hosts."""
        kwargs: dict[str, Any] = {"lockspace": self._space()}
        if self.draw.chance(0.5):
            kwargs["host_id"] = self.draw.host_id()
        return Function("get_hosts", kwargs)

    def get_lockspaces(self) -> Function:
        """Ask for the lockspaces."""
        return Function("get_lockspaces")

    def reg_event(self) -> Function:
        """Listen to events; the descriptor of a success is masked by its being refused."""
        return Function("reg_event", {"lockspace": b"nobody's"})

    def set_event(self) -> Function:
        """Send an event."""
        draw = self.draw
        kwargs: dict[str, Any] = {
            "lockspace": self._space(),
            "host_id": draw.host_id(),
            "generation": draw.large(),
            "event": draw.large(),
        }
        if draw.chance(0.5):
            kwargs["data"] = draw.large()
        if draw.chance(0.5):
            kwargs["flags"] = draw.bits((1, 2, 4, 8, 16))
        return Function("set_event", kwargs)

    # -- leases ----------------------------------------------------------------------------------

    def _who(self) -> dict[str, Any]:
        if self.draw.chance(0.8):
            return {"with_fd": 0}
        return {"pid": self.draw.one((1, 2, 1 << 30))}

    def acquire(self) -> Function:
        """Acquire a lease."""
        draw = self.draw
        kwargs = {**self._lease(), **self._who()}
        if draw.chance(0.4):
            kwargs["shared"] = draw.chance(0.7)
        if draw.chance(0.2):
            kwargs["version"] = draw.small()
        if draw.chance(0.2):
            kwargs["lvb"] = draw.chance(0.7)
        return Function("acquire", kwargs)

    def release(self) -> Function:
        """Release a lease."""
        return Function("release", {**self._lease(), **self._who()})

    def inquire(self) -> Function:
        """Ask for the leases of a client."""
        return Function("inquire", self._who())

    def request(self) -> Function:
        """Ask an owner."""
        draw = self.draw
        kwargs = {**self._lease(), "action": draw.one((0, 9))}
        if draw.chance(0.5):
            kwargs["version"] = draw.small()
        return Function("request", kwargs)

    def killpath(self) -> Function:
        """Set a killpath."""
        draw = self.draw
        path = draw.one(("/bin/true", "x" * 126, "y" * 128, "rel"))
        args = draw.one(([], ["a"], ["a b", "c\\"], ["z" * 127], ["w" * 60, "w" * 70], ["\u00e4"]))
        return Function("killpath", {"path": path, "args": args, "with_fd": 0})

    def set_lvb(self) -> Function:
        """Set a value block."""
        size = self.draw.one((0, 1, 16, 511, 512, 513, 4096, 4097))
        return Function("set_lvb", {**self._lease(), "data": self.draw.random.randbytes(size)})

    def get_lvb(self) -> Function:
        """Read a value block."""
        size = self.draw.one((1, 16, 512, 513, 4096, 4097, 0))
        return Function("get_lvb", {**self._lease(), "size": size})
