"""One mutation in a copy of the checkout, and the tests that run there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.mutations.mutation import Mutation

CHECKOUT = Path(__file__).parent.parent.parent
COPIED = (
    "src",
    "tests",
    "migrations",
    "docs",
    "examples",
    "benchmarks",
    "pyproject.toml",
    "dev.py",
    "README.md",
    "CHANGELOG.md",
)
"""What tests of the library need of a checkout."""
# The tests of the checkout would notice the changed text, and the test of the table misses the old one.
NOT_BEHAVIOUR = ("tests/house", "tests/mutations")
TEST_SECONDS = 60
"""After how long a test that hangs has failed."""
RUN_SECONDS = 1_800
# A failure in a test, or in what its fixtures do; other lines that begin so are log records.
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+\.py::.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Trial:
    """Which test has noticed a mutation."""

    caught_by: str | None
    """The test's id; None if all tests have passed."""
    lane: str
    seconds: float
    output: str
    """What pytest said last."""


def try_out(mutation: Mutation | None, lanes: Sequence[str]) -> Trial:
    """Run the tests of *lanes* on a copy of the checkout with *mutation*, the likely ones first, until one fails.

    Without a mutation, all of them should pass. Raises RuntimeError if the tests could not run.
    """
    began = time.monotonic()
    output = ""
    with mutated(mutation) as checkout:
        for lane in lanes:
            for arguments in _choices(mutation):
                failed, output = _run_tests(checkout, ["--lane", lane, *arguments])
                if failed:
                    return Trial(failed[0], lane, time.monotonic() - began, output)
    return Trial(None, lanes[-1], time.monotonic() - began, output)


def _choices(mutation: Mutation | None) -> Iterator[list[str]]:
    """Yield the likely tests, then the other tests of their files, then all others, as pytest is told."""
    likely = () if mutation is None else mutation.likely
    files = {one.partition("::")[0] for one in likely}
    if likely:
        # In one process: a worker's start takes longer than a few tests.
        yield ["-n0", *likely]
    if files - set(likely):
        yield [*files, *(f"--deselect={one}" for one in likely)]
    yield [*(f"--ignore={path}" for path in (*NOT_BEHAVIOUR, *files)), "tests"]


@contextmanager
def mutated(mutation: Mutation | None) -> Iterator[Path]:
    """Copy the checkout, with *mutation* if there is one, to a temporary directory. Raises ValueError if an edit does not fit."""
    with tempfile.TemporaryDirectory(prefix="sqlmq-mutation-") as directory:
        copy = Path(directory)
        for name in COPIED:
            if (CHECKOUT / name).is_dir():
                # Compiled files go along: they are still valid, but for a file that an edit changes.
                shutil.copytree(CHECKOUT / name, copy / name)
            else:
                shutil.copy2(CHECKOUT / name, copy / name)
        for edit in () if mutation is None else mutation.edits:
            edit.apply(copy)
        yield copy


def _run_tests(checkout: Path, arguments: Sequence[str]) -> tuple[list[str], str]:
    """Run pytest in *checkout* until a test fails; return the ids of those that have failed, and what it said."""
    options = ("-x", "-n2", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}", "--tb=short")
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return [f"none: the tests did not end within {RUN_SECONDS} seconds"], output
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    failed = _FAILED.findall(output)
    # With the first failure, pytest-xdist ends as if it were interrupted: 2. The likely tests may not be of the lane: 5.
    has_run = process.returncode in ((1, 2) if failed else (0, 5))
    if not has_run:
        message = f"pytest {' '.join(arguments)} ended with {process.returncode}:\n{output[-3_000:]}"
        raise RuntimeError(message)
    return failed, output
