"""The operations of an operator, for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Self

from sqlmq.admin.tail import check_tail
from sqlmq.aio.producer import carrier_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlmq.admin.admin import Admin
    from sqlmq.admin.parked import BlockedKeys, Parked, ParkedMessages, ProducerResults
    from sqlmq.admin.tail import Tail, TailRequest
    from sqlmq.aio.producer import AsyncSessionLike
    from sqlmq.aio.threads import Threads
    from sqlmq.database.database import Database
    from sqlmq.model.config import ParkedState
    from sqlmq.model.message import DelayedMessage, ReceivedMessage
    from sqlmq.model.positions import ResetTo
    from sqlmq.model.retention import Retention
    from sqlmq.reports.descriptions import (
        Eviction,
        GroupDescription,
        MemberDescription,
        ParkedDetails,
        PartitionLag,
        PartitionReset,
        RetentionResult,
        TopicDescription,
    )
    from sqlmq.reports.doctor import DoctorLimits
    from sqlmq.reports.problem import Problem


class AsyncAdmin:
    """The operations of an operator, for asyncio: ``mq.admin`` of an AsyncMQ. Tasks may share it. See ``Admin``.

    A task that is cancelled while it awaits one of these methods ends when the transaction has ended.
    """

    def __init__(self, sync: Admin, threads: Threads, database: Database) -> None:
        self._sync = sync
        self._threads = threads
        self._database = database

    async def topics(self) -> list[str]:
        """Return the names of all topics, in order."""
        return await self._threads.run(self._sync.topics)

    async def describe_topic(self, topic: str) -> TopicDescription:
        """Return a topic's partitions and groups as they are now. Raises UnknownTopicError."""
        return await self._threads.run(lambda: self._sync.describe_topic(topic))

    async def add_partitions(self, topic: str, partitions: int) -> bool:
        """Grow *topic* to *partitions* partitions and return whether any were added. See ``Admin.add_partitions``."""
        return await self._threads.run(lambda: self._sync.add_partitions(topic, partitions))

    async def groups(self, topic: str) -> list[str]:
        """Return the names of a topic's groups, in order. Raises UnknownTopicError."""
        return await self._threads.run(lambda: self._sync.groups(topic))

    async def describe_group(self, topic: str, group: str) -> GroupDescription:
        """Return a group's position, lag and owner in each partition, as they are now.

        Raises UnknownTopicError or UnknownGroupError.
        """
        return await self._threads.run(lambda: self._sync.describe_group(topic, group))

    async def members(self, topic: str, group: str) -> list[MemberDescription]:
        """Return the members of a group with heartbeat age and partitions. See ``Admin.members``."""
        return await self._threads.run(lambda: self._sync.members(topic, group))

    async def lag(self, topic: str | None = None, group: str | None = None) -> list[PartitionLag]:
        """Return the lag of groups in each partition, in messages and seconds. See ``Admin.lag``."""
        return await self._threads.run(lambda: self._sync.lag(topic, group))

    async def preview_reset(
        self,
        topic: str,
        group: str,
        to: ResetTo | None = None,
        *,
        shift_by: int | None = None,
        partitions: Iterable[int] | None = None,
    ) -> list[PartitionReset]:
        """Return what ``reset_group`` with the same arguments would change in each partition, and change nothing."""
        return await self._threads.run(
            lambda: self._sync.preview_reset(topic, group, to, shift_by=shift_by, partitions=partitions)
        )

    async def reset_group(
        self,
        topic: str,
        group: str,
        to: ResetTo | None = None,
        *,
        shift_by: int | None = None,
        partitions: Iterable[int] | None = None,
        force: bool = False,
    ) -> list[PartitionReset]:
        """Move a group back to read again, or forward to skip. See ``Admin.reset_group``."""
        return await self._threads.run(
            lambda: self._sync.reset_group(topic, group, to, shift_by=shift_by, partitions=partitions, force=force)
        )

    def parked(self, topic: str, group: str) -> AsyncParked:
        """Return the parked messages of *group* in *topic*, to list, retry, discard, copy or move. See ``Admin.parked``."""
        return AsyncParked(self._sync.parked(topic, group), self._threads)

    async def set_retention(self, topic: str, retention: Retention) -> None:
        """Set the retention of *topic*, from the next round on. Raises UnknownTopicError."""
        await self._threads.run(lambda: self._sync.set_retention(topic, retention))

    async def apply_retention(self, topic: str | None = None) -> list[RetentionResult]:
        """Delete the messages that exceed the retention of *topic*, or of all topics. See ``Admin.apply_retention``.

        A task that is cancelled meanwhile ends when the round is over.
        """
        return await self._threads.run(lambda: self._sync.apply_retention(topic))

    async def evictions(self, topic: str) -> list[Eviction]:
        """Return the unread and parked messages that groups lost to retention, the newest last. Raises UnknownTopicError."""
        return await self._threads.run(lambda: self._sync.evictions(topic))

    async def delayed(self, topic: str) -> list[DelayedMessage]:
        """Return the delayed messages of a topic, the earliest first. Raises UnknownTopicError."""
        return await self._threads.run(lambda: self._sync.delayed(topic))

    async def cancel_delayed(self, *ids: int, session: AsyncSessionLike | None = None) -> list[int]:
        """Cancel delayed messages and return the ids of those that were cancelled. See ``Admin.cancel_delayed``.

        If the task is cancelled meanwhile, the messages may be cancelled or not.
        """
        if session is None:
            return await self._threads.run(lambda: self._sync.cancel_delayed(*ids))
        carrier = carrier_of(session)
        if not self._database.knows_identity:
            # Its query runs on a connection of the MQ, which would block the event loop.
            await self._threads.run(lambda: self._database.identity(fresh=False))
        return await carrier.run_sync(lambda sync: self._sync.cancel_delayed(*ids, session=sync))

    def tail(
        self,
        topic: str,
        *,
        last: int = 0,
        offset: int | None = None,
        partitions: Iterable[int] | None = None,
        timeout: float | None = None,
    ) -> AsyncTail:
        """Watch a topic without a group: ``async for message in mq.admin.tail(topic)``. See ``Admin.tail``.

        The call checks the arguments. The first step looks the topic up; without *last* and *offset* it starts at the
        end that the topic has then.
        """
        return AsyncTail(self._sync, check_tail(topic, last, offset, partitions, timeout), self._threads)

    async def diagnose_group(self, topic: str, group: str, *, stuck_seconds: float = 30.0) -> list[Problem]:
        """Return the reasons why messages of a group wait, and the remedies. See ``Admin.diagnose_group``."""
        return await self._threads.run(lambda: self._sync.diagnose_group(topic, group, stuck_seconds=stuck_seconds))

    async def diagnose(self, limits: DoctorLimits | None = None) -> list[Problem]:
        """Return the problems of the database and its groups, the worst first. See ``Admin.diagnose``."""
        return await self._threads.run(lambda: self._sync.diagnose(limits))

    def __repr__(self) -> str:
        return f"<Async{repr(self._sync)[1:]}"


class AsyncTail:
    """An asynchronous iterator of the messages of a topic as they arrive. Made by ``AsyncAdmin.tail``; used by one task."""

    def __init__(self, admin: Admin, request: TailRequest, threads: Threads) -> None:
        self._admin = admin
        self._request = request
        self._threads = threads
        self._tail: Tail | None = None
        self._ready: deque[ReceivedMessage] = deque()
        self._has_ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ReceivedMessage:
        while not self._ready:
            if self._has_ended:
                raise StopAsyncIteration
            found = await self._step()
            if isinstance(found, float):
                await asyncio.sleep(found)
            else:
                self._keep(found)
        return self._ready.popleft()

    async def _step(self) -> list[ReceivedMessage] | float | None:
        try:
            tail = await self._begin()
            # A step that was read for a cancelled task has moved the position, so the next one gets its messages.
            return await self._threads.run(tail.step, self._keep)
        except Exception:
            self._has_ended = True
            raise

    def _keep(self, found: list[ReceivedMessage] | float | None) -> None:
        if isinstance(found, list):
            self._ready.extend(found)
        self._has_ended = found is None

    async def _begin(self) -> Tail:
        if self._tail is None:
            topic, last, offset, partitions, timeout = self._request
            self._tail = await self._threads.run(
                lambda: self._admin.tail(topic, last=last, offset=offset, partitions=partitions, timeout=timeout)
            )
        return self._tail


class AsyncParked:
    """The parked messages of one group in one topic. Made by ``mq.admin.parked(topic, group)``. See ``Parked``."""

    def __init__(self, sync: Parked, threads: Threads) -> None:
        self._sync = sync
        self._threads = threads

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._sync.topic

    @property
    def group(self) -> str:
        """The name of the group."""
        return self._sync.group

    async def list(
        self,
        state: ParkedState | None = None,
        *,
        partition: int | None = None,
        key: bytes | None = None,
        limit: int = 100,
        after: tuple[int, int] | None = None,
    ) -> ParkedMessages:
        """Return up to *limit* parked messages, in order of partition and offset. See ``Parked.list``."""
        return await self._threads.run(
            lambda: self._sync.list(state, partition=partition, key=key, limit=limit, after=after)
        )

    async def get(self, partition: int, offset: int) -> ParkedDetails:
        """Return one parked message with content and traceback, or raise NotParkedError. See ``Parked.get``."""
        return await self._threads.run(lambda: self._sync.get(partition, offset))

    async def blocked_keys(self, *, limit: int = 100, after: tuple[int, int] | None = None) -> BlockedKeys:
        """Return up to *limit* keys whose messages wait. See ``Parked.blocked_keys``."""
        return await self._threads.run(lambda: self._sync.blocked_keys(limit=limit, after=after))

    async def retry(
        self,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
    ) -> int:
        """Make messages due now, with no attempts counted; return how many. See ``Parked.retry``."""
        return await self._threads.run(
            lambda: self._sync.retry(partition, offset, key=key, state=state, everything=everything)
        )

    async def discard(
        self,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
    ) -> int:
        """Remove parked messages without handling them; return how many. See ``Parked.discard``."""
        return await self._threads.run(
            lambda: self._sync.discard(partition, offset, key=key, state=state, everything=everything)
        )

    async def copy_to(
        self,
        topic: str,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
    ) -> ProducerResults:
        """Append copies to *topic*; return the place of each copy, in order of the originals. See ``Parked.copy_to``."""
        return await self._threads.run(
            lambda: self._sync.copy_to(topic, partition, offset, key=key, state=state, everything=everything)
        )

    async def move_to(
        self,
        topic: str,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
    ) -> ProducerResults:
        """Copy messages to *topic*, and discard the originals in the same transaction. See ``Parked.move_to``."""
        return await self._threads.run(
            lambda: self._sync.move_to(topic, partition, offset, key=key, state=state, everything=everything)
        )

    def __repr__(self) -> str:
        return f"<Async{repr(self._sync)[1:]}"
