"""What tests with guests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Give a small disk image."""
    return make_image(tmp_path / "a.img")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Give another one."""
    return make_image(tmp_path / "b.img")


def make_image(path: Path) -> Path:
    """Make a small disk image."""
    path.write_bytes(bytes(1 << 20))
    return path
