"""libvirtd with the sanlock lock manager, alone in a mount namespace, over a daemon of any kind.

Nothing of the machine's own libvirt is touched: what libvirtd writes to lies in a directory that is
mounted over /etc/libvirt, /var/lib/libvirt, /var/cache/libvirt and /var/log/libvirt, and /run is a
tmpfs. Guests are of type qemu (no KVM) with 32 MiB, no network and no graphics: they run no
system, and are ended with `destroy`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import unittest
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.compat.peer import wait_until

PROGRAMS: Final = ("libvirtd", "virsh", "qemu-system-x86_64", "unshare", "nsenter", "mount")
PLUGIN: Final = Path("/usr/lib/x86_64-linux-gnu/libvirt/lock-driver/sanlock.so")
OVER: Final = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}
CONFIGURATION: Final = {
    "libvirtd.conf": 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n',
    "qemu.conf": (
        'lock_manager = "sanlock"\nsecurity_driver = "none"\nuser = "root"\ngroup = "root"\n'
        "dynamic_ownership = 0\nremember_owner = 0\nnamespaces = []\ncgroup_controllers = []\n"
        'seccomp_sandbox = 0\nmax_core = 0\nstdio_handler = "file"\n'
    ),
}
SANLOCK_CONF: Final = (
    'auto_disk_leases = 1\ndisk_lease_dir = "{leases}"\nhost_id = 1\n'
    'require_lease_for_disks = 0\nio_timeout = 1\nuser = "root"\ngroup = "root"\n'
)
DOMAIN: Final = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""
LEASE: Final = """
<lease>
  <lockspace>{space}</lockspace>
  <key>{key}</key>
  <target path='{path}' offset='{offset}'/>
</lease>
"""
DISK: Final = """
<disk type='file' device='disk'>
  <driver name='qemu' type='raw'/>
  <source file='{path}'/>
  <target dev='vda' bus='virtio'/>
</disk>
"""


class LibvirtMissing(unittest.SkipTest):
    """libvirt, its sanlock plugin or qemu is not installed, or we are not root."""


def require_libvirt() -> None:
    """Raise LibvirtMissing when guests cannot be run here."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or not PLUGIN.exists():
        raise LibvirtMissing(f"not installed: {missing or PLUGIN}")
    if os.geteuid() != 0:
        raise LibvirtMissing("a mount namespace needs root")
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        raise LibvirtMissing(f"no mount namespace: {probe.stderr.strip()}")


class Said(NamedTuple):
    """What virsh answered."""

    status: int
    text: str


class Libvirt:
    """A libvirtd in a mount namespace of its own; a context manager that ends its guests too.

    `env` names the run directory of the lock daemon. Every disk gets a lease of its own.
    """

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        require_libvirt()
        self.directory = directory
        self.leases = directory / "leases"
        self.leases.mkdir(parents=True)
        places = {name: directory / name for name in OVER}
        for place in places.values():
            place.mkdir()
        for name, text in CONFIGURATION.items():
            (places["etc"] / name).write_text(text)
        conf = SANLOCK_CONF.format(leases=self.leases)
        (places["etc"] / "qemu-sanlock.conf").write_text(conf)
        self._log = directory / "libvirtd.log"
        self._process = self._start(places, env)
        try:
            wait_until(self._is_up, 40.0, "libvirtd answers")
        except BaseException:
            self.close()
            raise

    def _start(self, places: dict[str, Path], env: dict[str, str]) -> subprocess.Popen[bytes]:
        mounts = [f"mount --bind '{places[name]}' {target}" for name, target in OVER.items()]
        script = " && ".join(
            [
                "mount --make-rprivate /",
                *mounts,
                "mount -t tmpfs none /run",
                "exec libvirtd --config /etc/libvirt/libvirtd.conf",
            ]
        )
        with self._log.open("wb") as log:
            return subprocess.Popen(
                ["unshare", "-m", "sh", "-c", script],
                env={**env, "LIBVIRT_LOG_OUTPUTS": "3:stderr"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _is_up(self) -> bool:
        assert self._process.poll() is None, self.log()
        return self.virsh("list").status == 0

    def log(self) -> str:
        """Return what libvirtd wrote."""
        return self._log.read_text(errors="replace")

    def virsh(self, *words: str) -> Said:
        """Run a command of virsh in the namespace."""
        inside = ["nsenter", "-t", str(self._process.pid), "-m"]
        done = subprocess.run(
            [*inside, "virsh", "-q", "-c", "qemu:///system", *words],
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Said(done.returncode, (done.stdout + done.stderr).strip())

    def define(self, name: str, devices: str) -> None:
        """Define a guest."""
        file = self.directory / f"{name}.xml"
        file.write_text(DOMAIN.format(name=name, devices=devices))
        said = self.virsh("define", str(file))
        assert said.status == 0, said

    def pid(self, name: str) -> int:
        """Return the pid of a guest's qemu."""
        inside = ["nsenter", "-t", str(self._process.pid), "-m"]
        file = f"/run/libvirt/qemu/{name}.pid"
        done = subprocess.run([*inside, "cat", file], capture_output=True, text=True, check=True)
        return int(done.stdout)

    def close(self) -> None:
        """End the guests, then libvirtd."""
        if self._process.poll() is None:
            running = self.virsh("list", "--name", "--state-running", "--state-paused")
            for name in running.text.split() if running.status == 0 else ():
                self.virsh("destroy", name)
            self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def lease_xml(space: str, key: str, path: Path, offset: int) -> str:
    """Return an explicit lease of a guest."""
    return LEASE.format(space=space, key=key, path=path, offset=offset)


def disk_xml(path: Path) -> str:
    """Return a disk of a guest."""
    return DISK.format(path=path)
