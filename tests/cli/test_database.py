from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, inspect, text

from sqlmq.cli.root import main
from sqlmq.schema import REVISION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Sqlmq
    from tests.conftest import DatabaseUnderTest
    from tests.support.postgres_databases import PostgresDatabases


@pytest.fixture
def empty(postgres_databases: PostgresDatabases) -> Iterator[str]:
    """The URL of a Postgres database without tables."""
    name = postgres_databases.create_empty()
    yield postgres_databases.url(name)
    postgres_databases.drop(name)


def run(url: str, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["--url", url, *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize("schema", [(), ("--schema", "queue")])
def test_upgrade_makes_the_tables_and_check_says_so(empty: str, schema: tuple[str, ...]) -> None:
    before = run(empty, "db", "check", *schema)

    upgraded = run(empty, "db", "upgrade", *schema)

    after = run(empty, "db", "check", *schema)
    assert before[0] == 3
    assert "sqlmq db upgrade" in before[1]
    assert upgraded == (0, f"Upgraded from nothing to {REVISION}.\n")
    assert after[0] == 0


def test_upgrade_again_changes_nothing(sqlmq: Sqlmq) -> None:
    sqlmq("db", "upgrade")

    result = sqlmq("db", "upgrade", "--json")

    assert json.loads(result.stdout) == {"before": REVISION, "after": REVISION}


def test_upgrade_to_a_revision_that_is_not_there_is_an_error(empty: str) -> None:
    code, output = run(empty, "db", "upgrade", "--to", "9999")

    assert code == 1
    assert "9999" in output


def test_tables_without_sqlmq_in_between_are_named_as_missing_by_any_command(empty: str) -> None:
    code, output = run(empty, "topics", "list")

    assert code == 1
    assert "sqlmq db upgrade" in output


@pytest.mark.parametrize(("revision", "word"), [("0000", "Upgrade them"), ("9999", "newer sqlmq")])
def test_check_tells_older_from_newer_tables_with_exit_code_3(
    sqlmq: Sqlmq, database: DatabaseUnderTest, revision: str, word: str
) -> None:
    sqlmq("db", "upgrade")
    engine = create_engine(database.url)
    with engine.begin() as connection:
        table = f"{database.schema}.sqlmq_version" if database.schema else "sqlmq_version"
        connection.execute(text(f"UPDATE {table} SET version_num = :revision"), {"revision": revision})
    engine.dispose()

    result = sqlmq("db", "check")

    assert result.exit_code == 3
    assert word in result.stderr
    assert revision in result.stderr


def test_current_prints_what_is_found_and_what_is_needed(sqlmq: Sqlmq) -> None:
    sqlmq("db", "upgrade")

    result = sqlmq("db", "current", "--json")

    assert json.loads(result.stdout) == {"found": REVISION, "needed": REVISION}


@pytest.mark.parametrize(("command", "code"), [("check", 3), ("current", 0)])
def test_looking_at_a_file_that_is_not_there_does_not_make_it(tmp_path: Path, command: str, code: int) -> None:
    found = run(f"sqlite:///{tmp_path / 'not.db'}", "db", command)

    assert found[0] == code
    assert list(tmp_path.iterdir()) == []


def test_downgrade_removes_the_tables_only_when_told_to(sqlmq: Sqlmq, database: DatabaseUnderTest) -> None:
    sqlmq("db", "upgrade")

    refused = sqlmq("db", "downgrade")
    done = sqlmq("db", "downgrade", "--yes")

    engine = create_engine(database.url)
    left = [name for name in inspect(engine).get_table_names(schema=database.schema) if name != "sqlmq_version"]
    engine.dispose()
    assert refused.exit_code == 2
    assert done.exit_code == 0
    assert left == []


def test_the_printed_sql_makes_the_tables(empty: str) -> None:
    printed = CliRunner().invoke(main, ["db", "sql", "--dialect", "postgresql", "--schema", "queue"])
    # The driver itself, which takes the statements as they are, as psql does.
    with psycopg.connect(empty.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(printed.stdout_bytes)

    result = CliRunner().invoke(main, ["--url", empty, "--schema", "queue", "produce", "orders"], input="1\n")
    assert result.exit_code == 0, result.output


def test_the_printed_sql_is_for_the_database_that_the_url_names() -> None:
    postgres = CliRunner().invoke(main, ["db", "sql", "--url", "postgres://nobody@nowhere/app"])
    sqlite = CliRunner().invoke(main, ["db", "sql", "--url", "sqlite:///never.db"])

    assert "CREATE FUNCTION" in postgres.stdout.upper()
    assert "FUNCTION" not in sqlite.stdout.upper()


def test_the_printed_sql_can_start_at_a_revision() -> None:
    everything = CliRunner().invoke(main, ["db", "sql", "--dialect", "sqlite"])
    rest = CliRunner().invoke(main, ["db", "sql", "--dialect", "sqlite", "--start", REVISION])

    assert "CREATE TABLE sqlmq_topic" in everything.stdout
    assert rest.exit_code == 0
    assert "CREATE TABLE" not in rest.stdout


def test_the_sql_for_roles_is_printed_without_a_database() -> None:
    printed = CliRunner().invoke(
        main,
        ["db", "roles", "--url", "postgresql://nobody@nowhere.invalid/x", "--schema", "my queue", "--producer", 'a"b'],
    )

    assert printed.exit_code == 0
    assert printed.stdout.startswith(
        'GRANT USAGE ON SCHEMA "my queue" TO "a""b";\nREVOKE ALL ON "my queue".sqlmq_version, '
    )
    assert 'GRANT SELECT (partition_id, msg_offset), INSERT ON "my queue".sqlmq_message TO "a""b";\n' in printed.stdout


def test_roles_without_a_name_are_refused() -> None:
    refused = CliRunner().invoke(main, ["db", "roles"])

    assert refused.exit_code == 2
    assert "--consumer billing" in refused.stderr
