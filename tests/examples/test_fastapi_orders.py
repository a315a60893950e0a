from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, NullPool, create_engine, inspect, select
from sqlalchemy.orm import Session

from examples.fastapi_orders.tables import TOPIC, Mail, Order, Sale, SearchEntry
from sqlmq import MQ
from tests.examples.programs import ROOT, post_json, run, running, serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import InstrumentedAttribute

    from tests.support.postgres_databases import PostgresDatabases

# The service, which takes seconds to start, serves all tests of this module: they run in one worker.
pytestmark = pytest.mark.xdist_group("fastapi_orders")

INI = ROOT / "examples" / "fastapi_orders" / "alembic.ini"


class Service(NamedTuple):
    """Where it answers, and the database it uses."""

    url: str
    database_url: str
    engine: Engine

    def place_order(self, customer: str, item: str, cents: int) -> int:
        """Post an order and return the status."""
        return post_json(f"{self.url}/orders", customer=customer, item=item, cents=cents).status

    def all(self, column: InstrumentedAttribute[str] | InstrumentedAttribute[int]) -> list[str | int]:
        with Session(self.engine) as session:
            return sorted(session.scalars(select(column)))

    def words(self, name: str) -> set[str]:
        with Session(self.engine) as session:
            return set(session.scalars(select(SearchEntry.word).where(SearchEntry.index == name)))


@pytest.fixture(scope="module")
def service(postgres_databases: PostgresDatabases) -> Iterator[Service]:
    """Migrate an empty database by Alembic, and serve the application on it."""
    name = postgres_databases.create_empty()
    url = postgres_databases.url(name)
    environment = {"ORDERS_URL": url}
    migrated = run("-m", "alembic", "--config", INI, "upgrade", "head", environment=environment)
    assert migrated.returncode == 0, migrated.stderr
    program = ("-m", "uvicorn", "examples.fastapi_orders.service:app", "--port", "0")
    with serving(*program, environment=environment) as service_url:
        yield Service(service_url, url, create_engine(url, poolclass=NullPool))
    postgres_databases.drop(name)


def test_three_groups_get_each_order_but_the_one_that_was_rolled_back(service: Service) -> None:
    statuses = [
        service.place_order(customer, item, cents)
        for customer, item, cents in (("Ada", "green tea", 450), ("Ada", "yacht", 100_001), ("Grace", "tea", 250))
    ]
    with running("-m", "examples.fastapi_orders.groups", environment={"ORDERS_URL": service.database_url}):
        until(lambda: service.all(Mail.recipient) == ["Ada", "Grace"], "two mails")
        until(lambda: service.words("search") == {"ada", "grace", "green", "tea"}, "the words of two orders")
        until(lambda: service.all(Sale.cents) == [250, 450], "two sales")

    assert statuses == [201, 402, 201]
    assert service.all(Order.item) == ["green tea", "tea"]
    with MQ(service.database_url) as mq:
        assert mq.admin.describe_topic(TOPIC).messages == 2
        assert [mq.admin.describe_group(TOPIC, group).lag for group in ("mail", "search", "analytics")] == [0, 0, 0]


def test_a_group_with_a_new_name_reads_from_the_beginning(service: Service) -> None:
    service.place_order("Edsger", "coffee", 300)

    with running("-m", "examples.fastapi_orders.groups", "search-2", environment={"ORDERS_URL": service.database_url}):
        until(lambda: service.words("search-2") >= {"edsger", "coffee"}, "the words of an order from before")


def test_alembic_leaves_the_queues_tables_to_the_revision_that_made_them(
    postgres_databases: PostgresDatabases, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres_databases.create_empty()
    engine = create_engine(postgres_databases.url(name), poolclass=NullPool)
    monkeypatch.setenv("ORDERS_URL", postgres_databases.url(name))
    monkeypatch.setattr(sys, "path", sys.path.copy())  # alembic prepends to it

    command.upgrade(Config(INI), "head")
    command.check(Config(INI))  # raises if autogenerate would change something
    there = inspect(engine).get_table_names()
    command.downgrade(Config(INI), "base")

    assert {"fastapi_order", "sqlmq_message"} <= set(there)
    assert set(inspect(engine).get_table_names()) == {"alembic_version", "sqlmq_version"}
    postgres_databases.drop(name)
