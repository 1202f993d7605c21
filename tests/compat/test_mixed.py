"""One of our hosts and one real sanlock host in one lockspace."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import paxoslease
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
OURS, THEIRS = 1, 2
BUSY = (paxoslease.LeaseHeld, paxoslease.LeaseShared, paxoslease.LostRace, paxoslease.WaitTimeout)


class Mixed:
    """A lockspace with one host of each kind, and a resource that nobody holds."""

    def __init__(
        self,
        ours: paxoslease.Lockspace,
        theirs: SanlockHost,
        space: Lockspace,
        resource: Resource,
    ) -> None:
        self.ours = ours
        self.theirs = theirs
        self.space = space
        self.resource = resource

    def lease(self, *, shared: bool = False, wait: float = 0) -> paxoslease.Lease:
        """Acquire the resource with our host."""
        resource = self.resource
        return self.ours.lease(
            resource.name, resource.path, offset=resource.offset, shared=shared, wait=wait
        )


@pytest.fixture(scope="module", params=["file-512", "loop-4096"])
def mixed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mixed]:
    directory = tmp_path_factory.mktemp("mixed")
    with ExitStack() as stack:
        if request.param == "loop-4096":
            path = stack.enter_context(loop_device(directory / "backing", 40 * MIB, 4096))
            sizes = (4096, 8 * MIB)
        else:
            path = str(directory / "leases")
            sizes = (512, MIB)
        theirs = stack.enter_context(SanlockHost(directory, "theirs"))
        space = Lockspace("LS", path, 0, *sizes)
        # Ours formats on one kind of storage, theirs on the other: both can use either.
        if request.param == "loop-4096":
            theirs.init_lockspace(space)
            resource = format_resource(theirs, space, "R1", sizes[1])
        else:
            paxoslease.format_lockspace(path, "LS", io_timeout=1)
            paxoslease.format_resource(path, "LS", "R1", offset=MIB)
            resource = Resource("LS", "R1", path, sizes[1], *sizes)
        theirs.add_lockspace(space, THEIRS, wait=False)
        ours = stack.enter_context(paxoslease.join(path, "LS", OURS, io_timeout=1))
        wait_joined(theirs, space, THEIRS)
        yield Mixed(ours, theirs, space, resource)


def test_each_sees_the_other(mixed: Mixed) -> None:
    """Each host shows the other as alive in its host table, with the same generation."""

    def ours_sees_theirs() -> bool:
        rows = {row.host_id: row for row in mixed.ours.hosts()}
        return THEIRS in rows and rows[THEIRS].state is paxoslease.HostState.LIVE

    def theirs_sees_ours() -> bool:
        try:
            hosts = mixed.theirs.get_hosts(mixed.space)
        except SanlockError as error:
            if error.number != -11:  # it has not renewed yet
                raise
            return False
        return OURS in hosts and hosts[OURS].state == "LIVE"

    wait_until(ours_sees_theirs, 10, "our host sees theirs")
    wait_until(theirs_sees_ours, 10, "their host sees ours")
    row = next(row for row in mixed.ours.hosts() if row.host_id == THEIRS)
    assert row.name == b"theirs"
    assert mixed.theirs.get_hosts(mixed.space)[OURS].generation == mixed.ours.generation


def test_held_by_theirs_is_held_for_us(mixed: Mixed) -> None:
    """What their host holds we cannot have, and the error says who has it."""
    with mixed.theirs.client() as client:
        client.acquire(mixed.resource)
        with pytest.raises(paxoslease.LeaseHeld) as held:
            mixed.lease()
        assert held.value.host_id == THEIRS
        assert held.value.host_name == b"theirs"
        assert held.value.alive
        client.release(mixed.resource)
    mixed.lease().release()


def test_held_by_us_is_held_for_them(mixed: Mixed) -> None:
    """What we hold their host cannot have; after our release it can."""
    with mixed.lease() as lease:
        assert not is_taken(mixed.theirs, mixed.resource)
        owners = mixed.theirs.read_owners(mixed.resource)
        assert [(o.host_id, o.generation) for o in owners] == [(OURS, mixed.ours.generation)]
        token = lease.fencing_token
    assert is_taken(mixed.theirs, mixed.resource)
    assert mixed.theirs.fencing_token(mixed.resource) > token
    mixed.theirs.release(mixed.resource)


def test_shared_by_both(mixed: Mixed) -> None:
    """Both share a lease; neither gets it exclusively until the other has let go."""
    with mixed.theirs.client() as client:
        lease = mixed.lease(shared=True)
        client.acquire(mixed.resource, shared=True)
        with pytest.raises(paxoslease.LeaseShared) as shared:
            lease.convert(shared=False)
        assert shared.value.host_ids == (THEIRS,)
        with pytest.raises(SanlockError) as refused:
            client.convert(mixed.resource, shared=False)
        assert refused.value.number == -11
        client.release(mixed.resource)
        lease.convert(shared=False)
        assert not is_taken(mixed.theirs, mixed.resource)
        lease.convert(shared=True)
        client.acquire(mixed.resource, shared=True)
        lease.release()
        client.convert(mixed.resource, shared=False)
        with pytest.raises(paxoslease.LeaseHeld):
            mixed.lease()
        client.release(mixed.resource)


def test_value_blocks_travel(mixed: Mixed) -> None:
    """What one writes into the lock value block under the lease the other reads under it."""
    with mixed.lease() as lease:
        lease.set_lvb(b"from ours")
    with mixed.theirs.client() as client:
        client.acquire(mixed.resource, lvb=True)
        assert client.get_lvb(mixed.resource, 9) == b"from ours"
        client.set_lvb(mixed.resource, b"from theirs")
        client.release(mixed.resource)
    with mixed.lease() as lease:
        assert lease.read_lvb().rstrip(b"\0") == b"from theirs"


def _ours_contends(mixed: Mixed, line: WitnessClient, stop_at: float) -> int:
    """Use the lease again and again until `stop_at`, sometimes shared; return how often."""
    draw = random.Random("ours")
    uses = 0
    while time.monotonic() < stop_at:
        shared = draw.random() < 0.3
        try:
            lease = mixed.lease(shared=shared, wait=0.2)
        except BUSY:
            continue
        with line.use("R1", SHARED if shared else EXCLUSIVE, lease.fencing_token):
            threading.Event().wait(0.002)
        lease.release()
        uses += 1
        threading.Event().wait(draw.uniform(0, 0.02))
    return uses


def _theirs_contends(
    client: SanlockClient, resource: Resource, line: WitnessClient, stop_at: float
) -> int:
    draw = random.Random("theirs")
    uses = 0
    while time.monotonic() < stop_at:
        shared = draw.random() < 0.3
        try:
            client.acquire(resource, shared=shared)
        except SanlockError as error:
            if error.number not in CONTENDED:
                raise
            threading.Event().wait(draw.uniform(0, 0.01))
            continue
        token = client.fencing_token(resource)
        with line.use("R1", SHARED if shared else EXCLUSIVE, token):
            threading.Event().wait(0.002)
        client.release(resource)
        uses += 1
        threading.Event().wait(draw.uniform(0, 0.02))
    return uses


def _contend(mixed: Mixed, directory: Path, duration_s: float) -> tuple[int, int]:
    stop_at = time.monotonic() + duration_s
    result: list[int] = []
    failures: list[BaseException] = []
    with (
        Witness(directory) as witness,
        witness.client("ours") as our_line,
        witness.client("theirs") as their_line,
        mixed.theirs.client() as client,
    ):

        def run() -> None:
            try:
                result.append(_ours_contends(mixed, our_line, stop_at))
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        theirs = _theirs_contends(client, mixed.resource, their_line, stop_at)
        thread.join()
        assert failures == []
        verdict = witness.check()
        assert verdict.entries == result[0] + theirs
    return result[0], theirs


def test_exclusion_under_contention(mixed: Mixed, tmp_path: Path) -> None:
    """Both want the lease all the time, exclusively and shared; a witness sees no overlap."""
    ours, theirs = _contend(mixed, tmp_path, 5.0)
    assert ours > 10
    assert theirs > 0  # after a lost race it pauses for up to a second


@pytest.mark.long
@pytest.mark.timeout(900)
def test_exclusion_under_contention_for_ten_minutes(mixed: Mixed, tmp_path: Path) -> None:
    """The same for longer."""
    ours, theirs = _contend(mixed, tmp_path, 600.0)
    assert ours > 500
    assert theirs > 500


class Doomed:
    """Two lockspaces on one disk, and in each a lease whose owner is going to die."""

    def __init__(self, path: str, sizes: tuple[int, int], theirs: SanlockHost) -> None:
        step = sizes[1]
        self.spaces = [Lockspace(f"D{i}", path, (4 * i) * step, *sizes) for i in (0, 1)]
        for space in self.spaces:
            theirs.init_lockspace(space)
        self.resources = [
            format_resource(theirs, space, "R", space.offset + step) for space in self.spaces
        ]


@pytest.fixture(params=["file-512", pytest.param("loop-4096", marks=pytest.mark.long)])
def doomed_storage(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, int, int]]:
    if request.param == "loop-4096":
        with loop_device(tmp_path / "backing", 80 * MIB, 4096) as path:
            yield path, 4096, 8 * MIB
    else:
        backing = tmp_path / "leases"
        backing.write_bytes(bytes(16 * MIB))
        yield str(backing), 512, MIB


@pytest.mark.timeout(240)
def test_each_takes_over_from_the_dead_other(
    doomed_storage: tuple[str, int, int], tmp_path: Path
) -> None:
    """When one host dies with a lease, the other gets it: after the safe time, not before."""
    path, *sizes = doomed_storage
    safe_s = host_dead_s(1)
    with SanlockHost(tmp_path, "doomed") as victim, SanlockHost(tmp_path, "heir") as heir:
        doomed = Doomed(path, (sizes[0], sizes[1]), victim)
        (first, second), (theirs, ours) = doomed.spaces, doomed.resources
        victim.add_lockspace(first, THEIRS, wait=False)
        heir.add_lockspace(second, THEIRS, wait=False)
        where = [path, second.name, str(second.offset), str(OURS), "1", ours.name, str(ours.offset)]
        holder = subprocess.Popen(
            [sys.executable, "-m", "tests.compat.our_host", *where], stdout=subprocess.PIPE
        )
        survivor = paxoslease.join(path, first.name, OURS, offset=first.offset, io_timeout=1)
        wait_joined(victim, first, THEIRS)
        wait_joined(heir, second, THEIRS)
        assert holder.stdout is not None
        victim.acquire(theirs)
        held = holder.stdout.readline().split()
        assert held[0] == b"held"
        victim_token = victim.fencing_token(theirs)

        died = time.monotonic()
        victim.kill_daemon()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()

        took: dict[str, float] = {}

        def heir_takes() -> None:
            wait_until(lambda: is_taken(heir, ours), safe_s + 30, "sanlock takes over from us")
            took["theirs"] = time.monotonic() - died

        thread = threading.Thread(target=heir_takes)
        thread.start()
        with survivor.lease(theirs.name, path, offset=theirs.offset, wait=safe_s + 30) as lease:
            took["ours"] = time.monotonic() - died
            assert lease.fencing_token > victim_token
        thread.join()
        survivor.leave()
        # The last renewal came at most one interval of 2 s, and what it took, before the death.
        assert safe_s - 4 < took["ours"] < safe_s + 4
        assert safe_s - 4 < took["theirs"] < safe_s + 15
        assert heir.fencing_token(ours) > int(held[1])
