"""What a program holds in its hands: a lease, and a process that is stopped when all is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from paxoslease.engine.host import Membership
from paxoslease.engine.leases import Holding, Lost, Phase
from paxoslease.engine.operation import Operation
from paxoslease.engine.processes import Process
from paxoslease.errors import ConfigError, LeaseLost, StorageError
from paxoslease.protocol import leases as protocol
from paxoslease.protocol.effects import Protocol
from paxoslease.protocol.leases import Owners

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Lease:
    """A lease that this host holds. Leaving its `with` block releases it.

    name: the resource's. lost: set when the lease is lost; whoever uses it must then stop at once,
    and say so by `release` (or by leaving the `with` block).
    """

    def __init__(self, membership: Membership, holding: Holding) -> None:
        held = membership.leases.check(holding)
        self._leases = membership.leases
        self._holding = holding
        self._held = held
        self._sector_size = held.claim.sector_size
        self._lvb: bytes | None = None
        self.name: str = holding.name.decode("utf-8", "surrogateescape")
        self.lost: Lost = holding.lost

    @property
    def fencing_token(self) -> int:
        """Return the version of the lease: it grows with every grant to any host (lver)."""
        return self._now.lver

    @property
    def shared(self) -> bool:
        """Tell whether the lease is held shared."""
        return self._now.shared

    @property
    def _now(self) -> protocol.Lease:
        """Return the lease as it is, or as it was last."""
        self._held = self._holding.lease or self._held
        return self._held

    @property
    def is_held(self) -> bool:
        """Tell whether the lease is ours: neither lost nor released."""
        return self._holding.phase is Phase.HELD and not self.lost.is_set()

    def release(self, lvb: bytes | None = None, *, timeout: float | None = None) -> None:
        """Release the lease. What it guards has stopped before.

        `lvb` (or what set_lvb left) is written first. A lease that is lost is only forgotten here.

        Raises DiskError, DiskTimeout, LeaseUnsupported when the LVB cannot be written: then it is
        still held (`is_held`). Raises DiskError, DiskTimeout when the release itself does not get
        through to the disk: it goes on being tried, until the lockspace is left or fails.
        Raises ReleaseRefused when the disk says that it is another's; TimeoutError.
        """
        if self._holding.phase in (Phase.GONE, Phase.RELEASING):
            return
        try:
            operation = self._leases.start_release(self._holding, self._lvb if lvb is None else lvb)
        except LeaseLost:
            self._leases.forget(self._holding)
            return
        refused = operation.result(timeout)
        if refused is not None:
            raise refused

    def convert(self, *, shared: bool, timeout: float | None = None) -> None:
        """Turn the lease into a shared or an exclusive one.

        Raises LeaseShared when other hosts share it, LeaseHeld, LostRace, storage errors: it is
        held in its old mode then. ReleaseRefused says that another host took an exclusive lease in
        spite of us being alive: `lost` is set.
        """
        if shared == self.shared:
            return
        if not shared:
            self._leases.start_convert(
                self._holding, protocol.convert_to_exclusive, gives_up=False
            ).result(timeout)
            return
        lvb = self._lvb
        if lvb is not None:
            # Apart from the conversion: when this fails, the lease is held as before.
            writing = self._on_lease(lambda lease: protocol.write_lvb(lease, lvb))
            writing.result(timeout)
            self._lvb = None
        self._leases.start_convert(self._holding, protocol.convert_to_shared, gives_up=True).result(
            timeout
        )

    def read_lvb(self, *, timeout: float | None = None) -> bytes:
        """Read the lock value block: one sector, as the last holder left it.

        Raises LeaseUnsupported (no place for one), LeaseLost, storage errors.
        """
        return self._on_lease(lambda lease: protocol.read_lvb(lease.claim)).result(timeout)

    def set_lvb(self, data: bytes) -> None:
        """Set the lock value block, written with the release (or the conversion to shared).

        Raises ConfigError when it is longer than a sector.
        """
        if len(data) > self._sector_size:
            reason = f"{len(data)} bytes do not fit into a sector of {self._sector_size}"
            raise ConfigError("lvb", reason)
        self._lvb = data

    def owners(self, *, timeout: float | None = None) -> Owners:
        """Read from the disk who holds the lease."""
        return self._on_lease(lambda lease: protocol.read_owners(lease.claim)).result(timeout)

    def _on_lease(self, make: Callable[[protocol.Lease], Protocol[T]]) -> Operation[T]:
        return self._leases.start_on_lease(self._holding, make)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.release()
            return
        try:
            self.release()
        except StorageError as error:
            # What ended the block matters more; the release goes on being tried.
            _log.warning("release_failed lease=%s error=%s", self.name, error)

    def __repr__(self) -> str:
        mode = "shared" if self.shared else "exclusive"
        state = mode if self.is_held else self.lost.reason or self._holding.phase.value
        return f"<Lease {self.name} version {self.fencing_token}: {state}>"


class Guarded:
    """A process that is stopped when its lockspace fails or is left.

    Leaving its `with` block only stops following it.
    """

    def __init__(self, membership: Membership, process: Process) -> None:
        self._membership = membership
        self._process = process

    @property
    def pid(self) -> int:
        """Return the process's number."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process.is_alive

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the process has ended; False at the time-out (s)."""
        return self._process.wait(timeout)

    def close(self) -> None:
        """Stop following the process: it does not use leases any more."""
        self._membership.unguard(self._process)

    def __enter__(self) -> Guarded:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
