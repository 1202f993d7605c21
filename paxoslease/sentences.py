"""What the library logs, in words for people.

The library logs an event's name and its fields, for programs; a person gets a sentence, filled with
the same values in the same order. What has no sentence here is shown as it was logged.
"""

from __future__ import annotations

import logging
from typing import Final

_SENTENCES: Final = {
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
    "no_locks": "driver {0} takes NO LOCKS AT ALL: nothing keeps a guest from running twice",
    "log_not_written": "the log cannot be written to {0}: {1}",
    "log_written_again": "the log is written to {0} again",
    "io_timeout": "{0} of {1} at offset {2} does not end",
    "io_came_back": "{0} of {1} at offset {2}, which had not ended in time, has ended now",
}


def text_of(record: logging.LogRecord) -> str:
    """Return a record's text: its sentence where there is one, with the error behind it if any."""
    sentence = _SENTENCES.get(str(record.msg).split(" ", 1)[0])
    values = record.args if isinstance(record.args, tuple) else (record.args,)
    if sentence is None:
        text = record.getMessage()
    else:
        text = sentence.format(*(_readable(value) for value in values))
    if record.exc_info and record.exc_info[1] is not None:
        text += f": {record.exc_info[1]!r}"
    return text


def _readable(value: object) -> object:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
