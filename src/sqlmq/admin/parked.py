"""What a group has set aside, for people and programs to look at and to decide about."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, get_args

from sqlmq.model import validation
from sqlmq.model.config import ParkedState
from sqlmq.model.partitioner import Rotation
from sqlmq.model.validation import check_after, check_key, check_offset, check_partition_number, check_topic
from sqlmq.operations.admin import parked
from sqlmq.operations.admin.parked import ParkedFilter, Scope

if TYPE_CHECKING:
    from sqlmq.admin.access import DatabaseAccess
    from sqlmq.background.notifier import Notifier
    from sqlmq.model.message import ProducerResult
    from sqlmq.operations.admin.parked import Decided
    from sqlmq.reports.descriptions import BlockedKey, ParkedDetails, ParkedMessage

    # A class that has a method of that name can't call them so.
    BlockedKeys: TypeAlias = list[BlockedKey]
    ParkedMessages: TypeAlias = list[ParkedMessage]
    ProducerResults: TypeAlias = list[ProducerResult]


class Parked:
    """What one group has set aside of one topic. Made by ``mq.admin.parked(topic, group_id)``; may be shared by threads.

    ``retry``, ``discard`` and ``copy`` take the same words to say which messages: *partition* and *offset*, *key*,
    *state*; those that fit all that is said. With none of them nothing is meant: *everything* has to be said.
    Each is one transaction, all or nothing.

    A consumer that runs the group notices within twice ``poll_max_seconds``; within ten times that, if it is idle and no
    notice reaches it. What is decided about a message that it
    handles at that moment holds: if the attempt fails, that counts for nothing; if it succeeds, the message is done.
    """

    def __init__(self, access: DatabaseAccess, topic: str, group: str, notifier: Notifier) -> None:
        self._access = access
        self._scope = Scope(topic, group)
        self._notifier = notifier

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._scope.topic

    @property
    def group(self) -> str:
        """The name of the group."""
        return self._scope.group

    def list(
        self,
        state: ParkedState | None = None,
        *,
        partition: int | None = None,
        key: bytes | None = None,
        limit: int = 100,
        after: tuple[int, int] | None = None,
    ) -> ParkedMessages:
        """Up to *limit* parked messages, in order of partition and offset, without their values.

        *state* is ``waiting``, ``held``, ``stopped`` or ``dead``; None is any. For the next page give the ``place`` of
        the last one as *after*: what is skipped is not read again.
        """
        wanted = _wanted(partition, None, key, state)
        check_after(after)
        validation.integer("limit", limit)
        return self._access.read(parked.page, self._scope, wanted, after=after, limit=limit)

    def get(self, partition: int, offset: int) -> ParkedDetails:
        """One parked message, with the traceback of its last attempt, and value and headers.

        Raises NotParkedError if the group has not set it aside, or not any more.
        """
        check_partition_number(partition)
        check_offset(offset)
        return self._access.read(parked.details, self._scope, partition, offset)

    def blocked_keys(self, *, limit: int = 100, after: tuple[int, int] | None = None) -> BlockedKeys:
        """Up to *limit* keys of which messages wait, in order of partition and of the first one's offset.

        For the next page give the ``place`` of the last one as *after*.
        """
        check_after(after)
        validation.integer("limit", limit)
        return self._access.read(parked.blocked_keys, self._scope, after=after, limit=limit)

    def retry(
        self,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
    ) -> int:
        """Have messages tried again at once, as if for the first time; return how many.

        Those of a key are handled in order of offset, and before any later one of that key, also before those that wait
        already. Those for which a partition waits (``held``, ``stopped``) are tried in their place.
        """
        wanted = _chosen(_wanted(partition, offset, key, state), everything=everything)
        return self._told(self._access.write(parked.retry, self._scope, wanted))

    def discard(
        self,
        partition: int | None = None,
        offset: int | None = None,
        *,
        key: bytes | None = None,
        state: ParkedState | None = None,
        everything: bool = False,
    ) -> int:
        """Be done with messages that were never handled; return how many.

        The next one of their key is due, and a partition that waits for one goes on behind it. They stay in the log.
        """
        wanted = _chosen(_wanted(partition, offset, key, state), everything=everything)
        return self._told(self._access.write(parked.discard, self._scope, wanted))

    def copy(
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
        """Append copies to *to_topic*, and return their places, in order of the originals.

        A copy has key, value and headers of the original, and the headers ``sqlmq-topic``, ``sqlmq-partition``,
        ``sqlmq-offset``, ``sqlmq-group`` and ``sqlmq-error``, unless it has one of those already: a copy of a copy says
        where the first came from. With *discard* the originals are discarded in the same transaction: a move.
        What is not in the log any more is passed over, and stays. *to_topic* is made as ``mq.producer`` makes topics.
        Raises MessageTooLargeError for what exceeds the MQ's ``max_message_bytes``, and InvalidMessageError for headers
        that are none; then nothing is copied.
        """
        wanted = _chosen(_wanted(partition, offset, key, state), everything=everything)
        check_topic(to_topic)
        # So that a mistyped name makes no topic.
        self.list(limit=1)
        to = self._access.find_or_create_topic(to_topic)
        turn = Rotation(self._access.database.clock.random.randrange(to.partitions))
        topic_id, results = self._access.write(
            parked.copy,
            self._scope,
            wanted,
            to,
            turn,
            discarding=discard,
            max_message_bytes=self._access.config.max_message_bytes,
        )
        if results:
            self._notifier.announce(to.id)
            if discard:
                self._notifier.announce(topic_id)
        return results

    def _told(self, decided: Decided) -> int:
        """Have consumers that idle look, if anything was decided; return about how many messages."""
        if decided.messages:
            self._notifier.announce(decided.topic_id)
        return decided.messages

    def __repr__(self) -> str:
        return f"<Parked messages of {self.topic!r} in {self.group!r}>"


def _wanted(partition: int | None, offset: int | None, key: bytes | None, state: ParkedState | None) -> ParkedFilter:
    """What is meant, checked as far as that goes without the database."""
    if partition is not None:
        check_partition_number(partition)
    if offset is not None:
        check_offset(offset)
        if partition is None:
            message = "An offset means nothing without its partition."
            raise ValueError(message)
    return ParkedFilter(
        partition,
        offset,
        check_key(key),
        None if state is None else validation.choice("state", state, get_args(ParkedState)),
    )


def _chosen(wanted: ParkedFilter, *, everything: bool) -> ParkedFilter:
    """What is *wanted*, if somebody has said so, and not two things."""
    if everything and wanted != ParkedFilter():
        message = "everything=True leaves nothing to choose: say it alone, or say which messages."
        raise ValueError(message)
    if not everything and wanted == ParkedFilter():
        message = "Say which messages: partition and offset, a key, a state; or everything=True."
        raise ValueError(message)
    return wanted
