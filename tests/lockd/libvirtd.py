"""An unmodified libvirtd with tiny guests, in a mount namespace that hides the host's own libvirt.

Guests are emulated (TCG), have a disk and nothing to boot: their CPUs run, and that is what libvirt
takes locks for. Their disks are opened with `share-rw=on`, or QEMU's own image locks would refuse a
second guest before the lock manager is asked (spec/lock-drivers.md 14).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lockd.rig import LIMIT_S, await_that

_HIDDEN = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
_QEMU_CONF = """lock_manager = "lockd"
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
seccomp_sandbox = 0
"""
_LIBVIRTD_CONF = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'
_DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>{qemu}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{image}'/>
      <target dev='vda' bus='virtio'/>
      {shareable}
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <qemu:override><qemu:device alias='virtio-disk0'><qemu:frontend>
    <qemu:property name='share-rw' type='bool' value='true'/>
  </qemu:frontend></qemu:device></qemu:override>
</domain>
"""


class Libvirt:
    """A running libvirtd. `directory` holds what it believes to be the system's directories."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self._process = process

    def virsh(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run virsh; its words are in English."""
        prefix = ["nsenter", f"--target={self._process.pid}", "--mount", "--"]
        return subprocess.run(
            [*prefix, "virsh", "--quiet", "--connect", "qemu:///system", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "LC_ALL": "C"},
        )

    def done(self, *words: str) -> str:
        """Run virsh and let it succeed; return what it said."""
        result = self.virsh(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def refused(self, *words: str) -> str:
        """Run virsh and let it fail; return what it said."""
        result = self.virsh(*words)
        assert result.returncode != 0, result.stdout
        return result.stderr

    def domain(self, name: str, image: Path, *, shareable: bool = False) -> str:
        """Return the path of a guest's definition."""
        text = _DOMAIN.format(
            name=name,
            image=image,
            qemu=shutil.which("qemu-system-x86_64"),
            shareable="<shareable/>" if shareable else "",
        )
        path = self.directory / f"{name}.xml"
        path.write_text(text)
        return str(path)

    def pid(self, name: str) -> int:
        """Return the process of a running guest."""
        return int((self.directory / f"run/qemu/{name}.pid").read_text())

    def states(self) -> dict[str, str]:
        """Return the running and paused guests."""
        rows = [line.split(None, 2) for line in self.done("list").splitlines() if line.strip()]
        return {name: state.strip() for _, name, state in rows}


@contextmanager
def libvirtd(directory: Path, lockd_socket: Path, *options: str) -> Iterator[Libvirt]:
    """Give a libvirtd that takes its locks from the daemon behind a socket.

    options: lines of qemu-lockd.conf. Guests that are left at the end are killed.
    """
    if os.geteuid() != 0:
        pytest.skip("libvirtd at places of its own needs root")
    for program in ("libvirtd", "virsh", "qemu-system-x86_64", "unshare", "nsenter"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip(f"{program} is not installed")
    for name, hidden in _HIDDEN.items():
        (directory / name).mkdir()
        if not Path(hidden).is_dir():
            pytest.skip(f"there is no {hidden}")
    shutil.copytree("/etc/libvirt", directory / "etc", dirs_exist_ok=True)
    (directory / "etc/qemu.conf").write_text(_QEMU_CONF)
    (directory / "etc/libvirtd.conf").write_text(_LIBVIRTD_CONF)
    (directory / "etc/qemu-lockd.conf").write_text("".join(f"{option}\n" for option in options))
    (directory / "run/virtlockd-sock").symlink_to(lockd_socket)
    binds = " && ".join(f"mount --bind {directory}/{n} {h}" for n, h in _HIDDEN.items())
    script = f"{binds} && exec libvirtd -p {directory}/libvirtd.pid"
    log_path = directory / "libvirtd.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    with process:
        libvirt = Libvirt(directory, process)
        try:
            await_that(
                lambda: process.poll() is not None or (directory / "run/libvirt-sock").exists(),
                "libvirtd listens",
            )
            if process.poll() is not None:
                pytest.skip(f"libvirtd does not run here: {log_path.read_text()[-300:]}")
            libvirt.done("version")
            yield libvirt
        finally:
            # Guests live on without libvirtd.
            for path in (directory / "run/qemu").glob("*.pid"):
                _kill(int(path.read_text()))
            process.terminate()
            try:
                process.wait(LIMIT_S)
            finally:
                process.kill()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
