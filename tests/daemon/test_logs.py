"""The daemon's log: its lines, its bounds, and that nobody waits for whoever writes it."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxoslease import sentences
from paxoslease.daemon import logs
from paxoslease.daemon.logs import LogFile, LogRing, Ring, Writer, open_log, priority_of
from paxoslease.daemon.options import DaemonOptions
from tests.compat.peer import wait_until

LINE = re.compile(rb"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d+ \[\d+\]: ")
log = logging.getLogger("paxoslease.test")


@pytest.fixture
def ring() -> Iterator[LogRing]:
    """A log in memory that takes in everything."""
    ring = LogRing()
    ring.attach()
    yield ring
    ring.detach()


def texts(ring: LogRing) -> list[bytes]:
    """Return the lines without their heads, each of which must have the right form."""
    lines = ring.text().split(b"\n")
    assert all(LINE.match(line) for line in lines), lines
    return [LINE.sub(b"", line) for line in lines]


class Told(list[str]):
    """Keeps what a writer tells."""

    def __call__(self, text: str, *args: object) -> None:
        self.append(text % args)


def test_a_line_has_the_form_of_the_original(ring: LogRing) -> None:
    """Date, monotonic seconds and the thread's id stand before the text; levels are all there."""
    log.debug("small %d", 1)
    log.error("great")
    assert texts(ring) == [b"small 1", b"great"]
    assert f"[{threading.get_native_id()}]: small 1".encode() in ring.text()
    seconds = int(ring.text().split()[2])
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - seconds < 5


def test_an_event_is_a_sentence(ring: LogRing) -> None:
    """What the engine logs for programs is readable, names included."""
    log.warning("renewal_failed lockspace=%r error=%s", b"LS1", "a time-out")
    assert texts(ring) == [b"lockspace LS1 could not be renewed: a time-out"]


def test_sentences_use_the_fields_that_are_logged() -> None:
    """No event of the program has fewer fields than its sentence needs."""
    source = "".join(path.read_text() for path in Path(sentences.__file__).parent.rglob("*.py"))
    logged = re.findall(r"""_log\.\w+\(\s*((?:"[^"\n]*"\s*)+)""", source)
    texts = ["".join(re.findall(r'"([^"]*)"', text)) for text in logged]
    fields = {text.split(" ")[0]: len(re.findall(r"%[a-z]", text)) for text in texts}
    known = sentences.SENTENCES
    needed = {event: len(set(re.findall(r"\{(\d)\}", known[event]))) for event in known}
    both = set(needed) & set(fields)
    assert len(both) > 20
    assert not {event for event in both if needed[event] > fields[event]}


def test_a_record_is_never_more_than_its_lines(
    ring: LogRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text from outside can neither fake a line nor reach a terminal with control characters."""
    # What is not UTF-8 is nothing that reports of tests could be sent with.
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "handlers", [ring])
    log.info("name %s", "a\x1b[31m\r\n2026-01-01 00:00:00 1 [1]: faked \udc80")
    first, second = texts(ring)[0], texts(ring)[-1]
    assert first == b"name a\\x1b[31m"
    assert second.endswith(b"faked \\udc80")
    assert second.startswith(b"2026-01-01")  # behind a head of its own


def test_a_traceback_is_cut_into_lines(ring: LogRing) -> None:
    """An internal error is logged with its place, line by line."""
    try:
        raise KeyError("x")
    except KeyError:
        log.exception("it broke")
    lines = texts(ring)
    assert lines[0] == b"it broke: KeyError('x')"
    assert lines[-1].startswith(b"KeyError: 'x'")
    assert len(lines) <= logs.LINES_MAX


def test_the_ring_keeps_the_last_whole_lines() -> None:
    """When it is full the oldest lines go, and a dump begins with a whole one."""
    ring = Ring(100)
    for number in range(50):
        ring.add(b"line %d" % number)
    assert ring.text().split(b"\n") == [b"line %d" % n for n in range(38, 50)]
    ring.add(bytes(300))
    assert len(ring.text()) <= 100
    assert Ring().text() == b""


def test_a_ring_that_is_full_to_the_byte_loses_nothing() -> None:
    """A ring that was filled exactly still has all of its lines."""
    ring = Ring(20)
    ring.add(b"123456789")
    ring.add(b"abcdefghi")
    assert ring.text() == b"123456789\nabcdefghi"


def test_priorities_are_those_of_syslog() -> None:
    """Each level has the priority that syslog knows it by."""
    levels = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
    assert [priority_of(level) for level in levels] == [2, 3, 4, 6, 7]


def test_a_writer_that_hangs_holds_up_nobody() -> None:
    """While a write blocks, lines are taken up to the bound, then dropped and counted."""
    gate = threading.Event()
    written: list[bytes] = []

    def write(line: bytes, _: int) -> None:
        assert gate.wait(30)
        written.append(line)

    writer = Writer("slow", 7, write, Told(), queue_max=10)
    writer.start()
    for number in range(1000):
        writer.put(b"%d" % number, 6)
    gate.set()
    assert writer.drain(10)
    # One line may have been taken out of the queue before it was full.
    assert 11 <= len(written) <= 12
    lost = [line for line in written if line.endswith(b"lines lost here")]
    assert len(lost) == 1
    assert int(lost[0].split()[0]) + len(written) - 1 == 1000
    writer.stop(5)


def test_a_writer_looks_at_its_threshold() -> None:
    """Only lines at least as urgent as the threshold are written."""
    written: list[bytes] = []
    writer = Writer("some", 4, lambda line, _: written.append(line), Told())
    writer.start()
    for priority in range(8):
        writer.put(b"%d" % priority, priority)
    assert writer.drain(10)
    assert written == [b"0", b"1", b"2", b"3", b"4"]
    writer.stop(5)


def test_a_failing_writer_says_it_once() -> None:
    """A disk that is full is told once, its end too, with the number of lines that are missing."""
    is_full = True
    written: list[bytes] = []
    told = Told()

    def write(line: bytes, _: int) -> None:
        if is_full:
            raise OSError(28, "No space left on device")
        written.append(line)

    writer = Writer("file", 7, write, told)
    writer.start()
    for number in range(5):
        writer.put(b"%d" % number, 6)
    assert writer.drain(10)
    assert told == ["log_not_written to=file error=No space left on device"]
    is_full = False
    writer.put(b"back", 6)
    assert writer.drain(10)
    assert written == [b"5 lines lost here", b"back"]
    assert told[1:] == ["log_written_again to=file"]
    writer.stop(5)


def test_the_file_is_appended_to_and_followed(tmp_path: Path) -> None:
    """Lines are appended; after a rotation they go to the new file."""
    path = tmp_path / "log"
    path.write_bytes(b"earlier\n")
    file = LogFile(str(path))
    file.write(b"one", 4)
    path.rename(tmp_path / "log.1")
    file.write(b"two", 4)
    file.close()
    assert (tmp_path / "log.1").read_bytes() == b"earlier\none\n"
    assert path.read_bytes() == b"two\n"


def test_the_file_does_not_grow_without_bound(tmp_path: Path) -> None:
    """A file that has reached its bound gets nothing more, and goes on when it was cut."""
    path = tmp_path / "log"
    file = LogFile(str(path), size_max=100)
    for _ in range(4):
        file.write(b"x" * 20, 4)
    with pytest.raises(OSError, match="is full"):
        file.write(b"x" * 20, 4)
    assert path.stat().st_size <= 100
    os.truncate(path, 0)
    file.write(b"again", 4)
    file.close()
    assert path.read_bytes() == b"again\n"


def test_open_log_obeys_the_options(tmp_path: Path) -> None:
    """The file gets what is urgent enough, the memory gets everything."""
    path = tmp_path / "log"
    options = DaemonOptions(log_file_priority=4, syslog_priority=-1)
    ring = open_log(options, str(path))
    ring.start_writers()
    log.info("quiet")
    log.warning("loud")
    ring.detach(10)
    assert [LINE.sub(b"", line) for line in path.read_bytes().splitlines()] == [b"loud"]
    assert texts(ring) == [b"quiet", b"loud"]


def test_syslog_gets_what_is_urgent_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the priority of each line, and the daemon's facility."""
    sent: list[tuple[int, str]] = []
    opened: list[tuple[object, ...]] = []
    monkeypatch.setattr(logs.syslog, "syslog", lambda *args: sent.append(args))
    monkeypatch.setattr(logs.syslog, "openlog", lambda *args: opened.append(args))
    ring = open_log(DaemonOptions(log_file_priority=-1, syslog_priority=3))
    ring.start_writers()
    log.warning("quiet")
    log.error("loud")
    log.critical("louder")
    ring.detach(10)
    assert opened == [("sanlock", logs.syslog.LOG_PID, logs.syslog.LOG_DAEMON)]
    assert [(priority, text.split("]: ")[1]) for priority, text in sent] == [
        (3, "loud"),
        (2, "louder"),
    ]


def test_a_daemon_without_its_log_file_goes_on(tmp_path: Path) -> None:
    """A log file that cannot be opened is said in the log that there is."""
    options = DaemonOptions(log_file_priority=4, syslog_priority=-1)
    path = str(tmp_path / "missing" / "log")
    ring = open_log(options, path)
    ring.detach()
    expected = f"the log cannot be written to {path}: No such file or directory"
    assert texts(ring) == [expected.encode()]


def test_whoever_logs_does_not_wait_for_the_disk() -> None:
    """A log file on a FIFO that nobody reads blocks its thread, not the one that logs."""
    read_end, write_end = os.pipe()
    ring = LogRing()
    ring.attach()

    def write(line: bytes, _: int) -> None:
        os.write(write_end, line * 100)

    writer = ring.add_writer("pipe", 7, write, queue_max=50)
    ring.start_writers()
    began = time.monotonic()
    for number in range(500):
        log.warning("line %d %s", number, "x" * 200)
    assert time.monotonic() - began < 5
    assert not writer.drain(0)
    os.set_blocking(read_end, False)

    def is_drained() -> bool:
        try:
            while os.read(read_end, 1 << 16):
                continue
        except BlockingIOError:
            return writer.drain(0)
        return False

    wait_until(is_drained, 20.0, "the writer goes on when it is read")
    ring.detach(5)
    os.close(read_end)
    os.close(write_end)
