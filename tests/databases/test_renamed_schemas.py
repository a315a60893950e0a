"""Schemas that are renamed, moved, restored under another name: the functions write to their own tables, without a migration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, make_url, text

from sqlmq import MQ, Message, migrate
from sqlmq.dialects.postgresql.roles import FUNCTIONS
from tests.support.waiting import receive, values

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from tests.conftest import DatabaseUnderTest

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)

AWKWARD = "we.ird \"q\" 'a' %s"
SENT = [b"alone", b"batch", b"batch", b"large", b"repeatable", b"session", b"sql"]


def create(engine: Engine, schema: str) -> None:
    with engine.begin() as connection:
        migrate.upgrade(connection, schema=schema)


def quoted(schema: str) -> str:
    return '"' + schema.replace('"', '""') + '"'


def use(database: DatabaseUnderTest, schema: str | None, topic: str, options: str = "") -> list[bytes]:
    """Send in every way there is, in sessions with *options*, and return what arrives."""
    url = make_url(database.url).update_query_dict({"options": options} if options else {})
    engine = create_engine(url)
    with MQ(url, schema=schema) as mq:
        producer = mq.producer(topic)
        producer.produce(Message(b"alone", key=b"k"))
        producer.produce_many([Message(b"batch")] * 2)
        with engine.begin() as connection:
            producer.produce(Message(b"session", key=b"k"), session=connection)
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
            producer.produce(Message(b"repeatable", key=b"k"), session=connection)
        producer.produce_many([Message(b"large", key=b"k"), *([Message(b"", key=b"k")] * 5_000)])
        with engine.begin() as connection:
            prefix = f"{quoted(schema)}." if schema else ""
            connection.execute(text(f"SELECT {prefix}sqlmq_produce(:topic, 'k', 'sql')"), {"topic": topic})
        with mq.consumer(topic, "billing") as consumer:
            arrived = values(receive(consumer, len(SENT) + 5_000))
    engine.dispose()
    return sorted(value for value in arrived if value)


def messages(engine: Engine, schema: str) -> int:
    with engine.connect() as connection:
        count: int = connection.execute(text(f"SELECT count(*) FROM {quoted(schema)}.sqlmq_message")).scalar_one()
    return count


@pytest.mark.parametrize("name", ["green", AWKWARD], ids=["plain", "awkward"])
def test_a_renamed_schema_works_under_its_new_name(database: DatabaseUnderTest, engine: Engine, name: str) -> None:
    create(engine, "blue")
    use(database, "blue", "before")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER SCHEMA blue RENAME TO {quoted(name)}".replace("%", "%%"))

    assert use(database, name, "after") == SENT


def test_names_do_not_depend_on_how_a_session_quotes(database: DatabaseUnderTest, engine: Engine) -> None:
    options = "-c quote_all_identifiers=on -c standard_conforming_strings=off"
    quoting = create_engine(database.url, connect_args={"options": options})
    create(quoting, "back\\slash")
    quoting.dispose()

    assert use(database, "back\\slash", "before", options) == SENT
    with engine.begin() as connection:
        connection.exec_driver_sql('ALTER SCHEMA "back\\slash" RENAME TO "Gr\\een"')
    assert use(database, "Gr\\een", "after", options) == SENT


def test_a_renamed_schema_writes_nothing_into_one_that_got_its_name(
    database: DatabaseUnderTest, engine: Engine
) -> None:
    create(engine, "blue")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER SCHEMA blue RENAME TO green")
    create(engine, "blue")
    with MQ(database.url, schema="blue") as mq:
        mq.create_topic("orders")

    arrived = use(database, "green", "orders")

    assert arrived == SENT
    assert messages(engine, "blue") == 0


def test_an_mq_that_was_open_writes_nothing_into_a_schema_that_got_the_name(
    database: DatabaseUnderTest, engine: Engine
) -> None:
    create(engine, "blue")
    with MQ(database.url, schema="blue") as mq, mq.producer("orders") as producer:
        producer.produce(Message(b"before"))
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER SCHEMA blue RENAME TO green")
        create(engine, "blue")
        with MQ(database.url, schema="blue") as other:
            other.create_topic("payments")

        with pytest.raises(LookupError):
            producer.produce(Message(b"astray"))

    assert messages(engine, "blue") == 0


def test_a_schema_that_the_search_path_finds_may_be_renamed(database: DatabaseUnderTest, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA tenant")
        connection.exec_driver_sql("SET LOCAL search_path TO tenant")
        migrate.upgrade(connection)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER SCHEMA tenant RENAME TO renamed")
    finding = create_engine(database.url, connect_args={"options": "-c search_path=renamed"})

    with MQ(finding) as mq:
        mq.producer("orders").produce(Message(b"found"))

    finding.dispose()
    assert messages(engine, "renamed") == 1


def test_tables_and_functions_may_be_moved_to_another_schema(database: DatabaseUnderTest, engine: Engine) -> None:
    with engine.begin() as connection:
        migrate.upgrade(connection, schema="blue")
        connection.exec_driver_sql("CREATE SCHEMA green")
        kinds = {"r": "TABLE", "v": "VIEW"}
        moved = connection.execute(
            text(
                "SELECT relkind, relname FROM pg_class WHERE relnamespace = 'blue'::regnamespace AND relkind IN ('r', 'v')"
            )
        ).all()
        for kind, name in moved:
            connection.exec_driver_sql(f"ALTER {kinds[kind]} blue.{name} SET SCHEMA green")
        for signature in FUNCTIONS:
            connection.exec_driver_sql(f"ALTER FUNCTION blue.{signature} SET SCHEMA green")

    assert use(database, "green", "orders") == SENT


@pytest.mark.parametrize("path", ["elsewhere, public", "", '"$user", public', "pg_catalog"])
def test_a_function_leaves_the_search_path_of_its_caller_as_it_was(connection: Connection, path: str) -> None:
    migrate.upgrade(connection, schema="queue")
    connection.exec_driver_sql("CREATE SCHEMA elsewhere")
    with MQ(connection.engine, schema="queue"):
        pass
    connection.exec_driver_sql("SELECT set_config('search_path', %s, false)", (path,))
    before = connection.execute(text("SELECT current_setting('search_path')")).scalar_one()
    connection.exec_driver_sql(
        "INSERT INTO queue.sqlmq_topic (id, name, partitions, partitioner) VALUES (1, 'orders', 1, 'murmur2')"
    )
    connection.exec_driver_sql(
        "INSERT INTO queue.sqlmq_partition (id, topic_id, number, topic_partitions) VALUES (1, 1, 0, 1)"
    )

    connection.execute(text("SELECT queue.sqlmq_produce('orders', 'k', 'v')"))
    connection.execute(
        text("SELECT queue.sqlmq_publish(ARRAY[1], ARRAY[1], NULL, ARRAY['x']::bytea[], NULL, ARRAY[1])")
    )
    connection.execute(text("SELECT queue.sqlmq_append_to_any(ARRAY[1], ARRAY['x']::bytea[], NULL, 1)"))
    connection.execute(text("SELECT queue.sqlmq_is_grown(ARRAY[1], ARRAY[2])"))

    after = connection.execute(text("SELECT current_setting('search_path')")).scalar_one()
    assert after == before
    assert connection.execute(text("SELECT count(*) FROM queue.sqlmq_message")).scalar_one() == 3


def test_triggers_of_the_application_find_their_tables_on_its_search_path(
    database: DatabaseUnderTest, engine: Engine
) -> None:
    create(engine, "queue")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE audit (message_offset bigint)")
        connection.exec_driver_sql(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO audit VALUES (NEW.msg_offset); RETURN NULL; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER note AFTER INSERT ON queue.sqlmq_message FOR EACH ROW EXECUTE FUNCTION note()"
        )

    with MQ(database.url, schema="queue") as mq:
        mq.producer("orders").produce(Message(b"noted"))

    with engine.connect() as connection:
        assert connection.execute(text("SELECT message_offset FROM audit")).scalar_one() == 0
