"""Every record of the log tells programs what happened, as docs/logging.md says, and nothing that a message holds."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from sqlmq import Message
from sqlmq.hooks import log_events
from tests.support.failing import ONCE, GroupRunner, Handler, produce

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "src" / "sqlmq"
PAGE = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
CONTENTS = {"value", "key", "headers", "values", "keys"}


class Call(NamedTuple):
    """A place in the source where something is logged."""

    where: str
    logger: str
    node: ast.Call


def logger_of(path: Path) -> str:
    """The logger of a module: that of its package, so that moving a file changes nobody's configuration."""
    package = path.relative_to(SOURCE).with_suffix("").parts[0]
    if path == SOURCE / "hooks" / "observer.py":
        return "sqlmq.observer"
    return {"aio": "sqlmq.consumer", "hooks": "sqlmq.testing"}.get(package, f"sqlmq.{package}")


def calls() -> Iterator[Call]:
    for path in sorted(SOURCE.rglob("*.py")):
        logger = logger_of(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if not isinstance(called, ast.Attribute) or called.attr not in LEVELS or not isinstance(node, ast.Call):
                continue
            if isinstance(called.value, ast.Name) and called.value.id == "log":
                yield Call(f"{path.relative_to(ROOT)}:{node.lineno}", logger, node)


def event_calls() -> Iterator[tuple[str, str]]:
    """Logger and event of each call of what makes facts, by whatever name."""
    for path in sorted(SOURCE.rglob("*.py")):
        logger = logger_of(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"log_fields", "_loss_fields"} and isinstance(node.args[0].value, str):
                yield logger, node.args[0].value


def documented() -> dict[str, str]:
    """The row of each event, by its name."""
    rows = PAGE.partition("## Events")[2].splitlines()
    return {
        event: row for row in rows if row.startswith("| `") for event in re.findall(r"`([^`]+)`", row.split("|")[1])
    }


def test_every_module_logs_by_the_logger_of_its_package() -> None:
    named = {
        path: re.findall(r"getLogger\((.*)\)", path.read_text(encoding="utf-8"))
        for path in SOURCE.rglob("*.py")
        if not {"cli", "verify"} & {*path.parts}
    }

    assert {path for path, names in named.items() if names and names != [f'"{logger_of(path)}"']} == set()


def test_every_record_has_facts() -> None:
    found = list(calls())

    assert len(found) > 40
    assert [call.where for call in found if "extra" not in {keyword.arg for keyword in call.node.keywords}] == []


def test_every_event_is_documented_with_its_loggers_and_none_that_is_not_there() -> None:
    rows = documented()
    used = {event for _, event in event_calls()} | {"attempt failed", "message given up"}

    assert used == set(rows)
    assert [(module, event) for module, event in event_calls() if f"`{module}`" not in rows[event]] == []


def test_every_attribute_is_documented() -> None:
    names = [log_events.PREFIX + name for name in ("event", *log_events.LogFields.__annotations__)]

    assert [name for name in names if f"`{name}`" not in PAGE] == []


def test_no_record_is_given_what_a_message_holds() -> None:
    for call in calls():
        for node in ast.walk(call.node):
            assert not (isinstance(node, ast.Attribute) and node.attr in CONTENTS), call.where


def test_facts_that_are_not_known_are_left_out_and_an_error_is_its_type() -> None:
    assert log_events.log_fields("retry", topic="orders", error=ValueError("secret")) == {
        "sqlmq_event": "retry",
        "sqlmq_topic": "orders",
        "sqlmq_error": "ValueError",
    }


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_failing_handler_is_told_with_where_and_how_often(
    mq: MQ, database: DatabaseUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    mq.create_topic("orders", 1)
    produce(mq, "a:fine", "b:bad")
    runner = GroupRunner(database)

    with caplog.at_level(logging.DEBUG, "sqlmq"):
        runner.run(Handler(b"bad"), retry=ONCE)
    runner.mq.close()

    (record,) = [record for record in caplog.records if vars(record).get("sqlmq_event") == "message given up"]
    facts = {name: fact for name, fact in vars(record).items() if name.startswith("sqlmq_") and name != "sqlmq_member"}
    assert facts == {
        "sqlmq_event": "message given up",
        "sqlmq_topic": "orders",
        "sqlmq_group": "billing",
        "sqlmq_partition": 0,
        "sqlmq_offset": 1,
        "sqlmq_attempts": 1,
        "sqlmq_error": "ValueError",
    }


def test_a_logged_message_gives_nothing_away() -> None:
    assert "secret" not in repr(Message(b"secret", b"secret", {"secret": "secret"}))
