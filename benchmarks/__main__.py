"""Run the benchmarks: ``python dev.py bench [--only NAME] [--quick] [--url URL]``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import coalescing, notify, outbox

BENCHMARKS = {"coalescing": coalescing.run, "notify": notify.run, "outbox": outbox.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="run one benchmark instead of all")
    parser.add_argument("--quick", action="store_true", help="fewer messages and rounds: does it run, not how fast")
    parser.add_argument(
        "--url", help="the database, with its tables made; a SQLite file in a temporary directory if not given"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        url = options.url or f"sqlite:///{Path(directory) / 'bench.db'}"
        for name, run in BENCHMARKS.items():
            if options.only in (None, name):
                run(url, quick=options.quick)


if __name__ == "__main__":
    main()
