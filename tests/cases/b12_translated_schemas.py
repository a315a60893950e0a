"""Tenants by SQLAlchemy's ``schema_translate_map`` on the application's engine or sessions. All share the queue's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, insert
from sqlalchemy.orm import Session, sessionmaker

from case import Case, run
from sqlmq import MQ, DelayedMessage, Message, Retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import Consumer, Producer, ReceivedMessage

T = TypeVar("T")

business = Table("business", MetaData(), Column("number", Integer))


def judge(case: Case) -> None:
    case.execute("CREATE SCHEMA tenant_a", "CREATE TABLE tenant_a.business (number integer)")
    engine = create_engine(case.url)
    tenant = engine.execution_options(schema_translate_map={None: "tenant_a"})

    with MQ(case.url) as mq:
        Tenant(case, "an MQ of the URL", tenant).use(mq)
    with MQ(engine) as mq:
        Tenant(case, "an MQ of the plain engine", tenant).use(mq)
    with MQ(case.url, schema="public") as mq:
        Tenant(case, "an MQ with a schema", tenant).use(mq)
    mq = MQ(tenant)
    Tenant(case, "an MQ of the translating engine", tenant).use(mq)
    case.attempt("an MQ of the translating engine: close", mq.close)


class Tenant:
    """One way to make the MQ, used with sessions of the translating engine."""

    def __init__(self, case: Case, name: str, engine: Engine) -> None:
        self._case = case
        self._name = name
        self._engine = engine
        self._topic = name.replace(" ", "-")
        self._sessions = sessionmaker(engine)

    def use(self, mq: MQ) -> None:
        producer = self._attempt("producer", lambda: mq.producer(self._topic))
        if producer is None:
            return
        self._attempt("produce", lambda: producer.produce(Message(b"0", key=b"a")))
        self._attempt("produce(session=)", lambda: self._publish(producer))
        self._attempt("schedule(session=)", lambda: self._schedule(producer, 0.01))
        delayed = self._attempt("schedule(session=) for later", lambda: self._schedule(producer, 999))
        if delayed is not None:
            self._attempt("cancel_delayed(session=)", lambda: self._cancel(mq, delayed))
        consumer = self._attempt("consumer", lambda: mq.consumer(self._topic, "group"))
        if consumer is None:
            return
        self._run(consumer)
        self._attempt("transaction(session=)", lambda: self._transact(mq))
        self._attempt("lag", mq.admin.lag)

    def _attempt(self, what: str, call: Callable[[], T]) -> T | None:
        return self._case.attempt(f"{self._name}: {what}", call)

    def _publish(self, producer: Producer) -> None:
        with Session(self._engine) as session, session.begin():
            session.execute(insert(business).values(number=1))
            producer.produce(Message(b"1", key=b"a"), session=session)

    def _schedule(self, producer: Producer, delay_seconds: float) -> DelayedMessage:
        with Session(self._engine) as session, session.begin():
            session.execute(insert(business).values(number=1))
            return producer.schedule(Message(b"1", key=b"a"), delay_seconds=delay_seconds, session=session)

    def _cancel(self, mq: MQ, delayed: DelayedMessage) -> None:
        with Session(self._engine) as session, session.begin():
            assert mq.admin.cancel_delayed(delayed.id, session=session) == [delayed.id]

    def _run(self, consumer: Consumer) -> None:
        handled: list[bytes] = []

        def handle(message: ReceivedMessage, session: Session) -> None:
            session.execute(insert(business).values(number=2))
            handled.append(message.value)

        self._attempt(
            "run(transaction=True, session=)",
            lambda: consumer.run(
                handle,
                transaction=True,
                session=self._sessions,
                idle_seconds=2,
                retry=Retry(max_attempts=1),
                handle_signals=False,
            ),
        )
        if len(handled) < 3:
            self._case.fault(f"{self._name}: run handled {len(handled)} of 3 messages")

    def _transact(self, mq: MQ) -> None:
        with (
            mq.consumer(self._topic, "transactions") as consumer,
            consumer.transaction(timeout=5, session=self._sessions) as transaction,
        ):
            assert transaction.messages
            transaction.session.execute(insert(business).values(number=3))


if __name__ == "__main__":
    run(judge, only_on="postgresql")
