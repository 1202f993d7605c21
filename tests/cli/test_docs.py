"""The manual of the command is what the command line's definition says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_manual_is_fresh() -> None:
    """docs/cli.md is what its generator writes."""
    command = [sys.executable, "tools/generate_cli_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_argument_is_explained() -> None:
    """No argument in the manual lacks its meaning."""
    page = (ROOT / "docs" / "cli.md").read_text()
    assert not re.findall(r"^\| `[^`]+` \| +\|$", page, re.MULTILINE)
    assert page.count("\n## `paxoslease ") >= 14
