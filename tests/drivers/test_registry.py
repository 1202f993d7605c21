"""Drivers are found by name, and their options are checked before they are made."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from paxoslease.drivers.base import Disk, ExplicitLease, FailureAction, Mode, Owner
from paxoslease.drivers.errors import DriverUnknown, StateInvalid
from paxoslease.drivers.nop import NopDriver
from paxoslease.drivers.registry import driver_class, driver_names, open_driver, read_options
from paxoslease.errors import ConfigError

THIRD = """
from dataclasses import dataclass
from paxoslease.drivers.nop import NopDriver


@dataclass(frozen=True)
class Options:
    speed: int = 3
    place: str | None = None
    fast: bool = True


class ThirdDriver(NopDriver):
    name = "third"
    Options = Options

    def __init__(self, options):
        self.options = options


class NoDriver:
    pass
"""


@pytest.fixture
def third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a distribution with drivers of its own."""
    (tmp_path / "third_driver.py").write_text(THIRD)
    info = tmp_path / "third-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[paxoslease.drivers]\n"
        "third = third_driver:ThirdDriver\n"
        "none = third_driver:NoDriver\n"
        "gone = third_driver:Gone\n"
        "nop = third_driver:ThirdDriver\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("third_driver", None)


def test_our_drivers_are_installed() -> None:
    """The three drivers of this package are found like any other."""
    assert {"nop", "fcntl", "paxos"} <= set(driver_names())
    assert driver_class("nop") is NopDriver


def test_a_driver_of_a_third_party_is_found(third: None) -> None:
    """Its options arrive in their types, from text as from numbers."""
    driver = open_driver("third", speed="12", place="/x", fast=0)
    options = driver.options  # type: ignore[attr-defined]
    assert (options.speed, options.place, options.fast) == (12, "/x", False)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("none", "no subclass"),
        ("gone", "cannot be loaded"),
        ("nop", "claimed by"),
        ("missing", "not installed; there is"),
    ],
)
def test_what_is_no_driver_is_refused(third: None, name: str, word: str) -> None:
    """A name that leads nowhere, or to two places, opens nothing."""
    with pytest.raises(DriverUnknown, match=word):
        open_driver(name)


@pytest.mark.parametrize("options", [{"speed": "x"}, {"speed": True}, {"fast": "2"}, {"slow": 1}])
def test_options_of_another_type_are_refused(third: None, options: dict[str, object]) -> None:
    """What an option cannot be is an error, as is one that is not there."""
    with pytest.raises(ConfigError):
        open_driver("third", **options)


def test_options_are_read_from_a_file_of_libvirt(third: None, tmp_path: Path) -> None:
    """The grammar of *.conf: texts, numbers, comments; keys of others are passed over."""
    path = tmp_path / "qemu-third.conf"
    path.write_text('# a comment\n\n speed = 7\nplace = "/a b" # why\nuser = "root"\n')
    assert read_options("third", str(path)) == {"speed": 7, "place": "/a b"}
    assert read_options("third", str(tmp_path / "missing")) == {}
    path.write_text("speed = 7\nplace = /unquoted\n")
    with pytest.raises(ConfigError, match=":2: not of the form"):
        read_options("third", str(path))


OWNER = Owner(uuid4(), "guest", 1, os.getpid())


@pytest.mark.parametrize(
    "owner",
    [
        OWNER._replace(pid=0),
        OWNER._replace(pid=-5),
        OWNER._replace(id=0),
        OWNER._replace(name=""),
        OWNER._replace(name="a\0b"),
    ],
)
def test_owners_that_are_no_process_are_refused(owner: Owner) -> None:
    """Checks that all drivers share are made before a driver is asked."""
    with pytest.raises(ConfigError):
        open_driver("nop").acquire(owner)


@pytest.mark.parametrize(
    "resources",
    [
        [Disk("")],
        [Disk("/a\0b")],
        [Disk("/a"), Disk("/a", Mode.SHARED)],
        [ExplicitLease("l", "", "/p")],
        [ExplicitLease("l", "k", "/p", -1)],
    ],
)
def test_resources_that_cannot_be_are_refused(resources: list[Disk | ExplicitLease]) -> None:
    """No driver ever sees an empty path, a zero byte, or one resource twice."""
    with pytest.raises(ConfigError):
        open_driver("nop").acquire(OWNER, resources)


@pytest.mark.parametrize("state", ["a<b", "a&b", "a\nb", "x" * 70000])
def test_states_that_cannot_travel_are_refused(state: str) -> None:
    """libvirt puts a state into XML as it is."""
    with pytest.raises(StateInvalid):
        open_driver("nop").acquire(OWNER, state=state)


def test_nop_says_once_that_it_does_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning comes with the first use in a process, and never again."""
    monkeypatch.setattr(NopDriver, "_has_warned", False)
    for _ in range(3):
        driver = open_driver("nop")
        registration = driver.acquire(OWNER, [Disk("/a")], action=FailureAction.PAUSE)
        assert registration is not None
        assert registration.fileno() == -1
        assert driver.release(OWNER, [Disk("/a")]) is None
    assert [record.msg.split()[0] for record in caplog.records] == ["no_locks"]
    assert "nothing" in driver.description
