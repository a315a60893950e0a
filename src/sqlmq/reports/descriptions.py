"""What there is, for people and programs to look at: topics, groups, how far each has come, what it has set aside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlmq.model.config import ParkedState
from sqlmq.model.message import Message
from sqlmq.model.positions import Start
from sqlmq.model.retention import Retention


@dataclass(frozen=True, slots=True)
class PartitionDescription:
    """One partition of a topic."""

    partition: int
    start_offset: int
    """The oldest offset kept."""
    end_offset: int
    """The offset the next message will get."""
    messages_per_second: float
    """How fast it has grown over the last minute."""
    estimated_bytes: int
    """About what its rows take, by its 100 newest messages: not counting what the database has not made free yet."""
    newest_at: datetime | None
    """When its newest message came; None if it has none."""

    @property
    def messages(self) -> int:
        """How many messages it holds."""
        return self.end_offset - self.start_offset


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic, its partitions in order, and the names of its groups."""

    name: str
    partitioner: str
    partitions: tuple[PartitionDescription, ...]
    groups: tuple[str, ...]
    retention: Retention
    """What it keeps; without any limit, everything."""

    @property
    def messages(self) -> int:
        """How many messages it holds."""
        return sum(partition.messages for partition in self.partitions)

    @property
    def messages_per_second(self) -> float:
        """How fast it has grown over the last minute."""
        return sum(partition.messages_per_second for partition in self.partitions)

    @property
    def estimated_bytes(self) -> int:
        """About what its messages take, by the 100 newest of each partition."""
        return sum(partition.estimated_bytes for partition in self.partitions)


@dataclass(frozen=True, slots=True)
class RetentionResult:
    """What a round of retention has deleted of a partition."""

    topic: str
    partition: int
    start_offset: int
    """The oldest offset kept."""
    messages: int
    """How many were deleted."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """Messages that a group has lost to retention: from *start_offset* up to, not including, *end_offset*."""

    topic: str
    group: str
    partition: int
    kind: Literal["unread", "parked"]
    """Not committed by the group, or set aside by it."""
    start_offset: int
    end_offset: int
    evicted_at: datetime
    """Aware, UTC, by the database's clock: when the last of them was lost."""

    @property
    def messages(self) -> int:
        """How many messages these are."""
        return self.end_offset - self.start_offset


@dataclass(frozen=True, slots=True)
class GroupPartition:
    """How far a group has come in one partition."""

    partition: int
    position: int
    """The offset the group will read next, if it starts again now."""
    end_offset: int
    owner: str | None
    """The name of the live member that reads it, if there is one."""
    lag_seconds: float
    """How old the oldest message is that is not committed; 0.0 if there is none."""
    committed_at: datetime | None
    """When it came to its position; None if the group has committed nothing there."""
    waiting: int
    """How many messages are set aside, dead letters not counted."""
    dead: int
    """How many dead letters there are."""

    @property
    def lag(self) -> int:
        """How many messages are not committed yet."""
        return self.end_offset - self.position


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """A group on a topic, its partitions in order, and the names of its live members."""

    topic: str
    name: str
    partitions: tuple[GroupPartition, ...]
    members: tuple[str, ...]
    start: Start
    """Where it was to start when it was made; partitions added later it reads from their beginning."""

    @property
    def lag(self) -> int:
        """How many messages are not committed yet, over all partitions."""
        return sum(partition.lag for partition in self.partitions)

    @property
    def lag_seconds(self) -> float:
        """How old the oldest message is that is not committed, over all partitions; 0.0 if there is none."""
        return max((partition.lag_seconds for partition in self.partitions), default=0.0)

    @property
    def waiting(self) -> int:
        """How many messages are set aside, dead letters not counted."""
        return sum(partition.waiting for partition in self.partitions)

    @property
    def dead(self) -> int:
        """How many dead letters there are."""
        return sum(partition.dead for partition in self.partitions)


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a group is behind in one partition, at one moment. All ages are by the database's clock."""

    topic: str
    group: str
    partition: int
    position: int
    """The offset the group will read next, if it starts again now."""
    end_offset: int
    """The offset the next message will get."""
    lag_seconds: float
    """How old the oldest message is that is not committed; 0.0 if there is none. What is set aside does not count."""
    owner: str | None
    """The name of the live member that reads it, if there is one."""
    committed_at: datetime | None
    """When it came to its position; None if the group has committed nothing there."""
    waiting: int
    """How many messages are set aside, dead letters not counted."""
    dead: int
    """How many dead letters there are."""

    @property
    def lag(self) -> int:
        """How many messages are not committed yet."""
        return self.end_offset - self.position


@dataclass(frozen=True, slots=True)
class MemberDescription:
    """A member of a group."""

    name: str
    joined_at: datetime
    heartbeat_seconds: float
    """How long ago it was last heard of."""
    lease_seconds: float
    """After how long without a heartbeat its partitions go to others."""
    is_live: bool
    """Whether that has not passed yet."""
    wants_partitions: bool
    """Whether it owns less than its share."""
    partitions: tuple[int, ...]
    """The numbers of the partitions that it owns; of one that is not live, those that nobody has taken over yet."""


@dataclass(frozen=True, slots=True)
class PartitionReset:
    """How a group is moved in one partition, or would be."""

    partition: int
    from_offset: int
    """The group's position before."""
    to_offset: int
    """The offset it reads next after that."""
    end_offset: int
    """The offset the next message will get."""
    forgotten: int
    """How many messages the group has set aside no more: they come again from the log, or were skipped in their place."""


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    """A message that a group has set aside. Moments are aware, UTC, by the database's clock."""

    topic: str
    group: str
    partition: int
    offset: int
    key: bytes | None
    state: ParkedState
    attempts: int
    due_at: datetime | None
    """When it is tried again, if none of its key is before it; None for what nobody tries: dead letters, stopped ones."""
    parked_at: datetime
    first_failed_at: datetime | None
    """None, like what follows, for a message that waits behind another one of its key and was not tried yet."""
    last_failed_at: datetime | None
    error_type: str | None
    error: str | None

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset: what ``list`` takes as *after*, to go on behind it."""
        return self.partition, self.offset


@dataclass(frozen=True, slots=True)
class ParkedDetails(ParkedMessage):
    """A parked message with all there is to know about it."""

    traceback: str | None
    message: Message | None
    """The message itself; None if it is not in the log any more."""


@dataclass(frozen=True, slots=True)
class BlockedKey:
    """A key of a partition whose messages wait, each behind the one before."""

    topic: str
    group: str
    partition: int
    key: bytes
    messages: int
    """How many of its messages are set aside, the first included; later ones are set aside when their turn comes."""
    first_offset: int
    """The offset of the first, which is what the others wait for."""
    state: ParkedState
    """The state of the first, and what follows is about it too."""
    attempts: int
    due_at: datetime | None
    blocked_since: datetime
    """When the oldest of them was set aside."""

    @property
    def place(self) -> tuple[int, int]:
        """Partition and first offset: what ``blocked_keys`` takes as *after*, to go on behind it."""
        return self.partition, self.first_offset
