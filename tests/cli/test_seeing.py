"""`lag`, `tail`, `top`, and what `groups describe` says of a group that waits."""

from __future__ import annotations

import json
import re
import shlex
import signal
from typing import TYPE_CHECKING

import pytest

from sqlmq import Message, PartitionLag
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Sqlmq, SqlmqProcess
    from tests.conftest import MakeMQ


@pytest.fixture
def behind(sqlmq: Sqlmq) -> None:
    """Two groups on a topic of one partition with three messages: one is two behind, one has read all."""
    sqlmq("topics", "create", "orders", "--partitions", "1")
    sqlmq("produce", "orders", stdin="1\n2\n3\n")
    sqlmq("consume", "orders", "--group", "billing", "--limit", "1")
    sqlmq("consume", "orders", "--group", "audit", "--limit", "3")


@pytest.mark.usefixtures("behind")
def test_lag_is_told_by_group_and_by_partition(sqlmq: Sqlmq) -> None:
    groups = [json.loads(line) for line in sqlmq("lag", "--json").stdout.splitlines()]
    (partition,) = [json.loads(sqlmq("lag", "orders", "-g", "billing", "--partitions", "--json").stdout)]
    for_people = sqlmq("lag").stdout

    assert [(one["group"], one["messages"], one["unowned"]) for one in groups] == [("audit", 0, 1), ("billing", 2, 1)]
    assert (partition["partition"], partition["position"], partition["end"], partition["owner"]) == (0, 1, 3, None)
    assert partition["seconds"] >= 0
    assert for_people.splitlines()[0].split()[:4] == ["topic", "group", "messages", "seconds"]


@pytest.mark.usefixtures("behind")
@pytest.mark.parametrize(
    ("limits", "exit_code"), [(("--max-lag", "2"), 0), (("--max-lag", "1"), 3), (("--max-seconds", "0"), 3)]
)
def test_lag_beyond_a_limit_is_an_exit_code(sqlmq: Sqlmq, limits: tuple[str, str], exit_code: int) -> None:
    result = sqlmq("lag", *limits)

    assert result.exit_code == exit_code
    assert ("orders/billing is 2 messages" in result.stderr) is bool(exit_code)
    assert "orders/audit" not in result.stderr


def test_an_age_is_compared_with_its_limit_as_measured_not_as_shown(
    sqlmq: Sqlmq, monkeypatch: pytest.MonkeyPatch
) -> None:
    just_arrived = PartitionLag("orders", "billing", 0, 1, 3, 0.04, None, None, waiting=0, dead=0)
    monkeypatch.setattr("sqlmq.admin.admin.Admin.lag", lambda *_: [just_arrived])

    assert sqlmq("lag", "--max-seconds", "0").exit_code == 3
    assert sqlmq("lag", "--max-seconds", "0.05").exit_code == 0


def test_lag_of_what_is_not_there_is_an_error(sqlmq: Sqlmq) -> None:
    assert sqlmq("lag", "nothing").exit_code == 1
    assert sqlmq("lag", "--watch", "1", "--max-lag", "1").exit_code == 2
    assert "There are no groups yet" in sqlmq("lag").stderr


@pytest.mark.parametrize("arguments", [("lag", "--watch", "0.01", "--json"), ("top", "--interval", "0.01", "--json")])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("behind")
def test_what_is_watched_is_shown_again_until_ctrl_c(sqlmq_process: SqlmqProcess, arguments: tuple[str, ...]) -> None:
    process = sqlmq_process(*arguments)
    assert process.stdout is not None

    frames = [json.loads(process.stdout.readline()) for _ in range(4)]
    process.send_signal(signal.SIGINT)

    assert len(frames) == 4
    assert process.wait(30) == 130


@pytest.mark.usefixtures("behind")
def test_tail_shows_the_last_messages_without_a_group(sqlmq: Sqlmq, make_mq: MakeMQ) -> None:
    make_mq().producer("orders").produce(Message(b"\x1b[2J\xff", b"key"))

    for_people = sqlmq("tail", "orders", "--last", "2", "--timeout", "0")
    as_json = sqlmq("tail", "orders", "--offset", "1", "--limit", "1", "--json")
    formatted = sqlmq("tail", "orders", "--last", "9", "--timeout", "0", "--format", "%o=%v,")

    assert [line.split(" ", 1)[1] for line in for_people.stdout.splitlines()] == ["0@2 - 3", "0@3 key \\x1b[2J\\xff"]
    assert json.loads(as_json.stdout)["value"] == "2"
    assert formatted.stdout_bytes.startswith(b"0=1,1=2,2=3,3=")
    assert sqlmq("groups", "list", "--json").stdout.count("\n") == 2


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_tail_shows_what_comes_while_it_watches(sqlmq: Sqlmq, sqlmq_process: SqlmqProcess, make_mq: MakeMQ) -> None:
    sqlmq("produce", "orders", stdin="before\n")
    process = sqlmq_process("tail", "orders", "--last", "1", "--format", "%v\\n")
    assert process.stdout is not None

    before = process.stdout.readline()
    make_mq().producer("orders").produce(Message(b"after"))
    after = process.stdout.readline()
    process.send_signal(signal.SIGINT)

    assert (before, after) == (b"before\n", b"after\n")
    assert process.wait(30) == 130


@pytest.mark.parametrize(
    "arguments",
    [("--json", "--format", "%v"), ("--last", "1", "--offset", "1"), ("--partition", "9"), ("--last", "1001")],
)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("behind")
def test_tail_refuses_what_cannot_be(sqlmq: Sqlmq, arguments: tuple[str, ...]) -> None:
    assert sqlmq("tail", "orders", *arguments, "--timeout", "0").exit_code in (1, 2)


@pytest.mark.usefixtures("behind")
def test_top_shows_topics_and_groups_the_furthest_behind_first(sqlmq: Sqlmq) -> None:
    frame = json.loads(sqlmq("top", "--once", "--json").stdout)
    for_people = sqlmq("top", "--once").stdout

    assert [(one["topic"], one["messages"]) for one in frame["topics"]] == [("orders", 3)]
    assert frame["topics"][0]["in_per_second"] > 0
    assert [(one["group"], one["messages"]) for one in frame["groups"]] == [("billing", 2), ("audit", 0)]
    assert frame["groups"][0]["out_per_second"] is None
    assert "billing" in for_people


@pytest.mark.usefixtures("behind")
def test_members_are_listed_with_their_partitions(sqlmq: Sqlmq, make_mq: MakeMQ) -> None:
    nobody = sqlmq("groups", "members", "billing", "--topic", "orders")
    make_mq().consumer("orders", "billing", name="me").poll(timeout=0)

    member = json.loads(sqlmq("groups", "members", "billing", "--topic", "orders", "--json").stdout)

    assert "no members" in nobody.stderr
    assert (member["member"], member["live"], member["partitions"]) == ("me", True, [0])


BROKEN = """
def handle(message):
    if message.value == b"twelve":
        raise ValueError("the amount is no number")
"""


@pytest.mark.slow
def test_a_new_user_finds_a_stuck_consumer_its_reason_and_its_remedy_with_three_commands(
    sqlmq: Sqlmq, sqlmq_process: SqlmqProcess, make_mq: MakeMQ, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(BROKEN)
    sqlmq("topics", "create", "orders", "--partitions", "1")
    sqlmq("produce", "orders", stdin="10\ntwelve\n30\n40\n")
    serve = (
        "run",
        "app:handle",
        "--topic",
        "orders",
        "--group",
        "billing",
        "--on-failure",
        "stop",
        "--max-attempts",
        "1",
    )
    sqlmq_process(*serve, cwd=tmp_path)
    mq = make_mq()
    until(
        lambda: "billing" in mq.admin.groups("orders") and bool(mq.admin.parked("orders", "billing").list("stopped")),
        "a stop",
    )

    # 1. Who is stuck?
    (lag,) = [json.loads(line) for line in sqlmq("lag", "--json").stdout.splitlines()]
    assert (lag["topic"], lag["group"], lag["messages"]) == ("orders", "billing", 3)

    # 2. Why, and what is to be done?
    described = sqlmq("groups", "describe", lag["group"]).stdout
    assert "offset 1 has failed once, with ValueError" in described
    (discard,) = re.findall(r"`sqlmq (parked discard [^`]*)`", described)

    # 3. Do it.
    done = sqlmq(*shlex.split(discard), "--yes")
    assert done.exit_code == 0
    until(lambda: mq.admin.describe_group("orders", "billing").lag == 0, "the group to get on")
