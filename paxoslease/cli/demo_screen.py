"""What the demonstration shows: a live screen or plain lines, and a time line at the end."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from paxoslease.cli.demo_plan import DEAD_S, GUEST, HOLD_S, HOST_NAMES

if TYPE_CHECKING:
    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table

_WIDTH = 60
_EXPECTED_S = HOLD_S * 1.5 + DEAD_S + 2.5
_LEGEND = "· joined, █ runs the guest, ✗ killed, ? not known to be dead yet"
_COLOURS = ("", "green", "bold red", "yellow", "dim")  # by the groups of a pattern


class Event(NamedTuple):
    """Something that a host reported: when (monotonic seconds), who, what, and details."""

    at: float
    host: int
    event: str
    fields: dict[str, Any]

    def text(self) -> str:
        """Return the event in words."""
        details = self.fields
        words: dict[str, Callable[[], str]] = {
            "joining": lambda: "joins the lockspace",
            "joined": lambda: f"has its host id, generation {details['generation']}",
            "acquired": lambda: f"gets the lease of {GUEST}, version {details['token']}",
            "running": lambda: f"starts {GUEST} (process {details['pid']})",
            "refused": lambda: _refusal(details),
            "power failure": lambda: "is killed with everything on it",
            "stopped": lambda: f"stops {GUEST}",
            "released": lambda: "releases the lease",
            "left": lambda: "leaves the lockspace",
        }
        return words[self.event]()


def _refusal(details: dict[str, Any]) -> str:
    owner = HOST_NAMES.get(details["owner"], "another host")
    if details["alive"]:
        return f"may not start {GUEST}: {owner} holds the lease and is alive"
    return f"waits: {owner} does not renew; it may still run for {details['takeover_in_s']:.1f} s"


class Screen:
    """Collects events and shows them as they come."""

    def __init__(self, live: bool, disk: str) -> None:
        self.events: list[Event] = []
        self.begun = time.monotonic()
        self.disk = disk
        self.killed_at = 0.0
        self.took_over_at = 0.0
        self._said: dict[int, str] = {}
        self._live: Live | None = None
        if live:
            from rich.live import Live as RichLive

            self._live = RichLive(refresh_per_second=10)
        else:
            print(f"Two hosts share {disk}. Both want to run {GUEST}.")

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self._picture())
            self._live.stop()

    def add(self, event: Event) -> None:
        """Show an event. A refusal that says the same as the last is shown once."""
        kind = f"{event.event}{event.fields.get('alive', '')}"
        if event.event == "refused" and self._said.get(event.host) == kind:
            return
        self._said[event.host] = kind
        self.events.append(event)
        if event.event == "acquired" and self.killed_at:
            self.took_over_at = event.at
        if self._live is None:
            self._line(event)

    def power_failure(self, host: int, at: float) -> None:
        """Show that a host was killed; the countdown begins."""
        self.killed_at = at
        self.add(Event(at, host, "power failure", {}))

    def _line(self, event: Event) -> None:
        at = event.at - self.begun
        sys.stdout.write(f"{at:6.1f} s  {HOST_NAMES[event.host]:<12} {event.text()}\n")
        sys.stdout.flush()

    def tick(self) -> None:
        """Refresh what depends on the time."""
        if self._live is not None:
            self._live.update(self._picture())

    def _countdown(self) -> str:
        left = self.killed_at + DEAD_S - time.monotonic()
        if not self.killed_at or self.took_over_at:
            return " "
        if left <= 0:
            return "[green]it is safe now[/green]"
        done = int((1 - left / DEAD_S) * 30)
        bar = "█" * done + "░" * (30 - done)
        return f"[yellow]{bar}[/yellow] at most {left:4.1f} s until the take-over is safe"

    def _picture(self) -> Panel:
        """Return the live screen: what happened, the time line so far, and the countdown."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        now = time.monotonic()
        scale = _WIDTH / max(now - self.begun, _EXPECTED_S)
        lines = [" "]
        for host, name in HOST_NAMES.items():
            row = re.sub(
                r"(█+)|(✗)|(\?+)|(·+)",
                lambda m: f"[{_COLOURS[m.lastindex or 0]}]{m[0]}[/]",
                self._row(host, now, scale),
            )
            lines.append(f"[bold]{name}[/bold]  {row}")
        lines += [f"[dim]{' ' * len(name)}  {_LEGEND}[/dim]", " ", self._countdown()]
        content = Group(self._table(), *(Text.from_markup(line) for line in lines))
        title = "Two hosts, one shared disk, one guest that must not run twice"
        return Panel(content, title=title, subtitle=f"[dim]{self.disk}[/dim]", padding=(1, 2))

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(justify="right", style="dim")
        table.add_column(style="bold")
        table.add_column()
        for event in self.events:
            style = {"power failure": "red", "acquired": "green", "running": "green"}.get(
                event.event, ""
            )
            text = f"[{style}]{event.text()}[/{style}]" if style else event.text()
            table.add_row(f"{event.at - self.begun:.1f} s", HOST_NAMES[event.host], text)
        return table

    def timeline(self) -> None:
        """Print the time line of both hosts, who ran the guest when, unless it is there already."""
        if self._live is not None:
            return
        end = max((event.at for event in self.events), default=self.begun)
        scale = _WIDTH / max(end - self.begun, 0.1)
        print(f"\nTime line ({_LEGEND}):")
        for host in HOST_NAMES:
            print(f"  {HOST_NAMES[host]:<12} {self._row(host, end, scale)}")
        print(f"  {'':<12} 0{'':{_WIDTH - 6}}{end - self.begun:4.1f} s\n")

    def _row(self, host: int, end: float, scale: float) -> str:
        row = [" "] * (_WIDTH + 1)
        state = " "
        changes = {"joined": "·", "running": "█", "stopped": "·", "left": " "}
        mine = [e for e in self.events if e.host == host and e.event in (*changes, "power failure")]
        for index, event in enumerate(mine):
            state = changes.get(event.event, "?")
            until = mine[index + 1].at if index + 1 < len(mine) else end
            if state == "?":
                until = self.took_over_at or end
            first = int((event.at - self.begun) * scale)
            for column in range(first, min(_WIDTH, int((until - self.begun) * scale)) + 1):
                row[column] = state
            if event.event == "power failure":
                row[first] = "✗"
        return "".join(row)
