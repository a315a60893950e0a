"""Transactions that hold claims are told of on Postgres, and nothing on SQLite, where nobody can know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from sqlmq import Message
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest


def test_a_transaction_that_holds_a_claim_is_told_on_postgres(
    mq: MQ, engine: Engine, database: DatabaseUnderTest
) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce(Message(b"1"))
    consumer = mq.consumer("orders", "billing")
    prefix = f"{database.schema}." if database.schema else ""
    back = "100000000" if engine.dialect.name == "sqlite" else "interval '100 seconds'"
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {prefix}sqlmq_message SET created_at = created_at - {back}"))

    with consumer.transaction(timeout=PATIENCE_SECONDS):
        kinds = [one.code for one in mq.admin.diagnose_group("orders", "billing", stuck_seconds=0.001)]

    assert ("held-claim" in kinds) is (engine.dialect.name == "postgresql")
