"""Start a daemon, and end it: the order in which things come up and go down.

Source: spec/wire-protocol.md 1; spec/cli.md 6.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import uuid
from typing import Final

from paxoslease.daemon import commands
from paxoslease.daemon.journal import Journal
from paxoslease.daemon.logs import LogRing
from paxoslease.daemon.options import DaemonOptions
from paxoslease.daemon.server import Daemon

_log = logging.getLogger(__name__)

JOURNAL_NAME: Final = "paxoslease.state"
_NAME_BYTES: Final = 48


def run(options: DaemonOptions) -> int:
    """Run a daemon until it is shut down; returns the exit code."""
    raise NotImplementedError


def host_name_of(options: DaemonOptions) -> bytes:
    """Return the host's name: as told, or a random one of this life and the node's name."""
    name = options.host_name or f"{uuid.uuid4()}.{os.uname().nodename}"
    return os.fsencode(name)[:_NAME_BYTES]
