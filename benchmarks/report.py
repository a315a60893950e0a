"""What was found, as tables on the terminal while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks.record import target_of, verdicts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.record import Record
    from benchmarks.suite import Result, Rounds


class Report:
    """Shows results as they come, and the targets in the end."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console()
        # Wide enough for a table also where there is no terminal.
        self._console = console if console.is_terminal else Console(file=console.file, width=140)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def begin(self, record: Record) -> None:
        """Say what is about to be measured, and on what."""
        for line in facts(record):
            self.say(line)

    def show(self, result: Result) -> None:
        """One table: a row for each variant, then a row for each ratio."""
        table = Table(
            title=f"{result.benchmark}, {result.database}: {result.title}", title_justify="left", min_width=100
        )
        table.add_column("")
        table.add_column(f"median, {result.unit}", justify="right")
        table.add_column("low to high", justify="right")
        table.add_column("wanted", justify="right")
        for figures in (result.rates, result.ratios):
            for row in _rows(result, figures):
                table.add_row(*row)
            table.add_section()
        self._console.print(table)
        for note in result.notes:
            self.say(note)

    def end(self, record: Record) -> None:
        """List every target: met, missed, or not measured; and how long each benchmark took."""
        table = Table(title="Targets", title_justify="left", min_width=100)
        for name in ("", "wanted", "found", "low to high", ""):
            table.add_column(name, justify="right" if name else "left")
        for verdict in verdicts(record.results):
            target, found = verdict
            name = f"{target.benchmark}, {target.database}: {target.figure}"
            shown = ("", "") if found is None else (number(found.median), spread(found))
            table.add_row(name, str(target), *shown, str(verdict))
        self._console.print(table)
        took = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in record.seconds.items())
        self.say(f"{sum(record.seconds.values()) / 60:.1f} minutes: {took}")


def facts(record: Record) -> list[str]:
    """What the figures were made with, and what failed."""
    machine = record.machine
    packages = ", ".join(f"{name} {found}" for name, found in machine["packages"].items() if found)
    load = "" if machine["load_average"] is None else f", load {machine['load_average'][0]:.1f} at the start"
    disk = f"8 kB on the disk take {machine['fdatasync_microseconds']} µs"
    lines = [
        f"{record.taken_at}: {machine['processor']}, {machine['cores']} cores{load}; {disk}.",
        f"{machine['python']}, {packages}.",
    ]
    for kind, found in record.databases.items():
        settings = ", ".join(f"{name}={value}" for name, value in found["settings"].items())
        lines.append(f"{kind} {found['version']} ({found['source']}): {settings}.")
    if record.quick:
        lines.append("--quick: too little is measured for the figures to mean anything.")
    return lines + [f"FAILED: {what}: {error}" for what, error in record.failures.items()]


def number(value: float) -> str:
    """Three digits of it, or all of a large one."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(rounds: Rounds) -> str:
    return "" if len(rounds.values) == 1 else f"{number(rounds.low)} to {number(rounds.high)}"


def _rows(result: Result, figures: Mapping[str, Rounds]) -> Iterator[tuple[str, str, str, str]]:
    for name, rounds in figures.items():
        target = target_of(result, name)
        wanted = "" if target is None else f"{target} {'met' if target.is_met(rounds.median) else 'MISSED'}"
        yield name, number(rounds.median), spread(rounds), wanted
