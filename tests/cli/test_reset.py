"""`sqlmq groups reset`: looked at first, then done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import Message, Retention
from tests.support.waiting import finish

if TYPE_CHECKING:
    from pathlib import Path

    from sqlmq import MQ
    from tests.cli.conftest import Refusal, Sqlmq

BILLING = ("groups", "reset", "billing", "--topic", "orders")


@pytest.fixture
def read(mq: MQ) -> MQ:
    """Ten messages in each of two partitions, which the group has read."""
    mq.create_topic("orders", 2)
    producer = mq.producer("orders")
    for number in range(2):
        for _ in range(10):
            producer.produce_with_partition(Message(b"x"), number)
    with mq.consumer("orders", "billing") as consumer:
        finish(consumer, 20)
    return mq


def positions(mq: MQ) -> list[int]:
    return [partition.position for partition in mq.admin.describe_group("orders", "billing").partitions]


def test_a_preview_is_shown_and_changes_nothing(sqlmq: Sqlmq, read: MQ) -> None:
    shown = sqlmq(*BILLING, "--to-earliest")

    assert [line.split() for line in shown.stdout.splitlines()] == [
        ["partition", "from", "to", "start", "end", "forgotten"],
        ["0", "10", "0", "0", "10", "0"],
        ["1", "10", "0", "0", "10", "0"],
    ]
    assert "--execute" in shown.stderr
    assert "20 messages to read again, 0 to skip." in shown.stderr
    assert positions(read) == [10, 10]


def test_a_moment_whose_messages_retention_has_deleted_is_told(sqlmq: Sqlmq, read: MQ) -> None:
    read.admin.set_retention("orders", Retention(max_messages=4))
    read.admin.apply_retention("orders")

    by_time = sqlmq(*BILLING, "--by-duration", "2h")
    by_name = sqlmq(*BILLING, "--to-earliest")

    assert "8 messages to read again" in by_time.stderr
    assert "Retention has deleted the messages before the new position in partition 0, 1." in by_time.stderr
    assert "Retention" not in by_name.stderr


GOALS = {
    ("--to-earliest",): [0, 0],
    ("--to-latest",): [10, 10],
    ("--to-offset", "4"): [4, 4],
    ("--to-offset", "4", "--partition", "1"): [10, 4],
    ("--to-datetime", "2001-01-01T00:00:00Z"): [0, 0],
    ("--by-duration", "2h", "-p", "0"): [0, 10],
    ("--shift-by", "-3"): [7, 7],
    ("--shift-by", "-3", "-p", "0", "-p", "1"): [7, 7],
}


def test_a_group_is_moved(sqlmq: Sqlmq, read: MQ) -> None:
    for goal, expected in GOALS.items():
        read.admin.reset_group("orders", "billing", "latest")

        done = sqlmq(*BILLING, *goal, "--execute", "--json")

        assert done.exit_code == 0, done.stderr
        assert all(json.loads(line)["executed"] for line in done.stdout.splitlines())
        assert positions(read) == expected, goal


def test_positions_are_read_from_a_file(sqlmq: Sqlmq, read: MQ, tmp_path: Path) -> None:
    for text in ("0,3\n\n1, 4\n", "orders,0,3\norders,1,4\ninvoices,0,9\n"):
        read.admin.reset_group("orders", "billing", "latest")
        (tmp_path / "positions").write_text(text, encoding="utf-8")

        done = sqlmq(*BILLING, "--from-file", str(tmp_path / "positions"), "--execute")

        assert done.exit_code == 0, done.stderr
        assert positions(read) == [3, 4]


def test_what_describe_prints_brings_a_group_back(sqlmq: Sqlmq, read: MQ) -> None:
    read.admin.reset_group("orders", "billing", {0: 3, 1: 4})
    kept = sqlmq("groups", "describe", "billing", "--json").stdout
    read.admin.reset_group("orders", "billing", "latest")

    one = sqlmq(*BILLING, "--from-file", "-", "--partition", "1", "--execute", stdin=kept)
    assert positions(read) == [10, 4], one.stderr
    both = sqlmq(*BILLING, "--from-file", "-", "--execute", stdin=kept)

    assert positions(read) == [3, 4], both.stderr


def test_a_file_that_says_something_else_is_refused(sqlmq: Sqlmq, read: MQ) -> None:
    for text in ("0\n", "0,a\n", '{"partition": 0}\n', "0,1\n0,2\n", "invoices,0,1\n", ""):
        refused = sqlmq(*BILLING, "--from-file", "-", "--execute", stdin=text)

        assert refused.exit_code == 1, text

    assert positions(read) == [10, 10]


def test_one_goal_has_to_be_named(refusal: Refusal) -> None:
    for goals in ((), ("--to-latest", "--to-earliest"), ("--to-offset", "1", "--shift-by", "1")):
        assert "--from-file" in refusal(*BILLING, *goals, "--execute")


def test_live_members_have_to_be_forced(sqlmq: Sqlmq, read: MQ) -> None:
    with read.consumer("orders", "billing", name="alice"):
        refused = sqlmq(*BILLING, "--to-offset", "4", "--execute")
        assert (refused.exit_code, positions(read)) == (1, [10, 10])
        forced: Any = sqlmq(*BILLING, "--to-offset", "4", "--execute", "--force")

    assert "alice" in refused.stderr
    assert "--force" in refused.stderr
    assert (forced.exit_code, positions(read)) == (0, [4, 4])
