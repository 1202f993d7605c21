"""Make random calls by hand: python -m tests.daemon.calls PLAY SEED CALLS.

Prints every call on which the two sides differ for no known reason, and how often each known one
was met.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.daemon.calls.plays import play


def main(kind: str, seed: int, calls: int) -> None:
    """Play once."""
    with tempfile.TemporaryDirectory(prefix="calls") as directory:
        found = play(kind, seed, calls, Path(directory))
    for finding in found:
        if not finding.why:
            print(finding)
    print(dict(Counter(finding.why for finding in found)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
