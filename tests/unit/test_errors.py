"""Errors: every class has a message that can be read, a number and a hint."""

from __future__ import annotations

import dataclasses
import inspect
import pickle

import pytest

from paxoslease import errors
from paxoslease.errors import (
    BadRecord,
    DiskError,
    DiskTimeout,
    LeaseHeld,
    LostRace,
    PaxosleaseError,
    ReleaseRefused,
    RenewalRefused,
    StorageError,
    WaitTimeout,
)

ABSTRACT = {"PaxosleaseError", "StorageError", "LeaseError", "LockspaceError"}
CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, PaxosleaseError) and cls.__name__ not in ABSTRACT
]
SAMPLES: dict[str, object] = {
    "bytes": b"na\xffme\0tail",
    "str": "/dev/x",
    "int": 7,
    "bool": True,
    "object": "0x1",
    "tuple[int, ...]": (1, 2),
    "PaxosleaseError": errors.Cancelled(),
    "StorageError": DiskError("/dev/x", 1, "read", 5, "EIO"),
}


def sample(cls: type[PaxosleaseError]) -> PaxosleaseError:
    if not dataclasses.is_dataclass(cls):
        return cls()
    values = {
        f.name: -270 if f.name.startswith("number_of") else SAMPLES[str(f.type)]
        for f in dataclasses.fields(cls)
    }
    made = cls(**values)
    assert isinstance(made, PaxosleaseError)
    return made


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_speaks(cls: type[PaxosleaseError]) -> None:
    """Message, number and hint exist, without a field left unfilled; names are shown as text."""
    error = sample(cls)
    message = str(error)
    assert message
    assert not set("{}") & set(message)
    assert "b'" not in message
    assert isinstance(error.code, int)
    assert error.code < 0
    assert isinstance(error.hint, str)
    assert cls is errors.Cancelled or cls.hint


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_can_be_raised_and_told_apart(cls: type[PaxosleaseError]) -> None:
    """An error keeps its fields when raised; two of the same content are still two."""
    first, second = sample(cls), sample(cls)
    with pytest.raises(cls) as caught:
        raise first
    assert caught.value is first
    assert first != second


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_crosses_processes(cls: type[PaxosleaseError]) -> None:
    """An error survives pickling, as a pool of workers needs it."""
    error = sample(cls)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)


def test_numbers_that_depend_on_fields() -> None:
    """Where sanlock has two numbers for one thing, the fields decide."""
    held = LeaseHeld(b"ls", b"r", 7, b"h", 1, 4, 9, True)
    assert held.code == -243
    held.alive = False
    assert held.code == -247
    assert LostRace(b"ls", b"r", 7, 1, 4, committed_by_us=True).code == -245
    assert LostRace(b"ls", b"r", 7, 1, 4, committed_by_us=False).code == -244
    assert ReleaseRefused(b"ls", b"r", 3, 4, 7).code == -250
    assert ReleaseRefused(b"ls", b"r", 4, 4, 7).code == -251
    assert RenewalRefused(b"ls", 1, other_owner=True).code == -260
    assert RenewalRefused(b"ls", 1, other_owner=False).code == -261
    assert DiskTimeout("/x", 0, "read", 1).code == -202
    assert DiskError("/x", 0, "read", 28, "ENOSPC").code == -28
    assert WaitTimeout(b"ls", b"r", 5, held).code == -247
    assert BadRecord("/x", 0, "r", "f", 1, 2, -229).code == -229


def test_a_held_lease_says_who_and_until_when() -> None:
    """The message of a held lease names the host and what is known of its life."""
    alive = LeaseHeld(b"ls", b"disk-1", 7, b"alpha", 2, 41, 9, True)
    assert "host 7 (alpha)" in str(alive)
    assert "version 41, which is alive" in str(alive)
    dying = LeaseHeld(b"ls", b"disk-1", 7, b"alpha", 2, 41, 9, False, 3_500_000, 12_000_000)
    assert "not renewed for 3.5 s, can be taken over in 12.0 s" in str(dying)


def test_a_storage_error_is_caught_as_one() -> None:
    """What went wrong with a disk is a StorageError, whatever it was."""
    for cls in (DiskTimeout, DiskError, BadRecord, errors.UnsuitableDevice, errors.DeviceInUse):
        assert issubclass(cls, StorageError)
    assert not issubclass(errors.DecisionStale, StorageError)
