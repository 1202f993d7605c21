"""What a daemon can be told: its options and the keys of its configuration file, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOG_ERR: Final = 3
LOG_WARNING: Final = 4


@dataclass(frozen=True)
class DaemonOptions:
    """The settings of a daemon (spec/cli.md 2 and 7). Priorities are syslog's, -1 for none.

    foreground: stay in the foreground and log everything to stderr. host_name: empty for a random
    one. user, group: names, empty for the defaults. io_timeout: s, for lockspaces that do not say
    their own. bitmap_s: 0 for six io_timeouts. grace_s: s before SIGKILL. keep_unused_lockspaces:
    after a crash, go on with those too that nobody uses.
    """

    foreground: bool = False
    host_name: str = ""
    user: str = ""
    group: str = ""
    use_watchdog: bool = True
    high_priority: bool = False
    mlock_level: int = 1
    use_aio: bool = True
    quiet_fail: bool = True
    debug_renew: int = 0
    debug_clients: bool = False
    debug_commands: int = 0xFFFFFFFFFE06FFFF
    debug_io_submit: bool = False
    debug_io_complete: bool = False
    paxos_debug_all: bool = False
    renewal_history_size: int = 180
    renewal_read_extend_s: int | None = None
    log_file_priority: int = LOG_WARNING
    log_file_utc: bool = False
    syslog_priority: int = LOG_ERR
    names_log_priority: int = LOG_WARNING
    max_worker_threads: int = 8
    shared_retries: int = 8
    write_init_io_timeout: int = 60
    max_sectors_kb_ignore: bool = False
    max_sectors_kb_align: bool = False
    max_sectors_kb: int = 1024
    io_timeout: int = 10
    watchdog_fire_timeout: int = 60
    bitmap_s: int = 0
    grace_s: int = 40
    watchdog: str = "wdmd"
    keep_unused_lockspaces: bool = False
