"""What every watchdog can do for a membership, and how one process hands its claim to the next."""

from __future__ import annotations

import abc
from typing import NamedTuple


class WatchdogState(NamedTuple):
    """A claim on a watchdog as it is handed over.

    kind: as `open_watchdog` takes it. fd: the descriptor on which it hangs, -1 for none. is_armed:
    it was petted at least once, and not disarmed.
    """

    kind: str
    fd: int
    is_armed: bool


class Watchdog(abc.ABC):
    """The connection of one membership to a watchdog. Times: us of CLOCK_BOOTTIME."""

    @abc.abstractmethod
    def connect(self) -> None:
        """Find out whether the watchdog is there and has the right time-out.

        Raises WatchdogError.
        """

    @abc.abstractmethod
    def pet(self, renewed_us: int, expire_us: int) -> None:
        """Have the host reset unless this is called again before `expire_us`; never blocks.

        Raises WatchdogError when the watchdog does not take it.
        """

    @abc.abstractmethod
    def disarm(self) -> None:
        """End the membership's claim: nothing that uses leases runs any more."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give up the connection. While armed this leads to a reset."""

    # -- handing it over to a successor, in this process (exec) or another -----------------------

    @property
    @abc.abstractmethod
    def is_connected(self) -> bool:
        """Tell whether it was connected or attached, and not closed."""

    @property
    @abc.abstractmethod
    def descriptor(self) -> int:
        """Return the descriptor on which the claim hangs, -1 for none.

        Closing its last copy while armed leads to a reset. A copy that is kept in another process
        (a service manager's store, a helper) keeps the claim as it is when this process dies.
        """

    @property
    def margin_us(self) -> int:
        """Return how long before the expiry all copies of the descriptor have to be closed.

        Closing the last copy later would put off the reset, so what is late is not closed any more.
        0 where a copy that is closed late, or never, does no harm.
        """
        return 0

    @abc.abstractmethod
    def detach(self) -> WatchdogState:
        """Make the descriptor outlive exec, and say what a successor needs to `attach`."""

    @abc.abstractmethod
    def undetach(self) -> None:
        """Take `detach` back: nothing was executed."""

    @abc.abstractmethod
    def attach(self, state: WatchdogState) -> None:
        """Go on with a predecessor's claim instead of connecting; the descriptor is ours then.

        Nothing is petted before the first `pet`. Raises WatchdogError.
        """
