"""The configuration of an MQ: every option with its unit, its default and its reason."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from sqlmq.model import validation

ParkedState: TypeAlias = Literal["waiting", "held", "stopped", "dead"]
"""The state of a parked message: waiting for its retry; its partition waits for its retry; its partition waits for a
decision; a dead letter."""

OnEvicted: TypeAlias = Literal["raise", "earliest"]
"""The reaction of a consumer after retention deleted messages that its group had not read: raise, or continue with the
oldest message."""


@dataclass(frozen=True, slots=True)
class MQConfig:
    """The options of an MQ, and the only place of their defaults. Every number of seconds may have a fraction."""

    create_topics: bool = True
    """Create a missing topic that a producer or consumer names; otherwise UnknownTopicError."""
    default_partitions: int = 3
    """How many partitions a topic created that way gets."""
    max_message_bytes: int = 1024 * 1024
    """The maximum size of a value, a key or headers, in a producer and in copies of parked messages."""
    lease_seconds: float = 10.0
    """How long a consumer keeps its partitions after its last heartbeat. It sends three heartbeats in that time."""
    max_poll_seconds: float = 300.0
    """A consumer that does not ask for messages for this long releases its partitions."""
    commit_interval_seconds: float = 0.2
    """How long finished messages may wait to be committed together. After a crash those are delivered again."""
    durable_commits: bool = True
    """Wait for the disk when positions are committed. Without it, a crash of the server may redeliver the messages of
    about the last second; messages and effects are durable either way. Postgres only."""
    prefetch: int = 4000
    """How many messages a consumer reads ahead, over all its partitions: half of them while the others are handled."""
    prefetch_bytes: int = 8 * 1024 * 1024
    """How many bytes of values a consumer reads ahead. One message of each partition always fits."""
    poll_min_seconds: float = 0.005
    """The first pause of an idle consumer between two polls. It doubles from poll to poll."""
    poll_max_seconds: float = 1.0
    """The longest pause of an idle consumer between two polls."""
    response_timeout_seconds: float = 30.0
    """How long the database may be silent after a request before the connection is given up. Postgres only."""
    notify: bool = True
    """Notify other processes, and listen for their notifications, where the database can. Otherwise they poll."""

    @property
    def read_messages(self) -> int:
        """How many messages one fetch reads, unless the caller asks for more."""
        return max(1, self.prefetch // 2)

    @property
    def read_bytes(self) -> int:
        """How many bytes of values one fetch reads."""
        return max(1, self.prefetch_bytes // 2)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                validation.boolean(field.name, value)
            elif field.type == "int":
                validation.integer(field.name, value)
            else:
                validation.seconds(field.name, value, may_be_zero=False)
        validation.check_partitions(self.default_partitions)
