"""Hosts for guests: a machine, libvirtd, and under it a lock daemon, ours or the real one.

Two hosts of one directory share their disks and, under sanlock, the directory of automatic leases.
What a host holds is not what its lock daemon's clients were told, but what the kernel has in
/proc/locks and what sanlock's own command prints.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.compat.peer import wait_until
from tests.daemon.daemons import SANLOCK, Daemon, Kind
from tests.guests.libvirt import LIMIT_S, Libvirt
from tests.guests.machine import Machine, require_libvirt
from tests.lockd.rig import our_daemon, virtlockd

NAMES: Final = {1: "one", 2: "two"}
SANLOCK_CONF: Final = (
    'auto_disk_leases = 1\ndisk_lease_dir = "{leases}"\nhost_id = {number}\n'
    'require_lease_for_disks = 0\nio_timeout = 1\nuser = "root"\ngroup = "root"\n'
)


class Host(ABC):
    """A host of guests; a context manager that ends all of it.

    number: 1 or 2, its host id in the lockspace and what it is named after. options: more lines of
    the lock manager's qemu-*.conf. io_timeout is 1.
    """

    manager: str
    libvirt: Libvirt

    def __init__(self, kind: Kind, directory: Path, number: int, options: str = "") -> None:
        require_libvirt(self.manager)
        self.kind = kind
        self.options = options
        self.number = number
        self.place = directory / NAMES[number]
        self._stack = ExitStack()
        try:
            self.machine = self._stack.enter_context(Machine(self.place / "m", NAMES[number]))
            self._start()
        except BaseException:
            self._stack.close()
            raise

    @abstractmethod
    def _start(self) -> None:
        """Start lock daemon and libvirtd."""

    @abstractmethod
    def held(self, image: Path) -> str:
        """Return how this host holds a disk: "exclusive", "shared" or "no"."""

    @abstractmethod
    def refusal(self, image: Path, *, by: Host) -> str:
        """Return libvirt's words for a disk that a guest of another host, or this one, has."""

    @abstractmethod
    def restart_daemon(self) -> None:
        """Have the lock daemon execute its program anew under its guests."""

    def await_held(self, image: Path, how: str) -> None:
        """Wait until this host holds a disk in a way."""
        wait_until(lambda: self.held(image) == how, LIMIT_S, f"{self.place.name} holds: {how}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


class LockdHost(Host):
    """libvirt's lockd plugin over `paxoslease lockd` or virtlockd, which locks the disks directly.

    Every host has a daemon of its own: they exclude each other by the files' record locks.
    """

    manager = "lockd"

    def _start(self) -> None:
        directory = self.place / "d"
        directory.mkdir()
        make = our_daemon if self.kind == "ours" else virtlockd
        self.daemon = self._stack.enter_context(make(directory))
        (self.machine.directory / "run/virtlockd-sock").symlink_to(self.daemon.path)
        self.libvirt = self._stack.enter_context(Libvirt(self.machine, self.manager, self.options))

    def held(self, image: Path) -> str:
        """Return how this host holds a disk: "exclusive", "shared" or "no"."""
        inode = str(image.stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] != "POSIX" or words[4] != str(self.daemon.pid):
                continue
            if words[5].split(":")[2] == inode and words[6:] == ["0", "0"]:
                return {"WRITE": "exclusive", "READ": "shared"}[words[3]]
        return "no"

    def refusal(self, image: Path, *, by: Host) -> str:
        """Return libvirt's words for a disk that a guest of another host, or this one, has."""
        return f"resource busy: Lockspace resource '{image}' is locked"

    def restart_daemon(self) -> None:
        """Have the lock daemon execute its program anew under its guests."""
        if self.kind == "ours":
            count = self.daemon.log.read_text().count("listens on")
            self.daemon.send_signal(signal.SIGUSR1)
            wait_until(
                lambda: self.daemon.log.read_text().count("listens on") > count,
                LIMIT_S,
                "the new image listens",
            )
            return
        before = self._image()
        self.daemon.send_signal(signal.SIGUSR1)
        wait_until(
            lambda: self._image() != before and self._takes_signals(), LIMIT_S, "it runs anew"
        )

    def _image(self) -> str:
        """Return where the program is loaded: elsewhere after every exec."""
        return Path(f"/proc/{self.daemon.pid}/stat").read_text().split()[25]

    def _takes_signals(self) -> bool:
        status = Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines()
        caught = next(line for line in status if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


class LeaseHost(Host):
    """libvirt's sanlock plugin over `paxoslease-sanlock daemon` or sanlock, a lease per disk."""

    manager = "sanlock"

    def _start(self) -> None:
        self.leases = self.place.parent / "leases"
        self.leases.mkdir(exist_ok=True)
        # On the machine: it runs libvirt's helper, which looks for libvirtd at its usual place.
        daemon = Daemon(self.kind, self.place / "d", NAMES[self.number], prefix=self.machine.prefix)
        self.daemon = daemon
        self._stack.callback(daemon.kill)
        options = SANLOCK_CONF.format(leases=self.leases, number=self.number) + self.options
        libvirt = Libvirt(self.machine, self.manager, options, daemon.env)
        self.libvirt = self._stack.enter_context(libvirt)

    def sanlock(self, *words: str, limit_s: float = LIMIT_S) -> str:
        """Run `sanlock client ...` with this host's daemon and return what it printed."""
        command = [SANLOCK, "client", *words]
        done = subprocess.run(
            command, env=self.daemon.env, capture_output=True, text=True, timeout=limit_s
        )
        assert done.returncode == 0, done
        return done.stdout

    def held(self, image: Path) -> str:
        """Return how this host holds a disk: "exclusive", "shared" or "no"."""
        digest = hashlib.md5(os.fsencode(image)).hexdigest()
        for line in self.sanlock("status").splitlines():
            if line.startswith("r ") and f":{digest}:" in line:
                return "shared" if ":SH" in line else "exclusive"
        return "no"

    def refusal(self, image: Path, *, by: Host) -> str:
        """Return libvirt's words for a disk that a guest of another host, or this one, has."""
        if by is self:
            return "Failed to acquire lock: File exists"
        return "Failed to acquire lock: Lease is held by another host"

    def restart_daemon(self) -> None:
        """Have the lock daemon execute its program anew under its guests."""
        started = "sanlock daemon started"
        count = self.daemon.stderr().count(started)
        os.kill(self.daemon.pid, signal.SIGUSR2)
        wait_until(
            lambda: self.daemon.stderr().count(started) > count, LIMIT_S, "the new image serves"
        )
