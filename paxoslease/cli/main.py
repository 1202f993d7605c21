"""The `paxoslease` command: its argument definition and how commands are found and ended."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from paxoslease import __version__
from paxoslease.cli.exits import EXIT_HELP, Exit, exit_of
from paxoslease.cli.interrupts import Interrupted, interrupts
from paxoslease.cli.logs import log_to_stderr
from paxoslease.cli.options import Help
from paxoslease.cli.output import UsageError, error_as_json, print_error, print_json
from paxoslease.errors import PaxosleaseError

# Each module has add_parser(subparsers); a command's run(arguments) -> int is imported with it.
_COMMANDS = (
    "format_command",
    "index_commands",
    "inspect_command",
    "check_command",
    "run_command",
    "guard_command",
    "bench_command",
    "demo_command",
    "simulate_command",
    "explain_command",
    "daemon_command",
    "control_commands",
    "lockspace_commands",
    "lease_commands",
    "lockd_command",
)

_DESCRIPTION = """Locks for virtual machines, and for anything else that must run at most once, on
storage that several hosts share: Disk Paxos leases, byte-compatible with sanlock."""


class _Parser(argparse.ArgumentParser):
    """A parser that suggests what may have been meant."""

    def error(self, message: str) -> NoReturn:
        suggestion = self._suggestion(message)
        advice = (
            f"did you mean '{suggestion}'?"
            if suggestion
            else f"`{self.prog} --help` shows what can be given"
        )
        raise UsageError(self.prog, message, advice)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse what is not known here, where the options that were meant are known."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def _suggestion(self, message: str) -> str:
        wrong = message.split("invalid choice: ", 1)
        if len(wrong) == 2:
            typed = wrong[1].split("'")[1]
            return next(iter(difflib.get_close_matches(typed, self._choices())), "")
        if message.startswith("unrecognized arguments: "):
            typed = message.split(": ", 1)[1].split()[0]
            options = [o for action in self._actions for o in action.option_strings]
            return next(iter(difflib.get_close_matches(typed, options)), "")
        return ""

    def _choices(self) -> list[str]:
        return [str(c) for action in self._actions for c in (action.choices or ())]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command; the manual is made from it too."""
    parser = _Parser(
        prog="paxoslease",
        description=_DESCRIPTION,
        epilog=EXIT_HELP,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"paxoslease {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        importlib.import_module(f"paxoslease.cli.{module}").add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None, *, ends_process: bool = False) -> int:
    """Run the command. Returns its exit code; see `exits.py`."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parsed = build_parser().parse_args(words)
    except UsageError as error:
        # What a parser has read so far is lost with its error.
        own = words[: words.index("--")] if "--" in words else words
        _print_usage_error(error, as_json="--json" in own)
        return Exit.USAGE
    if not getattr(parsed, "has_own_log", False):
        log_to_stderr()
    as_json = getattr(parsed, "json", False)
    try:
        with interrupts.caught(ends_process=ends_process):
            code: int = parsed.run(parsed)
            sys.stdout.flush()
            return code
    except PaxosleaseError as error:
        print_error(error, as_json=as_json, command=_name_of(parsed))
        return exit_of(error)
    except Interrupted as interrupted:
        sys.stderr.write("paxoslease: interrupted\n")
        return interrupted.exit_code
    except BrokenPipeError:
        # The reader of our output is gone; end as if the signal had not been ignored by Python.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.raise_signal(signal.SIGPIPE)
        return Exit.FAILED
    except OSError as error:
        _print_os_error(error, as_json=as_json)
        return Exit.FAILED


def _name_of(parsed: argparse.Namespace) -> str:
    """Return the command as it is typed."""
    return " ".join(filter(None, ("paxoslease", parsed.command, getattr(parsed, "subject", ""))))


def _print_usage_error(error: UsageError, *, as_json: bool) -> None:
    if as_json:
        print_json(error_as_json(error))
    else:
        sys.stderr.write(f"{error}\n  hint: {error.advice}\n")


def _print_os_error(error: OSError, *, as_json: bool) -> None:
    """Print what no command expected of the system."""
    message = error.strerror or str(error)
    if error.filename is not None:
        message = f"{os.fsdecode(error.filename)}: {message}"
    if as_json:
        code = -(error.errno or 0)
        print_json({"error": "OSError", "code": code, "message": message, "hint": ""})
    else:
        sys.stderr.write(f"paxoslease: {message}\n")


def run_and_exit() -> NoReturn:
    """Run the command as a process; the entry point."""
    sys.exit(main(ends_process=True))


if __name__ == "__main__":
    run_and_exit()
