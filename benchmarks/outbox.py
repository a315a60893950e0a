"""What does an event cost a business transaction: appended when it commits, or at once, against none at all?

Eight clients, one partition. A transaction inserts a row, works for 2 ms and commits; with an event, the message is
given to it before the work. At commit is `session=`; at once is `sqlmq_publish`'s work done in the middle, which holds
the partition's lock for as long as the work lasts. Each round checks that rows and messages are equal in number.
"""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from sqlmq import MQ, Message
from sqlmq.flows import produce

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import Producer

CLIENTS, SECONDS, ROUNDS = 8, 2.0, 5
WORK_SECONDS = 0.002
MESSAGE = Message(b"v" * 200, b"key-0001")


def run(url: str, *, quick: bool) -> None:
    rounds, seconds = (1, 0.3) if quick else (ROUNDS, SECONDS)
    engine = create_engine(url, pool_size=CLIENTS, hide_parameters=True)
    table = f"bench_{uuid.uuid4().hex[:8]}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {table} (id varchar(32) PRIMARY KEY)"))
    insert = text(f"INSERT INTO {table} VALUES (:id)")
    with MQ(url) as mq:
        topic = f"bench-{uuid.uuid4().hex[:8]}"
        mq.create_topic(topic, 1)
        producer = mq.producer(topic)

        def at_once(session: Session) -> None:
            placed = produce.place(producer._current_topic(), [produce.Routed(MESSAGE, 0)], producer._rotation)  # noqa: SLF001
            produce.append(session.connection(), mq._database.dialect, placed)  # noqa: SLF001 - in the middle of the transaction

        ways: dict[str, Callable[[Session], object]] = {
            "none": lambda _session: None,
            "at commit": lambda session: producer.produce(MESSAGE, session=session),
            "at once": at_once,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        try:
            for _ in range(rounds):
                for name, publish in ways.items():
                    before = newest(mq, producer)
                    done = measure(lambda publish=publish: transact(engine, insert, publish), seconds)  # type: ignore[misc]
                    assert newest(mq, producer) - before == (0 if name == "none" else done)
                    rates[name].append(done / seconds)
        finally:
            mq.delete_topics(topic)
            with engine.begin() as connection:
                connection.execute(text(f"DROP TABLE {table}"))
            engine.dispose()
    for one, other in (("at commit", "none"), ("at commit", "at once")):
        ratio = statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))
        print(f"{CLIENTS} clients, {WORK_SECONDS * 1000:.0f} ms of work: {one} / {other} {ratio:.2f}")
    print(" | ".join(f"{name} {statistics.median(found):,.0f} transactions/s" for name, found in rates.items()))


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
    return mq.describe_topic(producer.topic).partitions[0].end_offset
