"""ALTER SCHEMA ... RENAME TO, as in blue-green deployments. The renamed queue must work, and write to its own tables only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import create_engine

from case import Case, run, upgrade
from sqlmq import MQ, Message, migrate

if TYPE_CHECKING:
    from sqlalchemy import Engine


def judge(case: Case) -> None:
    rename(case)
    rename_beside_new_schema(case)
    rename_in_search_path(case)


def rename(case: Case) -> None:
    upgrade(case.url, schema="blue")
    use(case, "blue", "orders")
    case.execute("ALTER SCHEMA blue RENAME TO green")
    case.attempt("after the rename", lambda: use(case, "green", "after"))


def rename_beside_new_schema(case: Case) -> None:
    """Create a new schema by the old name. The functions of the renamed one must not write into its tables."""
    upgrade(case.url, schema="blue")
    with MQ(case.url, schema="blue") as mq:
        mq.create_topic("foreign", 3)
    before = messages_in_blue(case)
    case.attempt("beside a new schema", lambda: use(case, "green", "orders"))
    strays = messages_in_blue(case) - before
    if strays:
        case.fault(f"{strays} messages that were sent to schema green are in the tables of schema blue")


def rename_in_search_path(case: Case) -> None:
    """Rename a schema that is found by search_path, without ``schema=``."""
    with create_engine(case.url).begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA tenant")
        connection.exec_driver_sql("SET LOCAL search_path TO tenant")
        migrate.upgrade(connection)
    case.execute("ALTER SCHEMA tenant RENAME TO renamed")
    engine = create_engine(case.url, connect_args={"options": "-csearch_path=renamed"})
    case.attempt("found by search_path, renamed", lambda: produce_by_path(engine))


def produce_by_path(engine: Engine) -> None:
    with MQ(engine) as mq:
        mq.producer("orders").produce(Message(b"x"))


def use(case: Case, schema: str, topic: str) -> None:
    with MQ(case.url, schema=schema) as mq:
        producer = mq.producer(topic)
        producer.produce(Message(b"1", key=b"k"))
        producer.produce_many([Message(b"2"), Message(b"3", key=b"z")])
        with mq.engine.begin() as connection:
            producer.produce(Message(b"4", key=b"k"), session=connection)
        with mq.consumer(topic, "group") as consumer:
            for _ in range(4):
                consumer.consume(timeout=5)


def messages_in_blue(case: Case) -> int:
    return int(case.scalar("SELECT count(*) FROM blue.sqlmq_message") or 0)


if __name__ == "__main__":
    run(judge, only_on="postgresql")
