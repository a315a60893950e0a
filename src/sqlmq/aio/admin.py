"""What a group has set aside, for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlmq.admin.parked import BlockedKeys, Parked, ParkedMessages, ProducerResults
    from sqlmq.aio.threads import Threads
    from sqlmq.model.config import ParkedState
    from sqlmq.reports.descriptions import ParkedDetails


class AsyncParked:
    """What one group has set aside of one topic. Made by ``mq.parked(topic, group_id)``. See ``Parked``."""

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
        """Up to *limit* parked messages, in order of partition and offset. See ``Parked.list``."""
        return await self._threads.run(
            lambda: self._sync.list(state, partition=partition, key=key, limit=limit, after=after)
        )

    async def get(self, partition: int, offset: int) -> ParkedDetails:
        """One parked message with all there is to know; raises NotParkedError. See ``Parked.get``."""
        return await self._threads.run(lambda: self._sync.get(partition, offset))

    async def blocked_keys(self, *, limit: int = 100, after: tuple[int, int] | None = None) -> BlockedKeys:
        """Up to *limit* keys of which messages wait. See ``Parked.blocked_keys``."""
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
        """Have messages tried again at once, as if for the first time; return how many. See ``Parked.retry``."""
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
        """Be done with messages that were never handled; return how many. See ``Parked.discard``."""
        return await self._threads.run(
            lambda: self._sync.discard(partition, offset, key=key, state=state, everything=everything)
        )

    async def copy(
        self,
        to_topic: str,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
        discard: bool = False,
    ) -> ProducerResults:
        """Append copies to *to_topic*, and return their places, in order of the originals. See ``Parked.copy``."""
        return await self._threads.run(
            lambda: self._sync.copy(
                to_topic, partition, offset, key=key, state=state, everything=everything, discard=discard
            )
        )

    def __repr__(self) -> str:
        return f"<Async{repr(self._sync)[1:]}"
