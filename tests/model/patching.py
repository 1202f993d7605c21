"""The lease protocols with something taken out: fresh modules from edited source text."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import NamedTuple

_ORDER = ("delta", "disks", "liveness", "settle", "paxos", "leases")
_PACKAGE = "paxoslease.protocol."


class Patch(NamedTuple):
    """A text in a module of paxoslease.protocol, and what stands there instead."""

    module: str
    old: str
    new: str


def patched(module: str, *patches: Patch) -> ModuleType:
    """Return a copy of a protocol module in which it and what it is built on are patched.

    Every `old` must occur exactly once. The real modules are left as they are.
    """
    names = [_PACKAGE + name for name in _ORDER]
    real = {name: importlib.import_module(name) for name in names}
    try:
        for short, name in zip(_ORDER, names, strict=True):
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            with open(spec.origin, encoding="utf-8") as file:
                text = file.read()
            for patch in patches:
                if patch.module == short:
                    assert text.count(patch.old) == 1, f"{text.count(patch.old)} of {patch.old!r}"
                    text = text.replace(patch.old, patch.new)
            fresh = importlib.util.module_from_spec(spec)
            sys.modules[name] = fresh
            exec(compile(text, f"{spec.origin} (patched)", "exec"), fresh.__dict__)
        return sys.modules[_PACKAGE + module]
    finally:
        sys.modules.update(real)
