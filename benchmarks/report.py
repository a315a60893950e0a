"""What was found, as tables on the terminal and as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.targets import TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.databases import BenchDatabase
    from benchmarks.suite import Result, Rounds


class Report:
    """Shows results as they come, and the targets in the end."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console()
        # Wide enough for a table also where there is no terminal.
        self._console = console if console.is_terminal else Console(file=console.file, width=140)
        self.failures: dict[str, str] = {}

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def begin(self, machine: dict[str, Any], databases: Sequence[BenchDatabase], *, quick: bool) -> None:
        """Say what is about to be measured, and on what."""
        packages = ", ".join(f"{name} {found}" for name, found in machine["packages"].items() if found)
        self.say(f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average']}")
        self.say(f"{machine['python']}, {packages}; 8 kB on the disk take {machine['fdatasync_microseconds']} µs")
        for database in databases:
            settings = ", ".join(f"{name}={value}" for name, value in database.facts["settings"].items())
            self.say(f"{database.kind} {database.facts['version']} ({database.facts['source']}): {settings}")
        if quick:
            self.say("--quick: too little is measured for the figures to mean anything.")

    def show(self, result: Result) -> None:
        """One table: a row for each variant, then a row for each ratio."""
        table = Table(
            title=f"{result.benchmark}, {result.database}: {result.title}", title_justify="left", min_width=100
        )
        table.add_column("")
        table.add_column(f"median, {result.unit}", justify="right")
        table.add_column("low to high", justify="right")
        table.add_column("wanted", justify="right")
        for name, rounds in result.rates.items():
            table.add_row(name, _number(rounds.median), _spread(rounds), "")
        table.add_section()
        for name, rounds in result.ratios.items():
            target = target_of(result, name)
            wanted = "" if target is None else f"{target} {'met' if target.is_met(rounds.median) else 'MISSED'}"
            table.add_row(name, _number(rounds.median), _spread(rounds), wanted)
        self._console.print(table)
        for note in result.notes:
            self.say(note)

    def fail(self, what: str, error: Exception) -> None:
        """Note that a benchmark gave no result."""
        self.failures[what] = f"{type(error).__name__}: {error}"
        self.say(f"{what} FAILED: {self.failures[what]}")

    def end(self, results: Sequence[Result]) -> None:
        """List every target: met, missed, or not measured."""
        table = Table(title="Targets", title_justify="left", min_width=100)
        for name, side in (
            ("", "left"),
            ("wanted", "right"),
            ("found", "right"),
            ("low to high", "right"),
            ("", "left"),
        ):
            table.add_column(name, justify=side)  # type: ignore[arg-type]
        for target, rounds in found(results):
            name = f"{target.benchmark}, {target.database}: {target.ratio}"
            if rounds is None:
                table.add_row(name, str(target), "", "", "not measured")
            else:
                verdict = "met" if target.is_met(rounds.median) else "MISSED"
                table.add_row(name, str(target), _number(rounds.median), _spread(rounds), verdict)
        self._console.print(table)


def found(results: Sequence[Result]) -> list[tuple[Target, Rounds | None]]:
    """Each target with what was measured for it, if it was."""
    measured = {
        (result.benchmark, result.database, name): rounds
        for result in results
        for name, rounds in result.ratios.items()
    }
    return [(target, measured.get((target.benchmark, target.database, target.ratio))) for target in TARGETS]


def target_of(result: Result, ratio: str) -> Target | None:
    """What is wanted of the *ratio* of *result*."""
    key = (result.benchmark, result.database, ratio)
    return next((target for target in TARGETS if (target.benchmark, target.database, target.ratio) == key), None)


def write_json(
    path: Path,
    machine: dict[str, Any],
    databases: Sequence[BenchDatabase],
    results: Sequence[Result],
    failures: dict[str, str],
    *,
    quick: bool,
) -> None:
    """Write everything that was found, each round of it, to *path*."""
    document = {
        "taken_at": datetime.now(UTC).isoformat(),
        "quick": quick,
        "machine": machine,
        "databases": {database.kind: database.facts for database in databases},
        "results": [result.as_json() for result in results],
        "targets": [
            {
                "benchmark": target.benchmark,
                "database": target.database,
                "ratio": target.ratio,
                "wanted": str(target),
                "found": None if rounds is None else rounds.median,
                "met": None if rounds is None else target.is_met(rounds.median),
            }
            for target, rounds in found(results)
        ],
        "failures": failures,
    }
    Path(path).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(rounds: Rounds) -> str:
    return "" if len(rounds.values) == 1 else f"{_number(rounds.low)} to {_number(rounds.high)}"
