"""The service: an order and the message about it commit together, or not at all."""

from __future__ import annotations

import json

from flask import Flask, request
from sqlalchemy.orm import Session

from examples.flask_orders.tables import TOPIC, Base, Order, url_from_environment
from sqlmq import MQ, Message


class PaymentDeclinedError(Exception):
    """The customer's bank said no."""


def charge(order: Order) -> None:
    """Stand for whatever may still fail when the message has been published."""
    if order.cents > 100_000:
        raise PaymentDeclinedError(f"{order.customer} can't pay {order.cents} cents")


def create_app(url: str | None = None) -> Flask:
    """Make the application: one MQ and one producer for all its threads, a session for each request."""
    mq = MQ(url or url_from_environment())
    Base.metadata.create_all(mq.engine)
    producer = mq.producer(TOPIC)

    app = Flask(__name__)
    app.extensions["sqlmq"] = mq

    @app.post("/orders")
    def place_order() -> tuple[dict[str, int], int]:
        order = Order(customer=request.form["customer"], cents=int(request.form["cents"]))
        with Session(mq.engine) as session, session.begin():
            session.add(order)
            session.flush()  # the order gets its id
            order_id = order.id
            value = json.dumps({"id": order_id, "customer": order.customer, "cents": order.cents})
            # Nothing is sent yet: the message goes into the log as the last act of this transaction.
            producer.produce(Message(value.encode(), key=order.customer.encode()), session=session)
            charge(order)
        return {"id": order_id}, 201

    @app.errorhandler(PaymentDeclinedError)
    def refuse(error: PaymentDeclinedError) -> tuple[dict[str, str], int]:
        return {"error": str(error)}, 402

    return app
