"""`paxoslease explain CODE`: what a number means that a log or another program showed."""

from __future__ import annotations

import argparse
import os
from typing import Any

from paxoslease import errors
from paxoslease.cli.exits import Exit
from paxoslease.cli.options import add_json
from paxoslease.cli.output import print_json
from paxoslease.wire.numbers import OWN_FIRST, all_numbers, meaning, name_of

# Numbers whose class depends on a field (errors.py), or that only appear inside other programs.
_OTHER: dict[int, type[errors.PaxosleaseError]] = {
    -202: errors.DiskTimeout,
    -210: errors.BadRecord,
    -211: errors.DiskError,
    -214: errors.BadRecord,
    -222: errors.BadRecord,
    -224: errors.BadRecord,
    -225: errors.BadRecord,
    -226: errors.BadRecord,
    -227: errors.BadRecord,
    -228: errors.BadRecord,
    -229: errors.BadRecord,
    -230: errors.BadRecord,
    -243: errors.LeaseHeld,
    -244: errors.LostRace,
    -245: errors.LostRace,
    -246: errors.LeaseHeld,
    -247: errors.LeaseHeld,
    -250: errors.ReleaseRefused,
    -251: errors.ReleaseRefused,
    -260: errors.RenewalRefused,
    -261: errors.RenewalRefused,
    -270: errors.BadRecord,
    -271: errors.BadRecord,
    -272: errors.RequestRefused,
    -273: errors.RequestRefused,
    -274: errors.BadRecord,
    -275: errors.BadRecord,
    -276: errors.BadRecord,
    -277: errors.BadRecord,
    -278: errors.RindexError,
}


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `explain`."""
    parser = commands.add_parser("explain", help="say what an error number means")
    parser.add_argument("code", type=int, metavar="CODE", help="such as -243 or 243")
    add_json(parser)
    parser.set_defaults(run=run)


def find(code: int) -> tuple[str, str, str] | None:
    """Return (name, meaning, hint) for a number, None for one that nothing produces."""
    code = -abs(code)
    found = _OTHER.get(code) or _by_number(code)
    if found is None and OWN_FIRST < code < 0:
        return os.strerror(-code), f"the system's error {-code}: {os.strerror(-code)}", ""
    if found is None and code in all_numbers():
        return name_of(code), _sentence(code), ""
    if found is None:
        return None
    text = (found.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")
    return found.__name__, text, found.hint


def _by_number(code: int) -> type[errors.PaxosleaseError] | None:
    candidates = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.PaxosleaseError)
    ]
    # The base has a number for what has none of its own, and says nothing.
    return next(
        (
            c
            for c in candidates
            if "number" in vars(c) and c.number == code and c is not errors.PaxosleaseError
        ),
        None,
    )


def _sentence(code: int) -> str:
    words = meaning(code)
    return f"{words[0].upper()}{words[1:]}."


def run(arguments: argparse.Namespace) -> int:
    """Print what a number means."""
    found = find(arguments.code)
    if found is None:
        raise errors.ConfigError("code", f"{arguments.code} is no error of paxoslease or sanlock")
    code = -abs(arguments.code)
    name, text, hint = found
    symbol = name_of(code)
    if arguments.json:
        said = {"code": code, "error": name, "meaning": text, "hint": hint}
        print_json({**said, "symbol": symbol, "in_sanlock": meaning(code)})
    else:
        print(f"{code} {name}: {text}")
        if code in all_numbers() and name != symbol:
            print(f"  in sanlock: {symbol}, {meaning(code)}")
        if hint:
            print(f"  hint: {hint}")
    return Exit.OK
