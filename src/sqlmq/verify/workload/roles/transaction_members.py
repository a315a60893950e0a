"""Group members that read in ``consumer.transaction()``: effects, sent messages and the position commit together.

Some transactions are rolled back at a random step; some contain a savepoint that is rolled back.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from sqlmq.verify.plan import COPIES, ORDERS
from sqlmq.verify.workload.application_tables import EFFECT, TransactionSend, TransactionSends, insert_row
from sqlmq.verify.workload.payloads import MessageFactory, delivered_entries, id_of
from sqlmq.verify.workload.recorder import AbortedError, RecordedOperation, is_tolerable
from sqlmq.verify.workload.roles.poll_members import (
    ending_when_drained,
    handling_seconds,
    open_async_consumer,
    open_member,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Insert

    from sqlmq.aio.producer import AsyncProducer
    from sqlmq.aio.transaction import AsyncTransaction
    from sqlmq.consumer.transaction import Transaction
    from sqlmq.model.message import ReceivedMessage
    from sqlmq.producer.producer import Producer
    from sqlmq.verify.workload.processes import RoleProcess

_TIMEOUT_SECONDS = 0.3
_RETRY_SECONDS = 0.05
_SEND_SHARE, _SEND_BACK_SHARE = 0.4, 0.05
_MAX_MESSAGES = 20


class _TransactionPlan:
    """The content of one transaction: effects of its messages, messages to send, and where it is rolled back."""

    def __init__(
        self, process: RoleProcess, factory: MessageFactory, messages: list[ReceivedMessage], began: int
    ) -> None:
        random_, plan, group = process.random, process.plan, process.role.group
        self._process = process
        self.effects = [id_of(message.value) or "" for message in messages]
        count = random_.randint(1, 3) if random_.random() < _SEND_SHARE and not process.role.drains else 0
        back = ORDERS if random_.random() < _SEND_BACK_SHARE and process.role.topic == ORDERS else COPIES
        self.sends = [TransactionSend(back, factory.message()) for _ in range(count)]
        self.undone: list[TransactionSend] = []
        if random_.random() < plan.savepoint:
            self.undone = [TransactionSend(COPIES, factory.message(), is_undone=True)]
        self.abort_at = random_.randrange(3) if random_.random() < plan.abort and not process.role.drains else None
        self.seconds = handling_seconds(process, in_transaction=True)
        entries = TransactionSends.of([*self.undone, *self.sends])._asdict()
        fields: dict[str, object] = {
            "group": group,
            "topic": process.role.topic,
            "began": began,
            "delivered": delivered_entries(messages),
            "effects": self.effects + [send.m for send in self.undone],
            **entries,
        }
        if self.abort_at is not None:
            fields["abort"] = True
        self.operation = RecordedOperation(process.recorder, "txn", fields)

    def execute(self, tx: Transaction, producers: Mapping[str, Producer]) -> None:
        """Execute the plan. Raises AbortedError where the transaction is to be rolled back."""
        self._abort(0)
        if self.undone:
            with tx.session.begin_nested() as savepoint:
                for send in self.undone:
                    tx.session.execute(self._row(send.m))
                    producers[send.topic].produce(send.message, session=tx.session)
                savepoint.rollback()
        for m in self.effects:
            tx.session.execute(self._row(m))
        self._abort(1)
        self._process.wait(self.seconds)
        for send in self.sends:
            producers[send.topic].produce(send.message, session=tx.session)
        self._abort(2)

    async def execute_async(self, tx: AsyncTransaction, producers: Mapping[str, AsyncProducer]) -> None:
        """Execute the plan in an event loop."""
        self._abort(0)
        if self.undone:
            async with tx.session.begin_nested() as savepoint:
                for send in self.undone:
                    await tx.session.execute(self._row(send.m))
                    await producers[send.topic].produce(send.message, session=tx.session)
                await savepoint.rollback()
        for m in self.effects:
            await tx.session.execute(self._row(m))
        self._abort(1)
        await asyncio.sleep(self.seconds)
        for send in self.sends:
            await producers[send.topic].produce(send.message, session=tx.session)
        self._abort(2)

    def _row(self, m: str) -> Insert:
        return insert_row(self._process.plan.schema, EFFECT, m, self._process.role.group)

    def _abort(self, step: int) -> None:
        if step == self.abort_at:
            raise AbortedError


def transact(process: RoleProcess) -> None:
    """Read in transactions until the process should end."""
    if process.role.variant % 3 == 2 and process.may_use_asyncio(in_transactions=True):
        asyncio.run(_transact_async(process))
        return
    factory = MessageFactory(process.plan, process.name, process.random)
    with process.open_mq() as mq, open_member(process, mq) as (consumer, _), ending_when_drained(process, mq):
        producers = {topic: mq.producer(topic) for topic in (COPIES, ORDERS)}
        while process.is_active:
            began, transaction = time.monotonic_ns(), None
            try:
                with consumer.transaction(
                    max_messages=process.random.randint(1, _MAX_MESSAGES), timeout=_TIMEOUT_SECONDS
                ) as tx:
                    if tx.messages:
                        transaction = _TransactionPlan(process, factory, tx.messages, began)
                        transaction.execute(tx, producers)
            except BaseException as error:  # noqa: BLE001 - recorded, and raised again unless it is expected
                _record_failure(process, transaction, error)
            else:
                _record_success(process, transaction, began)


async def _transact_async(process: RoleProcess) -> None:
    factory = MessageFactory(process.plan, process.name, process.random)
    async with process.open_async_mq() as mq:
        consumer = await open_async_consumer(process, mq)
        producers = {topic: await mq.producer(topic) for topic in (COPIES, ORDERS)}
        while process.is_active:
            began, transaction = time.monotonic_ns(), None
            try:
                async with consumer.transaction(
                    max_messages=process.random.randint(1, _MAX_MESSAGES), timeout=_TIMEOUT_SECONDS
                ) as tx:
                    if tx.messages:
                        transaction = _TransactionPlan(process, factory, tx.messages, began)
                        await transaction.execute_async(tx, producers)
            except BaseException as error:  # noqa: BLE001 - recorded, and raised again unless it is expected
                _record_failure(process, transaction, error)
            else:
                _record_success(process, transaction, began)
        await consumer.close()


def _record_failure(process: RoleProcess, transaction: _TransactionPlan | None, error: BaseException) -> None:
    """Record that the transaction was rolled back, or may have been; raise *error* again unless it is expected."""
    if transaction is not None:
        transaction.operation.failed(error)
    if not is_tolerable(error):
        raise error
    if not isinstance(error, AbortedError):
        process.wait(_RETRY_SECONDS)


def _record_success(process: RoleProcess, transaction: _TransactionPlan | None, began: int) -> None:
    """Record that the transaction was committed, also if it had no messages."""
    if transaction is None:
        process.note_stall(began, _TIMEOUT_SECONDS)
        fields: dict[str, object] = {
            "group": process.role.group,
            "topic": process.role.topic,
            "began": began,
            "delivered": [],
        }
        RecordedOperation(process.recorder, "txn", fields).succeeded()
    else:
        transaction.operation.succeeded()
