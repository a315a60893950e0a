"""The parked messages of a group: listed, retried, discarded, copied and moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, get_args

from sqlmq.model import validation
from sqlmq.model.config import ParkedState
from sqlmq.model.partitioner import Rotation
from sqlmq.model.validation import check_after, check_key, check_offset, check_partition_number, check_topic
from sqlmq.operations.admin import parked
from sqlmq.operations.admin.parked import ParkedFilter

if TYPE_CHECKING:
    from sqlmq.admin.access import DatabaseAccess
    from sqlmq.background.notifier import Notifier
    from sqlmq.model.message import ProducerResult
    from sqlmq.reports.descriptions import BlockedKey, ParkedDetails, ParkedMessage

    # In a class with a method named list, list[...] would mean that method.
    BlockedKeys: TypeAlias = list[BlockedKey]
    ParkedMessages: TypeAlias = list[ParkedMessage]
    ProducerResults: TypeAlias = list[ProducerResult]


class Parked:
    """The messages that one group has parked in one topic. Made by ``mq.admin.parked(topic, group)``; shared by threads.

    ``retry``, ``discard``, ``copy_to`` and ``move_to`` select messages by the same arguments: *partition* and *offset*,
    *key*, *state*. A message must match all that are given. To select every message, pass *everything*. Each call is one
    transaction, all or nothing.

    A consumer that runs the group notices within twice ``poll_max_seconds``; within ten times that, if it is idle and
    receives no notification. A decision also holds for a message that is being handled: a failure of that attempt then
    counts for nothing, a success finishes the message.
    """

    def __init__(self, access: DatabaseAccess, topic: str, group: str, notifier: Notifier) -> None:
        self._access = access
        self._topic = topic
        self._group = group
        self._notifier = notifier

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._topic

    @property
    def group(self) -> str:
        """The name of the group."""
        return self._group

    def list(
        self,
        state: ParkedState | None = None,
        *,
        partition: int | None = None,
        key: bytes | None = None,
        limit: int = 100,
        after: tuple[int, int] | None = None,
    ) -> ParkedMessages:
        """Return up to *limit* parked messages, in order of partition and offset, without their values.

        *state* is ``waiting``, ``held``, ``stopped`` or ``dead``; None is any. For the next page pass the ``place`` of
        the last message as *after*: the pages before are not read again.
        """
        wanted = _filter(partition, None, key, state)
        check_after(after)
        validation.integer("limit", limit)
        return self._access.read(parked.page, self._topic, self._group, wanted, after=after, limit=limit)

    def get(self, partition: int, offset: int) -> ParkedDetails:
        """Return one parked message with value, headers and the traceback of its last attempt.

        Raises NotParkedError if the group has not parked it, or no longer.
        """
        check_partition_number(partition)
        check_offset(offset)
        return self._access.read(parked.details, self._topic, self._group, partition, offset)

    def blocked_keys(self, *, limit: int = 100, after: tuple[int, int] | None = None) -> BlockedKeys:
        """Return up to *limit* keys whose messages wait, in order of partition and of the first message's offset.

        For the next page pass the ``place`` of the last key as *after*.
        """
        check_after(after)
        validation.integer("limit", limit)
        return self._access.read(parked.blocked_keys, self._topic, self._group, after=after, limit=limit)

    def retry(
        self,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
    ) -> int:
        """Make messages due now, as if they had never been tried; return how many.

        Messages of a key are handled in order of offset, before any later message of that key, also before those that
        already wait. A message that blocks its partition (``held``, ``stopped``) is retried in its place.
        """
        wanted = _selection(partition, offset, key, state, everything=everything)
        count, topic_id = self._access.write(parked.retry, self._topic, self._group, wanted)
        if count:
            self._notifier.announce(topic_id)
        return count

    def discard(
        self,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
    ) -> int:
        """Remove messages from the parked ones without handling them; return how many. They stay in the log.

        The next message of their key becomes due, and a partition that waits for one continues behind it.
        """
        wanted = _selection(partition, offset, key, state, everything=everything)
        count, topic_id = self._access.write(parked.discard, self._topic, self._group, wanted)
        if count:
            self._notifier.announce(topic_id)
        return count

    def copy_to(
        self,
        topic: str,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
    ) -> ProducerResults:
        """Append copies to *topic*; return the place of each copy, in order of the originals. The originals stay parked.

        A copy has the original's key, value and headers, and the headers ``sqlmq-topic``, ``sqlmq-partition``,
        ``sqlmq-offset``, ``sqlmq-group`` and ``sqlmq-error``. If the original has one of these already, none is added: a
        copy of a copy names the first origin. A message that is no longer in the log is skipped and stays parked.
        *topic* is created as ``mq.producer`` creates topics. Nothing is copied if one message exceeds the MQ's
        ``max_message_bytes`` (MessageTooLargeError) or has unreadable headers (InvalidMessageError).
        """
        return self._copy(topic, _selection(partition, offset, key, state, everything=everything), discarding=False)

    def move_to(
        self,
        topic: str,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
    ) -> ProducerResults:
        """Copy messages to *topic* as ``copy_to`` does, and discard the originals in the same transaction."""
        return self._copy(topic, _selection(partition, offset, key, state, everything=everything), discarding=True)

    def _copy(self, topic: str, wanted: ParkedFilter, *, discarding: bool) -> ProducerResults:
        check_topic(topic)
        # Before the target is created, so that a mistyped topic or group creates none.
        self._access.read(parked.resolve, self._topic, self._group)
        target = self._access.find_or_create_topic(topic)
        keyless = Rotation(self._access.database.clock.random.randrange(target.partitions))
        results, topic_id = self._access.write(
            parked.copy,
            self._topic,
            self._group,
            wanted,
            target,
            keyless,
            discarding=discarding,
            max_message_bytes=self._access.config.max_message_bytes,
        )
        if results:
            self._notifier.announce(target.id)
            if discarding:
                self._notifier.announce(topic_id)
        return results

    def __repr__(self) -> str:
        return f"<Parked messages of {self.topic!r} in {self.group!r}>"


def _filter(partition: int | None, offset: int | None, key: bytes | None, state: ParkedState | None) -> ParkedFilter:
    """Return the filter for these arguments, checked as far as possible without the database."""
    if partition is not None:
        check_partition_number(partition)
    if offset is not None:
        check_offset(offset)
        if partition is None:
            message = "An offset needs its partition: pass both."
            raise ValueError(message)
    return ParkedFilter(
        partition,
        offset,
        check_key(key),
        None if state is None else validation.choice("state", state, get_args(ParkedState)),
    )


def _selection(
    partition: int | None,
    offset: int | None,
    key: bytes | None,
    state: ParkedState | None,
    *,
    everything: bool,
) -> ParkedFilter:
    """Return the filter of a change, which must name messages, or else *everything*."""
    wanted = _filter(partition, offset, key, state)
    if everything and wanted != ParkedFilter():
        message = "everything=True can't be combined with other arguments. Pass it alone, or name the messages."
        raise ValueError(message)
    if not everything and wanted == ParkedFilter():
        message = "Name the messages by partition and offset, key or state; or pass everything=True."
        raise ValueError(message)
    return wanted
