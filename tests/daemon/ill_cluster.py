"""Three of our daemons on one ill disk, and everything that may happen to them.

The sandbox has no watchdog, so the test is one: when the record of a host on the disk has not moved
for almost 8 io_timeouts and the fire time-out, the host is reset: its daemon, helpers and clients
are killed, what they had in flight is lost, and its run directory is emptied.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from paxoslease.channel import DaemonError
from paxoslease.client import Connection
from paxoslease.disk.records import unpack_leader
from paxoslease.wire.sanlock import Disk, HostFlag, Lockspace
from tests.daemon.daemons import OUR_SANLOCK, REPOSITORY

MIB: Final = 1 << 20
IO_TIMEOUT_S: Final = 1
FIRE_S: Final = 10
FAIL_S: Final = 8 * IO_TIMEOUT_S
DEAD_S: Final = FAIL_S + FIRE_S
RESET_S: Final = DEAD_S - 2.0  # a busy machine may keep this watchdog waiting, too
CAUSE_S: Final = FAIL_S - 1.5  # so long without a renewal is a cause for losing leases
CAUSE_LASTS_S: Final = DEAD_S + 5.0
CLIENTS: Final = 2
PAXOSLEASE: Final = str(Path(OUR_SANLOCK).with_name("paxoslease"))


class Death(NamedTuple):
    """A client that ended without the test having ended it."""

    at_s: float
    who: str
    status: int
    held: str
    is_caused: bool


class Client:
    """A process of ill_client.py, and what it said last."""

    def __init__(self, host: Host, number: int, seed: int) -> None:
        self.name = f"{host.name}-{number}"
        self.held = ""
        self.uses = 0
        self.broken = 0
        self.is_doomed = False
        where = [str(host.run_dir), str(host.path), str(host.cluster.witness), self.name]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.daemon.ill_client", *where, str(seed)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._listen)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, lease = line.strip().partition(" ")
            self.held = lease
            self.uses += word == "held"
            self.broken += word == "broken"

    def kill(self) -> None:
        """Kill it: nothing to wonder about."""
        self.is_doomed = True
        self.process.kill()

    def end(self) -> int:
        """Wait for its end, which has come or is near; returns the exit status."""
        status = self.process.wait(10)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


class Host:
    """One host: daemon, clients, and its record on the disk as the watchdog sees it."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.name = f"h{number}"
        self.path = cluster.mounted / self.name
        self.run_dir = cluster.directory / self.name
        self.log_path = cluster.directory / f"{self.name}.log"
        self.daemon: subprocess.Popen[bytes] | None = None
        self.clients: list[Client] = []
        self.is_stopped = False
        self.is_answering = False  # since it was started
        self.is_killed = True
        self.joins = 0
        self._record = (0, 0)
        self._moved_s = time.monotonic()
        self._is_free = True
        self._reset_at = (0, 0)
        self.overdue_s = float("-inf")

    # -- the daemon ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon, which goes on with what its predecessor noted if it was not reset."""
        self.run_dir.mkdir(exist_ok=True)
        self.is_answering = self.is_killed = False
        env = {**os.environ, "SANLOCK_PRIVILEGED": "0", "SANLOCK_RUN_DIR": str(self.run_dir)}
        command = [PAXOSLEASE, "daemon", "--watchdog", "none", "--host-name", self.name]
        command += ["--set", f"watchdog_fire_timeout={FIRE_S}"]
        with self.log_path.open("ab") as log:
            self.daemon = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True
            )

    def signal(self, number: int) -> None:
        """Send a signal to the daemon."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.send_signal(number)
            if number in (signal.SIGSTOP, signal.SIGCONT):
                self.is_stopped = number == signal.SIGSTOP

    def kill_daemon(self) -> None:
        """Kill the daemon alone. It may be in the middle of I/O, so its end is not waited for."""
        self.is_killed = True
        if self.daemon is not None:
            self.daemon.kill()
        self.is_stopped = False

    @property
    def has_fallen(self) -> bool:
        """Tell whether the daemon ended by itself."""
        return not self.is_running and not self.is_killed

    @property
    def is_running(self) -> bool:
        """Tell whether the daemon runs."""
        return self.daemon is not None and self.daemon.poll() is None

    def reset(self) -> None:
        """Do what a watchdog does, and begin again with an empty run directory."""
        for client in self.clients:
            client.kill()
        self.kill_daemon()
        for pid in self._helpers():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.cluster.lose(self)
        if self.daemon is not None:
            self.daemon.wait(20)
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def _helpers(self) -> list[int]:
        """Return all processes of this run directory; the daemons of the past had some, too."""
        mine = f"SANLOCK_RUN_DIR={self.run_dir}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    if mine in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    continue  # it is gone, or not ours
        return found

    # -- the lockspace -------------------------------------------------------------------------

    def keep_joined(self) -> None:
        """See to it that the daemon is in the lockspace, in a thread, until the cluster ends."""
        disk = Disk(os.fsencode(self.path), 0)
        space = Lockspace(b"LS", self.number, 0, disk)
        while not self.cluster.ended.wait(0.5):
            if self.is_stopped or not self.is_running:
                continue
            try:
                with Connection(str(self.run_dir), timeout_s=5.0) as daemon:
                    spaces = daemon.get_lockspaces()
                    self.is_answering = True
                    if not spaces:
                        daemon.add_lockspace(space, IO_TIMEOUT_S, wait=False)
                        self.joins += 1
            except DaemonError:
                continue  # it is being restarted, stopped, or leaving the lockspace

    def is_live(self) -> bool:
        """Tell whether the daemon is in the lockspace and shows itself as alive."""
        try:
            with Connection(str(self.run_dir), timeout_s=5.0) as daemon:
                rows = daemon.get_hosts(b"LS", self.number)
        except DaemonError:
            return False
        return bool(rows) and rows[0].flags & 0xF == HostFlag.LIVE

    # -- the watchdog --------------------------------------------------------------------------

    def watch(self, backing: int) -> bool:
        """Look at the host's record on the disk; returns whether the host must be reset now."""
        leader = unpack_leader(os.pread(backing, 512, (self.number - 1) * 512))
        now_s = time.monotonic()
        record = (leader.owner_generation, leader.timestamp)
        if record != self._record:
            self._record, self._moved_s = record, now_s
            self._is_free = leader.is_free
        if self._is_free:
            self._moved_s = now_s
        age_s = now_s - self._moved_s
        if age_s > CAUSE_S:
            self.overdue_s = now_s
        if age_s > RESET_S and self._reset_at != record:
            self._reset_at = record
            return True
        return False

    @property
    def has_cause(self) -> bool:
        """Tell whether leases may have been lost lately, for want of a renewal."""
        return time.monotonic() - self.overdue_s < CAUSE_LASTS_S

    # -- clients -------------------------------------------------------------------------------

    def tend(self, draw: random.Random) -> list[Death]:
        """Bury clients that have ended and start others; returns those that ended by themselves."""
        deaths = []
        for client in list(self.clients):
            if client.process.poll() is None:
                continue
            self.clients.remove(client)
            self.cluster.count(client)
            status = client.end()
            if not client.is_doomed:
                at_s = self.cluster.now_s()
                cause = self.has_cause
                deaths.append(Death(at_s, client.name, status, client.held, cause))
        while self.is_running and len(self.clients) < CLIENTS and not self.cluster.ended.is_set():
            self.clients.append(Client(self, len(self.clients), draw.randrange(1 << 30)))
        return deaths


class Cluster:
    """The hosts and their disk."""

    def __init__(self, directory: Path, mounted: Path, server: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.mounted = mounted
        self.witness = directory / "witness.sock"
        self.ended = threading.Event()
        self.log: list[str] = []
        self.uses = 0
        self.broken = 0
        self._server = server
        self._order = threading.Lock()
        self._began_s = time.monotonic()
        self.hosts = [Host(self, number) for number in (1, 2, 3)]

    def now_s(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self._began_s

    def note(self, text: str) -> None:
        """Note what was done."""
        self.log.append(f"{self.now_s():7.2f} {text}")

    def count(self, client: Client) -> None:
        """Add up what a client that has ended did."""
        self.uses += client.uses
        self.broken += client.broken

    def lose(self, host: Host) -> None:
        """Lose what a host has in flight."""
        self._tell(file=host.name, lost=True)

    def ail(
        self, host: Host, *, delay_s: float = 0.0, errors: float = 0.0, stalled: bool = False
    ) -> None:
        """Say how the disk is for a host from now on."""
        self._tell(file=host.name, delay_s=delay_s, errors=errors, stalled=stalled)

    def _tell(self, **order: object) -> None:
        assert self._server.stdin is not None
        with self._order:
            self._server.stdin.write(json.dumps(order).encode() + b"\n")
            self._server.stdin.flush()
