"""Every mistake seeded into the protocols is caught, and the unchanged package is not.

Quick checks run always. Those that take longer, and a fresh search by random seeds, run with
`make check-long`; the rules that only those show are also in tests/model/test_rules.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.patching import ROOT, Mutant, apply, mutants

MUTANTS = mutants()
SEARCH_S = 60
EXCLUSION_RULES = (1, 2, 3, 4, 5, 7, 8, 9, 10, 12, 13, 17, 19, 20, 21, 22, 23, 25)


def run(check: str, *options: str, package: Path = ROOT, timeout_s: float = 600) -> tuple[int, str]:
    """Run a check in a process of its own against the package in a directory."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.mutants.checks", *options, check],
        env={**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"},
        cwd=package,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout.strip() + done.stderr.strip()


def caught(mutant: Mutant, directory: Path, *options: str) -> None:
    """Apply a mutant to a copy of the package and see its check find it."""
    apply(mutant, directory)
    status, said = run(mutant.check, *options, package=directory)
    assert status == 0, f"{mutant.name} ({mutant.what}) is not caught by {mutant.check!r}: {said}"


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.is_quick], ids=lambda m: m.name)
def test_a_mistake_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    """With this check, wait or rule taken out, what it was for goes wrong."""
    caught(mutant, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mutant", [m for m in MUTANTS if not m.is_quick], ids=lambda m: m.name)
def test_a_mistake_is_caught_with_patience(mutant: Mutant, tmp_path: Path) -> None:
    """The same for mistakes that need a longer search."""
    caught(mutant, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "mutant", [m for m in MUTANTS if m.check.startswith("seeds")], ids=lambda m: m.name
)
def test_a_mistake_is_caught_by_other_seeds(mutant: Mutant, tmp_path: Path) -> None:
    """Seeds that nobody has seen before catch it within a minute."""
    caught(mutant, tmp_path, "--search", str(SEARCH_S))


@pytest.mark.parametrize(
    "check", sorted({m.check for m in MUTANTS if m.check.startswith(("story", "schedule"))})
)
def test_the_package_passes_what_catches_mistakes(check: str) -> None:
    """Without a mistake the same scenario ends well."""
    status, said = run(check)
    assert (status, said) == (1, "")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "check", sorted({m.check for m in MUTANTS if m.check.startswith(("explore", "host id"))})
)
def test_the_package_passes_the_searches_that_catch_mistakes(check: str) -> None:
    """Without a mistake the same search finds nothing (seeds are in tests/sim/test_seeds.py)."""
    status, said = run(check, timeout_s=3000)
    assert (status, said) == (1, "")


def test_there_is_a_mistake_for_every_rule_of_exclusion() -> None:
    """At least twenty mistakes, among them one per rule that protects exclusion."""
    assert len(MUTANTS) >= 20
    rules = {rule.strip() for mutant in MUTANTS for rule in mutant.rule.split(",")}
    assert {f"M{number}" for number in EXCLUSION_RULES} <= rules


def test_the_table_of_mistakes_is_current() -> None:
    """docs/verification.md lists every mistake as its patch states it."""
    rows = [f"| {m.name} | {m.rule} | {m.what} | `{m.check}` | {m.shows} |" for m in MUTANTS]
    text = (ROOT / "docs" / "verification.md").read_text(encoding="utf-8")
    listed = [line for line in text.split("### Mistakes seeded")[1].splitlines() if "`" in line]
    assert [line for line in listed if line.startswith("| ")] == rows
