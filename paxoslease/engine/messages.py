"""What a membership tells other hosts in its renewals, and what it hears from them.

`Outbox` is asked by the renewal thread for what the next renewal carries, and filled by others.

Source: spec/algorithms.md 9.
"""

from __future__ import annotations

import threading

from paxoslease.protocol import requests
from paxoslease.protocol.delta import Advertised, Lockspace
from paxoslease.protocol.requests import Advertiser, HostEvent
from paxoslease.timing import Timing


class Outbox:
    """What is to be told: bits for hosts that are to look, and one event. Thread-safe.

    bitmap_us: for how long it is told; 0 for what the timing says.
    """

    def __init__(self, space: Lockspace, own_id: int, timing: Timing, bitmap_us: int = 0) -> None:
        self._lock = threading.Lock()  # never held across anything that waits
        self._bitmap_us = bitmap_us or timing.bitmap_us
        self.restore(requests.new_advertiser(space, own_id, timing))

    @property
    def state(self) -> Advertiser:
        """Return what is advertised now."""
        return self._state

    def restore(self, state: Advertiser) -> None:
        """Go on with what was advertised before a restart."""
        with self._lock:
            self._state = state._replace(bitmap_us=self._bitmap_us)

    def advertise(self, now_us: int) -> Advertised:
        """Return what the renewal that is written now carries."""
        with self._lock:
            self._state, advertised = requests.advertise(self._state, now_us)
        return advertised

    def mark(self, host_id: int) -> None:
        """Have a host look at the requests for its leases. Raises HostIdInvalid."""
        with self._lock:
            self._state = requests.mark(self._state, host_id)

    def set_event(self, host_id: int, event: HostEvent, *, replace: bool = False) -> None:
        """Send an event to a host, to all for host id 0. Raises EventBusy, HostIdInvalid."""
        with self._lock:
            self._state = requests.set_event(self._state, host_id, event, replace=replace)

    def unmark(self, host_id: int) -> None:
        """Take back what was to be told to a host."""
        with self._lock:
            self._state = requests.unmark(self._state, host_id)
