"""What the library logs, as lines for a person on standard error."""

from __future__ import annotations

import logging
import sys

# The library logs an event's name and its fields, for programs; a person gets a sentence, filled
# with the same values in the same order.
_SENTENCES = {
    "no_watchdog": "no watchdog for lockspace {0}: if this host hangs while it holds leases, "
    "nothing resets it, and another host will take over beside it",
    "renewal_failed": "lockspace {0} could not be renewed: {1}",
    "lockspace_failed": "lockspace {0} is lost, and all its leases with it: {1}",
    "lockspace_left": "lockspace {0} was left: {1}",
    "release_failed": "a lease of lockspace {0} could not be released: {1}",
    "process_signalled": "process {0} was sent signal {1}",
    "signal_refused": "process {0} could not be sent signal {1}: {2}",
    "killpath_started": "{1} was started to stop process {0}",
    "killpath_failed": "{1} could not be started to stop process {0}: {2}",
    "killpath_ended": "the program that was to stop process {0} ended with status {1}",
    "watchdog_reopened": "watchdog {0} is kept alive again",
    "watchdog_abandoned": "watchdog {0} is not kept alive: the host will be reset in {1} s",
    "watchdog_failed": "watchdog {0} cannot be kept alive: {1}",
    "no_locks": "driver {1} takes NO LOCKS AT ALL: nothing keeps guest {0} from running twice",
    "io_timeout": "{0} of {1} at offset {2} does not end",
    "io_came_back": "{0} of {1} at offset {2}, which had not ended in time, has ended now",
}


class _Plain(logging.Formatter):
    """Makes one line of a record."""

    def format(self, record: logging.LogRecord) -> str:
        sentence = _SENTENCES.get(str(record.msg).split(" ", 1)[0])
        values = record.args if isinstance(record.args, tuple) else (record.args,)
        if sentence is None:
            text = record.getMessage()
        else:
            text = sentence.format(*(_readable(value) for value in values))
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        return f"paxoslease: {'warning: ' if record.levelno < logging.ERROR else ''}{text}"


def _readable(value: object) -> object:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


class _ToStderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what is standard error at the time."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(_Plain())

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def log_to_stderr() -> None:
    """Show what the library logs, once however often it is called."""
    logger = logging.getLogger("paxoslease")
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr())
        logger.propagate = False
