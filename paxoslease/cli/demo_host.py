"""One host of the demonstration, as a process: join, want the lease, run the guest under it.

Reports what happens as JSON lines on standard output, with the time of a clock that all processes
of the machine share. The director (demo_command.py) kills this process to play a power failure.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import paxoslease
from paxoslease.cli.demo_plan import GUEST, HOST_NAMES, IO_TIMEOUT_S, LOCKSPACE, WATCHDOG_S

MODULE = "paxoslease.cli.demo_host"
_BEAT_S = 0.1


def _report(host_id: int, event: str, **fields: object) -> None:
    line = {"at": time.monotonic(), "host": host_id, "event": event, **fields}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def host(directory: Path, host_id: int) -> int:
    """Be a host until told to stop: exit code 0."""
    # There is no watchdog for two processes that only play hosts; the director plays it too.
    logging.getLogger("paxoslease").addHandler(logging.NullHandler())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    disk = str(directory / "disk")
    _report(host_id, "joining")
    with paxoslease.join(
        disk,
        LOCKSPACE,
        host_id,
        host_name=HOST_NAMES[host_id],
        io_timeout=IO_TIMEOUT_S,
        watchdog="none",
        watchdog_fire_timeout=WATCHDOG_S,
    ) as lockspace:
        _report(host_id, "joined", generation=lockspace.generation)
        wanted = False
        while True:
            try:
                lease = lockspace.lease(GUEST, disk, offset=1 << 20, wait=1 if wanted else 0)
                break
            except paxoslease.WaitTimeout as error:
                _report_obstacle(host_id, error.last)
            except paxoslease.PaxosleaseError as error:
                _report_obstacle(host_id, error)
            wanted = True
        with lease:
            _report(host_id, "acquired", token=lease.fencing_token)
            guest = subprocess.Popen(
                [sys.executable, "-m", MODULE, "guest", str(directory), str(host_id)]
            )
            lockspace.guard(guest)
            _report(host_id, "running", pid=guest.pid)
            signal.sigwait({signal.SIGTERM, signal.SIGINT})
            guest.terminate()
            guest.wait()
            _report(host_id, "stopped")
        _report(host_id, "released")
    _report(host_id, "left")
    return 0


def _report_obstacle(host_id: int, obstacle: paxoslease.PaxosleaseError) -> None:
    if isinstance(obstacle, paxoslease.LeaseHeld):
        _report(
            host_id,
            "refused",
            owner=obstacle.host_id,
            alive=obstacle.alive,
            takeover_in_s=obstacle.takeover_in_us / 1e6,
        )
    else:
        _report(host_id, "refused", owner=0, alive=True, takeover_in_s=0.0, why=str(obstacle))


def guest(directory: Path, host_id: int) -> int:
    """Be the guest: write a heartbeat for the witness until killed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with (directory / "heartbeats").open("a", buffering=1) as beats:
        while True:
            beats.write(f"{time.monotonic():.6f} {host_id}\n")
            time.sleep(_BEAT_S)


if __name__ == "__main__":
    role = {"host": host, "guest": guest}[sys.argv[1]]
    sys.exit(role(Path(sys.argv[2]), int(sys.argv[3])))
