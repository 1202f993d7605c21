"""A user of leases that survives what happens to its daemon, and may be killed at any moment.

python -m tests.daemon.ill_client RUN_DIRECTORY PATH WITNESS NAME SEED

Wants a lease, exclusively or shared, uses it under the witness, gives it back, again and again.
When its connection ends it connects anew and gives back whatever it may hold. Says on stdout, a
line each: `held LEASE`, `free`, and `broken` for a connection that ended.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from paxoslease.channel import DaemonBroken, DaemonError, DaemonUnreachable
from paxoslease.client import Connection
from paxoslease.wire.sanlock import Disk, Resource, ResourceFlag
from tests.compat.witness import EXCLUSIVE, SHARED, WitnessClient

MIB = 1 << 20
LEASES = 3


def say(text: str) -> None:
    """Tell the test."""
    print(text, flush=True)


class User:
    """One user of the leases of one daemon."""

    def __init__(self, run_directory: str, path: str, line: WitnessClient, seed: str) -> None:
        self._run_directory = run_directory
        self._path = os.fsencode(path)
        self._line = line
        self._draw = random.Random(seed)
        self._daemon: Connection | None = None

    def run(self) -> None:
        """Use leases until the process is killed."""
        while True:
            try:
                if self._daemon is None:
                    self._connect()
                self._once()
            except (DaemonBroken, DaemonUnreachable):
                if self._daemon is not None:
                    say("broken")
                    self._daemon.close()
                    self._daemon = None
                time.sleep(0.2)
            except DaemonError:
                # Somebody else has it, the lockspace is not there, the disk failed: all may pass.
                time.sleep(self._draw.uniform(0.05, 0.3))

    def _connect(self) -> None:
        daemon = Connection(self._run_directory)
        try:
            daemon.register()
            held, _ = daemon.inquire()
            if held:
                daemon.release_all()
        except BaseException:
            daemon.close()
            raise
        self._daemon = daemon

    def _once(self) -> None:
        daemon, draw = self._daemon, self._draw
        assert daemon is not None
        number = draw.randrange(1, LEASES + 1)
        shared = draw.random() < 0.25
        disk = Disk(self._path, number * MIB)
        flags = int(ResourceFlag.SHARED) if shared else 0
        resource = Resource(b"LS", b"R%d" % number, (disk,), flags=flags)
        try:
            daemon.acquire([resource])
            token = self._version(daemon, resource) if shared else self._token(daemon)
        except DaemonError:
            # An answer that did not come, or one that came without what we need: hold nothing.
            daemon.release_all()
            raise
        self._line.enter(f"R{number}", SHARED if shared else EXCLUSIVE, token)
        say(f"held R{number}")
        time.sleep(draw.choice((0.01, 0.05, 0.3, 3.0)))
        self._line.leave(f"R{number}")
        say("free")
        daemon.release_all()
        time.sleep(draw.uniform(0, 0.1))

    @staticmethod
    def _version(daemon: Connection, resource: Resource) -> int:
        """Return the version on the disk: for a shared lease a daemon tells 0."""
        return daemon.read_resource(resource).lver

    @staticmethod
    def _token(daemon: Connection) -> int:
        _, text = daemon.inquire()
        return int(text.split(b":")[-1])


def main() -> None:
    """Run a user; one that does not mind SIGTERM if its seed is even."""
    run_directory, path, witness, name, seed = sys.argv[1:]
    if int(seed) % 2 == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with WitnessClient(Path(witness), name) as line:
        User(run_directory, path, line, seed).run()


if __name__ == "__main__":
    main()
