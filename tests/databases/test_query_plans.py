"""The hot statements find what they need by index, in tables that have grown.

The library's own functions are run, and the statements they send are looked at: on SQLite the connection tells each of
them; on Postgres the server counts sequential scans, inside our SQL functions too.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, select, text

from sqlmq import Message, Retention
from sqlmq.dialects import Dialect, Position, dialect_named
from sqlmq.model.partitioner import Rotation
from sqlmq.operations import consume, membership, poll, produce, retention, staging, transaction
from sqlmq.operations.admin import monitoring, reset, topics
from sqlmq.operations.produce import RoutedMessage
from sqlmq.store import claims, groups, offsets, staged
from sqlmq.store import retention as store_retention
from sqlmq.store.offsets import Commit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest, MakeMQ

pytestmark = pytest.mark.new_database

BIG_TABLES = ("sqlmq_message", "sqlmq_group_offset", "sqlmq_claim", "sqlmq_staged")
MESSAGES = 5_000
STAGED = 6_000
GROUPS = 400
LEASE_SECONDS = 10.0


class Grown:
    """A queue that has been in use for a while: many messages, many positions, many groups."""

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        self.engine = engine
        self.dialect = dialect
        with engine.connect() as connection:
            self.topic = topics.find_topic(connection, dialect, "orders")
            self._fill(connection)
            self.group, self.member_id = membership.join(
                connection, dialect, self.topic, "billing", "earliest", "me", LEASE_SECONDS
            )
            seen = membership.read_group(connection, dialect, self.group, self.member_id, LEASE_SECONDS)
            assert seen is not None
            _, self.taken = membership.change(
                connection, dialect, self.group, self.member_id, seen, finished=[], give=[]
            )
            self.seen = seen
            for taken in self.taken:
                rows = [Commit(taken.claim.partition_id, offset) for offset in range(1, 2_000)]
                offsets.insert_all(connection, dialect, self.group, rows)
            connection.commit()
            connection.execute(text("ANALYZE"))
            connection.commit()

    def _fill(self, connection: Connection) -> None:
        tables = self.dialect.tables
        for id_ in self.topic.partition_ids:
            rows: list[dict[str, Any]] = [
                {"partition_id": id_, "msg_offset": offset, "value": b"x" * 50} for offset in range(MESSAGES)
            ]
            connection.execute(tables.message.insert(), rows)
        self._stage(connection)
        for number in range(GROUPS):
            made = groups.create(connection, self.dialect, self.topic, f"group {number}", "earliest")
            assert made
            group = groups.get(connection, self.dialect, self.topic, f"group {number}")
            claims.add_claims(connection, self.dialect, group, self.topic)
            commits = [Commit(id_, offset) for id_ in self.topic.partition_ids for offset in range(10)]
            offsets.insert_all(connection, self.dialect, group, commits)
        connection.commit()

    def _stage(self, connection: Connection) -> None:
        """Store messages, of which one in a thousand is due, and all wait for partitions that nothing else is about."""
        tables = self.dialect.tables
        for waits, count in ((1e6, STAGED - STAGED // 1_000), (0.0, STAGED // 1_000)):
            slot = staged.slot(connection, self.dialect, self.topic.partition_ids, waits)
            assert slot is not None
            moment = self.dialect.moment(slot.deliver_at)
            for first in range(0, count, 100):
                rows = [
                    {"partition_id": 10_000 + number % 50, "value": b"x" * 50, "deliver_at": moment}
                    for number in range(first, min(first + 100, count))
                ]
                connection.execute(tables.staged.insert().values(rows))

    @property
    def finished(self) -> list[tuple[claims.Claim, Commit]]:
        return [(taken.claim, Commit(taken.claim.partition_id, 5_000)) for taken in self.taken]


def append(grown: Grown, connection: Connection) -> None:
    routed = [RoutedMessage(Message(b""), partition) for partition in range(grown.topic.partitions)]
    results = produce.append(
        connection, grown.dialect, produce.make_batch(produce.place(grown.topic, routed, Rotation(0)))
    )
    assert {result.offset for result in results} == {MESSAGES}


def read_the_middle_of_the_log(grown: Grown, connection: Connection) -> None:
    wanted = [Position(id_, MESSAGES // 2) for id_ in grown.topic.partition_ids]
    assert len(grown.dialect.read(connection, wanted, 300, 1 << 20)) == 300


def look_at_the_end_of_the_log(grown: Grown, connection: Connection) -> None:
    wanted = [Position(id_, MESSAGES) for id_ in grown.topic.partition_ids]
    assert grown.dialect.read(connection, wanted, 300, 1 << 20) == []


def find_positions(grown: Grown, connection: Connection) -> None:
    found = offsets.positions(connection, grown.dialect, grown.group, grown.topic.partition_ids)
    assert set(found.values()) == {1_999}
    left = offsets.inherited_positions(connection, grown.dialect, grown.group, grown.topic.partition_ids)
    assert set(left.values()) == {(1_999, True)}


def commit(grown: Grown, connection: Connection) -> None:
    written = consume.commit(connection, grown.dialect, grown.group, grown.member_id, grown.finished)
    assert len(written) == grown.topic.partitions


def prune(grown: Grown, connection: Connection) -> None:
    windows = [(taken.claim, offsets.Window(taken.claim.partition_id, 0, 1_999)) for taken in grown.taken]
    consume.prune(connection, grown.dialect, grown.group, grown.member_id, windows)


def reset_to_a_moment(grown: Grown, connection: Connection) -> None:
    since = datetime.now(UTC) + timedelta(days=1)
    done = reset.reset(connection, grown.dialect, reset.ResetRequest("orders", "billing", since, None), force=True)
    assert {(change.from_offset, change.to_offset) for change in done.changes} == {(1_999, MESSAGES)}


def survey(grown: Grown, connection: Connection) -> None:
    membership.read_group(connection, grown.dialect, grown.group, grown.member_id, LEASE_SECONDS)


def look_for_many(grown: Grown, connection: Connection) -> None:
    claims = {taken.claim.partition_id: taken.claim for taken in grown.taken}
    end = tuple(Position(id_, MESSAGES) for id_ in grown.topic.partition_ids)
    middle = tuple(Position(id_, MESSAGES // 2) for id_ in grown.topic.partition_ids)
    mine = [
        poll.PollRequest(grown.group.id, grown.member_id, LEASE_SECONDS, claims, positions)
        for positions in (end, middle)
    ]
    other = groups.get(connection, grown.dialect, grown.topic, "group 7")
    gone = poll.PollRequest(other.id, grown.member_id, LEASE_SECONDS, {}, ())
    found = poll.poll(connection, grown.dialect, [*mine, gone], at_groups=True)
    assert found == [(False, False), (True, False), (False, True)]


def hand_back_and_claim(grown: Grown, connection: Connection) -> None:
    given = [taken.claim for taken in grown.taken]
    claims.release(connection, grown.dialect, grown.group, grown.member_id, given)
    ids = [claim.partition_id for claim in given]
    taken = claims.claim_free(connection, grown.dialect, grown.group, grown.member_id, ids, len(ids))
    assert len(taken) == len(ids)


def delay(grown: Grown, connection: Connection) -> None:
    routed = [RoutedMessage(Message(b""), partition) for partition in range(grown.topic.partitions)]
    placed = produce.place(grown.topic, routed, Rotation(0))
    assert len(staging.stage(connection, grown.dialect, placed, 10.0).messages) == 3


def look_for_what_is_due(grown: Grown, connection: Connection) -> None:
    found = staging.find_due(connection, grown.dialect)
    assert len(found.partition_ids) == STAGED // 1_000
    assert found.is_complete
    assert found.next_seconds is not None
    assert 0 < found.next_seconds < 1e6
    assert staging.find_due(connection, grown.dialect, found.partition_ids).partition_ids == []


def move(grown: Grown, connection: Connection) -> None:
    grown.dialect.begin(connection)
    (first, *_) = staging.find_due(connection, grown.dialect).partition_ids
    assert staging.move(connection, grown.dialect, first) == (None, 1, False)


def list_what_waits_and_cancel_it(grown: Grown, connection: Connection) -> None:
    assert staging.list_delayed(connection, grown.dialect, "orders") == []
    staged = grown.dialect.tables.staged
    ids = connection.execute(select(staged.c.id * (1 << 24) + staged.c.token).where(staged.c.id <= 5)).scalars().all()
    assert staging.cancel(connection, grown.dialect, ids) == {*ids}


def describe(grown: Grown, connection: Connection) -> None:
    monitoring.describe_group(connection, grown.dialect, "orders", "billing")
    described = topics.describe_topic(connection, grown.dialect, "orders")
    assert [one.messages for one in described.partitions] == [MESSAGES] * 3
    lags = monitoring.lag(connection, grown.dialect, "orders", "billing")
    assert [one.lag for one in lags] == [MESSAGES - 1_999] * 3
    assert monitoring.diagnose(connection, grown.dialect, "orders", "billing", 1e6) == []


def look(grown: Grown, connection: Connection) -> None:
    given = [taken.claim for taken in grown.taken]
    claims.release(connection, grown.dialect, grown.group, grown.member_id, given)
    assert transaction.find_free(connection, grown.dialect, grown.topic, grown.group).has_messages


def transact_once(grown: Grown, connection: Connection) -> None:
    given = [taken.claim for taken in grown.taken]
    claims.release(connection, grown.dialect, grown.group, grown.member_id, given)
    grown.dialect.begin(connection)
    limits = transaction.BatchLimits(2_000, 1 << 20, 300.0, LEASE_SECONDS)
    last = grown.topic.partition_ids[:1]
    taken = transaction.lock_and_fetch(connection, grown.dialect, grown.topic, grown.group, limits, last)
    assert taken is not None
    assert (len(taken.messages), taken.start) == (2_000, 1_999)
    assert taken.claim.partition_id == grown.topic.partition_ids[1]
    transaction.finish(connection, grown.dialect, grown.topic, grown.group, taken)


def trim(grown: Grown, connection: Connection) -> None:
    week = Retention()
    assert retention.expired(connection, grown.dialect, grown.topic.id, week) == set()
    keeps = Retention(max_age_seconds=1e6, max_bytes=50 * 3_500, max_messages=4_000, protect_max_seconds=1e6)
    topics.set_retention(connection, grown.dialect, "orders", keeps)
    due = retention.due(connection, grown.dialect, grown.topic.id)[0]
    # All but the one group that is live have expired.
    others = {
        one.group_id for one in store_retention.standings(connection, grown.dialect, due.topic_id, due.partition_id)
    }
    others.discard(grown.group.id)
    planned = retention.plan(connection, grown.dialect, due, others)
    assert planned is not None
    assert planned.start == 1_500
    advanced = retention.advance(connection, grown.dialect, due, others, planned)
    assert advanced is not None
    assert len(advanced.losses) == GROUPS
    assert retention.delete(connection, grown.dialect, due.partition_id) == 1_500
    assert retention.groups_losing_parked(connection, grown.dialect, due) == []
    assert retention.forget_parked(connection, grown.dialect, due, grown.group.id, "billing") == []


STEPS = (
    append,
    read_the_middle_of_the_log,
    look_at_the_end_of_the_log,
    find_positions,
    commit,
    prune,
    reset_to_a_moment,
    survey,
    look_for_many,
    hand_back_and_claim,
    look,
    transact_once,
    delay,
    look_for_what_is_due,
    move,
    list_what_waits_and_cancel_it,
    describe,
    trim,
)


@pytest.fixture
def grown(database: DatabaseUnderTest, mq: MQ) -> Iterator[Grown]:
    mq.create_topic("orders", 3)
    engine = create_engine(database.url, poolclass=NullPool)
    yield Grown(engine, dialect_named(engine.dialect.name, database.schema))
    engine.dispose()


def scans(connection: Connection) -> dict[str, tuple[int, int]]:
    """Sequential and index scans of the big tables so far."""
    connection.execute(text("SELECT pg_stat_force_next_flush()"))
    connection.commit()
    rows = connection.execute(
        text("SELECT relname, seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = ANY (:names)"),
        {"names": list(BIG_TABLES)},
    ).all()
    connection.rollback()
    return {row.relname: (row.seq_scan, row.idx_scan) for row in rows}


def sequential_scans_in(plan: dict[str, Any]) -> list[str]:
    mine = [plan["Relation Name"]] if plan["Node Type"] == "Seq Scan" else []
    return mine + [name for part in plan.get("Plans", []) for name in sequential_scans_in(part)]


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
def test_on_postgres_no_hot_statement_scans_a_big_table(grown: Grown) -> None:
    found: dict[str, dict[str, tuple[int, int]]] = {}

    with grown.engine.connect() as connection:
        for step in STEPS:
            before = scans(connection)
            step(grown, connection)
            connection.rollback()
            after = scans(connection)
            found[step.__name__] = {
                name: (after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in BIG_TABLES
            }

    assert {name: tables for name, tables in found.items() if any(seq for seq, _ in tables.values())} == {}
    # The counting itself works: what was looked up was looked up by index.
    for name, table in (
        ("append", "sqlmq_message"),
        ("commit", "sqlmq_claim"),
        ("find_positions", "sqlmq_group_offset"),
        ("look_for_what_is_due", "sqlmq_staged"),
        ("move", "sqlmq_staged"),
        ("list_what_waits_and_cancel_it", "sqlmq_staged"),
    ):
        assert found[name][table][1] > 0


@pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
def test_on_postgres_a_producer_goes_by_index_even_if_the_tables_were_analyzed_while_they_were_empty(
    make_mq: MakeMQ, database: DatabaseUnderTest
) -> None:
    # Nobody else has a connection when the pool is made anew below: it would be nobody's to close.
    mq = make_mq(notify=False)
    mq.create_topic("orders", 3)
    producer = mq.producer("orders")
    engine = create_engine(database.url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("ANALYZE"))
        connection.commit()
        before = scans(connection)["sqlmq_message"]

        for _ in range(10):
            producer.produce_many([Message(b"", b"%d" % key) for key in range(10)])
            producer.produce(Message(b""))
        mq.engine.dispose()

        after = scans(connection)["sqlmq_message"]
    engine.dispose()
    assert after[0] == before[0]
    assert after[1] >= before[1] + 40


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_on_postgres_the_plans_of_the_statements_sent_name_no_sequential_scan_of_a_big_table(grown: Grown) -> None:
    sent: list[tuple[str, Any]] = []
    with grown.engine.connect() as connection:

        @event.listens_for(connection, "before_cursor_execute")
        def _remember(_conn: object, _cursor: object, statement: str, parameters: Any, *_rest: object) -> None:
            sent.append((statement, parameters))

        for step in (
            find_positions,
            commit,
            prune,
            reset_to_a_moment,
            survey,
            look_for_many,
            hand_back_and_claim,
            look,
            transact_once,
        ):
            step(grown, connection)
            connection.rollback()
        event.remove(connection, "before_cursor_execute", _remember)
        plans = []
        for statement, parameters in sent:
            if statement.startswith("SET "):
                continue
            one = parameters[0] if isinstance(parameters, list) else parameters
            (plan,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", one).scalar_one()
            plans.append((statement, sequential_scans_in(plan["Plan"])))

    assert len(plans) >= 8
    assert [(sql, tables) for sql, tables in plans if set(tables) & set(BIG_TABLES)] == []


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_on_sqlite_no_hot_statement_scans_a_big_table(grown: Grown) -> None:
    plans: list[tuple[str, str, str]] = []

    for step in STEPS:
        sent: list[str] = []
        with grown.engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            driver.set_trace_callback(sent.append)
            step(grown, connection)
            driver.set_trace_callback(None)
            connection.rollback()
            for statement in sent:
                if statement.split()[0] in {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"}:
                    explained = driver.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                    plans.extend((step.__name__, row[3], statement) for row in explained)

    named = {table: [plan for plan in plans if table in plan[2]] for table in BIG_TABLES}
    assert all(named.values())
    # "m" and "c" are what the statements call messages and claims.
    scanned = [plan for plan in plans if plan[1].startswith("SCAN") and plan[1].split()[1] in (*BIG_TABLES, "m", "c")]
    assert scanned == []
    assert any("USING PRIMARY KEY" in detail for _, detail, _ in plans)


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_on_postgres_a_transaction_reads_a_few_pages_of_a_hundred_thousand_messages(grown: Grown) -> None:
    statements: list[tuple[str, Any]] = []
    with grown.engine.connect() as connection:
        for id_ in grown.topic.partition_ids:
            connection.execute(
                text(
                    "INSERT INTO sqlmq_message (partition_id, msg_offset, value)"
                    " SELECT :id, n, 'x' FROM generate_series(:first, 100000) n"
                ),
                {"id": id_, "first": MESSAGES},
            )
        connection.commit()
        connection.execute(text("ANALYZE"))
        connection.commit()
        given = [taken.claim for taken in grown.taken]
        claims.release(connection, grown.dialect, grown.group, grown.member_id, given)

        @event.listens_for(connection, "before_cursor_execute")
        def _remember(_conn: object, _cursor: object, statement: str, parameters: Any, *_rest: object) -> None:
            statements.append((statement, parameters))

        transaction.find_free(connection, grown.dialect, grown.topic, grown.group)
        limits = transaction.BatchLimits(100, 1 << 20, 300.0, LEASE_SECONDS)
        transaction.lock_and_fetch(connection, grown.dialect, grown.topic, grown.group, limits, ())
        event.remove(connection, "before_cursor_execute", _remember)
        pages = []
        for statement, parameters in statements:
            explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
            (plan,) = connection.exec_driver_sql(explain, parameters).scalar_one()
            pages.append(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])

    assert len(pages) == 3
    assert max(pages) < 150
