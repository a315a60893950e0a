"""How many bytes of write-ahead log a message costs: produced, consumed, and both, beside a bare INSERT and other queues.

Each round begins with a checkpoint, or the first write to each page after one that happens to come would be counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import peers
from benchmarks.cases.consuming import poll
from benchmarks.harness import limits
from benchmarks.harness.suite import Rounds, ratio
from benchmarks.harness.workload import check, fill, keys_and_values, messages, new_topic
from sqlmq import MQ

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from benchmarks.harness.suite import Bench

PEERS = ("pgmq", "pgqueuer")


def run(bench: Bench) -> None:
    if not bench.is_postgres:
        return
    with MQ(bench.url) as mq, bench.database.connect() as connection:
        _end_to_end(bench, mq, connection)
        _consuming(bench, mq, connection)
    _others(bench)


def _end_to_end(bench: Bench, mq: MQ, connection: psycopg.Connection[object]) -> None:
    transactions = bench.scale(100, 5)
    keys, values = (list(column) for column in zip(*keys_and_values(1_000), strict=True))
    count = 1_000 * transactions

    def produced_and_consumed() -> float:
        name = new_topic(mq)
        producer = mq.producer(name)

        def both() -> None:
            for _ in range(transactions):
                producer.produce_many(messages(1_000))
            poll(mq, name, count)

        return bytes_of(connection, both) / count

    def inserted() -> float:
        with limits.postgres_by_hand(bench.database) as hand:

            def insert() -> None:
                for _ in range(transactions):
                    hand.append(connection, keys, values)

            written = bytes_of(connection, insert)
            hand.check_grew(count)
        return written / count

    bench.compare(
        f"write-ahead log, {count:,} messages, 1,000 at a time",
        {"produced and consumed": produced_and_consumed, "bare INSERT": inserted},
        {"WAL bytes: produced and consumed / bare INSERT": ("produced and consumed", "bare INSERT")},
        unit="bytes/message",
    )


def _consuming(bench: Bench, mq: MQ, connection: psycopg.Connection[object]) -> None:
    count = bench.scale(100_000, 5_000)
    name = new_topic(mq)
    fill(mq.producer(name), count)
    bench.compare(
        f"write-ahead log of consuming {count:,} messages",
        {
            "consumed, poll(100)": lambda: bytes_of(connection, lambda: poll(mq, name, count, 100)) / count,
            "consumed, poll(1000)": lambda: bytes_of(connection, lambda: poll(mq, name, count)) / count,
        },
        {},
        unit="bytes/message",
        notes=("The group is made, joined and left in it. What is finished is committed five times a second.",),
    )


def _others(bench: Bench) -> None:
    found: dict[str, list[float]] = {}
    counts = {}
    for _ in range(bench.scale(3, 1)):
        for peer in peers.installed(bench.database.kind)[0]:
            if peer.name not in (peers.OURS, *PEERS):
                continue
            count = counts[peer.name] = peers.how_many(peer, quick=bench.quick) // 2
            with (
                bench.database.scratch() as target,
                peer.open(target) as queue,
                bench.database.connect() as connection,
            ):
                produced = bytes_of(connection, lambda: queue.produce(count))  # noqa: B023 - called at once
                consumed = bytes_of(connection, lambda: check(queue.drain(count) == count, "messages are missing"))  # noqa: B023
            found.setdefault(f"{peer.name}, produced", []).append(produced / count)
            found.setdefault(f"{peer.name}, consumed", []).append(consumed / count)
            found.setdefault(f"{peer.name}, both", []).append((produced + consumed) / count)
    rates = {name: Rounds(tuple(values)) for name, values in found.items()}
    bench.add(
        f"write-ahead log beside other queues, {', '.join(f'{name} {count:,}' for name, count in counts.items())}",
        rates,
        {
            f"WAL bytes: {name} / {peers.OURS}": ratio(rates[f"{name}, both"], rates[f"{peers.OURS}, both"])
            for name in PEERS
            if name in counts
        },
        unit="bytes/message",
        notes=("Measured as a whole: what the server writes beside it, autovacuum for one, is in it.",),
    )


def bytes_of(connection: psycopg.Connection[object], work: Callable[[], object]) -> int:
    """How many bytes of write-ahead log the server writes while *work* is done."""
    connection.execute("CHECKPOINT")
    before = _position(connection)
    work()
    return _position(connection) - before


def _position(connection: psycopg.Connection[object]) -> int:
    row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    return int(row[0]) if row else 0  # type: ignore[index]
