"""How a lockspace's host id was acquired and renewed: what a status and RENEWAL tell of it.

Source: spec/wire-protocol.md 14.1 and 14.3.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from paxoslease.errors import DiskTimeout
from paxoslease.protocol.membership import Renewed

SUCCESS = 1


class Renewal(NamedTuple):
    """One renewal that succeeded, and how many time-outs and errors came before the next one.

    The times are us: when, on the own clock; how long reading and writing took.
    """

    renewed_us: int
    read_us: int = 0
    write_us: int = 0
    timeouts: int = 0
    errors: int = 0


class Renewals:
    """The last `size` renewals, the acquisition first. Belongs to the loop's thread.

    acquired_us: 0 before. last_result: 1 for success, otherwise the error's number.
    """

    def __init__(self, size: int) -> None:
        self.kept: deque[Renewal] = deque(maxlen=max(0, size))
        self.acquired_us = 0
        self.last_attempt_us = 0
        self.last_success_us = 0
        self.last_result = 0

    def acquired(self, renewed_us: int) -> None:
        """Note that the host id is ours, with the time of the record that says so."""
        self.acquired_us = renewed_us
        self._succeeded(Renewal(renewed_us))

    def renewed(self, event: Renewed, now_us: int) -> None:
        """Note how a renewal went."""
        if event.error is None:
            self._succeeded(Renewal(event.renewed_us, event.read_us, event.write_us))
            return
        self.last_attempt_us = now_us
        self.last_result = event.error.code
        if self.kept:
            last = self.kept.pop()
            if isinstance(event.error, DiskTimeout):
                self.kept.append(last._replace(timeouts=last.timeouts + 1))
            else:
                self.kept.append(last._replace(errors=last.errors + 1))

    def _succeeded(self, renewal: Renewal) -> None:
        self.kept.append(renewal)
        self.last_attempt_us = self.last_success_us = renewal.renewed_us
        self.last_result = SUCCESS
