"""Limits of the server that are reached: a typed error, nothing half done, and everything goes on afterwards."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from sqlmq import MQ, DatabaseBusyError, DatabaseUnavailableError, Message
from sqlmq.errors import DatabaseError, DatabaseFullError
from tests.faults.disks import give_to_server, small_disk_at
from tests.support.waiting import receive, slack_seconds, values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import URL

    from tests.conftest import DatabaseUnderTest

pytestmark = [pytest.mark.faults, pytest.mark.parametrize("database", ["postgres"], indirect=True)]

RETRY_SECONDS = 5.0


def execute(url: URL, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


class Role:
    """A role that may use the tables, and whose limits can be set."""

    def __init__(self, database: DatabaseUnderTest) -> None:
        self._admin = make_url(database.url)
        self.name = f"limited_{secrets.token_hex(4)}"
        password = secrets.token_hex(8)
        execute(
            self._admin,
            f"CREATE ROLE {self.name} LOGIN PASSWORD '{password}'",
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {self.name}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {self.name}",
        )
        self.url = self._admin.set(username=self.name, password=password)

    def set(self, setting: str) -> None:
        execute(self._admin, f"ALTER ROLE {self.name} SET {setting}")

    def limit_connections(self, most: int) -> None:
        execute(self._admin, f"ALTER ROLE {self.name} CONNECTION LIMIT {most}")

    def drop(self) -> None:
        execute(self._admin, f"DROP OWNED BY {self.name}", f"DROP ROLE {self.name}")


@pytest.fixture
def role(mq: MQ, database: DatabaseUnderTest) -> Iterator[Role]:
    mq.create_topic("orders", 1)
    role = Role(database)
    yield role
    role.drop()


def test_without_a_free_connection_it_is_tried_for_some_seconds_and_told_why(role: Role, mq: MQ) -> None:
    with MQ(role.url, notify=False) as limited:
        consumer = limited.consumer("orders", "billing")
        consumer.poll(timeout=0)
        with contextlib.ExitStack() as stack:
            # All that there are: those in the pool, taken out of it.
            taken = 0
            while limited.engine.pool.checkedin():  # type: ignore[attr-defined]
                stack.enter_context(limited.engine.connect())
                taken += 1
            role.limit_connections(taken)
            began = time.monotonic()

            with pytest.raises(DatabaseUnavailableError, match="All connections are taken"):
                limited.producer("orders")

            assert time.monotonic() - began <= RETRY_SECONDS + slack_seconds()
        # What there was is there still, and enough.
        mq.producer("orders").produce(Message(b"1"))
        assert values(receive(consumer, 1)) == [b"1"]
        assert limited.producer("orders").produce(Message(b"2")).offset == 1


def test_a_statement_that_takes_longer_than_the_role_may_wait_is_undone(
    role: Role, mq: MQ, database: DatabaseUnderTest
) -> None:
    role.set("statement_timeout = '100ms'")
    assert_that_a_lock_is_not_waited_for(role, mq, database)


def test_a_lock_that_is_not_free_within_the_roles_limit_is_not_waited_for(
    role: Role, mq: MQ, database: DatabaseUnderTest
) -> None:
    role.set("lock_timeout = '100ms'")
    assert_that_a_lock_is_not_waited_for(role, mq, database)


def assert_that_a_lock_is_not_waited_for(role: Role, mq: MQ, database: DatabaseUnderTest) -> None:
    engine = create_engine(database.url, poolclass=NullPool)
    with MQ(role.url) as limited:
        producer = limited.producer("orders")
        with engine.connect() as connection:
            connection.execute(text("SELECT FROM sqlmq_partition FOR UPDATE"))
            began = time.monotonic()

            with pytest.raises(DatabaseBusyError):
                producer.produce_many([Message(b"1")] * 3)

            assert time.monotonic() - began <= RETRY_SECONDS + slack_seconds()
        assert mq.admin.describe_topic("orders").messages == 0
        assert producer.produce(Message(b"2")).offset == 0


def test_a_block_that_is_quiet_for_longer_than_the_role_may_be_is_undone(role: Role) -> None:
    role.set("idle_in_transaction_session_timeout = '100ms'")
    with MQ(role.url) as limited:
        limited.producer("orders").produce(Message(b"1"))
        consumer = limited.consumer("orders", "billing")
        quiet = threading.Event()

        with pytest.raises(DatabaseError), consumer.transaction(timeout=10) as tx:  # noqa: PT012 - the end of it raises
            assert len(tx.messages) == 1
            quiet.wait(0.5)

        with consumer.transaction(timeout=10) as tx:
            assert values(tx.messages) == [b"1"]


def test_a_transaction_that_is_longer_than_the_role_may_have_is_undone(role: Role, mq: MQ) -> None:
    with mq.engine.connect() as connection:
        version = connection.execute(text("SELECT CAST(current_setting('server_version_num') AS int)")).scalar_one()
    if version < 170_000:
        pytest.skip("transaction_timeout came with Postgres 17")
    role.set("transaction_timeout = '200ms'")
    with MQ(role.url) as limited:
        limited.producer("orders").produce(Message(b"1"))
        consumer = limited.consumer("orders", "billing")

        with pytest.raises(DatabaseError), consumer.transaction(timeout=10) as tx:  # noqa: PT012 - the end of it raises
            for _ in range(10):
                tx.connection.execute(text("SELECT pg_sleep(0.05)"))

        with consumer.transaction(timeout=10) as tx:
            assert values(tx.messages) == [b"1"]


# A disk that is full.


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 16 MB that the server of the tests may write to."""
    directory = tmp_path_factory.mktemp("small-disk")
    with small_disk_at(directory, "16m"):
        give_to_server(directory)
        yield directory


def test_on_a_full_disk_nothing_is_half_done_and_it_goes_on_when_there_is_room(
    mq: MQ, database: DatabaseUnderTest, small_disk: Path
) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    space = f"small_{secrets.token_hex(4)}"
    admin = make_url(database.url)
    execute(
        admin,
        f"CREATE TABLESPACE {space} LOCATION '{small_disk}'",
        f"ALTER TABLE sqlmq_message SET TABLESPACE {space}",
        "ALTER TABLE sqlmq_message ALTER COLUMN value SET STORAGE EXTERNAL",
    )
    toast = "SELECT CAST(reltoastrelid AS regclass) FROM pg_class WHERE relname = 'sqlmq_message'"
    with create_engine(admin, poolclass=NullPool).connect() as connection:
        assert connection.execute(text(toast)).scalar_one()
    try:
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(8 << 20))
        acknowledged = 0

        with pytest.raises(DatabaseFullError, match="Free space on the server's disk"):  # noqa: PT012 - it fills
            while acknowledged < 1_000:
                acknowledged += len(producer.produce_many([Message(b"x" * 100_000)] * 5))

        assert mq.admin.describe_topic("orders").messages == acknowledged > 0
        ballast.unlink()
        assert producer.produce(Message(b"room")).offset == acknowledged
        consumer = mq.consumer("orders", "billing")
        assert values(receive(consumer, acknowledged + 1))[-1] == b"room"
        consumer.close()
    finally:
        execute(admin, "ALTER TABLE sqlmq_message SET TABLESPACE pg_default", f"DROP TABLESPACE {space}")
