"""The application's SQLite engine controls transactions in its own way. What is acknowledged is stored, effects are whole."""

from __future__ import annotations

import sqlite3
import sys
from typing import TYPE_CHECKING

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session

from case import Case, messages_in, run, shown
from sqlmq import MQ, Message, SqlmqError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from sqlmq import Producer

    MakeEngine = Callable[[str], Engine]

TOPIC = "modes"
PRODUCED = 3


def connecting(**arguments: object) -> MakeEngine:
    """Return a maker of engines whose connections are opened with *arguments*."""
    return lambda url: create_engine(url, connect_args=arguments)


def beginning(statement: str) -> MakeEngine:
    """Return a maker of engines that begin by *statement*, as SQLAlchemy's documentation shows."""

    def make(url: str) -> Engine:
        engine = create_engine(url)

        @event.listens_for(engine, "connect")
        def leave_transactions_alone(connection: sqlite3.Connection, _record: object) -> None:
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql(statement)

        return engine

    return make


def with_row_factory(url: str) -> Engine:
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def set_row_factory(connection: sqlite3.Connection, _record: object) -> None:
        connection.row_factory = sqlite3.Row

    return engine


AUTOCOMMIT = "autocommit=True"
MODES: dict[str, MakeEngine] = {
    "isolation_level=None": connecting(isolation_level=None),
    "isolation_level=IMMEDIATE": connecting(isolation_level="IMMEDIATE"),
    "isolation_level=EXCLUSIVE": connecting(isolation_level="EXCLUSIVE"),
    "BEGIN by an event": beginning("BEGIN"),
    "BEGIN IMMEDIATE by an event": beginning("BEGIN IMMEDIATE"),
    "BEGIN EXCLUSIVE by an event": beginning("BEGIN EXCLUSIVE"),
    "a row factory": with_row_factory,
    "SQLAlchemy's AUTOCOMMIT": lambda url: create_engine(url, isolation_level="AUTOCOMMIT"),
    "SQLAlchemy's SERIALIZABLE": lambda url: create_engine(url, isolation_level="SERIALIZABLE"),
    "declared types": connecting(detect_types=sqlite3.PARSE_DECLTYPES | sqlite3.PARSE_COLNAMES),
    "no cached statements": connecting(cached_statements=0),
}
if sys.version_info >= (3, 12):
    MODES |= {"autocommit=False": connecting(autocommit=False), AUTOCOMMIT: connecting(autocommit=True)}


def judge(case: Case) -> None:
    for number, (name, make_engine) in enumerate(MODES.items()):
        url = f"sqlite:///{case.directory}/{number}.db"
        try:
            use(case, name, url, make_engine(url))
        except SqlmqError as error:
            # A refusal is right in one mode, if it names it.
            if name != AUTOCOMMIT or "autocommit" not in str(error).lower():
                case.fault(f"{name}: {shown(error)}")
        except Exception as error:  # noqa: BLE001 - every exception is a fault
            case.fault(f"{name}: {shown(error)}")


def use(case: Case, name: str, url: str, engine: Engine) -> None:
    with MQ(engine) as mq:
        producer = mq.producer(TOPIC)
        producer.produce(Message(b"1", headers={"a": "b"}))
        producer.produce_many([Message(b"2", key=b"k"), Message(b"3")])
        if (found := messages_in(url, TOPIC)) != PRODUCED:
            case.fault(f"{name}: another process finds {found} of {PRODUCED} acknowledged messages")
        wanted = PRODUCED + publish(engine, producer)

        received = 0
        with mq.consumer(TOPIC, "poll") as consumer:
            while received < wanted and (messages := consumer.poll(timeout=5)):
                received += len(messages)
        taken = transact(mq, wanted)
        if (received, taken) != (wanted, wanted):
            case.fault(f"{name}: poll gave {received} and transactions {taken} of {wanted} messages")

        summary = mq.consumer(TOPIC, "run").run(
            lambda _message, session: session.execute(text("INSERT INTO business VALUES (7)")),
            transaction=True,
            idle_seconds=0.5,
            handle_signals=False,
        )
        effects = count_effects(url)
        if (summary.handled, effects) != (wanted, wanted):
            case.fault(f"{name}: run handled {summary.handled} of {wanted} messages, and {effects} effects are stored")
    engine.dispose()


def insert(session: Session, number: int) -> None:
    """Insert a row. The table is created in the same transaction."""
    session.execute(text("CREATE TABLE IF NOT EXISTS business (number)"))
    session.execute(text("INSERT INTO business VALUES (:number)"), {"number": number})


def publish(engine: Engine, producer: Producer) -> int:
    """Publish a message, and another one that is rolled back; return how many are sent: none, if they are refused."""
    try:
        with Session(engine) as session:
            insert(session, 1)
            producer.produce(Message(b"4"), session=session)
            session.commit()
        with Session(engine) as session:
            insert(session, 2)
            producer.produce(Message(b"no"), session=session)
            session.rollback()
    except SqlmqError:
        return 0
    return 1


def transact(mq: MQ, wanted: int) -> int:
    taken = 0
    with mq.consumer(TOPIC, "transactions") as consumer:
        while taken < wanted:
            with consumer.transaction(timeout=5) as transaction:
                insert(transaction.session, 9)
                if not transaction.messages:
                    break
                taken += len(transaction.messages)
    return taken


def count_effects(url: str) -> int:
    with create_engine(url).connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM business WHERE number = 7")).scalar_one())


if __name__ == "__main__":
    run(judge, only_on="sqlite")
