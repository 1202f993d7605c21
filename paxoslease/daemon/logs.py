"""The daemon's log: in memory for LOG_DUMP, and written to a file, to syslog and to stderr.

A line is `YYYY-MM-DD HH:MM:SS <monotonic seconds> [<thread id>]: <text>`. The seconds are those of
the timestamps on the disk, so that a line can be laid beside a lease.

Whoever logs only formats a line, puts it into the ring and hands it to the writers; each writer is
a bounded queue and a thread, so a disk or a terminal that hangs holds up nothing else. What a full
queue cannot take is dropped and counted, and the count is written when there is room again.

Source: spec/wire-protocol.md 15; spec/cli.md 6 and 7.
"""

from __future__ import annotations

import errno
import logging
import os
import syslog
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from paxoslease.daemon.options import DaemonOptions
from paxoslease.engine.operation import now_us
from paxoslease.sentences import text_of
from paxoslease.timing import SECOND_US
from paxoslease.wire import sanlock as wire
from paxoslease.wire.sanlock import Command

if TYPE_CHECKING:
    from paxoslease.daemon.connection import Call
    from paxoslease.daemon.server import Daemon, Handler

_log = logging.getLogger(__name__)

LOG_FILE: Final = "/var/log/sanlock.log"
RING_BYTES: Final = 1 << 20
LINE_MAX: Final = 4096
LINES_MAX: Final = 64
QUEUE_MAX: Final = 4096
FILE_MAX: Final = 256 << 20
NOTHING: Final = -1
EVERYTHING: Final = 7

_PRIORITIES: Final = (
    (logging.CRITICAL, syslog.LOG_CRIT),
    (logging.ERROR, syslog.LOG_ERR),
    (logging.WARNING, syslog.LOG_WARNING),
    (logging.INFO, syslog.LOG_INFO),
)


def priority_of(level: int) -> int:
    """Return syslog's priority for a level of `logging`."""
    return next((priority for least, priority in _PRIORITIES if level >= least), syslog.LOG_DEBUG)


class Ring:
    """The last lines, as many as fit into `size` bytes with a newline each."""

    def __init__(self, size: int = RING_BYTES) -> None:
        # One byte more than is given out: it tells whether a line begins with the next one.
        self._bytes = bytearray(size + 1)
        self._end = 0
        self._is_wrapped = False

    def add(self, line: bytes) -> None:
        """Add a line, over the oldest ones when there is no room."""
        size = len(self._bytes)
        data = line[: size - 2] + b"\n"
        first = min(len(data), size - self._end)
        self._bytes[self._end : self._end + first] = data[:first]
        self._bytes[: len(data) - first] = data[first:]
        self._is_wrapped = self._is_wrapped or self._end + len(data) >= size
        self._end = (self._end + len(data)) % size

    def text(self) -> bytes:
        """Return what is there, from the first whole line on, without the last newline."""
        if not self._is_wrapped:
            return bytes(self._bytes[: self._end]).removesuffix(b"\n")
        found = bytes(self._bytes[self._end :] + self._bytes[: self._end])
        return found[found.find(b"\n") + 1 :].removesuffix(b"\n")


class Writer:
    """Writes lines somewhere on a thread of its own, and drops them rather than wait.

    write(line, priority) may block; an OSError of it is told to `tell` once, and so is its
    end. Thread-safe.
    """

    def __init__(
        self,
        name: str,
        threshold: int,
        write: Callable[[bytes, int], None],
        tell: Callable[..., None],
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self.name = name
        self.threshold = threshold
        self._write = write
        self._tell = tell
        self._queue_max = queue_max
        self._queue: deque[tuple[bytes, int]] = deque()
        self._changed = threading.Condition()
        self._lost = 0
        self._is_failing = False
        self._is_idle = True
        self._is_ending = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; what was put before is written then."""
        self._thread = threading.Thread(
            target=self._run, name=f"paxoslease-log-{self.name}", daemon=True
        )
        self._thread.start()

    def put(self, line: bytes, priority: int) -> None:
        """Have a line written, unless it is below the threshold or there is no room."""
        if priority > self.threshold:
            return
        with self._changed:
            if len(self._queue) >= self._queue_max:
                self._lost += 1
                return
            self._queue.append((line, priority))
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is written; False at the time-out."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_idle and not self._queue, timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Write what is there, for at most so long, and end the thread if it does not hang."""
        self.drain(timeout_s)
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._queue) or self._is_ending)
                if not self._queue:
                    return
                self._is_idle = False
                line, priority = self._queue.popleft()
                lost, self._lost = self._lost, 0
            unwritten = 0
            if lost:
                lines = b"%d lines lost here" % lost
                unwritten += 0 if self._write_one(lines, syslog.LOG_WARNING) else lost
            unwritten += 0 if self._write_one(line, priority) else 1
            with self._changed:
                self._lost += unwritten

    def _write_one(self, line: bytes, priority: int) -> bool:
        try:
            self._write(line, priority)
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                self._tell("log_not_written to=%s error=%s", self.name, error.strerror or error)
            return False
        if self._is_failing:
            self._is_failing = False
            self._tell("log_written_again to=%s", self.name)
        return True


class LogFile:
    """The file that lines are appended to: opened once, since its directory is root's.

    It is opened again when it has been renamed, if that is allowed. A file that has grown beyond
    `size_max` gets nothing more until somebody has cut it.
    """

    def __init__(self, path: str, size_max: int = FILE_MAX, fd: int = -1) -> None:
        self._path = path
        self._size_max = size_max
        self._fd = fd
        if fd < 0:
            self._open()

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._fd

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path, flags, 0o644)
        self.close()
        self._fd = fd

    def write(self, line: bytes, _priority: int) -> None:
        """Append a line. Raises OSError."""
        here = os.fstat(self._fd)
        try:
            named = os.stat(self._path)
            is_renamed = (named.st_dev, named.st_ino) != (here.st_dev, here.st_ino)
        except OSError:
            is_renamed = True
        if is_renamed:
            self._follow()
            here = os.fstat(self._fd)
        if here.st_size + len(line) >= self._size_max:
            raise OSError(errno.EFBIG, f"{self._path} is full ({self._size_max} bytes): rotate it")
        data = line + b"\n"
        if os.write(self._fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _follow(self) -> None:
        """Go on in the file that has the name now; in the renamed one when it cannot be opened."""
        try:
            self._open()
        except PermissionError:
            return

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LogRing(logging.Handler):
    """Takes in what is logged: into the ring at once, to the writers for later. Thread-safe."""

    def __init__(self, *, utc: bool = False, ring_bytes: int = RING_BYTES) -> None:
        super().__init__(logging.DEBUG)
        self._clock = time.gmtime if utc else time.localtime
        self._ring = Ring(ring_bytes)
        self._writers: list[Writer] = []
        self._files: list[LogFile] = []
        self._is_attached = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self._lines(record)
        except Exception:
            # A record that cannot be formatted, which logging reports with its place in the code.
            self.handleError(record)
            return
        priority = priority_of(record.levelno)
        for line in lines:
            self._ring.add(line)
            for writer in self._writers:
                writer.put(line, priority)

    def _lines(self, record: logging.LogRecord) -> list[bytes]:
        text = text_of(record)
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", self._clock(record.created))
        head = f"{stamp} {now_us() // SECOND_US} [{threading.get_native_id()}]: "
        parts = text.splitlines() or [""]
        if len(parts) > LINES_MAX:
            parts[LINES_MAX // 2 : -LINES_MAX // 2] = ["..."]
        return [_clean(head + part)[:LINE_MAX] for part in parts]

    def text(self) -> bytes:
        """Return the log in memory: lines of all levels, up to 1 MiB, no newline at the end."""
        self.acquire()
        try:
            return self._ring.text()
        finally:
            self.release()

    def drain(self, timeout_s: float = 1.0) -> None:
        """Wait until all is written that was logged, for at most so long."""
        until = time.monotonic() + timeout_s
        for writer in self._writers:
            writer.drain(max(0.0, until - time.monotonic()))

    def attach(self) -> None:
        """Take in everything that the program logs from now on."""
        logger = logging.getLogger("paxoslease")
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(self)
        self._is_attached = True

    def detach(self, timeout_s: float = 1.0) -> None:
        """Take in nothing more, and write what is there for at most so long."""
        logger = logging.getLogger("paxoslease")
        logger.removeHandler(self)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        self._is_attached = False
        for writer in self._writers:
            writer.stop(timeout_s)
        for file in self._files:
            file.close()
        self._writers, self._files = [], []

    def add_writer(
        self,
        name: str,
        threshold: int,
        write: Callable[[bytes, int], None],
        queue_max: int = QUEUE_MAX,
    ) -> Writer:
        """Have lines up to a priority written somewhere too; its thread is to be started."""
        writer = Writer(name, threshold, write, _log.error, queue_max)
        self._writers.append(writer)
        return writer

    @property
    def file_descriptor(self) -> int:
        """Return the descriptor of the log file, to be handed over to the next image; or -1."""
        return self._files[0].fileno() if self._files else -1

    def open_file(self, path: str, threshold: int, fd: int = -1) -> None:
        """Have lines written to a file. To be called before root's rights are given up.

        fd: of the file, where it is open already.

        A file that cannot be opened is said once; the daemon runs without it.
        """
        try:
            file = LogFile(path, fd=fd)
        except OSError as error:
            _log.error("log_not_written to=%s error=%s", path, error.strerror)
            return
        self._files.append(file)
        self.add_writer(path, threshold, file.write)

    def start_writers(self) -> None:
        """Start to write. After the last fork and the change of identity: it starts threads."""
        for writer in self._writers:
            writer.start()


def _clean(line: str) -> bytes:
    """Return a line in UTF-8 with control characters made visible: they come from anywhere."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return shown.encode("utf-8", "backslashreplace")


def _to_stderr(line: bytes, _priority: int) -> None:
    data = memoryview(line + b"\n")
    while data:
        data = data[os.write(2, data) :]


def _to_syslog(line: bytes, priority: int) -> None:
    syslog.syslog(priority, line.decode("utf-8", "replace"))


def open_log(options: DaemonOptions, path: str = LOG_FILE, fd: int = -1) -> LogRing:
    """Return the log of a daemon, attached; its writers are to be started later.

    fd: of the log file, handed over by the image before this one.
    """
    log = LogRing(utc=options.log_file_utc)
    log.attach()
    if options.foreground:
        log.add_writer("stderr", EVERYTHING, _to_stderr)
    if options.syslog_priority > NOTHING:
        syslog.openlog("sanlock", syslog.LOG_PID, syslog.LOG_DAEMON)
        log.add_writer("syslog", options.syslog_priority, _to_syslog)
    if options.log_file_priority > NOTHING:
        log.open_file(path, options.log_file_priority, fd)
    return log


async def log_dump(daemon: Daemon, call: Call) -> None:
    """LOG_DUMP: `data` bytes of text; the reply's length stays the request's."""
    text = daemon.log.text()
    await call.reply(len(text), call.header.data2, text, length=call.header.length)


HANDLERS: Final[dict[Command, Handler]] = {wire.Command.LOG_DUMP: log_dump}
