"""Producing: many at a time against arrays and COPY by hand, one at a time against a bare INSERT and pgmq's send.

Messages, and the arrays of what is done by hand, are made before the clock starts. One partition, so that both write one
run of offsets. Each call is one transaction.
"""

from __future__ import annotations

import functools
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks import peers
from benchmarks.harness import limits
from benchmarks.harness.workload import HEADERS, check, check_length, check_places, keys_and_values, messages, new_topic
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.harness.suite import Bench
    from sqlmq import Producer, ProducerResult


def run(bench: Bench) -> None:
    with MQ(bench.url) as mq:
        name = new_topic(mq)
        producer = mq.producer(name)
        produced = _Produced(mq, producer)
        if bench.is_postgres:
            with limits.postgres_by_hand(bench.database) as hand, bench.database.connect() as connection:
                _many_on_postgres(bench, produced, hand, connection)
                _one_on_postgres(bench, produced, hand, connection)
        else:
            produced.many(messages(10), 10)  # makes the tables
            with limits.sqlite_by_hand(bench.database) as hand:
                _on_sqlite(bench, produced, hand)
        _with_headers(bench, produced)


class _Produced:
    """Appends to a topic by a producer, counting along, and checks that every message got the next place."""

    def __init__(self, mq: MQ, producer: Producer) -> None:
        self._mq = mq
        self._producer = producer
        self._count = 0

    def many(self, batch: Sequence[Message], transactions: int) -> float:
        ends: list[ProducerResult] = []
        places: list[ProducerResult] = []
        began = time.perf_counter()
        for _ in range(transactions):
            # Not all of them: what is kept, the garbage collector has to look at.
            places = self._producer.produce_many(batch)
            ends += places[0], places[-1]
        seconds = time.perf_counter() - began
        check_places(places, len(batch))
        check(ends[-1].offset - ends[0].offset == len(batch) * transactions - 1, "the offsets are not dense")
        return self._checked(len(batch) * transactions) / seconds

    def making(self, count: int, transactions: int) -> float:
        """As ``many``, with the messages made while the clock runs."""
        contents = keys_and_values(count)
        began = time.perf_counter()
        for _ in range(transactions):
            self._producer.produce_many([Message(value, key) for key, value in contents])
        return self._checked(count * transactions) / (time.perf_counter() - began)

    def one_by_one(self, batch: Sequence[Message]) -> float:
        began = time.perf_counter()
        places = [self._producer.produce(message) for message in batch]
        seconds = time.perf_counter() - began
        check_places(places, len(batch))
        return self._checked(len(batch)) / seconds

    def _checked(self, count: int) -> int:
        self._count += count
        check_length(self._mq, self._producer.topic, self._count)
        return count


def _many_on_postgres(
    bench: Bench, produced: _Produced, hand: limits.PostgresByHand, connection: psycopg.Connection[Any]
) -> None:
    transactions = bench.scale(50, 3)
    thousand = messages(1_000)
    bench.compare(
        "produce_many, 1,000 at a time",
        {
            "produce_many": lambda: produced.many(thousand, transactions),
            "produce_many, making the messages": lambda: produced.making(1_000, transactions),
            "by hand: lock, newest offset, binary arrays": lambda: _by_hand(hand, connection, 1_000, transactions),
        },
        {
            "produce_many 1,000 / by hand": ("produce_many", "by hand: lock, newest offset, binary arrays"),
            "making the messages / by hand": (
                "produce_many, making the messages",
                "by hand: lock, newest offset, binary arrays",
            ),
        },
    )
    transactions = bench.scale(8, 1)
    ten_thousand = messages(10_000)

    def copied() -> float:
        rows = keys_and_values(10_000)
        began = time.perf_counter()
        for _ in range(transactions):
            hand.copy(connection, rows)
        seconds = time.perf_counter() - began
        hand.check_grew(10_000 * transactions)
        return 10_000 * transactions / seconds

    bench.compare(
        "produce_many, 10,000 at a time",
        {
            "produce_many": lambda: produced.many(ten_thousand, transactions),
            "by hand: lock, newest offset, binary arrays": lambda: _by_hand(hand, connection, 10_000, transactions),
            "by hand: lock, newest offset, binary COPY": copied,
        },
        {
            "produce_many 10,000 / COPY by hand": ("produce_many", "by hand: lock, newest offset, binary COPY"),
            "produce_many 10,000 / arrays by hand": ("produce_many", "by hand: lock, newest offset, binary arrays"),
        },
    )


def _by_hand(hand: limits.PostgresByHand, connection: psycopg.Connection[Any], count: int, transactions: int) -> float:
    keys = [key for key, _ in keys_and_values(count)]
    values = [value for _, value in keys_and_values(count)]
    began = time.perf_counter()
    for _ in range(transactions):
        hand.append(connection, keys, values)
    seconds = time.perf_counter() - began
    hand.check_grew(count * transactions)
    return count * transactions / seconds


def _one_on_postgres(
    bench: Bench, produced: _Produced, hand: limits.PostgresByHand, connection: psycopg.Connection[Any]
) -> None:
    batch = messages(bench.scale(1_000, 100))

    def numbered() -> float:
        rows = [([key], [value]) for key, value in keys_and_values(len(batch))]
        began = time.perf_counter()
        for keys, values in rows:
            hand.append(connection, keys, values)
        seconds = time.perf_counter() - began
        hand.check_grew(len(batch))
        return len(batch) / seconds

    others = {"by hand: lock, newest offset, INSERT": numbered}
    ratios = {
        "produce / lock, newest offset, INSERT": ("produce", "by hand: lock, newest offset, INSERT"),
        "produce / pgmq send": ("produce", "pgmq, send"),
    }
    with bench.database.scratch() as target, ExitStack() as closing:
        if (sent := _sent(target, len(batch), closing)) is not None:
            others["pgmq, send"] = sent
        _one(bench, produced, _inserted(hand, functools.partial(hand.insert, connection), len(batch)), others, ratios)


def _sent(target: str, count: int, closing: ExitStack) -> Callable[[], float] | None:
    """What sends *count* messages by pgmq, if it is there."""
    pgmq = peers.find("pgmq")
    if pgmq is None:
        return None
    pgmq.install(target)
    connection = closing.enter_context(psycopg.connect(target, autocommit=True))

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(count):
            connection.execute(pgmq.SEND, [pgmq.BODY]).fetchall()
        seconds = time.perf_counter() - began
        row = connection.execute(
            f"WITH gone AS (DELETE FROM pgmq.q_{pgmq.QUEUE} RETURNING 1) SELECT count(*) FROM gone"
        )
        check(row.fetchone() == (count,), "pgmq has not as many messages as were sent")
        return count / seconds

    return measure


def _inserted(
    hand: limits.PostgresByHand | limits.SqliteByHand, insert: Callable[[int, bytes, bytes], None], count: int
) -> Callable[[], float]:
    def measure() -> float:
        began = time.perf_counter()
        for offset, (key, value) in enumerate(keys_and_values(count), hand.count):
            insert(offset, key, value)
        seconds = time.perf_counter() - began
        hand.check_grew(count)
        return count / seconds

    return measure


def _one(
    bench: Bench,
    produced: _Produced,
    inserted: Callable[[], float],
    others: dict[str, Callable[[], float]],
    ratios: dict[str, tuple[str, str]],
) -> None:
    batch = messages(bench.scale(1_000, 100))
    bench.compare(
        "produce, one thread",
        {"produce": lambda: produced.one_by_one(batch), "autocommit INSERT of one row": inserted, **others},
        {"produce / autocommit INSERT": ("produce", "autocommit INSERT of one row"), **ratios},
    )


def _on_sqlite(bench: Bench, produced: _Produced, hand: limits.SqliteByHand) -> None:
    connection = bench.database.open()
    transactions = bench.scale(50, 3)
    thousand = messages(1_000)

    def executed() -> float:
        rows = keys_and_values(1_000)
        began = time.perf_counter()
        for _ in range(transactions):
            hand.append(connection, rows)
        seconds = time.perf_counter() - began
        hand.check_grew(1_000 * transactions)
        return 1_000 * transactions / seconds

    bench.compare(
        "produce_many, 1,000 at a time",
        {
            "produce_many": lambda: produced.many(thousand, transactions),
            "by hand: BEGIN IMMEDIATE, newest offset, executemany": executed,
        },
        {
            "produce_many 1,000 / by hand": (
                "produce_many",
                "by hand: BEGIN IMMEDIATE, newest offset, executemany",
            )
        },
    )
    _one(bench, produced, _inserted(hand, functools.partial(hand.insert, connection), bench.scale(1_000, 100)), {}, {})
    connection.close()


def _with_headers(bench: Bench, produced: _Produced) -> None:
    transactions = bench.scale(50, 3)
    plain, headed = messages(1_000), messages(1_000, with_headers=True)
    bench.compare(
        "produce_many, 1,000 at a time, with and without headers",
        {
            f"{len(HEADERS)} headers": lambda: produced.many(headed, transactions),
            "none": lambda: produced.many(plain, transactions),
        },
        {"headers / none": (f"{len(HEADERS)} headers", "none")},
    )
