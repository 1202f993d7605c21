"""sanlock's command line: which words are options, and what is said of those that are not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from paxoslease.cli.sanlock.grammar import BadCommandLine, parse_options
from paxoslease.cli.sanlock.main import main

SIZES = "Use one of: 512/1M, 4096/1M, 4096/2M, 4096/4M, 4096/8M.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-Z"], "option 'Z' requires arg\n"),
        (["-k"], "option 'k' requires arg\n"),
        (["-c"], "option 'c' requires arg\n"),
        (["-k", "1"], "unknown option: k\n"),
        (["--x"], "unknown option --x\nspace required before option value\n"),
        (["-Dx"], "unknown option -Dx\nspace required before option value\n"),
        (["x"], "unknown option x\nspace required before option value\n"),
        (["-"], "unknown option -\nspace required before option value\n"),
        (
            ["-A", "2M"],
            f"Invalid sector_size/align_size combination (0/2097152)\n{SIZES}",
        ),
        (
            ["-Z", "512", "-A", "2M"],
            f"Invalid sector_size/align_size combination (512/2097152)\n{SIZES}",
        ),
    ],
)
def test_refused(
    words: Sequence[str], said: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A command line that cannot be understood ends the program, with the original's words."""
    assert main([b"client", b"gets", *map(str.encode, words)]) == 1
    assert capfdbinary.readouterr().out == said.encode()


def test_resources_left_out(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A resource that cannot be read, and a ninth one, is left out, and the program goes on."""
    words = [b"-r", b"x", b"-r", b"a:b:c", *[b"-r", b"L:R"] * 10]
    options = parse_options(words)
    assert len(options.resources) == 8
    said = b"resource arg parse error -6\n\nresource arg parse error -1\n\n"
    assert capfdbinary.readouterr().out == said + b"resource args over max 8\n" * 2


def test_values() -> None:
    """The last value counts, except one that is no value; the rest behind -c is a program."""
    words = b"-p 0x7 -p 7x -o 5 -o 0 -A 1M -A 3M -Z 512 -D -c /bin/x -D -p 3".split()
    options = parse_options(words)
    assert options.number("p", -1) == 7
    assert options.number("n", -1) == -1
    assert options.io_timeout == 5
    assert options.size_flags == 0x110
    assert options.is_detailed
    assert options.program == [b"/bin/x", b"-D", b"-p", b"3"]


def test_half_of_the_sizes() -> None:
    """A sector size alone passes here; whoever gets its flag refuses it."""
    assert parse_options([b"-Z", b"4096"]).size_flags == 0x200
    assert parse_options([b"-Z", b"77"]).size_flags == 0


def test_bad_command_line_is_an_exception() -> None:
    """Whoever parses is told that nothing came of it."""
    with pytest.raises(BadCommandLine):
        parse_options([b"x"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 0, "Usage:\n"),
        (["help"], 0, "Usage:\n"),
        (["-h"], 0, "Usage:\n"),
        (["client"], 1, "Usage:\n"),
        (["direct"], 1, "Usage:\n"),
        (["version"], 0, "3.8.5\n"),
        (["client", "foo"], 1, 'client action "foo" is unknown\n'),
        (["foo"], 1, 'client action "foo" is unknown\n'),
        (["direct", "foo"], 1, 'direct action "foo" is unknown\n'),
        (["direct", "dump"], 1, ""),
        (["direct", "next_free"], 1, ""),
    ],
)
def test_commands(
    words: Sequence[str], code: int, said: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The first word says what is meant, and a client action is meant when it says nothing."""
    assert main([*map(str.encode, words)]) == code
    out = capfdbinary.readouterr().out.decode()
    assert out.startswith(said) if said == "Usage:\n" else out == said
