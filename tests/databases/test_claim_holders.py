"""Transactions that hold claims are told of on Postgres, and nothing on SQLite, where nobody can know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq import Message
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest
    from tests.support.queue_state import QueueState


def test_a_transaction_that_holds_a_claim_is_told_on_postgres(
    mq: MQ, database: DatabaseUnderTest, queue_state: QueueState
) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce(Message(b"1"))
    consumer = mq.consumer("orders", "billing")
    queue_state.make_older(100)

    with consumer.transaction(timeout=PATIENCE_SECONDS):
        kinds = [one.code for one in mq.admin.diagnose_group("orders", "billing", stuck_seconds=0.001)]

    assert ("held-claim" in kinds) is database.is_postgres
