"""What is particular to Postgres: SQL as a producer, isolation levels, and connections that the server cuts off."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg
import pytest
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlmq import MQ, Message, OutcomeUnknownError
from sqlmq.model.partitioner import PARTITIONERS, partition_for_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import PoolProxiedConnection

    from tests.conftest import DatabaseUnderTest, MakeMQ

ROOT = Path(__file__).parent.parent.parent
POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)
EITHER = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)


def function(database: DatabaseUnderTest) -> str:
    return f"{database.schema}.sqlmq_produce" if database.schema else "sqlmq_produce"


def sqlstate(error: DBAPIError) -> str | None:
    assert isinstance(error.orig, psycopg.Error)
    return error.orig.sqlstate


def hint(error: DBAPIError) -> str | None:
    assert isinstance(error.orig, psycopg.Error)
    return error.orig.diag.message_hint


# SQL as a producer.


@EITHER
def test_sql_produces_text(mq: MQ, connection: Connection, database: DatabaseUnderTest) -> None:
    mq.create_topic("orders", 3)

    row = connection.execute(
        text(f"SELECT * FROM {function(database)}('orders', 'customer 7', 'größer', '{{\"type\": \"paid\"}}')")
    ).one()
    connection.commit()

    message = mq.consumer("orders", "billing").consume(timeout=10)
    assert (message.key, message.value, message.headers) == (b"customer 7", "größer".encode(), {"type": "paid"})
    assert (message.partition, message.offset) == (row.partition_number, row.message_offset)
    assert row.partition_number == partition_for_key("murmur2", b"customer 7", 3)


@EITHER
def test_sql_produces_bytes_to_a_partition_of_its_choice(
    mq: MQ, connection: Connection, database: DatabaseUnderTest
) -> None:
    mq.create_topic("orders", 3)

    row = connection.execute(
        text(f"SELECT * FROM {function(database)}('orders', NULL::bytea, '\\x00ff'::bytea, NULL, 2)")
    ).one()
    connection.commit()

    assert tuple(row) == (2, 0)
    message = mq.consumer("orders", "billing").consume(timeout=10)
    assert (message.key, message.value, message.headers, message.partition) == (None, b"\x00\xff", {}, 2)


@EITHER
def test_untyped_literals_are_text(mq: MQ, connection: Connection, database: DatabaseUnderTest) -> None:
    mq.create_topic("orders", 1)

    connection.execute(text(f"SELECT {function(database)}('orders', NULL, '\\x41')"))
    connection.commit()

    assert mq.consumer("orders", "billing").consume(timeout=10).value == b"\\x41"


@POSTGRES
@pytest.mark.parametrize("form", ["NULL::bytea, NULL::bytea", "NULL::text, NULL::text", "'key', NULL"])
def test_sql_cannot_produce_null(mq: MQ, connection: Connection, form: str) -> None:
    mq.create_topic("orders", 1)

    with pytest.raises(DBAPIError, match="value can't be NULL"):
        connection.execute(text(f"SELECT sqlmq_produce('orders', {form})"))


@POSTGRES
@pytest.mark.parametrize("headers", ['{"a": 1}', '["a"]', '{"a": {"b": "c"}}', "null", '"text"'])
def test_sql_cannot_produce_headers_that_python_could_not_read(mq: MQ, connection: Connection, headers: str) -> None:
    mq.create_topic("orders", 1)

    with pytest.raises(DBAPIError, match="headers must be a JSON object"):
        connection.execute(text("SELECT sqlmq_produce('orders', 'k', 'v', CAST(:h AS jsonb))"), {"h": headers})


@EITHER
def test_an_unknown_topic_is_an_error_that_says_how_to_make_it(
    mq: MQ, connection: Connection, database: DatabaseUnderTest
) -> None:
    assert mq.admin.topics() == []

    with pytest.raises(DBAPIError, match="topic 'no-such' does not exist") as raised:
        connection.execute(text(f"SELECT {function(database)}('no-such', 'k', 'v')"))

    assert sqlstate(raised.value) == "MQ002"
    assert hint(raised.value) == "Create it with: sqlmq topics create no-such"


@POSTGRES
@pytest.mark.parametrize("partition", [-1, 3])
def test_a_partition_that_the_topic_lacks_is_an_error(mq: MQ, connection: Connection, partition: int) -> None:
    mq.create_topic("orders", 3)

    with pytest.raises(DBAPIError, match=f"has the partitions 0 to 2; there is no partition {partition}"):
        connection.execute(text("SELECT sqlmq_produce('orders', 'k', 'v', NULL, :p)"), {"p": partition})


@EITHER
def test_a_trigger_produces_in_the_transaction_that_fired_it(
    mq: MQ, connection: Connection, database: DatabaseUnderTest
) -> None:
    mq.create_topic("orders", 1)
    for statement in (
        "CREATE TABLE invoice (id integer PRIMARY KEY, total numeric)",
        f"""CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM {function(database)}('orders', NEW.id::text, to_jsonb(NEW)::text);
            RETURN NEW;
        END $$""",
        "CREATE TRIGGER tell AFTER INSERT ON invoice FOR EACH ROW EXECUTE FUNCTION tell()",
    ):
        connection.execute(text(statement))
    connection.commit()

    connection.execute(text("INSERT INTO invoice VALUES (1, 10), (2, 20)"))
    connection.rollback()
    connection.execute(text("INSERT INTO invoice VALUES (3, 30), (4, 40)"))
    connection.commit()

    messages = mq.consumer("orders", "billing").poll(timeout=10)
    assert [(message.key, json.loads(message.value)) for message in messages] == [
        (b"3", {"id": 3, "total": 30}),
        (b"4", {"id": 4, "total": 40}),
    ]
    assert [message.offset for message in messages] == [0, 1]


@POSTGRES
def test_the_functions_find_their_tables_whatever_the_search_path_of_the_caller(mq: MQ, connection: Connection) -> None:
    mq.create_topic("orders", 1)
    connection.execute(text("CREATE SCHEMA elsewhere"))
    # A table of the same name, which an unlucky search path would find first.
    connection.execute(text("CREATE TABLE elsewhere.sqlmq_topic (id int, name text, partitions int, partitioner text)"))
    connection.execute(text("SET LOCAL search_path = elsewhere"))

    connection.execute(text("SELECT public.sqlmq_produce('orders', 'k', 'v')"))
    connection.commit()

    assert mq.admin.describe_topic("orders").messages == 1


@POSTGRES
def test_python_and_sql_number_the_same_partition_together(mq: MQ, connection: Connection) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")

    for count in range(6):
        if count % 2:
            assert producer.produce(Message(b"python")).offset == count
        else:
            found = connection.execute(text("SELECT message_offset FROM sqlmq_produce('orders', NULL, 'sql')"))
            assert found.scalar_one() == count
            connection.commit()


@POSTGRES
@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [("1, 0", "must ascend"), ("0, 7", "partition id 7000 was deleted")],
)
def test_sql_cannot_append_to_partitions_out_of_order_or_gone(
    mq: MQ, connection: Connection, numbers: str, complaint: str
) -> None:
    mq.create_topic("orders", 2)
    wanted = f"""
        SELECT array_agg(coalesce(p.id, w.number * 1000) ORDER BY w.place)
        FROM unnest(ARRAY[{numbers}]) WITH ORDINALITY AS w (number, place) LEFT JOIN sqlmq_partition p USING (number)
    """

    values = "ARRAY[1, 1], NULL, ARRAY['x', 'y']::bytea[], NULL, ARRAY[2, 2]"

    with pytest.raises(DBAPIError, match=complaint):
        connection.execute(text(f"SELECT sqlmq_append(({wanted}), {values})"))


@EITHER
def test_an_engine_that_was_handed_over_does_not_commit_by_itself_afterwards(database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url, pool_size=1, max_overflow=0)
    with MQ(engine, schema=database.schema) as mq:
        producer = mq.producer("orders")
        for messages in ([Message(b"one")], [Message(b"two")] * 2, [Message(b"many")] * 5_001):
            producer.produce_many(messages)

            with engine.connect() as connection:
                assert isinstance(connection.connection.driver_connection, psycopg.Connection)
                assert not connection.connection.driver_connection.autocommit
        assert mq.admin.describe_topic("orders").messages == 5_004
    engine.dispose()


# The partitioners in SQL.


def partitions_in_sql(connection: Connection, name: str, keys: list[bytes], partitions: int) -> list[int]:
    query = text(
        "SELECT sqlmq_partition_for_key(:name, key, :partitions)"
        " FROM unnest(CAST(:keys AS bytea[])) WITH ORDINALITY AS k (key, place) ORDER BY place"
    )
    rows = connection.execute(query, {"name": name, "keys": keys, "partitions": partitions})
    return list(rows.scalars())


@POSTGRES
def test_sql_gives_the_published_partitions(connection: Connection) -> None:
    published = json.loads((ROOT / "tests" / "unit" / "partition_vectors.json").read_text(encoding="utf-8"))["vectors"]
    keys = [bytes.fromhex(vector["key_hex"]) for vector in published]

    for name in PARTITIONERS:
        for partitions in published[0]["partitions"][name]:
            expected = [vector["partitions"][name][partitions] for vector in published]
            assert partitions_in_sql(connection, name, keys, int(partitions)) == expected


@POSTGRES
@pytest.mark.parametrize("name", PARTITIONERS)
def test_sql_and_python_send_any_key_to_the_same_partition(connection: Connection, name: str) -> None:
    chosen = random.Random(11)
    keys = [chosen.randbytes(length % 70) for length in range(500)]

    for partitions in (1, 2, 3, 7, 12, 1000):
        expected = [partition_for_key(name, key, partitions) for key in keys]
        assert partitions_in_sql(connection, name, keys, partitions) == expected


# Isolation levels that somebody else has chosen.


@POSTGRES
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize("whose", ["DATABASE {database}", "ROLE {role} IN DATABASE {database}"])
def test_a_default_isolation_level_does_not_keep_the_queue_from_working(
    connection: Connection, make_mq: MakeMQ, level: str, whose: str
) -> None:
    role, name = connection.execute(text("SELECT quote_ident(current_user), current_database()")).one()
    target = whose.format(database=name, role=role)
    connection.execute(text(f"ALTER {target} SET default_transaction_isolation = '{level}'"))
    connection.commit()
    mq = make_mq()
    with mq.engine.connect() as other:
        assert other.execute(text("SHOW default_transaction_isolation")).scalar_one() == level
    mq.create_topic("orders", 2)
    producer = mq.producer("orders")

    def produce(number: int) -> None:
        producer.produce(Message(f"{number}".encode()))
        producer.produce_many([Message(b"", key=f"{number}/{i}".encode()) for i in range(3)])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(produce, range(20)))

    consumer = make_mq().consumer("orders", "billing")
    got = 0
    while messages := consumer.poll(timeout=1 if got == 80 else 10):
        got += len(messages)
        consumer.commit()
    assert got == 80
    assert mq.admin.describe_group("orders", "billing").lag == 0
    assert mq.delete_topics("orders") == ["orders"]


# Connections that are cut off.


def cut_all_off(url: str) -> int:
    """End every other session of the database; return how many there were."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        query = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database()"
        ended = connection.execute(text(f"{query} AND pid <> pg_backend_pid()")).all()
    engine.dispose()
    return len(ended)


@POSTGRES
@pytest.mark.faults
def test_a_producer_does_not_notice_that_its_idle_connections_were_cut_off(mq: MQ, database: DatabaseUnderTest) -> None:
    producer = mq.producer("orders")
    for count in range(5):
        producer.produce_with_partition(Message(b"before"), 0)
        assert cut_all_off(database.url) >= 1

        result = producer.produce_with_partition(Message(b"after"), 0)

        assert result.offset == 2 * count + 1


@POSTGRES
@pytest.mark.faults
def test_a_consumer_goes_on_after_its_connections_were_cut_off(make_mq: MakeMQ, database: DatabaseUnderTest) -> None:
    consumer = make_mq().consumer("orders", "billing")
    producer = make_mq().producer("orders")
    for count in range(5):
        producer.produce(Message(str(count).encode()))

        assert consumer.consume(timeout=10).value == str(count).encode()

        assert cut_all_off(database.url) >= 1
    consumer.commit()


def _unbound(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function, which gets the object it is called on. A bound *method* would not."""

    def call(*given: Any, **options: Any) -> Any:
        return method(*given, **options)

    return call


class AnswerLost:
    """Lets a COMMIT, or a *statement*, take effect and then breaks the connection, as a network does at the worst moment."""

    def __init__(self, mq: MQ, statement: str = "") -> None:
        self.is_armed = False
        self.lost = 0
        self._statement = statement
        self._dialect = mq.engine.dialect
        self._commit = self._dialect.do_commit
        self._execute = psycopg.Cursor.execute
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        if self._statement:
            self._patch.setattr(psycopg.Cursor, "execute", _unbound(self._do_execute))
        else:
            self._patch.setattr(self._dialect, "do_commit", self._do_commit)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _do_commit(self, connection: PoolProxiedConnection) -> None:
        self._commit(connection)
        if self.is_armed:
            assert isinstance(connection.driver_connection, psycopg.Connection)
            self._lose(connection.driver_connection)

    def _do_execute(self, cursor: Any, statement: str | bytes, *more: Any, **options: Any) -> Any:
        result = self._execute(cursor, statement, *more, **options)
        if self.is_armed and self._statement in (statement if isinstance(statement, str) else statement.decode()):
            self._lose(cursor.connection)
        return result

    def _lose(self, connection: psycopg.Connection[Any]) -> None:
        self.is_armed = False
        self.lost += 1
        connection.close()
        message = "server closed the connection unexpectedly"
        raise psycopg.OperationalError(message)


@POSTGRES
@pytest.mark.faults
def test_a_producer_says_that_it_does_not_know_when_the_answer_to_its_commit_is_lost(mq: MQ) -> None:
    producer = mq.producer("orders")
    # More than fits into one statement, which commits by itself.
    messages = [Message(b"")] * 5_001
    with AnswerLost(mq) as answer:
        answer.is_armed = True

        with pytest.raises(OutcomeUnknownError, match="may have taken effect or not"):
            producer.produce_many(messages)

    assert answer.lost == 1
    assert mq.admin.describe_topic("orders").messages == len(messages)
    assert producer.produce(Message(b"next")).topic == "orders"


@POSTGRES
@pytest.mark.faults
def test_a_transaction_goes_on_where_the_truth_is_when_the_answer_to_its_commit_is_lost(mq: MQ) -> None:
    mq.producer("orders").produce_many([Message(b"first", key=b"k"), Message(b"second", key=b"k")])
    consumer = mq.consumer("orders", "billing")

    with AnswerLost(mq) as answer:
        tx = consumer.transaction(max_messages=1, timeout=10).__enter__()
        assert [message.value for message in tx] == [b"first"]
        answer.is_armed = True
        with pytest.raises(OutcomeUnknownError):
            tx.__exit__(None, None, None)

    assert answer.lost == 1
    with consumer.transaction(max_messages=1, timeout=10) as tx:
        assert [message.value for message in tx] == [b"second"]


@POSTGRES
@pytest.mark.faults
def test_a_commit_of_positions_whose_answer_is_lost_is_sent_again(make_mq: MakeMQ) -> None:
    producer = make_mq().producer("orders")
    mq = make_mq(commit_interval_seconds=0.001, lease_seconds=600)
    consumer = mq.consumer("orders", "billing")
    values = [str(count).encode() for count in range(500)]
    producer.produce_many([Message(value, key=b"k") for value in values])

    with AnswerLost(mq, "INSERT INTO sqlmq_group_offset") as answer:
        got: list[bytes] = []
        while len(got) < len(values):
            # Stays so until there is a commit.
            answer.is_armed = answer.is_armed or len(got) % 50 == 49
            got.append(consumer.consume(timeout=10).value)
            consumer.commit()

    assert answer.lost == 10
    assert got == values
    assert mq.admin.describe_group("orders", "billing").lag == 0


# Messages that any partition will do for.


@EITHER
def test_a_batch_without_keys_passes_over_partitions_that_somebody_appends_to(
    mq: MQ, connection: Connection, database: DatabaseUnderTest
) -> None:
    mq.create_topic("orders", 4)
    with mq.producer("orders") as producer:
        for number in (0, 1, 3):
            connection.execute(text(f"SELECT * FROM {function(database)}('orders', NULL, 'busy', NULL, {number})"))

        places = [place for _ in range(8) for place in producer.produce_many([Message(b"1"), Message(b"2")])]
    connection.rollback()

    assert [(place.partition, place.offset) for place in places] == [(2, offset) for offset in range(16)]


@POSTGRES
def test_a_batch_without_keys_waits_where_all_partitions_are_busy(mq: MQ, connection: Connection) -> None:
    mq.create_topic("orders", 2)
    with mq.producer("orders") as producer, ThreadPoolExecutor(1) as threads:
        for number in (0, 1):
            connection.execute(text(f"SELECT * FROM sqlmq_produce('orders', NULL, 'busy', NULL, {number})"))
        waiting = threads.submit(producer.produce_many, [Message(b"1")])
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        connection.commit()

        assert [place.offset for place in waiting.result(10)] == [1]


# Reading ahead, in another thread.


@POSTGRES
def test_closing_waits_for_what_is_being_read_ahead(make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch) -> None:
    mq = make_mq(prefetch=4)
    mq.producer("orders").produce_many([Message(b"42", b"k")] * 20)
    consumer = mq.consumer("orders", "billing")
    is_reading, may_read = threading.Event(), threading.Event()
    read = consumer._core.database.read

    def held_up(operation: Callable[..., object], *args: Any, **kwargs: Any) -> object:
        if threading.current_thread().name.startswith("sqlmq-read"):
            is_reading.set()
            assert may_read.wait(10)
        return read(operation, *args, **kwargs)

    monkeypatch.setattr(consumer._core.database, "read", held_up)
    consumer.poll(1, timeout=10)
    assert is_reading.wait(10)
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(consumer.close)

        # It would leave a connection behind that nobody closes.
        with pytest.raises(TimeoutError):
            closing.result(0.1)
        may_read.set()

        closing.result(10)
