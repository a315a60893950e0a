"""The message your outbox loses, shown on your own Postgres, step by step and without a single sleep.

python examples/lost_message.py postgresql://user@host/name     after `sqlmq db upgrade`

An outbox table with a serial id, and a reader that remembers the last id it saw: two transactions that commit in the
other order than they drew their ids are enough, and the reader never sees one message. Then the same two transactions
publish with sqlmq. The program exits with 1 if it can't show what it claims. Why it is so: docs/lost-message.md.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Column, Connection, Engine, Identity, Integer, MetaData, Table, Text, insert, select, text

from sqlmq import MQ, Message, ReceivedMessage

TOPIC = "lost-message"
GROUP = "reader"

outbox = Table(
    "lost_message_outbox",
    MetaData(),
    Column("id", Integer, Identity(), primary_key=True),
    Column("message", Text, nullable=False),
)


# --- By hand ---


class Poller:
    """What reads most outboxes made by hand: everything behind the last id, again and again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._last_seen = 0

    def poll(self) -> list[str]:
        """Return what is behind the last id, and remember the newest."""
        query = select(outbox).where(outbox.c.id > self._last_seen).order_by(outbox.c.id)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        self._last_seen = max([self._last_seen, *(row.id for row in rows)])
        print(f"  reader          sees {[row.message for row in rows]}, remembers id {self._last_seen}")
        return [row.message for row in rows]


def add(connection: Connection, message: str) -> None:
    new_id = connection.execute(insert(outbox).values(message=message).returning(outbox.c.id)).scalar_one()
    print(f"  transaction {message}   draws id {new_id}")


def by_hand(engine: Engine) -> list[str]:
    """Return what the reader of a table with a serial id has seen in the end."""
    reader = Poller(engine)
    with engine.connect() as a, engine.connect() as b:
        add(a, "A")
        add(b, "B")
        commit(b, "B")
        seen = reader.poll()
        commit(a, "A")
    return seen + reader.poll()


# --- With sqlmq ---


def at_commit(mq: MQ) -> list[str]:
    """Return what a consumer has got in the end, when the same two transactions publish by ``session=``."""
    producer = mq.producer(TOPIC)
    with mq.consumer(TOPIC, GROUP) as consumer, mq.engine.connect() as a, mq.engine.connect() as b:
        producer.produce(Message(b"A"), session=a)
        print("  transaction A   publishes: no number yet, no lock")
        producer.produce(Message(b"B"), session=b)
        print("  transaction B   publishes: no number yet, no lock")
        commit(b, "B")
        first = told(consumer.consume(timeout=10))
        commit(a, "A")
        second = told(consumer.consume(timeout=10))
        consumer.commit()
    return [first, second]


def at_the_call(mq: MQ) -> list[str]:
    """Return what a consumer has got in the end, when they publish from SQL, which numbers the message at the call."""
    publish = text("SELECT message_offset FROM sqlmq_produce(:topic, NULL::text, :message)")
    with (
        mq.consumer(TOPIC, GROUP) as consumer,
        mq.engine.connect() as b,
        ThreadPoolExecutor(1) as thread,
        mq.engine.connect() as a,  # closed first, so that B never waits for it in vain
    ):
        offset = a.execute(publish, {"topic": TOPIC, "message": "A"}).scalar_one()
        print(f"  transaction A   draws offset {offset}, and keeps the partition locked")
        b_pid = b.execute(text("SELECT pg_backend_pid()")).scalar_one()
        publishing = thread.submit(b.execute, publish, {"topic": TOPIC, "message": "B"})
        while not is_blocked(mq.engine, b_pid):
            assert not publishing.done(), "B has drawn an offset while A had not committed"
        print("  transaction B   waits for A")
        commit(a, "A")
        print(f"  transaction B   draws offset {publishing.result(10).scalar_one()}")
        first = told(consumer.consume(timeout=10))
        commit(b, "B")
        second = told(consumer.consume(timeout=10))
        consumer.commit()
    return [first, second]


def told(message: ReceivedMessage) -> str:
    value = message.value.decode()
    print(f"  consumer        gets {value!r} at offset {message.offset}")
    return value


# --- Both ---


def commit(connection: Connection, name: str) -> None:
    connection.commit()
    print(f"  transaction {name}   commits")


def is_blocked(engine: Engine, pid: int) -> bool:
    """Whether the server's process *pid* waits for another one."""
    with engine.connect() as connection:
        return bool(connection.execute(text("SELECT cardinality(pg_blocking_pids(:pid)) > 0"), {"pid": pid}).scalar())


def main(url: str) -> int:
    with MQ(url) as mq:
        mq.delete_topics(TOPIC)
        mq.create_topic(TOPIC, partitions=1)
        outbox.drop(mq.engine, checkfirst=True)
        outbox.create(mq.engine)
        try:
            print("An outbox by hand: a serial id, and a reader that asks for ids above the last it saw")
            by_hand_seen = by_hand(mq.engine)
            print("\nsqlmq, the same two transactions, publishing with session=")
            at_commit_seen = at_commit(mq)
            print("\nsqlmq from SQL, where the message is numbered at the call")
            at_the_call_seen = at_the_call(mq)
        finally:
            outbox.drop(mq.engine)
            mq.delete_topics(TOPIC)

    is_as_claimed = (by_hand_seen, at_commit_seen, at_the_call_seen) == (["B"], ["B", "A"], ["A", "B"])
    print(f"\nby hand: {by_hand_seen}; with sqlmq: {at_commit_seen} and {at_the_call_seen}")
    print("The outbox by hand has lost A; sqlmq has lost nothing." if is_as_claimed else "FAILED: see above")
    return 0 if is_as_claimed else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/lost_message.py postgresql://user@host/name")
    sys.exit(main(sys.argv[1]))
