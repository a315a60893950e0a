"""The databases that tests get: emptied by the one before, and none that a test has changed beyond rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import make_url

from sqlmq import MQ, Message
from tests.support.postgres_databases import PostgresDatabases

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = "tidied"


@pytest.fixture(scope="module")
def databases(postgres_url: str) -> Iterator[PostgresDatabases]:
    made = PostgresDatabases(postgres_url, "tidying")
    yield made
    made.close()


def open_session(
    databases: PostgresDatabases, name: str, *, autocommit: bool = True
) -> psycopg.Connection[tuple[object]]:
    url = make_url(databases.url(name)).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(url, autocommit=autocommit)


def name_of_next(databases: PostgresDatabases) -> str:
    with databases.lend(SCHEMA) as name:
        return name


def test_rows_are_gone_and_numbers_begin_again(databases: PostgresDatabases) -> None:
    def use() -> tuple[str, list[str], int]:
        with databases.lend(SCHEMA) as name, MQ(databases.url(name), schema=SCHEMA) as mq:
            before = mq.admin.topics()
            mq.producer("orders").produce(Message(b"42"))
            with mq.consumer("orders", "billing") as consumer:
                consumer.consume(timeout=30)
                # The bits below are random.
                return name, before, consumer._core.member_id >> 31

    first, second = use(), use()

    assert first == second
    assert first[1] == []


def test_a_table_of_a_test_is_dropped_and_the_database_is_used_again(databases: PostgresDatabases) -> None:
    with databases.lend(SCHEMA) as name, open_session(databases, name) as session:
        session.execute("CREATE TABLE effect (id int)")

    with databases.lend(SCHEMA) as again, open_session(databases, again) as session:
        found = session.execute("SELECT to_regclass('effect')").fetchone()

    assert (again, found) == (name, (None,))


@pytest.mark.parametrize(
    "statement",
    [
        f"ALTER TABLE {SCHEMA}.sqlmq_message ADD CHECK (length(value) < 10)",
        f"ALTER TABLE {SCHEMA}.sqlmq_message SET (autovacuum_enabled = off)",
        f"UPDATE {SCHEMA}.sqlmq_version SET version_num = '9999'",
        f"DROP TABLE {SCHEMA}.sqlmq_version",
        f"CREATE INDEX more ON {SCHEMA}.sqlmq_message (value)",
        f"ALTER TABLE {SCHEMA}.sqlmq_message ALTER COLUMN value SET DEFAULT ''",
        "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE VIEW more AS SELECT 1",
        "CREATE SCHEMA more",
        f"GRANT SELECT ON {SCHEMA}.sqlmq_topic TO PUBLIC",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 64', current_database()); END $$",
        f"ANALYZE {SCHEMA}.sqlmq_version",
    ],
)
def test_a_database_that_a_test_has_changed_is_not_used_again(databases: PostgresDatabases, statement: str) -> None:
    with databases.lend(SCHEMA) as name, open_session(databases, name) as session:
        session.execute(statement)

    assert name_of_next(databases) != name


def test_a_transaction_that_a_test_left_open_is_told(databases: PostgresDatabases) -> None:
    lent = databases.lend(SCHEMA)
    session = open_session(databases, lent.__enter__(), autocommit=False)
    session.execute("SELECT 'left open'")

    with pytest.raises(AssertionError, match="idle in transaction after SELECT 'left open'"):
        lent.__exit__(None, None, None)
    session.close()


def test_sessions_that_a_test_left_are_ended(databases: PostgresDatabases) -> None:
    with databases.lend(SCHEMA) as name:
        session = open_session(databases, name)

    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    assert name_of_next(databases) == name
    session.close()


def test_a_database_is_used_again_though_a_test_has_ended_all_its_sessions(databases: PostgresDatabases) -> None:
    first = name_of_next(databases)
    with databases.lend(SCHEMA) as name, open_session(databases, name) as session:
        session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    assert name_of_next(databases) == name == first
