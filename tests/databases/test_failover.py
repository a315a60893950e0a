"""A standby becomes the primary while everybody works, and nobody has to be told."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import QueuePool, create_engine, text
from sqlalchemy.pool import NullPool

from sqlmq import MQ, Message
from tests.support.postgres_pair import PostgresPair
from tests.support.traffic import PATIENCE_SECONDS, Traffic
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
def pair() -> Iterator[PostgresPair]:
    pair = PostgresPair()
    yield pair
    pair.remove()


def write_nothing(mq: MQ) -> bool:
    """Whether that is so in every session that the pool has at hand, and in the one that is kept for appends."""
    (kept,) = mq._database._append_connection._kept
    assert isinstance(mq.engine.pool, QueuePool)
    with ExitStack() as stack:
        resting = [stack.enter_context(mq.engine.connect()) for _ in range(mq.engine.pool.checkedin())]
        show = "SHOW default_transaction_read_only"
        return all(session.exec_driver_sql(show).scalar() == "on" for session in (kept.connection, *resting))


def crash(pair: PostgresPair) -> None:
    pair.primary.kill()


def shut_down(pair: PostgresPair) -> None:
    pair.primary.stop()


@pytest.mark.parametrize("end", [crash, shut_down])
def test_everybody_goes_on_with_the_standby_that_was_promoted(
    pair: PostgresPair, end: Callable[[PostgresPair], None]
) -> None:
    traffic = Traffic(pair.url)
    traffic.wait_for_progress(time.monotonic())

    end(pair)
    promoted = pair.promote()
    traffic.wait_for_progress(promoted)
    # The old one comes back, as a standby of nobody: it can be read, and is to be left alone.
    (pair.primary.directory / "data" / "standby.signal").touch()
    pair.primary.start()
    traffic.wait_for_progress(time.monotonic())
    traffic.end()

    print({actor: round(seconds, 2) for actor, seconds in traffic.seconds_until_progress(promoted).items()})
    traffic.check()


def test_the_doctor_says_of_a_standby_that_nothing_can_be_written(pair: PostgresPair) -> None:
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


def test_connections_to_a_primary_that_takes_no_writes_any_more_are_given_up(pair: PostgresPair) -> None:
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
