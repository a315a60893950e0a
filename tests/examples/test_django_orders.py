from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest
from sqlalchemy import create_engine, text

from sqlmq import MQ
from tests.examples.programs import post_form, run, serving
from tests.support.waiting import finish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.postgres_databases import PostgresDatabases

# The service, which takes seconds to start, serves all tests of this module: they run in one worker.
pytestmark = pytest.mark.xdist_group("django_orders")


class Service(NamedTuple):
    """Where it answers, and the database it uses."""

    url: str
    database_url: str


@pytest.fixture(scope="module")
def service(postgres_databases: PostgresDatabases) -> Iterator[Service]:
    """Migrate an empty database as Django does, and serve the application on it."""
    name = postgres_databases.create_empty()
    database_url = postgres_databases.url(name)
    environment = {"ORDERS_URL": database_url, "DJANGO_SETTINGS_MODULE": "examples.django_orders.settings"}

    migrated = run("-m", "django", "migrate", environment=environment)
    assert migrated.returncode == 0, migrated.stderr
    with MQ(database_url) as mq:
        mq.create_topic("orders")
    with serving("-m", "django", "runserver", "--noreload", "127.0.0.1:0", environment=environment) as url:
        yield Service(url, database_url)
    postgres_databases.drop(name)


def test_an_order_is_there_with_its_message(service: Service) -> None:
    answer = post_form(f"{service.url}/orders", reference="r-1", customer="Ada")

    assert answer.status == 201
    with MQ(service.database_url) as mq, mq.consumer("orders", "mail") as consumer:
        (message,) = finish(consumer, 1)
    assert message.key == b"Ada"
    assert json.loads(message.value) == {"id": answer.body["id"], "reference": "r-1", "customer": "Ada"}


def test_an_order_that_its_commit_refuses_leaves_no_message(service: Service) -> None:
    assert post_form(f"{service.url}/orders", reference="r-2", customer="Grace").status == 201
    with MQ(service.database_url) as mq:
        messages = mq.admin.describe_topic("orders").messages

        answer = post_form(f"{service.url}/orders", reference="r-2", customer="Grace")

        assert answer == (409, {"error": "this order was placed before"})
        assert mq.admin.describe_topic("orders").messages == messages


def test_migrating_back_removes_the_queues_tables(postgres_databases: PostgresDatabases) -> None:
    name = postgres_databases.create_empty()
    environment = {
        "ORDERS_URL": postgres_databases.url(name),
        "DJANGO_SETTINGS_MODULE": "examples.django_orders.settings",
    }
    there_and_back = (
        "import django; django.setup(); from django.core.management import call_command as call\n"
        "call('migrate'); call('migrate', 'django_orders', 'zero')"
    )

    migrated = run("-c", there_and_back, environment=environment)

    assert migrated.returncode == 0, migrated.stderr
    assert "Unapplying django_orders.0002_queue" in migrated.stdout
    engine = create_engine(postgres_databases.url(name))
    with engine.connect() as connection:
        left = connection.execute(text("SELECT tablename FROM pg_tables WHERE tablename LIKE 'sqlmq%'")).scalars().all()
    engine.dispose()
    postgres_databases.drop(name)
    assert left == ["sqlmq_version"]  # alembic leaves it, empty
