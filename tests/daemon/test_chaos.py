"""Daemons that are killed, stopped, replaced and cut off from their disk: nobody is inside twice.

CHAOS_MINUTES says for how long (default 20), CHAOS_SEED repeats a run's faults, though not their
timing. What happened, with the seed, is printed.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import paxoslease
from tests.compat.gate import FuseMissing
from tests.compat.peer import PeerBroken, wait_until
from tests.compat.witness import Witness
from tests.daemon.daemons import REPOSITORY, require
from tests.daemon.ill_client import LEASES
from tests.daemon.ill_cluster import DEAD_S, FAIL_S, IO_TIMEOUT_S, MIB, Cluster, Death, Host

LENGTH_S = float(os.environ.get("CHAOS_MINUTES", "20")) * 60
LOOK_S = 0.05
HEAL_LIMIT_S = 2 * DEAD_S + 60.0


class Chaos:
    """What happens to the hosts, drawn from a seed."""

    def __init__(self, cluster: Cluster, draw: random.Random, backing: int) -> None:
        self.cluster = cluster
        self.deaths: list[Death] = []
        self.fallen: list[str] = []
        self.resets = 0
        self._draw = draw
        self._backing = backing
        self._next_s = {host.name: draw.uniform(1, 6) for host in cluster.hosts}
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._clients = random.Random(draw.randrange(1 << 30))

    def run(self, duration_s: float, *, faults: bool) -> None:
        """Let things happen, or only what has begun to happen come to its end."""
        end_s = self.cluster.now_s() + duration_s
        while self.cluster.now_s() < end_s:
            self.look(faults=faults)

    def look(self, *, faults: bool) -> None:
        """Look after everything once."""
        now_s = self.cluster.now_s()
        for host in self.cluster.hosts:
            if host.watch(self._backing):
                self.cluster.note(f"{host.name} reset")
                self.resets += 1
                host.reset()
                self._at(self._draw.uniform(0.2, 3), lambda h=host: self._start(h))
            self.deaths += host.tend(self._clients)
            if host.has_fallen:
                assert host.daemon is not None
                self.fallen.append(f"{now_s:.2f} {host.name} {host.daemon.returncode}")
                host.start()
            if faults and now_s > self._next_s[host.name]:
                took_s = self._happen(host)
                self._next_s[host.name] = now_s + took_s + self._draw.uniform(0.5, 6)
        for item in [item for item in self._later if item[0] <= now_s]:
            self._later.remove(item)
            item[1]()
        time.sleep(LOOK_S)

    def heal(self) -> None:
        """End all faults; what was to happen later happens now."""
        for host in self.cluster.hosts:
            self.cluster.ail(host)
            host.signal(signal.SIGCONT)
        later, self._later = self._later, []
        for _, work in later:
            work()

    def _at(self, in_s: float, work: Callable[[], None]) -> None:
        self._later.append((self.cluster.now_s() + in_s, work))

    def _happen(self, host: Host) -> float:
        """Let one thing happen to a host; returns how long it lasts."""
        draw, ail = self._draw, self.cluster.ail
        is_long = draw.random() < 0.25
        length_s = draw.uniform(FAIL_S, DEAD_S + 6) if is_long else draw.uniform(0.2, FAIL_S - 3)
        what = draw.choice(("kill", "stop", "usr2", "stall", "errors", "slow", "client", "usr2"))
        self.cluster.note(f"{host.name} {what} {length_s:.1f}")
        match what:
            case "kill":
                length_s = min(length_s, FAIL_S + 3) if is_long else draw.uniform(0, 2)
                host.kill_daemon()
                self._at(length_s, lambda: self._start(host))
            case "stop":
                host.signal(signal.SIGSTOP)
                self._at(length_s, lambda: host.signal(signal.SIGCONT))
            case "usr2":
                if host.is_answering:  # before that it may not catch it
                    host.signal(signal.SIGUSR2)
                return 0.0
            case "stall":
                ail(host, stalled=True)
                self._at(length_s, lambda: ail(host))
            case "errors":
                ail(host, errors=draw.choice((0.1, 0.4, 1.0)))
                self._at(length_s, lambda: ail(host))
            case "slow":
                ail(host, delay_s=draw.choice((0.05, 0.3, 0.8)))
                self._at(length_s, lambda: ail(host))
            case "client":
                if host.clients:
                    draw.choice(host.clients).kill()
                return 0.0
        return length_s

    def _start(self, host: Host) -> None:
        """Start a daemon after a crash, once what its predecessor had in flight has landed."""
        if not host.is_killed:
            return  # it was reset meanwhile, and has been started
        if host.is_running:
            self._at(0.1, lambda: self._start(host))
        else:
            host.start()


@contextmanager
def ill_cluster(directory: Path, seed: int) -> Iterator[tuple[Cluster, int]]:
    """Yield three hosts that are about to join a lockspace on an ill disk, and the disk itself."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        raise FuseMissing("a disk that falls ill needs root and FUSE")
    require("ours")
    backing, mounted = directory / "disk", directory / "mounted"
    mounted.mkdir()
    backing.write_bytes(bytes((LEASES + 1) * MIB))
    paxoslease.format_lockspace(str(backing), "LS", io_timeout=IO_TIMEOUT_S)
    for number in range(1, LEASES + 1):
        paxoslease.format_resource(str(backing), "LS", f"R{number}", offset=number * MIB)
    names = ["h1", "h2", "h3"]
    command = [sys.executable, "-m", "tests.daemon.ill_fs", str(mounted), str(backing)]
    server = subprocess.Popen(
        [*command, str(seed), *names], cwd=REPOSITORY, stdin=subprocess.PIPE, start_new_session=True
    )
    cluster = Cluster(directory, mounted, server)
    fd = os.open(backing, os.O_RDONLY)
    joiners = [threading.Thread(target=host.keep_joined) for host in cluster.hosts]
    try:
        wait_until(
            lambda: server.poll() is not None or (mounted / "h1").exists(), 10, "FUSE is mounted"
        )
        for host in cluster.hosts:
            host.start()
        for joiner in joiners:
            joiner.start()
        yield cluster, fd
    finally:
        cluster.ended.set()
        for host in cluster.hosts:
            cluster.ail(host)
            host.reset()
            host.tend(random.Random(0))
        for joiner in joiners:
            joiner.join()
        os.close(fd)
        assert server.stdin is not None
        server.stdin.close()
        subprocess.run(["umount", "--lazy", str(mounted)], check=False)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def is_used_by(chaos: Chaos, host: Host, limit_s: float) -> bool:
    """Tell whether clients of a host get leases again."""
    end_s = chaos.cluster.now_s() + limit_s
    before = {client: client.uses for client in host.clients}
    while chaos.cluster.now_s() < end_s:
        if any(client.uses > before.get(client, 0) for client in host.clients):
            return True
        chaos.look(faults=False)
    return False


@pytest.mark.long
@pytest.mark.timeout(LENGTH_S + 600)
def test_nobody_is_inside_twice_whatever_happens(tmp_path: Path) -> None:
    """No overlap, no token below an earlier one, no lease lost without cause, and all come back."""
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(1 << 32))
    print(f"CHAOS_SEED={seed}")
    with (
        Witness(tmp_path, tokens_grow=True) as witness,
        ill_cluster(tmp_path, seed) as (cluster, fd),
    ):
        chaos = Chaos(cluster, random.Random(seed), fd)
        try:
            while cluster.now_s() < LENGTH_S:
                chaos.run(min(5.0, LENGTH_S), faults=True)
                witness.check()
            cluster.note("healed")
            chaos.heal()
            wait_healed(chaos)
            for host in cluster.hosts:
                assert is_used_by(chaos, host, 30.0), f"{host.name} gets no leases"
            verdict = witness.check()
        finally:
            print("\n".join(cluster.log))
            print("\n".join(map(str, chaos.deaths)))
        joins = [host.joins for host in cluster.hosts]
        print(f"{verdict.entries} uses, {chaos.resets} resets, {joins} joins,", end=" ")
        print(f"{len(chaos.deaths)} clients stopped, {cluster.broken} connections ended")
    assert chaos.fallen == []
    assert [death for death in chaos.deaths if death.status not in (-9, -15)] == []
    assert [death for death in chaos.deaths if not death.is_caused] == []
    assert verdict.entries > LENGTH_S / 10


def wait_healed(chaos: Chaos) -> None:
    """Look after everything until all hosts are back in the lockspace."""
    end_s = chaos.cluster.now_s() + HEAL_LIMIT_S
    while not all(host.is_live() for host in chaos.cluster.hosts):
        if chaos.cluster.now_s() > end_s:
            live = {host.name: host.is_live() for host in chaos.cluster.hosts}
            raise PeerBroken(f"not all are back: {live}")
        chaos.run(1.0, faults=False)
