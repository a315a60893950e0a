"""Run the benchmarks: ``python3 dev.py bench``. Options say which, on what, and where to write what was found."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.databases import databases, machine
from benchmarks.harness.record import Record
from benchmarks.harness.report import Report, publish, update
from benchmarks.harness.suite import Bench

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.databases import BenchDatabase

# In this order: what matters most comes first.
BENCHMARKS = (
    "producing",
    "consuming",
    "sharing",
    "writing",
    "reading",
    "peers",
    "waking",
    "handling",
    "steady",
    "lasting",
    "sizes",
    "wal",
    "memory",
    "idling",
    "notify",
    "coalescing",
    "outbox",
)
DOCS = Path(__file__).parent.parent / "docs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 when a benchmark failed, whatever the figures are."""
    options = parse(arguments)
    report = Report()
    if options.read:
        record = Record.read(options.read)
        report.begin(record)
    else:
        with databases(options.url) as measured:
            record = Record(machine(), {one.kind: one.facts for one in measured}, options.quick)
            report.begin(record)
            for name in options.only or BENCHMARKS:
                for database in measured:
                    measure(name, database, record, report, options.minutes)
    report.end(record)
    if options.json:
        record.write(options.json)
    if options.report:
        publish(record, options.report)
    if options.docs:
        update(DOCS / "performance.md", record, DOCS / "performance", publish(record, DOCS / "performance"))
    return 1 if record.failures else 0


def measure(name: str, database: BenchDatabase, record: Record, report: Report, minutes: float) -> None:
    """Run one benchmark on one database, and add to *record* what it found, or why it found nothing."""
    what = f"{name}, {database.kind}"
    began = time.perf_counter()
    try:
        with database.apart() as own:
            bench = Bench(name, own, record.quick, report.show, record.results, minutes)
            importlib.import_module(f"benchmarks.cases.{name}").run(bench)
    except Exception as error:  # noqa: BLE001 - the others are measured all the same
        record.failures[what] = f"{type(error).__name__}: {error}"
        report.say(f"{what} FAILED: {record.failures[what]}")
    record.seconds[what] = round(time.perf_counter() - began, 1)
    report.say(f"{what} took {record.seconds[what]:.0f} s")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="run this one; may be given again")
    parser.add_argument("--quick", action="store_true", help="fewer messages and rounds: does it run, not how fast")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="how long each part of `lasting` takes; 10 if not given"
    )
    parser.add_argument("--url", help="measure on this database alone; else on a Postgres and a SQLite of our own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round of every figure to this file")
    parser.add_argument(
        "--read", type=Path, metavar="FILE", help="measure nothing: take what --json wrote to this file"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write tables of all results, and plots, to this folder"
    )
    parser.add_argument("--docs", action="store_true", help="write results and plots into docs/performance.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    warnings.simplefilter("ignore", ResourceWarning)
    sys.exit(main())
