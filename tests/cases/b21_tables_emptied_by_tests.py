"""A test suite empties all tables between its tests, or drops what it reflects. No message goes into another topic."""

from __future__ import annotations

from sqlalchemy import Engine, MetaData, create_engine, inspect, text

from case import Case, run, shown, upgrade
from sqlmq import MQ, Message, SqlmqError
from sqlmq.schema import VERSION_TABLE


def judge(case: Case) -> None:
    engine = create_engine(case.url)
    produce_after_restarted_identity(case, engine)
    open_without_version(case, engine)
    reflect_and_drop(case, engine)


def produce_after_restarted_identity(case: Case, engine: Engine) -> None:
    """Keep a producer while all rows go, the ids begin at 1 again, and another topic gets the old one's id."""
    mq = MQ(case.url)
    mq.create_topic("orders", 3)
    producer = mq.producer("orders")
    producer.produce(Message(b"first", key=b"k"))
    consumer = mq.consumer("orders", "group")
    consumer.consume(timeout=10)
    empty(case, engine, keep=[VERSION_TABLE])
    other = MQ(case.url)
    other.create_topic("payments", 3)

    try:
        result = producer.produce(Message(b"an order", key=b"k"))
    except SqlmqError:
        pass  # a refusal is right
    else:
        with other.consumer("payments", "group") as payments:
            messages = payments.poll(timeout=2)
        if messages:
            case.fault(f"an order arrived in topic {messages[0].topic!r}, and produce() returned {result}")
    try:
        consumer.close()
    except SqlmqError:
        pass  # its group is gone
    except Exception as error:  # noqa: BLE001 - every other exception is a fault
        case.fault(f"closing the old consumer: {shown(error)}")
    for opened in (mq, other):
        try:
            opened.close()
        except ExceptionGroup:
            pass  # of objects whose topics are gone
        except Exception as error:  # noqa: BLE001 - every other exception is a fault
            case.fault(f"closing an MQ: {shown(error)}")


def open_without_version(case: Case, engine: Engine) -> None:
    """Empty the table of the version too. The advice of the error has to work."""
    empty(case, engine, keep=[])
    try:
        with MQ(case.url) as mq:
            mq.producer("fresh").produce(Message(b"x"))
    except SqlmqError as error:
        if "sqlmq db upgrade" in str(error):
            case.attempt("all tables are empty; `sqlmq db upgrade`, as advised", lambda: upgrade(case.url))
        else:
            case.fault(f"all tables are empty: {shown(error)}")
    except Exception as error:  # noqa: BLE001 - every other exception is a fault
        case.fault(f"all tables are empty: {shown(error)}")


def reflect_and_drop(case: Case, engine: Engine) -> None:
    """Drop the tables as the fixtures of applications do."""

    def drop() -> None:
        metadata = MetaData()
        metadata.reflect(engine)
        metadata.drop_all(engine)

    case.attempt("metadata.reflect(), drop_all()", drop)


def empty(case: Case, engine: Engine, keep: list[str]) -> None:
    with engine.begin() as connection:
        names = [name for name in inspect(connection).get_table_names() if name not in keep]
        if case.is_sqlite:
            for name in [*names, "sqlite_sequence"]:
                connection.execute(text(f"DELETE FROM {name}"))
        else:
            connection.execute(text(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE"))


if __name__ == "__main__":
    run(judge)
