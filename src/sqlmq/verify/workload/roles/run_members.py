"""Members of groups that read by ``consumer.run``, with handlers that fail now and then, or always.

So messages are set aside, tried again, and given up; one at a time or in batches, in transactions or not, in threads or in
an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import zlib
from typing import TYPE_CHECKING

from sqlmq.model.retry import Retry
from sqlmq.verify.workload.application_tables import EFFECT, row
from sqlmq.verify.workload.payloads import delivered, id_of
from sqlmq.verify.workload.recorder import AbortedError, Attempt, surviving
from sqlmq.verify.workload.roles.poll_members import Member, async_consumer_of, draining, handling_seconds, member_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Insert
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sqlmq.model.message import Message
    from sqlmq.verify.workload.processes import Life

MAX_ATTEMPTS = 3

_RETRY = Retry(max_attempts=MAX_ATTEMPTS, backoff_seconds=0.05, max_delay_seconds=0.2)
_FAILING = 0.04
_HOPELESS_ONE_IN = 100
_BATCH = 8


def run(life: Life) -> None:
    """Be a member until the life is over; handle messages as they are."""
    _run(life, in_transactions=False)


def run_in_transactions(life: Life) -> None:
    """Be a member until the life is over; handle messages in transactions, with effects."""
    _run(life, in_transactions=True)


def _run(life: Life, *, in_transactions: bool) -> None:
    if life.role.variant % 3 == 2 and life.may_await(in_transactions=in_transactions):
        asyncio.run(_run_async(life, in_transactions=in_transactions))
        return
    with life.open() as mq, member_of(life, mq) as (consumer, member), draining(life, mq):
        handling = _Handling(life, member, in_transactions=in_transactions)
        with _stopping(life, consumer.stop), surviving():
            consumer.run(
                handling.handle,
                transaction=in_transactions,
                batch_size=_BATCH if life.role.variant % 3 == 1 else None,
                concurrency=2,
                retry=_RETRY,
            )


async def _run_async(life: Life, *, in_transactions: bool) -> None:
    async with life.open_async() as mq:
        consumer = await async_consumer_of(life, mq)
        member = Member(life, consumer)
        handling = _Handling(life, member, in_transactions=in_transactions)
        with _stopping(life, consumer.stop), surviving():
            await consumer.run(handling.handle_async, transaction=in_transactions, concurrency=3, retry=_RETRY)
        member.forget()


@contextlib.contextmanager
def _stopping(life: Life, stop: Callable[[], None]) -> Iterator[None]:
    """Call *stop* when the life is over, which ends with the block."""

    def wait() -> None:
        while life.goes_on:
            life.pause(60.0)
        stop()

    stopper = threading.Thread(target=wait, daemon=True)
    stopper.start()
    try:
        yield
    finally:
        life.end()
        stopper.join()


class _Handling:
    """The handlers of one member."""

    def __init__(self, life: Life, member: Member, *, in_transactions: bool) -> None:
        self._life = life
        self._member = member
        self._in_transactions = in_transactions

    def handle(self, given: Message | list[Message], session: Session | None = None) -> None:
        """Handle what a worker was given."""
        messages = given if isinstance(given, list) else [given]
        with self._told(messages):
            self._fail_at_times(messages)
            if session is not None:
                for effect in self._effects(messages):
                    session.execute(effect)
            time.sleep(handling_seconds(self._life, in_transaction=self._in_transactions))
            self._fail_at_times(messages)

    async def handle_async(self, message: Message, session: AsyncSession | None = None) -> None:
        """Handle *message* in an event loop."""
        with self._told([message]):
            self._fail_at_times([message])
            if session is not None:
                for effect in self._effects([message]):
                    await session.execute(effect)
            await asyncio.sleep(handling_seconds(self._life, in_transaction=self._in_transactions))
            self._fail_at_times([message])

    @contextlib.contextmanager
    def _told(self, messages: list[Message]) -> Iterator[None]:
        fields = {**self._member.whose, "delivered": delivered(messages)}
        if self._in_transactions:
            fields |= {"transaction": True, "effects": [id_of(message.value) for message in messages]}
        self._member.look()
        attempt = Attempt(self._life.recorder, "handle", fields)
        try:
            yield
        except BaseException as error:
            attempt.failed(error)
            raise
        attempt.succeeded()

    def _effects(self, messages: list[Message]) -> list[Insert]:
        group = self._life.role.group
        return [row(self._life.plan.schema, EFFECT, id_of(message.value) or "", group) for message in messages]

    def _fail_at_times(self, messages: list[Message]) -> None:
        is_hopeless = any(zlib.crc32((id_of(one.value) or "").encode()) % _HOPELESS_ONE_IN == 0 for one in messages)
        if is_hopeless or self._life.chosen.random() < _FAILING / 2:
            raise AbortedError
