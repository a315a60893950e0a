"""Every error that this library raises on purpose.

    SqlmqError
     ├── InvalidTopicError        (also a ValueError)    a name that no topic can have
     ├── InvalidGroupError        (also a ValueError)    a name that no group can have
     ├── InvalidPartitionError    (also a ValueError)    a partition that the topic does not have
     ├── InvalidOffsetError       (also a ValueError)    an offset beyond the ends of the log
     ├── InvalidMessageError      (also a ValueError)    a message that the log can't keep as it is
     │    └── MessageTooLargeError
     ├── InvalidURLError          (also a ValueError)    a database URL that can't be used
     ├── UnknownTopicError        (also a LookupError)
     ├── UnknownGroupError        (also a LookupError)
     ├── NotParkedError           (also a LookupError)   a message that the group has not parked
     ├── TopicConflictError                              the topic exists with another partitioner
     ├── GroupInUseError                                 the group has live members
     ├── NotOwnedError                                   the consumer does not own the partition
     ├── ClosedError
     │    ├── MQClosedError
     │    ├── ProducerClosedError
     │    └── ConsumerClosedError
     ├── FencedError                                     another member owns the partition now
     ├── OffsetGapError                                  the log lacks an offset that it must have
     ├── EvictedError                                    retention deleted what the group had not read
     ├── SessionError                                    a session or transaction that can't be used for the call
     ├── TransactionEndedError                           a transaction that ended inside its block
     ├── ForkedError                                     the object belongs to the parent process
     ├── MissingDependencyError   (also an ImportError)  an optional library is not installed
     ├── SchemaError
     │    ├── SchemaMissingError
     │    ├── SchemaTooOldError
     │    └── SchemaTooNewError
     └── DatabaseError                                   what the database refused, translated
          ├── DatabaseUnavailableError                   no server, no connection left, connection lost
          ├── DatabaseBusyError                          a lock that was not free in time
          ├── DatabaseFullError
          ├── DatabaseDamagedError                       damaged files, or files that are not a database
          ├── ReadOnlyDatabaseError
          ├── PermissionDeniedError
          ├── IsolationError                             an isolation level that hides the newest rows
          └── OutcomeUnknownError                        connection lost during COMMIT

Programs import them from here. Those that programs catch most stand at the top of ``sqlmq`` too. A wait that ends
without a message raises the builtin ``TimeoutError``; a value of the wrong type raises ``TypeError``. The text of an
error names the fact and the next step. It never holds a password, a key or a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class SqlmqError(Exception):
    """The root of every error that sqlmq raises on purpose."""


class InvalidTopicError(SqlmqError, ValueError):
    """A topic's name does not follow the rule."""

    def __init__(self, topic: object) -> None:
        self.topic = topic
        super().__init__(
            f"{topic!r} can't be a topic's name. Use 2 to 50 of the letters a-z and A-Z, the digits, '_', '-' and '.'; "
            "begin with a letter, end with a letter or digit."
        )


class InvalidGroupError(SqlmqError, ValueError):
    """A group's name does not follow the rule."""

    def __init__(self, group: object) -> None:
        self.group = group
        super().__init__(
            f"{group!r} can't be a group's name. Use 1 to 100 of the letters a-z and A-Z, the digits, '_', '-', '.' "
            "and ':'; begin with a letter or digit."
        )


class InvalidPartitionError(SqlmqError, ValueError):
    """A partition number, or a number of partitions, is out of range."""

    def __init__(self, fact: str, *, partition: int) -> None:
        self.partition = partition
        super().__init__(fact)


class InvalidOffsetError(SqlmqError, ValueError):
    """A group can't be moved to an offset, because the log does not reach that far."""

    def __init__(self, topic: str, partition: int, offset: int, start_offset: int, end_offset: int) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.start_offset = start_offset
        self.end_offset = end_offset
        super().__init__(
            f"Partition {partition} of topic {topic!r} has the offsets {start_offset} to {end_offset}, where the next "
            f"message will be, so a group can't be moved to {offset}. Use 'earliest' or 'latest' for the two ends."
        )


class InvalidMessageError(SqlmqError, ValueError):
    """A part of a message can't be stored and read back unchanged."""


class MessageTooLargeError(InvalidMessageError):
    """A message's value, key or headers exceed ``max_message_bytes``."""

    def __init__(self, part: str, size_bytes: int, max_message_bytes: int) -> None:
        self.part = part
        self.size_bytes = size_bytes
        self.max_message_bytes = max_message_bytes
        super().__init__(
            f"The message's {part} has {size_bytes:,} bytes; max_message_bytes is {max_message_bytes:,}. Make it "
            "smaller, or open MQ with a larger max_message_bytes."
        )


class InvalidURLError(SqlmqError, ValueError):
    """A database URL can't be parsed, or names a database or driver that can't be used."""


class UnknownTopicError(SqlmqError, LookupError):
    """The topic does not exist, or was deleted, alone or with all rows of the tables."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"Topic {topic!r} does not exist. Create it with `sqlmq topics create {topic}`.")


class UnknownGroupError(SqlmqError, LookupError):
    """The topic has no such group."""

    def __init__(self, topic: str, group: str) -> None:
        self.topic = topic
        self.group = group
        super().__init__(
            f"Group {group!r} does not exist on topic {topic!r}. A group is created by its first "
            "consumer. `sqlmq groups list` shows the existing groups."
        )


class NotParkedError(SqlmqError, LookupError):
    """The group has not parked that message: it was handled, discarded, or never failed."""

    def __init__(self, topic: str, group: str, partition: int, offset: int) -> None:
        self.topic = topic
        self.group = group
        self.partition = partition
        self.offset = offset
        super().__init__(
            f"Message {topic}/{partition}@{offset} is not parked in group {group!r}, or no longer. "
            f"`sqlmq parked list {topic} --group {group}` shows the parked messages."
        )


class TopicConflictError(SqlmqError):
    """The topic exists with another partitioner than the requested one."""

    def __init__(self, topic: str, existing: str, wanted: str) -> None:
        self.topic = topic
        self.existing = existing
        self.wanted = wanted
        super().__init__(
            f"Topic {topic!r} has the partitioner {existing!r}, not {wanted!r}. It can't change, because the same key "
            f"would land in two partitions. Omit partitioner=, or create a new topic."
        )


class GroupInUseError(SqlmqError):
    """A group with live members can't be moved. Nothing was moved."""

    def __init__(self, topic: str, group: str, members: tuple[str, ...]) -> None:
        self.topic = topic
        self.group = group
        self.members = members
        super().__init__(
            f"Group {group!r} on topic {topic!r} has live members: {', '.join(members)}. Stop them first. Or pass "
            "force=True (--force): then they lose their partitions and continue at the new positions."
        )


class NotOwnedError(SqlmqError):
    """A consumer can move its group only in partitions that it owns. Nothing was moved."""

    def __init__(self, topic: str, group: str, partition: int, owned: tuple[int, ...]) -> None:
        self.topic = topic
        self.group = group
        self.partition = partition
        self.owned = owned
        super().__init__(
            f"This consumer does not own partition {partition} of topic {topic!r} in group {group!r}; it owns "
            f"{', '.join(map(str, owned)) or 'none'}. Seek in a partition of consumer.partitions, or move the group in any "
            "partition with `sqlmq groups reset`."
        )


class ClosedError(SqlmqError):
    """The object was closed and can't be used again."""


class MQClosedError(ClosedError):
    """The MQ was closed."""

    def __init__(self) -> None:
        super().__init__("This MQ is closed. Open a new one.")


class ProducerClosedError(ClosedError):
    """The producer was closed, by itself or with its MQ."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"This producer of topic {topic!r} is closed. Make a new one with mq.producer({topic!r}).")


class ConsumerClosedError(ClosedError):
    """The consumer was closed, by itself or with its MQ."""

    def __init__(self, topic: str, group: str) -> None:
        self.topic = topic
        self.group = group
        super().__init__(
            f"This consumer of topic {topic!r} in group {group!r} is closed. "
            f"Make a new one with mq.consumer({topic!r}, {group!r})."
        )


class FencedError(SqlmqError):
    """A write for a partition was refused, because another member has taken it over.

    Nothing was written. Unfinished messages are delivered to the new owner.
    """

    def __init__(self, topic: str, group: str, partitions: tuple[int, ...]) -> None:
        self.topic = topic
        self.group = group
        self.partitions = partitions
        listed = ", ".join(map(str, partitions))
        super().__init__(
            f"This consumer has lost partition(s) {listed} of topic {topic!r} in group {group!r}: its lease expired and "
            "another member took over, the group was reset, or the topic was deleted. Unfinished messages are delivered "
            "again. If this process pauses for long, raise lease_seconds."
        )


class OffsetGapError(SqlmqError):
    """The log has no message at an offset where there must be one. Reading stopped there."""

    def __init__(self, topic: str, partition: int, *, expected: int, found: int) -> None:
        self.topic = topic
        self.partition = partition
        self.expected = expected
        self.found = found
        super().__init__(
            f"Partition {partition} of topic {topic!r} has no message at offset {expected}; the next one is at {found}. "
            "Rows of sqlmq_message were deleted by hand, or lost with the disk. Nothing was skipped. Find out what is "
            "missing before the group continues."
        )


class EvictedError(SqlmqError):
    """Retention deleted messages that the group had not read: the offsets from ``start`` up to, but not, ``end``."""

    def __init__(self, topic: str, group: str, partition: int, *, start: int, end: int) -> None:
        self.topic = topic
        self.group = group
        self.partition = partition
        self.start = start
        self.end = end
        self.fact: str = f"Retention deleted the messages {topic}/{partition}@{start} to {end - 1}, which group {group!r} had not read."
        super().__init__(
            f"{self.fact} Nothing was skipped. To continue at offset {end}, make the consumer with on_evicted='earliest'. "
            f"`sqlmq topics evictions {topic}` lists what groups have lost."
        )


class SessionError(SqlmqError):
    """A session, connection or transaction can't be used for the call. Nothing was written.

    Raised for ``session=`` of a producer and of ``consumer.transaction()``, and for a call inside such a block that
    would wait for the block's own end.
    """


class TransactionEndedError(SqlmqError):
    """The transaction was ended inside the block of ``consumer.transaction()``. The group's position was not moved."""

    def __init__(self) -> None:
        super().__init__(
            "The transaction was ended inside the block of consumer.transaction(), by a commit, a rollback or a failed "
            "flush. The group's position was not moved, so the messages are delivered again. Leave the block to commit, "
            "raise an exception to roll back, and use session.begin_nested() for a part that may fail."
        )


class ForkedError(SqlmqError):
    """An object of the parent process was used in a forked child."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} was made before this process was forked and belongs to the parent. Make a new one in the child."
        )


class MissingDependencyError(SqlmqError, ImportError):
    """An optional library is not installed. ``pip install 'sqlmq[EXTRA]'``, with the name in ``extra``, installs it."""

    def __init__(self, library: str, extra: str) -> None:
        self.library = library
        self.extra = extra
        super().__init__(f"This needs {library}, which is not installed. Install it with: pip install 'sqlmq[{extra}]'")


class SchemaError(SqlmqError):
    """The tables in the database do not fit this version of sqlmq."""


class SchemaMissingError(SchemaError):
    """The database has no sqlmq tables, or all of them were emptied, ``sqlmq_version`` too."""

    def __init__(self, where: str, *, is_emptied: bool = False, elsewhere: Sequence[str] = ()) -> None:
        self.is_emptied = is_emptied
        self.elsewhere: tuple[str, ...] = tuple(elsewhere)
        """Schemas of the same database that have tables of sqlmq, which the search_path of the connection does not name."""
        message = f"{where} has no tables of sqlmq. Create them with `sqlmq db upgrade`."
        if is_emptied:
            message = (
                f"The table sqlmq_version in {where} is empty, as after a TRUNCATE of all tables. `sqlmq db upgrade` writes "
                "the revision into it again."
            )
        elif elsewhere:
            names = ", ".join(map(repr, elsewhere))
            message = (
                f"{where} has no tables of sqlmq where the connection's search_path leads, but has some in schema {names}. "
                "Give that schema (schema=, or --schema), or create others with `sqlmq db upgrade`."
            )
        super().__init__(message)


class SchemaTooOldError(SchemaError):
    """The tables belong to an earlier version of sqlmq."""

    def __init__(self, where: str, found: str, needed: str) -> None:
        self.found = found
        self.needed = needed
        super().__init__(
            f"The tables in {where} are at revision {found}; this version of sqlmq needs {needed}. "
            "Upgrade them with `sqlmq db upgrade`."
        )


class SchemaTooNewError(SchemaError):
    """The tables belong to a later version of sqlmq."""

    def __init__(self, where: str, found: str, needed: str) -> None:
        self.found = found
        self.needed = needed
        super().__init__(
            f"The tables in {where} are at revision {found}, which this version of sqlmq (revision {needed}) does not "
            "know. Install the newer sqlmq. `sqlmq db current` shows both revisions."
        )


class DatabaseError(SqlmqError):
    """The database refused a statement. ``__cause__`` is the driver's own error."""


class DatabaseUnavailableError(DatabaseError):
    """The database could not be reached, has no free connection, or ended this one. Nothing was written."""


class DatabaseBusyError(DatabaseError):
    """A lock was not free in time, or the database aborted this transaction for another one. Nothing was written."""


class DatabaseFullError(DatabaseError):
    """The database's disk is full. Nothing was written."""


class DatabaseDamagedError(DatabaseError):
    """The database's files are damaged, or are not a database. The library neither retries nor overwrites them."""


class ReadOnlyDatabaseError(DatabaseError):
    """The database does not accept writes: a read-only file, a standby, a role without the right."""


class PermissionDeniedError(DatabaseError):
    """The role lacks a right, or the login was refused."""


class IsolationError(DatabaseError):
    """The transaction's isolation level hides the newest rows, so it can't number messages or read a position."""


class OutcomeUnknownError(DatabaseError):
    """The connection was lost during COMMIT: the transaction was committed or not.

    The library never sends again by itself. Look in the log, or make the handlers idempotent and send again.
    """
