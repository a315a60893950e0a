"""The view of the demo: a live table on a terminal, lines of text elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlmq.reports.descriptions import GroupDescription

_LINE_SECONDS = 1.0
"""How often the state is printed if stdout is not a terminal."""


class View:
    """Prints the events and shows the state."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._console = Console(file=sys.stdout, highlight=False)
        self._live: Live | None = None
        self._next_line_at = 0.0

    @property
    def seconds(self) -> float:
        """The time since the start of the demo."""
        return time.monotonic() - self._began

    def tell(self, *sentences: str) -> None:
        """Print *sentences*, the first one with the time."""
        for number, sentence in enumerate(sentences):
            stamp = f"{self.seconds:5.1f} s  " if number == 0 else " " * 9
            if self._live is None:
                click.echo(stamp + sentence)
            else:
                self._live.console.print(Text(stamp + sentence))

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Show the live table inside this block, on a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=8) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def show(self, groups: Sequence[GroupDescription], killed: str | None, *, is_final: bool = False) -> None:
        """Show the positions, lag and owners of *groups*; the owner *killed* is marked."""
        if self._live is not None:
            self._live.update(_table(groups, killed))
        elif time.monotonic() >= self._next_line_at or is_final:
            self._next_line_at = time.monotonic() + _LINE_SECONDS
            written = sum(partition.end_offset for partition in groups[0].partitions)
            lags = ", ".join(f"lag of {group.name} {group.lag:,}" for group in groups)
            self.tell(f"{written:,} messages in the topic, {lags}")


def _table(groups: Sequence[GroupDescription], killed: str | None) -> Group:
    table = Table(title_style="", header_style="bold", pad_edge=False)
    table.add_column("partition", justify="right")
    table.add_column("messages", justify="right")
    for group in groups:
        table.add_column(f"{group.name}: owner")
        table.add_column("position", justify="right")
        table.add_column("lag", justify="right")
    for number, partition in enumerate(groups[0].partitions):
        cells: list[Text] = [Text(str(number)), Text(f"{partition.end_offset:,}")]
        for group in groups:
            one = group.partitions[number]
            if one.owner is None:
                owner = Text("none", style="yellow")
            elif one.owner == killed:
                owner = Text(f"{one.owner} (killed)", style="red")
            else:
                owner = Text(one.owner, style="green")
            cells += [owner, Text(f"{one.position:,}"), Text(f"{one.lag:,}", style="yellow" if one.lag else "green")]
        table.add_row(*cells)
    return Group(Text(), table)
