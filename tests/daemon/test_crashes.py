"""Daemons killed at any moment, one after the other, while their clients go on using leases.

Several hosts share a lockspace. Nothing that a client holds may get lost, nothing may be held
twice, nobody may wait for ever; what is checked, and by whom: crash_client.py, and the witness.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from paxoslease.client import Connection, DaemonError
from paxoslease.wire.sanlock import Config, Disk, Lockspace, Resource
from tests.compat.peer import wait_until
from tests.compat.witness import Witness
from tests.daemon.daemons import REPOSITORY, Daemon

MIB: Final = 1 << 20
SPACE: Final = b"LS"
IO_TIMEOUT_S: Final = 1
LEASES: Final = 16


class Load:
    """Hosts, their clients and a witness; a context manager that ends all of them."""

    def __init__(self, directory: Path, hosts: int, clients: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.disk = directory / "disk"
        with self.disk.open("wb") as file:
            file.truncate((LEASES + 2) * MIB)
        self._directory = directory
        self._stack = ExitStack()
        self._clients_of_each = clients
        self.clients: list[subprocess.Popen[str]] = []
        self.daemons: list[Daemon] = []
        self._hosts = hosts

    def __enter__(self) -> Load:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        self.witness = Witness(self._directory)
        self._stack.callback(self.witness.close)
        for number in range(1, self._hosts + 1):
            daemon = Daemon("ours", self._directory / f"h{number}", f"host{number}")
            self._stack.callback(_end, daemon)
            self.daemons.append(daemon)
        self._format()
        for number, daemon in enumerate(self.daemons, 1):
            with Connection(str(daemon.run_dir)) as connection:
                place = Disk(os.fsencode(self.disk))
                space = Lockspace(SPACE, number, disk=place)
                connection.add_lockspace(space, IO_TIMEOUT_S, wait=False)
        for number, daemon in enumerate(self.daemons, 1):
            with Connection(str(daemon.run_dir), timeout_s=30) as connection:
                connection.inq_lockspace(Lockspace(SPACE, number, disk=place), wait=True)
                connection.set_config(SPACE, Config.USED)
            for _ in range(self._clients_of_each):
                self._start_client(daemon)
        for client in self.clients:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"

    def _format(self) -> None:
        with Connection(str(self.daemons[0].run_dir)) as connection:
            connection.write_lockspace(
                Lockspace(SPACE, disk=Disk(os.fsencode(self.disk))), IO_TIMEOUT_S
            )
            for number in range(LEASES):
                place = Disk(os.fsencode(self.disk), (1 + number) * MIB)
                connection.write_resource(Resource(SPACE, b"r%d" % number, disks=(place,)))

    def _start_client(self, daemon: Daemon) -> None:
        command = [sys.executable, "-m", "tests.daemon.crash_client", str(daemon.run_dir)]
        command += [str(self.witness.socket_path), SPACE.decode(), str(self.disk), str(LEASES)]
        client = subprocess.Popen(
            [*command, str(self.random.getrandbits(32))],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(_end_client, client)
        self.clients.append(client)

    def crash(self) -> int:
        """Kill one daemon and start it again at once; sometimes it is killed while it starts.

        In time: after a renewal, it has 8 io_timeouts in all. Returns how many were killed.
        """
        daemon = self.random.choice(self.daemons)
        self._await_renewal(daemon)
        time.sleep(self.random.uniform(0.0, 0.6))
        _kill(daemon)
        others = self.random.choice((0, 0, 0, 1, 2))
        for _ in range(others):
            with daemon.log_path.open("ab") as log:
                half_started = subprocess.Popen(
                    daemon.command,
                    env=daemon.env,
                    stdin=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,
                )
            time.sleep(self.random.uniform(0.0, 0.6))
            half_started.kill()
            half_started.wait()
        daemon.start_again()
        return 1 + others

    def _await_renewal(self, daemon: Daemon) -> None:
        """Wait until a daemon has renewed within the last 3 s, however late it was started."""
        with Connection(str(daemon.run_dir), timeout_s=20) as connection:
            number = self.daemons.index(daemon) + 1

            def is_fresh() -> bool:
                try:
                    found = connection.get_hosts(SPACE, number)
                except DaemonError:  # it has not looked yet
                    return False
                now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
                return bool(found) and now_s - found[0].timestamp < 3

            wait_until(is_fresh, 20, "the daemon has renewed")

    def ended(self) -> list[str]:
        """Return what has gone wrong so far: daemons and clients that have ended."""
        wrong = [f"daemon {d.name} ended" for d in self.daemons if d.process.poll() is not None]
        return wrong + [f"client {c.pid} ended" for c in self.clients if c.poll() is not None]

    def reports(self) -> list[dict[str, Any]]:
        """End the clients' work and return what they say."""
        for client in self.clients:
            assert client.stdin is not None
            client.stdin.write("end\n")
            client.stdin.flush()
        found = []
        for client in self.clients:
            assert client.stdout is not None
            line = client.stdout.readline()
            found.append(json.loads(line) if line else {"pid": client.pid, "wrong": ["it died"]})
        return found


def _kill(daemon: Daemon) -> None:
    daemon.process.kill()
    daemon.process.wait()


def _end(daemon: Daemon) -> None:
    """End a daemon and its helper, whoever started that."""
    connection = Connection(str(daemon.run_dir), timeout_s=20)
    with connection:
        for space in connection.get_lockspaces():
            connection.set_config(SPACE, Config.UNUSED)
            connection.rem_lockspace(space)
        connection.shutdown()
    daemon.wait()


def _end_client(client: subprocess.Popen[str]) -> None:
    client.kill()
    client.communicate()


def run_crashes(directory: Path, *, hosts: int, clients: int, kills: int, seed: int) -> None:
    """Kill daemons, then see what the clients and the witness say."""
    with Load(directory, hosts, clients, seed) as load:
        killed = 0
        while killed < kills:
            killed += load.crash()
            assert not load.ended()
        reports = load.reports()
        wrong = [f"client {one['pid']}: {text}" for one in reports for text in one["wrong"]]
        with load.witness.client("the test") as line:
            verdict = line.verdict()
    wrong += verdict.violations
    assert not wrong, "\n".join(wrong)
    assert min(one["acquired"] for one in reports) > 0
    print(
        f"{killed} kills, {sum(one['acquired'] for one in reports)} leases acquired, "
        f"{sum(one['refused'] for one in reports)} refused, "
        f"{sum(one['converted'] for one in reports)} converted, "
        f"longest round {max(one['longest_s'] for one in reports):.1f} s, "
        f"{verdict.entries} uses seen, {verdict.shared_at_once} shared at once"
    )


def test_clients_survive_a_few_crashes(tmp_path: Path) -> None:
    """Twenty crashes: no lease is lost, none is held twice, no client hangs."""
    run_crashes(tmp_path, hosts=2, clients=6, kills=20, seed=1)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_clients_survive_many_crashes(tmp_path: Path) -> None:
    """Five hundred crashes of three daemons with eight clients each."""
    kills = int(os.environ.get("PAXOSLEASE_KILLS", "500"))
    run_crashes(tmp_path, hosts=3, clients=8, kills=kills, seed=2)
