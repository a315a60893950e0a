"""What there is, for people and programs to look at: topics, groups, and how far each group has come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PartitionDescription:
    """One partition of a topic."""

    number: int
    start_offset: int
    """The oldest offset kept."""
    end_offset: int
    """The offset the next message will get."""

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

    @property
    def messages(self) -> int:
        """How many messages it holds."""
        return sum(partition.messages for partition in self.partitions)


@dataclass(frozen=True, slots=True)
class GroupPartition:
    """How far a group has come in one partition."""

    number: int
    position: int
    """The offset the group will read next, if it starts again now."""
    end_offset: int
    owner: str | None
    """The name of the live member that reads it, if there is one."""

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

    @property
    def lag(self) -> int:
        """How many messages are not committed yet, over all partitions."""
        return sum(partition.lag for partition in self.partitions)
