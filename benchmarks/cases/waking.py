"""How long from ``produce`` to the handler, at 200 messages a second: in the process that produced, and in another.

The other process is told by a notice, or looks by itself with the default pauses, or uses pgmq, which looks every 5 ms. The
clock of a message starts when it was due to be sent, so that a slow call counts against all that had to wait for it.
"""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import threading
import time
from typing import TYPE_CHECKING

import psycopg

from benchmarks import peers
from benchmarks.harness.suite import Rounds, ratio
from benchmarks.harness.workload import VALUE_BYTES, check, new_group, new_topic
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from benchmarks.harness.suite import Bench
    from sqlmq import Consumer, Producer

    Send = Callable[[bytes], object]
    Handle = Callable[..., None]

PER_SECOND = 200
WARM_UP = 20
"""So many at first are not counted."""
PGMQ_POLL_MS = 5
HERE, TOLD, LOOKING = "the same process", "another process, notices", "another process, looking"
BY_PGMQ = f"pgmq, looking every {PGMQ_POLL_MS} ms"


def run(bench: Bench) -> None:
    pgmq = peers.find("pgmq")
    count = bench.scale(600, 60)
    with MQ(bench.url) as telling, MQ(bench.url, notify=False) as silent, bench.database.scratch() as target:
        name = new_topic(telling)
        producer, silent_producer = telling.producer(name), silent.producer(name)
        ways = {HERE: lambda: _here(telling, producer, count)}
        if bench.is_postgres:
            ways[TOLD] = lambda: _elsewhere(_to(producer), handle, (bench.url, name, True), count)
        ways[LOOKING] = lambda: _elsewhere(_to(silent_producer), handle, (bench.url, name, False), count)
        if bench.is_postgres and pgmq is not None:
            pgmq.install(target)
            ways[BY_PGMQ] = lambda: _by_pgmq(target, count)
        rates = _by_turns(bench, ways)
    ratios = {
        f"{percentile}: notices / pgmq": ratio(rates[f"{TOLD}, {percentile}"], rates[f"{BY_PGMQ}, {percentile}"])
        for percentile in ("p50", "p99")
        if BY_PGMQ in ways
    }
    bench.add(f"from produce to the handler, {PER_SECOND} messages/s", rates, ratios, unit="ms")


def _by_turns(bench: Bench, ways: dict[str, Callable[[], list[float]]]) -> dict[str, Rounds]:
    found: dict[str, list[float]] = {}
    for number in range(-bench.warm_up_rounds, bench.rounds):
        for way, measure in ways.items():
            percentiles = statistics.quantiles(measure(), n=100)
            if number >= 0:
                found.setdefault(f"{way}, p50", []).append(percentiles[49])
                found.setdefault(f"{way}, p99", []).append(percentiles[98])
    return {name: Rounds(tuple(values)) for name, values in found.items()}


def _here(mq: MQ, producer: Producer, count: int) -> list[float]:
    took: list[float] = []
    with mq.consumer(producer.topic, new_group(), start="latest") as consumer:
        consumer.poll(timeout=0.2)  # has joined, and waits
        handler = threading.Thread(target=lambda: took.extend(_ages(functools.partial(_next_of, consumer), count)))
        handler.start()
        _send(_to(producer), count)
        handler.join()
    check(len(took) == count - WARM_UP, f"{len(took)} messages came")
    return took


def _elsewhere(send: Send, handling: Handle, arguments: tuple[object, ...], count: int) -> list[float]:
    # Not forked: this process has threads.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=handling, args=(*arguments, count, theirs))
    process.start()
    try:
        check(ours.poll(60) and ours.recv() == "ready", "the other process did not begin")
        _send(send, count)
        check(ours.poll(60), "the other process did not end")
        took: list[float] = ours.recv()
    finally:
        process.join(10)
        process.kill()
    check(len(took) == count - WARM_UP, f"{len(took)} messages came")
    return took


def handle(url: str, name: str, notify: bool, count: int, pipe: Connection) -> None:
    """In another process: tell how long each message was on its way."""
    with MQ(url, notify=notify) as mq, mq.consumer(name, new_group(), start="latest") as consumer:
        consumer.poll(timeout=0.5)  # has joined, and listens
        pipe.send("ready")
        pipe.send(_ages(functools.partial(_next_of, consumer), count))
        consumer.commit()


def _by_pgmq(target: str, count: int) -> list[float]:
    from benchmarks.peers import pgmq

    with psycopg.connect(target, autocommit=True) as connection:

        def send(value: bytes) -> None:
            connection.execute(pgmq.SEND, [f'"{value.decode()}"']).fetchall()

        return _elsewhere(send, handle_by_pgmq, (target,), count)


def handle_by_pgmq(target: str, count: int, pipe: Connection) -> None:
    from benchmarks.peers import pgmq

    statement = f"SELECT msg_id, message FROM pgmq.read_with_poll('{pgmq.QUEUE}', 60, 1, 30, {PGMQ_POLL_MS})"
    with psycopg.connect(target, autocommit=True) as connection:
        handled: list[int] = []

        def following() -> bytes:
            # As the library does: what was handled is done when the next one is asked for.
            if handled:
                connection.execute(pgmq.DELETE, [[handled.pop()]]).fetchall()
            (row,) = connection.execute(statement).fetchall()
            handled.append(row[0])
            return str(row[1]).encode()

        pipe.send("ready")
        pipe.send(_ages(following, count))
        connection.execute(pgmq.DELETE, [handled]).fetchall()


def _to(producer: Producer) -> Send:
    return lambda value: producer.produce(Message(value, b"key-0001"))


def _next_of(consumer: Consumer) -> bytes:
    return consumer.consume(timeout=30).value


def _ages(following: Callable[[], bytes], count: int) -> list[float]:
    """How many milliseconds each message took, but for the first ones; each tells when it was due."""
    took = []
    for _ in range(count):
        due = int(following())
        took.append((time.perf_counter_ns() - due) / 1e6)
    return took[WARM_UP:]


def _send(send: Send, count: int) -> None:
    """Send *count* messages, each when it is due. perf_counter is one clock for all processes of a machine."""
    clock = time.perf_counter_ns
    began = clock() + 10_000_000
    for i in range(count):
        due = began + i * 1_000_000_000 // PER_SECOND
        time.sleep(max(0.0, (due - clock()) / 1e9))
        send(str(due).encode().zfill(VALUE_BYTES))
