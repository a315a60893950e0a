"""The server ends sessions that are idle (``idle_session_timeout``). The next call must not notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine, create_engine

from case import Case, rest, run
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_SECONDS = 2.5
ROUNDS = 3


def judge(case: Case) -> None:
    case.set_default("idle_session_timeout", "1500ms")

    use(case, "an MQ of a URL", case.url)
    use(case, "an MQ of an engine", create_engine(case.url))
    produce_only(case)


def use(case: Case, name: str, database: str | Engine) -> None:
    mq = MQ(database)
    topic = name.replace(" ", "-")
    producer = mq.producer(topic)
    consumer = mq.consumer(topic, "group")
    producer.produce(Message(b"0"))
    consumer.consume(timeout=20)
    calls: dict[str, Callable[[], object]] = {
        "produce": lambda: producer.produce(Message(b"x")),
        "produce_many": lambda: producer.produce_many([Message(b"a"), Message(b"b")]),
        "topics": mq.admin.topics,
        "consume": lambda: consumer.consume(timeout=20),
        "commit": consumer.commit,
        "schedule": lambda: producer.schedule(Message(b"later"), delay_seconds=500),
    }
    for _ in range(ROUNDS):
        rest(IDLE_SECONDS)
        for what, call in calls.items():
            case.attempt(f"{name}: {what} after {IDLE_SECONDS} idle seconds", call)
    case.attempt(f"{name}: close", mq.close)


def produce_only(case: Case) -> None:
    """Produce without a consumer, so that no heartbeat keeps the session awake."""
    with MQ(create_engine(case.url)) as mq:
        producer = mq.producer("only-produced")
        producer.produce(Message(b"first"))
        for _ in range(ROUNDS):
            rest(IDLE_SECONDS)
            case.attempt(
                f"a producer alone: produce after {IDLE_SECONDS} idle seconds", lambda: producer.produce(Message(b"x"))
            )


if __name__ == "__main__":
    run(judge, only_on="postgresql")
