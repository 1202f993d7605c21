"""`paxoslease demo`: two hosts, one lease, a power failure, and a take-over that waits long enough.

Everything is real but the hosts: two processes play them, on a file in a temporary directory that
stands for the shared disk. Time-outs are short so that the whole takes about twenty seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from paxoslease.cli.demo_host import MODULE
from paxoslease.cli.demo_plan import DEAD_S, GUEST, HOLD_S, IO_TIMEOUT_S, LIMIT_S, LOCKSPACE
from paxoslease.cli.demo_screen import Event, Screen
from paxoslease.cli.exits import Exit
from paxoslease.errors import ConfigError


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `demo`."""
    parser = commands.add_parser(
        "demo",
        help="show a take-over between two hosts, on a file in a temporary directory",
        description="Two processes play two hosts that share a disk. Both want to run the same "
        "guest; one gets the lease, is killed, and the other takes over as soon as it is safe.",
    )
    parser.add_argument("--plain", action="store_true", help="plain lines, no live screen")
    parser.set_defaults(run=run)


class _Host:
    """A host's process and the part of a line that it has written so far."""

    def __init__(self, directory: Path, host_id: int) -> None:
        self.host_id = host_id
        self.rest = b""
        # A session of its own, so that the guest dies with its host when the group is killed.
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                MODULE,
                "host",
                str(directory),
                str(host_id),
            ],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def events(self) -> list[Event]:
        """Return what the host reported since the last call; [] at the end of its output."""
        assert self.process.stdout is not None
        self.rest += os.read(self.process.stdout.fileno(), 65536)
        *lines, self.rest = self.rest.split(b"\n")
        return [Event(**_known(json.loads(line))) for line in lines]

    def power_off(self) -> float:
        """Kill the host with everything on it, at once. Returns when."""
        os.killpg(self.process.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        self.process.wait()
        return killed_at


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    core = {name: fields.pop(name) for name in ("at", "host", "event")}
    return {**core, "fields": fields}


class _Director:
    """Runs the play: waits for each scene to be over, then begins the next."""

    def __init__(self, directory: Path, screen: Screen) -> None:
        self.directory = directory
        self.screen = screen
        self.hosts = {host_id: _Host(directory, host_id) for host_id in (1, 2)}
        self.owner = 0
        self.acquired_at = 0.0
        self.killed: int = 0

    def play(self) -> bool:
        """Return whether the take-over was seen within the limit."""
        selector = selectors.DefaultSelector()
        for member in self.hosts.values():
            assert member.process.stdout is not None
            selector.register(member.process.stdout, selectors.EVENT_READ, member)
        begun = time.monotonic()
        while time.monotonic() - begun < LIMIT_S:
            for key, _ in selector.select(0.1):
                host: _Host = key.data
                events = host.events()
                if not events and host.process.poll() is not None:
                    selector.unregister(key.fileobj)
                for event in events:
                    self._take(event)
            self.screen.tick()
            if self.owner and not self.killed and time.monotonic() - self.acquired_at > HOLD_S:
                self._power_failure()
            if self.killed and self.owner and time.monotonic() - self.acquired_at > HOLD_S / 2:
                return True
        return False

    def _take(self, event: Event) -> None:
        if event.host == self.killed:
            return
        self.screen.add(event)
        if event.event == "running":
            self.owner = event.host
            self.acquired_at = event.at

    def _power_failure(self) -> None:
        at = self.hosts[self.owner].power_off()
        self.killed, self.owner = self.owner, 0
        self.screen.power_failure(self.killed, at)

    def stop(self) -> None:
        """Stop both hosts: asked first, so that the lease is released, then killed."""
        for host in self.hosts.values():
            if host.process.poll() is None:
                host.process.terminate()
        for host in self.hosts.values():
            try:
                rest, _ = host.process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                host.power_off()
                continue
            if host.host_id != self.killed:
                for line in (host.rest + rest).splitlines():
                    self.screen.add(Event(**_known(json.loads(line))))


def check_heartbeats(path: Path) -> tuple[int, float]:
    """Return how often the guest changed its host, and the pause between them (s).

    Raises ConfigError when the guest ran on two hosts at once: a host's heartbeat behind one of
    the other's, which began later.
    """
    hosts: list[int] = []
    last: dict[int, float] = {}
    first: dict[int, float] = {}
    for line in path.read_text().splitlines():
        at, host = float(line.split()[0]), int(line.split()[1])
        first.setdefault(host, at)
        last[host] = at
        if not hosts or hosts[-1] != host:
            hosts.append(host)
    if len(set(hosts)) != len(hosts):
        raise ConfigError("demo", f"the guest ran on two hosts at once: {hosts}")
    pause = first[hosts[1]] - last[hosts[0]] if len(hosts) == 2 else 0.0
    return len(hosts) - 1, pause


def run(arguments: argparse.Namespace) -> int:
    """Play the demonstration."""
    import paxoslease

    live = sys.stdout.isatty() and not arguments.plain
    with tempfile.TemporaryDirectory(prefix="paxoslease-demo-") as name:
        directory = Path(name)
        disk = str(directory / "disk")
        paxoslease.format_lockspace(disk, LOCKSPACE, io_timeout=IO_TIMEOUT_S)
        paxoslease.format_resource(disk, LOCKSPACE, GUEST, offset=1 << 20)
        with Screen(live, disk) as screen:
            director = _Director(directory, screen)
            try:
                done = director.play()
            finally:
                director.stop()
        screen.timeline()
        if not done:
            sys.stderr.write(f"paxoslease: no take-over within {LIMIT_S:.0f} s\n")
            return Exit.FAILED
        changes, pause = check_heartbeats(directory / "heartbeats")
    print(
        f"The guest moved {changes} time, and never ran on two hosts: between its last heartbeat "
        f"on the dead host\nand its first on the other lay {pause:.1f} s. A host counts as dead "
        f"{DEAD_S:.0f} s after its last renewal, not before."
    )
    return Exit.OK
