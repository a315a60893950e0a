"""What people do every day to applications, databases and machines: each case is a program, run on a fresh database.

`case.py` says what the programs share, and how to run one by hand.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from case import NOT_TRIED, crowding
from sqlmq.migrate import upgrade
from tests.support.postgres_server import SETTINGS, PostgresServer, installations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.mark import ParameterSet

    from tests.conftest import DatabaseUnderTest

PROGRAMS = sorted(Path(__file__).parent.glob("b[0-9][0-9]_*.py"))
KINDS = {"sqlite": "sqlite", "postgres": "postgresql"}
"""The kinds of databases, and how programs name them that are about one only."""
ERROR_CHARACTERS = 4000
"""How much is shown of what a program, or the library in it, has logged."""

NEEDS_SERVER = {"b30_messages_in_german", "b52_unix_socket"}
"""Programs that change settings of the whole server, or need a Unix socket: a server of their own."""

SECONDS = 20
"""How long a program may take that is not in SLOW."""
SLOW = {
    "b01_idle_session_timeout": 60,
    "b02_datestyle": 40,
    "b03_sql_ascii_database": 30,
    "b04_client_encoding": 30,
    "b05_error_text_in_latin1_database": 90,
    "b07_gevent": 120,
    "b08_fork_inside_transaction": 60,
    "b09_schema_renamed": 40,
    "b10_schema_names": 60,
    "b12_translated_schemas": 40,
    "b13_exceptions_of_handlers": 120,
    "b15_signals_of_a_web_server": 60,
    "b16_pool_starved_by_handlers": 150,
    "b18_exit_without_close": 120,
    "b19_row_level_security": 60,
    "b20_threads_outlive_main": 120,
    "b22_sigterm_while_starting": 120,
    "b23_command_line_surroundings": 180,
    "b24_moments": 30,
    "b25_migrations_by_other_drivers": 60,
    "b26_sqlite_transaction_control": 60,
    "b27_event_loops": 40,
    "b28_floods_of_log": 60,
    "b29_leaks": 60,
    "b30_messages_in_german": 60,
    "b31_dba_defaults": 600,
    "b34_since_a_moment": 40,
    "b36_dump_and_restore": 60,
    "b37_sizes": 120,
    "b38_published_tables": 60,
    "b41_handler_whose_result_is_to_be_awaited": 40,
    "b42_no_more_threads": 300,
    "b43_ddl_as_text": 90,
    "b44_async_driver_cancellation": 120,
    "b45_starved_for_ever": 90,
    "b46_clock_set_back": 60,
    "b47_handlers_that_meddle": 300,
    "b49_log_records_into_the_queue": 90,
    "b50_produce_in_a_callback": 60,
    "b51_never_closed": 40,
    "b52_unix_socket": 120,
}
"""Programs that take more than about two seconds, and how many each may take."""

KNOWN: dict[tuple[str, str], str] = {
    (
        "b01_idle_session_timeout",
        "postgres",
    ): "the state of an ended idle session is not in the list of those that are tried again",
    ("b06_sequences_not_replicated", "postgres"): "nothing looks at the sequences, and a duplicate id names no cause",
    ("b19_row_level_security", "postgres"): "no row is taken for no table, or no topic",
    (
        "b26_sqlite_transaction_control",
        "sqlite",
    ): "the driver's autocommit is taken for a session without transactions, or not seen",
    ("b39_read_only_sqlite", "postgres"): "every session that only reads is taken for one of a standby",
    ("b52_unix_socket", "postgres"): "on a Unix socket, work is taken for silence",
}
"""Cases that are wrong today, and why: they are not run. The aim is an empty table; who mends a case strikes it out."""


def cases() -> Iterator[ParameterSet]:
    """Return each program with each kind of database that it is about."""
    for program in PROGRAMS:
        only_on = re.search(r'only_on="(\w+)"', program.read_text(encoding="utf-8"))
        for kind, name in KINDS.items():
            if program.stem not in NEEDS_SERVER and (only_on is None or only_on[1] == name):
                yield pytest.param(program, kind, id=f"{program.stem}-{kind}", marks=list(marks(program.stem, kind)))


def cases_with_servers() -> Iterator[ParameterSet]:
    """Return the programs that need a server of their own."""
    for program in PROGRAMS:
        if program.stem in NEEDS_SERVER:
            yield pytest.param(program, id=program.stem, marks=list(marks(program.stem, "postgres")))


def marks(name: str, kind: str) -> Iterator[pytest.MarkDecorator]:
    # The limit of the program comes first, unless the machine is very busy.
    yield pytest.mark.timeout(4 * seconds_for(name) + 60)
    if name in SLOW:
        yield pytest.mark.slow
    if (name, kind) in KNOWN:
        # Most of them are wrong by waiting for ever, so they would only cost their limits.
        yield pytest.mark.xfail(reason=KNOWN[name, kind], run=False)


def seconds_for(name: str) -> int:
    return SLOW.get(name, SECONDS)


@pytest.mark.parametrize(("program", "database"), list(cases()), indirect=["database"])
def test_the_case_is_right(program: Path, database: DatabaseUnderTest) -> None:
    run(program, database.url)


@pytest.mark.parametrize("program", list(cases_with_servers()))
def test_the_case_is_right_on_a_server_of_its_own(program: Path, server_url: str) -> None:
    run(program, server_url)


@pytest.fixture
def server_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of the test's own, with the tables in it, that has a Unix socket and can speak German."""
    # In every locale but C, where the server has these texts at all.
    monkeypatch.setenv("LANGUAGE", "de")
    # Not pytest's directory: its path is too long for a socket, and closed to the account of the server.
    with tempfile.TemporaryDirectory(prefix="sqlmq-socket-") as directory:
        Path(directory).chmod(0o777)
        server = PostgresServer(next(installations()), {**SETTINGS, "unix_socket_directories": directory})
        try:
            server.start()
            engine = create_engine(server.url, poolclass=NullPool)
            with engine.begin() as connection:
                upgrade(connection)
            yield server.url.render_as_string(hide_password=False)
        finally:
            server.remove()


def run(program: Path, url: str) -> None:
    """Run *program*, and fail with what it prints unless everything was right."""
    process = subprocess.Popen(
        [sys.executable, program, url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # Programs that it starts are in its group, so that none outlives it.
        start_new_session=True,
    )
    seconds = seconds_for(program.stem) * crowding()
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        pytest.fail(f"It did not end within {seconds:.0f} s:\n{output}{errors[-ERROR_CHARACTERS:]}")
    if process.returncode == NOT_TRIED:
        pytest.skip(output.strip())
    assert process.returncode == 0, f"{output}{errors[-ERROR_CHARACTERS:]}"
