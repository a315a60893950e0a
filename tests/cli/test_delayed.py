from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlmq import Message
from tests.support.delayed import FUTURE, LONG, Staged
from tests.support.waiting import receive, values

if TYPE_CHECKING:
    from sqlmq import MQ
    from tests.cli.conftest import Refusal, Sqlmq


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --- Produced for later ---


DELAYS = {
    "90": 90,
    "2.5": 2.5,
    "10m": 600,
    "1.5h": 5_400,
    "1 H": 3_600,
    "2d": 172_800,
    "1w": 604_800,
    ".5s": 0.5,
}


def test_a_delay_is_typed_with_its_unit(sqlmq: Sqlmq, mq: MQ) -> None:
    mq.create_topic("orders")

    for typed, seconds in DELAYS.items():
        before = datetime.now(UTC)
        result = sqlmq("produce", "orders", "--delay", typed, "--json", stdin="later\n")

        (facts,) = lines(result.stdout)
        assert result.stderr.endswith("1 message delayed for 'orders'.\n")
        assert set(facts) == {"id", "topic", "partition", "deliver_at"}
        late = datetime.fromisoformat(facts["deliver_at"]) - before - timedelta(seconds=seconds)
        assert timedelta(seconds=-1) < late < timedelta(minutes=5)


def test_a_moment_is_typed_with_its_offset(sqlmq: Sqlmq, mq: MQ) -> None:
    same = ["2100-01-01T00:00:00+00:00", "2100-01-01T00:00Z", "2099-12-31 20:30:00-03:30", "21000101T010000+0100"]

    for typed in same:
        sqlmq("produce", "orders", "--deliver-at", typed, stdin="later\n")

    assert [one.deliver_at for one in mq.admin.delayed("orders")] == [FUTURE] * len(same)


def test_messages_for_later_arrive_as_others_do(sqlmq: Sqlmq, mq: MQ, staged: Staged) -> None:
    options = ("--delay", "1h", "-K", ":", "-H", "source=import")
    sqlmq("produce", "orders", *options, stdin="a:1\nb:2\na:3\n")
    sqlmq("produce", "orders", "--deliver-at", "2100-01-01T00:00:00Z", "--partition", "2", stdin="4\n5\n")
    sqlmq("produce", "orders", "--delay", "1d", "--partition", "1", stdin="6\n")
    waiting = mq.admin.delayed("orders")
    staged.make_due()

    received = receive(mq.consumer("orders", "readers"), 6)

    assert [one.key for one in waiting] == [b"a", b"b", b"a", None, None, None]
    assert [one.partition for one in waiting[3:]] == [1, 2, 2]
    assert sorted(values(received)) == [b"1", b"2", b"3", b"4", b"5", b"6"]
    assert {message.headers.get("source") for message in received if message.key} == {"import"}


NO_TIMES = {
    ("--delay", "soon"): "'soon' is not a duration",
    ("--delay", "1y"): "'1y' is not a duration",
    ("--delay", "-1"): "'-1' is not a duration",
    ("--delay", "1e400"): "'1e400' is not a duration",
    ("--delay", "99999w"): "must be 0 to 9,500,000,000",
    ("--deliver-at", "tomorrow"): "is not a time in ISO 8601",
    ("--deliver-at", "2100-01-01T00:00:00"): "has no offset from UTC",
    ("--deliver-at", "9999-12-31T00:00:00Z"): "before the year 9999",
    ("--delay", "1", "--deliver-at", "2100-01-01T00:00:00Z"): "not both",
}


def test_what_is_no_time_is_refused(refusal: Refusal) -> None:
    said = {options: refusal("produce", "orders", *options) for options in NO_TIMES}

    assert [options for options, complaint in NO_TIMES.items() if complaint not in said[options]] == []


# --- Listed and cancelled ---


def test_what_waits_is_listed(sqlmq: Sqlmq, mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    later = producer.schedule(Message(b"later"), deliver_at=FUTURE)
    sooner = producer.schedule(Message(b"sooner", "k\u00e4y".encode()), delay_seconds=LONG)
    between = producer.schedule(Message(b"", b"\xff"), delay_seconds=2 * LONG)

    table = sqlmq("delayed", "list", "orders").stdout.splitlines()
    facts = lines(sqlmq("delayed", "list", "orders", "--json").stdout)

    assert [row.split()[0] for row in table] == ["id", str(sooner.id), str(between.id), str(later.id)]
    assert table[3].split() == [str(later.id), "0", "2100-01-01T00:00:00+00:00", "-", "5"]
    assert "k\u00e4y" in table[1]
    assert facts[2] == {
        "id": later.id,
        "topic": "orders",
        "partition": 0,
        "deliver_at": "2100-01-01T00:00:00+00:00",
        "key": None,
        "value_bytes": 5,
    }
    assert (facts[0]["key"], facts[1]["key_base64"]) == ("k\u00e4y", "/w==")


def test_an_empty_list_says_so(sqlmq: Sqlmq, mq: MQ) -> None:
    mq.create_topic("orders")

    result = sqlmq("delayed", "list", "orders")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith("Topic 'orders' has no delayed messages.\n")
    assert sqlmq("delayed", "list", "orders", "--json").stdout == ""


def test_a_topic_that_is_not_there_has_no_list(sqlmq: Sqlmq, mq: MQ) -> None:
    mq.create_topic("orders")

    result = sqlmq("delayed", "list", "invoices")

    assert result.exit_code == 1
    assert "invoices" in result.stderr


def test_messages_are_cancelled_by_id(sqlmq: Sqlmq, mq: MQ) -> None:
    first, second = mq.producer("orders").schedule_many([Message(b""), Message(b"")], delay_seconds=LONG)

    result = sqlmq("delayed", "cancel", str(first.id), "777", str(first.id))

    assert result.exit_code == 0
    assert result.stdout == (
        f"Cancelled message {first.id}.\nMessage 777 is not delayed: it was delivered, or never existed.\n"
    )
    assert mq.admin.delayed("orders") == [second]
    assert lines(sqlmq("delayed", "cancel", str(second.id), str(first.id), "--json").stdout) == [
        {"id": second.id, "cancelled": True},
        {"id": first.id, "cancelled": False},
    ]


def test_only_ids_can_be_cancelled(refusal: Refusal) -> None:
    for wrong in ("x", "0", "1.5"):
        assert wrong in refusal("delayed", "cancel", wrong)
