from __future__ import annotations

import base64
import json
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlmq import Message

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from sqlmq import MQ
    from tests.cli.conftest import Refusal, Sqlmq

ONE_PARTITION = ("topics", "create", "orders", "--partitions", "1")


def consume(sqlmq: Sqlmq, *options: str) -> Result:
    return sqlmq("consume", "orders", "--group", "readers", "--timeout", "0", *options)


# --- Bytes in, the same bytes out ---


def test_what_lines_hold_comes_back_byte_for_byte(sqlmq: Sqlmq) -> None:
    randomness = random.Random(1)
    lines = [randomness.randbytes(randomness.randrange(100)).replace(b"\n", b"") for _ in range(2_500)]
    data = b"".join(line + b"\n" for line in [*lines, b"", b"carriage return\r", b"\xff\x00\xfe"])
    sqlmq(*ONE_PARTITION)

    produced = sqlmq("produce", "orders", stdin=data)

    assert produced.stderr.endswith("2,503 messages produced to 'orders'.\n")
    assert sqlmq("consume", "orders", "--group", "readers", "--limit", "2503").stdout_bytes == data


def test_the_last_line_needs_no_newline(sqlmq: Sqlmq) -> None:
    sqlmq(*ONE_PARTITION)

    sqlmq("produce", "orders", stdin=b"one\ntwo")

    assert consume(sqlmq).stdout_bytes == b"one\ntwo\n"


def test_messages_with_newlines_travel_delimited_by_nul(sqlmq: Sqlmq) -> None:
    sqlmq(*ONE_PARTITION)

    sqlmq("produce", "orders", "-0", stdin=b"a\nb\0c\n\0")

    assert consume(sqlmq, "-0").stdout_bytes == b"a\nb\0c\n\0"


def test_whole_files_are_messages(sqlmq: Sqlmq, tmp_path: Path) -> None:
    contents = [b"first\nfile\n", b"", b"\x00\xff" * 300_000]
    files = [tmp_path / f"{number}" for number in range(3)]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    sqlmq(*ONE_PARTITION)

    sqlmq("produce", "orders", "--whole-files", *map(str, files))

    assert consume(sqlmq, "--raw").stdout_bytes == b"".join(contents)
    assert json.loads(sqlmq("topics", "list", "--json").stdout)["messages"] == 3


def test_files_and_stdin_are_read_in_the_order_they_are_named(sqlmq: Sqlmq, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n")
    (tmp_path / "b").write_text("4\n")
    sqlmq(*ONE_PARTITION)

    sqlmq("produce", "orders", str(tmp_path / "a"), "-", str(tmp_path / "b"), stdin="3\n")

    assert consume(sqlmq).stdout == "1\n2\n3\n4\n"


# --- What else is in a message ---


def test_keys_stand_before_the_separator(sqlmq: Sqlmq, mq: MQ) -> None:
    sqlmq(*ONE_PARTITION)

    sqlmq("produce", "orders", "-K", "::", "-H", "source=import", "-H", "a=b=c", stdin=b"\xff::1::x\n::\n")

    got = mq.consumer("orders", "readers").poll(timeout=10)
    assert [(message.key, message.value) for message in got] == [(b"\xff", b"1::x"), (b"", b"")]
    assert got[0].headers == {"source": "import", "a": "b=c"}


def test_one_key_for_all_sends_all_to_one_partition(sqlmq: Sqlmq) -> None:
    produced = sqlmq("produce", "orders", "--key", "k", "--json", stdin="1\n" * 5)

    results = [json.loads(line) for line in produced.stdout.splitlines()]
    assert {result["partition"] for result in results} == {results[0]["partition"]}
    assert [result["offset"] for result in results] == list(range(5))


def test_a_partition_may_be_named(sqlmq: Sqlmq) -> None:
    produced = sqlmq("produce", "orders", "--partition", "2", "--json", stdin="1\n2\n")

    assert [json.loads(line) for line in produced.stdout.splitlines()] == [
        {"topic": "orders", "partition": 2, "offset": 0},
        {"topic": "orders", "partition": 2, "offset": 1},
    ]


# --- What cannot be sent ---


def test_a_line_without_a_key_is_named_and_those_before_it_are_sent(sqlmq: Sqlmq) -> None:
    sqlmq(*ONE_PARTITION)

    produced = sqlmq("produce", "orders", "-K", ":", stdin="a:1\nb:2\nno key\nc:3\n")

    assert produced.exit_code == 1
    assert "standard input, line 3:" in produced.stderr
    assert "2 messages produced" in produced.stderr
    assert consume(sqlmq).stdout == "1\n2\n"


def test_a_message_that_is_too_large_is_named(sqlmq: Sqlmq, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"small\n" + b"x" * 1_000_000)

    produced = sqlmq("produce", "orders", "--max-message-bytes", "1000", str(tmp_path / "lines"))

    assert produced.exit_code == 1
    assert f"{tmp_path / 'lines'}, line 2:" in produced.stderr
    assert consume(sqlmq).stdout == "small\n"


def test_a_partition_that_is_not_there_is_an_error(sqlmq: Sqlmq) -> None:
    assert sqlmq("produce", "orders", "--partition", "3", stdin="1\n").exit_code == 1


def test_options_that_make_no_sense_are_refused_before_anything_is_sent(refusal: Refusal) -> None:
    for options in (
        ("--key", "k", "--key-separator", ":"),
        ("--key-separator", ""),
        ("--whole-files", "-0"),
        ("--header", "no equals sign"),
        ("no such file",),
    ):
        assert "Error: " in refusal("produce", "orders", *options)


# --- How messages are written ---


def test_json_has_text_as_text_and_other_bytes_in_base64(sqlmq: Sqlmq, mq: MQ) -> None:
    sqlmq(*ONE_PARTITION)
    producer = mq.producer("orders")
    producer.produce(Message("grüße\n".encode(), b"key", {"a": "b"}))
    producer.produce(Message(b"\xff", b"\xfe"))
    producer.produce(Message(b""))

    first, second, third = (json.loads(line) for line in consume(sqlmq, "--json").stdout.splitlines())

    age = datetime.now(UTC) - datetime.fromisoformat(first.pop("timestamp"))
    assert abs(age.total_seconds()) < 60
    assert first == {
        "topic": "orders",
        "partition": 0,
        "offset": 0,
        "key": "key",
        "value": "grüße\n",
        "headers": {"a": "b"},
    }
    assert (base64.b64decode(second["key_base64"]), base64.b64decode(second["value_base64"])) == (b"\xfe", b"\xff")
    assert {"key", "value"}.isdisjoint(second)
    assert (third["key"], third["value"]) == (None, "")


def test_a_format_says_what_is_written(sqlmq: Sqlmq, mq: MQ) -> None:
    sqlmq(*ONE_PARTITION)
    mq.producer("orders").produce(Message(b"\xffv", b"k", {"a": "b", "c": "d"}))

    written = consume(sqlmq, "--format", r"%t [%p] %o %k=%v=%s %h %K %S 100%%\t\x41\\\n").stdout_bytes

    assert written == b"orders [0] 0 k=\xffv=\xffv a=b,c=d 1 2 100%\tA\\\n"


def test_a_format_that_means_nothing_is_refused(refusal: Refusal) -> None:
    for pattern in ("%x", "%", "\\q", "\\"):
        assert "Error: " in refusal("consume", "orders", "--group", "readers", "--format", pattern)


def test_ways_of_writing_exclude_each_other(refusal: Refusal) -> None:
    assert "Error: " in refusal("consume", "orders", "--group", "readers", "--json", "--raw")


# --- What a group remembers ---


def test_a_group_goes_on_where_it_was(sqlmq: Sqlmq) -> None:
    sqlmq(*ONE_PARTITION)
    sqlmq("produce", "orders", stdin="1\n2\n3\n")

    first = consume(sqlmq, "--limit", "2")
    second = consume(sqlmq)

    assert (first.stdout, second.stdout) == ("1\n2\n", "3\n")
    assert (first.exit_code, second.exit_code) == (0, 0)


def test_a_new_group_may_begin_at_the_end(sqlmq: Sqlmq) -> None:
    sqlmq(*ONE_PARTITION)
    sqlmq("produce", "orders", stdin="old\n")

    before = consume(sqlmq, "--start", "latest")
    sqlmq("produce", "orders", stdin="new\n")
    after = consume(sqlmq)

    assert (before.stdout, after.stdout) == ("", "new\n")


def test_both_commands_make_a_topic_that_is_not_there_and_say_so(sqlmq: Sqlmq) -> None:
    consumed = sqlmq("consume", "misspelt", "--group", "g", "--timeout", "0")
    produced = sqlmq("produce", "orders", stdin="1\n")

    assert "'misspelt' did not exist" in consumed.stderr
    assert "'orders' did not exist" in produced.stderr


def test_a_new_group_begins_with_the_first_message_since_a_moment(sqlmq: Sqlmq) -> None:
    sqlmq("produce", "orders", stdin="before\n")
    moment = datetime.now(UTC) + timedelta(days=1)

    since = sqlmq("consume", "orders", "--group", "late", "--start", moment.isoformat(), "--timeout", "0")
    refused = sqlmq("consume", "orders", "--group", "other", "--start", "yesterday", "--timeout", "0")

    assert (since.exit_code, since.stdout) == (0, "")
    assert refused.exit_code == 2
    assert "not a time in ISO 8601" in refused.stderr
    whole = sqlmq("consume", "orders", "--group", "whole", "--start", "2000-01-01T00:00:00Z", "--timeout", "0")
    assert whole.stdout == "before\n"
