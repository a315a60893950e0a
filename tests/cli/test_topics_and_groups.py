from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Sqlmq
    from tests.conftest import MakeMQ


def test_a_created_topic_is_listed(sqlmq: Sqlmq) -> None:
    created = sqlmq("topics", "create", "orders", "--partitions", "6", "--partitioner", "crc32")

    listed = sqlmq("topics", "list", "--json")
    assert created.stdout == "Created topic 'orders': 6 partitions, keys placed by crc32.\n"
    assert json.loads(listed.stdout) == {"topic": "orders", "partitions": 6, "messages": 0, "groups": []}


def test_creating_a_topic_again_is_no_error_and_changes_nothing(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders", "--partitions", "2")

    again = sqlmq("topics", "create", "orders", "--partitions", "9", "--json")

    assert again.exit_code == 0
    assert json.loads(again.stdout) == {
        "topic": "orders",
        "created": False,
        "partitions": 2,
        "partitioner": "murmur2",
    }


def test_a_topic_gets_more_partitions(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders", "--partitions", "2")

    added = sqlmq("topics", "add-partitions", "orders", "--partitions", "4")
    again = sqlmq("topics", "add-partitions", "orders", "--partitions", "4", "--json")
    refused = sqlmq("topics", "add-partitions", "orders", "--partitions", "6")

    assert added.stdout == "Topic 'orders' has 4 partitions now.\n"
    assert json.loads(again.stdout) == {"topic": "orders", "partitions": 4, "added": False}
    assert json.loads(sqlmq("topics", "list", "--json").stdout)["partitions"] == 4
    assert refused.exit_code == 1
    assert "to a multiple" in refused.stderr


def test_a_topic_that_cannot_be_is_an_error(sqlmq: Sqlmq) -> None:
    for arguments in (("x",), ("orders", "--partitions", "0")):
        assert sqlmq("topics", "create", *arguments).exit_code == 1

    assert sqlmq("topics", "list", "--json").stdout == ""


def test_lists_are_tables_for_people_with_nothing_cut_off(sqlmq: Sqlmq) -> None:
    name = "a" * 50
    group = "g" * 100
    sqlmq("produce", name, stdin="1\n2\n")
    sqlmq("consume", name, "--group", group, "--limit", "1")

    topics = sqlmq("topics", "list").stdout.splitlines()
    groups = sqlmq("groups", "list").stdout.splitlines()

    assert topics[0].split() == ["topic", "partitions", "messages", "groups"]
    assert topics[1].split() == [name, "3", "2", group]
    assert groups[1].split() == [name, group, "0", "1"]


def test_nothing_to_list_is_said_on_stderr_only(sqlmq: Sqlmq) -> None:
    topics, groups = sqlmq("topics", "list"), sqlmq("groups", "list")

    assert (topics.stdout, groups.stdout) == ("", "")
    assert "sqlmq topics create" in topics.stderr
    assert "sqlmq consume" in groups.stderr


def test_describe_shows_partitions_and_groups(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders", "--partitions", "1")
    sqlmq("produce", "orders", stdin="1\n2\n3\n")
    sqlmq("consume", "orders", "--group", "billing", "--limit", "1")

    described = json.loads(sqlmq("topics", "describe", "orders", "--json").stdout)
    for_people = sqlmq("topics", "describe", "orders").stdout

    (partition,), (group,) = described["partitions"], described["groups"]
    assert (partition["partition"], partition["start"], partition["end"], partition["messages"]) == (0, 0, 3, 3)
    assert partition["per_second"] == 0.05
    assert partition["estimated_bytes"] > 0
    assert (group["group"], group["members"], group["lag"], group["dead"]) == ("billing", 0, 2, 0)
    assert "3 messages" in for_people
    assert "billing" in for_people


def test_a_topic_is_deleted_only_after_a_yes(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders")

    refused = sqlmq("topics", "delete", "orders")
    still_there = sqlmq("topics", "list", "--json").stdout
    deleted = sqlmq("topics", "delete", "orders", "nothing", "--yes")

    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    assert "orders" in still_there
    assert deleted.stdout == "Deleted topic 'orders'.\nThere was no topic 'nothing'.\n"
    assert sqlmq("topics", "list", "--json").stdout == ""


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_on_a_terminal_the_command_asks(sqlmq: Sqlmq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _self: True, raising=False)
    sqlmq("topics", "create", "orders")

    for answer, left in (("n\n", ["orders"]), ("y\n", [])):
        result = sqlmq("topics", "delete", "orders", stdin=answer)

        assert "Delete orders" in result.stderr
        assert [json.loads(line)["topic"] for line in sqlmq("topics", "list", "--json").stdout.splitlines()] == left


def test_a_group_is_described_with_positions_lag_and_owners(sqlmq: Sqlmq, make_mq: MakeMQ) -> None:
    sqlmq("topics", "create", "orders", "--partitions", "1")
    sqlmq("produce", "orders", stdin="1\n2\n3\n")
    consumer = make_mq().consumer("orders", "billing", name="the reader")
    consumer.consume(timeout=10)
    consumer.commit()

    described = sqlmq("groups", "describe", "billing", "--json")
    listed = sqlmq("groups", "list", "--topic", "orders", "--json")

    row = json.loads(described.stdout)
    assert row.pop("committed_at") is not None
    assert row.pop("seconds") >= 0
    assert row == {
        "waiting": 0,
        "dead": 0,
        "problems": [],
        "topic": "orders",
        "group": "billing",
        "partition": 0,
        "position": 1,
        "end": 3,
        "lag": 2,
        "owner": "the reader",
    }
    assert json.loads(listed.stdout)["members"] == ["the reader"]


def test_an_owners_name_cannot_move_the_cursor(sqlmq: Sqlmq, make_mq: MakeMQ) -> None:
    sqlmq("topics", "create", "orders", "--partitions", "1")
    consumer = make_mq().consumer("orders", "billing", name="\x1b[2J[red]me")
    consumer.poll(timeout=0)

    described = sqlmq("groups", "describe", "billing", "--topic", "orders")

    assert "\x1b" not in described.stdout
    assert "\\x1b[2J[red]me" in described.stdout


def test_what_is_not_there_is_an_error(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders")

    for arguments in (
        ("groups", "describe", "nobody"),
        ("groups", "describe", "nobody", "--topic", "orders"),
        ("groups", "describe", "nobody", "--topic", "nothing"),
        ("groups", "list", "--topic", "nothing"),
        ("topics", "describe", "nothing"),
    ):
        result = sqlmq(*arguments)

        assert result.exit_code == 1, arguments
        assert result.stderr.startswith("Error: ")
