"""Drivers by name: those of this package, and those that other distributions bring.

A driver is an entry point of the group `paxoslease.drivers` whose value is a subclass of
`base.Driver`. Its class attribute `Options` is a frozen dataclass of what can be configured; the
driver is called with one of those. What is configured comes as keywords from programs, or from a
file in the grammar of libvirt's *.conf files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any, Final, get_type_hints

from paxoslease.drivers.base import Driver
from paxoslease.drivers.errors import DriverUnknown
from paxoslease.errors import ConfigError

GROUP: Final = "paxoslease.drivers"
_CONFIG_BYTES_MAX: Final = 1 << 20
_LINE = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?:"([^"]*)"|([0-9]+))\s*(?:#.*)?')


def driver_names() -> list[str]:
    """Return the names of all drivers that are installed."""
    return sorted({entry.name for entry in metadata.entry_points(group=GROUP)})


def driver_class(name: str) -> type[Driver]:
    """Return the class of a driver. Raises DriverUnknown."""
    found = [entry for entry in metadata.entry_points(group=GROUP) if entry.name == name]
    if not found:
        known = ", ".join(driver_names()) or "none"
        raise DriverUnknown(name, f"not installed; there is {known}")
    if len({entry.value for entry in found}) > 1:
        homes = " and ".join(sorted(entry.value for entry in found))
        raise DriverUnknown(name, f"the name is claimed by {homes}")
    try:
        loaded = found[0].load()
    except (ImportError, AttributeError) as error:
        raise DriverUnknown(name, f"{found[0].value} cannot be loaded: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Driver)):
        raise DriverUnknown(name, f"{found[0].value} is no subclass of Driver")
    return loaded


def open_driver(name: str, **options: Any) -> Driver:
    """Make a driver by its name, with options as its `Options` dataclass has them.

    Nothing is sent anywhere yet. Raises DriverUnknown, ConfigError.
    """
    kind = driver_class(name)
    return kind(kind.Options(**_checked(name, kind.Options, options)))


def _checked(driver: str, kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in their types: from a file or a command line comes text or a number."""
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in fields(kind)}
    checked: dict[str, Any] = {}
    for key, value in options.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(key, f"driver {driver} has no such option; it has {listed}")
        checked[key] = _converted(key, known[key], value)
    return checked


def _converted(key: str, kind: Any, value: Any) -> Any:
    """Return a value in an option's type: bool, int, str or any of these with None."""
    wanted = next(one for one in getattr(kind, "__args__", (kind,)) if one is not type(None))
    if value is None:
        return None
    if wanted is bool:
        if str(value).lower() in ("0", "no", "false"):
            return False
        if str(value).lower() in ("1", "yes", "true"):
            return True
        raise ConfigError(key, f"{value!r} is not 0 or 1")
    if wanted is int:
        if isinstance(value, bool) or not str(value).isdecimal():
            raise ConfigError(key, f"{value!r} is not a number")
        return int(value)
    if not isinstance(value, str):
        raise ConfigError(key, f"{value!r} is not a text")
    return value


def read_options(name: str, path: str) -> dict[str, Any]:
    """Read a driver's options from a file such as qemu-lockd.conf or qemu-sanlock.conf.

    Keys that the driver does not know are passed over, as libvirt does; a missing file is none.
    Raises ConfigError with the line, OSError. Source: spec/lock-drivers.md 17.
    """
    file = Path(path)
    if not file.exists():
        return {}
    with file.open("rb") as stream:
        data = stream.read(_CONFIG_BYTES_MAX + 1)
    if len(data) > _CONFIG_BYTES_MAX:
        raise ConfigError(path, f"longer than {_CONFIG_BYTES_MAX} bytes")
    known = {field.name for field in fields(driver_class(name).Options)}
    found: dict[str, Any] = {}
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"{path}:{number}", 'not of the form key = "text" or key = number')
        key, text, digits = match.groups()
        if key in known:
            found[key] = text if text is not None else int(digits)
    return found
