from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from sqlmq import Retention

if TYPE_CHECKING:
    from tests.cli.conftest import Refusal, Sqlmq, SqlmqProcess
    from tests.conftest import DatabaseUnderTest, MakeMQ

DAY = 86_400.0


def test_a_topic_is_made_with_what_it_keeps(sqlmq: Sqlmq, make_mq: MakeMQ) -> None:
    limits = ("--retention", "7d", "--retention-bytes", "1.5GB", "--retention-messages", "1000")
    protection = ("--max-retention", "30d", "--group-expiry", "12h")
    created = sqlmq("topics", "create", "orders", *limits, *protection)

    assert created.stdout.endswith(
        "keeps messages for 7 days, up to 1,610,612,736 bytes in a partition, up to 1,000 messages in a partition; and "
        "longer what groups still need, for 30 days at the most.\n"
    )
    assert make_mq().admin.describe_topic("orders").retention == Retention(
        7 * DAY, 1_610_612_736, 1_000, protect_max_seconds=30 * DAY, group_expiry_seconds=DAY / 2
    )


def test_what_a_topic_keeps_is_replaced_and_shown(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders", "--retention", "7d")

    changed = sqlmq("topics", "set-retention", "orders", "--retention-messages", "5", "--no-protect", "--json")
    described = sqlmq("topics", "describe", "orders")
    as_json = json.loads(sqlmq("topics", "describe", "orders", "--json").stdout)

    retention: dict[str, object] = {
        "max_age_seconds": None,
        "max_bytes": None,
        "max_messages": 5,
        "protect_groups": False,
        "protect_max_seconds": None,
    }
    retention |= {"group_expiry_seconds": 604_800.0}
    assert json.loads(changed.stdout) == {"topic": "orders", "retention": retention}
    assert "It keeps messages up to 5 messages in a partition; whatever groups have read." in described.stdout
    assert as_json["retention"] == retention


def test_limits_are_taken_away_only_if_that_is_said(sqlmq: Sqlmq, make_mq: MakeMQ) -> None:
    sqlmq("topics", "create", "orders", "--retention", "7d")

    forgotten = sqlmq("topics", "set-retention", "orders")
    both = sqlmq("topics", "set-retention", "orders", "--retention", "1d", "--keep-everything")
    said = sqlmq("topics", "set-retention", "orders", "--keep-everything")

    assert (forgotten.exit_code, both.exit_code, said.exit_code) == (2, 2, 0)
    assert said.stdout == "Topic 'orders' keeps everything.\n"
    assert make_mq().admin.describe_topic("orders").retention == Retention()


def test_what_cannot_be_kept_is_a_wrong_command_line(refusal: Refusal) -> None:
    for options in (
        ("--retention", "week"),
        ("--retention-bytes", "many"),
        ("--retention", "0"),
        ("--retention", "7d", "--max-retention", "6d"),
        ("--retention", "7d", "--no-protect", "--max-retention", "8d"),
    ):
        assert "Error: " in refusal("topics", "create", "orders", *options)


def test_one_round_deletes_what_is_due_and_says_so(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders", "--partitions", "1", "--retention-messages", "1")
    sqlmq("produce", "orders", stdin="1\n2\n3\n")

    first = sqlmq("maintain", "--once", "--topic", "orders", "--json")
    second = sqlmq("maintain", "--once")

    assert json.loads(first.stdout) == {"topic": "orders", "partition": 0, "start": 2, "deleted": 2}
    assert (second.stdout, second.stderr) == ("", "Nothing to delete.\n")


def test_a_round_for_an_unknown_topic_fails(sqlmq: Sqlmq) -> None:
    assert sqlmq("maintain", "--once", "--topic", "orders").exit_code == 1


@pytest.mark.slow
def test_rounds_go_on_until_a_signal(sqlmq: Sqlmq, sqlmq_process: SqlmqProcess) -> None:
    sqlmq("topics", "create", "orders", "--partitions", "1", "--retention-messages", "1")
    maintaining = sqlmq_process("maintain", "--interval", "0.05", "--json")
    assert maintaining.stdout is not None

    starts = []
    for _ in range(2):
        sqlmq("produce", "orders", stdin="1\n2\n3\n")
        starts.append(json.loads(maintaining.stdout.readline())["start"])
    maintaining.send_signal(signal.SIGTERM)

    assert maintaining.wait(30) == 143
    assert starts[0] >= 1
    assert starts[1] > starts[0]


def test_what_groups_have_lost_is_listed_and_stops_a_reader_unless_told_to_go_on(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders", "--partitions", "1")
    sqlmq("produce", "orders", stdin="1\n2\n3\n4\n")
    sqlmq("consume", "orders", "--group", "billing", "--limit", "1")
    sqlmq("topics", "set-retention", "orders", "--retention-messages", "1", "--no-protect")
    sqlmq("maintain", "--once")

    (row,) = map(json.loads, sqlmq("topics", "evictions", "orders", "--json").stdout.splitlines())
    shown = sqlmq("topics", "evictions", "orders").stdout
    stopped = sqlmq("consume", "orders", "--group", "billing", "--timeout", "5")
    went_on = sqlmq(
        "consume", "orders", "--group", "billing", "--timeout", "5", "--limit", "1", "--on-evicted", "earliest"
    )

    assert {**row, "evicted_at": ""} == {
        "group": "billing",
        "partition": 0,
        "kind": "unread",
        "from": 1,
        "to": 2,
        "messages": 2,
        "evicted_at": "",
    }
    assert shown.splitlines()[1].split()[:6] == ["billing", "0", "unread", "1", "2", "2"]
    assert stopped.exit_code == 1
    assert "orders/0@1 to 2" in stopped.stderr
    assert went_on.stdout == "4\n"


def test_nothing_lost_is_said_on_stderr(sqlmq: Sqlmq, database: DatabaseUnderTest) -> None:
    del database
    sqlmq("topics", "create", "orders")

    listed = sqlmq("topics", "evictions", "orders")

    assert (listed.stdout, listed.stderr) == ("", "No group has lost anything of 'orders'.\n")
