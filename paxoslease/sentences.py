"""What the library logs, in words for people.

The library logs an event's name and its fields, for programs; a person gets a sentence, filled with
the same values in the same order. What has no sentence here is shown as it was logged.
"""

from __future__ import annotations

import logging
from typing import Final

SENTENCES: Final = {
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
    "lock_file_stays": "lock file {0} could not be removed: {1}",
    "client_dropped": "the connection of process {0} has ended: {1}",
    "client_refused": "a connection of process {0}, user {1}, was refused",
    "client_unknown": "a connection was refused, since its other end cannot be told: {0}",
    "client_not_adopted": "client {0} of the earlier program is lost: {1}",
    "accept_failed": "no client can be accepted for the moment: {0}",
    "owner_left": "process {0} has left; the {1} resources that it held are free",
    "owner_lives_on": "process {0} does not end, although its locks are gone: stop it by hand",
    "hangup_ignored": "SIGHUP does nothing; SIGUSR1 restarts the program",
    "restart_failed": "the program was not restarted, the old one goes on: {0}",
    "restart_waits": "the restart waits, since a file system does not answer ({0} requests are "
    "under way); it is tried again",
    "files_hang": "the end does not wait for {0} operations: a file system does not answer",
    "descriptor_stays": "file {0} stays open, since it cannot be told which one it is: {1}",
    "no_thread": "requests wait, since no thread can be started: {0}",
    "close_failed": "an error when descriptor {0} was closed: {1}",
    "lock_not_adopted": "LOCK {0} of the earlier program is lost: {1}",
    "state_unreadable": "what the earlier program left in {0} cannot be used: {1}",
    "state_of_another_process": "{0} was left by another process and is removed",
    "passed_sockets_ignored": "the sockets of the service manager were not taken: {0}",
    "no_locks": "driver {0} takes NO LOCKS AT ALL: nothing keeps a guest from running twice",
    "leases_outlive_process": "process {0} has ended, but somebody has its connection: its leases "
    "stay, and only the watchdog can stop whoever uses them",
    "helper_gone": "the helper process {0} is gone ({1}): clients of other users cannot be stopped "
    "any more; restart the daemon",
    "helper_full": "the helper process {0} does not keep up: a signal is sent without it",
    "helper_stays": "the helper process {0} does not end",
    "client_without_process": "client {0} has registered and is gone: {1}",
    "bad_request": "process {0} sent what is no request: {1}",
    "slow_client": "process {0} does not send the rest of its request: it is disconnected",
    "client_does_not_read": "process {0} does not read its reply: it is disconnected",
    "undo_failed": "resource {0} could not be given back after its request had failed: {1}",
    "background_failed": "what was to be done later failed with {0}: {1}",
    "journal_failed": "{0} cannot be written: {1}; a crash would lose the leases",
    "journal_written_again": "{0} is written again",
    "journal_not_shortened": "{0} grows, since it cannot be written anew: {1}",
    "journal_damaged": "{0} cannot be used: {1}",
    "helper_renewed": "the helper process {0} is of the new version, too",
    "helper_not_renewed": "the helper process {0} stays of the old version: {1}",
    "keeper_silent": "what the earlier daemon of {0} left cannot be had: {1}",
    "not_kept": "a descriptor is not kept by the helper ({0}): a crash will close it",
    "no_slip": "no note is taken of what process {0} asks ({1}): a crash will end its connection",
    "watchdog_given_up": "the claim of lockspace {0} on the watchdog is ended: nobody uses it",
    "watchdog_not_disarmed": "the claim of lockspace {0} on the watchdog could not be ended ({1}): "
    "it will reset this host",
    "manager_not_told": "the service manager at {0} cannot be told: {1}",
    "runner_broken": "internal error: thread {0} has ended",
    "on_event_failed": "internal error when lockspace {0} told of {1}",
    "recovery_failed": "the users of lockspace {0} could not be stopped: {1}",
    "processes_killed": "lockspace {0} is left: who uses its leases is killed",
    "callback_failed": "internal error after an operation of lockspace {0}",
    "locks_left_behind": "the locks of guest {0} could not be given back: {1}",
    "lockspace_event": "lockspace {0}: {1}",
    "notified": "an operation tells of {0}",
    "log_not_written": "the log cannot be written to {0}: {1}",
    "log_written_again": "the log is written to {0} again",
    "io_timeout": "{0} of {1} at offset {2} does not end",
    "io_came_back": "{0} of {1} at offset {2}, which had not ended in time, has ended now",
}


def text_of(record: logging.LogRecord) -> str:
    """Return a record's text: its sentence where there is one, with the error behind it if any."""
    sentence = SENTENCES.get(str(record.msg).split(" ", 1)[0])
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
