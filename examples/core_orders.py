"""An order and the message about it, in one transaction of SQLAlchemy Core.

python examples/core_orders.py                                 on SQLite, in a temporary directory
python examples/core_orders.py postgresql://user@host/name     on Postgres, after `sqlmq db upgrade`
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, Integer, MetaData, Table, Text, func, insert, select

from sqlmq import MQ, Message

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlmq import Producer

TOPIC = "core-orders"

orders = Table(
    "core_order",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("customer", Text, nullable=False),
    Column("item", Text, nullable=False),
)


class OutOfStockError(Exception):
    """There is nothing left to sell."""


def place_order(connection: Connection, producer: Producer, customer: str, item: str, stock: set[str]) -> None:
    """Write the order, and publish it when the caller's transaction commits."""
    connection.execute(insert(orders).values(customer=customer, item=item))
    producer.produce(Message(f"{customer} wants {item}".encode(), key=customer.encode()), session=connection)
    if item not in stock:
        raise OutOfStockError(item)


def main(url: str) -> None:
    with MQ(url) as mq:
        mq.delete_topics(TOPIC)
        orders.drop(mq.engine, checkfirst=True)
        orders.create(mq.engine)
        producer = mq.producer(TOPIC)
        stock = {"tea", "scones"}

        # Both are there ...
        with mq.engine.begin() as connection:
            place_order(connection, producer, "Ada", "tea", stock)

        # ... or neither.
        try:
            with mq.engine.begin() as connection:
                place_order(connection, producer, "Ada", "coffee", stock)
        except OutOfStockError as error:
            print(f"rolled back: no {error}")

        # Part of a transaction: the savepoint takes the row and the message back, the rest commits.
        with mq.engine.begin() as connection:
            place_order(connection, producer, "Grace", "scones", stock)
            try:
                with connection.begin_nested():
                    place_order(connection, producer, "Grace", "jam", stock)
            except OutOfStockError as error:
                print(f"left out: no {error}")

        with mq.consumer(TOPIC, "kitchen") as consumer:
            received = sorted(consumer.consume(timeout=10).value.decode() for _ in range(2))
            consumer.commit()
        with mq.engine.connect() as connection:
            rows = connection.execute(select(func.count()).select_from(orders)).scalar_one()
        print(f"{rows} orders; the kitchen got {received}")
        assert rows == 2
        assert received == ["Ada wants tea", "Grace wants scones"]
        assert mq.admin.describe_topic(TOPIC).messages == 2

        orders.drop(mq.engine)
        mq.delete_topics(TOPIC)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as directory:
            main(f"sqlite:///{Path(directory) / 'orders.db'}")
