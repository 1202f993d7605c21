"""Contenders for one lease take turns: on a virtual clock, with the latencies of a quick disk."""

from __future__ import annotations

import heapq
import random
from collections.abc import Generator
from typing import Any

import pytest

from paxoslease.disk.layout import SIZES_512, Area
from paxoslease.disk.records import NEVER_USED, delta_at_format, pack_leader, paxos_at_format
from paxoslease.protocol.contention import NO_TURN, Turn, acquire_waiting, turn_after
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import (
    UNSEEN,
    BallotImage,
    Membership,
    Now,
    Observe,
    Random,
    Read,
    ReadBallot,
    Sleep,
    Standing,
    Write,
)
from paxoslease.protocol.leases import Lease, release
from paxoslease.timing import Timing

SPACE = Lockspace(b"ls", Area("ls", 0, SIZES_512))
RESOURCE = Resource(b"r", (Area("r", 0, SIZES_512),))
WORK_US = 2_000
LATENCY_US = {Read: 90, ReadBallot: 500, Write: 170}
COMPUTE_US = 60  # for each effect that waits, as the engine does


class Cluster:
    """Hosts that want one lease all the time, and the disk that they share."""

    def __init__(self, hosts: int, seed: int) -> None:
        self.draw = random.Random(seed)
        self.now_us = 1_000_000
        self.disk: dict[tuple[str, int], bytes] = {}
        leader = paxos_at_format(b"ls", b"r", SIZES_512)
        self.disk["r", 0] = pack_leader(leader, 512)
        free = delta_at_format(b"ls", SIZES_512, 10)
        for host_id in range(1, hosts + 1):
            owned = free._replace(owner_id=host_id, owner_generation=1, timestamp=1).sealed()
            self.disk["ls", SPACE.area.delta(host_id)] = pack_leader(owned, 512)
        self.uses = dict.fromkeys(range(1, hosts + 1), 0)
        self.worst_wait_us = 0
        self.holder = 0
        self.events: list[tuple[int, int, int, Any]] = []
        self.serial = 0

    def run(self, duration_us: int) -> None:
        """Let the hosts contend for a while."""
        end_us = self.now_us + duration_us
        for host_id in self.uses:
            self._schedule(self.draw.randrange(3_000), host_id, (self._live(host_id), None))
        while self.events and self.events[0][0] < end_us:
            self.now_us, _, host_id, (life, effect) = heapq.heappop(self.events)
            answer = self._answer(host_id, effect)
            while True:
                asked = life.send(answer)
                if isinstance(asked, Read | ReadBallot | Write):
                    delay_us = LATENCY_US[type(asked)] * self.draw.uniform(0.7, 1.6) + COMPUTE_US
                elif isinstance(asked, Sleep):
                    delay_us = asked.duration_us + COMPUTE_US
                else:
                    answer = self._answer(host_id, asked)
                    continue
                self._schedule(int(delay_us), host_id, (life, asked))
                break

    def _schedule(self, delay_us: int, host_id: int, what: Any) -> None:
        self.serial += 1
        heapq.heappush(self.events, (self.now_us + delay_us, self.serial, host_id, what))

    def _live(self, host_id: int) -> Generator[Any, Any, None]:
        claim = Claim(SPACE, RESOURCE, Timing(10, 60), host_id)
        turn: Turn = NO_TURN
        while True:
            wanted_us = self.now_us
            lease = yield from acquire_waiting(claim, None, turn=turn)
            assert self.holder == 0
            self.holder = host_id
            self.uses[host_id] += 1
            self.worst_wait_us = max(self.worst_wait_us, self.now_us - wanted_us)
            yield Sleep(WORK_US)
            self.holder = 0
            yield from release(lease)
            turn = turn_after(lease, self.now_us, turn)

    def _answer(self, host_id: int, effect: Any) -> Any:
        match effect:
            case Now():
                return self.now_us
            case Random(below):
                return self.draw.randrange(below) if below > 1 else 0
            case Membership():
                return Standing(host_id, 1, self.now_us + 80_000_000)
            case Observe(owner):
                return UNSEEN._replace(
                    owner_id=owner,
                    generation=1,
                    timestamp=1,
                    last_check_us=self.now_us,
                    last_live_us=self.now_us,
                )
            case Read(path, offset):
                return self.disk.get((path, offset), bytes(512))
            case Write(path, offset, data):
                self.disk[path, offset] = data
            case ReadBallot(path, offset, _, num_hosts):
                hosts = [
                    (h, self.disk[path, offset + (h + 1) * 512][:144])
                    for h in self.uses
                    if h <= num_hosts and (path, offset + (h + 1) * 512) in self.disk
                ]
                return BallotImage(self.disk[path, offset][:200], tuple(hosts))
        return None

    @property
    def fairness(self) -> float:
        """Return Jain's index of the uses."""
        uses = self.uses.values()
        return sum(uses) ** 2 / (len(uses) * sum(u * u for u in uses))


@pytest.mark.parametrize(("hosts", "least_per_s"), [(2, 115), (8, 90)])
def test_contenders_take_turns(hosts: int, least_per_s: int) -> None:
    """Hosts that want one lease all the time get it equally often, and nobody waits for long."""
    for seed in range(3):
        cluster = Cluster(hosts, seed)
        cluster.run(10_000_000)
        rate = sum(cluster.uses.values()) / 10
        assert cluster.fairness > 0.97, cluster.uses
        assert rate > least_per_s
        assert cluster.worst_wait_us < 1_000_000


def test_a_lone_user_does_not_wait_for_rivals_that_left() -> None:
    """Rivals that have gone are forgotten after some versions: the last user is not held up."""
    cluster = Cluster(2, 1)
    cluster.run(1_000_000)
    lone = Cluster(1, 1)
    lone.disk = cluster.disk
    lone.now_us = cluster.now_us + 10_000_000
    leader = paxos_at_format(b"ls", b"r", SIZES_512)
    lone.disk["r", 0] = pack_leader(leader._replace(lver=10_000).sealed(), 512)
    lone.run(2_000_000)
    assert lone.uses[1] / 2 > 150


def test_one_hang_does_not_stretch_the_turns() -> None:
    """An acquisition that took minutes, because the disk hung, makes no slot of minutes."""
    claim = Claim(SPACE, RESOURCE, Timing(10, 60), 1)
    leader = paxos_at_format(b"ls", b"r", SIZES_512)._replace(lver=5)
    slow = Lease(claim, leader, NEVER_USED, False, rivals=7, took_us=120_000_000)
    turn = turn_after(slow, 1_000_000)
    assert turn.slots_at(5) * turn.slot_us < 2_000_000
