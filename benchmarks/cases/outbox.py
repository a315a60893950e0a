"""What does an event cost a business transaction: appended when it commits, or at once, against none at all?

Eight clients, one partition. A transaction inserts a row, works for 2 ms and commits; with an event, the message is
given to it before the work. At commit is `session=`; at once is `sqlmq_publish`'s work done in the middle, which holds
the partition's lock for as long as the work lasts. Each round checks that rows and messages are equal in number.
"""

from __future__ import annotations

import functools
import threading
import time
import uuid
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from benchmarks.harness.workload import check, new_topic
from sqlmq import MQ, Message
from sqlmq.operations import produce

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.suite import Bench
    from sqlmq import Producer

CLIENTS, SECONDS, QUICK_SECONDS = 8, 2.0, 0.3
WORK_SECONDS = 0.002
MESSAGE = Message(b"v" * 200, b"key-0001")


def run(bench: Bench) -> None:
    seconds = SECONDS if not bench.quick else QUICK_SECONDS
    engine = create_engine(bench.url, pool_size=CLIENTS, hide_parameters=True)
    table = f"bench_{uuid.uuid4().hex[:8]}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {table} (id varchar(32) PRIMARY KEY)"))
    insert = text(f"INSERT INTO {table} VALUES (:id)")
    with MQ(bench.url) as mq:
        name = new_topic(mq)
        producer = mq.producer(name)

        def at_once(session: Session) -> None:
            core = producer._core  # noqa: SLF001 - what is measured is below the face
            placed = produce.place(core.current_topic(), [produce.RoutedMessage(MESSAGE, 0)], core.rotation)
            produce.append(session.connection(), core.database.dialect, produce.make_batch(placed))

        ways: dict[str, Callable[[Session], object]] = {
            "none": lambda _session: None,
            "at commit": lambda session: producer.produce(MESSAGE, session=session),
            "at once": at_once,
        }

        def round_of(way: str) -> float:
            before = newest(mq, producer)
            done = measure(lambda: transact(engine, insert, ways[way]), seconds)
            appended = newest(mq, producer) - before
            check(appended == (0 if way == "none" else done), f"{done} transactions made {appended} messages")
            return done / seconds

        try:
            bench.compare(
                f"an event in a business transaction, {CLIENTS} clients, {WORK_SECONDS * 1000:.0f} ms of work",
                {way: functools.partial(round_of, way) for way in ways},
                {"at commit / none": ("at commit", "none"), "at commit / at once": ("at commit", "at once")},
                unit="transactions/s",
            )
        finally:
            with engine.begin() as connection:
                connection.execute(text(f"DROP TABLE {table}"))
            engine.dispose()


def transact(engine: object, insert: object, publish: Callable[[Session], object]) -> None:
    with Session(engine) as session:  # type: ignore[arg-type]
        session.execute(insert, {"id": uuid.uuid4().hex})  # type: ignore[call-overload]
        publish(session)
        time.sleep(WORK_SECONDS)
        session.commit()


def measure(transaction: Callable[[], None], seconds: float) -> int:
    """How many transactions the clients finish that begin within *seconds*."""
    counts = [0] * CLIENTS
    ends_at = time.perf_counter() + seconds

    def client(i: int) -> None:
        while time.perf_counter() < ends_at:
            transaction()
            counts[i] += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def newest(mq: MQ, producer: Producer) -> int:
    return mq.admin.describe_topic(producer.topic).partitions[0].end_offset
