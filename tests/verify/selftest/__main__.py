"""Run the self-test of the judge: ``python -m tests.verify.selftest``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.verify.selftest import edits, mutation_runs
from tests.verify.selftest.cases import checked

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROW = "{:<28}{:<12}{:<36}{}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check each case, print a table, and return 0 if the judge found all of them."""
    options = _parser().parse_args(arguments)
    known = mutation_runs.cases(options.url) if options.mutations else list(edits.cases())
    chosen = [case for case in known if not options.only or case.name in options.only]
    if not chosen:
        print(f"No case has that name. The cases are {', '.join(case.name for case in known)}.", file=sys.stderr)
        return 2
    print(_ROW.format("case", "expected", "found", "caught"))
    missed = 0
    for case in chosen:
        with tempfile.TemporaryDirectory() as directory:
            result = checked(case, Path(directory), options.seed)
        missed += not result.is_right
        expected, found = (", ".join(sorted(codes)) or "nothing" for codes in (case.expected, result.found))
        print(_ROW.format(case.name, expected, found, "yes" if result.is_right else "NO"))
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.verify.selftest", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="choose the histories by this number (default: 0)")
    parser.add_argument("--only", action="append", metavar="NAME", help="check only this case; may be repeated")
    parser.add_argument(
        "--mutations", action="store_true", help="break the library itself, in runs of some seconds each"
    )
    parser.add_argument("--url", help="the database for --mutations (default: SQLite files)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
