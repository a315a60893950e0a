"""Show which tests notice which mutation: ``python -m tests.mutations [NAME ...] [--lane quick|all]``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lanes import LANES
from tests.mutations.table import MUTATIONS
from tests.mutations.trial import try_out
from tests.support.postgres_server import URL_VARIABLE, provide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.mutations.trial import Trial

UNBROKEN = "unbroken"
"""The name of the run without a mutation, in which all tests should pass."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutations and print a table. Return 0 if each was noticed by the lane that should notice it."""
    options = _parser().parse_args(arguments)
    unknown = sorted(set(options.names) - {UNBROKEN, *MUTATIONS})
    if unknown:
        print(f"No mutation is called {', '.join(unknown)}. They are {', '.join(MUTATIONS)}.", file=sys.stderr)
        return 2
    # Ended by it, the program would leave its server and pytest behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = provide()
    # One server for all of them: each run has databases of its own in it.
    os.environ[URL_VARIABLE] = server.url.render_as_string(hide_password=False)
    try:
        wrong = [name for name in options.names or (UNBROKEN, *MUTATIONS) if not _is_right(name, options)]
    finally:
        server.remove()
    print(f"\nNot as it should be: {', '.join(wrong)}" if wrong else "\nAll as it should be.")
    return 1 if wrong else 0


def _is_right(name: str, options: argparse.Namespace) -> bool:
    """Try the mutation *name* and print its row; return whether it is as it should be."""
    mutation = MUTATIONS.get(name)
    # Tests of the quick lane first, so that it is seen which one is enough.
    lanes = ["quick", *(["all"] if options.lane == "all" else [])]
    try:
        trial = try_out(mutation, lanes)
    except (RuntimeError, ValueError) as error:
        print(f"| {name} | not tried: {error} |", flush=True)
        return False
    if options.output is not None:
        (options.output / f"{name}.txt").write_text(trial.output, encoding="utf-8")
    print(_row(name, trial), flush=True)
    if mutation is None:
        return trial.caught_by is None
    if mutation.only_all and options.lane == "quick":
        return True
    return trial.caught_by is not None and (trial.lane == "quick" or bool(mutation.only_all))


def _row(name: str, trial: Trial) -> str:
    by = "no test" if trial.caught_by is None else f"`{trial.caught_by}`"
    lane = "-" if trial.caught_by is None else trial.lane
    return f"| {name} | {by} | {lane} | {trial.seconds:.0f} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="try only this mutation; several may be named")
    parser.add_argument("--lane", choices=LANES, default="quick", help="which tests run (default: quick)")
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="write there what pytest said of each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
