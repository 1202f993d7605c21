"""`paxoslease guard`: run a command under the locks of a driver, without libvirt.

The order is libvirt's: start a process that registers with the driver's daemon and waits, acquire
all locks in its name, let it become the command, watch over it, and act when a lock is lost. The
locks belong to the command's process: should this one be killed, the command goes on under its
locks, and frees them when it ends.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from paxoslease.cli.addresses import seconds, size, split_colons, whole_path
from paxoslease.cli.exits import EXIT_HELP, Exit
from paxoslease.cli.interrupts import interrupts
from paxoslease.cli.options import Help, add_json, add_wait
from paxoslease.cli.terminal import exit_code_of, terminal_back
from paxoslease.errors import ConfigError, PaxosleaseError

if TYPE_CHECKING:
    from paxoslease.drivers.base import Disk, Driver, ExplicitLease, Resource, Watch
    from paxoslease.drivers.domain import Domain
    from paxoslease.drivers.process import Order, OwnerProcess
    from paxoslease.drivers.supervisor import Supervisor

_ASK_AGAIN_S = 0.5
_RESTART_AGAIN_S = 3.0
# Beside those that `interrupts` passes on. Each of them would end this process.
_PASSED_ON = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ACTIONS = ("default", "poweroff", "restart", "pause", "ignore")


class _Plan(NamedTuple):
    """What is to be run, and how."""

    driver: Driver
    domain: Domain
    order: Order
    wait_s: float
    stop_after_s: float


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `guard`."""
    parser = commands.add_parser(
        "guard",
        help="run a command, such as a guest, under the locks of a lock driver",
        description="Register a process as owner with a lock driver's daemon, acquire the locks "
        "of a guest's disks and leases in its name, let it become COMMAND, act when a lock is "
        "lost, and exit as COMMAND did. The locks are COMMAND's: they are freed when it ends, and "
        "it keeps them if this command is killed. COMMAND should be the guest itself, in the "
        "foreground, not a script that starts it. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and "
        "SIGUSR2 are passed on to COMMAND. SIGCONT to this command resumes a guest that was "
        "paused.",
        epilog=EXIT_HELP + "\n  other: COMMAND's own; 128+N when signal N ended it",
        formatter_class=Help,
    )
    parser.add_argument(
        "--driver",
        required=True,
        metavar="NAME",
        help="paxos (leases through the lease daemon), fcntl (locks through the lock daemon, or "
        "virtlockd), nop (no locks at all), or one that is installed",
    )
    _add_guest(parser)
    parser.add_argument(
        "--on-lockfailure",
        choices=_ACTIONS,
        metavar="ACTION",
        help="what to do when a lock is lost: poweroff (SIGTERM, later SIGKILL; the default), "
        "restart (the same, and start it again when the locks are to be had), pause (SIGSTOP; QEMU "
        "too is stopped by the signal only), ignore; default: what the domain says",
    )
    parser.add_argument(
        "--stop-after",
        type=seconds,
        default=30.0,
        metavar="S",
        help="how long after SIGTERM SIGKILL follows when a lock is lost (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="options of the driver, in a file like qemu-lockd.conf or qemu-sanlock.conf",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the driver, before those of the file; may be given several times",
    )
    add_wait(parser)
    add_json(parser)
    parser.add_argument("argv", nargs="+", metavar="COMMAND", help="after --: what to run")
    parser.set_defaults(run=run)


def _add_guest(parser: argparse.ArgumentParser) -> None:
    """Add what says who the guest is and what it uses."""
    parser.add_argument(
        "--domain", metavar="FILE", help="the guest's definition, as `virsh dumpxml` prints it"
    )
    parser.add_argument("--name", metavar="NAME", help="the guest's name (default: COMMAND's)")
    parser.add_argument(
        "--disk",
        type=_disk,
        action="append",
        default=[],
        metavar="PATH[,shared|,readonly]",
        help="a disk to lock, beside those of the domain; may be given several times",
    )
    parser.add_argument(
        "--lease",
        type=_lease,
        action="append",
        default=[],
        metavar="LOCKSPACE:KEY:PATH[:OFFSET]",
        help="a lease to hold, beside those of the domain; may be given several times",
    )


def _disk(text: str) -> Disk:
    """Return PATH, PATH,shared or PATH,readonly; for argparse.

    The path is what is locked: a relative one would be another lock in each directory.
    """
    from paxoslease.drivers.base import Disk, Mode

    path, comma, word = text.rpartition(",")
    if comma and word in (Mode.SHARED.value, Mode.READONLY.value):
        return Disk(whole_path(path), Mode(word))
    return Disk(whole_path(text))


def _lease(text: str) -> ExplicitLease:
    """Return LOCKSPACE:KEY:PATH[:OFFSET]; for argparse."""
    from paxoslease.drivers.base import ExplicitLease

    parts = split_colons(text)
    if len(parts) not in (3, 4) or not all(parts[:3]):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not LOCKSPACE:KEY:PATH or LOCKSPACE:KEY:PATH:OFFSET "
            "(write a colon in a name or path as '\\:')"
        )
    lockspace, key, path, *offset = parts
    return ExplicitLease(lockspace, key, whole_path(path), size(offset[0]) if offset else 0)


def run(arguments: argparse.Namespace) -> int:
    """Run the command under its locks."""
    plan = _plan(arguments)
    plan.driver.prepare()
    watch = plan.driver.watch()
    with ExitStack() as stack:
        if watch is not None:
            stack.enter_context(watch)
            guest = plan.order.guest._replace(notify=watch.address)
            plan = plan._replace(order=plan.order._replace(guest=guest))
        return _lives(plan, watch)


def _plan(arguments: argparse.Namespace) -> _Plan:
    from paxoslease.drivers.base import FailureAction
    from paxoslease.drivers.domain import Domain, read_domain, uuid_of_name
    from paxoslease.drivers.process import Guest, Order
    from paxoslease.drivers.registry import open_driver, read_options

    program = shutil.which(arguments.argv[0])
    if program is None:
        raise ConfigError("COMMAND", f"'{arguments.argv[0]}' is no program that can be run")
    options: dict[str, Any] = {}
    if arguments.config is not None:
        if not os.path.exists(arguments.config):
            raise ConfigError("--config", f"there is no file {arguments.config}")
        options |= read_options(arguments.driver, arguments.config)
    options |= dict(_key_and_value(text) for text in arguments.option)
    driver = open_driver(arguments.driver, **options)
    name = arguments.name or os.path.basename(arguments.argv[0])
    domain = Domain(uuid_of_name(name), name, ())
    if arguments.domain is not None:
        if not os.path.exists(arguments.domain):
            raise ConfigError("--domain", f"there is no file {arguments.domain}")
        domain = read_domain(arguments.domain)
        if arguments.name is not None:
            domain = domain._replace(name=arguments.name)
    resources: tuple[Resource, ...] = (*domain.resources, *arguments.lease, *arguments.disk)
    action = FailureAction(arguments.on_lockfailure or domain.on_lockfailure.value)
    if action is FailureAction.DEFAULT:
        action = FailureAction.POWEROFF
    domain = domain._replace(resources=resources, on_lockfailure=action)
    order = Order(
        arguments.driver,
        options,
        Guest(domain.uuid, domain.name),
        action,
        program,
        arguments.argv[1:],
        foreground_of=os.getpid(),
    )
    return _Plan(driver, domain, order, arguments.wait, arguments.stop_after)


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError("--option", f"'{text}' is not KEY=VALUE")
    return key, value


def _lives(plan: _Plan, watch: Watch | None) -> int:
    """Run the command, again after each loss when that is wanted; return the exit code."""
    from paxoslease.drivers.base import FailureAction

    process = _acquired(plan, plan.wait_s)
    while True:
        lost, status = _one_life(plan, watch, process)
        if not lost:
            return exit_code_of(status)
        if plan.domain.on_lockfailure is not FailureAction.RESTART:
            _tell(f"{lost}; the command was stopped")
            return Exit.LOST
        interrupts.check()
        _tell("the command is started again as soon as its locks are to be had")
        process = _acquired_again(plan, watch)


def _one_life(plan: _Plan, watch: Watch | None, process: OwnerProcess) -> tuple[str, int]:
    """Let the command run; return why its locks were lost, if they were, and its status."""
    from paxoslease.drivers.supervisor import Supervisor

    with interrupts.deferred(), terminal_back():
        try:
            supervisor = Supervisor(
                plan.driver,
                process,
                plan.domain.resources,
                watch,
                action=plan.domain.on_lockfailure,
                stop_after_s=plan.stop_after_s,
                tell=_tell,
            )
            process.go()
        except BaseException:
            process.abandon()
            raise
        with interrupts.forwarded(supervisor), _other_signals(supervisor):
            status = supervisor.run()
        if supervisor.may_be_left and not supervisor.lost:
            _release(plan, process)
        return supervisor.lost, status


@contextmanager
def _other_signals(supervisor: Supervisor) -> Iterator[None]:
    """Resume a paused command at SIGCONT; pass on what else would leave a command unwatched."""
    before = {n: signal.signal(n, lambda n, _: supervisor.send_signal(n)) for n in _PASSED_ON}
    before[signal.SIGCONT] = signal.signal(signal.SIGCONT, lambda *_: supervisor.resume())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _release(plan: _Plan, process: OwnerProcess) -> None:
    """Release what the end of the command's own connection does not free."""
    try:
        plan.driver.release(process.owner, plan.domain.resources, want_state=False)
    except PaxosleaseError as error:
        _tell(f"warning: the locks may not be freed yet: {error}")


def _acquired(plan: _Plan, wait_s: float) -> OwnerProcess:
    """Start the command's process, with all its locks; wait for others as long as is wanted."""
    from paxoslease.drivers.errors import ResourceBusy
    from paxoslease.drivers.process import OwnerProcess

    until_s = time.monotonic() + wait_s
    process = OwnerProcess(plan.order)
    try:
        while True:
            try:
                plan.driver.acquire(
                    process.owner, plan.domain.resources, action=plan.domain.on_lockfailure
                )
                return process
            except ResourceBusy:
                if time.monotonic() + _ASK_AGAIN_S > until_s:
                    raise
            time.sleep(_ASK_AGAIN_S)
    except BaseException:
        process.abandon()
        raise


def _acquired_again(plan: _Plan, watch: Watch | None) -> OwnerProcess:
    """Do the same after a loss, however long it takes: until a signal ends it."""
    last = ""
    while True:
        try:
            plan.driver.prepare()
            if watch is not None:
                watch.forget()
            process = _acquired(plan, 0)
        except PaxosleaseError as error:
            if str(error) != last:
                last = str(error)
                _tell(f"not yet: {last}")
        else:
            return process
        time.sleep(_RESTART_AGAIN_S)


def _tell(sentence: str) -> None:
    sys.stderr.write(f"paxoslease: {sentence}\n")
    sys.stderr.flush()
