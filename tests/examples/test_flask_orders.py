from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session
from werkzeug.serving import make_server

from examples.flask_orders.service import create_app
from examples.flask_orders.tables import TOPIC, Order, Shipment
from tests.examples.programs import post_form, running
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

DATABASES = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def service(database: DatabaseUnderTest) -> Iterator[str]:
    """Serve the application, and give its URL."""
    app = create_app(database.url)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    app.extensions["sqlmq"].close()


def count(engine: Engine, kind: type[Order | Shipment]) -> int:
    with Session(engine) as session:
        return session.scalars(select(func.count()).select_from(kind)).one()


@DATABASES
def test_each_order_gets_its_shipment(database: DatabaseUnderTest, engine: Engine, service: str) -> None:
    with running("-m", "examples.flask_orders.shipping", environment={"ORDERS_URL": database.url}):
        answers = [post_form(f"{service}/orders", customer=customer, cents=1250) for customer in ("Ada", "Grace")]
        until(lambda: count(engine, Shipment) == 2, "two shipments")

    assert [answer.status for answer in answers] == [201, 201]
    with Session(engine) as session:
        shipped = {shipment.order_id: shipment.address for shipment in session.scalars(select(Shipment))}
    assert shipped == {answers[0].body["id"]: "Ada's home", answers[1].body["id"]: "Grace's home"}


@DATABASES
def test_a_request_that_fails_after_publishing_leaves_neither_order_nor_message(
    engine: Engine, mq: MQ, service: str
) -> None:
    answer = post_form(f"{service}/orders", customer="Ada", cents=100_001)

    assert answer == (402, {"error": "Ada can't pay 100001 cents"})
    assert count(engine, Order) == 0
    assert mq.admin.describe_topic(TOPIC).messages == 0
