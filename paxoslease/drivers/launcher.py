"""The program that a future guest is until it has registered as owner: see `process`.

`python -I launcher.py DESCRIPTOR`: the descriptor is one end of a channel on which the supervisor
sends its module search path and an Order, and then True. Answered is None or an error in between.
"""

from __future__ import annotations

import logging
import os
import sys
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Register, wait, and become the program."""
    channel: Connection[Any, Any] = Connection(int(sys.argv[1]))
    os.set_inheritable(channel.fileno(), False)
    # Drivers are found where the supervisor finds them, wherever that is.
    sys.path += [place for place in channel.recv() if place not in sys.path]

    from paxoslease import launch
    from paxoslease.drivers.registry import open_driver
    from paxoslease.errors import PaxosleaseError

    # What is to be said is said by the supervisor, once.
    logging.getLogger("paxoslease").addHandler(logging.NullHandler())
    logging.getLogger("paxoslease").propagate = False
    order = channel.recv()
    owner = order.guest.owner(os.getpid())
    try:
        driver = open_driver(order.driver, **order.options)
        registration = driver.acquire(owner, register_only=True, restrict=True, action=order.action)
    except PaxosleaseError as error:
        channel.send(error)
        sys.exit(1)
    channel.send(None)
    try:
        channel.recv()
    except (EOFError, ConnectionError):
        sys.exit(1)  # the supervisor has said what went wrong
    if registration is not None:
        registration.keep_across_exec()
    launch.restore_signals()
    if order.foreground_of:
        launch.come_to_foreground(order.foreground_of)
    launch.become(order.program, list(order.arguments))


if __name__ == "__main__":
    main()
