"""An unmodified libvirtd on a machine of its own, and tiny guests.

Guests are emulated (TCG), have 32 MiB, no network and no graphics, and nothing to boot: their CPUs
run, and that is what libvirt takes locks for. Their first virtio disk is opened with
`share-rw=on`, or QEMU's own image locks would refuse a second guest before the lock manager is
asked (spec/lock-drivers.md 14). Nothing of paxoslease is imported here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.compat.peer import wait_until
from tests.guests.machine import Machine, require_libvirt

LIMIT_S: Final = 60.0
_LIBVIRTD_CONF: Final = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\nhost_uuid = "{uuid}"\n'
_QEMU_CONF: Final = """lock_manager = "{manager}"
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
seccomp_sandbox = 0
max_core = 0
"""
_DOMAIN: Final = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  {on_lockfailure}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {devices}
    <controller type='usb' model='none'/>
    <controller type='scsi' model='virtio-scsi'/>
    <memballoon model='none'/>
  </devices>
  {extra}
</domain>
"""
_SHARE_RW: Final = """<qemu:override><qemu:device alias='virtio-disk0'><qemu:frontend>
    <qemu:property name='share-rw' type='bool' value='true'/>
  </qemu:frontend></qemu:device></qemu:override>"""
_BALLAST: Final = """<qemu:commandline><qemu:arg value='-device'/>
    <qemu:arg value='loader,file={path},addr=0x400000,force-raw=on'/></qemu:commandline>"""
_DISK: Final = """<disk type='file' device='disk'>
  <driver name='qemu' type='raw'/>
  <source file='{path}'/>
  <target dev='{target}' bus='{bus}'/>
  {mode}
</disk>
"""
_LEASE: Final = """<lease>
  <lockspace>{space}</lockspace>
  <key>{key}</key>
  <target path='{path}' offset='{offset}'/>
</lease>
"""


class Libvirt:
    """A running libvirtd; a context manager that ends its guests too.

    manager: "lockd" or "sanlock"; options: lines of its qemu-MANAGER.conf. env: what libvirtd has
    in its environment, such as where the lease daemon's run directory is. The machine is not
    closed with it.
    """

    def __init__(
        self,
        machine: Machine,
        manager: str,
        options: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        require_libvirt(manager)
        self.machine = machine
        self.directory = machine.directory
        etc = self.directory / "etc"
        host = uuid.uuid5(uuid.NAMESPACE_DNS, machine.name)
        (etc / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(uuid=host))
        (etc / "qemu.conf").write_text(_QEMU_CONF.format(manager=manager))
        (etc / f"qemu-{manager}.conf").write_text(options)
        self._env = {**os.environ, **(env or {}), "LC_ALL": "C"}
        self._log_path = self.directory / "libvirtd.log"
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log_path.open("ab") as log:
            process = subprocess.Popen(
                [*self.machine.prefix, "libvirtd", "-f", "/etc/libvirt/libvirtd.conf"],
                env={**self._env, "LIBVIRT_LOG_OUTPUTS": "3:stderr"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def is_up() -> bool:
            assert process.poll() is None, self.log()
            return self.virsh("list").returncode == 0

        try:
            # A lockspace is joined first.
            wait_until(is_up, LIMIT_S, "libvirtd answers")
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    @property
    def uri(self) -> str:
        """Return where libvirtds of other machines find this one."""
        return f"qemu+unix:///system?socket={self.directory / 'run/libvirt-sock'}"

    def log(self) -> str:
        """Return what libvirtd wrote."""
        return self._log_path.read_text(errors="replace")

    def _command(self, words: Sequence[str]) -> list[str]:
        return [*self.machine.prefix, "virsh", "-q", "-c", "qemu:///system", *words]

    def virsh(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run virsh on the machine; its words are in English."""
        return subprocess.run(
            self._command(words), capture_output=True, text=True, timeout=LIMIT_S, env=self._env
        )

    @contextmanager
    def virsh_started(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Start virsh, with pipes to what it prints; it is gone at the end of the block."""
        with subprocess.Popen(
            self._command(words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._env,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def done(self, *words: str) -> str:
        """Run virsh and let it succeed; return what it said."""
        result = self.virsh(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def refused(self, *words: str) -> str:
        """Run virsh and let it fail; return what it said."""
        result = self.virsh(*words)
        assert result.returncode != 0, result.stdout
        return result.stderr.strip()

    def domain(
        self,
        name: str,
        devices: str,
        on_lockfailure: str = "",
        *,
        share_rw: bool = True,
        ballast: Path | None = None,
    ) -> str:
        """Return the path of a guest's definition.

        devices: of disk_xml and lease_xml. share_rw: for the first virtio disk; there must be one.
        ballast: a file of at most 24 MiB that is in the guest's memory.
        """
        action = f"<on_lockfailure>{on_lockfailure}</on_lockfailure>" if on_lockfailure else ""
        extra = _BALLAST.format(path=ballast) if ballast else ""
        extra += _SHARE_RW if share_rw else ""
        text = _DOMAIN.format(
            name=name,
            uuid=uuid.uuid5(uuid.NAMESPACE_DNS, name),
            devices=devices,
            on_lockfailure=action,
            extra=extra,
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
    def stopped(self) -> Iterator[None]:
        """Let libvirtd stand still; its guests run on."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """End libvirtd and start it anew, which guests do not notice."""
        self._end()
        self._process = self._start()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(LIMIT_S)
        finally:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the guests and libvirtd."""
        # Guests live on without libvirtd.
        for path in (self.directory / "run/qemu").glob("*.pid"):
            try:
                os.kill(int(path.read_text()), signal.SIGKILL)
            except (ProcessLookupError, FileNotFoundError):
                continue  # it ends, or has just ended
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def disk_xml(path: Path, target: str = "vda", *, mode: str = "") -> str:
    """Return a disk of a guest. mode: "shareable" or "readonly"."""
    bus = "virtio" if target.startswith("v") else "scsi"
    return _DISK.format(path=path, target=target, bus=bus, mode=f"<{mode}/>" if mode else "")


def lease_xml(space: str, key: str, path: Path, offset: int) -> str:
    """Return an explicit lease of a guest."""
    return _LEASE.format(space=space, key=key, path=path, offset=offset)
