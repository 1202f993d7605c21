"""Run real sanlock daemons, unprivileged and without a watchdog, as peers for tests and bench.

`SanlockHost` is one host: a daemon in a run directory of its own and a client process that is
registered with it. More clients of the same host come from `host.client()`. What the daemon
refuses is a `SanlockError` with sanlock's number. Nothing of paxoslease is imported here: the peer
is the independent witness of what is on the disk.

Real sanlock takes a host for dead after 8 * io_timeout + 60 seconds, 68 s with the io_timeout of 1
used here; a test that waits so long is marked `long`.

`SanlockMissing` and `LoopRefused` are `unittest.SkipTest`: a test that meets them is skipped
visibly, with the reason.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from tests.compat.peer_client import (
    HELD,
    OWNED_RETRY,
    SYSTEM_PYTHON,
    HostSeen,
    Lockspace,
    LoopRefused,
    PeerBroken,
    Resource,
    SanlockClient,
    SanlockError,
    SanlockMissing,
    host_dead_s,
    host_seen,
    leases_as_args,
    names,
    wait_until,
    where,
)

__all__ = [
    "HELD",
    "OWNED_RETRY",
    "HostSeen",
    "Lockspace",
    "LoopRefused",
    "PeerBroken",
    "Resource",
    "SanlockClient",
    "SanlockError",
    "SanlockHost",
    "SanlockMissing",
    "host_dead_s",
    "leases_as_args",
    "loop_device",
    "require_sanlock",
    "wait_until",
]

SOCKET_PATH_MAX: Final = 106  # longer ones are cut silently: spec/wire-protocol.md 1


def require_sanlock() -> None:
    """Raise SanlockMissing when the real sanlock or its Python module is not installed."""
    if shutil.which("sanlock") is None:
        raise SanlockMissing("the sanlock daemon is not installed (Debian package sanlock)")
    probe = subprocess.run([SYSTEM_PYTHON, "-c", "import sanlock"], capture_output=True)
    if probe.returncode != 0:
        raise SanlockMissing("the sanlock module is not installed (Debian package python3-sanlock)")


class SanlockHost(SanlockClient):
    """One host: a real sanlock daemon and the client that drives it.

    `directory` is where the run directory is made and the log kept; `name` is the host name, by
    which sanlock recognises its own earlier life; `options` go to the command line. A context
    manager: leaving it ends the daemon, its helper and its clients, whatever state they are in.
    """

    program: ClassVar[str] = "sanlock"

    def __init__(
        self, directory: Path, name: str, *, io_timeout_s: int = 1, options: Sequence[str] = ()
    ) -> None:
        require_sanlock()
        self._options = options
        self.name = name
        self.io_timeout_s = io_timeout_s
        self.run_dir = directory / name
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.socket_path = self.run_dir / "sanlock.sock"
        self.log_path = self.run_dir / "daemon.log"
        if len(os.fsencode(self.socket_path)) > SOCKET_PATH_MAX:
            raise ValueError(f"{self.socket_path} is too long for a socket path")
        self.env = {
            **os.environ,
            "SANLOCK_PRIVILEGED": "0",
            "SANLOCK_RUN_DIR": str(self.run_dir),
        }
        self._clients: list[SanlockClient] = []
        self.daemon = self._start_daemon()
        try:
            super().__init__(self.env)
            self.register()
        except BaseException:
            self.kill_daemon()
            raise

    def _start_daemon(self) -> subprocess.Popen[bytes]:
        command = [self.program, "daemon", "-D", "-w", "0", "-l", "0", "-h", "0"]
        command += ["-U", "root", "-G", "root", "-L", "-1", "-S", "-1"]
        command += ["-o", str(self.io_timeout_s), "-e", self.name, *self._options]
        with self.log_path.open("ab") as log:
            # A session of its own: 3.8.5 may signal its whole process group (spec/algorithms 15.6).
            daemon = subprocess.Popen(command, env=self.env, stderr=log, start_new_session=True)

        def is_ready() -> bool:
            if daemon.poll() is not None:
                raise PeerBroken(f"the daemon ended with {daemon.returncode}: {self.log()}")
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket_path)) != 0:
                    return False
                listener = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            # Not another daemon of this run directory, whose socket a failing start leaves alone.
            listener_pid: int = struct.unpack("3i", listener)[0]
            return listener_pid == daemon.pid

        try:
            wait_until(is_ready, 10.0, f"the daemon {self.name} listens")
        except BaseException:
            daemon.kill()
            daemon.wait()
            raise
        return daemon

    def client(self) -> SanlockClient:
        """Start and register another client process of this host."""
        client = SanlockClient(self.env)
        self._clients.append(client)
        client.register()
        return client

    # -- lockspaces ----------------------------------------------------------------------------

    def init_lockspace(self, space: Lockspace) -> None:
        """Format a lockspace; its io_timeout is this host's."""
        self.module(
            "write_lockspace",
            lockspace=space.name.encode(),
            path=space.path,
            offset=space.offset,
            iotimeout=self.io_timeout_s,
            align=space.align_size,
            sector=space.sector_size,
        )

    def init_resource(self, resource: Resource) -> None:
        """Format a resource."""
        self.module(
            "write_resource",
            **names(resource),
            disks=resource.disks,
            align=resource.align_size,
            sector=resource.sector_size,
        )

    def add_lockspace(
        self, space: Lockspace, host_id: int, *, wait: bool = True, limit_s: float = 200.0
    ) -> None:
        """Join a lockspace: about 3 s with io_timeout 1 when the host id is free."""
        place = where(space, host_id)
        self.module("add_lockspace", limit_s, **place, iotimeout=self.io_timeout_s, wait=wait)

    def rem_lockspace(self, space: Lockspace, host_id: int, *, unused: bool = False) -> None:
        """Leave a lockspace: kills the clients that hold leases of it, this one included."""
        self.module("rem_lockspace", **where(space, host_id), unused=unused)

    def has_joined(self, space: Lockspace, host_id: int) -> bool | None:
        """Return whether the host id is held; None while that is being decided."""
        state: bool | None = self.module("inq_lockspace", **where(space, host_id))
        return state

    def get_lockspaces(self) -> list[dict[str, Any]]:
        """Return the lockspaces of this daemon."""
        spaces: list[dict[str, Any]] = self.module("get_lockspaces")
        return spaces

    def get_hosts(self, space: Lockspace) -> dict[int, HostSeen]:
        """Return the host table by host id; -11 before the first renewal."""
        seen = self.module("get_hosts", lockspace=space.name.encode())
        return {host["host_id"]: host_seen(host) for host in seen}

    def read_resource(self, resource: Resource) -> dict[str, Any]:
        """Return lockspace, resource and version as they are on the disk."""
        sizes = {"align": resource.align_size, "sector": resource.sector_size}
        place = {"path": resource.path, "offset": resource.offset}
        found: dict[str, Any] = self.module("read_resource", **place, **sizes)
        return found

    def read_owners(self, resource: Resource) -> list[HostSeen]:
        """Return who owns a resource according to the disk, exclusively or shared."""
        sizes = {"align": resource.align_size, "sector": resource.sector_size}
        lease = {**names(resource), "disks": resource.disks}
        seen = self.module("read_resource_owners", **lease, **sizes)
        return [host_seen(host) for host in seen]

    # -- the daemon ----------------------------------------------------------------------------

    def cli(self, *words: str) -> str:
        """Run `sanlock client ...` against this daemon; return what it printed."""
        command = ["sanlock", "client", *words]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120)
        return done.stdout

    def status(self) -> str:
        """Return `sanlock client status`."""
        return self.cli("status")

    def log_dump(self) -> str:
        """Return the daemon's log buffer."""
        return self.cli("log_dump")

    def log(self) -> str:
        """Return what the daemon wrote to stderr, also after its death."""
        return self.log_path.read_text(errors="replace")

    def helper_pids(self) -> list[int]:
        """Return the helper processes of the daemon."""
        children = Path(f"/proc/{self.daemon.pid}/task/{self.daemon.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def cpu_s(self) -> float:
        """Return the CPU seconds, user and system, that the daemon has used since its start.

        The kernel's clock of another process: utime + stime of /proc/PID/stat, ended threads
        included, but in nanoseconds instead of ticks. The encoding is clock_getcpuclockid(3)'s.
        """
        return time.clock_gettime(~self.daemon.pid << 3 | 2)

    def memory_and_threads(self) -> tuple[int, int]:
        """Return resident KiB and threads of the daemon, its helper included."""
        memory_kib = threads = 0
        for pid in (self.daemon.pid, *self.helper_pids()):
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in status)
            memory_kib += int(fields["VmRSS"].split()[0])
            threads += int(fields["Threads"])
        return memory_kib, threads

    def pause(self) -> None:
        """Stop the daemon as a hypervisor stops a guest: it renews nothing until `resume`."""
        os.kill(self.daemon.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused daemon go on."""
        os.kill(self.daemon.pid, signal.SIGCONT)

    def kill_daemon(self) -> None:
        """Kill the daemon with SIGKILL, as a crash of the host: nothing is released on disk."""
        helpers = self.helper_pids()
        if self.daemon.poll() is None:
            self.daemon.kill()
        self.daemon.wait()
        for pid in helpers:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue  # it noticed by itself that the daemon is gone
            with os.fdopen(handle, "rb", buffering=0):
                _kill_and_await(handle)

    def restart_daemon(self) -> None:
        """Start a daemon of the same name after `kill_daemon`, with a new registration."""
        super().close()
        self.daemon = self._start_daemon()
        super().__init__(self.env)
        self.register()

    def shutdown(self, limit_s: float = 30.0) -> None:
        """Leave every lockspace and end the daemon in an orderly way, its clients first."""
        self._close_clients()
        self.cli("shutdown", "-f", "1", "-w", "1")
        try:
            self.daemon.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise PeerBroken(f"{self.name} did not shut down within {limit_s} s") from None

    def _close_clients(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()
        super().close()

    def close(self) -> None:
        """End everything of this host, by force."""
        self.kill_daemon()
        self._close_clients()


def _kill_and_await(pidfd: int) -> None:
    """Kill the process behind `pidfd` and wait for its end, which makes the handle readable."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    select.select([pidfd], [], [], 5.0)


def _loop_of(device: str) -> Path:
    return Path("/sys/block") / Path(device).name / "loop"


@contextmanager
def loop_device(
    backing: Path, size_bytes: int, sector_size: int, *, direct_io: bool = False
) -> Iterator[str]:
    """Make `backing` a file of `size_bytes` and yield a loop device over it.

    With `direct_io` the device goes past the page cache to the file's own disk; without it, reads
    are copies in memory. The device is detached in any case; the file stays.

    Raises LoopRefused where a device, or direct I/O with it, is not to be had.
    """
    if shutil.which("losetup") is None:
        raise LoopRefused("losetup is not installed (Debian package mount)")
    with backing.open("wb") as file:
        file.truncate(size_bytes)
    how = ["--sector-size", str(sector_size), f"--direct-io={'on' if direct_io else 'off'}"]
    command = ["losetup", "--find", "--show", *how, str(backing)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:
        raise LoopRefused(f"no loop device with {sector_size} byte sectors: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        if direct_io and (_loop_of(device) / "dio").read_text().strip() != "1":
            raise LoopRefused(f"the file system of {backing} does no direct I/O for a loop device")
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
