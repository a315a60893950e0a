"""Each role logs in, does its work, and is refused everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from sqlmq import MQ, Message, Retention, Retry
from sqlmq.dialects.postgresql.roles import APPENDING, FUNCTIONS, ROLES, grants
from sqlmq.errors import PermissionDeniedError
from sqlmq.schema import DETAILED_VIEWS, VIEWS_WITHOUT_CONTENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import DatabaseUnderTest

EITHER = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)

PASSWORD = "role-password"  # noqa: S105 - of roles that are gone after the test


@pytest.fixture
def login(database: DatabaseUnderTest, engine: Engine) -> Iterator[Callable[[str], str]]:
    """Makes a role of that kind, and gives the database's URL for it. What everybody may do with functions, they may not."""
    made: list[str] = []
    functions = f"ON ALL FUNCTIONS IN SCHEMA {database.schema or 'public'}"

    def make(kind: str) -> str:
        url = make_url(database.url)
        name = f'{kind} "of" {url.database}'
        with engine.begin() as connection:
            quoted = name.replace('"', '""')
            connection.exec_driver_sql(f"CREATE ROLE \"{quoted}\" LOGIN PASSWORD '{PASSWORD}'")
            made.append(quoted)
            connection.exec_driver_sql(f"REVOKE EXECUTE {functions} FROM PUBLIC")
            for statement in grants(kind, name, schema=database.schema):
                connection.exec_driver_sql(statement)
        return url.set(username=name, password=PASSWORD).render_as_string(hide_password=False)

    yield make
    with engine.begin() as connection:
        for quoted in made:
            connection.exec_driver_sql(f'DROP OWNED BY "{quoted}"')
            connection.exec_driver_sql(f'DROP ROLE "{quoted}"')
        connection.exec_driver_sql(f"GRANT EXECUTE {functions} TO PUBLIC")


@pytest.fixture
def filled(mq: MQ) -> MQ:
    mq.create_topic("orders", 2, retention=Retention(max_messages=2))
    mq.producer("orders").produce_many([Message(b"secret", b"%d" % number) for number in range(20)])
    return mq


@EITHER
def test_a_producer_appends_in_every_way(filled: MQ, database: DatabaseUnderTest, login: Callable[[str], str]) -> None:
    url = login("producer")
    application = create_engine(url, poolclass=NullPool)

    with MQ(url, schema=database.schema, create_topics=False) as mq:
        producer = mq.producer("orders")
        producer.produce(Message(b"1"))
        producer.produce_many([Message(b"2"), Message(b"3", headers={"a": "b"})])
        producer.submit(Message(b"4")).result(30)
        producer.schedule(Message(b"5"), delay_seconds=0.01)
        (kept,) = mq.admin.cancel_delayed(producer.schedule(Message(b"6"), delay_seconds=600).id)
        assert kept
        with Session(application) as session, session.begin():
            producer.produce(Message(b"7"), session=session)
        with pytest.raises(PermissionDeniedError):
            mq.create_topic("another")
        with pytest.raises(PermissionDeniedError):
            mq.delete_topics("orders")
        with pytest.raises(PermissionDeniedError):
            mq.consumer("orders", "billing").poll(timeout=5)
    assert filled.admin.describe_topic("orders").messages == 20 + 6


@EITHER
@pytest.mark.usefixtures("filled")
def test_a_consumer_does_all_that_keeps_a_group(database: DatabaseUnderTest, login: Callable[[str], str]) -> None:
    def handler(message: Message) -> None:
        if message.key == b"7":
            raise ValueError

    with MQ(login("consumer"), schema=database.schema, create_topics=False) as mq:
        mq.consumer("orders", "billing").run(
            handler, retry=Retry(max_attempts=2, backoff_seconds=0.01), idle_seconds=0.2
        )
        parked = mq.admin.parked("orders", "billing")
        assert [message.key for message in parked.list()] == [b"7"]
        parked.discard(key=b"7")
        with mq.consumer("orders", "audit") as consumer:
            with consumer.transaction() as tx:
                assert tx.messages
            assert consumer.poll(timeout=10)
            consumer.commit()
        mq.producer("orders").schedule(Message(b"1"), delay_seconds=0.01)
        assert mq.admin.lag("orders", "billing")
        mq.admin.reset_group("orders", "billing", "latest")
        mq.admin.apply_retention()
        with pytest.raises(PermissionDeniedError):
            mq.create_topic("another")
        with pytest.raises(PermissionDeniedError):
            mq.delete_topics("orders")
        with pytest.raises(PermissionDeniedError):
            mq.admin.set_retention("orders", Retention())


@EITHER
def test_a_monitor_sees_numbers(filled: MQ, database: DatabaseUnderTest, login: Callable[[str], str]) -> None:
    filled.consumer("orders", "billing").close()

    with MQ(login("monitor"), schema=database.schema, create_topics=False) as mq:
        assert sum(partition.lag for partition in mq.admin.lag("orders", "billing")) == 20
        assert mq.admin.describe_topic("orders").messages == 20
        assert mq.admin.describe_group("orders", "billing").lag == 20
        assert mq.admin.members("orders", "billing") == []
        assert mq.admin.evictions("orders") == []
        # Of the server that the tests run on.
        assert "not-durable" in {problem.code for problem in mq.admin.diagnose()}
        with pytest.raises(PermissionDeniedError):
            list(mq.admin.tail("orders", last=1, timeout=0))
        with pytest.raises(PermissionDeniedError):
            mq.admin.parked("orders", "billing").list()


@EITHER
@pytest.mark.parametrize("kind", ROLES)
def test_the_doctor_says_what_a_role_may_not_look_at(
    filled: MQ, database: DatabaseUnderTest, login: Callable[[str], str], kind: str
) -> None:
    filled.consumer("orders", "billing").close()

    with MQ(login(kind), schema=database.schema, create_topics=False) as mq:
        found = mq.admin.diagnose()

    unseen = {problem.details["name"] for problem in found if problem.code == "not-seen"}
    sees_groups = "pins-retention" in {problem.code for problem in found}
    assert unseen == {"sessions of other users"} | (set() if sees_groups else {"groups"})
    assert sees_groups == (kind != "producer")
    assert {problem.severity for problem in found if problem.code == "not-seen"} == {"info"}


@EITHER
def test_a_member_of_pg_monitor_sees_all_sessions(
    mq: MQ, engine: Engine, database: DatabaseUnderTest, login: Callable[[str], str]
) -> None:
    url = login("monitor")
    mq.admin.topics()
    with engine.begin() as connection:
        quoted = str(make_url(url).username).replace('"', '""')
        connection.exec_driver_sql(f'GRANT pg_monitor TO "{quoted}"')

    with MQ(url, schema=database.schema, create_topics=False) as monitoring:
        assert "not-seen" not in {problem.code for problem in monitoring.admin.diagnose()}


@EITHER
def test_an_admin_makes_and_deletes_topics(database: DatabaseUnderTest, login: Callable[[str], str]) -> None:
    with MQ(login("admin"), schema=database.schema) as mq:
        mq.create_topic("orders", 2)
        mq.producer("orders").produce(Message(b"1"))
        mq.admin.set_retention("orders", Retention(max_messages=1))
        with mq.consumer("orders", "billing") as consumer:
            assert consumer.poll(timeout=10)
        mq.admin.reset_group("orders", "billing", "earliest")
        assert mq.delete_topics("orders") == ["orders"]


@EITHER
@pytest.mark.parametrize("kind", ROLES)
def test_whatever_a_role_was_not_given_is_refused(
    database: DatabaseUnderTest, engine: Engine, login: Callable[[str], str], kind: str
) -> None:
    schema = database.schema or "public"
    with engine.connect() as connection:
        columns: dict[str, list[str]] = {}
        for table, column in connection.execute(
            text("SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = :s"),
            {"s": schema},
        ):
            columns.setdefault(table, []).append(column)
    rights = ROLES[kind]
    assert columns.keys() == ROLES["admin"].keys(), "a table or view that no role knows"

    with create_engine(login(kind), poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        for name, of_table in columns.items():
            table, granted = f"{schema}.{name}", rights.get(name, "")
            is_view = name in (*VIEWS_WITHOUT_CONTENT, *DETAILED_VIEWS)
            for column in of_table:
                statement = f'SELECT "{column}" FROM {table} WHERE false'
                assert _may(connection, statement) == _has(granted, "SELECT", column), statement
                if not is_view:
                    statement = f'UPDATE {table} SET "{column}" = NULL WHERE false'
                    assert _may(connection, statement) == _has(granted, "UPDATE", column), statement
            if not is_view:
                statement = f"DELETE FROM {table} WHERE false"
                assert _may(connection, statement) == _has(granted, "DELETE"), statement
                statement = f"INSERT INTO {table} SELECT * FROM {table} WHERE false"
                assert _may(connection, statement) == (_has(granted, "INSERT") and _has(granted, "SELECT")), statement
                if kind != "admin":
                    assert not _may(connection, f"TRUNCATE {table}")
                assert not _may(connection, f"ALTER TABLE {table} ADD COLUMN another integer")
            assert not _may(connection, f"DROP {'VIEW' if is_view else 'TABLE'} {table}")
        assert not _may(connection, f"CREATE TABLE {schema}.another (id integer)")


@EITHER
@pytest.mark.parametrize("kind", ROLES)
def test_functions_are_for_those_who_append(
    database: DatabaseUnderTest, engine: Engine, login: Callable[[str], str], kind: str
) -> None:
    role = make_url(login(kind)).username
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT proname || '(' || oidvectortypes(proargtypes) || ')' AS signature,"
                " has_function_privilege(:role, oid, 'EXECUTE') AS may, prosecdef FROM pg_proc"
                " WHERE pronamespace = CAST(:schema AS regnamespace)"
            ),
            {"role": role, "schema": database.schema or "public"},
        ).all()

    assert {row.signature for row in rows} == set(FUNCTIONS), "a function that no role knows"
    assert {row.may for row in rows} == {kind in APPENDING}
    # That everybody may call them does no harm for as long as nobody gets another's rights by that.
    assert not any(row.prosecdef for row in rows)


@EITHER
def test_a_producer_calls_the_function_for_sql(
    filled: MQ, database: DatabaseUnderTest, login: Callable[[str], str]
) -> None:
    prefix = "" if database.schema is None else f"{database.schema}."
    produce = f"SELECT {prefix}sqlmq_produce('orders', 'customer 7', 'paid')"

    with create_engine(login("producer"), poolclass=NullPool).begin() as connection:
        assert _may(connection, produce)
    with create_engine(login("monitor"), poolclass=NullPool).begin() as connection:
        assert not _may(connection, produce)
    assert filled.admin.describe_topic("orders").messages == 20 + 1


def _may(connection: Connection, statement: str) -> bool:
    """Whether the server runs *statement*, or refuses it for want of a right."""
    try:
        connection.exec_driver_sql(statement)
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        return False
    return True


def _has(granted: str, right: str, column: str | None = None) -> bool:
    """Whether rights, as in GRANT, contain that one, for a column or the whole table."""
    if granted == "ALL":
        return True
    for one in granted.replace("), ", ")|").split("|"):
        name, _, columns = one.partition(" (")
        if columns and name.split(", ")[-1] == right:
            return column is not None and column in columns.rstrip(")").split(", ")
        if right in name.split(", "):
            return True
    return False


@pytest.mark.parametrize("database", ["postgres-schema"], indirect=True)
def test_with_a_schema_every_name_is_qualified(database: DatabaseUnderTest, login: Callable[[str], str]) -> None:
    url = make_url(login("admin")).update_query_dict({"options": "-c search_path="})

    with MQ(url, schema=database.schema) as mq:
        with mq.engine.connect() as connection:
            assert connection.scalar(text("SHOW search_path")) in ("", '""')
        mq.create_topic("orders", 2, retention=Retention(max_messages=1))
        producer = mq.producer("orders")
        producer.produce(Message(b"1", key=b"1"))
        producer.produce_many([Message(b"2"), Message(b"bad")])
        producer.schedule(Message(b"3"), delay_seconds=0.01)
        with Session(mq.engine) as session, session.begin():
            producer.produce(Message(b"4"), session=session)

        def handler(message: Message) -> None:
            if message.value == b"bad":
                raise ValueError

        mq.consumer("orders", "billing").run(handler, retry=Retry(max_attempts=1), idle_seconds=0.5)
        with mq.consumer("orders", "audit") as consumer, consumer.transaction() as tx:
            assert tx.messages
        assert len(mq.admin.parked("orders", "billing").list()) == 1
        assert len(list(mq.admin.tail("orders", last=10, timeout=0))) == 5
        assert mq.admin.diagnose_group("orders", "billing") is not None
        mq.admin.apply_retention()
        mq.admin.reset_group("orders", "billing", "latest")
        assert mq.delete_topics("orders") == ["orders"]
