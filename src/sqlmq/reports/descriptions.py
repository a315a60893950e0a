"""Topics, groups, their lag, members and parked messages, as values for people and programs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlmq.model.config import ParkedState
from sqlmq.model.message import ReceivedMessage
from sqlmq.model.positions import Start
from sqlmq.model.retention import Retention


@dataclass(frozen=True, slots=True)
class PartitionDescription:
    """One partition of a topic."""

    partition: int
    start_offset: int
    """The oldest offset kept."""
    end_offset: int
    """The offset of the next message to be appended."""
    messages_per_second: float
    """Its growth over the last minute."""
    estimated_bytes: int
    """The size of its rows, estimated from the 100 newest messages; without space that the database has not freed yet."""
    newest_at: datetime | None
    """When its newest message was appended; None if it has none."""

    @property
    def messages(self) -> int:
        """The number of messages in the log."""
        return self.end_offset - self.start_offset


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic, its partitions in order, and the names of its groups."""

    name: str
    partitioner: str
    partitions: tuple[PartitionDescription, ...]
    groups: tuple[str, ...]
    retention: Retention
    """What it keeps: everything, if no limit is set."""

    @property
    def messages(self) -> int:
        """The number of messages in the log."""
        return sum(partition.messages for partition in self.partitions)

    @property
    def messages_per_second(self) -> float:
        """Its growth over the last minute."""
        return sum(partition.messages_per_second for partition in self.partitions)

    @property
    def estimated_bytes(self) -> int:
        """The size of its messages, estimated from the 100 newest of each partition."""
        return sum(partition.estimated_bytes for partition in self.partitions)


@dataclass(frozen=True, slots=True)
class RetentionResult:
    """What a round of retention deleted from a partition."""

    topic: str
    partition: int
    start_offset: int
    """The oldest offset kept."""
    messages: int
    """The number of deleted messages."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """Messages that a group lost to retention: from *start_offset* up to, but not including, *end_offset*."""

    topic: str
    group: str
    partition: int
    kind: Literal["unread", "parked"]
    """Whether the group had not read them, or had parked them."""
    start_offset: int
    end_offset: int
    evicted_at: datetime
    """When the last of them was deleted, in UTC by the database's clock."""

    @property
    def messages(self) -> int:
        """The number of lost messages."""
        return self.end_offset - self.start_offset


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a group is behind in one partition, at one moment. All ages are by the database's clock."""

    topic: str
    group: str
    partition: int
    position: int
    """The offset that the group reads next if it restarts now."""
    end_offset: int
    """The offset of the next message to be appended."""
    lag_seconds: float
    """The age of the oldest message that is not committed, parked messages aside; 0.0 if there is none."""
    owner: str | None
    """The name of the live member that owns the partition, if there is one."""
    committed_at: datetime | None
    """When the position was committed; None if the group has committed nothing in the partition."""
    waiting: int
    """The number of parked messages, without dead letters."""
    dead: int
    """The number of dead letters."""

    @property
    def lag(self) -> int:
        """The number of messages that are not committed yet."""
        return self.end_offset - self.position


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """A group on a topic, its partitions in order, and the names of its live members."""

    topic: str
    name: str
    partitions: tuple[PartitionLag, ...]
    members: tuple[str, ...]
    start: Start
    """Where the group started when it was created. It reads partitions that were added later from their beginning."""

    @property
    def lag(self) -> int:
        """The number of messages that are not committed yet, over all partitions."""
        return sum(partition.lag for partition in self.partitions)

    @property
    def lag_seconds(self) -> float:
        """The age of the oldest message that is not committed, over all partitions; 0.0 if there is none."""
        return max((partition.lag_seconds for partition in self.partitions), default=0.0)

    @property
    def waiting(self) -> int:
        """The number of parked messages, without dead letters."""
        return sum(partition.waiting for partition in self.partitions)

    @property
    def dead(self) -> int:
        """The number of dead letters."""
        return sum(partition.dead for partition in self.partitions)


@dataclass(frozen=True, slots=True)
class MemberDescription:
    """A member of a group."""

    name: str
    joined_at: datetime
    heartbeat_seconds: float
    """The age of its last heartbeat."""
    lease_seconds: float
    """How long it keeps its partitions after its last heartbeat."""
    is_live: bool
    """Whether the lease has not ended yet."""
    wants_partitions: bool
    """Whether it owns fewer partitions than its share."""
    partitions: tuple[int, ...]
    """The partitions that it owns; of a dead member, those that no other member has taken over yet."""
    heartbeat_ahead_seconds: float = 0.0
    """How far its last heartbeat lies ahead of the database's clock, which was set back since; else 0."""


@dataclass(frozen=True, slots=True)
class PartitionReset:
    """How a reset moves a group in one partition, or would move it."""

    partition: int
    from_offset: int
    """The group's position before the reset."""
    to_offset: int
    """The offset that it reads next after the reset."""
    start_offset: int
    """The offset of the oldest message in the log: retention has deleted those before it."""
    end_offset: int
    """The offset of the next message to be appended."""
    forgotten: int
    """The number of messages that are no longer parked: the log delivers them again, or they waited in place and are skipped."""


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    """A message that a group has parked. Times are in UTC by the database's clock."""

    topic: str
    group: str
    partition: int
    offset: int
    key: bytes | None
    state: ParkedState
    attempts: int
    due_at: datetime | None
    """When it is retried, if no message of its key is before it; None if it is not retried: dead letters, stopped messages."""
    parked_at: datetime
    first_failed_at: datetime | None
    """None, like the next fields, if it waits behind another message of its key and was not tried yet."""
    last_failed_at: datetime | None
    error_type: str | None
    error: str | None

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset: pass it to ``list`` as *after* for the next page."""
        return self.partition, self.offset


@dataclass(frozen=True, slots=True)
class ParkedDetails(ParkedMessage):
    """A parked message with its content and its last traceback."""

    traceback: str | None
    message: ReceivedMessage | None
    """The message itself; None if it is no longer in the log."""


@dataclass(frozen=True, slots=True)
class BlockedKey:
    """A key of a partition whose messages wait, each behind the one before."""

    topic: str
    group: str
    partition: int
    key: bytes
    messages: int
    """The number of its parked messages, the first included. Later ones are parked when their turn comes."""
    first_offset: int
    """The offset of the first, which the others wait for."""
    state: ParkedState
    """The state of the first message; the next fields are about it, too."""
    attempts: int
    due_at: datetime | None
    blocked_since: datetime
    """When the oldest of them was parked."""

    @property
    def place(self) -> tuple[int, int]:
        """Partition and first offset: pass it to ``blocked_keys`` as *after* for the next page."""
        return self.partition, self.first_offset
