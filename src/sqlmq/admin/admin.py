"""The operations of an operator on topics and groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqlmq.admin import health
from sqlmq.admin.parked import Parked
from sqlmq.admin.tail import Tail, check_tail
from sqlmq.model import validation
from sqlmq.model.positions import check_reset
from sqlmq.model.retention import check_retention
from sqlmq.model.validation import check_group, check_ids, check_partition_number, check_partitions, check_topic
from sqlmq.operations import staging
from sqlmq.operations.admin import monitoring, reset
from sqlmq.operations.admin import topics as admin_topics
from sqlmq.producer import outbox

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlmq.admin.access import DatabaseAccess
    from sqlmq.background.notifier import Notifier
    from sqlmq.background.registry import MemberRegistry
    from sqlmq.background.retention import RetentionService
    from sqlmq.model.message import DelayedMessage
    from sqlmq.model.positions import ResetTo
    from sqlmq.model.retention import Retention
    from sqlmq.producer.session_binding import SessionLike
    from sqlmq.reports.descriptions import (
        Eviction,
        GroupDescription,
        MemberDescription,
        PartitionLag,
        PartitionReset,
        RetentionResult,
        TopicDescription,
    )
    from sqlmq.reports.doctor import DoctorLimits
    from sqlmq.reports.problem import Problem


class Admin:
    """The operations of an operator: ``mq.admin``. Threads may share it.

    A method that only reads takes no lock and reads in one transaction. A method that changes something does so in one
    transaction, unless its description says otherwise. Every method raises MQClosedError after the MQ was closed.
    """

    def __init__(
        self,
        access: DatabaseAccess,
        registry: MemberRegistry,
        retention_service: RetentionService,
        notifier: Notifier,
    ) -> None:
        self._access = access
        self._database = access.database
        self._registry = registry
        self._retention_service = retention_service
        self._notifier = notifier

    # --- Topics ---

    def topics(self) -> list[str]:
        """Return the names of all topics, in order."""
        return self._access.read(admin_topics.list_topics)

    def describe_topic(self, topic: str) -> TopicDescription:
        """Return a topic's partitions and groups as they are now. Raises UnknownTopicError."""
        check_topic(topic)
        return self._access.read(admin_topics.describe_topic, topic)

    def add_partitions(self, topic: str, partitions: int) -> bool:
        """Grow *topic* to *partitions* partitions and return whether any were added. New ones get the next numbers.

        *partitions* must be a multiple of the present number, else InvalidPartitionError. So a key stays in its
        partition or goes to a new one, and its order is kept: a group reads a new partition only after it has finished
        the older messages of the partition that its keys come from. A message that waits there for a retry delays this,
        a dead letter does not. Producers in every process use the new partitions from the commit on. The transaction
        waits some milliseconds for all producers of the topic; if one does not finish, DatabaseBusyError is raised and
        nothing has changed. Raises UnknownTopicError.
        """
        check_topic(topic)
        check_partitions(partitions)
        self._database.check_outside_block("add partitions")
        topic_id, added = self._access.write(admin_topics.add_partitions, topic, partitions)
        self._notifier.announce(topic_id)
        return added > 0

    # --- Groups ---

    def groups(self, topic: str) -> list[str]:
        """Return the names of a topic's groups, in order. Raises UnknownTopicError."""
        check_topic(topic)
        return self._access.read(admin_topics.list_groups, topic)

    def describe_group(self, topic: str, group: str) -> GroupDescription:
        """Return a group's position, lag and owner in each partition, as they are now.

        Raises UnknownTopicError or UnknownGroupError.
        """
        check_topic(topic)
        check_group(group)
        return self._access.read(monitoring.describe_group, topic, group)

    def members(self, topic: str, group: str) -> list[MemberDescription]:
        """Return the members of a group with heartbeat age and partitions, in the order in which they joined.

        Dead members are included until another member removes them. Consumers that only use ``transaction()`` are no
        members. Raises UnknownTopicError or UnknownGroupError.
        """
        check_topic(topic)
        check_group(group)
        return self._access.read(monitoring.members, topic, group)

    def lag(self, topic: str | None = None, group: str | None = None) -> list[PartitionLag]:
        """Return the lag of groups in each partition, in messages and seconds.

        Covers one topic, one group, or all, in order of topic, group and partition. It is one statement with a few index
        look-ups for each partition of each group; it never counts the log, only parked messages. Raises
        UnknownTopicError, and UnknownGroupError if both are named.
        """
        if topic is not None:
            check_topic(topic)
        if group is not None:
            check_group(group)
        return self._access.read(monitoring.lag, topic, group)

    def preview_reset(
        self,
        topic: str,
        group: str,
        to: ResetTo | None = None,
        *,
        shift_by: int | None = None,
        partitions: Iterable[int] | None = None,
    ) -> list[PartitionReset]:
        """Return what ``reset_group`` with the same arguments would change in each partition, and change nothing."""
        return self._access.read(reset.preview, _reset_request(topic, group, to, shift_by, partitions))

    def reset_group(
        self,
        topic: str,
        group: str,
        to: ResetTo | None = None,
        *,
        shift_by: int | None = None,
        partitions: Iterable[int] | None = None,
        force: bool = False,
    ) -> list[PartitionReset]:
        """Move a group back to read again, or forward to skip; return the change in each partition, in order.

        *to* is ``earliest``, ``latest``, an aware datetime (the first message since then), a timedelta (that long ago by
        the database's clock), or a mapping of partitions to offsets. *shift_by* moves by that many messages instead,
        backwards if negative, within the log. Without *partitions* all of them move.

        It is one transaction. Parked messages from the new position on are delivered again from the log, dead letters
        too, and are no longer parked. Raises GroupInUseError while the group has live members, unless *force*: then they
        lose those partitions, can't commit for them any more, and continue at the new positions. Raises
        InvalidOffsetError, UnknownTopicError, UnknownGroupError; DatabaseBusyError if a transaction that holds a
        partition does not end.
        """
        request = _reset_request(topic, group, to, shift_by, partitions)
        self._database.check_outside_block("reset a group")
        done = self._access.write(reset.reset, request, force=force)
        self._registry.recheck_group_soon(done.group_id)
        self._notifier.announce(done.topic_id)
        return done.changes

    def parked(self, topic: str, group: str) -> Parked:
        """Return the parked messages of *group* in *topic*, to list, retry, discard, copy or move.

        Makes no query itself; the methods of the result raise UnknownTopicError or UnknownGroupError.
        """
        check_topic(topic)
        check_group(group)
        return Parked(self._access, topic, group, self._notifier)

    # --- Retention ---

    def set_retention(self, topic: str, retention: Retention) -> None:
        """Set the retention of *topic*, from the next round on. Raises UnknownTopicError."""
        check_topic(topic)
        check_retention(retention)
        self._access.write(admin_topics.set_retention, topic, retention)

    def apply_retention(self, topic: str | None = None) -> list[RetentionResult]:
        """Delete the messages that exceed the retention of *topic*, or of all topics; return the counts by partition.

        Every MQ that has opened a consumer does this automatically, about once a minute. Any number of programs may call it
        at once. It deletes up to a million messages of a partition. Partitions that fail are left to the next round, and
        their errors are raised together in one ExceptionGroup. Raises UnknownTopicError.
        """
        if topic is not None:
            check_topic(topic)
        self._access.check_open()
        self._database.check_outside_block("delete messages")
        return self._retention_service.run_once(topic)

    def evictions(self, topic: str) -> list[Eviction]:
        """Return the unread and parked messages that groups lost to retention, the newest last. Raises UnknownTopicError."""
        check_topic(topic)
        return self._access.read(admin_topics.evictions, topic)

    # --- Delayed messages ---

    def delayed(self, topic: str) -> list[DelayedMessage]:
        """Return the delayed messages of a topic, the earliest first. Raises UnknownTopicError."""
        check_topic(topic)
        return self._access.read(staging.list_delayed, topic)

    def cancel_delayed(self, *ids: int, session: SessionLike | None = None) -> list[int]:
        """Cancel delayed messages and return the ids of those that were cancelled.

        Any other id is in the log already, or never existed: a message is either cancelled or delivered, never both.
        With a *session*, as in ``Producer.produce``, this happens in its transaction: if that is rolled back, the
        messages still wait.
        """
        wanted = check_ids(ids)
        self._access.check_open()
        if session is None:
            cancelled = self._access.write(staging.cancel, wanted)
        else:
            self._database.prepare()
            cancelled = outbox.cancel(session, self._database, wanted)
        return [id_ for id_ in wanted if id_ in cancelled]

    # --- Tail and diagnosis ---

    def tail(
        self,
        topic: str,
        *,
        last: int = 0,
        offset: int | None = None,
        partitions: Iterable[int] | None = None,
        timeout: float | None = None,
    ) -> Tail:
        """Watch a topic without a group: return an iterator of the messages that arrive from now on. Writes nothing.

        First come the *last* messages that are there already, up to 1,000; or all messages from *offset* on in each
        partition. The order within each partition is kept. The iterator ends when nothing has arrived for *timeout*
        seconds; without a timeout, when the MQ is closed. It polls every ``poll_min_seconds`` to ``poll_max_seconds``
        and reads up to 500 messages and 4 MiB at a time. Messages that retention deletes meanwhile are skipped. Raises
        InvalidPartitionError, and UnknownTopicError also when the topic is deleted.
        """
        return Tail(self._access, check_tail(topic, last, offset, partitions, timeout))

    def diagnose_group(self, topic: str, group: str, *, stuck_seconds: float = 30.0) -> list[Problem]:
        """Return the reasons why messages of a group wait, if the tables show them, and the remedies.

        A partition counts as stuck if nothing was committed for *stuck_seconds* and its oldest message has waited as
        long. Transactions that hold claims are found on Postgres only. Raises UnknownTopicError or UnknownGroupError.
        """
        check_topic(topic)
        check_group(group)
        seconds = validation.seconds("stuck_seconds", stuck_seconds)
        return self._access.read(monitoring.diagnose, topic, group, seconds)

    def diagnose(self, limits: DoctorLimits | None = None) -> list[Problem]:
        """Return the problems of the database and its groups with their remedies, the worst first. Changes nothing.

        *limits* are the values above which something is a problem. Missing tables, or tables of another version, are a
        problem too. Tables that the role may not read are reported with the severity ``info``.
        """
        return health.examine(self._access, limits)

    def __repr__(self) -> str:
        return f"<Admin of {self._database.where}>"


def _reset_request(
    topic: str, group: str, to: ResetTo | None, shift_by: int | None, partitions: Iterable[int] | None
) -> reset.ResetRequest:
    check_topic(topic)
    check_group(group)
    target = check_reset(to, shift_by)
    chosen = None if partitions is None else [check_partition_number(number) for number in partitions]
    if chosen is not None and isinstance(to, Mapping):
        message = "A mapping of partitions to offsets names the partitions. Leave partitions= out."
        raise ValueError(message)
    return reset.ResetRequest(topic, group, target, chosen)
