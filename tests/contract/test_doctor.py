"""Each problem is brought about, and found; and a database that is well has none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from sqlmq import MQ, DoctorLimits, Message, Problem, Retention, Retry
from sqlmq.reports.problem import PROBLEM_KINDS
from tests.support.pgbouncer import PgBouncer, find_pgbouncer
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest, MakeMQ

POSTGRES = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
# Of the machine and the server that the tests run on, which write nothing to the disk on purpose.
OURS = {"not-durable", "sqlite-version"}
# Of the way there, with `--pgbouncer`.
POOLER = {"pooler"}
# Of other tests, which work in databases of their own meanwhile.
THEIRS = {"old-transaction-elsewhere"}


def codes(problems: list[Problem]) -> set[str]:
    return {problem.code for problem in problems} - OURS - POOLER


def is_pooler_found(mq: MQ) -> bool:
    return "pooler" in {problem.code for problem in mq.admin.diagnose()}


def the_one(problems: list[Problem], code: str) -> Problem:
    (found,) = (problem for problem in problems if problem.code == code)
    return found


def until_unowned(mq: MQ) -> None:
    """Wait until messages have waited for an owner, by the database's clock: that of SQLite has milliseconds."""
    until(lambda: any(lag.lag_seconds > 0 for lag in mq.admin.lag()), "a message to have waited")


def test_a_queue_at_work_is_well(mq: MQ) -> None:
    mq.create_topic("orders", 2, retention=Retention(max_messages=10))
    mq.producer("orders").produce_many([Message(b"%d" % number) for number in range(20)])
    consumer = mq.consumer("orders", "billing")
    consumer.poll(timeout=10)

    assert codes(mq.admin.diagnose()) == set()


def test_the_worst_comes_first_and_each_has_an_exit_code_of_its_own(mq: MQ) -> None:
    mq.create_topic("orders", 1, retention=Retention(max_messages=1))
    mq.consumer("orders", "billing").close()
    mq.producer("orders").produce(Message(b""))
    until_unowned(mq)

    found = mq.admin.diagnose(DoctorLimits(stuck_seconds=0))

    assert codes(found) == {"no-owner", "pins-retention"}
    assert [problem.exit_code for problem in found] == sorted(problem.exit_code for problem in found)
    codes_of_problems = [kind.exit_code for kind in PROBLEM_KINDS.values() if kind.severity != "info"]
    assert len(set(codes_of_problems)) == len(codes_of_problems)
    assert {kind.exit_code for kind in PROBLEM_KINDS.values() if kind.severity == "info"} == {0}
    with pytest.raises(TypeError, match="Limits"):
        mq.admin.diagnose(300)  # type: ignore[arg-type]


# --- Groups ---


def test_messages_that_nobody_reads_are_found(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    mq.consumer("orders", "billing").close()
    mq.producer("orders").produce(Message(b""))
    until_unowned(mq)

    found = the_one(mq.admin.diagnose(DoctorLimits(stuck_seconds=0)), "no-owner")

    assert "billing on orders" in found.summary
    assert "sqlmq groups describe billing --topic orders" in found.remedy
    assert codes(mq.admin.diagnose()) == set(), "they have not waited for a minute"


def test_a_group_that_keeps_messages_and_reads_none_is_found(mq: MQ) -> None:
    mq.create_topic("orders", 1, retention=Retention(max_messages=1))
    mq.consumer("orders", "billing").close()
    mq.producer("orders").produce_many([Message(b"")] * 5)

    found = the_one(mq.admin.diagnose(), "pins-retention")
    assert (found.topic, found.group, found.partition, found.details) == ("orders", "billing", None, {"messages": 5})


def test_dead_letters_are_found(mq: MQ) -> None:
    def handler(_message: Message) -> None:
        raise ValueError

    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(b"")] * 2)
    mq.consumer("orders", "billing").run(handler, retry=Retry(max_attempts=1), idle_seconds=0)

    found = the_one(mq.admin.diagnose(), "dead-letters")
    assert (found.topic, found.group, found.partition, found.details) == ("orders", "billing", None, {"messages": 2})


def test_a_member_that_is_not_heard_of_is_found(mq: MQ, engine: Engine, database: DatabaseUnderTest) -> None:
    consumer = mq.consumer("orders", "billing", name="left-behind")
    consumer.poll(timeout=0)
    table = "sqlmq_member" if database.schema is None else f"{database.schema}.sqlmq_member"
    with engine.begin() as connection:
        # Another one, which nobody keeps alive.
        connection.execute(
            text(
                f"INSERT INTO {table} (id, group_id, name, lease_seconds, wants_partitions, heartbeat_at, joined_at)"
                f" SELECT id + 1, group_id, 'gone', 0.0, false, heartbeat_at, joined_at FROM {table}"
            )
        )

    assert the_one(mq.admin.diagnose(), "dead-member").details["members"] == ["gone"]


@pytest.mark.sync_only("nobody moves what is due but consumers")
def test_messages_that_are_due_and_that_nobody_moves_are_found(
    make_mq: MakeMQ, engine: Engine, database: DatabaseUnderTest
) -> None:
    mq = make_mq()
    mq.create_topic("orders", 1)
    for _ in range(3):
        mq.producer("orders").schedule(Message(b""), delay_seconds=3600)
    assert codes(mq.admin.diagnose(DoctorLimits(stuck_seconds=0))) == set(), "they are not due"
    table = "sqlmq_staged" if database.schema is None else f"{database.schema}.sqlmq_staged"
    with engine.begin() as connection:
        hours_ago = "interval '2 hours'" if database.is_postgres else "7200 * 1000000"
        connection.execute(
            text(f"UPDATE {table} SET deliver_at = deliver_at - {hours_ago}, created_at = created_at - {hours_ago}")
        )

    found = the_one(mq.admin.diagnose(), "overdue-delayed")
    assert (found.topic, found.details["messages"]) == ("orders", 3)
    assert found.details["seconds"] == pytest.approx(3600, abs=60)
    mq.consumer("orders", "billing").poll(timeout=10)
    assert "overdue-delayed" not in codes(mq.admin.diagnose(DoctorLimits(stuck_seconds=0)))


# --- Postgres ---


@POSTGRES
def test_a_transaction_that_stays_open_is_found(mq: MQ, engine: Engine) -> None:
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))

        found = the_one(mq.admin.diagnose(DoctorLimits(transaction_seconds=0)), "old-transaction")

    assert f"process {pid}, idle in transaction" in found.summary
    assert codes(mq.admin.diagnose(DoctorLimits(transaction_seconds=0))) - THEIRS == set()


@POSTGRES
def test_a_transaction_in_another_database_is_found_where_it_matters(mq: MQ, postgres_url: str) -> None:
    other = create_engine(postgres_url)
    with other.connect() as connection:
        pid, version = connection.execute(
            text("SELECT pg_backend_pid(), current_setting('server_version_num')::integer, pg_current_xact_id()")
        ).one()[:2]

        found = mq.admin.diagnose(DoctorLimits(transaction_seconds=0))

    other.dispose()
    names = [problem.summary for problem in found if problem.code == "old-transaction-elsewhere"]
    assert any(f"process {pid} in database " in name for name in names) == (version < 160000)


@POSTGRES
def test_a_replication_slot_that_nobody_reads_is_found(mq: MQ, engine: Engine) -> None:
    mq.admin.topics()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = connection.scalar(text("SELECT 'unread_' || current_database()"))
        connection.execute(text("SELECT pg_create_physical_replication_slot(:name, true)"), {"name": name})
        try:
            found = [one for one in mq.admin.diagnose(DoctorLimits(slot_bytes=-1)) if one.details.get("name") == name]
            at_ease = codes(mq.admin.diagnose())
        finally:
            connection.execute(text("SELECT pg_drop_replication_slot(:name)"), {"name": name})

    assert "unread_" in the_one(found, "inactive-slot").summary
    assert "inactive-slot" not in at_ease


@POSTGRES
def test_a_transaction_that_was_prepared_and_forgotten_is_found(mq: MQ, engine: Engine) -> None:
    with engine.connect() as connection:
        name = f"forgotten {connection.scalar(text('SELECT current_database()'))}"
        connection.execute(text(f"PREPARE TRANSACTION '{name}'"))
        connection.rollback()
    try:
        assert (
            the_one(mq.admin.diagnose(DoctorLimits(transaction_seconds=0)), "prepared-transaction").details["name"]
            == name
        )
    finally:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"ROLLBACK PREPARED '{name}'"))


def _set_for_database(engine: Engine, setting: str) -> None:
    with engine.begin() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        connection.execute(text(f"ALTER DATABASE {name} SET {setting}"))


@POSTGRES
@pytest.mark.parametrize(
    ("setting", "code", "said"),
    [
        ("default_transaction_isolation = 'repeatable read'", "isolation", "repeatable read"),
        ("default_transaction_read_only = on", "read-only", "default_transaction_read_only"),
        ("synchronous_commit = off", "not-durable", "synchronous_commit is off"),
    ],
)
def test_settings_of_the_database_are_found(
    make_mq: MakeMQ, engine: Engine, setting: str, code: str, said: str
) -> None:
    _set_for_database(engine, setting)

    assert said in the_one(make_mq().admin.diagnose(), code).summary


@POSTGRES
@pytest.mark.new_database
def test_a_table_without_autovacuum_and_with_rows_to_be_cleared_away_is_found(
    mq: MQ, engine: Engine, database: DatabaseUnderTest
) -> None:
    table = "sqlmq_message" if database.schema is None else f"{database.schema}.sqlmq_message"
    mq.create_topic("orders", 1, retention=Retention(max_messages=1))
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
    mq.producer("orders").produce_many([Message(b"")] * 100)
    mq.admin.apply_retention()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # What the table's counts are told with a delay, ANALYZE tells at once.
        connection.execute(text(f"ANALYZE {table}"))

    # Other tables may have rows of tests before.
    found = [
        problem for problem in mq.admin.diagnose(DoctorLimits(dead_rows=10)) if problem.details.get("table") == table
    ]
    assert the_one(found, "no-autovacuum").details == {"table": table}
    assert the_one(found, "dead-rows").details == {"table": table, "dead": 99, "live": 1}


@POSTGRES
@pytest.mark.new_database
def test_autovacuum_is_off_however_that_is_written(mq: MQ, engine: Engine, database: DatabaseUnderTest) -> None:
    table = "sqlmq_message" if database.schema is None else f"{database.schema}.sqlmq_message"
    off, on = ("0", "no", "f", "n", "OFF", "false"), ("1", "yes")
    found = {}
    mq.admin.topics()

    for value in (*off, *on):
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = {value})"))
        found[value] = "no-autovacuum" in codes(mq.admin.diagnose())

    assert found == dict.fromkeys(off, True) | dict.fromkeys(on, False)


@POSTGRES
def test_connections_and_transaction_ids_that_run_out_are_found(mq: MQ) -> None:
    found = codes(mq.admin.diagnose(DoctorLimits(connections=0.0, transaction_ids=-1)))

    assert found == {"connections", "wraparound"}


@POSTGRES
def test_a_clock_that_is_off_is_found(mq: MQ, make_mq: MakeMQ, engine: Engine) -> None:
    mq.admin.topics()
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA clock"))
        connection.execute(
            text(
                "CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE"
                " AS $$ SELECT pg_catalog.clock_timestamp() + interval '1 hour' $$"
            )
        )
    _set_for_database(engine, "search_path = clock, pg_catalog, public")

    # How long the answer took is not counted.
    assert the_one(make_mq().admin.diagnose(), "clock").details["seconds"] == pytest.approx(-3600, abs=60)


@pytest.mark.pgbouncer
@pytest.mark.parametrize("database", ["pgbouncer"], indirect=True)
def test_a_pooler_is_found(mq: MQ, make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlmq.background.listener._ANSWER_SECONDS", 0.2)

    assert the_one(mq.admin.diagnose(), "pooler").details == {"is_pooled": True}
    assert not is_pooler_found(make_mq(notify=False)), "it waits for no notices"


@pytest.mark.pgbouncer
@pytest.mark.sync_only("it is about the server")
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_pooler_in_session_mode_is_no_problem(database: DatabaseUnderTest, postgres_url: str) -> None:
    program = find_pgbouncer()
    if program is None:
        pytest.skip("There is no pgbouncer on this machine: `sudo apt install pgbouncer`.")
    name = make_url(database.url).database
    assert name is not None
    pooler = PgBouncer(program, make_url(postgres_url), pool_mode="session")
    try:
        with MQ(pooler.url(name)) as mq:
            assert not is_pooler_found(mq)
    finally:
        pooler.forget(name)
        pooler.remove()


@POSTGRES
def test_notices_that_get_lost_on_the_way_are_found(
    mq: MQ, make_mq: MakeMQ, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_pooler_found(mq)
    monkeypatch.setattr("sqlmq.background.listener._ANSWER_SECONDS", 0.2)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA silent"))
        connection.execute(
            text("CREATE FUNCTION silent.pg_notify(text, text) RETURNS void LANGUAGE sql AS $$ SELECT NULL::void $$")
        )
    _set_for_database(engine, "search_path = silent, pg_catalog, public")

    assert the_one(make_mq().admin.diagnose(), "pooler").details == {"is_pooled": False}


@pytest.mark.sync_only("it is about the tables")
def test_tables_of_another_version_are_found(database: DatabaseUnderTest, engine: Engine) -> None:
    table = "sqlmq_version" if database.schema is None else f"{database.schema}.sqlmq_version"
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET version_num = '9999'"))

    with MQ(database.url, schema=database.schema) as mq:
        (found,) = mq.admin.diagnose()
    assert (found.code, found.severity) == ("schema", "error")


# --- SQLite ---


@SQLITE
@pytest.mark.sync_only("an engine of the application's")
@pytest.mark.parametrize(
    ("pragma", "code"), [("journal_mode = DELETE", "journal-mode"), ("synchronous = NORMAL", "not-durable")]
)
def test_settings_of_a_file_are_found(database: DatabaseUnderTest, pragma: str, code: str) -> None:
    engine = create_engine(database.url)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA {pragma}")
        connection.rollback()

    with MQ(engine) as mq:
        assert code in {problem.code for problem in mq.admin.diagnose()}
    engine.dispose()


@SQLITE
def test_a_write_ahead_file_that_has_grown_is_found(mq: MQ) -> None:
    mq.producer("orders").produce(Message(b""))

    assert codes(mq.admin.diagnose(DoctorLimits(wal_bytes=1))) == {"large-wal"}


@SQLITE
def test_a_library_that_may_damage_the_file_is_found(mq: MQ, monkeypatch: pytest.MonkeyPatch) -> None:
    may_damage, is_mended = ((3, 40, 1), (3, 51, 2), (3, 44, 5)), ((3, 51, 3), (3, 50, 7), (3, 44, 6))
    found = {}

    for version in (*may_damage, *is_mended):
        monkeypatch.setattr("sqlite3.sqlite_version_info", version)
        found[version] = "sqlite-version" in {problem.code for problem in mq.admin.diagnose()}

    assert found == dict.fromkeys(may_damage, True) | dict.fromkeys(is_mended, False)


@SQLITE
def test_a_file_that_may_not_be_written_is_found(mq: MQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda _path, _mode: False)  # root may write whatever the mode is

    assert the_one(mq.admin.diagnose(), "read-only").severity == "error"


@SQLITE
def test_a_network_file_system_is_found(mq: MQ, monkeypatch: pytest.MonkeyPatch, database: DatabaseUnderTest) -> None:
    directory = Path(str(make_url(database.url).database)).parent
    table = f"/dev/sda1 / ext4 rw 0 0\nserver:/export {directory} nfs4 rw 0 0\n"
    monkeypatch.setattr("sqlmq.dialects.sqlite.health._mounts", lambda: table)

    assert the_one(mq.admin.diagnose(), "network-file-system").details == {"file_system": "nfs4"}


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_every_kind_of_problem_has_a_section_in_the_documentation(database: DatabaseUnderTest) -> None:
    del database
    page = (Path(__file__).parent.parent.parent / "docs" / "doctor.md").read_text(encoding="utf-8")
    for code, kind in PROBLEM_KINDS.items():
        assert f"\n## {code}\n" in page
        assert f"| [{code}](#{code}) | {kind.exit_code} | {kind.severity} |" in page
