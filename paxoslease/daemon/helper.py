"""A small process that stays root when the daemon does not: it signals clients and runs killpaths.

Forked before the daemon starts a thread and before it gives up its identity. It gets requests over
a socketpair and does nothing else. A signal goes through a pidfd that comes with the request, so it
reaches the process that registered or nobody. It ends with the daemon, unless there is something
to keep, and outlives whatever is sent to the daemon's process group.

If it dies there is no other way to get root's rights back: that is said loudly, and signals are
sent by the daemon itself from then on, which is enough for clients of its own user.

It also keeps what must outlive the daemon, and then serves a successor (keeper.py).

Requests and answers are single messages of the socketpair, which keeps their borders:

    signal    kind 1, the pid (for the log) and the number; with the pidfd
    run       kind 2, then the program and its arguments, a NUL behind each; with the write end of
              a pipe, on which what became of it is told
    answer    kind, pid, number and errno: of a signal, or of nothing (kind 0) now and then

Source: spec/wire-protocol.md 1 and 16.4.
"""

from __future__ import annotations

import array
import errno
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NoReturn

from paxoslease.daemon import helper_renewal, keeper
from paxoslease.engine.operation import now_us

_log = logging.getLogger(__name__)

_SIGNAL, _RUN, _ALIVE = 1, 2, 0
_MESSAGE: Final = struct.Struct("=iiii")
_OUTCOME: Final = struct.Struct("=ii")  # errno of the start, exit status
_MESSAGE_MAX: Final = 4096
_ALIVE_MS: Final = 10_000
_END_S: Final = 2.0
_ALLOWED: Final = (signal.SIGTERM, signal.SIGKILL)
# The channel is full, too many descriptors of this user are on their way, no memory is left.
_PASSING: Final = (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
_IGNORED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGCHLD,
)


class Helper:
    """The daemon's side. `signal` and `run` may be called by any thread; the rest by the loop's.

    full: how many requests it could not take. answered_us: when it last said anything.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.full = 0
        self.answered_us = now_us()
        self._channel = channel
        self._is_gone = False

    @property
    def is_alive(self) -> bool:
        """Tell whether it is there."""
        return not self._is_gone

    def fileno(self) -> int:
        """Return the descriptor on which its answers come: `read_answers` when it is readable."""
        return self._channel.fileno()

    def signal(self, pid: int, pidfd: int, number: int) -> bool:
        """Have a signal sent; False when it must be sent without the helper. Never blocks.

        What comes of it is logged when the answer comes.
        """
        return self._ask(_MESSAGE.pack(_SIGNAL, pid, number, 0), pidfd)

    def run(self, command: Sequence[str]) -> int | None:
        """Have a program run, and wait until it ends; returns its exit status. Blocks.

        None when it was not asked, since the helper is gone or full. Raises OSError when the
        program could not be started, or the helper died before it said whether it was.
        """
        words = b"".join(os.fsencode(word) + b"\0" for word in command)
        read_end, write_end = os.pipe()
        try:
            try:
                is_asked = self._ask(_MESSAGE.pack(_RUN, 0, 0, 0) + words, write_end)
            finally:
                os.close(write_end)
            if not is_asked:
                return None
            outcome = os.read(read_end, _OUTCOME.size)
        finally:
            os.close(read_end)
        if len(outcome) < _OUTCOME.size:
            raise ConnectionError(errno.EPIPE, "the helper did not say what became of it")
        code, status = _OUTCOME.unpack(outcome)
        if code:
            raise OSError(code, os.strerror(code), command[0])
        return int(status)

    def _ask(self, message: bytes, descriptor: int) -> bool:
        if self._is_gone or len(message) > _MESSAGE_MAX:
            return False
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
        try:
            # Not socket.send_fds: it forgets its flags.
            self._channel.sendmsg([message], [rights], socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno in _PASSING:
                self.full += 1
                _log.error("helper_full pid=%d error=%s", self.pid, error.strerror)
            elif error.errno == errno.EBADF:  # a process that was let go in this moment
                return True
            else:
                self._lose(str(error.strerror))
            return False
        return True

    def hand(self, message: bytes, descriptors: Sequence[int]) -> bool:
        """Send a message of the keeper's; False when it must be tried again later. Never blocks."""
        try:
            if self._is_gone or keeper.is_half_full(self._channel):
                return self._is_gone
            rights = keeper.rights(descriptors)
            self._channel.sendmsg([message], rights, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno in _PASSING:
                return False
            if error.errno == errno.EBADF:  # a device that was closed to fire in this moment
                return True
            self._lose(str(error.strerror))
        return True

    def renew(self) -> None:
        """Have one that a predecessor left be of our code, too, if it is not."""
        self.hand(keeper.renewal(helper_renewal.CODE), ())

    def read_answers(self) -> bool:
        """Take in what the helper has answered; False when it is gone."""
        while not self._is_gone:
            try:
                answer = self._channel.recv(_MESSAGE.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError as error:
                self._lose(str(error.strerror))
                break
            if not answer:
                self._lose("it has ended")
                break
            self._take(answer)
        return False

    def _take(self, answer: bytes) -> None:
        self.answered_us = now_us()
        kind, pid, number, code = _MESSAGE.unpack(answer)
        if kind == keeper.KEEP and code:
            _log.critical("not_kept error=%s: a crash will end it", os.strerror(code))
        elif kind == keeper.RENEW and code:
            _log.error("helper_not_renewed pid=%d error=%s", self.pid, os.strerror(code))
        elif kind == keeper.RENEW:
            _log.warning("helper_renewed pid=%d", self.pid)
        if kind != _SIGNAL or not code:
            return
        if code == errno.ESRCH:
            _log.error("leases_outlive_process pid=%d: somebody has its connection", pid)
        else:
            _log.error("signal_refused pid=%d signal=%d error=%s", pid, number, os.strerror(code))

    def _lose(self, reason: str) -> None:
        if not self._is_gone:
            self._is_gone = True
            _log.critical("helper_gone pid=%d reason=%s", self.pid, reason)

    def close(self, *, is_over: bool = True) -> None:
        """End the helper, and wait a little for its end: it does nothing that takes time.

        is_over: nothing is to be kept for a successor. Otherwise it stays for that, maybe.
        """
        if not is_over:
            self._is_gone = True
            self._channel.close()
            return
        with suppress(OSError):
            self._channel.settimeout(_END_S)
            self._channel.send(keeper.farewell())
        self._is_gone = True
        self._channel.close()
        if self.pid <= 0:
            return
        with suppress(ChildProcessError), os.fdopen(os.pidfd_open(self.pid), "rb", 0) as handle:
            poll = select.poll()  # select() knows no descriptor above 1023
            poll.register(handle, select.POLLIN)
            if poll.poll(_END_S * 1000):
                os.waitpid(self.pid, 0)
            else:
                _log.error("helper_stays pid=%d", self.pid)
        self.pid = -1


def start_helper(directory: str | None = None) -> Helper:
    """Fork the helper. Only while the process has no threads. Raises OSError.

    directory: the run directory, to be found there by a successor.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper.widen(ours)
    # Nothing may end it before it has said what it ignores.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        pid = os.fork()
        if pid == 0:
            _be_helper(theirs, mask, directory)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    return Helper(pid, ours)


def _be_helper(channel: socket.socket, mask: Iterable[int], directory: str | None) -> NoReturn:
    """Serve until the daemon is gone. Never returns into the daemon's code."""
    status = 1
    try:
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if os.geteuid() == 0:
            os.setgroups([])
        # Whatever the daemon has open is none of this process's business, its own lock least.
        os.closerange(3, channel.fileno())
        os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        store = keeper.Store(directory or "")
        if directory is not None:
            try:
                store.open()
            except OSError as error:  # it is a helper all the same, but no crash is outlived
                os.write(2, f"sanlock helper: no socket in {directory}: {error}\n".encode())
        _serve_all(channel, store)
        status = 0
    except OSError as error:
        os.write(2, f"sanlock helper: {error}\n".encode())
    finally:
        os._exit(status)


def go_on_as_helper() -> None:
    """Be the helper that has executed its program anew, if that is what this process is."""
    left = helper_renewal.receive()
    if left is None:
        return
    status = 1
    try:
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        _answer(left.channel, keeper.RENEW, 0, 0, 0)
        _serve_all(left.channel, keeper.Store.load(left.store))
        status = 0
    except OSError as error:
        os.write(2, f"sanlock helper: {error}\n".encode())
    finally:
        os._exit(status)


def _serve_all(channel: socket.socket, store: keeper.Store) -> None:
    """Serve a daemon, and its successors, until there is nothing to be kept."""
    successor: socket.socket | None = channel
    while successor is not None:
        _serve(successor, store)
        successor.close()
        _let_go_of_terminal()
        successor = store.await_successor()


def _let_go_of_terminal() -> None:
    """Let whoever waits for the end of the daemon's output see it."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)


def _serve(channel: socket.socket, store: keeper.Store) -> None:
    """Serve a daemon until it is gone, or by executing the program anew."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    _answer(channel, _ALIVE, 0, 0, 0)
    trial: helper_renewal.Trial | None = None
    while True:
        closing_us = store.close_devices()
        until_closing_ms = _ALIVE_MS if closing_us is None else closing_us // 1000 + 1
        ready = dict(poll.poll(min(_ALIVE_MS, until_closing_ms)))
        if not ready:
            _answer(channel, _ALIVE, 0, 0, 0)
            continue
        if trial is not None and trial.fileno() in ready:
            poll.unregister(trial)
            fits, trial = trial.end(), None
            _answer(channel, keeper.RENEW, 0, 0, _become_new(channel, store, fits=fits))
        if channel.fileno() not in ready:
            continue
        try:
            message, descriptors = keeper.receive(channel, _MESSAGE_MAX)
        except ConnectionResetError:
            continue  # it did not read an answer of ours; what it has said comes yet
        if not message:
            return
        wanted = keeper.code_wanted(message)
        if wanted is not None and wanted != helper_renewal.CODE and trial is None:
            trial = _begin_trial(channel)
            if trial is not None:
                poll.register(trial, select.POLLIN)
        if len(message) >= 4 and int.from_bytes(message[:4], sys.byteorder) >= keeper.FIRST:
            code = store.take(message, descriptors)
            if code:
                _answer(channel, keeper.KEEP, 0, 0, code)
            continue
        try:
            _do(channel, message, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _begin_trial(channel: socket.socket) -> helper_renewal.Trial | None:
    try:
        return helper_renewal.Trial()
    except OSError as error:
        _answer(channel, keeper.RENEW, 0, 0, error.errno or errno.EIO)
        return None


def _become_new(channel: socket.socket, store: keeper.Store, *, fits: bool) -> int:
    """Execute the program anew; returns the errno of what was in the way."""
    if not fits:
        return errno.ENOEXEC
    closing_us = store.close_devices()
    if closing_us is not None and closing_us < helper_renewal.SPARE_US:
        return errno.EAGAIN
    try:
        helper_renewal.become_new(channel, store.dump(), store.descriptors())
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _do(channel: socket.socket, message: bytes, descriptors: list[int]) -> None:
    if len(message) < _MESSAGE.size or len(descriptors) != 1:
        return
    kind, pid, number, _ = _MESSAGE.unpack_from(message)
    if kind == _SIGNAL:
        _answer(channel, _SIGNAL, pid, number, _send_signal(descriptors[0], number))
    elif kind == _RUN:
        words = message[_MESSAGE.size :].split(b"\0")[:-1]
        try:
            if words and os.fork() == 0:
                _run(words, descriptors[0])
        except OSError as error:  # too many processes; what is kept here must not end with that
            os.write(descriptors[0], _OUTCOME.pack(error.errno or errno.EAGAIN, 0))


def _send_signal(pidfd: int, number: int) -> int:
    """Send a signal that a client may be sent; returns the errno, 0 for none."""
    if number not in _ALLOWED:
        return errno.EPERM
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _answer(channel: socket.socket, *fields: int) -> None:
    try:
        channel.send(_MESSAGE.pack(*fields), socket.MSG_DONTWAIT)
    except OSError:
        # The daemon does not read, or is gone: the next request is what counts, and comes or not.
        return


def _run(words: list[bytes], report: int) -> NoReturn:
    """Run a program and tell what became of it, in a process of its own: loading it can hang."""
    try:
        # Whatever is kept must not be kept by this process, too.
        os.closerange(3, report)
        os.closerange(report + 1, os.sysconf("SC_OPEN_MAX"))
        for number in _IGNORED:
            signal.signal(number, signal.SIG_DFL)
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, check=False)
            outcome = _OUTCOME.pack(0, done.returncode)
        except OSError as error:
            outcome = _OUTCOME.pack(error.errno or errno.EIO, 0)
        os.write(report, outcome)
    finally:
        os._exit(0)
