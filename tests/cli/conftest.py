"""The command line, run in this process or in one of its own, on the test's database."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from click.testing import CliRunner, Result

from sqlmq.cli.root import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest


# Before 8.2, click's runner mixes stderr into stdout unless it is told not to.
SEPARATELY: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


class Sqlmq(Protocol):
    """Runs `sqlmq` with arguments in this process; *stdin* is what it reads."""

    def __call__(self, *arguments: str, stdin: bytes | str | None = None) -> Result: ...


class Refusal(Protocol):
    """Asserts that `sqlmq` refuses these arguments as a usage error, without a database; returns what it writes."""

    def __call__(self, *arguments: str) -> str: ...


class SqlmqProcess(Protocol):
    """Starts `sqlmq` with arguments as a process with three pipes, in a directory; it is killed at the end of the test."""

    def __call__(self, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[bytes]: ...


@pytest.fixture(autouse=True)
def no_settings_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQLMQ_URL", raising=False)
    monkeypatch.delenv("SQLMQ_SCHEMA", raising=False)


@pytest.fixture
def settings(database: DatabaseUnderTest) -> dict[str, str]:
    """The environment that names the test's database."""
    return {"SQLMQ_URL": database.url} | ({"SQLMQ_SCHEMA": database.schema} if database.schema else {})


@pytest.fixture
def sqlmq(settings: dict[str, str]) -> Sqlmq:
    def run(*arguments: str, stdin: bytes | str | None = None) -> Result:
        return CliRunner(**SEPARATELY).invoke(main, arguments, input=stdin, env=settings, prog_name="sqlmq")

    return run


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """Run `sqlmq` on a database that can't be opened; what asks for one fails with exit code 1 and its path."""
    url = f"sqlite:///{tmp_path / 'missing' / 'queue.db'}"

    def run(*arguments: str) -> str:
        result = CliRunner(**SEPARATELY).invoke(
            main, arguments, input="never\n", env={"SQLMQ_URL": url}, prog_name="sqlmq"
        )
        assert result.exit_code == 2, f"{arguments} ended with {result.exit_code}: {result.output}"
        return result.stderr

    return run


@pytest.fixture
def sqlmq_process(settings: dict[str, str]) -> Iterator[SqlmqProcess]:
    # Whoever runs the tests in the background has Ctrl-C ignored, and so would what the tests start.
    program = "import signal, sqlmq.cli;signal.signal(signal.SIGINT, signal.default_int_handler);sqlmq.cli.main()"
    with ExitStack() as ending:

        def start(*arguments: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | settings,
                cwd=cwd,
            )
            ending.callback(_end, process)
            return process

        yield start


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None and not pipe.closed:
            with suppress(BrokenPipeError):
                pipe.close()
