from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import Message
from tests.support.failing import MUCH_LATER, ONCE, GroupRunner, Handler, produce
from tests.support.waiting import until

if TYPE_CHECKING:
    from click.testing import Result

    from sqlmq import MQ
    from tests.cli.conftest import Refusal, Sqlmq

OF_BILLING = ("orders", "--group", "billing")


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def letters(mq: MQ, runner: GroupRunner) -> None:
    """Three dead letters, two of them with the key a."""
    produce(mq, "a:bad", "b:bad", "a:bad")
    runner.run(Handler(b"bad"), retry=ONCE)


@pytest.mark.usefixtures("letters")
def test_dead_letters_are_listed(sqlmq: Sqlmq) -> None:
    as_json = rows(sqlmq("parked", "list", *OF_BILLING, "--json"))
    for_people = sqlmq("parked", "list", *OF_BILLING).stdout.splitlines()

    assert [(row["partition"], row["offset"], row["key"], row["state"]) for row in as_json] == [
        (0, 0, "a", "dead"),
        (0, 1, "b", "dead"),
        (0, 2, "a", "dead"),
    ]
    assert datetime.fromisoformat(as_json[0]["last_failed_at"]).tzinfo is not None
    assert as_json[0]["error"] == "no bad"
    assert "value" not in as_json[0]
    assert for_people[0].split() == [
        "partition",
        "offset",
        "key",
        "state",
        "attempts",
        "due",
        "at",
        "error",
        "type",
        "error",
    ]
    assert for_people[1].split() == ["0", "0", "a", "dead", "1", "-", "ValueError", "no", "bad"]
    assert len(for_people) == 4


@pytest.mark.usefixtures("letters")
def test_the_list_can_be_narrowed_down_and_comes_in_pages(sqlmq: Sqlmq) -> None:
    page = sqlmq("parked", "list", *OF_BILLING, "--limit", "2")

    assert "--after 0@1" in page.stderr
    assert [row["offset"] for row in rows(sqlmq("parked", "list", *OF_BILLING, "--after", "0@1", "--json"))] == [2]
    assert [row["offset"] for row in rows(sqlmq("parked", "list", *OF_BILLING, "--key", "b", "--json"))] == [1]
    assert rows(sqlmq("parked", "list", *OF_BILLING, "--state", "waiting", "--json")) == []
    assert sqlmq("parked", "list", *OF_BILLING, "--after", "nowhere").exit_code == 2


def test_nothing_to_list_is_said_on_stderr_only(sqlmq: Sqlmq, runner: GroupRunner) -> None:
    runner.run(Handler())

    listed, blocked = sqlmq("parked", "list", *OF_BILLING), sqlmq("parked", "keys", *OF_BILLING)

    assert (listed.exit_code, listed.stdout, blocked.exit_code, blocked.stdout) == (0, "", 0, "")
    assert "'billing'" in listed.stderr
    assert "'billing'" in blocked.stderr


def test_one_is_shown_with_everything_that_is_known(sqlmq: Sqlmq, mq: MQ, runner: GroupRunner) -> None:
    mq.producer("orders").produce(Message("Grüße\nzwei".encode(), b"a", {"currency": "EUR"}))

    def fail(_message: Message) -> None:
        raise KeyError("missing")

    runner.run(fail, retry=ONCE)

    (as_json,) = rows(sqlmq("parked", "show", "orders", "0", "0", "--group", "billing", "--json"))
    for_people = sqlmq("parked", "show", "orders", "0", "0", "--group", "billing").stdout

    assert (as_json["value"], as_json["headers"], as_json["key"]) == ("Grüße\nzwei", {"currency": "EUR"}, "a")
    assert 'raise KeyError("missing")' in as_json["traceback"]
    assert "Grüße\nzwei\n" in for_people
    assert "currency: EUR" in for_people
    assert "KeyError" in for_people
    assert 'raise KeyError("missing")' in for_people


def test_a_value_cannot_move_the_cursor_and_bytes_are_shown_in_base64(
    sqlmq: Sqlmq, mq: MQ, runner: GroupRunner
) -> None:
    mq.producer("orders").produce(Message(b"\x1b[2J", b"\x1b\xff", {"a\x1b": "b\x1b"}))
    mq.producer("orders").produce(Message(b"\xff\x00", b"b"))

    def fail(_message: Message) -> None:
        complaint = "\x1b[31mred"
        raise ValueError(complaint)

    runner.run(fail, retry=ONCE)

    shown = [sqlmq("parked", "show", "orders", "0", offset, "-g", "billing").stdout for offset in ("0", "1")]
    listed = sqlmq("parked", "list", *OF_BILLING).stdout
    (as_json,) = rows(sqlmq("parked", "show", "orders", "0", "1", "-g", "billing", "--json"))

    assert "\x1b" not in "".join([*shown, listed])
    assert "\\x1b[2J" in shown[0]
    assert "in base64: /wA=" in shown[1]
    assert as_json["value_base64"] == "/wA="


def test_blocked_keys_are_listed(sqlmq: Sqlmq, mq: MQ, runner: GroupRunner) -> None:
    produce(mq, "a:bad", "a:behind", "b:bad")
    with runner.running(Handler(b"bad"), retry=MUCH_LATER):
        until(lambda: len(mq.admin.parked("orders", "billing").list("waiting")) == 3, "all set aside")

    as_json = rows(sqlmq("parked", "keys", *OF_BILLING, "--json"))
    page = sqlmq("parked", "keys", *OF_BILLING, "--limit", "1")
    rest = rows(sqlmq("parked", "keys", *OF_BILLING, "--after", "0@0", "--json"))

    assert [(row["key"], row["messages"], row["first_offset"], row["attempts"]) for row in as_json] == [
        ("a", 2, 0, 1),
        ("b", 1, 2, 1),
    ]
    assert "--after 0@0" in page.stderr
    assert page.stdout.splitlines()[1].split()[:4] == ["0", "a", "2", "0"]
    assert [row["key"] for row in rest] == ["b"]


@pytest.mark.usefixtures("letters")
def test_what_is_retried_waits_again(sqlmq: Sqlmq, mq: MQ) -> None:
    retried = sqlmq("parked", "retry", *OF_BILLING, "--key", "a")
    again = sqlmq("parked", "retry", *OF_BILLING, "--partition", "0", "--offset", "1", "--json")

    assert retried.stdout == "2 messages will be retried.\n"
    assert rows(again) == [{"retried": 1}]
    assert len(mq.admin.parked("orders", "billing").list("waiting")) == 3


@pytest.mark.usefixtures("letters")
def test_messages_are_discarded_only_after_a_yes(sqlmq: Sqlmq, mq: MQ) -> None:
    refused = sqlmq("parked", "discard", *OF_BILLING, "--all")
    left = len(mq.admin.parked("orders", "billing").list())

    discarded = sqlmq("parked", "discard", *OF_BILLING, "--all", "--yes")

    assert (refused.exit_code, left) == (2, 3)
    assert "--yes" in refused.stderr
    assert discarded.stdout == "3 messages discarded.\n"
    assert mq.admin.parked("orders", "billing").list() == []


@pytest.mark.usefixtures("letters")
def test_messages_are_copied_and_moved(sqlmq: Sqlmq, mq: MQ) -> None:
    mq.create_topic("failed", 1)

    copied = rows(sqlmq("parked", "copy", "orders", "failed", "-g", "billing", "--key", "a", "--json"))
    unasked = sqlmq("parked", "copy", "orders", "failed", "-g", "billing", "--all", "--discard")
    moved = sqlmq("parked", "copy", "orders", "failed", "-g", "billing", "--state", "dead", "--discard", "--yes")

    assert [(row["topic"], row["partition"], row["offset"]) for row in copied] == [("failed", 0, 0), ("failed", 0, 1)]
    assert unasked.exit_code == 2
    assert moved.stdout == "3 messages moved to 'failed'.\n"
    assert mq.admin.describe_topic("failed").messages == 5
    assert mq.admin.parked("orders", "billing").list() == []


def test_a_change_has_to_say_what_it_is_about(refusal: Refusal) -> None:
    for command in (("retry", "orders"), ("discard", "orders"), ("copy", "orders", "failed")):
        for which in ((), ("--all", "--key", "a"), ("--offset", "0")):
            assert "Error: " in refusal("parked", *command, "--group", "billing", *which)


@pytest.mark.usefixtures("letters")
def test_what_is_not_there_is_an_error(sqlmq: Sqlmq) -> None:
    for arguments in (
        ("list", "nothing", "--group", "billing"),
        ("list", "orders", "--group", "nobody"),
        ("keys", "orders", "--group", "nobody"),
        ("retry", "orders", "--group", "nobody", "--all"),
        ("discard", "orders", "--group", "nobody", "--all", "--yes"),
        ("copy", "orders", "failed", "--group", "nobody", "--all"),
        ("show", "orders", "0", "99", "--group", "billing"),
        ("list", "orders", "--group", "billing", "--partition", "9"),
    ):
        result = sqlmq("parked", *arguments)

        assert result.exit_code == 1, arguments
        assert result.stderr.startswith("Error: ")
