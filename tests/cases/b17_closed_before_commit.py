"""The MQ or the producer is closed, or gone, before the application commits what it published. It is sent, or refused."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from case import Case, messages_in, run, shown, until
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable

TOPIC = "closing"
MOVED_SECONDS = 5


def judge(case: Case) -> None:
    engine = create_engine(case.url)
    with MQ(case.url) as mq:
        mq.create_topic(TOPIC, 1)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE business (number integer)"))
    ways: dict[str, Callable[[Session], None]] = {
        "the MQ is closed": lambda session: publish_and_close_mq(case.url, session),
        "the MQ of an engine is closed": lambda session: publish_and_close_mq(engine, session),
        "the producer is closed": lambda session: publish_and_close_producer(case.url, session),
        "the MQ is gone": lambda session: publish_and_forget(case.url, session),
        "the MQ is closed, delayed": lambda session: schedule_and_close_mq(case.url, session),
    }
    for name, publish in ways.items():
        publish_and_commit(case, engine, name, publish)
    publish_around_savepoints(case, engine)


def publish_and_commit(case: Case, engine: Engine, name: str, publish: Callable[[Session], None]) -> None:
    before = messages_in(case.url, TOPIC)
    refused: Exception | None = None
    try:
        with Session(engine) as session:
            session.execute(text("INSERT INTO business VALUES (1)"))
            publish(session)
            session.commit()
    except Exception as error:  # noqa: BLE001 - any error is a refusal
        refused = error
    sent = count_sent(case.url, before)
    if refused is None and sent != 1:
        case.fault(f"{name}: committed with {sent} messages instead of 1")
    if refused is not None and sent != 0:
        case.fault(f"{name}: {sent} messages without their rows, after {shown(refused)}")


def count_sent(url: str, before: int) -> int:
    """Return how many messages there are more than *before*. A delayed one is moved while there is a consumer."""
    with MQ(url) as mq, mq.consumer(TOPIC, "group"):
        until(lambda: mq.admin.describe_topic(TOPIC).messages > before, seconds=MOVED_SECONDS)
        return mq.admin.describe_topic(TOPIC).messages - before


def publish_and_close_mq(database: str | Engine, session: Session) -> None:
    with MQ(database) as mq:
        mq.producer(TOPIC).produce(Message(b"x"), session=session)


def publish_and_close_producer(url: str, session: Session) -> None:
    mq = MQ(url)
    with mq.producer(TOPIC) as producer:
        producer.produce(Message(b"x"), session=session)


def publish_and_forget(url: str, session: Session) -> None:
    MQ(url).producer(TOPIC).produce(Message(b"x"), session=session)
    gc.collect()


def schedule_and_close_mq(url: str, session: Session) -> None:
    with MQ(url) as mq:
        mq.producer(TOPIC).schedule(Message(b"x"), delay_seconds=0, session=session)


def publish_around_savepoints(case: Case, engine: Engine) -> None:
    """Publish on a connection with a rollback before and savepoints around, and close the MQ before the commit."""
    before = messages_in(case.url, TOPIC)
    with engine.connect() as connection:
        mq = MQ(case.url)
        producer = mq.producer(TOPIC)
        transaction = connection.begin()
        producer.produce(Message(b"no"), session=connection)
        transaction.rollback()
        with connection.begin():
            with connection.begin_nested():
                producer.produce(Message(b"yes"), session=connection)
            savepoint = connection.begin_nested()
            producer.produce(Message(b"no"), session=connection)
            savepoint.rollback()
            mq.close()
    sent = messages_in(case.url, TOPIC) - before
    if sent != 1:
        case.fault(f"a connection with savepoints: {sent} messages instead of 1")


if __name__ == "__main__":
    run(judge)
