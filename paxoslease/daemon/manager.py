"""Telling a service manager that the daemon is up (sd_notify(3), the part that is needed)."""

from __future__ import annotations

import logging
import os
import socket
from typing import Final

_log = logging.getLogger(__name__)

VARIABLE: Final = "NOTIFY_SOCKET"


def tell_manager(state: str) -> None:
    """Tell the service manager, if one wants to know; `state` as sd_notify(3) has it."""
    address = os.environ.get(VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = f"{state}\nMAINPID={os.getpid()}".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect(address)
            sender.send(message)
        except OSError as error:
            _log.error("manager_not_told address=%r error=%s", address, error)
