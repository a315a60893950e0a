"""Texts of failures in databases whose encoding lacks their characters: each failure is recorded all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from sqlmq import MQ, ReceivedMessage, Retry, migrate
from tests.support.handlers import drain, numbered, send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.postgres_databases import PostgresDatabases

TEXT = "Zoë pays 5 € \U0001f600"
EncodingError = type("Fehler€Error", (Exception,), {})


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def url(request: pytest.FixtureRequest, postgres_databases: PostgresDatabases) -> Iterator[str]:
    """A database of each encoding in turn."""
    options = f"ENCODING '{request.param}' LC_COLLATE 'C' LC_CTYPE 'C'"
    name = postgres_databases.create_empty(options)
    url = f"{postgres_databases.url(name)}?client_encoding=utf8"
    with create_engine(url, poolclass=NullPool).begin() as connection:
        migrate.upgrade(connection)
    yield url
    postgres_databases.drop(name)


@pytest.mark.parametrize("client", ["utf8", "latin1"])
def test_a_failure_is_recorded_in_every_encoding(url: str, client: str) -> None:
    with MQ(url.replace("client_encoding=utf8", f"client_encoding={client}")) as mq:
        send(mq, numbered(2, keys=2))

        def handler(message: ReceivedMessage) -> None:
            if message.value == b"0":
                raise EncodingError(TEXT)

        summary = drain(mq.consumer("orders", "billing"), handler, retry=Retry(max_attempts=2, backoff_seconds=0))

        (dead,) = mq.admin.parked("orders", "billing").list("dead")
        assert (summary.handled, summary.failures, summary.dead) == (1, 2, 1)
        assert dead.error in (TEXT, TEXT.encode("ascii", "backslashreplace").decode())
        assert str(dead.error_type).endswith("Error")
