"""What 100 consumers cost that have nothing to do: statements, and processor time, of client and server.

One group, a partition for each, one process, a thread waiting in each. Statements are counted by the driver's cursors
on Postgres, by SQLite itself there.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import event

from benchmarks.suite import once
from benchmarks.workload import check, new_group, topic
from sqlmq import MQ

if TYPE_CHECKING:
    from benchmarks.suite import Bench

CONSUMERS, QUICK_CONSUMERS = 100, 10


def run(bench: Bench) -> None:
    consumers_count = bench.scale(CONSUMERS, QUICK_CONSUMERS)
    settling, seconds = bench.scale(20, 1), bench.scale(30, 2)
    counter = itertools.count()
    with MQ(bench.url) as mq:
        _count_statements(mq, counter)
        with topic(mq, consumers_count) as name:
            group = new_group()
            consumers = [mq.consumer(name, group) for _ in range(consumers_count)]
            arrived: list[object] = []
            waiting = settling + seconds + 5
            threads = [
                threading.Thread(target=lambda one=one: arrived.extend(one.poll(1, timeout=waiting)))
                for one in consumers
            ]
            for thread in threads:
                thread.start()
            time.sleep(settling)
            before = next(counter), time.process_time(), _server_seconds(bench)
            time.sleep(seconds)
            after = next(counter), time.process_time(), _server_seconds(bench)
            owned = sum(len(consumer.partitions) for consumer in consumers)
            for consumer in consumers:
                consumer.wake()
            for thread in threads:
                thread.join()
            for consumer in consumers:
                consumer.close()
    check(not arrived, "a message came from nowhere")
    check(owned == consumers_count, f"{owned} of {consumers_count} partitions had an owner")
    statements = (after[0] - before[0] - 1) / seconds
    rates = {
        "statements/s": once(statements),
        "processor of the client, % of a core": once((after[1] - before[1]) / seconds * 100),
    }
    if before[2] is not None and after[2] is not None:
        rates["processor of the server, % of a core"] = once((after[2] - before[2]) / seconds * 100)
    bench.add(
        f"{consumers_count} idle consumers, {seconds} seconds",
        rates,
        {"statements per consumer and second": once(statements / consumers_count)},
        unit="all of them together",
    )


def _count_statements(mq: MQ, counter: itertools.count[int]) -> None:
    class CountingCursor(psycopg.Cursor[Any]):
        def execute(self, *arguments: Any, **options: Any) -> CountingCursor:  # noqa: ANN401 - psycopg's
            next(counter)
            return super().execute(*arguments, **options)

    def connected(connection: Any, _record: object) -> None:  # noqa: ANN401 - of either driver
        if isinstance(connection, psycopg.Connection):
            connection.cursor_factory = CountingCursor
        else:
            connection.set_trace_callback(lambda _statement: next(counter))

    event.listen(mq.engine, "connect", connected)


def _server_seconds(bench: Bench) -> float | None:
    """Processor time of the sessions on the database, if they run on this machine."""
    if not bench.is_postgres:
        return None
    with bench.database.connect() as connection:
        pids = connection.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database()").fetchall()
    total = 0
    for (pid,) in pids:
        try:
            status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except OSError:
            continue
        if "postgres" not in status:
            return None
        total += sum(int(ticks) for ticks in status.rpartition(")")[2].split()[11:13])
    return total / os.sysconf("SC_CLK_TCK")
