"""The views of what groups have set aside: what the library lists, for whoever has nothing but SQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, text

from sqlmq import Message
from tests.support.failing import AT_ONCE, MUCH_LATER, ONCE, GroupRunner, Handler, produce
from tests.support.waiting import until

if TYPE_CHECKING:
    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest


@pytest.fixture
def view(database: DatabaseUnderTest, connection: Connection) -> Any:
    """Reads a view's rows as dictionaries, with aware moments."""

    def read(name: str) -> list[dict[str, Any]]:
        prefix = f"{database.schema}." if database.schema else ""
        rows = connection.execute(text(f"SELECT * FROM {prefix}{name} ORDER BY topic, group_name, partition, key"))
        found = [{column: moment(column, value) for column, value in row.items()} for row in rows.mappings()]
        connection.rollback()
        return found

    return read


def moment(column: str, value: Any) -> Any:
    if value is None or not column.endswith(("_at", "_since")):
        return bytes(value) if isinstance(value, memoryview) else value
    return (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)


def rounded(moment: datetime | None) -> float | None:
    """SQLite's clock tells milliseconds."""
    return None if moment is None else round(moment.timestamp(), 2)


def test_parked_messages_are_what_the_library_lists(mq: MQ, runner: GroupRunner, view: Any) -> None:
    mq.producer("orders").produce(Message(b"bad\xff", b"a", {"currency": "EUR"}))
    produce(mq, "a:behind", "b:dead")

    def fail(message: Message) -> None:
        raise ValueError("no" if message.key == b"a" else "dead")

    with runner.running(fail, retry=MUCH_LATER):
        until(lambda: len(mq.admin.parked("orders", "billing").list("waiting")) == 3, "all set aside")
    mq.admin.parked("orders", "billing").retry(key=b"b")
    with runner.running(fail, retry=ONCE):
        until(lambda: len(mq.admin.parked("orders", "billing").list("dead")) == 1, "a dead letter")

    rows = sorted(view("sqlmq_parked_message"), key=lambda row: int(row["msg_offset"]))

    listed = mq.admin.parked("orders", "billing").list()
    assert len(rows) == len(listed) == 3
    for row, one in zip(rows, listed, strict=True):
        assert (row["topic"], row["group_name"], row["partition"], row["msg_offset"]) == (
            "orders",
            "billing",
            *one.place,
        )
        assert (row["state"], row["key"], row["attempts"]) == (one.state, one.key, one.attempts)
        assert (row["error_type"], row["error"]) == (one.error_type, one.error)
        for name in ("due_at", "parked_at", "first_failed_at", "last_failed_at"):
            assert rounded(row[name]) == pytest.approx(rounded(getattr(one, name)), abs=0.011), name
    assert rows[0]["value"] == b"bad\xff"
    assert "EUR" in str(rows[0]["headers"])
    assert "raise ValueError" in rows[0]["traceback"]
    assert rows[0]["created_at"] <= rows[0]["parked_at"]
    assert [row["due_at"] is None for row in rows] == [False, False, True]


def test_dead_letters_are_those_parked_messages_that_are_dead(mq: MQ, runner: GroupRunner, view: Any) -> None:
    produce(mq, "a:bad", "b:slow", "c:bad")
    with runner.running(Handler(b"bad"), retry=ONCE):
        until(lambda: len(mq.admin.parked("orders", "billing").list("dead")) == 2, "two dead letters")

    rows = view("sqlmq_dead_letter")

    assert [(row["key"], row["value"], row["attempts"]) for row in rows] == [(b"a", b"bad", 1), (b"c", b"bad", 1)]
    assert {(row["topic"], row["group_name"], row["partition"], row["error"]) for row in rows} == {
        ("orders", "billing", 0, "no bad")
    }
    assert all(row["last_failed_at"] is not None for row in rows)


def test_blocked_keys_are_what_the_library_tells(mq: MQ, runner: GroupRunner, view: Any) -> None:
    produce(mq, "a:bad", "b:bad", "a:behind", "bad", "c:good")
    with runner.running(Handler(b"bad"), retry=MUCH_LATER):
        until(lambda: len(mq.admin.parked("orders", "billing").list("waiting")) == 4, "all set aside")

    rows = view("sqlmq_blocked_key")

    told = mq.admin.parked("orders", "billing").blocked_keys()
    assert len(rows) == len(told) == 2
    for row, one in zip(rows, told, strict=True):
        assert (row["topic"], row["group_name"], row["partition"], row["key"]) == ("orders", "billing", 0, one.key)
        assert (row["messages"], row["first_offset"]) == (one.messages, one.first_offset)
        assert (row["state"], row["attempts"]) == (one.state, one.attempts)
        assert rounded(row["due_at"]) == pytest.approx(rounded(one.due_at), abs=0.011)
        assert rounded(row["blocked_since"]) == pytest.approx(rounded(one.blocked_since), abs=0.011)


def test_a_message_that_was_retried_in_front_of_others_is_the_one_a_key_is_blocked_by(
    mq: MQ, runner: GroupRunner, view: Any
) -> None:
    produce(mq, "a:bad")
    runner.run(Handler(b"bad"), retry=ONCE)
    produce(mq, "a:worse")
    with runner.running(Handler(b"worse"), retry=MUCH_LATER):
        until(lambda: len(mq.admin.parked("orders", "billing").list("waiting")) == 1, "set aside")
    mq.admin.parked("orders", "billing").retry(state="dead")

    (row,) = view("sqlmq_blocked_key")

    assert (row["first_offset"], row["attempts"], row["messages"]) == (0, 0, 2)


def test_a_stopped_message_is_due_at_no_time(mq: MQ, runner: GroupRunner, view: Any) -> None:
    produce(mq, "a:bad")
    runner.run(Handler(b"bad"), retry=AT_ONCE, on_failure="stop")

    (parked,), (blocked,) = view("sqlmq_parked_message"), view("sqlmq_blocked_key")

    assert (parked["state"], parked["due_at"]) == ("stopped", None)
    assert (blocked["state"], blocked["due_at"], blocked["attempts"]) == ("stopped", None, 3)
