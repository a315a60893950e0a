"""Group members that run a handler, which fails sometimes, and always for some messages.

So messages are parked, retried and become dead letters: one by one or in batches, in transactions or not, in threads or
in an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import zlib
from typing import TYPE_CHECKING

from sqlmq.model.retry import Retry
from sqlmq.verify.workload.application_tables import EFFECT, insert_row
from sqlmq.verify.workload.payloads import delivered_entries, id_of
from sqlmq.verify.workload.recorder import AbortedError, RecordedOperation, tolerating_errors
from sqlmq.verify.workload.roles.poll_members import (
    MemberRecorder,
    ending_when_drained,
    handling_seconds,
    open_async_consumer,
    open_member,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Insert
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sqlmq.model.message import ReceivedMessage
    from sqlmq.verify.workload.processes import RoleProcess

MAX_ATTEMPTS = 3

_RETRY = Retry(max_attempts=MAX_ATTEMPTS, backoff_seconds=0.05, max_delay_seconds=0.2)
_FAILURE_SHARE = 0.04
_ALWAYS_FAILS_ONE_IN = 100
_BATCH = 8


def run(process: RoleProcess) -> None:
    """Run a handler until the process should end."""
    _run(process, in_transactions=False)


def run_in_transactions(process: RoleProcess) -> None:
    """Run a handler in transactions, with effects, until the process should end."""
    _run(process, in_transactions=True)


def _run(process: RoleProcess, *, in_transactions: bool) -> None:
    if process.role.variant % 3 == 2 and process.may_use_asyncio(in_transactions=in_transactions):
        asyncio.run(_run_async(process, in_transactions=in_transactions))
        return
    with process.open_mq() as mq, open_member(process, mq) as (consumer, member), ending_when_drained(process, mq):
        handler = _RecordedHandler(process, member, in_transactions=in_transactions)
        with _stopping_at_end(process, consumer.stop), tolerating_errors():
            consumer.run(
                handler.handle,
                transaction=in_transactions,
                batch_size=_BATCH if process.role.variant % 3 == 1 else None,
                concurrency=2,
                retry=_RETRY,
            )


async def _run_async(process: RoleProcess, *, in_transactions: bool) -> None:
    async with process.open_async_mq() as mq:
        consumer = await open_async_consumer(process, mq)
        member = MemberRecorder(process, consumer)
        handler = _RecordedHandler(process, member, in_transactions=in_transactions)
        with _stopping_at_end(process, consumer.stop), tolerating_errors():
            await consumer.run(handler.handle_async, transaction=in_transactions, concurrency=3, retry=_RETRY)
        member.close()


@contextlib.contextmanager
def _stopping_at_end(process: RoleProcess, stop: Callable[[], None]) -> Iterator[None]:
    """Call *stop* when the process should end. The end of the block ends the process."""

    def wait() -> None:
        while process.is_active:
            process.wait(60.0)
        stop()

    stopper = threading.Thread(target=wait, daemon=True)
    stopper.start()
    try:
        yield
    finally:
        process.request_end()
        stopper.join()


class _RecordedHandler:
    """The handler of one member, whose calls are recorded."""

    def __init__(self, process: RoleProcess, member: MemberRecorder, *, in_transactions: bool) -> None:
        self._process = process
        self._member = member
        self._in_transactions = in_transactions

    def handle(self, given: ReceivedMessage | list[ReceivedMessage], session: Session | None = None) -> None:
        """Handle a message or a batch."""
        messages = given if isinstance(given, list) else [given]
        with self._recorded(messages):
            self._maybe_fail(messages)
            if session is not None:
                for effect in self._effects(messages):
                    session.execute(effect)
            time.sleep(handling_seconds(self._process, in_transaction=self._in_transactions))
            self._maybe_fail(messages)

    async def handle_async(self, message: ReceivedMessage, session: AsyncSession | None = None) -> None:
        """Handle *message* in an event loop."""
        with self._recorded([message]):
            self._maybe_fail([message])
            if session is not None:
                for effect in self._effects([message]):
                    await session.execute(effect)
            await asyncio.sleep(handling_seconds(self._process, in_transaction=self._in_transactions))
            self._maybe_fail([message])

    @contextlib.contextmanager
    def _recorded(self, messages: list[ReceivedMessage]) -> Iterator[None]:
        fields = {**self._member.fields, "delivered": delivered_entries(messages)}
        if self._in_transactions:
            fields |= {"transaction": True, "effects": [id_of(message.value) for message in messages]}
        self._member.record_assignment()
        operation = RecordedOperation(self._process.recorder, "handle", fields)
        try:
            yield
        except BaseException as error:
            operation.failed(error)
            raise
        operation.succeeded()

    def _effects(self, messages: list[ReceivedMessage]) -> list[Insert]:
        group = self._process.role.group
        return [
            insert_row(self._process.plan.schema, EFFECT, id_of(message.value) or "", group) for message in messages
        ]

    def _maybe_fail(self, messages: list[ReceivedMessage]) -> None:
        always_fails = any(
            zlib.crc32((id_of(one.value) or "").encode()) % _ALWAYS_FAILS_ONE_IN == 0 for one in messages
        )
        if always_fails or self._process.random.random() < _FAILURE_SHARE / 2:
            raise AbortedError
