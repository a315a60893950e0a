"""Running a handler with `transaction=True`: its effects commit with the group's position, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from sqlmq import Message, ReceivedMessage, Retry
from sqlmq.errors import IsolationError, SessionError
from tests.support.application import sync_of
from tests.support.handlers import Recorder, drain, numbered, parked_rows, position, send

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session

    from sqlmq import MQ
    from tests.support.application import Application
    from tests.support.queue_state import QueueState

POISON = 1_000_000


class Effects:
    """A handler that inserts what it is given, then fails as it is told."""

    def __init__(self, engine: Engine, failures: dict[bytes, int] | None = None) -> None:
        self._engine = engine
        self.recorder = Recorder(failures)
        with engine.begin() as connection:
            identity = "id INTEGER PRIMARY KEY" if engine.dialect.name == "sqlite" else "id bigserial PRIMARY KEY"
            connection.execute(text(f"CREATE TABLE effect ({identity}, number integer UNIQUE)"))

    def __call__(self, given: ReceivedMessage | list[ReceivedMessage], session: Session) -> None:
        for message in given if isinstance(given, list) else [given]:
            session.execute(text("INSERT INTO effect (number) VALUES (:number)"), {"number": int(message.value)})
        self.recorder(given)

    @property
    def numbers(self) -> list[int]:
        with self._engine.connect() as connection:
            return list(connection.execute(text("SELECT number FROM effect ORDER BY id")).scalars())


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.pgbouncer
def test_effects_of_what_fails_are_rolled_back_and_made_once(mq: MQ, engine: Engine, batch_size: int | None) -> None:
    send(mq, numbered(10, keys=2))
    handler = Effects(engine, {b"2": 1, b"5": POISON})

    summary = drain(mq.consumer("orders", "billing"), handler, transaction=True, batch_size=batch_size)

    assert [n for n in handler.numbers if n % 2 == 0] == [0, 2, 4, 6, 8]
    assert [n for n in handler.numbers if n % 2 == 1] == [1, 3, 7, 9]
    assert summary.handled == 9
    assert parked_rows(mq) == [(5, "dead", 3)]
    assert position(mq) == 10


def test_the_position_is_part_of_the_transaction_of_the_effects(
    mq: MQ, engine: Engine, queue_state: QueueState
) -> None:
    send(mq, numbered(3))
    query = queue_state.with_schema("SELECT max(committed_offset) FROM sqlmq_group_offset")
    inside: list[int] = []
    outside: list[int] = []

    def look(connection: Connection) -> None:
        inside.append(connection.exec_driver_sql(query).scalar_one())
        with engine.connect() as other:
            outside.append(other.exec_driver_sql(query).scalar_one())

    def handler(_message: ReceivedMessage, session: Session) -> None:
        event.listen(sync_of(session.connection()), "commit", look)

    drain(mq.consumer("orders", "billing"), handler, transaction=True)

    assert inside == [1, 2, 3]
    assert outside == [0, 1, 2]


def test_an_effect_that_the_database_refuses_is_a_failure_of_the_message(mq: MQ, engine: Engine) -> None:
    send(mq, [Message(b"1", b"a"), Message(b"1", b"a"), Message(b"2", b"a")])
    handler = Effects(engine)

    drain(mq.consumer("orders", "billing"), handler, transaction=True)

    assert handler.numbers == [1, 2]
    assert parked_rows(mq) == [(1, "dead", 3)]


@pytest.mark.each_driver
def test_sessions_are_made_by_the_applications_own_sessionmaker(mq: MQ, engine: Engine, app: Application) -> None:
    send(mq, numbered(3))
    made: list[Session] = []

    def make() -> Session:
        made.append(app.sessionmaker()())
        return made[-1]

    handler = Effects(engine, {b"1": 1})

    summary = drain(mq.consumer("orders", "billing"), handler, transaction=True, session=make)

    assert sorted(handler.numbers) == [0, 1, 2]
    assert len(made) == 4
    assert (summary.handled, summary.failures) == (3, 1)
    assert position(mq) == 3


def test_a_session_that_can_not_be_used_ends_the_run_and_fails_no_message(
    mq: MQ, app: Application, tmp_path: Path
) -> None:
    send(mq, numbered(2))
    called = Recorder()

    with (
        app.on_url(f"sqlite:///{tmp_path / 'elsewhere.db'}") as elsewhere,
        pytest.raises(SessionError, match="leads to another database"),
    ):
        drain(mq.consumer("orders", "billing"), called, transaction=True, session=elsewhere.sessionmaker())

    assert called.values == []
    assert parked_rows(mq) == []


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_session_above_read_committed_ends_the_run(mq: MQ, app: Application) -> None:
    send(mq, numbered(1))
    called = Recorder()

    with pytest.raises(IsolationError):
        drain(
            mq.consumer("orders", "billing"),
            called,
            transaction=True,
            session=app.at("REPEATABLE READ").sessionmaker(),
        )

    assert called.values == []


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_a_handler_that_ends_the_transaction_itself_has_failed(mq: MQ, engine: Engine, statement: str) -> None:
    send(mq, numbered(1))
    effects = Effects(engine)

    def handler(_message: Message, session: Any) -> None:
        session.connection().exec_driver_sql(statement)

    drain(mq.consumer("orders", "billing"), handler, transaction=True, retry=Retry(max_attempts=1))

    assert effects.numbers == []
    assert parked_rows(mq) == [(0, "dead", 1)]


def test_a_message_can_be_published_with_the_effects(mq: MQ, engine: Engine) -> None:
    send(mq, numbered(4, keys=2))
    mq.create_topic("invoices", 1)
    producer = mq.producer("invoices")
    handler = Effects(engine, {b"1": 1})

    def publish(message: ReceivedMessage, session: Session) -> None:
        producer.produce(Message(message.value), session=session)
        handler(message, session)

    drain(mq.consumer("orders", "billing"), publish, transaction=True)

    published = [message.value for message in mq.consumer("invoices", "audit").poll(timeout=10)]
    assert sorted(published) == [b"0", b"1", b"2", b"3"]
    assert published == [b"%d" % number for number in handler.numbers]
