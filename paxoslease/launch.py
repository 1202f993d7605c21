"""Start a command so that it cannot outlive the one who holds its leases.

Run as a program between fork and exec, because in a process with threads nothing of Python may run
there: `python launch.py PARENT COMMAND ARGUMENT ...`. When the parent dies, even by SIGKILL, the
kernel kills the command: nobody would renew its leases. On a terminal the command comes to the
foreground, so that it can read, and so that Ctrl-C and Ctrl-Z reach it and not its keeper.
"""

import ctypes
import os
import signal
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def come_to_foreground(parent: int) -> None:
    """Take the terminal over from the parent, if it has one and is in the foreground."""
    try:
        if os.tcgetpgrp(0) != os.getpgid(parent):
            return
    except OSError:  # standard input is no terminal of ours
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    os.tcsetpgrp(0, os.getpgrp())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})


def restore_signals() -> None:
    """Undo what Python changed for itself: the command must find it as it was."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def become(program: str, arguments: list[str]) -> NoReturn:
    """Turn this process into the command, or end it with status 126."""
    try:
        os.execv(program, [program, *arguments])
    except OSError as error:
        sys.stderr.write(f"paxoslease: {program} cannot be run: {error.strerror}\n")
        sys.exit(126)


def main() -> None:
    """Set up this process and become the command."""
    restore_signals()
    parent, program, *arguments = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGKILL)
    come_to_foreground(int(parent))
    become(program, arguments)


if __name__ == "__main__":
    main()
