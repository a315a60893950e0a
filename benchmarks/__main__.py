"""Run the benchmarks: ``python3 dev.py bench [--only NAME]... [--quick] [--url URL] [--json FILE]``."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.databases import databases, machine
from benchmarks.report import Report, write_json
from benchmarks.suite import Bench

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.suite import Result

# In this order: what matters most comes first.
BENCHMARKS = (
    "producing",
    "consuming",
    "sharing",
    "waking",
    "notify",
    "sizes",
    "steady",
    "footprint",
    "idling",
    "coalescing",
    "outbox",
    "peers",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 when a benchmark failed, whatever the figures are."""
    options = parse(arguments)
    report = Report()
    facts = machine()
    results: list[Result] = []
    with databases(options.url) as measured:
        report.begin(facts, measured, quick=options.quick)
        for name in options.only or BENCHMARKS:
            for database in measured:
                bench = Bench(name, database, options.quick, report.show)
                try:
                    importlib.import_module(f"benchmarks.{name}").run(bench)
                except Exception as error:  # noqa: BLE001 - the others are measured all the same
                    report.fail(f"{name}, {database.kind}", error)
                results += bench.results
        report.end(results)
        if options.json:
            write_json(options.json, facts, measured, results, report.failures, quick=options.quick)
    return 1 if report.failures else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="run this one; may be given again")
    parser.add_argument("--quick", action="store_true", help="fewer messages and rounds: does it run, not how fast")
    parser.add_argument("--url", help="measure on this database alone; else on a Postgres and a SQLite of our own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round of every figure to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    warnings.simplefilter("ignore", ResourceWarning)
    sys.exit(main())
