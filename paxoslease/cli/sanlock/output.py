"""Where the drop-in's lines go: standard output, messages of errors too, each line at once.

The original's lines stay in a buffer until it ends when standard output is no terminal, and are
lost when it is replaced by another program; nobody can depend on a line that does not come.
"""

from __future__ import annotations

import sys


def say(line: bytes) -> None:
    """Print a line."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def say_many(text: bytes) -> None:
    """Print a text as it is."""
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()
