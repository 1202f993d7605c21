"""The terminal of a command that has started another one in the foreground."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminal_back() -> Iterator[None]:
    """Bring this process to the foreground of its terminal again, when the block has ended."""
    try:
        is_ours = os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # standard input is no terminal of ours
        is_ours = False
    try:
        yield
    finally:
        if is_ours:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            os.tcsetpgrp(0, os.getpgrp())
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})


def exit_code_of(status: int) -> int:
    """Return what a shell shows for a child's status: 128 and the signal's number, or its own."""
    return 128 - status if status < 0 else status
