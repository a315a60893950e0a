"""Delayed messages pass through the application's own driver, whatever it is, and its session's settings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqlmq import DelayedMessage, Message, UnknownTopicError
from tests.databases.drivers import ASYNC, MESSAGES, SYNC, facts, run, url
from tests.support.delayed import FUTURE, LONG, Staged
from tests.support.waiting import receive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.support.shop import Shop


ZONES = ("Pacific/Kiritimati", "America/St_Johns", "UTC")


def delay(shop: Shop, session: Session | Connection) -> list[DelayedMessage]:
    """Delay each way there is, and cancel one."""
    delayed = shop.producer.schedule_many(MESSAGES, delay_seconds=LONG, session=session)
    delayed += [shop.producer.schedule(message, deliver_at=FUTURE, session=session) for message in MESSAGES]
    cancelled = shop.producer.schedule(Message(b"cancelled"), partition=1, deliver_at=FUTURE, session=session)
    assert shop.mq.admin.cancel_delayed(cancelled.id, session=session) == [cancelled.id]
    return delayed


def assert_all_arrive(shop: Shop, staged: Staged, delayed: list[DelayedMessage]) -> None:
    assert shop.mq.admin.delayed("events") == delayed
    assert {one.deliver_at for one in delayed[len(MESSAGES) :]} == {FUTURE}
    staged.make_due()
    assert facts(receive(shop.mq.consumer("events", "billing"), len(delayed))) == facts(2 * MESSAGES)


@SYNC
def test_delayed_messages_pass_through_the_applications_driver_byte_for_byte(
    shop: Shop, staged: Staged, driver: str
) -> None:
    engine = create_engine(url(shop, driver))
    with Session(engine) as session:
        delay(shop, session)
        session.rollback()
        delayed = delay(shop, session)
        session.commit()
    engine.dispose()

    assert_all_arrive(shop, staged, delayed)


@ASYNC
def test_delayed_messages_pass_through_the_applications_async_driver_byte_for_byte(
    shop: Shop, staged: Staged, driver: str
) -> None:
    stored: list[DelayedMessage] = []

    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            await session.run_sync(lambda sync: delay(shop, sync))
            await session.rollback()
            stored.extend(await session.run_sync(lambda sync: delay(shop, sync)))
            await session.commit()

    run(shop, driver, work)

    assert_all_arrive(shop, staged, stored)


@SYNC
def test_a_topic_that_is_gone_is_told_through_the_applications_driver(shop: Shop, driver: str) -> None:
    engine = create_engine(url(shop, driver))
    with Session(engine) as session:
        shop.sell(session, "a")
        shop.mq.delete_topics("events") if shop.database.is_postgres else session.rollback()
        shop.mq.delete_topics("events")
        with pytest.raises(UnknownTopicError, match="events"):
            shop.producer.schedule(Message(b""), delay_seconds=LONG, session=session)
        session.rollback()
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_the_time_zone_and_the_date_style_of_a_session_change_nothing(shop: Shop, driver: str) -> None:
    engine = create_engine(url(shop, f"postgresql+{driver}"))
    moment = datetime(2099, 7, 1, 12, tzinfo=UTC)
    with Session(engine) as session:
        for zone in ZONES:
            session.execute(text(f"SET timezone TO '{zone}'"))
            session.execute(text("SET datestyle TO 'SQL, DMY'"))
            session.execute(text("SET intervalstyle TO 'sql_standard'"))
            at_moment = shop.producer.schedule(Message(b""), deliver_at=moment, session=session)
            relative = shop.producer.schedule(Message(b""), delay_seconds=90, session=session)
            session.commit()

            assert (at_moment.deliver_at, at_moment.deliver_at.tzinfo) == (moment, UTC)
            assert abs(relative.deliver_at - datetime.now(UTC) - timedelta(seconds=90)) < timedelta(minutes=10)
            assert shop.mq.admin.delayed("events") == [relative, at_moment]
            assert len(shop.mq.admin.cancel_delayed(at_moment.id, relative.id)) == 2
    engine.dispose()


@pytest.fixture(params=ZONES)
def own_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This process in another time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="a process's time zone can't be set here")
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_the_time_zone_of_the_process_changes_nothing(shop: Shop, own_zone: str) -> None:
    moment = datetime(2099, 7, 1, 12, tzinfo=UTC)
    assert moment.astimezone().utcoffset() == moment.astimezone(ZoneInfo(own_zone)).utcoffset()

    at_moment = shop.producer.schedule(Message(b""), deliver_at=moment.astimezone())
    relative = shop.producer.schedule(Message(b""), delay_seconds=90)

    assert at_moment.deliver_at == moment
    assert abs(relative.deliver_at - datetime.now(UTC) - timedelta(seconds=90)) < timedelta(minutes=10)
    assert shop.mq.admin.delayed("events") == [relative, at_moment]


PROGRAM = """
import sys
from datetime import UTC, datetime
from sqlmq import MQ, Message
with MQ(sys.argv[1]) as mq:
    producer = mq.producer("events")
    producer.schedule(Message(b"due"), delay_seconds=0)
    producer.schedule(Message(b"due, too"), deliver_at=datetime.now(UTC))
    producer.schedule(Message(b"waits"), delay_seconds=600)
"""


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_processes_in_different_time_zones_agree_on_what_is_due(shop: Shop, zone: str) -> None:
    # A program of its own: libpq takes the variable over into the session.
    environment = {**os.environ, "TZ": zone, "PGTZ": zone}
    subprocess.run([sys.executable, "-c", PROGRAM, shop.database.url], env=environment, check=True, timeout=60)

    consumer = shop.mq.consumer("events", "billing")

    assert sorted(message.value for message in receive(consumer, 2)) == [b"due", b"due, too"]
    assert [one.value_bytes for one in shop.mq.admin.delayed("events")] == [len(b"waits")]


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_a_message_is_stored_in_two_statements_and_what_is_due_is_found_in_one(shop: Shop) -> None:
    sent: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_rest: Any) -> None:
        if "sqlmq_" in statement:
            sent.append(statement)

    event.listen(shop.mq.engine, "before_cursor_execute", note)
    shop.producer.schedule(Message(b""), delay_seconds=LONG)
    stored = len(sent)
    shop.mq._background.scheduler._move_due()
    event.remove(shop.mq.engine, "before_cursor_execute", note)

    assert (stored, len(sent) - stored) == (2, 1)
