"""What 100 consumers cost that have nothing to do: statements, and processor time, of client and server.

One group, a partition for each, one process, a thread waiting in each. They are looked at from 10 seconds after the last
message on.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.harness.counting import count_statements
from benchmarks.harness.suite import once
from benchmarks.harness.workload import check, messages, new_group, new_topic
from sqlmq import MQ
from sqlmq.errors import ConsumerClosedError

if TYPE_CHECKING:
    import itertools

    from benchmarks.harness.suite import Bench
    from sqlmq import Consumer

CONSUMERS, QUICK_CONSUMERS = 100, 10


class Reading(NamedTuple):
    """What was used up to a moment."""

    statements: int
    client_seconds: float
    server_seconds: float | None
    """None where the server's processes are not on this machine."""


def run(bench: Bench) -> None:
    size = bench.scale(CONSUMERS, QUICK_CONSUMERS)
    settling, seconds = bench.scale(10, 1), bench.scale(30, 2)
    with MQ(bench.url) as mq:
        counter = count_statements(mq.engine)
        name = new_topic(mq, size)
        producer, group = mq.producer(name), new_group()
        consumers = [mq.consumer(name, group) for _ in range(size)]
        arrived = [0] * size

        def consume(number: int) -> None:
            with contextlib.suppress(ConsumerClosedError):
                while True:
                    arrived[number] += len(consumers[number].poll(1))

        threads = [threading.Thread(target=consume, args=(number,)) for number in range(size)]
        for thread in threads:
            thread.start()
        _share_out(consumers)
        for number in range(size):
            producer.produce_with_partition(messages(1)[0], number)
        time.sleep(settling)
        before = _read(bench, counter)
        time.sleep(seconds)
        after = _read(bench, counter)
        owned = [len(consumer.partitions) for consumer in consumers]
        for consumer in consumers:
            consumer.close()
        for thread in threads:
            thread.join()
    check(sum(arrived) == size, f"{sum(arrived)} of {size} messages came")
    check(owned == [1] * size, f"{owned.count(1)} of {size} consumers had a partition each")
    _show(bench, before, after, size, seconds)


def _share_out(consumers: list[Consumer]) -> None:
    """Wait until each has one partition."""
    ends_at = time.monotonic() + 60
    while any(len(consumer.partitions) != 1 for consumer in consumers):
        check(time.monotonic() < ends_at, "the partitions were not shared out in a minute")
        time.sleep(0.1)


def _show(bench: Bench, before: Reading, after: Reading, size: int, seconds: float) -> None:
    statements = (after.statements - before.statements - 1) / seconds
    client = (after.client_seconds - before.client_seconds) / seconds * 100
    rates = {
        "statements of a consumer in a second": once(statements / size),
        "processor of the client, % of a core": once(client),
    }
    if before.server_seconds is not None and after.server_seconds is not None:
        server = (after.server_seconds - before.server_seconds) / seconds * 100
        rates["processor of the server, % of a core"] = once(server)
        rates["processor in all, % of a core"] = once(client + server)
    elif not bench.is_postgres:
        rates["processor in all, % of a core"] = once(client)
    bench.add(f"{size} idle consumers, {seconds} seconds", rates, {}, unit="a second of all of them")


def _read(bench: Bench, counter: itertools.count[int]) -> Reading:
    return Reading(next(counter), time.process_time(), _server_seconds(bench))


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
