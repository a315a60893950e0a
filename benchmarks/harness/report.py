"""What was found, as tables: on the terminal while it runs, as pages with plots when all is done.

``publish`` writes a page of all results; ``update`` writes the conclusions into a page that people wrote, between two marks.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks.harness.record import target_of, verdicts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from benchmarks.harness.record import Record
    from benchmarks.harness.suite import Result, Rounds

RESULTS_PAGE = "results.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
# Captions of the plots, in the order of the page; which plots there are depends on what was measured.
CAPTIONS = {
    "limits": "Against what can be had by hand, or with less. Ticks are targets, whiskers the lowest and highest round.",
    "times": "How many times faster than other ways and other queues.",
    "costs": "What it costs, as a part of what it may cost: left of the line is met.",
    "peers": "Produced in batches and drained by one process, messages a second.",
    "snapshot": "While another session holds an old snapshot: transactions a second, as a part of the first ones.",
}


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


def publish(record: Record, directory: Path) -> list[str]:
    """Write the page of all results and its plots to *directory*; return the names of the plots."""
    directory.mkdir(parents=True, exist_ok=True)
    plots = _draw(record, directory)
    pages = ["# All results\n", *_facts(record), *_images(plots, ""), *_targets(record)]
    for benchmark in dict.fromkeys(result.benchmark for result in record.results):
        pages.append(f"\n## {benchmark}\n")
        for result in record.results:
            if result.benchmark == benchmark:
                pages += _table(result)
    (directory / RESULTS_PAGE).write_text("\n".join(pages) + "\n", encoding="utf-8")
    return plots


def update(page: Path, record: Record, directory: Path, plots: Sequence[str]) -> None:
    """Write the conclusions between the marks of *page*; plots and all results are in *directory*, beside it."""
    text = page.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found_begin and found_end):
        message = f"{page} needs the lines {BEGIN} and {END}, between which results go."
        raise ValueError(message)
    conclusions = [
        *_facts(record),
        *_images(plots, f"{directory.name}/"),
        *_targets(record),
        "",
        f"Every figure is in [all results]({directory.name}/{RESULTS_PAGE}).",
    ]
    page.write_text("\n".join([before + BEGIN, "", *conclusions, "", END + after]), encoding="utf-8")


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


def _table(result: Result) -> list[str]:
    rows = [row for figures in (result.rates, result.ratios) for row in _rows(result, figures)]
    return [
        f"**{result.database}: {result.title}**\n",
        f"| | median, {result.unit} | low to high | wanted |",
        "|---|---|---|---|",
        *(f"| {' | '.join(_cell(word) for word in row)} |" for row in rows),
        "",
        *(f"{note}\n" for note in result.notes),
    ]


def _targets(record: Record) -> list[str]:
    measured = [verdict for verdict in verdicts(record.results) if verdict.found is not None]
    met = sum(verdict.is_met for verdict in measured)
    lines = [
        f"{met} of {len(measured)} measured targets are met.\n",
        "| | wanted | found (low to high) | |",
        "|---|---|---|---|",
    ]
    for verdict in measured:
        target, found = verdict
        assert found is not None
        words = f"{number(found.median)} ({spread(found)})" if spread(found) else number(found.median)
        outcome = "met" if verdict.is_met else "**missed**"
        what = _cell(f"{target.benchmark}, {target.database}: {target.figure}")
        lines.append(f"| {what} | {target} | {words} | {outcome} |")
    return lines


def _facts(record: Record) -> list[str]:
    return [*(f"- {line}" for line in facts(record)), ""]


def _cell(text: str) -> str:
    return re.sub(r"([|*<])", r"\\\1", text)


def _images(plots: Sequence[str], folder: str) -> Iterator[str]:
    for plot in plots:
        yield f"![Plot: {plot}]({folder}{plot}.svg)\n"
        yield f"{CAPTIONS[plot]}\n"


def _draw(record: Record, directory: Path) -> list[str]:
    try:
        from benchmarks.harness import plots
    except ImportError:
        # Tables are of use without matplotlib, too.
        warnings.warn("matplotlib is not installed, so there are no plots", stacklevel=3)
        return []
    return plots.draw(record, directory)
