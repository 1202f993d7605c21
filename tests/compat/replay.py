"""A schedule of tests/scenarios, played by real daemons on a disk that holds back their I/O.

The commands are those of `paxoslease.simulation.explorer.schedule`, read literally: a step is one
I/O in the area of the lease, in the order in which the daemon asks for them, and nothing else of
that host's happens meanwhile. What a daemon does in the lockspace (renewals, looks at an owner) is
not held back. Where a host begins an attempt its client asks for the lease, or gives it back.

Real I/O has time limits, and a host that is held back too long is refused its I/O by itself. So
the io_timeouts are chosen such that a whole schedule lies within them (`Part`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from paxoslease.simulation.explorer.words import leader_in_words, sector_in_words
from tests.compat.gate import Gate, Io, gated_disk
from tests.compat.our_daemon import OurHost
from tests.compat.peer import (
    Lockspace,
    PeerBroken,
    Resource,
    SanlockClient,
    SanlockError,
    SanlockHost,
    wait_until,
)

MIB: Final = 1 << 20
SECTOR: Final = 512
PROGRAMS: Final[dict[str, type[SanlockHost]]] = {"original": SanlockHost, "ours": OurHost}
STEPS_MAX: Final = 200
STEP_LIMIT_S: Final = 30.0
JOIN_LIMIT_S: Final = 120.0


class Part(NamedTuple):
    """Who plays a host: "original" or "ours", and its io_timeout in seconds."""

    program: str
    io_timeout_s: int


class Attempt:
    """An acquisition or release under way, in a thread of its own."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self.refusal: SanlockError | None = None
        self.is_over = False
        self.is_cut_off = False  # by the end of the host
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except SanlockError as error:
            self.refusal = error
        except PeerBroken:
            if not self.is_cut_off:
                raise
        finally:
            self.is_over = True

    def join(self) -> None:
        """Wait for its thread."""
        self._thread.join()


class Player:
    """One host of a schedule: its daemon, its client, and what it is in the middle of."""

    def __init__(self, stage: Stage, letter: str, part: Part) -> None:
        self.letter = letter
        self.part = part
        self.host_id = "ABC".index(letter) + 1
        self.version = 0  # of the lease, as the daemon tells its client; 0: not held
        self.attempt: Attempt | None = None
        self._stage = stage
        self._lives = 0
        self._path = stage.gate.path(letter)
        self.resource = Resource("LS", "R", self._path, MIB)
        self.begin_life()

    @property
    def name(self) -> str:
        """Return the host in words."""
        return f"host {self.host_id} ({self.part.program})"

    def begin_life(self) -> None:
        """Start the daemon, in a new run directory as after a reset of the host, and join."""
        self._lives += 1
        directory = self._stage.directory / f"life{self._lives}"
        self.host = PROGRAMS[self.part.program](
            directory, self.letter, io_timeout_s=self.part.io_timeout_s
        )
        self._stage.stack.callback(self.host.close)
        self.client: SanlockClient = self.host.client()
        space = Lockspace("LS", self._path)
        self.host.add_lockspace(space, self.host_id, limit_s=JOIN_LIMIT_S)

    def begin(self) -> None:
        """Ask for the lease, or give it back."""
        if self.version:
            self.version = 0
            self.attempt = Attempt(lambda: self.client.release(self.resource))
        else:
            self.attempt = Attempt(self._acquire)

    def _acquire(self) -> None:
        self.client.acquire(self.resource)
        self.version = self.client.fencing_token(self.resource)

    def crash(self) -> None:
        """End the daemon and its client at once; what was under way has no effect."""
        gate = self._stage.gate
        if self.attempt is not None:
            self.attempt.is_cut_off = True
        gate.open(self.letter)
        self.host.daemon.kill()
        for io in gate.waiting(self.letter):
            gate.drop(io)
        self.host.kill_daemon()
        if self.attempt is not None:
            self.attempt.join()
            self.attempt = None
        self.client.kill()
        self.version = 0


class Stage:
    """The hosts of a schedule and their disk; a context manager.

    `log` has what was done in words, as the recorded runs of the scenarios have it; `bad` what was
    wrong, "reuse" of a version or "two owners". knows_hosts: begin when every host has seen the
    others renew, so that an owner is judged at once.
    """

    def __init__(
        self, directory: Path, cast: tuple[Part, ...], *, knows_hosts: bool = True
    ) -> None:
        self.directory = directory
        self.stack = ExitStack()
        self.log: list[str] = []
        self.bad: list[str] = []
        self._granted = 0
        self._cast = cast
        self._knows_hosts = knows_hosts

    def __enter__(self) -> Stage:
        backing = self.directory / "disk"
        backing.write_bytes(bytes(4 * MIB))
        letters = "ABC"[: len(self._cast)]
        # The sectors of leader, request and these hosts; an area read begins at the first.
        zone = range(MIB, MIB + (len(letters) + 2) * SECTOR)
        with self.stack as stack:
            mounted = self.directory / "mounted"
            self.gate: Gate = stack.enter_context(gated_disk(mounted, backing, zone, list(letters)))
            self._format(backing)
            self.players = {
                letter: Player(self, letter, part)
                for letter, part in zip(letters, self._cast, strict=True)
            }
            if self._knows_hosts:
                self._await_tables()
            for letter in letters:
                self.gate.close(letter)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for letter in self.players:
            self.gate.open(letter)
            for io in self.gate.waiting(letter):
                self.gate.drop(io)
        self.stack.close()

    def _format(self, backing: Path) -> None:
        with SanlockHost(self.directory / "formatter", "formatter") as host:
            host.init_lockspace(Lockspace("LS", str(backing)))
            host.init_resource(Resource("LS", "R", str(backing), MIB))

    def _await_tables(self) -> None:
        """Wait until every host takes every other one for alive."""

        def sees_all(player: Player) -> bool:
            try:
                seen = player.host.get_hosts(Lockspace("LS", ""))
            except SanlockError as error:
                if error.number != -11:
                    raise
                return False
            return sum(row.state == "LIVE" for row in seen.values()) == len(self.players)

        for player in self.players.values():
            wait_until(lambda p=player: sees_all(p), JOIN_LIMIT_S, f"{player.name} sees all hosts")

    def run(self, command: str) -> None:
        """Do what one command of a schedule says. Raises ValueError for one not understood."""
        self.log.append(f"{command}:")
        letter, _, rest = command.partition(" ")
        player = self.players[letter]
        if rest == "does":
            self._does(player)
        elif rest.startswith("until "):
            self._until(player, rest.removeprefix("until "))
        elif rest == "crashes":
            player.crash()
            self.log.append(f"    {player.name}: crash")
        elif rest == "rejoins":
            player.begin_life()
            self.gate.close(letter)
            self.log.append(f"    {player.name}: rejoin")
        else:
            raise ValueError(f"not understood: {command!r}")

    def owners(self) -> str:
        """Return who was told that it owns the lease and has not given it back, in words."""
        owners = [(p.letter, p.version) for p in self.players.values() if p.version]
        return " and ".join(f"{letter} (version {v})" for letter, v in owners) or "nobody"

    def _until(self, player: Player, what: str) -> None:
        now = self._begun(player)
        for _ in range(STEPS_MAX):
            if now == what or player.attempt is None:
                break
            now = self._pass_one(player)
        else:
            raise AssertionError(f"{player.letter} never comes to {what}")
        self.log.append(f"    now: {now}")

    def _does(self, player: Player) -> None:
        self._begun(player)
        if player.attempt is not None:
            self._pass_one(player)

    def _begun(self, player: Player) -> str:
        """Let a host between two attempts begin the next; returns what it is about to do."""
        if player.attempt is None:
            player.begin()
        return self._pending(player)

    def _pending(self, player: Player) -> str:
        """Wait for the next I/O of a host, or the end of its attempt; returns which, in words."""
        attempt = player.attempt
        assert attempt is not None
        wait_until(
            lambda: attempt.is_over or bool(self.gate.waiting(player.letter)),
            STEP_LIMIT_S,
            f"{player.name} does something",
        )
        waiting = self.gate.waiting(player.letter)
        if waiting:
            return self._word(player, waiting[0])
        attempt.join()
        player.attempt = None
        if attempt.refusal is not None:
            self.log.append(f"    {player.name}: refused: {attempt.refusal.number}")
        if not player.version:
            return "idle"
        if player.version <= self._granted:
            self.bad.append("reuse")
        self._granted = max(self._granted, player.version)
        if sum(other.version > 0 for other in self.players.values()) > 1:
            self.bad.append("two owners")
        return "owner"

    @staticmethod
    def _word(player: Player, io: Io) -> str:
        at = (io.offset - MIB) // SECTOR - 1
        if at == -1:
            area = "area" if io.size > SECTOR else "leader"
            return f"read {area}" if io.verb == "read" else "write leader"
        if io.verb == "read":
            return "read sector"
        return "write own" if at == player.host_id else f"write sector of host {at}"

    def _pass_one(self, player: Player) -> str:
        """Let one I/O take effect; returns what the host is about to do after it."""
        io = self.gate.waiting(player.letter)[0]
        word = self._word(player, io)
        data = self.gate.let_pass(io)
        at = (io.offset - MIB) // SECTOR - 1
        if word == "read area":
            shown = word
        elif at == -1:
            shown = f"{'write: leader' if io.verb == 'write' else word}: {leader_in_words(data)}"
        else:
            place = "own sector" if at == player.host_id else f"sector of host {at}"
            verb = "write: " if io.verb == "write" else "read "
            shown = f"{verb}{place}: {sector_in_words(data)}"
        self.log.append(f"    {player.name}: {shown}")
        return self._pending(player)
