"""Offset order is commit order: whatever transactions do to each other, a reader sees a log that only grows at its end."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import psycopg
import pytest
from sqlalchemy import create_engine, text

from sqlmq import Message
from sqlmq.errors import IsolationError
from tests.concurrency.transactions import PATIENCE_SECONDS, Raw, Writer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest, MakeMQ


End = Literal["commit", "rollback"]
Schedule = tuple[int, ...]
"""Which writer takes its next step, in turn."""

ENDS: tuple[End, ...] = ("commit", "rollback")
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)


def interleavings(writers: int, steps: int) -> list[Schedule]:
    """Every order in which *writers* can take their *steps* each."""

    def extend(left: tuple[int, ...]) -> Iterator[Schedule]:
        if not any(left):
            yield ()
        for writer, count in enumerate(left):
            if count:
                for rest in extend((*left[:writer], count - 1, *left[writer + 1 :])):
                    yield (writer, *rest)

    return list(extend((steps,) * writers))


class Explorer:
    """Runs schedules of begin, append, end; after every step a reader compares the log with what was committed."""

    def __init__(self, raw: Raw, writers: int) -> None:
        self._raw = raw
        self._writers = [Writer(raw) for _ in range(writers)]
        self._reader = raw.engine.connect()
        self._log: list[bytes] = []
        self.blocked = 0
        """How many steps had to wait for another transaction."""

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._reader.close()

    def run(self, schedule: Schedule, ends: Sequence[End]) -> None:
        done = [0] * len(ends)
        waiting: list[int] = []
        values = [[f"{len(self._log)}/{number}/{i}".encode() for i in range(2)] for number in range(len(ends))]
        # Whoever cannot take its step because it still waits takes it at the end.
        todo = list(schedule)
        while todo:
            number = todo.pop(0)
            if number in waiting:
                assert any(other not in waiting for other in todo), "all writers wait for each other"
                todo.append(number)
                continue
            writer = self._writers[number]
            (
                writer.begin,
                lambda writer=writer, number=number: writer.append([(0, value) for value in values[number]]),
                getattr(writer, ends[number]),
            )[done[number]]()
            done[number] += 1
            if writer.is_blocked(self._reader):
                self.blocked += 1
                waiting.append(number)
            if done[number] == 3:
                assert number not in waiting, "the end of a transaction waits for nobody"
                if ends[number] == "commit":
                    self._log += values[number]
                waiting = self._still_waiting(waiting)
            self._compare()

    def _still_waiting(self, waiting: list[int]) -> list[int]:
        if not waiting:
            return []
        if not self._raw.is_postgres:
            # Whoever tries first gets the file; the others notice soon, being refused once more.
            for number in waiting:
                self._writers[number].forget_refusals()
        return [number for number in waiting if self._writers[number].is_blocked(self._reader)]

    def _compare(self) -> None:
        assert self._raw.read(self._reader, 0) == list(enumerate(self._log))


@pytest.fixture
def raw(database: DatabaseUnderTest, mq: MQ) -> Iterator[Raw]:
    mq.create_topic("orders", 8)
    raw = Raw(database, "orders")
    yield raw
    raw.engine.dispose()


@BOTH
def test_two_transactions_interleaved_in_every_way_leave_a_dense_log_in_commit_order(raw: Raw) -> None:
    explorer = Explorer(raw, 2)

    schedules = list(itertools.product(interleavings(2, 3), itertools.product(ENDS, repeat=2)))
    for schedule, ends in schedules:
        explorer.run(schedule, ends)

    explorer.close()
    assert len(schedules) == 80
    assert explorer.blocked > 20


@BOTH
def test_a_transaction_cannot_append_before_the_one_ahead_of_it_has_ended(raw: Raw) -> None:
    first, second = Writer(raw), Writer(raw)
    observer = raw.engine.connect()
    first.begin()
    first.wait()
    first.append([(0, b"first")])
    first.wait()

    second.begin()
    if raw.is_postgres:
        second.wait()
        second.append([(0, b"second")])
    was_blocked = second.is_blocked(observer)
    first.rollback()
    first.wait()
    second.wait()

    assert was_blocked
    second.rollback()
    for one in (first, second, observer):
        one.close()


@POSTGRES
def test_transactions_that_append_to_different_partitions_do_not_wait_for_each_other(raw: Raw) -> None:
    writers = [Writer(raw) for _ in range(4)]

    with raw.engine.connect() as observer:
        for partition, writer in enumerate(writers):
            writer.append([(partition, b"mine")])
            assert not writer.is_blocked(observer)

    for writer in writers:
        writer.commit()
        writer.wait()
        writer.close()


@BOTH
def test_every_reader_sees_a_prefix_of_the_log_while_many_transactions_commit_and_roll_back(raw: Raw) -> None:
    ended = threading.Event()

    def write(seed: int) -> int:
        chosen = random.Random(seed)
        committed = 0
        with raw.engine.connect() as connection:
            for turn in range(60):
                raw.begin(connection)
                partitions = chosen.sample(range(3), 2)
                raw.append(connection, [(partition, f"{seed}/{turn}".encode()) for partition in partitions])
                if chosen.random() < 0.3:
                    connection.rollback()
                else:
                    connection.commit()
                    committed += 2
        return committed

    def read() -> list[list[tuple[int, bytes]]]:
        seen: list[list[tuple[int, bytes]]] = [[], [], []]
        with raw.engine.connect() as connection:
            while True:
                is_last = ended.is_set()
                for partition, so_far in enumerate(seen):
                    # The last one again: what was seen once must stay.
                    start = max(0, len(so_far) - 1)
                    more = raw.read(connection, partition, start)
                    assert so_far[start:] == more[: len(so_far) - start]
                    assert [offset for offset, _ in more] == list(range(start, start + len(more)))
                    so_far[start:] = more
                if is_last:
                    return seen

    with ThreadPoolExecutor(8) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        writers = [threads.submit(write, seed) for seed in range(6)]
        try:
            committed = sum(writer.result() for writer in writers)
        finally:
            ended.set()
        first, second = (reader.result() for reader in readers)

    assert first == second
    assert sum(len(partition) for partition in first) == committed


@BOTH
def test_transactions_to_several_partitions_in_opposite_orders_do_not_deadlock(mq: MQ) -> None:
    mq.create_topic("orders", 8)
    producer = mq.producer("orders")
    keys = [f"key {number}".encode() for number in range(12)]

    def write(thread: int) -> int:
        batch = [Message(b"", key=key) for key in (keys if thread % 2 else reversed(keys))]
        return sum(len(producer.produce_many(batch)) for _ in range(250))

    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(write, thread) for thread in range(8)]
        written = sum(result.result(PATIENCE_SECONDS * 4) for result in results)

    assert written == mq.admin.describe_topic("orders").messages == 2_000 * len(keys)


def number_of_deadlocks(connection: Connection) -> int:
    found: int = connection.execute(
        text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    ).scalar_one()
    return found


@POSTGRES
def test_postgres_counts_no_deadlock_where_none_may_be(make_mq: MakeMQ, connection: Connection) -> None:
    mq = make_mq()
    mq.create_topic("orders", 4)
    producer = mq.producer("orders")
    keys = [f"key {number}".encode() for number in range(12)]

    def write(thread: int) -> None:
        for _ in range(20):
            producer.produce_many([Message(b"", key=key) for key in random.Random(thread).sample(keys, 6)])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    mq.close()

    assert number_of_deadlocks(connection) == 0


@POSTGRES
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_cannot_see_the_newest_offset_is_refused(
    raw: Raw, level: Literal["REPEATABLE READ", "SERIALIZABLE"]
) -> None:
    with raw.engine.connect().execution_options(isolation_level=level) as connection:
        with pytest.raises(psycopg.Error) as raised:
            raw.append(connection, [(0, b"unnumbered")])
        translated = raw.dialect.translate(raised.value, "here")

    assert isinstance(translated, IsolationError)
    assert level in str(translated)
    assert "READ COMMITTED" in str(translated)
    with raw.engine.connect() as connection:
        assert raw.read(connection, 0) == []


@POSTGRES
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_engine_with_another_isolation_level_is_used_in_read_committed(
    database: DatabaseUnderTest, make_mq: MakeMQ, level: Literal["REPEATABLE READ", "SERIALIZABLE"]
) -> None:
    from sqlmq import MQ

    engine = create_engine(database.url, isolation_level=level)
    expected = make_mq()
    with MQ(engine) as mq:
        producer = mq.producer("orders")
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: producer.produce_many([Message(b"")]), range(40)))
        with engine.connect() as connection:
            still = connection.get_isolation_level()
    engine.dispose()

    assert still == level
    assert expected.admin.describe_topic("orders").messages == 40
