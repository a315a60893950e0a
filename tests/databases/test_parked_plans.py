"""A page of parked messages costs the same wherever it is: it is found by the primary key, among very many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, text

from sqlmq import Message
from sqlmq.dialects import Dialect, Position, dialect_named
from sqlmq.operations.admin import parked as admin_parked
from sqlmq.operations.admin.parked import ParkedFilter
from sqlmq.store import claims, groups, parked, topics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

pytestmark = pytest.mark.new_database

COUNT = 10_000
LAST = COUNT - 50
OTHER_GROUPS = 3
SCOPE = ("orders", "billing")

Sent = list[tuple[str, Any]]


@pytest.fixture
def engine(database: DatabaseUnderTest) -> Iterator[Engine]:
    engine = create_engine(database.url, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def dialect(engine: Engine, database: DatabaseUnderTest) -> Dialect:
    return dialect_named(engine.dialect.name, database.schema)


@pytest.fixture(autouse=True)
def many(mq: MQ, engine: Engine, dialect: Dialect) -> None:
    """Ten thousand messages of one partition, which the group has set aside, as other groups have theirs."""
    mq.create_topic("orders", 2)
    mq.producer("orders").produce_many([Message(b"", b"a") for _ in range(COUNT)])
    with engine.begin() as connection:
        topic = topics.find(connection, dialect, "orders")
        assert topic is not None
        for name in ("billing", *(f"group-{number}" for number in range(OTHER_GROUPS))):
            groups.create(connection, dialect, topic, name, "earliest")
            group = groups.get(connection, dialect, topic, name)
            claims.add_claims(connection, dialect, group, topic)
            messages = [(offset, b"%d" % (offset % 100), 0) for offset in range(COUNT)]
            parked.put_waiting(connection, dialect, group, topic.partition_ids[0], messages)
    with engine.connect() as connection:
        connection.execute(text("ANALYZE"))
        connection.commit()


def last_page(connection: Connection, dialect: Dialect, sent: Sent) -> None:
    """Ask for the last page, and note down what is *sent* for that to the table of parked messages."""

    @event.listens_for(connection, "before_cursor_execute")
    def _remember(_conn: object, _cursor: object, statement: str, parameters: Any, *_rest: object) -> None:
        if "sqlmq_parked" in statement:
            sent.append((statement, parameters))

    page = admin_parked.page(connection, dialect, *SCOPE, ParkedFilter(), after=(0, LAST), limit=20)
    event.remove(connection, "before_cursor_execute", _remember)
    assert [one.offset for one in page] == list(range(LAST + 1, LAST + 21))


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
def test_on_postgres_the_last_page_reads_a_few_blocks(engine: Engine, dialect: Dialect) -> None:
    sent: Sent = []
    with engine.connect() as connection:
        last_page(connection, dialect, sent)
        ((statement, parameters),) = sent
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        (plan,) = connection.exec_driver_sql(explain, parameters).scalar_one()

    (scan,) = plan["Plan"]["Plans"]
    assert (plan["Plan"]["Node Type"], scan["Node Type"]) == ("Limit", "Index Scan")
    assert scan["Index Name"] == "sqlmq_parked_pkey"
    assert "ROW(partition_id, msg_offset)" in scan["Index Cond"]
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 20


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_on_sqlite_the_last_page_is_searched_for_by_the_primary_key_and_not_sorted(
    engine: Engine, dialect: Dialect
) -> None:
    sent: Sent = []
    with engine.connect() as connection:
        last_page(connection, dialect, sent)
        ((statement, parameters),) = sent
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]

    (search,) = plan
    assert search.startswith("SEARCH sqlmq_parked USING")
    assert "(group_id=? AND (partition_id,msg_offset)>(?,?))" in search


def test_many_are_decided_about_at_once(mq: MQ) -> None:
    of_billing = mq.admin.parked("orders", "billing")

    retried = of_billing.retry(key=b"7")
    discarded = of_billing.discard(everything=True)

    assert (retried, discarded) == (COUNT // 100, COUNT)
    assert of_billing.list() == []
    assert len(mq.admin.parked("orders", "group-0").list(limit=COUNT + 1)) == COUNT


@pytest.mark.slow
def test_a_page_asks_for_what_is_behind_a_place(mq: MQ) -> None:
    of_billing = mq.admin.parked("orders", "billing")

    assert [one.place for one in of_billing.list(limit=2, after=(0, LAST))] == [(0, LAST + 1), (0, LAST + 2)]
    assert of_billing.list(after=(1, 0)) == []
    assert [one.first_offset for one in of_billing.blocked_keys(limit=2, after=Position(0, 97))] == [98, 99]
