"""A client of the lease daemon that uses leases all the time and checks what it is told.

python -m tests.daemon.crash_client RUN_DIRECTORY WITNESS LOCKSPACE PATH LEASES SEED

It holds its leases through one registered connection, which must survive whatever happens to the
daemon: an end of it, a wait of more than LIMIT_S, a lease that is not held any more or under
another version, or a release that is refused are errors. Every use is reported to the witness of
exclusion. Until stdin ends; then it prints, as JSON, what it did and what was wrong, and waits for
the end of stdin.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time
from pathlib import Path
from typing import Final

from paxoslease.client import (
    Connection,
    DaemonBroken,
    DaemonError,
    DaemonSilent,
    DaemonUnreachable,
)
from paxoslease.wire.sanlock import AcquireFlag, Disk, Resource, ResourceFlag
from tests.compat.witness import EXCLUSIVE, SHARED, ExclusionBroken, WitnessClient

LIMIT_S: Final = 40.0
MIB: Final = 1 << 20


class Wrong(Exception):
    """Something was not as it has to be."""


class CrashClient:
    """One client and its counts."""

    def __init__(self, arguments: list[str]) -> None:
        directory, witness, space, path, leases, seed = arguments
        self.random = random.Random(int(seed))
        self.space = space.encode()
        self.path = path.encode()
        self.leases = int(leases)
        self.log = (Path(witness).parent / f"client{os.getpid()}.log").open("w", buffering=1)
        self.witness = WitnessClient(Path(witness), f"pid {os.getpid()}")
        self.connection = Connection(directory, timeout_s=LIMIT_S)
        self.connection.register()
        self.acquired = self.refused = self.converted = 0
        self.longest_s = 0.0
        self.holds: dict[str, str] = {}  # what INQUIRE has to say

    def resource(self, number: int, *, shared: bool) -> Resource:
        """Return a resource as a request names it."""
        flags = ResourceFlag.SHARED if shared else ResourceFlag(0)
        place = Disk(self.path, (1 + number) * MIB)
        return Resource(self.space, b"r%d" % number, flags=int(flags), disks=(place,))

    def note(self, *words: object) -> None:
        """Write down what is done, for whoever has to find out what went wrong."""
        print(f"{time.monotonic():.4f}", *words, file=self.log)

    def held(self) -> dict[str, str]:
        """Ask what is held: the version, or SH, by name."""
        count, text = self.connection.inquire()
        found = {}
        for item in text.decode().split():
            parts = item.split(":")
            found[parts[1]] = parts[-1]
        if len(found) != count:
            raise Wrong(f"{count} leases are told as {text!r}")
        return found

    def check(self) -> None:
        """Raise Wrong unless just what must be held is held, as it was."""
        found = self.held()
        if found != self.holds:
            raise Wrong(f"held are {found}, not {self.holds}")

    def once(self) -> None:
        """Acquire some leases, use them for a while, give them back."""
        count = self.random.choice((1, 1, 1, 2, 3))
        numbers = self.random.sample(range(self.leases), count)
        shared = self.random.random() < 0.3
        wanted = [self.resource(number, shared=shared) for number in numbers]
        flags = AcquireFlag.OWNER_NOWAIT
        self.note("acquire", numbers, "shared" if shared else "")
        try:
            self.connection.acquire(wanted, flags=flags)
        except DaemonError as error:
            if isinstance(error, DaemonBroken | DaemonSilent | DaemonUnreachable):
                raise
            self.note("refused", error)
            self.refused += 1
            self.check()
            return
        self.acquired += count
        names = [resource.name.decode() for resource in wanted]
        found = self.held()
        if sorted(found) != sorted(names):
            raise Wrong(f"acquired were {names}, held are {found}")
        self.note("acquired", found)
        self.holds = found
        mode = SHARED if shared else EXCLUSIVE
        for name in names:
            self.witness.enter(name, mode, 0)
        self.use(wanted, mode)
        for name in names:
            self.witness.leave(name)
        self.release(wanted)

    def use(self, wanted: list[Resource], mode: str) -> None:
        """Be inside for a while."""
        time.sleep(self.random.choice((0, 0.02, 0.1, 0.3, 1.5)))
        self.check()
        if mode == EXCLUSIVE and self.random.random() < 0.2:
            shared = wanted[0]._replace(flags=int(ResourceFlag.SHARED))
            name = shared.name.decode()
            self.witness.change(name, SHARED, 0)
            self.note("convert", name)
            self.connection.convert(shared)
            self.note("converted", name)
            self.converted += 1
            self.holds[name] = "SH"
            time.sleep(self.random.choice((0, 0.1)))
            self.check()

    def release(self, wanted: list[Resource]) -> None:
        """Give back what is held, in one of the ways."""
        self.holds = {}
        self.note("release")
        if self.random.random() < 0.3:
            self.connection.release_all()
        else:
            self.connection.release(wanted)
        self.note("released")
        self.check()

    def run(self) -> list[str]:
        """Work until there is a line on stdin; returns what was wrong."""
        while not select.select([sys.stdin], [], [], 0)[0]:
            begin = time.monotonic()
            try:
                self.once()
            except (Wrong, ExclusionBroken, DaemonError, OSError) as error:
                self.note("wrong", error)
                return [f"{type(error).__name__}: {error}"]
            self.longest_s = max(self.longest_s, time.monotonic() - begin)
            time.sleep(self.random.uniform(0.0, 0.06))
        return []


def main() -> None:
    """Work, report, end."""
    client = CrashClient(sys.argv[1:])
    print("ready", flush=True)
    wrong = client.run()
    client.log.close()
    report = {
        "pid": os.getpid(),
        "acquired": client.acquired,
        "refused": client.refused,
        "converted": client.converted,
        "longest_s": client.longest_s,
        "wrong": wrong,
    }
    print(json.dumps(report), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
