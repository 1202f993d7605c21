"""What a lock driver needs of libvirt's domain XML: who the guest is, and what it uses.

Disks of type file, block and dir that have a source, and the top image only; explicit leases; what
is to be done when a lock is lost. Everything else of the definition is passed over.

Source: spec/lock-drivers.md 2.4 and 13.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID, uuid5
from xml.etree import ElementTree

from paxoslease.drivers.base import (
    Disk,
    ExplicitLease,
    FailureAction,
    Mode,
    Resource,
    check_resource,
)
from paxoslease.errors import ConfigError

_XML_BYTES_MAX: Final = 4 << 20
_SOURCES: Final = {"file": "file", "block": "dev", "dir": "dir"}
_WITHOUT_PATH: Final = frozenset({"network", "nvme", "vhostuser", "vhostvdpa"})
# Guests without a uuid get one that is the same on every host.
_NAMELESS: Final = UUID("7c1c1e2c-8a7e-5d3c-9a53-0d6f7b1e4b55")
_DECLARATION = re.compile(r"<!\s*(DOCTYPE|ENTITY)")


class Domain(NamedTuple):
    """A guest as far as locks are concerned; resources as libvirt lists them, leases first."""

    uuid: UUID
    name: str
    resources: tuple[Resource, ...]
    on_lockfailure: FailureAction = FailureAction.DEFAULT


def uuid_of_name(name: str) -> UUID:
    """Return the uuid of a guest that has none."""
    return uuid5(_NAMELESS, name)


def read_domain(path: str) -> Domain:
    """Read a domain from a file with its XML. Raises ConfigError, OSError."""
    with Path(path).open("rb") as file:
        data = file.read(_XML_BYTES_MAX + 1)
    if len(data) > _XML_BYTES_MAX:
        raise ConfigError(path, f"longer than {_XML_BYTES_MAX} bytes")
    try:
        return parse_domain(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(path, f"not UTF-8 at byte {error.start}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.what}", error.reason) from None


def parse_domain(text: str) -> Domain:
    """Return the domain of an XML text. Raises ConfigError."""
    root = parse_xml("domain", text)
    name = _text(root, "name")
    if not name:
        raise ConfigError("domain XML", "the domain has no <name>")
    resources: list[Resource] = [_lease(element) for element in root.findall("devices/lease")]
    resources += [disk for element in root.findall("devices/disk") if (disk := _disk(element))]
    for resource in resources:
        check_resource(resource)
    return Domain(_uuid(root, name), name, tuple(resources), _action(root))


def parse_xml(tag: str, text: str) -> ElementTree.Element:
    """Return the root of an XML text that libvirt has written. Raises ConfigError."""
    if _DECLARATION.search(text):
        # Entities can make a megabyte of a line; nothing of libvirt's has a declaration.
        raise ConfigError(f"{tag} XML", "a document type declaration is not accepted")
    # The declared encoding concerned the bytes, which are a text now.
    body = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise ConfigError(f"{tag} XML", str(error)) from None
    if root.tag != tag:
        raise ConfigError(f"{tag} XML", f"<{root.tag}> is not <{tag}>")
    return root


def _text(parent: ElementTree.Element, tag: str) -> str:
    return (parent.findtext(tag) or "").strip()


def _uuid(root: ElementTree.Element, name: str) -> UUID:
    text = _text(root, "uuid")
    if not text:
        return uuid_of_name(name)
    try:
        return UUID(text)
    except ValueError:
        raise ConfigError("<uuid>", f"{text!r} is not a UUID") from None


def _action(root: ElementTree.Element) -> FailureAction:
    text = _text(root, "on_lockfailure")
    try:
        return FailureAction(text or "default")
    except ValueError:
        raise ConfigError("<on_lockfailure>", f"{text!r} is not known") from None


def _disk(element: ElementTree.Element) -> Disk | None:
    """Return a disk that has a path here; None for a drive that is empty or elsewhere."""
    kind = element.get("type", "file")
    if kind in _WITHOUT_PATH:
        return None
    source = element.find("source")
    if kind not in _SOURCES:
        raise ConfigError("<disk>", f"type '{kind}' cannot be resolved to a path without libvirt")
    path = source.get(_SOURCES[kind]) if source is not None else None
    if not path:
        return None
    if element.find("readonly") is not None or element.get("device") == "cdrom":
        return Disk(path, Mode.READONLY)
    return Disk(path, Mode.SHARED if element.find("shareable") is not None else Mode.EXCLUSIVE)


def _lease(element: ElementTree.Element) -> ExplicitLease:
    target = element.find("target")
    path = target.get("path", "") if target is not None else ""
    offset = (target.get("offset") or "0") if target is not None else "0"
    if not offset.isdecimal():
        raise ConfigError("<lease>", f"offset {offset!r} is not a number")
    return ExplicitLease(_text(element, "lockspace"), _text(element, "key"), path, int(offset))
