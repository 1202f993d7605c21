"""What the library logs, as lines for a person on standard error."""

from __future__ import annotations

import logging
import sys

from paxoslease.sentences import text_of


class _Plain(logging.Formatter):
    """Makes one line of a record."""

    def format(self, record: logging.LogRecord) -> str:
        severity = "" if record.levelno >= logging.ERROR else "warning: "
        return f"paxoslease: {severity}{text_of(record)}"


class _ToStderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what is standard error at the time."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(_Plain())

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def log_to_stderr() -> None:
    """Show what the library logs, once however often it is called."""
    logger = logging.getLogger("paxoslease")
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr())
        logger.propagate = False
