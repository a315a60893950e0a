"""Members of groups that read by lease: by ``poll``, by ``consume``, in a loop, and in an event loop.

They commit by asking for more, or by ``commit``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from sqlmq.errors import SqlmqError
from sqlmq.verify.workload.payloads import delivered
from sqlmq.verify.workload.recorder import Listening, attempted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlmq.aio.consumer import AsyncConsumer
    from sqlmq.aio.mq import AsyncMQ
    from sqlmq.consumer.consumer import Consumer
    from sqlmq.model.message import Message
    from sqlmq.mq import MQ
    from sqlmq.verify.history import Delivered
    from sqlmq.verify.workload.processes import Life

_TIMEOUT_SECONDS = 0.2
_RECOVER_SECONDS = 0.05
_COMMITTING, _LEAVING_UNFINISHED = 0.4, 0.3
_LOOK_SECONDS = 0.2


class Member:
    """What the history is told of one consumer."""

    def __init__(self, life: Life, consumer: Consumer | AsyncConsumer) -> None:
        self._life = life
        self._consumer = consumer
        self._owned: set[int] = set()
        self._next: dict[int, int] = {}
        self._is_fenced = False
        self._seen_at = time.monotonic_ns()
        self.troubles = 0
        """How often the library warned of something."""
        self.whose: dict[str, object] = {"group": consumer.group, "topic": consumer.topic}
        self._listening = Listening(self._hear)
        logging.getLogger("sqlmq").addHandler(self._listening)

    def forget(self) -> None:
        """Hear no more."""
        logging.getLogger("sqlmq").removeHandler(self._listening)

    @property
    def owned(self) -> list[int]:
        """The partitions it owns, as far as it knows."""
        return list(self._consumer.partitions)

    def look(self) -> None:
        """Tell what it has got and lost since the last time."""
        self._seen_at = time.monotonic_ns()
        owned = set(self._consumer.partitions)
        lost = "fenced" if self._is_fenced else "revoked"
        self._is_fenced = False
        for partition in sorted(self._owned - owned):
            self._next.pop(partition, None)
            self._life.recorder.note(lost, **self.whose, partition=partition)
        for partition in sorted(owned - self._owned):
            self._life.recorder.note("assigned", **self.whose, partition=partition)
        self._owned = owned

    def got(self, messages: Sequence[Message]) -> list[Delivered]:
        """Note that it got *messages*, and return what the history is told of that."""
        told = delivered(messages)
        for one in told:
            self._next[one.partition] = one.offset + 1
        return told

    def done(self, messages: Sequence[Message]) -> None:
        """Tell that *messages* were handled."""
        offsets: dict[int, list[int]] = defaultdict(list)
        for one in delivered(messages):
            offsets[one.partition].append(one.offset)
        for partition, those in offsets.items():
            self._life.recorder.note("done", **self.whose, partition=partition, offsets=those)

    def positions(self, troubles: int) -> dict[str, object]:
        """What is committed by a commit that went well, if nothing has happened since there were so many *troubles*."""
        if self.troubles != troubles:
            return {}
        owned = set(self._consumer.partitions)
        return {"positions": {partition: to for partition, to in self._next.items() if partition in owned}}

    def _hear(self, event: str, facts: dict[str, object]) -> None:
        """The library has logged something."""
        if event == "message given up":
            told = {"partition": facts["partition"], "offsets": [facts["offset"]], "attempts": facts.get("attempts")}
            self._life.recorder.note("dead", **self.whose, **told)
        elif event not in ("partitions changed", "member without partition", "attempt failed", "batch failed"):
            self.troubles += 1
            self._next.clear()
            if event in ("fenced", "membership lost"):
                self._is_fenced = True
                self._life.recorder.note("fenced", **self.whose)
                # It learns of that late: it was lost at some time since it was last seen to own something.
                self._life.note_stall(self._seen_at - round(self._life.plan.lease_seconds * 1e9), 0.0)


def consume(life: Life) -> None:
    """Be a member until the life is over."""
    ways = (_poll, _one_by_one, _loop)
    if life.role.variant % 4 == 3 and life.may_await():
        asyncio.run(_consume_async(life))
        return
    with life.open() as mq, member_of(life, mq) as (consumer, member):
        with draining(life, mq):
            ways[life.role.variant % 4 % 3](life, consumer, member)
        with attempted(life.recorder, "close", **member.whose):
            consumer.close()


@contextlib.contextmanager
def member_of(life: Life, mq: MQ) -> Iterator[tuple[Consumer, Member]]:
    """A consumer for the life's role, made as soon as the database is there."""
    consumer = None
    while consumer is None:
        try:
            consumer = mq.consumer(life.role.topic, life.role.group or "", name=life.name)
        except SqlmqError:
            if not life.goes_on:
                raise
            life.pause(_RECOVER_SECONDS)
    member = Member(life, consumer)
    try:
        yield consumer, member
    finally:
        member.forget()


async def async_consumer_of(life: Life, mq: AsyncMQ) -> AsyncConsumer:
    """As ``member_of``, for an event loop."""
    while True:
        try:
            return await mq.consumer(life.role.topic, life.role.group or "", name=life.name)
        except SqlmqError:
            if not life.goes_on:
                raise
            await asyncio.sleep(_RECOVER_SECONDS)


@contextlib.contextmanager
def draining(life: Life, mq: MQ) -> Iterator[None]:
    """End the life once everything is read, if it is there for that; tell whether it was."""
    if not life.role.drains:
        yield
        return
    with attempted(life.recorder, "drain", group=life.role.group, topic=life.role.topic):
        drained = threading.Event()
        watcher = threading.Thread(target=_watch, args=(life, mq, drained), daemon=True)
        watcher.start()
        yield
        watcher.join()
        if not drained.is_set():
            message = f"{life.role.group} was not done in time."
            raise TimeoutError(message)


def _watch(life: Life, mq: MQ, drained: threading.Event) -> None:
    while life.goes_on:
        with contextlib.suppress(SqlmqError):
            if _is_drained(life, mq):
                drained.set()
                life.end()
        life.pause(_LOOK_SECONDS)


def _is_drained(life: Life, mq: MQ) -> bool:
    """Whether nothing is left to be read, moved into the log, or tried again."""
    topic, group = life.role.topic, life.role.group or ""
    if mq.admin.delayed(topic) or mq.admin.describe_group(topic, group).lag:
        return False
    parked = mq.admin.parked(topic, group)
    return not (parked.list("waiting", limit=1) or parked.list("held", limit=1))


def handling_seconds(life: Life, *, in_transaction: bool = False) -> float:
    """How long a handler takes: mostly short, now and then long enough for something to happen meanwhile.

    A transaction on SQLite keeps all others from writing, so there it is shorter.
    """
    if life.role.drains:
        return 0.0
    most = life.plan.handling_seconds / (10 if in_transaction and not life.plan.is_postgres else 1)
    return life.chosen.choice([0.0, 0.0, 0.0, most / 10, most / 5, most]) * life.chosen.random()


def _ask(life: Life, member: Member, ask: Callable[[], list[Message]]) -> list[Message] | None:
    """Ask for messages, and handle them; None if that failed."""
    messages: list[Message] = []
    with (
        life.noticing_stalls(_TIMEOUT_SECONDS),
        attempted(life.recorder, "poll", **member.whose, owned=member.owned) as attempt,
    ):
        messages = ask()
        attempt.tell(delivered=member.got(messages), owned=member.owned)
    member.look()
    if not attempt.is_ok:
        life.pause(_RECOVER_SECONDS)
        return None
    life.pause(handling_seconds(life) if messages else 0.0)
    return messages


def _poll(life: Life, consumer: Consumer, member: Member) -> None:
    while life.goes_on:
        at_most = life.chosen.randint(1, 40)
        messages = _ask(life, member, lambda: consumer.poll(at_most, timeout=_TIMEOUT_SECONDS))  # noqa: B023 - called at once
        _finish(life, consumer, member, messages)


def _one_by_one(life: Life, consumer: Consumer, member: Member) -> None:
    def one() -> list[Message]:
        try:
            return [consumer.consume(timeout=_TIMEOUT_SECONDS)]
        except TimeoutError:
            return []

    while life.goes_on:
        _finish(life, consumer, member, _ask(life, member, one))


def _loop(life: Life, consumer: Consumer, member: Member) -> None:
    """Have messages come in a loop, which ends by closing the consumer from another thread."""
    closer = threading.Thread(target=_close_at_end, args=(life, consumer), daemon=True)
    closer.start()
    messages = consumer.consume_chan()
    while life.goes_on:
        got = _ask(life, member, lambda: [one for one in [next(messages, None)] if one is not None])  # noqa: B023 - called at once
        if got is None:
            messages = consumer.consume_chan()  # a generator that has raised gives nothing more
        elif not got:
            break
        _finish(life, consumer, member, got)
    life.end()
    closer.join()


def _close_at_end(life: Life, consumer: Consumer) -> None:
    while life.goes_on:
        life.pause(1.0)
    with contextlib.suppress(SqlmqError):
        consumer.close()


def _finish(life: Life, consumer: Consumer, member: Member, messages: list[Message] | None) -> None:
    if not messages or (not life.goes_on and life.chosen.random() < _LEAVING_UNFINISHED):
        return
    member.done(messages)
    if life.goes_on and life.chosen.random() >= _COMMITTING:
        return
    with attempted(life.recorder, "commit", **member.whose) as attempt:
        troubles = member.troubles
        consumer.commit()
        attempt.tell(**member.positions(troubles))
    member.look()


async def _consume_async(life: Life) -> None:
    async with life.open_async() as mq:
        consumer = await async_consumer_of(life, mq)
        member = Member(life, consumer)
        try:
            await _poll_async(life, consumer, member)
            with attempted(life.recorder, "close", **member.whose):
                await consumer.close()
        finally:
            member.forget()


async def _poll_async(life: Life, consumer: AsyncConsumer, member: Member) -> None:
    while life.goes_on:
        messages: list[Message] = []
        with (
            life.noticing_stalls(_TIMEOUT_SECONDS),
            attempted(life.recorder, "poll", **member.whose, owned=member.owned) as attempt,
        ):
            messages = await consumer.poll(life.chosen.randint(1, 40), timeout=_TIMEOUT_SECONDS)
            attempt.tell(delivered=member.got(messages), owned=member.owned)
        member.look()
        if not messages:
            await asyncio.sleep(0.0 if attempt.is_ok else _RECOVER_SECONDS)
            continue
        await asyncio.sleep(handling_seconds(life))
        if life.is_over and life.chosen.random() < _LEAVING_UNFINISHED:
            return
        member.done(messages)
        if life.chosen.random() < _COMMITTING:
            with attempted(life.recorder, "commit", **member.whose) as attempt:
                troubles = member.troubles
                await consumer.commit()
                attempt.tell(**member.positions(troubles))
            member.look()
