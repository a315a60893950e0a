"""What the commands that only look print: nothing of a message, and no password."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from sqlalchemy import NullPool, create_engine, make_url, text

from sqlmq import MQ, Message, Retry
from sqlmq.cli.root import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

    from tests.conftest import DatabaseUnderTest

CANARY = "canary-8d41e7"

LOOKING = [
    ("doctor", "--stuck-seconds", "0", "--max-transaction-seconds", "0"),
    ("doctor", "--stuck-seconds", "0", "--max-transaction-seconds", "0", "--json"),
    ("metrics", "--once"),
    ("top", "--once"),
    ("top", "--once", "--json"),
    ("lag",),
    ("lag", "--json"),
]


@pytest.fixture
def secret_url(database: DatabaseUnderTest) -> Iterator[str]:
    """The test's database, on Postgres for a role whose password is the canary."""
    if not database.is_postgres:
        yield database.url
        return
    url = make_url(database.url)
    name = f"secret_{url.database}"
    admin = create_engine(url, poolclass=NullPool)
    with admin.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{CANARY}'")
    yield url.set(username=name, password=CANARY).render_as_string(hide_password=False)
    with admin.begin() as connection:
        connection.exec_driver_sql(f"DROP ROLE {name}")


def _run(arguments: tuple[str, ...], url: str, schema: str | None) -> Result:
    settings = {"SQLMQ_URL": url} | ({"SQLMQ_SCHEMA": schema} if schema else {})
    return CliRunner().invoke(main, [*arguments, "-v", "-v"], env=settings, prog_name="sqlmq")


def _fail(message: Message) -> None:
    raise ValueError(message.value.decode())


def test_nothing_of_a_message_and_no_password_is_printed(database: DatabaseUnderTest, secret_url: str) -> None:
    canary = Message(CANARY.encode(), CANARY.encode(), {CANARY: CANARY})
    with MQ(secret_url, schema=database.schema) as mq:
        producer = mq.producer("orders")
        producer.produce(canary)
        mq.consumer("orders", "billing").run(_fail, retry=Retry(max_attempts=1), idle_seconds=0)
        producer.produce_many([canary] * 3)
        producer.schedule(canary, delay_seconds=3600)

    # A statement with the canary in it is what a transaction that stays open did last.
    with create_engine(secret_url, poolclass=NullPool).connect() as connection:
        connection.execute(text(f"SELECT '{CANARY}'"))
        results = {arguments: _run(arguments, secret_url, database.schema) for arguments in LOOKING}

    for arguments, result in results.items():
        printed = result.stdout + result.stderr
        assert "orders" in printed, arguments
        assert CANARY not in printed, arguments
        assert CANARY.encode().hex() not in printed, arguments
    codes = results["doctor", *LOOKING[0][1:]].stdout
    assert "[dead-letters]" in codes
    assert ("[old-transaction]" in codes) == database.is_postgres


@pytest.mark.parametrize("arguments", LOOKING)
def test_the_password_for_a_database_that_does_not_answer_is_not_printed(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlmq.database.retrying._RETRY_SECONDS", 0.1)

    result = _run(arguments, f"postgresql://user:{CANARY}@127.0.0.1:1/name?application_name={CANARY}", None)

    assert result.exit_code == 1
    assert "127.0.0.1" in result.stderr
    assert CANARY not in result.stdout + result.stderr
