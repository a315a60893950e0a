"""A standby becomes the primary while everybody works, and nobody has to be told."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import URL, QueuePool, create_engine, text
from sqlalchemy.pool import NullPool

from sqlmq import MQ, Message
from sqlmq.migrate import upgrade
from tests.contract.waiting import until
from tests.databases.traffic import PATIENCE_SECONDS, Traffic
from tests.postgres_server import SETTINGS, PostgresServer, installations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.slow, pytest.mark.faults]


class Pair:
    """A primary that acknowledges a commit when its standby has it, and that standby."""

    def __init__(self) -> None:
        installation = next(installations())
        self.primary = PostgresServer(installation, {**SETTINGS, "synchronous_standby_names": "*"})
        self.standby = self.primary
        try:
            self.standby = PostgresServer(installation)
            self._copy_data()
            self.primary.start()
            self.standby.start_as(self.primary)
            engine = create_engine(self.primary.url, poolclass=NullPool)
            with engine.begin() as connection:
                upgrade(connection)
                # Done when the standby shows it.
                connection.execute(text("SET LOCAL synchronous_commit = remote_apply"))
        except BaseException:
            self.remove()
            raise

    @property
    def url(self) -> str:
        """What a client is given: both, of which the one that writes is wanted."""
        hosts = tuple(f"{server.url.host}:{server.url.port}" for server in (self.primary, self.standby))
        url = URL.create(
            "postgresql+psycopg",
            self.primary.url.username,
            self.primary.url.password,
            database=self.primary.url.database,
            query={"host": hosts, "target_session_attrs": "read-write"},
        )
        return url.render_as_string(hide_password=False)

    def promote(self) -> float:
        """Make the standby the primary; return when it was."""
        with create_engine(self.standby.url, poolclass=NullPool).connect() as connection:
            assert connection.scalar(text("SELECT pg_promote(true, 30)"))
        return time.monotonic()

    def remove(self) -> None:
        self.standby.remove()
        self.primary.remove()

    def _copy_data(self) -> None:
        """Have the standby begin as a copy of the primary, which has not started yet."""
        source, copy = self.primary.directory / "data", self.standby.directory / "data"
        shutil.rmtree(copy)
        shutil.copytree(source, copy)
        (copy / "standby.signal").touch()
        url = self.primary.url
        conninfo = f"host={url.host} port={url.port} user={url.username} password={url.password}"
        with (copy / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{conninfo}'\n")
        owner = source.stat()
        for path in (copy, *copy.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.remove()


def write_nothing(mq: MQ) -> bool:
    """Whether that is so in every session that the pool has at hand, and in the one that is kept for appends."""
    kept = mq._database._append_connection._kept
    assert kept is not None
    assert isinstance(mq.engine.pool, QueuePool)
    with ExitStack() as stack:
        resting = [stack.enter_context(mq.engine.connect()) for _ in range(mq.engine.pool.checkedin())]
        show = "SHOW default_transaction_read_only"
        return all(session.exec_driver_sql(show).scalar() == "on" for session in (kept.connection, *resting))


def crash(pair: Pair) -> None:
    pair.primary.kill()


def shut_down(pair: Pair) -> None:
    pair.primary.stop()


@pytest.mark.parametrize("end", [crash, shut_down])
def test_everybody_goes_on_with_the_standby_that_was_promoted(pair: Pair, end: Callable[[Pair], None]) -> None:
    traffic = Traffic(pair.url)
    traffic.wait_for_everybody(time.monotonic())

    end(pair)
    promoted = pair.promote()
    traffic.wait_for_everybody(promoted)
    # The old one comes back, as a standby of nobody: it can be read, and is to be left alone.
    (pair.primary.directory / "data" / "standby.signal").touch()
    pair.primary.start()
    traffic.wait_for_everybody(time.monotonic())
    traffic.end()

    print({actor: round(seconds, 2) for actor, seconds in traffic.seconds_until_progress(promoted).items()})
    traffic.check()


def test_the_doctor_says_of_a_standby_that_nothing_can_be_written(pair: Pair) -> None:
    standby = pair.standby.url.render_as_string(hide_password=False)

    def problems() -> dict[str, str]:
        with MQ(standby) as mq:
            return {problem.code: problem.summary for problem in mq.admin.diagnose()}

    as_standby = problems()
    pair.promote()

    assert as_standby["read-only"] == "This database can't be written to: the server is a standby."
    # A standby refuses to listen, so nothing is said of notices.
    assert as_standby.keys() <= {"read-only", "not-durable"}
    assert "read-only" not in problems()


def test_connections_to_a_primary_that_takes_no_writes_any_more_are_given_up(pair: Pair) -> None:
    with MQ(pair.url) as mq:
        producer = mq.producer("orders")
        consumer = mq.consumer("orders", "billing")
        producer.produce(Message(b"before"))
        assert [message.value for message in consumer.poll(timeout=PATIENCE_SECONDS)] == [b"before"]

        pair.promote()
        with create_engine(pair.primary.url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
            connection.execute(text("ALTER SYSTEM SET default_transaction_read_only = on"))
            connection.execute(text("SELECT pg_reload_conf()"))
        # Whose session has not heard of it would wait for the standby to confirm its commit.
        until(lambda: write_nothing(mq), "sessions that write nothing any more")

        place = producer.produce(Message(b"after"))
        assert [message.value for message in consumer.poll(timeout=PATIENCE_SECONDS)] == [b"after"]
    with MQ(pair.standby.url) as mq:
        assert mq.admin.describe_topic("orders").partitions[place.partition].end_offset == place.offset + 1
