"""Many movers at once, and cancellers against them: each delayed message ends in one place, once."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session

from sqlmq import Message
from sqlmq.operations import staging
from tests.support.delayed import FUTURE, LONG, PAST, Staged, look_now, now
from tests.support.queue_state import QueueState
from tests.support.waiting import PATIENCE_SECONDS, at_once, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from sqlmq import MQ, Producer
    from tests.conftest import DatabaseUnderTest, MakeMQ

MOVERS = 4
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


def log(engine: Engine, database: DatabaseUnderTest) -> list[str]:
    found = QueueState(engine, database.schema).texts("orders")
    return [value for values in found.values() for value in values]


@BOTH
def test_many_movers_at_once_move_each_message_once_and_in_order(
    mq: MQ,
    make_mq: MakeMQ,
    engine: Engine,
    database: DatabaseUnderTest,
    staged: Staged,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staging, "MOVE_MESSAGES", 13)
    monkeypatch.setattr(staging, "FIND_MESSAGES", 40)
    movers = [make_mq(notify=False) for _ in range(MOVERS)]
    messages = [Message(b"%d" % number, b"%d" % (number % 17)) for number in range(600)]
    mq.producer("orders").schedule_many(messages, delay_seconds=LONG)
    staged.make_due()

    at_once([lambda mover=mover: look_now(mover) for mover in movers])  # type: ignore[misc]

    # One that waits for the other's lock gives up in time, and looks again later; here, in the next call.
    look_now(movers[0])
    found = QueueState(engine, database.schema).texts("orders")
    assert Counter(log(engine, database)) == Counter(str(number) for number in range(600))
    assert all(values == sorted(values, key=int) for values in found.values())
    assert len(staged) == 0


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_what_becomes_due_while_a_mover_waits_has_no_timestamp_from_before(
    mq: MQ, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "LOCK_SECONDS", PATIENCE_SECONDS)
    mq.create_topic("orders", 1)

    with engine.connect() as holder, ThreadPoolExecutor(1) as threads:
        partition_id = holder.execute(text("SELECT id FROM sqlmq_partition FOR UPDATE")).scalar_one()
        (delayed,) = mq.producer("orders").schedule_many([Message(b"")], delay_seconds=0.2)
        moving = threads.submit(mq._database.write, staging.move, partition_id)
        until(lambda: now(holder) > delayed.deliver_at, "the message to be due")
        holder.rollback()
        moving.result(PATIENCE_SECONDS)
        look_now(mq)

    (message,) = mq.admin.tail("orders", last=1, timeout=0)
    assert message.timestamp is not None
    assert message.timestamp >= delayed.deliver_at


@BOTH
def test_a_message_is_cancelled_or_moved_and_never_both(
    mq: MQ,
    make_mq: MakeMQ,
    engine: Engine,
    database: DatabaseUnderTest,
    staged: Staged,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staging, "MOVE_MESSAGES", 7)
    movers = [make_mq(notify=False) for _ in range(2)]
    cancellers = [make_mq(notify=False) for _ in range(2)]
    chosen = random.Random()
    delayed = mq.producer("orders").schedule_many(
        [Message(b"%d" % number, b"%d" % number) for number in range(400)], delay_seconds=LONG
    )
    staged.make_due()
    ids = [one.id for one in delayed]
    cancelled: list[int] = []

    def cancel(canceller: MQ, wanted: list[int]) -> None:
        for first in range(0, len(wanted), 5):
            some = wanted[first : first + 5]
            if chosen.random() < 0.3:
                # Held for a while, rolled back now and then.
                with Session(canceller.engine) as session:
                    found = canceller.admin.cancel_delayed(*some, session=session)
                    if chosen.random() < 0.5:
                        session.rollback()
                    else:
                        session.commit()
                        cancelled.extend(found)
            else:
                cancelled.extend(canceller.admin.cancel_delayed(*some))

    orders = [chosen.sample(ids, len(ids)) for _ in cancellers]
    at_once(
        [
            *(lambda mover=mover: look_now(mover) for mover in movers),
            *(lambda one=one, order=order: cancel(one, order) for one, order in zip(cancellers, orders, strict=True)),
        ]
    )
    look_now(movers[0])

    numbers = {one.id: str(number) for number, one in enumerate(delayed)}
    moved = log(engine, database)
    assert len(cancelled) == len(set(cancelled))
    assert Counter(moved) + Counter(numbers[id_] for id_ in cancelled) == Counter(numbers.values())
    assert len(staged) == 0


class Act(NamedTuple):
    """Something done to what waits: stored in batches, cancelled, moved by several at once."""

    kind: str
    number: int


acts = st.lists(
    st.builds(Act, st.sampled_from(["now", "later", "session", "cancel", "move"]), st.integers(0, 5)), max_size=12
)


@pytest.mark.slow
@given(acts=acts)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@BOTH
def test_whatever_is_done_each_message_waits_or_is_in_the_log_or_was_cancelled(
    mq: MQ, make_mq: MakeMQ, engine: Engine, database: DatabaseUnderTest, staged: Staged, acts: list[Act]
) -> None:
    mq.delete_topics("orders")
    with ExitStack() as closing, ThreadPoolExecutor(3) as threads:
        movers = [closing.enter_context(make_mq(notify=False)) for _ in range(3)]
        # Its own mover, which would move what is due now, stays out of it.
        producer = mq.producer("orders")
        patched = closing.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(producer._core.scheduler, "schedule", lambda _due_at: None)
        waiting: dict[int, str] = {}
        expected: set[str] = set()
        for place, act in enumerate(acts):
            names = [f"{place}.{number}" for number in range(act.number)]
            if act.kind == "move":
                moves = [threads.submit(look_now, mover) for mover in movers]
                for move in moves:
                    move.result(PATIENCE_SECONDS)
                look_now(movers[0])
                gone = set(waiting) - {one.id for one in mq.admin.delayed("orders")}
                expected |= {waiting.pop(id_) for id_ in gone}
                assert all(one.deliver_at > PAST for one in mq.admin.delayed("orders"))
            elif act.kind == "cancel":
                wanted = sorted(waiting)[: act.number]
                assert mq.admin.cancel_delayed(*wanted) == wanted
                for id_ in wanted:
                    del waiting[id_]
            else:
                waiting |= _store(act.kind, producer, names, engine)
        assert {one.id for one in mq.admin.delayed("orders")} == set(waiting)
        assert len(staged) == len(waiting)
        assert Counter(log(engine, database)) == Counter(expected)


def _store(kind: str, producer: Producer, names: list[str], engine: Engine) -> dict[int, str]:
    batch = [Message(name.encode(), name.encode()) for name in names]
    stores: dict[str, Callable[[], Any]] = {
        "now": lambda: producer.schedule_many(batch, deliver_at=PAST),
        "later": lambda: producer.schedule_many(batch, deliver_at=FUTURE + timedelta(days=len(names))),
        "session": lambda: _store_in_session(producer, batch, engine),
    }
    return {one.id: name for one, name in zip(stores[kind](), names, strict=True)}


def _store_in_session(producer: Producer, batch: list[Message], engine: Engine) -> list[Any]:
    with Session(engine) as session:
        producer.schedule_many(batch, delay_seconds=LONG, session=session)
        session.rollback()
        found = producer.schedule_many(batch, delay_seconds=LONG, session=session)
        session.commit()
    return list(found)
