"""The consumer group ``shipping``: makes a shipment of each order.

A message may come a second time, after a crash. The shipment's primary key is the order's, so the second time finds it
there and changes nothing.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from examples.flask_orders.tables import TOPIC, Shipment, url_from_environment
from sqlmq import MQ

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sqlmq import Message


def ship(engine: Engine, message: Message) -> None:
    order = json.loads(message.value)
    with Session(engine) as session, session.begin():
        session.merge(Shipment(order_id=order["id"], address=f"{order['customer']}'s home"))


def main() -> None:
    with MQ(url_from_environment()) as mq, mq.consumer(TOPIC, "shipping") as consumer:
        for message in consumer:  # asking for the next message says that this one is done
            ship(mq.engine, message)
            print(f"shipped {message.value.decode()}", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
