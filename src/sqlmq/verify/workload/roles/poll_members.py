"""Group members that read by lease: with ``poll``, with ``consume``, by iteration, and in an event loop.

They commit by the next poll, or with ``commit``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from sqlmq.errors import ConsumerClosedError, SqlmqError
from sqlmq.verify.workload.payloads import delivered_entries
from sqlmq.verify.workload.recorder import LogEventHandler, recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlmq.aio.consumer import AsyncConsumer
    from sqlmq.aio.mq import AsyncMQ
    from sqlmq.consumer.consumer import Consumer
    from sqlmq.model.message import ReceivedMessage
    from sqlmq.mq import MQ
    from sqlmq.verify.history import Delivered
    from sqlmq.verify.workload.processes import RoleProcess

_TIMEOUT_SECONDS = 0.2
_RETRY_SECONDS = 0.05
_COMMIT_SHARE, _LEAVE_UNFINISHED_SHARE = 0.4, 0.3
_DRAIN_CHECK_SECONDS = 0.2


class MemberRecorder:
    """Records what happens to one consumer."""

    def __init__(self, process: RoleProcess, consumer: Consumer | AsyncConsumer) -> None:
        self._process = process
        self._consumer = consumer
        self._owned: set[int] = set()
        self._next: dict[int, int] = {}
        self._is_fenced = False
        self._seen_at = time.monotonic_ns()
        self.warnings = 0
        """How often the library logged a problem."""
        self.fields: dict[str, object] = {"group": consumer.group, "topic": consumer.topic}
        self._log_handler = LogEventHandler(self._on_log_event)
        logging.getLogger("sqlmq").addHandler(self._log_handler)

    def close(self) -> None:
        """Stop listening to the library's log."""
        logging.getLogger("sqlmq").removeHandler(self._log_handler)

    @property
    def owned(self) -> list[int]:
        """The partitions that the consumer believes to own."""
        return list(self._consumer.partitions)

    def record_assignment(self) -> None:
        """Record which partitions were assigned and lost since the last call."""
        self._seen_at = time.monotonic_ns()
        owned = set(self._consumer.partitions)
        lost = "fenced" if self._is_fenced else "revoked"
        self._is_fenced = False
        for partition in sorted(self._owned - owned):
            self._next.pop(partition, None)
            self._process.recorder.note(lost, **self.fields, partition=partition)
        for partition in sorted(owned - self._owned):
            self._process.recorder.note("assigned", **self.fields, partition=partition)
        self._owned = owned

    def received(self, messages: Sequence[ReceivedMessage]) -> list[Delivered]:
        """Remember the positions behind *messages*, and return the history's entries for them."""
        entries = delivered_entries(messages)
        for one in entries:
            self._next[one.partition] = one.offset + 1
        return entries

    def record_done(self, messages: Sequence[ReceivedMessage]) -> None:
        """Record that *messages* were handled."""
        offsets: dict[int, list[int]] = defaultdict(list)
        for one in delivered_entries(messages):
            offsets[one.partition].append(one.offset)
        for partition, those in offsets.items():
            self._process.recorder.note("done", **self.fields, partition=partition, offsets=those)

    def committed_positions(self, warnings: int) -> dict[str, object]:
        """Return what a successful commit has committed; nothing if there was a problem since *warnings* were counted."""
        if self.warnings != warnings:
            return {}
        owned = set(self._consumer.partitions)
        return {"positions": {partition: to for partition, to in self._next.items() if partition in owned}}

    def _on_log_event(self, event: str, log_fields: dict[str, object]) -> None:
        """Record what the library has logged."""
        if event == "message given up":
            entries = {
                "partition": log_fields["partition"],
                "offsets": [log_fields["offset"]],
                "attempts": log_fields.get("attempts"),
            }
            self._process.recorder.note("dead", **self.fields, **entries)
        elif event not in ("partitions changed", "member without partition", "attempt failed", "batch failed"):
            self.warnings += 1
            self._next.clear()
            if event in ("fenced", "membership lost"):
                self._is_fenced = True
                self._process.recorder.note("fenced", **self.fields)
                # The member learns of it late: the partition was lost at some time after the last check.
                self._process.note_stall(self._seen_at - round(self._process.plan.lease_seconds * 1e9), 0.0)


def consume(process: RoleProcess) -> None:
    """Read as a member until the process should end."""
    loops = (_poll, _one_by_one, _loop)
    if process.role.variant % 4 == 3 and process.may_use_asyncio():
        asyncio.run(_consume_async(process))
        return
    with process.open_mq() as mq, open_member(process, mq) as (consumer, member):
        with ending_when_drained(process, mq):
            loops[process.role.variant % 4 % 3](process, consumer, member)
        with recorded(process.recorder, "close", **member.fields):
            consumer.close()


@contextlib.contextmanager
def open_member(process: RoleProcess, mq: MQ) -> Iterator[tuple[Consumer, MemberRecorder]]:
    """Open a consumer for the process's role; retry until the database is available."""
    consumer = None
    while consumer is None:
        try:
            consumer = mq.consumer(process.role.topic, process.role.group or "", name=process.name)
        except SqlmqError:
            if not process.is_active:
                raise
            process.wait(_RETRY_SECONDS)
    member = MemberRecorder(process, consumer)
    try:
        yield consumer, member
    finally:
        member.close()


async def open_async_consumer(process: RoleProcess, mq: AsyncMQ) -> AsyncConsumer:
    """Open a consumer for the process's role in an event loop; retry until the database is available."""
    while True:
        try:
            return await mq.consumer(process.role.topic, process.role.group or "", name=process.name)
        except SqlmqError:
            if not process.is_active:
                raise
            await asyncio.sleep(_RETRY_SECONDS)


@contextlib.contextmanager
def ending_when_drained(process: RoleProcess, mq: MQ) -> Iterator[None]:
    """End a draining process once its group has read everything, and record whether it has."""
    if not process.role.drains:
        yield
        return
    with recorded(process.recorder, "drain", group=process.role.group, topic=process.role.topic):
        drained = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process, mq, drained), daemon=True)
        watcher.start()
        yield
        watcher.join()
        if not drained.is_set():
            message = f"{process.role.group} was not drained in time."
            raise TimeoutError(message)


def _watch(process: RoleProcess, mq: MQ, drained: threading.Event) -> None:
    while process.is_active:
        with contextlib.suppress(SqlmqError):
            if _is_drained(process, mq):
                drained.set()
                process.request_end()
        process.wait(_DRAIN_CHECK_SECONDS)


def _is_drained(process: RoleProcess, mq: MQ) -> bool:
    """Whether no message is unread, delayed or waiting for another attempt."""
    topic, group = process.role.topic, process.role.group or ""
    if mq.admin.delayed(topic) or mq.admin.describe_group(topic, group).lag:
        return False
    parked = mq.admin.parked(topic, group)
    return not (parked.list("waiting", limit=1) or parked.list("held", limit=1))


def handling_seconds(process: RoleProcess, *, in_transaction: bool = False) -> float:
    """Return how long a handler takes: mostly short, sometimes long enough for a fault in between.

    In a transaction on SQLite it is shorter, because the transaction blocks all other writers.
    """
    if process.role.drains:
        return 0.0
    most = process.plan.handling_seconds / (10 if in_transaction and not process.plan.is_postgres else 1)
    return process.random.choice([0.0, 0.0, 0.0, most / 10, most / 5, most]) * process.random.random()


def _poll_and_handle(
    process: RoleProcess, member: MemberRecorder, poll: Callable[[], list[ReceivedMessage]]
) -> list[ReceivedMessage] | None:
    """Poll and handle the messages; return None if the poll failed."""
    messages: list[ReceivedMessage] = []
    with (
        process.noting_stalls(_TIMEOUT_SECONDS),
        recorded(process.recorder, "poll", **member.fields, owned=member.owned) as operation,
    ):
        messages = poll()
        operation.add(delivered=member.received(messages), owned=member.owned)
    member.record_assignment()
    if not operation.is_ok:
        process.wait(_RETRY_SECONDS)
        return None
    process.wait(handling_seconds(process) if messages else 0.0)
    return messages


def _poll(process: RoleProcess, consumer: Consumer, member: MemberRecorder) -> None:
    while process.is_active:
        at_most = process.random.randint(1, 40)
        messages = _poll_and_handle(process, member, lambda: consumer.poll(at_most, timeout=_TIMEOUT_SECONDS))  # noqa: B023 - called in this iteration
        _acknowledge(process, consumer, member, messages)


def _one_by_one(process: RoleProcess, consumer: Consumer, member: MemberRecorder) -> None:
    def one() -> list[ReceivedMessage]:
        try:
            return [consumer.consume(timeout=_TIMEOUT_SECONDS)]
        except TimeoutError:
            return []

    while process.is_active:
        _acknowledge(process, consumer, member, _poll_and_handle(process, member, one))


def _loop(process: RoleProcess, consumer: Consumer, member: MemberRecorder) -> None:
    """Iterate over the consumer until another thread closes it."""
    closer = threading.Thread(target=_close_at_end, args=(process, consumer), daemon=True)
    messages = consumer.messages()  # before the closer may close it
    closer.start()
    while process.is_active:
        got = _poll_and_handle(process, member, lambda: [one for one in [next(messages, None)] if one is not None])  # noqa: B023 - called in this iteration
        if got is None:
            try:
                messages = consumer.messages()  # a generator that has raised is exhausted
            except ConsumerClosedError:
                break
        elif not got:
            break
        _acknowledge(process, consumer, member, got)
    process.request_end()
    closer.join()


def _close_at_end(process: RoleProcess, consumer: Consumer) -> None:
    while process.is_active:
        process.wait(1.0)
    with contextlib.suppress(SqlmqError):
        consumer.close()


def _acknowledge(
    process: RoleProcess, consumer: Consumer, member: MemberRecorder, messages: list[ReceivedMessage] | None
) -> None:
    if not messages or (not process.is_active and process.random.random() < _LEAVE_UNFINISHED_SHARE):
        return
    member.record_done(messages)
    if process.is_active and process.random.random() >= _COMMIT_SHARE:
        return
    with recorded(process.recorder, "commit", **member.fields) as operation:
        warnings = member.warnings
        consumer.commit()
        operation.add(**member.committed_positions(warnings))
    member.record_assignment()


async def _consume_async(process: RoleProcess) -> None:
    async with process.open_async_mq() as mq:
        consumer = await open_async_consumer(process, mq)
        member = MemberRecorder(process, consumer)
        try:
            await _poll_async(process, consumer, member)
            with recorded(process.recorder, "close", **member.fields):
                await consumer.close()
        finally:
            member.close()


async def _poll_async(process: RoleProcess, consumer: AsyncConsumer, member: MemberRecorder) -> None:
    while process.is_active:
        messages: list[ReceivedMessage] = []
        with (
            process.noting_stalls(_TIMEOUT_SECONDS),
            recorded(process.recorder, "poll", **member.fields, owned=member.owned) as operation,
        ):
            messages = await consumer.poll(process.random.randint(1, 40), timeout=_TIMEOUT_SECONDS)
            operation.add(delivered=member.received(messages), owned=member.owned)
        member.record_assignment()
        if not messages:
            await asyncio.sleep(0.0 if operation.is_ok else _RETRY_SECONDS)
            continue
        await asyncio.sleep(handling_seconds(process))
        if process.is_ending and process.random.random() < _LEAVE_UNFINISHED_SHARE:
            return
        member.record_done(messages)
        if process.random.random() < _COMMIT_SHARE:
            with recorded(process.recorder, "commit", **member.fields) as operation:
                warnings = member.warnings
                await consumer.commit()
                operation.add(**member.committed_positions(warnings))
            member.record_assignment()
