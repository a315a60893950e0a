"""Where a run keeps its queue: a place of its own, which it leaves as it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, inspect

from sqlmq import MQ, DatabaseUnavailableError, SqlmqError
from sqlmq.errors import InvalidURLError
from sqlmq.verify.plan import ORDERS, Plan
from sqlmq.verify.workload.sandbox import Sandbox, SandboxTakenError

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
POSTGRES = pytest.mark.parametrize("database", ["postgres"], indirect=True)


def planned(database: DatabaseUnderTest, schema: str | None = None) -> Plan:
    return Plan.of(database.url, schema, "abc", Path("unused"))


@POSTGRES
def test_a_schema_of_its_own_is_made_and_dropped(database: DatabaseUnderTest, engine: Engine) -> None:
    plan = planned(database)

    with Sandbox(plan).created(keep=False), MQ(plan.url, schema=plan.schema) as mq:
        assert ORDERS in mq.admin.topics()

    assert not inspect(engine).has_schema(plan.schema or "")


@POSTGRES
def test_a_schema_that_is_kept_stays(database: DatabaseUnderTest, engine: Engine) -> None:
    plan = planned(database)

    with Sandbox(plan).created(keep=True):
        pass

    assert inspect(engine).has_table("sqlmq_message", schema=plan.schema)


@BOTH
def test_a_queue_without_topics_is_used_and_left_as_it_was(database: DatabaseUnderTest, engine: Engine, mq: MQ) -> None:
    schema = "public" if database.is_postgres else None
    before = inspect(engine).get_table_names()

    with Sandbox(planned(database, schema)).created(keep=False):
        assert ORDERS in mq.admin.topics()

    assert mq.admin.topics() == []
    assert inspect(engine).get_table_names() == before


@BOTH
def test_a_queue_with_topics_is_refused_and_not_touched(database: DatabaseUnderTest, engine: Engine, mq: MQ) -> None:
    mq.create_topic("theirs")
    before = inspect(engine).get_table_names()
    place = Sandbox(planned(database, "public" if database.is_postgres else None))

    with pytest.raises(SandboxTakenError, match="'theirs'"), place.created(keep=False):
        pytest.fail("it was made")

    assert mq.admin.topics() == ["theirs"]
    assert inspect(engine).get_table_names() == before


def test_a_file_of_its_own_is_removed(tmp_path: Path) -> None:
    plan = Plan.of(None, None, "abc", tmp_path)

    with Sandbox(plan).created(keep=False):
        assert list(tmp_path.glob("verify.db*"))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nonsense", InvalidURLError),
        ("postgresql://nobody:secret@127.0.0.1:1/nowhere", DatabaseUnavailableError),
        ("sqlite:////nowhere/at/all.db", DatabaseUnavailableError),
    ],
)
def test_a_database_that_cannot_be_reached_is_told_as_such(
    url: str, error: type[SqlmqError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlmq.database.retrying._RETRY_SECONDS", 0.1)

    with pytest.raises(error) as caught, Sandbox(Plan.of(url, None, "abc", tmp_path)).created(keep=False):
        pytest.fail("it was made")

    assert "secret" not in str(caught.value)
