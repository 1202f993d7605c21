"""sanlock.conf and the daemon's options: what becomes of them was compared with the original."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paxoslease.daemon.config import daemon_options, read_conf
from paxoslease.daemon.options import DaemonOptions

DEFAULT = DaemonOptions()
COMMANDS = DEFAULT.debug_commands


def conf(tmp_path: Path, text: str) -> str:
    """Write a configuration file."""
    path = tmp_path / "sanlock.conf"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("use_watchdog=0\nmlock_level=0\nhigh_priority=1", {
            "use_watchdog": False, "mlock_level": 0, "high_priority": True}),
        ("debug_renew  =  2 trailing", {"debug_renew": 2}),
        (" quiet_fail = 0", {}),
        ("\tquiet_fail = 0", {}),
        ("#quiet_fail = 0", {}),
        ("quiet_failx = 0", {}),
        ("quiet_fail 0", {}),
        ("quiet_fail =", {}),
        ("quiet_fail\t=\t0", {"quiet_fail": False}),
        ("quiet_fail  0 = 0", {"quiet_fail": False}),
        ("quiet_fail=0\nquiet_fail=1", {}),
        ("quiet_fail = -1", {}),
        ("our_host_name = abc def", {"host_name": "abc"}),
        ("our_host_name = " + "x" * 60, {"host_name": "x" * 48}),
        ("uname = a\ngname=b", {"user": "a", "group": "b"}),
        ("max_worker_threads = 1", {"max_worker_threads": 2}),
        ("max_worker_threads = -5", {"max_worker_threads": 2}),
        ("renewal_history_size = x", {"renewal_history_size": 0}),
        ("renewal_read_extend_sec = 0", {"renewal_read_extend_s": 0}),
        ("write_init_io_timeout = 0", {}),
        ("write_init_io_timeout = 70x", {"write_init_io_timeout": 70}),
        ("sh_retries = 3", {"shared_retries": 3}),
        ("sh_retries = -3", {"shared_retries": 0}),
        ("use_aio = 0x1", {"use_aio": False}),
        ("max_sectors_kb = align", {"max_sectors_kb_align": True, "max_sectors_kb": 0}),
        ("max_sectors_kb = ignore", {"max_sectors_kb_ignore": True, "max_sectors_kb": 0}),
        ("max_sectors_kb = 512", {"max_sectors_kb": 512}),
        ("max_sectors_kb = align\nmax_sectors_kb = 512", {"max_sectors_kb": 512}),
        ("max_sectors_kb = 511", {}),
        ("max_sectors_kb = 9000", {}),
        ("debug_io = submit,complete", {"debug_io_submit": True, "debug_io_complete": True}),
        ("debug_cmd = -all", {"debug_commands": 0}),
        ("debug_cmd = +all", {"debug_commands": (1 << 64) - 1}),
        ("debug_cmd = acquire", {}),
        ("debug_cmd = foo", {}),
        ("debug_cmd = +inq_lockspace\ndebug_cmd = -acquire -release", {
            "debug_commands": (COMMANDS | 1 << 16) & ~(1 << 7)}),
        ("logfile_priority=7\nlogfile_use_utc=1\nsyslog_priority=-1\nnames_log_priority=2", {
            "log_file_priority": 7, "log_file_utc": True,
            "syslog_priority": -1, "names_log_priority": 2}),
        ("paxos_debug_all = 1\ndebug_clients = 1", {
            "paxos_debug_all": True, "debug_clients": True}),
        ("io_timeout = 5\nkill_grace_seconds = 11", {"io_timeout": 5, "grace_s": 11}),
        ("io_timeout = 0\nkill_grace_seconds = 61", {}),
        ("watchdog_fire_timeout = 40", {"watchdog_fire_timeout": 40, "grace_s": 15}),
        ("watchdog_fire_timeout = 20", {"watchdog_fire_timeout": 20, "grace_s": 0}),
    ],
)  # fmt: skip
def test_keys(tmp_path: Path, text: str, settings: dict[str, Any]) -> None:
    """Each key sets what it says; what makes no sense leaves the default."""
    assert daemon_options({}, conf_path=conf(tmp_path, text)) == replace(DEFAULT, **settings)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("-Q 0 -R 5 -H 3 -L 7 -S -1", {
            "quiet_fail": False, "debug_renew": 5, "renewal_history_size": 3,
            "log_file_priority": 7, "syslog_priority": -1}),
        ("-t 1 -w 0 -h 1 -l 2 -a 0", {
            "max_worker_threads": 2, "use_watchdog": False, "high_priority": True,
            "mlock_level": 2, "use_aio": False}),
        ("-o 3 -b 9 -e host -U u -G g", {
            "io_timeout": 3, "bitmap_s": 9, "host_name": "host", "user": "u", "group": "g"}),
        ("-g 60", {"grace_s": 60}),
        ("-g x", {"grace_s": 0}),
        ("-g 61", {}),
        ("-g -1", {}),
        ("-r L:R -x L:/p -f 3", {}),
    ],
)  # fmt: skip
def test_letters(tmp_path: Path, words: str, settings: dict[str, Any]) -> None:
    """Each option of the daemon sets what it says; others are ignored."""
    split = words.split()
    given = {word[1:]: value.encode() for word, value in zip(split[::2], split[1::2], strict=True)}
    found = daemon_options(given, conf_path=str(tmp_path / "missing"))
    assert found == replace(DEFAULT, **settings)


def test_command_line_wins(tmp_path: Path) -> None:
    """An option is stronger than a key, also one that only that one gives."""
    path = conf(tmp_path, "quiet_fail = 0\nour_host_name = conf\nsh_retries = 2\n")
    found = daemon_options({"e": b"line", "Q": b"1"}, foreground=True, conf_path=path)
    assert found == replace(DEFAULT, foreground=True, host_name="line", shared_retries=2)


def test_long_lines(tmp_path: Path) -> None:
    """What is behind the 127th byte of a line counts as a line of its own."""
    path = conf(tmp_path, "#" + "x" * 126 + "quiet_fail = 0\n")
    assert list(read_conf(path)) == [("quiet_fail", b"0")]


def test_unreadable(tmp_path: Path) -> None:
    """A configuration that is a directory, or bytes of no meaning, changes nothing."""
    assert daemon_options({}, conf_path=str(tmp_path)) == DEFAULT
    (tmp_path / "sanlock.conf").write_bytes(bytes(range(256)) * 8)
    assert daemon_options({}, conf_path=str(tmp_path / "sanlock.conf")) == DEFAULT
