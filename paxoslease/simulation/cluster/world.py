"""A whole cluster in virtual time, from a seed: set up, run with faults, heal, and check.

First everything goes wrong that `faults.py` knows. Then faults stop: every host must be a member
again within a stated bound, users finish, and in the end every host in turn must get every lease
without waiting. While it runs, `oracles.py` looks at every grant and every write.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from paxoslease.disk.layout import Area
from paxoslease.disk.records import delta_at_format, pack_leader, paxos_at_format
from paxoslease.protocol.contention import acquire_waiting
from paxoslease.protocol.delta import Lockspace
from paxoslease.protocol.disks import Claim, Resource
from paxoslease.protocol.effects import Protocol
from paxoslease.protocol.leases import release
from paxoslease.simulation.cluster.disk import Disk
from paxoslease.simulation.cluster.driver import Driver, Flight, Task
from paxoslease.simulation.cluster.faults import Faults, Options, draw_options
from paxoslease.simulation.cluster.hosts import BOOT_US, Host
from paxoslease.simulation.cluster.oracles import Oracle, Violation, Watched
from paxoslease.simulation.cluster.workload import PATIENCE_US
from paxoslease.timing import SECOND_US, Timing, dead_us

SPACE = b"simulated"
TRACE_LINES = 400
PROGRESS_US = 30 * SECOND_US
MINUTE_US = 60 * SECOND_US


class Report(NamedTuple):
    """What one seed's run showed. Times are virtual."""

    seed: int
    options: Options
    broken: str
    detail: str
    virtual_us: int
    steps: int
    ios: int
    grants: int
    resets: int
    lives: int
    adoptions: int
    trace: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Tell whether every rule held."""
        return not self.broken

    def summary(self) -> str:
        """Return the result as text, with the trace if there is one."""
        o = self.options
        head = (
            f"seed {self.seed}: {'clean' if self.is_clean else 'BROKEN'}, {o.hosts} hosts, "
            f"{o.resources} leases, {self.virtual_us / 3_600_000_000:.2f} virtual hours, "
            f"{self.grants} grants, {self.resets} resets, {self.lives} lives, "
            f"{self.adoptions} adoptions, {self.ios} I/Os"
        )
        if self.is_clean:
            return "\n".join((*self.trace, head))
        return "\n".join((*self.trace, head, f"  {self.detail}", f"  {o}"))

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "seed": self.seed,
            "clean": self.is_clean,
            "broken": self.broken,
            "detail": self.detail,
            "virtual_hours": self.virtual_us / 3_600_000_000,
            "steps": self.steps,
            "ios": self.ios,
            "grants": self.grants,
            "resets": self.resets,
            "lives": self.lives,
            "adoptions": self.adoptions,
            "options": self.options._asdict(),
            "trace": list(self.trace),
        }


class World:
    """One run. Everything random in it comes from `rng`."""

    def __init__(self, seed: int, options: Options, rng: Random, *, trace: bool) -> None:
        self.seed = seed
        self.options = options
        self.rng = rng
        self.faults = Faults(options, rng)
        self.driver = Driver(rng, self.faults)
        self.over = False
        self.uses = 0
        self.resets = 0
        self.adoptions = 0
        self.watchdog_lead_us = rng.choice((0, min(10, options.watchdog / 3) * SECOND_US))
        self.lines: list[str] | None = [] if trace else None
        self._lvbs = 0
        self._format()
        self.oracle = Oracle(self.space.area, self._areas, options.hosts)
        self.oracle.checks_blocks = not options.originals and options.disks == 1
        self.driver.on_land = self._landing if self.lines is not None else self.oracle.landing
        self.hosts = [
            Host(self, i, i % options.hosts + 1, Timing(options.io_timeouts[i], options.watchdog))
            for i in range(options.hosts + options.twins)
        ]

    def _format(self) -> None:
        """Lay out lockspace and resources, as a formatter leaves them."""
        o = self.options
        size = o.sizes.sector_size
        disks = self.driver.disks
        for i in range(o.disks):
            disks[f"disk{i}"] = Disk(f"disk{i}", size, o.hosts)
        area = Area("disk0", 0, o.sizes)
        record = pack_leader(delta_at_format(SPACE, o.sizes, o.format_io_timeout), size)
        for host_id in range(1, o.hosts + 1):
            disks["disk0"].sectors[area.delta(host_id)] = record
        self.space = Lockspace(SPACE, area)
        self._areas: dict[str, list[Area]] = {path: [] for path in disks}
        self._resources: list[tuple[Watched, Resource]] = []
        for index in range(o.resources):
            name = b"lease%d" % index
            places = tuple(Area(path, (index + 1) * o.sizes.align_size, o.sizes) for path in disks)
            leader = pack_leader(paxos_at_format(SPACE, name, o.sizes, o.hosts), size)
            for place in places:
                disks[place.path].sectors[place.offset] = leader
                self._areas[place.path].append(place)
            self._resources.append((Watched(index, name), Resource(name, places)))

    def claims(self, host: Host) -> list[tuple[Watched, Claim]]:
        """Return all resources, as a host sees them."""
        return [
            (watched, Claim(self.space, resource, host.timing, host.host_id))
            for watched, resource in self._resources
        ]

    def next_lvb(self, size: int) -> bytes:
        """Return a value for an LVB that was never used before."""
        self._lvbs += 1
        return (b"value %d" % self._lvbs).ljust(size, b"\0")

    def is_freed(self, host: Host) -> bool:
        """Tell whether a host's delta lease is free on disk."""
        data = self.driver.disks["disk0"].sector(self.space.area.delta(host.host_id))
        return data[152:160] == bytes(8) and not host.flights

    # -- what is reported ------------------------------------------------------------------------

    def trace(self, host: Host, *words: Any) -> None:
        """Note an event, in a run that is traced."""
        if self.lines is not None:
            text = " ".join(w.decode() if isinstance(w, bytes) else str(w) for w in words)
            self.lines.append(f"{self.driver.now / SECOND_US:12.6f} {host.label}: {text}")

    def _landing(self, flight: Flight, offset: int, data: bytes) -> None:
        late = ", late" if flight.timed_out else ""
        place = "delta" if offset < self.options.sizes.align_size else f"{offset:#x}"
        assert self.lines is not None
        self.trace(flight.host, f"write to {flight.disk.path}:{place} lands{late}")
        self.oracle.landing(flight, offset, data)

    def granted(self, host: Host, watched: Watched) -> None:
        """Let late writes of others to a lease land at the worst moment: now."""
        if self.rng.random() >= self.options.worst_moment:
            return
        resource = self._resources[watched.index][1]
        for other in self.hosts:
            if other is not host:
                for flight in other.flights:
                    place = flight.effect.offset // self.options.sizes.align_size
                    if place == resource.disks[0].offset // self.options.sizes.align_size:
                        self.driver.land(flight)

    # -- phases ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run all phases. Raises Violation."""
        o = self.options
        for host in self.hosts:
            delay = int(self.rng.random() * (BOOT_US if not o.is_faultless else 1))
            self.driver.at(delay, host.begin_life)
            self._plan_faults(host)
        if o.is_faultless and not o.originals:
            self.driver.at(PROGRESS_US, self._check_progress)
        end = int(o.minutes * MINUTE_US)
        self.driver.run_until(end, self._has_seen_enough)
        self._heal()

    def _has_seen_enough(self) -> bool:
        return sum(w.grants for w, _ in self._resources) >= self.options.actions

    def _plan_faults(self, host: Host) -> None:
        o = self.options
        for rate, fault in (
            (o.crash_rate, self._crash),
            (o.pause_rate, self._pause),
            (o.hang_rate, self._hang),
            (o.kill_rate, self._kill),
            (o.leave_rate, self._wind_down),
        ):
            if rate:
                self.driver.at(self._next(rate), self._strike, host, rate, fault)

    def _next(self, rate: float) -> int:
        return self.driver.now + int(self.rng.expovariate(rate / MINUTE_US))

    def _strike(self, host: Host, rate: float, fault: Any) -> None:
        if self.faults.is_on:
            fault(host)
            self.driver.at(self._next(rate), self._strike, host, rate, fault)

    def _crash(self, host: Host) -> None:
        if host.tasks:
            self.trace(host, "crashes")
            host.reset()

    def _pause(self, host: Host) -> None:
        host.pause(self.faults.pause_us())

    def _hang(self, host: Host) -> None:
        until = self.driver.now + self.faults.pause_us()
        self.trace(host, "cannot reach its disks for", (until - self.driver.now) / SECOND_US, "s")
        host.hangs_until = max(host.hangs_until, until)

    def _kill(self, host: Host) -> None:
        if host.is_up:
            host.kill()

    def _wind_down(self, host: Host) -> None:
        host.wind_down()

    def _check_progress(self) -> None:
        """In a run without faults: nobody waits while a lease is free for long."""
        if self.over or not self.faults.is_on:
            return
        limit = PROGRESS_US + 4000 * self.options.latency_us
        for watched, _ in self._resources:
            idle = self.driver.now - max(watched.granted_at, self._all_up_at())
            if idle > limit and not watched.users and self.options.think_us < SECOND_US:
                raise Violation("progress", f"nobody got {watched.name.decode()} for {idle} us")
        self.driver.at(self.driver.now + PROGRESS_US, self._check_progress)

    def _all_up_at(self) -> int:
        io = max(*self.options.io_timeouts, self.options.format_io_timeout)
        return 4 * io * SECOND_US

    # -- the end ---------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Stop all faults; the cluster must come alive, and every lease must be had by each host.

        The bound: whoever fails is gone after `dead`, boots, waits for `dead` once for its old
        record and settles; a host that failed to join tries again after at most a quarter of that.
        """
        self.faults.is_on = False
        driver = self.driver
        for host in self.hosts:
            host.hangs_until = driver.now
            for flight in host.flights:
                self.driver.at(driver.now + SECOND_US, driver.finish, flight)
        self._await_members()
        self.over = True
        for host in self.hosts:
            host.winding_down = True
            host.interrupt()
        bound = 4 * PATIENCE_US + int(64 * self.options.hold_us)
        driver.run_until(driver.now + bound, self._is_idle)
        if not self._is_idle():
            busy = [f"{h.label} {t.name}" for h in self.hosts for t in h.tasks if _is_user(t)]
            raise Violation("liveness", f"still busy after {bound} us: {', '.join(busy)}")
        if not self.options.originals and not self.oracle.is_rolled_back:
            self._await_members()
            self._check_leases()

    def _dead_us(self) -> int:
        io = max(*self.options.io_timeouts, self.options.format_io_timeout)
        return dead_us(io, self.options.watchdog)

    def _await_members(self) -> None:
        waking = max(host.paused_until for host in self.hosts)
        bound = max(0, waking - self.driver.now) + 5 * self._dead_us() + 2 * BOOT_US
        self.driver.run_until(self.driver.now + bound, self._is_alive)
        if not self._is_alive():
            down = [host.label for host in self.hosts if not host.is_well()]
            raise Violation("liveness", f"not members again after {bound} us: {', '.join(down)}")

    def _is_alive(self) -> bool:
        well = {host.host_id for host in self.hosts if host.is_well()}
        return len(well) == self.options.hosts

    def _is_idle(self) -> bool:
        # The original may try for ever (spec/algorithms.md 15.5); that is not ours to mend.
        return not any(
            _is_user(t) for host in self.hosts if not host.is_original for t in host.tasks
        )

    def _check_leases(self) -> None:
        """Let each host in turn have each lease; only what somebody died of may be waited for."""
        bound = self._dead_us() + 2 * PATIENCE_US
        for host in self.hosts:
            if not host.is_well():
                continue
            for watched, claim in self.claims(host):
                ended: list[Any] = []

                def note(task: Task, result: Any, error: Any, ended: list[Any] = ended) -> None:
                    ended.append(error)

                task = Task(host, "check", self._take_and_give(host, claim, bound), note)
                self.driver.start(task)
                limit = self.driver.now + 2 * bound
                self.driver.run_until(limit, lambda ended=ended: bool(ended))  # type: ignore[misc]
                if not ended or ended[0] is not None:
                    error = ended[0] if ended else "it does not end"
                    name = watched.name.decode()
                    raise Violation("blocked", f"{host.label} cannot get {name}: {error}")

    def _take_and_give(self, host: Host, claim: Claim, bound: int) -> Protocol[None]:
        lease = yield from acquire_waiting(claim, host.local(self.driver.now) + bound)
        yield from release(lease)


def _is_user(task: Task) -> bool:
    return task.alive and task.name not in ("life", "guard", "recovery", "check")


def simulate(
    seed: int, *, hosts: int | None = None, hours: float | None = None, trace: bool = False
) -> Report:
    """Run one seed. A seed that breaks a rule is run once more for its trace."""
    report = run_seed(seed, hosts=hosts, hours=hours, trace=trace)
    if not report.is_clean and not trace:
        again = run_seed(seed, hosts=hosts, hours=hours, trace=True)
        report = report._replace(trace=again.trace[-TRACE_LINES:])
    return report


def run_seed(
    seed: int, *, hosts: int | None = None, hours: float | None = None, trace: bool = False
) -> Report:
    """Run one seed, with every event in `trace` if asked."""
    rng = Random(seed)
    options = draw_options(rng, hosts, hours)
    # From a generator of its own, so that seeds that once showed a mistake show it still.
    options = options._replace(adopt=Random(f"adopt {seed}").choice((0.0, 0.5, 1.0)))
    world = World(seed, options, rng, trace=trace)
    broken = detail = ""
    try:
        world.run()
    except Violation as violation:
        broken, detail = violation.rule, str(violation)
    return Report(
        seed,
        options,
        broken,
        detail,
        world.driver.now,
        world.driver.steps,
        world.driver.ios,
        sum(w.grants for w, _ in world._resources),
        world.resets,
        sum(host.lives for host in world.hosts),
        world.adoptions,
        tuple(world.lines or ()),
    )
