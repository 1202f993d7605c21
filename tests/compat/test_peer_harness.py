"""The harness itself: real sanlock daemons obey it, and the witness sees what it must see."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.compat import witness as witness_module
from tests.compat.peer import (
    HELD,
    Lockspace,
    PeerBroken,
    Resource,
    SanlockClient,
    SanlockError,
    SanlockHost,
    host_dead_s,
    loop_device,
    wait_until,
)
from tests.compat.witness import (
    EXCLUSIVE,
    SHARED,
    ExclusionBroken,
    Ledger,
    Witness,
    WitnessClient,
)

MIB = 1 << 20
AGAIN = -11
CONTENDED = {AGAIN, HELD, -244, -245, -246, -247}
User = tuple[SanlockClient, WitnessClient, bool]  # the last: wants the lease shared


class Cluster:
    """Two real hosts in one lockspace on one file, and a resource that nobody holds."""

    def __init__(self, hosts: list[SanlockHost], space: Lockspace, resource: Resource) -> None:
        self.hosts = hosts
        self.space = space
        self.resource = resource


def wait_joined(host: SanlockHost, space: Lockspace, host_id: int) -> None:
    """Wait until a join that was begun has succeeded."""
    what = f"{host.name} joined {space.name}"
    wait_until(lambda: host.has_joined(space, host_id) is True, 15.0, what)


def format_resource(host: SanlockHost, space: Lockspace, name: str, offset: int) -> Resource:
    """Format a resource beside a lockspace, with its sizes."""
    sizes = (space.sector_size, space.align_size)
    resource = Resource(space.name, name, space.path, offset, *sizes)
    host.init_resource(resource)
    return resource


def form(hosts: list[SanlockHost], path: str) -> Cluster:
    """Format a lockspace and a resource at `path` and join the hosts with ids 1, 2, ..."""
    space = Lockspace("LS", path)
    hosts[0].init_lockspace(space)
    resource = format_resource(hosts[0], space, "R1", MIB)
    for host_id, host in enumerate(hosts, 1):
        host.add_lockspace(space, host_id, wait=False)
    for host_id, host in enumerate(hosts, 1):
        wait_joined(host, space, host_id)
    return Cluster(hosts, space, resource)


def is_taken(host: SanlockHost, resource: Resource) -> bool:
    """Try to acquire; return False when somebody else has it."""
    try:
        host.acquire(resource)
    except SanlockError as error:
        if error.number not in CONTENDED:
            raise
        return False
    return True


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return two hosts that have joined; the tests share them and leave the resource free."""
    directory = tmp_path_factory.mktemp("peer")
    leases = directory / "leases"
    with leases.open("wb") as file:
        file.truncate(8 * MIB)
    with SanlockHost(directory, "hostA") as one, SanlockHost(directory, "hostB") as two:
        yield form([one, two], str(leases))


def contend(
    client: SanlockClient, line: WitnessClient, resource: Resource, shared: bool, stop_at: float
) -> int:
    """Take the lease again and again under the witness until `stop_at`; return how often."""
    jitter = random.Random(line.user)
    uses = 0
    while time.monotonic() < stop_at:
        try:
            client.acquire(resource, shared=shared)
        except SanlockError as error:
            if error.number not in CONTENDED:
                raise
            threading.Event().wait(jitter.uniform(0.0, 0.01))
            continue
        mode = SHARED if shared else EXCLUSIVE
        with line.use(resource.name, mode, client.fencing_token(resource)):
            threading.Event().wait(0.002)
        client.release(resource)
        uses += 1
        threading.Event().wait(jitter.uniform(0.0, 0.02))
    return uses


@contextmanager
def contenders(cluster: Cluster, witness: Witness) -> Iterator[list[User]]:
    """Yield a user of each host who wants its lease exclusively; their leases end with them."""
    with ExitStack() as stack:
        clients = [stack.enter_context(host.client()) for host in cluster.hosts]
        lines = [stack.enter_context(witness.client(host.name)) for host in cluster.hosts]
        yield [(client, line, False) for client, line in zip(clients, lines, strict=True)]


def contend_all(
    users: list[User],
    resources: list[Resource],
    duration_s: float,
) -> list[int]:
    """Run `contend` for all users at once; return the uses of each, or raise what one raised."""
    stop_at = time.monotonic() + duration_s
    uses = [0] * len(users)
    errors: list[BaseException] = []

    def one(index: int, client: SanlockClient, line: WitnessClient, shared: bool) -> None:
        try:
            uses[index] = contend(client, line, resources[index], shared, stop_at)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(i, *user)) for i, user in enumerate(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return uses


@pytest.mark.peer
def test_two_real_daemons_exclude_each_other_under_the_witness(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Two real hosts that contend for an exclusive lease are never inside together."""
    with Witness(tmp_path, tokens_grow=True) as witness, contenders(cluster, witness) as users:
        uses = contend_all(users, [cluster.resource] * 2, duration_s=2.0)
        verdict = witness.check()
    assert verdict.entries == sum(uses)
    assert all(uses), f"somebody was never inside: {uses}"
    assert verdict.inside == 0


@pytest.mark.peer
def test_the_witness_rejects_a_pair_that_locks_two_different_leases(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A broken pair, each with a real lease of the same name at another place, is found out."""
    places = [cluster.resource._replace(name="R2", offset=at * MIB) for at in (2, 3)]
    for place in places:
        cluster.hosts[0].init_resource(place)

    def run_broken_pair() -> None:
        with Witness(tmp_path) as witness, contenders(cluster, witness) as users:
            contend_all(users, places, duration_s=5.0)

    with pytest.raises(ExclusionBroken, match=r"R2: host. \(exclusive\) is inside together with"):
        run_broken_pair()


@pytest.mark.peer
def test_shared_leases_convert_and_carry_a_value(cluster: Cluster) -> None:
    """Shared holders exclude an exclusive one, a conversion works both ways, an LVB is kept."""
    one, two = cluster.hosts
    one.acquire(cluster.resource, shared=True)
    two.acquire(cluster.resource, shared=True)
    assert sorted(owner.host_id for owner in one.read_owners(cluster.resource)) == [1, 2]
    with pytest.raises(SanlockError) as refusal:
        one.convert(cluster.resource, shared=False)
    assert refusal.value.number == AGAIN
    two.release(cluster.resource)
    one.convert(cluster.resource, shared=False)
    with pytest.raises(SanlockError):
        two.acquire(cluster.resource)
    one.release(cluster.resource)
    one.acquire(cluster.resource, lvb=True)
    one.set_lvb(cluster.resource, b"from one")
    one.release(cluster.resource)
    two.acquire(cluster.resource, lvb=True)
    assert two.get_lvb(cluster.resource, 16) == b"from one" + bytes(8)
    two.release(cluster.resource)


@pytest.mark.peer
def test_hosts_see_each_other_and_a_dead_client_frees_its_lease(cluster: Cluster) -> None:
    """Each host table shows the other host, and a killed client's lease is free at once."""
    one, two = cluster.hosts

    def sees_both(host: SanlockHost) -> bool:
        try:
            return set(host.get_hosts(cluster.space)) == {1, 2}
        except SanlockError as error:
            if error.number != AGAIN:
                raise
            return False

    wait_until(lambda: sees_both(one) and sees_both(two), 10.0, "the host tables are filled")
    assert one.get_hosts(cluster.space)[1].state == "LIVE"
    user = one.client()
    user.acquire(cluster.resource)
    assert f"p {user.pid}" in one.status()
    user.kill()
    wait_until(
        lambda: is_taken(two, cluster.resource), 10.0, "the lease of the killed client is free"
    )
    two.release(cluster.resource)
    assert "hostA" in one.log_dump()


@pytest.mark.peer
def test_a_persistent_lease_outlives_its_client(cluster: Cluster) -> None:
    """A persistent lease becomes an orphan when its client dies, and can be adopted."""
    one, two = cluster.hosts
    user = one.client()
    user.acquire(cluster.resource, persistent=True)
    user.kill()
    wait_until(lambda: "ORPHAN" in one.status(), 5.0, "the lease is an orphan")
    with pytest.raises(SanlockError):
        two.acquire(cluster.resource)
    one.acquire(cluster.resource, persistent=True, orphan=True)
    one.release(cluster.resource)
    two.acquire(cluster.resource)
    two.release(cluster.resource)


@pytest.mark.peer
def test_a_loop_device_has_the_sectors_asked_for(tmp_path: Path) -> None:
    """A real host joins and locks on loop devices of both sector sizes, detached afterwards."""
    small, large = tmp_path / "disk512", tmp_path / "disk4096"
    with (
        loop_device(small, 4 * MIB, 512) as device_512,
        loop_device(large, 32 * MIB, 4096) as device_4096,
        SanlockHost(tmp_path, "hostL") as host,
    ):
        for device, sector_size in ((device_512, 512), (device_4096, 4096)):
            queue = Path("/sys/block") / Path(device).name / "queue/logical_block_size"
            assert int(queue.read_text()) == sector_size
        spaces = [
            Lockspace("L512", device_512, 0, 512, MIB),
            Lockspace("L4096", device_4096, 0, 4096, 8 * MIB),
        ]
        for space in spaces:
            host.init_lockspace(space)
            host.add_lockspace(space, 1, wait=False)
        for space in spaces:
            wait_joined(host, space, 1)
            resource = format_resource(host, space, "R1", space.align_size)
            host.acquire(resource)
            assert host.fencing_token(resource) == 1
            host.release(resource)
        host.shutdown()
    # Detaching waits for whoever else has just opened the device to look at it.
    wait_until(
        lambda: not (is_behind(device_512, small) or is_behind(device_4096, large)),
        5.0,
        "both detached",
    )


def test_a_loop_device_goes_past_the_page_cache_when_asked(tmp_path: Path) -> None:
    """A loop device does direct I/O if and only if that was asked for."""
    for direct_io in (False, True):
        with loop_device(tmp_path / "disk", MIB, 4096, direct_io=direct_io) as device:
            flag = Path("/sys/block") / Path(device).name / "loop/dio"
            assert flag.read_text() == f"{int(direct_io)}\n"


def is_behind(device: str, backing: Path) -> bool:
    """Return whether a loop device lies over the file `backing`."""
    try:
        found = (Path("/sys/block") / Path(device).name / "loop/backing_file").read_text()
    except OSError:
        return False
    return found.startswith(str(backing))


@pytest.mark.peer
def test_no_process_is_left_when_a_test_fails(tmp_path: Path) -> None:
    """Daemon, helper and clients are gone after an error, even if they are stopped."""

    def fail() -> None:
        with SanlockHost(tmp_path, "hostX") as host:
            pids.extend([host.daemon.pid, host.pid, host.client().pid, *host.helper_pids()])
            for pid in (host.daemon.pid, *host.helper_pids()):
                os.kill(pid, signal.SIGSTOP)
            raise RuntimeError("a failing test")

    pids: list[int] = []
    with pytest.raises(RuntimeError, match="a failing test"):
        fail()
    assert len(pids) == 4
    assert [pid for pid in pids if is_running(pid)] == []


def is_running(pid: int) -> bool:
    """Return whether a process of this pid exists and is not only waiting to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.peer
def test_a_daemon_that_cannot_start_is_reported(tmp_path: Path) -> None:
    """A second daemon in the same run directory ends at once, and the harness says so."""
    with SanlockHost(tmp_path, "hostY"), pytest.raises(PeerBroken, match="the daemon ended with 1"):
        SanlockHost(tmp_path, "hostY")


@pytest.mark.peer
@pytest.mark.long
def test_a_killed_host_is_taken_over_only_after_its_dead_time(tmp_path: Path) -> None:
    """A lease of a killed daemon is refused until 8 * io_timeout + 60 s, and granted after."""
    leases = tmp_path / "leases"
    with leases.open("wb") as file:
        file.truncate(4 * MIB)
    with SanlockHost(tmp_path, "hostA") as one, SanlockHost(tmp_path, "hostB") as two:
        cluster = form([one, two], str(leases))
        one.acquire(cluster.resource)
        wait_until(lambda: "hostA" in two.log(), 10.0, "hostB saw hostA")
        begin = time.monotonic()
        one.kill_daemon()
        with pytest.raises(SanlockError):
            two.acquire(cluster.resource, nowait=True)
        # Refused as long as the host table calls it alive, then waiting inside of the acquire.
        wait_until(lambda: is_taken(two, cluster.resource), 90.0, "the lease is taken over")
        took_s = time.monotonic() - begin
        # The last renewal came up to 2 * io_timeout + 1 s before the kill.
        assert host_dead_s(1) - 3.5 < took_s < host_dead_s(1) + 10.0


# -- the witness alone -------------------------------------------------------------------------


def test_ledger_accepts_what_excludes_nobody() -> None:
    """Shared users together, users one after the other, two leases at once: nothing is wrong."""
    ledger = Ledger(tokens_grow=True)
    assert ledger.enter(1, "a", "L", SHARED, 1) == []
    assert ledger.enter(2, "b", "L", SHARED, 1) == []
    assert ledger.enter(3, "c", "M", EXCLUSIVE, 1) == []
    assert ledger.leave(1, "L") == []
    assert ledger.change(2, "L", EXCLUSIVE, 2) == []
    assert ledger.change(2, "L", SHARED, 2) == []
    ledger.lost(2)
    assert ledger.enter(1, "a", "L", EXCLUSIVE, 3) == []
    assert ledger.verdict().shared_at_once == 2
    assert ledger.verdict().violations == ()


@pytest.mark.parametrize(
    ("reports", "fault"),
    [
        ([("enter", EXCLUSIVE, 1), ("enter", EXCLUSIVE, 2)], "together"),
        ([("enter", EXCLUSIVE, 1), ("enter", SHARED, 2)], "together"),
        ([("enter", SHARED, 1), ("enter", EXCLUSIVE, 2)], "together"),
        ([("enter", SHARED, 1), ("enter", SHARED, 2), ("change", EXCLUSIVE, 3)], "together"),
        ([("enter", EXCLUSIVE, 5), ("lost", "", 0), ("enter", EXCLUSIVE, 5)], "below 6"),
        ([("enter", EXCLUSIVE, 5), ("lost", "", 0), ("enter", SHARED, 4)], "below 5"),
        ([("enter", SHARED, 7), ("lost", "", 0), ("enter", EXCLUSIVE, 7)], "below 8"),
        ([("leave", "", 0)], "left without"),
        ([("change", SHARED, 0)], "without being inside"),
    ],
)
def test_ledger_names_every_fault(reports: list[tuple[str, str, int]], fault: str) -> None:
    """Each way to break exclusion or the order of tokens is found, and only the last report is."""
    ledger = Ledger(tokens_grow=True)
    who, wrong = 0, [""]
    for what, mode, token in reports:
        match what:
            case "enter":
                who += 1
                wrong = ledger.enter(who, f"user {who}", "L", mode, token)
            case "change":
                wrong = ledger.change(who, "L", mode, token)
            case "leave":
                wrong = ledger.leave(who, "L")
            case _:
                ledger.lost(who)
                wrong = []
        if (what, mode, token) != reports[-1]:
            assert wrong == []
    assert len(wrong) == 1
    assert fault in wrong[0]


def test_a_killed_user_is_outside_before_its_successor_comes(tmp_path: Path) -> None:
    """A process that is killed inside never counts against the one that enters after its death."""
    with Witness(tmp_path, tokens_grow=True) as witness, witness.client("next") as successor:
        for token in range(0, 20, 2):
            command = [sys.executable, witness_module.__file__, "hold"]
            command += [str(witness.socket_path), "L", EXCLUSIVE, str(token)]
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            with holder:
                assert holder.stdout is not None
                assert holder.stdout.readline() == b"inside\n"
                assert witness.check().inside == 1
                holder.kill()
                holder.wait()
            with successor.use("L", EXCLUSIVE, token + 1):
                assert witness.check().inside == 1


def test_a_swallowed_violation_still_fails_the_test(tmp_path: Path) -> None:
    """The context manager raises at its end although the user that broke exclusion kept quiet."""

    def careless() -> None:
        with Witness(tmp_path) as witness, witness.client("a") as one, witness.client("b") as two:
            one.enter("L", EXCLUSIVE, 1)
            with pytest.raises(ExclusionBroken):
                two.enter("L", SHARED, 1)

    with pytest.raises(ExclusionBroken, match=r"b \(shared\) is inside together with a"):
        careless()
