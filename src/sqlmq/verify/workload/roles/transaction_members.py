"""Members of groups that read in ``consumer.transaction()``: effects, messages published, and the position, together.

Some of the transactions are rolled back at any step, some have a savepoint that is.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from sqlmq.verify.plan import COPIES, ORDERS
from sqlmq.verify.workload.application_tables import EFFECT, Step, Told, row
from sqlmq.verify.workload.payloads import Making, delivered, id_of
from sqlmq.verify.workload.recorder import AbortedError, Attempt, is_survived
from sqlmq.verify.workload.roles.poll_members import async_consumer_of, draining, handling_seconds, member_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Insert

    from sqlmq.aio.producer import AsyncProducer
    from sqlmq.aio.transaction import AsyncTransaction
    from sqlmq.consumer.transaction import Transaction
    from sqlmq.model.message import Message
    from sqlmq.producer.producer import Producer
    from sqlmq.verify.workload.processes import Life

_TIMEOUT_SECONDS = 0.3
_RECOVER_SECONDS = 0.05
_SENDING, _SENDING_BACK = 0.4, 0.05
_MOST = 20


class _Doing:
    """What one transaction is going to do: effects of what was delivered, messages sent, and where it is rolled back."""

    def __init__(self, life: Life, making: Making, messages: list[Message], began: int) -> None:
        chosen, plan, group = life.chosen, life.plan, life.role.group
        self._life = life
        self.effects = [id_of(message.value) or "" for message in messages]
        sends = chosen.randint(1, 3) if chosen.random() < _SENDING and not life.role.drains else 0
        back = ORDERS if chosen.random() < _SENDING_BACK and life.role.topic == ORDERS else COPIES
        self.steps = [Step(back, making.message()) for _ in range(sends)]
        self.undone: list[Step] = []
        if chosen.random() < plan.savepoint:
            self.undone = [Step(COPIES, making.message(), is_undone=True)]
        self.abort_at = chosen.randrange(3) if chosen.random() < plan.abort and not life.role.drains else None
        self.seconds = handling_seconds(life, in_transaction=True)
        told = Told.of([*self.undone, *self.steps])._asdict()
        fields: dict[str, object] = {
            "group": group,
            "topic": life.role.topic,
            "began": began,
            "delivered": delivered(messages),
            "effects": self.effects + [step.m for step in self.undone],
            **told,
        }
        if self.abort_at is not None:
            fields["abort"] = True
        self.attempt = Attempt(life.recorder, "txn", fields)

    def take(self, tx: Transaction, producers: Mapping[str, Producer]) -> None:
        """Do all of it; raise AbortedError where it is to be rolled back."""
        self._abort(0)
        if self.undone:
            with tx.session.begin_nested() as savepoint:
                for step in self.undone:
                    tx.session.execute(self._row(step.m))
                    producers[step.topic].produce(step.message, session=tx.session)
                savepoint.rollback()
        for m in self.effects:
            tx.session.execute(self._row(m))
        self._abort(1)
        self._life.pause(self.seconds)
        for step in self.steps:
            producers[step.topic].produce(step.message, session=tx.session)
        self._abort(2)

    async def take_async(self, tx: AsyncTransaction, producers: Mapping[str, AsyncProducer]) -> None:
        """As ``take``, in an event loop."""
        self._abort(0)
        if self.undone:
            async with tx.session.begin_nested() as savepoint:
                for step in self.undone:
                    await tx.session.execute(self._row(step.m))
                    await producers[step.topic].produce(step.message, session=tx.session)
                await savepoint.rollback()
        for m in self.effects:
            await tx.session.execute(self._row(m))
        self._abort(1)
        await asyncio.sleep(self.seconds)
        for step in self.steps:
            await producers[step.topic].produce(step.message, session=tx.session)
        self._abort(2)

    def _row(self, m: str) -> Insert:
        return row(self._life.plan.schema, EFFECT, m, self._life.role.group)

    def _abort(self, step: int) -> None:
        if step == self.abort_at:
            raise AbortedError


def transact(life: Life) -> None:
    """Be a member until the life is over."""
    if life.role.variant % 3 == 2 and life.may_await(in_transactions=True):
        asyncio.run(_transact_async(life))
        return
    making = Making(life.plan, life.name, life.chosen)
    with life.open() as mq, member_of(life, mq) as (consumer, _), draining(life, mq):
        producers = {topic: mq.producer(topic) for topic in (COPIES, ORDERS)}
        while life.goes_on:
            began, doing = time.monotonic_ns(), None
            try:
                with consumer.transaction(life.chosen.randint(1, _MOST), timeout=_TIMEOUT_SECONDS) as tx:
                    if tx.messages:
                        doing = _Doing(life, making, tx.messages, began)
                        doing.take(tx, producers)
            except BaseException as error:  # noqa: BLE001 - told, and raised again if it is not one to live with
                _failed(life, doing, error)
            else:
                _succeeded(life, doing, began)


async def _transact_async(life: Life) -> None:
    making = Making(life.plan, life.name, life.chosen)
    async with life.open_async() as mq:
        consumer = await async_consumer_of(life, mq)
        producers = {topic: await mq.producer(topic) for topic in (COPIES, ORDERS)}
        while life.goes_on:
            began, doing = time.monotonic_ns(), None
            try:
                async with consumer.transaction(life.chosen.randint(1, _MOST), timeout=_TIMEOUT_SECONDS) as tx:
                    if tx.messages:
                        doing = _Doing(life, making, tx.messages, began)
                        await doing.take_async(tx, producers)
            except BaseException as error:  # noqa: BLE001 - told, and raised again if it is not one to live with
                _failed(life, doing, error)
            else:
                _succeeded(life, doing, began)
        await consumer.close()


def _failed(life: Life, doing: _Doing | None, error: BaseException) -> None:
    """Tell that it was rolled back, or that nobody knows; raise *error* again if no application lives with it."""
    if doing is not None:
        doing.attempt.failed(error)
    if not is_survived(error):
        raise error
    if not isinstance(error, AbortedError):
        life.pause(_RECOVER_SECONDS)


def _succeeded(life: Life, doing: _Doing | None, began: int) -> None:
    """Tell that it was committed, with the messages there were, or without any."""
    if doing is None:
        life.note_stall(began, _TIMEOUT_SECONDS)
        whose: dict[str, object] = {"group": life.role.group, "topic": life.role.topic, "began": began, "delivered": []}
        Attempt(life.recorder, "txn", whose).succeeded()
    else:
        doing.attempt.succeeded()
