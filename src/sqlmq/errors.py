"""Every error this library raises on purpose.

    SqlmqError
     ├── InvalidTopicError        (also a ValueError)    a topic's name that is not one
     ├── InvalidGroupError        (also a ValueError)    a group's name that is not one
     ├── InvalidPartitionError    (also a ValueError)    a partition number the topic does not have
     ├── InvalidOffsetError       (also a ValueError)    an offset beyond the ends of the log
     ├── InvalidMessageError      (also a ValueError)    a message the log can't keep as it is
     │    └── MessageTooLargeError
     ├── InvalidURLError          (also a ValueError)    a database URL nobody can connect to
     ├── UnknownTopicError        (also a LookupError)
     ├── UnknownGroupError        (also a LookupError)
     ├── NotParkedError           (also a LookupError)   the group has not set that message aside
     ├── TopicConflictError                              the topic is there, and made otherwise
     ├── GroupInUseError                                 the group has live members
     ├── NotOwnedError                                   the consumer does not own the partition
     ├── ClosedError
     │    ├── MQClosedError
     │    ├── ProducerClosedError
     │    └── ConsumerClosedError
     ├── FencedError                                     somebody else owns the partition by now
     ├── OffsetGapError                                  the log lacks an offset it must have
     ├── EvictedError                                    the log begins later by now than where the group is
     ├── OutboxError                                     a session that can't carry a message
     ├── TransactionError                                a transaction that can't be used so, or was ended too early
     ├── ForkedError                                     the object belongs to the parent process
     ├── SchemaError
     │    ├── SchemaMissingError
     │    ├── SchemaTooOldError
     │    └── SchemaTooNewError
     └── DatabaseError                                   what the database refused, translated
          ├── DatabaseUnavailableError                   no server, no connection left, cut off
          ├── DatabaseBusyError                          a lock that did not come free in time
          ├── DatabaseFullError
          ├── DatabaseDamagedError                       files that are damaged, or no database's
          ├── ReadOnlyDatabaseError
          ├── PermissionDeniedError
          ├── IsolationError                             the transaction can't see what it needs to
          └── OutcomeUnknownError                        cut off during COMMIT

A wait that ends without a message raises the builtin ``TimeoutError``; a value of the wrong type, ``TypeError``.
Messages say the fact and the next step. None holds a password, a key or a value.
"""

from __future__ import annotations


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
    """A group can't be moved to an offset: the log does not go so far, or not so far back any more."""

    def __init__(self, topic: str, partition: int, offset: int, start_offset: int, end_offset: int) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.start_offset = start_offset
        self.end_offset = end_offset
        super().__init__(
            f"Partition {partition} of topic {topic!r} goes from offset {start_offset} to {end_offset}, where the next "
            f"message will be; a group can't be moved to {offset}. 'earliest' and 'latest' name the two ends."
        )


class InvalidMessageError(SqlmqError, ValueError):
    """A message has a part that could not be stored and read back as it is."""


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
    """A database URL can't be read, or names a database or driver that can't be used."""


class UnknownTopicError(SqlmqError, LookupError):
    """There is no such topic, or not any more."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"Topic {topic!r} does not exist. Create it with `sqlmq topics create {topic}`.")


class UnknownGroupError(SqlmqError, LookupError):
    """There is no such group on the topic."""

    def __init__(self, topic: str, group: str) -> None:
        self.topic = topic
        self.group = group
        super().__init__(
            f"Group {group!r} does not exist on topic {topic!r}. A group is made by its first consumer; "
            "`sqlmq groups list` shows those there are."
        )


class NotParkedError(SqlmqError, LookupError):
    """A group has not set that message aside, or not any more: it was handled, discarded, or never failed."""

    def __init__(self, topic: str, group: str, partition: int, offset: int) -> None:
        self.topic = topic
        self.group = group
        self.partition = partition
        self.offset = offset
        super().__init__(
            f"Group {group!r} has not set message {topic}/{partition}@{offset} aside, or not any more. "
            f"`sqlmq parked list {topic} --group {group}` shows what it has."
        )


class TopicConflictError(SqlmqError):
    """A topic exists with another partitioner than the one asked for."""

    def __init__(self, topic: str, existing: str, wanted: str) -> None:
        self.topic = topic
        self.existing = existing
        self.wanted = wanted
        super().__init__(
            f"Topic {topic!r} places keys by {existing!r}, not by {wanted!r}, and can't change: the same key would "
            f"land in two partitions. Leave the partitioner out, or make a new topic."
        )


class GroupInUseError(SqlmqError):
    """A group was to be moved while members of it are alive. Nothing was moved."""

    def __init__(self, topic: str, group: str, members: tuple[str, ...]) -> None:
        self.topic = topic
        self.group = group
        self.members = members
        super().__init__(
            f"Group {group!r} on topic {topic!r} has live members: {', '.join(members)}. Stop them, or use force: then "
            "they lose their partitions, and go on at the new positions."
        )


class NotOwnedError(SqlmqError):
    """A consumer can move its group only in partitions that it owns."""

    def __init__(self, topic: str, group: str, partition: int, owned: tuple[int, ...]) -> None:
        self.topic = topic
        self.group = group
        self.partition = partition
        self.owned = owned
        super().__init__(
            f"This consumer does not own partition {partition} of topic {topic!r} in group {group!r}; it owns "
            f"{', '.join(map(str, owned)) or 'none'}. consumer.partitions shows those it owns; `mq.reset_group` moves a "
            "group in any."
        )


class ClosedError(SqlmqError):
    """The object was closed and can't be used any more."""


class MQClosedError(ClosedError):
    """The MQ was closed."""

    def __init__(self) -> None:
        super().__init__("This MQ is closed. Open another one.")


class ProducerClosedError(ClosedError):
    """The producer was closed, by itself or with its MQ."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"This producer of topic {topic!r} is closed. Take another one from mq.producer({topic!r}).")


class ConsumerClosedError(ClosedError):
    """The consumer was closed, by itself or with its MQ."""

    def __init__(self, topic: str, group: str) -> None:
        self.topic = topic
        self.group = group
        super().__init__(
            f"This consumer of topic {topic!r} in group {group!r} is closed. "
            f"Take another one from mq.consumer({topic!r}, {group!r})."
        )


class FencedError(SqlmqError):
    """A write for a partition was refused: another member has taken it over.

    Nothing was written. The messages that were unfinished go to the new owner.
    """

    def __init__(self, topic: str, group: str, partitions: tuple[int, ...]) -> None:
        self.topic = topic
        self.group = group
        self.partitions = partitions
        listed = ", ".join(map(str, partitions))
        super().__init__(
            f"This consumer has lost partition(s) {listed} of topic {topic!r} in group {group!r}: it was not heard of for "
            "a lease and another one took over, the group was reset, or the topic was deleted. What it had not finished is delivered again. "
            "If pauses of this process are long, raise lease_seconds."
        )


class OffsetGapError(SqlmqError):
    """The log has no message at an offset where there must be one; reading stopped there."""

    def __init__(self, topic: str, partition: int, *, expected: int, found: int) -> None:
        self.topic = topic
        self.partition = partition
        self.expected = expected
        self.found = found
        super().__init__(
            f"Partition {partition} of topic {topic!r} has no message at offset {expected}; the next one is at {found}."
            " Rows of sqlmq_message were deleted by hand or lost with the disk. Nothing was skipped: find out what is "
            "missing before the group reads on."
        )


class EvictedError(SqlmqError):
    """Retention has deleted messages that the group had not read: those from ``start`` up to, not including, ``end``."""

    def __init__(self, topic: str, group: str, partition: int, *, start: int, end: int) -> None:
        self.topic = topic
        self.group = group
        self.partition = partition
        self.start = start
        self.end = end
        self.fact: str = (
            f"Retention has deleted the messages {topic}/{partition}@{start} to {end - 1}, which group {group!r} had not "
            "read."
        )
        super().__init__(
            f"{self.fact} Nothing was skipped: make the consumer with on_evicted='earliest' to go on at offset {end}, "
            f"once you know what to do about them. `sqlmq topics evictions {topic}` lists what groups have lost."
        )


class OutboxError(SqlmqError):
    """The session given for a message has no transaction that the message could commit with. Nothing was published."""


class TransactionError(SqlmqError):
    """A transaction can't be used as it was asked for, or was ended by somebody else. No position was moved."""


class ForkedError(SqlmqError):
    """An object of the parent process was used in a forked child."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} was made before this process was forked and belongs to the parent. Make another one in the child."
        )


class SchemaError(SqlmqError):
    """The tables in the database are not those this version works with."""


class SchemaMissingError(SchemaError):
    """The database has no tables of sqlmq."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} has no tables of sqlmq. Make them with `sqlmq db upgrade`.")


class SchemaTooOldError(SchemaError):
    """The tables are of an earlier version of sqlmq."""

    def __init__(self, where: str, found: str, needed: str) -> None:
        self.found = found
        self.needed = needed
        super().__init__(
            f"The tables in {where} are at revision {found}; this version of sqlmq needs {needed}. "
            "Bring them up with `sqlmq db upgrade`."
        )


class SchemaTooNewError(SchemaError):
    """The tables are of a later version of sqlmq."""

    def __init__(self, where: str, found: str, needed: str) -> None:
        self.found = found
        self.needed = needed
        super().__init__(
            f"The tables in {where} are at revision {found}, which this version of sqlmq (revision {needed}) does not "
            "know. Install the newer sqlmq; `sqlmq db current` shows both."
        )


class DatabaseError(SqlmqError):
    """The database refused a statement. ``__cause__`` is the driver's own error."""


class DatabaseUnavailableError(DatabaseError):
    """The database could not be reached, has no connection to spare, or cut this one off. Nothing was written."""


class DatabaseBusyError(DatabaseError):
    """A lock did not come free in time, or the database chose this transaction to give way. Nothing was written."""


class DatabaseFullError(DatabaseError):
    """The database has no room left. Nothing was written."""


class DatabaseDamagedError(DatabaseError):
    """The database's files are damaged, or are none of a database. Nothing is tried again, and nothing made anew."""


class ReadOnlyDatabaseError(DatabaseError):
    """The database does not accept writes: a read-only file, a standby, a role without the right."""


class PermissionDeniedError(DatabaseError):
    """The role lacks a right, or the login was refused."""


class IsolationError(DatabaseError):
    """The transaction's isolation level does not let it see the newest offset, so it can't number messages."""


class OutcomeUnknownError(DatabaseError):
    """The connection was lost while COMMIT was on its way: it may have taken effect or not.

    Nothing is sent again silently. Look in the log, or make the handlers idempotent and send again.
    """
