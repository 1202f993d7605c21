"""The grammar of sanlock's command line: one dash, one letter, and the value as the next word.

All actions have the same options; one that an action does not use is ignored. Numbers are read
leniently. What is wrong with the command line ends the program at once, except for a resource that
cannot be read, which is left out.

Source: spec/cli.md 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from paxoslease.cli.sanlock.output import say
from paxoslease.cli.sanlock.strings import (
    ResourceUnreadable,
    parse_lockspace,
    parse_resource,
    parse_rindex,
)
from paxoslease.lenient import to_int, to_unsigned
from paxoslease.wire.sanlock import RESOURCES_MAX, Lockspace, Resource, Rindex, flags_of_sizes

_LETTERS: Final = frozenset(b"QRHLSFatwhlobnmpigedfsrxUGOPuzZA")
_ALIGN_SIZES: Final = {b"1M": 1 << 20, b"2M": 2 << 20, b"4M": 4 << 20, b"8M": 8 << 20}
_LEGAL_SIZES: Final = frozenset(
    ((512, 1 << 20), (4096, 1 << 20), (4096, 2 << 20), (4096, 4 << 20), (4096, 8 << 20))
)


class BadCommandLine(Exception):
    """The command line cannot be understood; why has been said."""


class Options:
    """What the options of a command line say.

    `words` holds the value of each letter, the last one given; `program` what stands behind -c.
    """

    def __init__(self) -> None:
        self.words: dict[str, bytes] = {}
        self.is_detailed = False
        self.lockspace = Lockspace(b"")
        self.rindex = Rindex(b"", Lockspace(b"").disk)
        self.resources: list[Resource] = []
        self.program: list[bytes] | None = None
        self.sector_size = 0
        self.align_size = 0
        self.io_timeout = 0

    def has(self, letter: str) -> bool:
        """Tell whether an option was given."""
        return letter in self.words

    def text(self, letter: str) -> bytes:
        """Return the value of an option, empty when it was not given."""
        return self.words.get(letter, b"")

    def number(self, letter: str, default: int = 0) -> int:
        """Return the value of an option as a 32-bit number."""
        return to_int(self.words[letter]) if letter in self.words else default

    def unsigned(self, letter: str) -> int:
        """Return the value of an option as a 64-bit number, decimal, hexadecimal or octal."""
        return to_unsigned(self.text(letter))

    @property
    def size_flags(self) -> int:
        """Return the flags for the sector and align size given; half of them for half of that."""
        if self.align_size:
            return flags_of_sizes(self.sector_size, self.align_size)
        return {512: 0x100, 4096: 0x200}.get(self.sector_size, 0)


def parse_options(words: Sequence[bytes]) -> Options:
    """Read the options of any action. Raises BadCommandLine after saying why."""
    options = Options()
    at = 0
    while at < len(words):
        word = words[at]
        if len(word) != 2 or word[:1] != b"-":
            say(b"unknown option " + word)
            say(b"space required before option value")
            raise BadCommandLine
        letter = word[1:].decode("latin-1")
        at += 1
        if letter == "D":
            options.is_detailed = True
            continue
        if at == len(words):
            say(b"option '" + word[1:] + b"' requires arg")
            raise BadCommandLine
        if letter == "c":
            options.program = list(words[at:])
            break
        if word[1] not in _LETTERS:
            say(b"unknown option: " + word[1:])
            raise BadCommandLine
        _take(options, letter, words[at])
        at += 1
    _check_sizes(options)
    return options


def _take(options: Options, letter: str, value: bytes) -> None:
    options.words[letter] = value
    if letter == "s":
        options.lockspace = parse_lockspace(value)
    elif letter == "x":
        options.rindex = parse_rindex(value)
    elif letter == "r":
        _take_resource(options, value)
    elif letter == "Z":
        options.sector_size = to_int(value)
    elif letter == "A":
        options.align_size = _ALIGN_SIZES.get(value, options.align_size)
    elif letter == "o":
        options.io_timeout = to_int(value) or options.io_timeout


def _take_resource(options: Options, value: bytes) -> None:
    if len(options.resources) >= RESOURCES_MAX:
        say(b"resource args over max %d" % RESOURCES_MAX)
        return
    try:
        options.resources.append(parse_resource(value))
    except ResourceUnreadable as error:
        say(b"resource arg parse error %d" % error.number)
        say(b"")


def _check_sizes(options: Options) -> None:
    pair = (options.sector_size, options.align_size)
    if options.align_size and pair not in _LEGAL_SIZES:
        say(b"Invalid sector_size/align_size combination (%d/%d)" % pair)
        say(b"Use one of: 512/1M, 4096/1M, 4096/2M, 4096/4M, 4096/8M.")
        raise BadCommandLine
