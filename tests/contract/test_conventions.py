"""What an administrator sets for all sessions of a database decides how values look as text, and nothing of ours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from sqlmq import Message, Retention, Retry
from tests.support.waiting import receive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from sqlmq import ReceivedMessage
    from tests.conftest import MakeMQ
    from tests.support.application import Application

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)

SETTINGS: dict[str, Mapping[str, str]] = {
    "German dates": {"DateStyle": "German, DMY", "TimeZone": "America/St_Johns", "IntervalStyle": "sql_standard"},
    "SQL dates": {"DateStyle": "SQL, DMY", "TimeZone": "Asia/Kolkata", "IntervalStyle": "postgres_verbose"},
    "Postgres dates": {"DateStyle": "Postgres, MDY", "bytea_output": "escape", "standard_conforming_strings": "off"},
    "short floats": {"extra_float_digits": "-15", "quote_all_identifiers": "on", "array_nulls": "off"},
    "strict": {"default_transaction_isolation": "serializable", "default_transaction_deferrable": "on"},
    "LATIN1": {"client_encoding": "LATIN1"},
}
HEADERS = {"name": "Zoë", "town": "東京"}
NEAR = timedelta(minutes=1)


@pytest.fixture(params=list(SETTINGS))
def set_up(request: pytest.FixtureRequest, engine: Engine) -> None:
    """Set what all sessions from now on begin with."""
    with engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        for setting, value in SETTINGS[request.param].items():
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    engine.dispose()


@pytest.mark.usefixtures("set_up")
def test_what_is_sent_arrives_as_it_was(make_mq: MakeMQ, app: Application) -> None:
    mq = make_mq()
    mq.create_topic("orders", 2)
    producer = mq.producer("orders")
    message = Message(b"\x00\\x\xff", key=b"\\k'", headers=HEADERS)

    producer.produce(message)
    producer.produce_many([message] * 2)
    producer.produce_many([Message(b"", headers=HEADERS)] * 2)
    producer.produce_many([Message(b"", headers=HEADERS)] * 5_001)
    if app.engine.dialect.driver != "psycopg":  # it follows the application's encoding, which may lack a letter
        with app.session() as session:
            producer.produce(message, session=session)
            producer.produce_many([message] * 2, session=session)
            session.commit()
    producer.schedule(message, delay_seconds=0)

    with mq.consumer("orders", "billing") as consumer:
        arrived = receive(consumer, 5_007)
    assert all(one.headers == HEADERS for one in arrived)
    assert {one.key for one in arrived} == {None, b"\\k'"}
    assert all(abs(one.timestamp - datetime.now(UTC)) < NEAR for one in arrived)


@pytest.mark.usefixtures("set_up")
def test_what_is_shown_does_not_depend_on_how_a_session_shows_it(make_mq: MakeMQ) -> None:
    mq = make_mq(lease_seconds=47.25)
    mq.create_topic("orders", 1, retention=Retention(max_age_seconds=12_345.5))
    producer = mq.producer("orders")
    now = datetime.now(UTC)
    producer.produce(Message(b"1", key=b"k"))
    later = producer.schedule(Message(b"2"), delay_seconds=1_234.5)

    def fail(_: ReceivedMessage) -> None:
        raise ArithmeticError

    with mq.consumer("orders", "billing") as consumer:
        receive(consumer, 1)
        (member,) = mq.admin.members("orders", "billing")
    mq.consumer("orders", "shipping").run(fail, retry=Retry(max_attempts=1), idle_seconds=0.1, handle_signals=False)

    assert member.lease_seconds == 47.25
    assert abs(member.joined_at - now) < NEAR
    assert 0 <= member.heartbeat_seconds < NEAR.total_seconds()
    assert mq.admin.delayed("orders") == [later]
    assert abs(later.deliver_at - now - timedelta(seconds=1_234.5)) < NEAR
    assert mq.admin.describe_topic("orders").retention.max_age_seconds == 12_345.5
    (parked,) = mq.admin.parked("orders", "shipping").list()
    assert abs(parked.parked_at - now) < NEAR
    assert all(lag.committed_at is None or abs(lag.committed_at - now) < NEAR for lag in mq.admin.lag())
    assert all(0 <= lag.lag_seconds < NEAR.total_seconds() for lag in mq.admin.lag())
    assert mq.admin.evictions("orders") == []
    assert mq.admin.diagnose_group("orders", "billing") is not None
    # The tests' server is not durable, for speed.
    assert {problem.code for problem in mq.admin.diagnose() if problem.severity == "error"} <= {"not-durable"}
    (moved,) = mq.admin.reset_group("orders", "shipping", now - timedelta(hours=1), force=True)
    assert moved.to_offset == 0


@pytest.mark.usefixtures("set_up")
@pytest.mark.parametrize("set_up", [name for name in SETTINGS if name != "strict"], indirect=True)
def test_sessions_of_the_application_may_have_other_conventions(make_mq: MakeMQ, app: Application) -> None:
    mq = make_mq()
    producer = mq.producer("orders")
    with app.session() as session:
        producer.produce(Message(b"1", headers={"a": "Zoë"}), session=session)
        later = producer.schedule(Message(b"2"), delay_seconds=3_600, session=session)
        session.commit()

    with mq.consumer("orders", "billing").transaction(timeout=30, session=app.sessionmaker()) as tx:
        assert [message.headers for message in tx.messages] == [{"a": "Zoë"}]
    assert mq.admin.delayed("orders") == [later]
