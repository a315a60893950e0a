"""What an MQ tells without changing anything: topics, groups, lag, members, what is set aside for later, messages."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlmq.admin.tail import Tail, check_tail
from sqlmq.errors import SchemaError
from sqlmq.model.config import MQConfig, check_group, check_seconds, check_topic
from sqlmq.operations import staging
from sqlmq.operations.admin import doctor as admin_doctor
from sqlmq.operations.admin import monitoring
from sqlmq.operations.admin import topics as admin_topics
from sqlmq.reports import doctor
from sqlmq.reports.doctor import DoctorLimits, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from sqlalchemy import Connection

    from sqlmq.admin.tail import TailRequest
    from sqlmq.dialects import Dialect
    from sqlmq.hooks.clock import Clock
    from sqlmq.model.message import DelayedMessage, Message
    from sqlmq.reports.descriptions import Eviction, GroupDescription, MemberDescription, PartitionLag, TopicDescription
    from sqlmq.reports.diagnosis import Finding

    T = TypeVar("T")


class Looking(ABC):
    """The methods of an MQ that only look. They take no lock, and each is one transaction that reads."""

    _options: MQConfig
    _clock: Clock

    @abstractmethod
    def _read(self, flow: Callable[[Connection, Dialect], T]) -> T:
        """Run *flow* in a transaction that reads; raises MQClosedError once the MQ is closed."""

    @abstractmethod
    def _hears_notices(self) -> bool:
        """Whether a notice arrives, or nobody waits for any."""

    def topics(self) -> list[str]:
        """The names of all topics, in order."""
        return self._read(admin_topics.list_topics)

    def describe_topic(self, topic: str) -> TopicDescription:
        """A topic's partitions and groups as they are now. Raises UnknownTopicError."""
        check_topic(topic)
        return self._read(lambda conn, dialect: admin_topics.describe_topic(conn, dialect, topic))

    def groups(self, topic: str) -> list[str]:
        """The names of a topic's groups, in order. Raises UnknownTopicError."""
        check_topic(topic)
        return self._read(lambda conn, dialect: admin_topics.list_groups(conn, dialect, topic))

    def describe_group(self, topic: str, group: str) -> GroupDescription:
        """A group's position, lag and owner in each partition, as they are now.

        Raises UnknownTopicError or UnknownGroupError.
        """
        check_topic(topic)
        check_group(group)
        return self._read(lambda conn, dialect: admin_topics.describe_group(conn, dialect, topic, group))

    def lag(self, topic: str | None = None, group: str | None = None) -> list[PartitionLag]:
        """How far groups are behind in each partition, in messages and in seconds, in order of topic, group, partition.

        Of one topic, one group, or all. It is one statement that looks into indexes, some times for each partition of
        each group, and never counts the log; only what is set aside is counted. Raises UnknownTopicError, and
        UnknownGroupError if both are named.
        """
        if topic is not None:
            check_topic(topic)
        if group is not None:
            check_group(group)
        return self._read(lambda conn, dialect: monitoring.lag(conn, dialect, topic, group))

    def members(self, topic: str, group: str) -> list[MemberDescription]:
        """Who is in a group, with its heartbeat's age and its partitions, in order of when they came.

        Those too that have died and whom nobody has removed yet. Consumers that only use ``transaction()`` are no
        members. Raises UnknownTopicError or UnknownGroupError.
        """
        check_topic(topic)
        check_group(group)
        return self._read(lambda conn, dialect: monitoring.members(conn, dialect, topic, group))

    def diagnose_group(self, topic: str, group: str, *, stuck_seconds: float = 30.0) -> list[Finding]:
        """Why messages of a group wait, where that can be told, and what to do about it.

        A partition stands still if nothing was committed for *stuck_seconds*, and its oldest message has waited as long.
        Transactions that hold claims are told on Postgres only. Raises UnknownTopicError or UnknownGroupError.
        """
        check_topic(topic)
        check_group(group)
        seconds = check_seconds("stuck_seconds", stuck_seconds)
        return self._read(lambda conn, dialect: monitoring.diagnose(conn, dialect, topic, group, seconds))

    def diagnose(self, limits: DoctorLimits | None = None) -> list[Problem]:
        """What is wrong with the database and its groups, the worst first, and what to do about it. Changes nothing.

        *limits* say from where on something is a problem. Tables that are missing or of another version are one. What the
        role may not look at is said, too, as ``info``.
        """
        terms = DoctorLimits() if limits is None else limits
        doctor.check_limits(terms)
        began = datetime.now(UTC)
        try:
            seen = self._read(admin_doctor.examine)
        except SchemaError as error:
            return [Problem("schema", str(error), "sqlmq db upgrade; or, if they are too new, upgrade this program.")]
        # The database was asked for the time at some moment between the two, so that much is uncertain.
        ahead, behind = seen.now - datetime.now(UTC), seen.now - began
        off = min(behind, timedelta()) + max(ahead, timedelta())
        groups = itertools.chain.from_iterable(doctor.of_group(group, terms) for group in seen.groups)
        database = doctor.of_database(seen.vitals, -off.total_seconds(), terms)
        delayed = itertools.chain.from_iterable(doctor.of_delayed(overdue, terms) for overdue in seen.overdue)
        # A standby refuses to listen.
        is_told = seen.vitals.read_only is not None or self._hears_notices()
        notices = doctor.of_notices(seen.vitals, do_arrive=is_told)
        return doctor.worst_first(itertools.chain(database, groups, delayed, notices, doctor.of_unseen(seen.unseen)))

    def tail(
        self,
        topic: str,
        *,
        last: int = 0,
        offset: int | None = None,
        partitions: Iterable[int] | None = None,
        timeout: float | None = None,
    ) -> Iterator[Message]:
        """Watch a topic without a group: an iterator of the messages that come from now on. Leaves no trace.

        Before them the *last* of those there are, up to 1,000; or all from *offset* on in each partition. Of some
        *partitions*, or all, the order within each is kept. Ends when nothing has come for *timeout* seconds, without
        one only when the MQ is closed. Looks every ``poll_min_seconds`` to ``poll_max_seconds``, and reads 500 messages
        and 4 MiB at a time. What retention deletes meanwhile is passed over. Raises UnknownTopicError, also when the topic
        is deleted; InvalidPartitionError.
        """
        return self._tail(check_tail(topic, last, offset, partitions, timeout)).messages()

    def evictions(self, topic: str) -> list[Eviction]:
        """What the groups of a topic have lost to retention unread, or set aside, the newest last. Raises UnknownTopicError."""
        check_topic(topic)
        return self._read(lambda conn, dialect: admin_topics.evictions(conn, dialect, topic))

    def delayed(self, topic: str) -> list[DelayedMessage]:
        """The messages of a topic that wait until they are due, in that order. Raises UnknownTopicError."""
        check_topic(topic)
        return self._read(lambda conn, dialect: staging.waiting(conn, dialect, topic))

    def _tail(self, wanted: TailRequest) -> Tail:
        terms = self._options
        return Tail(
            self._read,
            wanted,
            self._clock,
            poll_min_seconds=terms.poll_min_seconds,
            poll_max_seconds=terms.poll_max_seconds,
        )
