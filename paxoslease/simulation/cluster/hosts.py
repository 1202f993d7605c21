"""A simulated host: its clock, its lives in the lockspace, its users, its watchdog."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from paxoslease.errors import LockspaceFailed, PaxosleaseError
from paxoslease.protocol import recovery
from paxoslease.protocol.adoption import Legacy, resume
from paxoslease.protocol.delta import Held
from paxoslease.protocol.effects import PetWatchdog, Signal, Write
from paxoslease.protocol.hosts import HostTable
from paxoslease.protocol.leases import Lease
from paxoslease.protocol.membership import Failed, Joined, Member, Renewed, guard, live
from paxoslease.simulation.cluster.driver import Flight, Task
from paxoslease.simulation.cluster.faults import DRIFT_PPM, WATCHDOG_MARGIN_US
from paxoslease.simulation.cluster.oracles import Use, Watched
from paxoslease.simulation.cluster.workload import Cut, carry_on, work
from paxoslease.timing import SECOND_US, Timing

if TYPE_CHECKING:
    from paxoslease.simulation.cluster.world import World

MILLION = 1_000_000
BOOT_US = 20 * SECOND_US
EXIT_POLL_US = 100_000


class Host:
    """One machine. `index` tells machines apart, `host_id` is what it joins as.

    A *life* is one membership, from its join to its end. What a life left in flight belongs to the
    machine and ends with its reset.
    """

    def __init__(self, world: World, index: int, host_id: int, timing: Timing) -> None:
        self.world = world
        self.index = index
        self.host_id = host_id
        self.timing = timing
        self.label = f"host {host_id}" + ("" if index + 1 == host_id else " (twin)")
        self.is_original = index < world.options.originals
        self.tasks: list[Task] = []
        self.flights: list[Flight] = []
        self.uses: list[Use] = []
        self.paused_until = 0
        self.hangs_until = 0
        self.lives = 0
        self.name = b""
        self.is_up = False
        self.winding_down = False
        self.resets = 0
        self._origin = world.rng.randrange(1, 10**12)
        self._ppm = world.rng.randrange(-DRIFT_PPM, DRIFT_PPM + 1)
        self._busy: set[bytes] = set()
        self._watchdog_at = 0
        self._pets = 0
        self._recovery: recovery.Recovery | None = None
        self._life: Task | None = None
        self._guard: Task | None = None
        self._cleared: Member | None = None
        self._fate = Random(f"fate {world.seed} {index}")
        self._noted: Held | None = None  # of the membership, by the daemon for its successor
        self._cuts: dict[bytes, Cut] = {}  # what is under way, noted before it begins
        self.member = self._new_member()

    # -- clock -----------------------------------------------------------------------------------

    def local(self, now: int) -> int:
        """Return what the host's clock shows at a moment of true time."""
        return self._origin + now + now * self._ppm // MILLION

    def true_at(self, local: int) -> int:
        """Return the first moment of true time at which the host's clock shows `local` or more."""
        elapsed = local - self._origin
        now = elapsed * MILLION // (MILLION + self._ppm) - 1
        while self.local(now) < local:
            now += 1
        return now

    # -- lives -----------------------------------------------------------------------------------

    def _new_member(self) -> Member:
        member = Member(self.world.space, self.host_id, self.name, self.timing)
        member.table = HostTable(self.world.options.hosts, self.host_id)
        return member

    def is_well(self) -> bool:
        """Tell whether the host is a member, and awake to know it."""
        now = self.world.driver.now
        return (
            self.is_up
            and self.paused_until <= now
            and self.member.failure is None
            and self.local(now) < self.member.expires_us()
        )

    def begin_life(self, *, earlier_life_over: bool = False) -> None:
        """Join. The name is new, unless the earlier life is known to be over (M1)."""
        if self._life is not None:
            return
        self.lives += 1
        if not (earlier_life_over and self.name):
            self.name = b"m%d.%d" % (self.index, self.lives)
            earlier_life_over = False
        self.member = self._new_member()
        self.winding_down = False
        self._busy.clear()
        self._cuts.clear()
        self._noted = None
        self._recovery = None
        protocol = live(self.member, earlier_life_over=earlier_life_over)
        self._life = Task(self, "life", protocol, self._life_ended)
        self.world.trace(self, "joins", self.name, earlier_life_over)
        self.world.driver.start(self._life)

    def _joined(self) -> None:
        world = self.world
        self.is_up = True
        world.trace(self, "joined", self.member.standing(self.local(world.driver.now)))
        self._start_guard()
        cuts, self._cuts = self._cuts, {}
        for watched, claim in () if world.over else world.claims(self):
            use = next((u for u in self.uses if u.resource is watched), None)
            if use is None and watched.name not in cuts:
                self.start_work(watched, claim)
            else:
                self._carry_on(watched, claim, cuts.get(watched.name), use)

    def _start_guard(self) -> None:
        if self._guard is not None and self._guard.alive:
            self.world.driver.drop(self._guard)
            self.tasks.remove(self._guard)
        self._guard = Task(self, "guard", guard(self.member), _no_end)
        self.world.driver.start(self._guard)

    def start_work(self, watched: Watched, claim: Any) -> None:
        """Let a user of one resource begin."""
        task = Task(self, watched.name.decode(), work(self, watched, claim), self._work_ended)
        self.world.driver.start(task)

    def _carry_on(self, watched: Watched, claim: Any, cut: Cut | None, use: Use | None) -> None:
        """Go on with what the predecessor held or did; what it did is noted still."""
        protocol = carry_on(self, watched, claim, cut, use)
        task = Task(self, watched.name.decode(), protocol, self._work_ended)
        if use is not None:
            use.task = task
        if cut is not None:
            self._cuts[watched.name] = cut
        self.world.driver.start(task)

    def _work_ended(self, task: Task, result: Any, error: PaxosleaseError | None) -> None:
        name = task.name.encode()
        for use in [u for u in self.uses if u.task is task]:
            self.stop_use(use)
        self._busy.discard(name)
        self._tell_use()
        if error is not None and not isinstance(error, LockspaceFailed):
            self.world.trace(self, "worker ended", error)
        if self.winding_down and not self.world.over and not self._works():
            self._leave()

    def _works(self) -> bool:
        return any(t.name not in ("life", "guard", "recovery") for t in self.tasks if t.alive)

    def wind_down(self) -> None:
        """Begin an orderly leave: users finish what they do."""
        if self.is_up and not self.winding_down and self.member.failure is None:
            self.world.trace(self, "winds down")
            self.winding_down = True
            self.interrupt()

    def interrupt(self) -> None:
        """Wake users that sleep or wait."""
        for task in list(self.tasks):
            if task.sleeping and task.name not in ("life", "guard", "recovery"):
                self.world.driver.cancel(task)

    def _leave(self) -> None:
        if self.member.failure is not None or self._life is None:
            return
        self.member.leave()
        self.world.driver.cancel(self._life)
        if self._guard is not None and self._guard.alive:
            self.world.driver.cancel(self._guard)

    def _life_ended(self, task: Task, result: Any, error: PaxosleaseError | None) -> None:
        if task is not self._life:
            return
        self._life = None
        member = task.member
        rng = self.world.rng
        if member.held is None and self._noted is not None:
            self.world.trace(self, "was not adopted", error)
            if member.fail("not adopted", error):
                self._failed(Failed("not adopted", error))
        elif member.held is None:
            self.world.trace(self, "did not join", error)
            self._later(int(rng.random() * self.timing.dead_us / 4), False)
        elif member.has_left:
            self.is_up = False
            self.world.trace(self, "left", member.failure)
            freed = self.world.is_freed(self)
            self._later(int(rng.random() * BOOT_US), freed and rng.random() < 0.5)

    def _later(self, delay_us: int, same_name: bool) -> None:
        driver = self.world.driver
        resets = self.resets

        def begin() -> None:
            if self.resets == resets:
                self.begin_life(earlier_life_over=same_name)

        driver.at(driver.now + delay_us, begin)

    # -- effects ---------------------------------------------------------------------------------

    def pet(self, task: Task, effect: PetWatchdog) -> None:
        """Arm the watchdog, or disarm it."""
        driver = self.world.driver
        self._pets += 1
        if not effect.expire_us or task.member is self._cleared:
            self._watchdog_at = 0
            return
        fire_us = self.timing.watchdog_fire_timeout * SECOND_US
        lead = max(WATCHDOG_MARGIN_US, int(self.world.watchdog_lead_us * self.world.rng.random()))
        self._watchdog_at = self.true_at(effect.expire_us) + fire_us - lead
        driver.at(max(driver.now, self._watchdog_at), self._bark, self._pets)

    def _bark(self, pets: int) -> None:
        if self._watchdog_at and pets == self._pets:
            self.world.trace(self, "is reset by its watchdog")
            self.reset()

    def signal(self, effect: Signal) -> bool:
        """Deliver a signal to a user of a lease; it may ignore it, or take its time."""
        use = next((u for u in self.uses if u.number == effect.process), None)
        if use is None:
            return False
        world = self.world
        if world.rng.random() < world.options.deaf and effect.signal != recovery.SIGKILL:
            return True
        if world.faults.is_on and world.rng.random() < world.options.deaf / 4:
            return True  # it hangs in the kernel
        slow_us = 100_000 if effect.signal == recovery.SIGKILL else 3 * SECOND_US
        world.driver.at(world.driver.now + int(slow_us * world.rng.random()), self._killed, use)
        return True

    def _killed(self, use: Use) -> None:
        if use not in self.uses:
            return
        if use.resource.name in self._busy:
            # What is under way with its lease is the daemon's, and may be in flight.
            self.stop_use(use)
            return
        self.world.driver.drop(use.task)
        if use.task in self.tasks:
            self.tasks.remove(use.task)
        self.stop_use(use)

    def notify(self, task: Task, event: Any) -> None:
        """Take in what a protocol tells."""
        if task.member is not self.member:
            return
        if isinstance(event, Joined):
            self._noted = event.held
            self._joined()
        elif isinstance(event, Renewed):
            if event.error is None and self._fate.random() < 0.3:
                self._noted = self.member.held
        elif isinstance(event, Failed):
            self._failed(event)
        elif isinstance(event, recovery.Cleared):
            self._after_recovery()

    def _failed(self, event: Failed) -> None:
        self.world.trace(self, "failed", event.reason, event.error)
        if self.member.has_left:
            return
        driver = self.world.driver
        self.is_up = False
        held = self.member.held or self._noted
        processes = tuple(recovery.Process(use.number) for use in self.uses)
        ladder = recovery.begin(
            self.member.space.name,
            0 if held is None else held.renewed_us,
            self.timing,
            processes,
        )
        self._recovery = recovery.Recovery(ladder)
        for task in list(self.tasks):
            if task.sleeping and self._is_idle(task):
                driver.drop(task)
                self.tasks.remove(task)
        self._tell_use()
        driver.start(Task(self, "recovery", recovery.recover(self._recovery), _no_end))

    def _is_idle(self, task: Task) -> bool:
        """Tell whether a task is a user that neither holds nor wants anything now."""
        return (
            task not in (self._life, self._guard)
            and task.name.encode() not in self._busy
            and not any(use.task is task for use in self.uses)
        )

    def _after_recovery(self) -> None:
        self.world.trace(self, "recovered")
        self._cleared = self.member
        self._recovery = None
        self._life = None
        self._later(int(self.world.rng.random() * BOOT_US), False)

    def _tell_use(self) -> None:
        if self._recovery is not None:
            self._recovery.tell(recovery.Used(bool(self._busy)))

    # -- users -----------------------------------------------------------------------------------

    def busy(
        self, watched: Watched, is_busy: bool, *, before: Lease | None = None, keep: bool = False
    ) -> None:
        """Note that an operation on a lease is under way: the watchdog must not be disarmed.

        before, keep: for a successor, see protocol.outcome.
        """
        if is_busy:
            self._busy.add(watched.name)
            self._cuts[watched.name] = Cut(before, keep)
        else:
            self._busy.discard(watched.name)
            self._cuts.pop(watched.name, None)
        self._tell_use()

    def begin_use(self, watched: Watched, lease: Lease) -> Use:
        """Note that somebody uses a lease from now on."""
        world = self.world
        world.uses += 1
        shared = getattr(lease, "shared", False)
        use = Use(world.uses, self, watched, lease, shared, world.driver.now)
        use.task = next(t for t in self.tasks if t.alive and t.name.encode() == watched.name)
        self.uses.append(use)
        world.trace(self, "uses", watched.name, lease.lver, "shared" if use.shared else "exclusive")
        world.oracle.granted(use, world.driver.now)
        world.granted(self, watched)
        return use

    def end_use(self, use: Use) -> None:
        """Note that a user has stopped."""
        self.stop_use(use)

    def stop_use(self, use: Use) -> None:
        """Note that a user has stopped, or was stopped."""
        if use in self.uses:
            self.uses.remove(use)
            self.world.oracle.ended(use)
            self.world.trace(self, "stops using", use.resource.name, use.lver)
            if self._recovery is not None:
                self._recovery.tell(recovery.Gone(use.number))

    # -- faults ----------------------------------------------------------------------------------

    def is_over_stuck(self, effect: Write) -> bool:
        """Tell whether a write would overlap one that timed out and has not landed."""
        end = effect.offset + len(effect.data)
        return any(
            f.timed_out
            and f.effect.path == effect.path
            and f.effect.offset < end
            and effect.offset < f.effect.offset + len(f.effect.data)
            for f in self.flights
        )

    def pause(self, duration_us: int) -> None:
        """Stand still: nothing runs but the disks, the users and the watchdog."""
        self.world.trace(self, "stands still for", duration_us / SECOND_US, "s")
        self.paused_until = max(self.paused_until, self.world.driver.now + duration_us)

    def kill(self) -> None:
        """Lose the process that keeps the leases, not its users: the watchdog ends them."""
        self.world.trace(self, "loses its daemon")
        armed = self._watchdog_at
        self._drop_tasks()
        if not armed:
            self.reset()
        elif not self.is_original and self._fate.random() < self.world.options.adopt:
            longest_us = self._fate.choice(
                (SECOND_US, self.timing.fail_us, 2 * self.timing.fail_us)
            )
            driver = self.world.driver
            driver.at(driver.now + int(self._fate.random() * longest_us), self._adopt, self.resets)

    def _adopt(self, resets: int) -> None:
        """Start a successor of the daemon, as soon as nothing of that is in flight any more."""
        if self.resets != resets or self._noted is None:
            return
        driver = self.world.driver
        if self.flights:
            driver.at(driver.now + EXIT_POLL_US, self._adopt, resets)
            return
        world = self.world
        world.adoptions += 1
        world.trace(self, "gets a new daemon")
        self.winding_down = world.over
        now = self.local(driver.now)
        self.member = self._new_member()
        self.member.limit_us = max(
            self._noted.renewed_us + self.timing.fail_us, now + 2 * self.timing.io_us
        )
        self._start_guard()
        protocol = resume(self.member, Legacy(self._noted, is_final=False))
        self._life = Task(self, "life", protocol, self._life_ended)
        driver.start(self._life)

    def _drop_tasks(self) -> None:
        for task in self.tasks:
            self.world.driver.drop(task)
        self.tasks.clear()
        self._life = self._guard = None
        self._recovery = None
        self._busy.clear()
        self.is_up = False

    def reset(self) -> None:
        """Crash: what is in flight lands or vanishes now, nothing runs until the next life."""
        world = self.world
        self.resets += 1
        world.resets += 1
        self._drop_tasks()
        for flight in self.flights:
            if world.rng.random() < 0.5:
                world.driver.land(flight)
        self.flights.clear()
        self._cuts.clear()
        self._noted = None
        for use in list(self.uses):
            self.stop_use(use)
        self._watchdog_at = 0
        self.paused_until = 0
        world.trace(self, "is down")
        self._later(int(world.rng.random() * BOOT_US), world.rng.random() < 0.5)


def _no_end(task: Task, result: Any, error: PaxosleaseError | None) -> None:
    """Take no notice of how a task ended."""
