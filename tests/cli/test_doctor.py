from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import Sqlmq

# Of the machine and the server that the tests run on.
OURS = ("--ignore", "not-durable", "--ignore", "sqlite-version")


def test_where_nothing_is_wrong_that_is_said(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders")

    examined = sqlmq("doctor", *OURS)
    assert (examined.exit_code, examined.stdout, examined.stderr) == (0, "", "Nothing is wrong.\n")


def test_a_problem_is_told_with_what_to_do_and_an_exit_code(sqlmq: Sqlmq) -> None:
    sqlmq("produce", "orders", stdin="1\n2\n")
    sqlmq("consume", "orders", "--group", "billing", "--limit", "1")

    told = sqlmq("doctor", *OURS, "--stuck-seconds", "0")
    facts = sqlmq("doctor", *OURS, "--stuck-seconds", "0", "--json")

    assert told.exit_code == facts.exit_code == 30
    assert told.stdout.startswith("warning: billing on orders: messages have waited for ")
    assert "[no-owner]\n    Start a consumer" in told.stdout
    (problem,) = map(json.loads, facts.stdout.splitlines())
    assert (problem["code"], problem["exit_code"], problem["group"]) == ("no-owner", 30, "billing")
    assert sqlmq("doctor", *OURS, "--stuck-seconds", "0", "--ignore", "no-owner").exit_code == 0


def test_only_what_is_asked_for_is_told(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders", "--retention-messages", "1")
    sqlmq("produce", "orders", stdin="1\n2\n")
    sqlmq("consume", "orders", "--group", "billing", "--limit", "1")

    def codes(*options: str) -> list[str]:
        told = sqlmq("doctor", "--json", "--stuck-seconds", "0", *options)
        return [json.loads(line)["code"] for line in told.stdout.splitlines()]

    assert codes("--only", "no-owner") == ["no-owner"]
    assert codes("--only", "no-owner", "--only", "pins-retention") == ["no-owner", "pins-retention"]
    assert codes("--only", "no-owner", "--ignore", "no-owner") == []
    assert sqlmq("doctor", "--only", "wraparound").exit_code == 0
    assert "'nothing' is not one of" in sqlmq("doctor", "--only", "nothing").stderr
