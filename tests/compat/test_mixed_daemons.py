"""One real sanlock daemon and two of ours in one lockspace, used through their sockets.

Clients of every host (Debian's, see our_daemon.py) contend for leases under the external witness.
In the value block of each lease they keep a count: whoever has it exclusively finds what the last
one left, whichever daemon that was, and leaves one more.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.compat.our_daemon import OurHost, require_ours
from tests.compat.peer import (
    Lockspace,
    Resource,
    SanlockClient,
    SanlockError,
    SanlockHost,
    host_dead_s,
    loop_device,
    wait_until,
)
from tests.compat.test_peer_harness import CONTENDED, format_resource, is_taken, wait_joined
from tests.compat.witness import EXCLUSIVE, SHARED, Witness, WitnessClient

pytestmark = pytest.mark.peer

MIB = 1 << 20
THEIRS, OURS, OURS_TOO = 1, 2, 3
COUNT_BYTES = 16
PATIENCE_S = 10.0
# The other user of the same host has it, or is about to.
BUSY = CONTENDED | {-16, -17}
LONG_S = float(os.environ.get("MIXED_MINUTES", "30")) * 60


class Cluster(NamedTuple):
    """Hosts by id, their lockspace, and resources that nobody holds."""

    hosts: dict[int, SanlockHost]
    space: Lockspace
    resources: list[Resource]


@pytest.fixture(scope="module", params=["file-512", "loop-4096"])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Form a lockspace of one real daemon and two of ours; each kind formats a part of it."""
    require_ours()
    directory = tmp_path_factory.mktemp("mixed")
    with ExitStack() as stack:
        if request.param == "loop-4096":
            path = stack.enter_context(loop_device(directory / "backing", 40 * MIB, 4096))
            sizes = (4096, 8 * MIB)
        else:
            path = str(directory / "leases")
            Path(path).write_bytes(bytes(8 * MIB))
            sizes = (512, MIB)
        hosts = {
            THEIRS: stack.enter_context(SanlockHost(directory, "theirs")),
            OURS: stack.enter_context(OurHost(directory, "ours")),
            OURS_TOO: stack.enter_context(OurHost(directory, "ours-too")),
        }
        space = Lockspace("LS", path, 0, *sizes)
        hosts[OURS if sizes[0] == 512 else THEIRS].init_lockspace(space)
        resources = [
            format_resource(hosts[formatter], space, f"R{at}", at * sizes[1])
            for at, formatter in ((1, THEIRS), (2, OURS))
        ]
        for host_id, host in hosts.items():
            host.add_lockspace(space, host_id, wait=False)
        for host_id, host in hosts.items():
            wait_joined(host, space, host_id)
        yield Cluster(hosts, space, resources)


def live_hosts(host: SanlockHost, space: Lockspace) -> dict[int, int]:
    """Return the generations of the hosts that a daemon takes for alive, by id."""
    try:
        seen = host.get_hosts(space)
    except SanlockError as error:
        if error.number != -11:  # it has not renewed yet
            raise
        return {}
    return {host_id: row.generation for host_id, row in seen.items() if row.state == "LIVE"}


def test_every_host_sees_the_others(cluster: Cluster) -> None:
    """The three host tables agree on who is alive, and in which generation."""

    def agree() -> bool:
        tables = [live_hosts(host, cluster.space) for host in cluster.hosts.values()]
        return all(table == tables[0] and len(table) == 3 for table in tables)

    wait_until(agree, 15.0, "the host tables agree")


def test_a_held_lease_is_held_for_the_others(cluster: Cluster) -> None:
    """What one host holds nobody else gets; when its client dies, another has it at once."""
    (resource, _), hosts = cluster.resources, cluster.hosts
    for holder, others in ((THEIRS, (OURS, OURS_TOO)), (OURS, (OURS_TOO, THEIRS))):
        client = hosts[holder].client()
        client.acquire(resource)
        for other in others:
            with pytest.raises(SanlockError) as refused:
                hosts[other].acquire(resource)
            assert refused.value.number == -243
            owners = hosts[other].read_owners(resource)
            assert [owner.host_id for owner in owners] == [holder]
        client.kill()
        heir = hosts[others[0]]
        wait_until(lambda h=heir: is_taken(h, resource), 10.0, "the dead client's lease is free")
        heir.release(resource)


def test_all_share_a_lease_and_convert_it(cluster: Cluster) -> None:
    """Three daemons share a lease; the last one left makes it exclusive, and shares it again."""
    (resource, _), hosts = cluster.resources, cluster.hosts
    for host in hosts.values():
        host.acquire(resource, shared=True)
    for last in hosts.values():
        owners = {owner.host_id for owner in last.read_owners(resource)}
        assert owners == set(hosts)
        for host in hosts.values():
            with pytest.raises(SanlockError) as refused:
                host.convert(resource, shared=False)
            assert refused.value.number == -11
        for host in hosts.values():
            if host is not last:
                host.release(resource)
        last.convert(resource, shared=False)
        assert not any(is_taken(host, resource) for host in hosts.values() if host is not last)
        last.convert(resource, shared=True)
        for host in hosts.values():
            if host is not last:
                host.acquire(resource, shared=True)
    for host in hosts.values():
        host.release(resource)


class User:
    """A client that uses leases of its host under the witness until the time is up."""

    def __init__(self, client: SanlockClient, line: WitnessClient) -> None:
        self.client = client
        self.line = line
        self.exclusive = dict.fromkeys(("R1", "R2"), 0)
        self.shared = 0
        self._draw = random.Random(line.user)

    def run(self, resources: list[Resource], stop_at: float) -> None:
        """Want a lease, use it when it is granted, release it, again and again."""
        draw = self._draw
        while time.monotonic() < stop_at:
            resource = draw.choice(resources)
            shared = draw.random() < 0.25
            try:
                self.client.acquire(resource, shared=shared, lvb=True)
            except SanlockError as error:
                if error.number not in BUSY:
                    raise
                threading.Event().wait(draw.uniform(0, 0.05))
                continue
            self._use(resource, shared)
            self.client.release(resource)
            threading.Event().wait(draw.uniform(0, 0.05))

    def _use(self, resource: Resource, shared: bool) -> None:
        token = self._version(resource) if shared else self.client.fencing_token(resource)
        with self.line.use(resource.name, SHARED if shared else EXCLUSIVE, token):
            count = int(self.client.get_lvb(resource, COUNT_BYTES).rstrip(b"\0") or b"0")
            threading.Event().wait(0.002)
            if shared:
                self.shared += 1
                return
            self.client.set_lvb(resource, b"%d" % (count + 1))
            self.exclusive[resource.name] += 1

    def _version(self, resource: Resource) -> int:
        """Return the version on the disk; for a shared lease both daemons tell a client 0."""
        place = {"path": resource.path, "offset": resource.offset}
        sizes = {"align": resource.align_size, "sector": resource.sector_size}
        version: int = self.client.module("read_resource", **place, **sizes)["version"]
        return version


def contend(cluster: Cluster, directory: Path, duration_s: float) -> dict[str, int]:
    """Let two users of every host contend; return how often each held a lease."""
    stop_at = time.monotonic() + duration_s
    failures: list[BaseException] = []

    def run(user: User) -> None:
        try:
            user.run(cluster.resources, stop_at)
        except BaseException as error:
            failures.append(error)

    before = [count_of(cluster, resource) for resource in cluster.resources]
    with Witness(directory, tokens_grow=True) as witness, ExitStack() as stack:
        users = [
            User(
                stack.enter_context(host.client()),
                stack.enter_context(witness.client(f"{host.name}-{number}")),
            )
            for host in cluster.hosts.values()
            for number in (1, 2)
        ]
        threads = [threading.Thread(target=run, args=(user,)) for user in users]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == [], failures
        # Real hosts get their turn beside ours that try again and again, not only after them.
        assert time.monotonic() - stop_at < PATIENCE_S
        verdict = witness.check()
        used = {user.line.user: sum(user.exclusive.values()) + user.shared for user in users}
        assert verdict.entries == sum(used.values())
    for resource, count in zip(cluster.resources, before, strict=True):
        written = sum(user.exclusive[resource.name] for user in users)
        assert count_of(cluster, resource) == count + written
    return used


def count_of(cluster: Cluster, resource: Resource) -> int:
    """Return the count in a value block, as one of our hosts reads it under the lease."""
    host = cluster.hosts[OURS]

    def is_acquired() -> bool:
        try:
            host.acquire(resource, lvb=True)
        except SanlockError as error:
            if error.number not in CONTENDED:
                raise
            return False
        return True

    wait_until(is_acquired, 10.0, f"{resource.name} is free")
    count = int(host.get_lvb(resource, COUNT_BYTES).rstrip(b"\0") or b"0")
    host.release(resource)
    return count


def test_exclusion_under_contention(cluster: Cluster, tmp_path: Path) -> None:
    """Users of three daemons want two leases in both modes: no overlap, no count is lost."""
    used = contend(cluster, tmp_path, 8.0)
    for name in ("theirs", "ours", "ours-too"):
        assert used[f"{name}-1"] + used[f"{name}-2"] > 0


@pytest.mark.long
@pytest.mark.timeout(LONG_S + 300)
def test_exclusion_under_contention_for_long(cluster: Cluster, tmp_path: Path) -> None:
    """The same for half an hour (MIXED_MINUTES)."""
    used = contend(cluster, tmp_path, LONG_S)
    print(used)
    assert min(used.values()) > LONG_S / 60


@pytest.mark.long
@pytest.mark.timeout(240)
def test_each_takes_over_from_the_dead_other(tmp_path: Path) -> None:
    """When one host dies with a lease the other gets it: after the safe time, not before."""
    require_ours()
    path = tmp_path / "leases"
    path.write_bytes(bytes(8 * MIB))
    safe_s = host_dead_s(1)
    spaces = [Lockspace(f"D{at}", str(path), 4 * at * MIB) for at in (0, 1)]
    with ExitStack() as stack:
        theirs = [stack.enter_context(SanlockHost(tmp_path, f"theirs{at}")) for at in (0, 1)]
        ours = [stack.enter_context(OurHost(tmp_path, f"ours{at}")) for at in (0, 1)]
        pairs = list(zip((theirs[0], ours[1]), (ours[0], theirs[1]), spaces, strict=True))
        resources = []
        for victim, heir, space in pairs:
            victim.init_lockspace(space)
            resources.append(format_resource(victim, space, "R", space.offset + MIB))
            victim.add_lockspace(space, 1, wait=False)
            heir.add_lockspace(space, 2, wait=False)
        for victim, heir, space in pairs:
            wait_joined(victim, space, 1)
            wait_joined(heir, space, 2)
        tokens = []
        for (victim, heir, _), resource in zip(pairs, resources, strict=True):
            victim.acquire(resource)
            tokens.append(victim.fencing_token(resource))
            assert not is_taken(heir, resource)
        died = time.monotonic()
        for victim, _, _ in pairs:
            victim.close()
        took = [0.0, 0.0]

        def inherit(at: int) -> None:
            wait_until(lambda: is_taken(pairs[at][1], resources[at]), safe_s + 30, "a take-over")
            took[at] = time.monotonic() - died

        threads = [threading.Thread(target=inherit, args=(at,)) for at in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for at, (_, heir, _) in enumerate(pairs):
            # The last renewal came at most one interval of 2.5 s, and what it took, before.
            assert safe_s - 4 < took[at] < safe_s + 15
            assert heir.fencing_token(resources[at]) > tokens[at]
