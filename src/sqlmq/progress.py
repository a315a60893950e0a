"""How far a consumer has come in one partition: what is read ahead, in hand, finished, committed.

Pure, and not safe to share between threads: the consumer's lock guards it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlmq.errors import OffsetGapError
from sqlmq.message import Message

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(eq=False, slots=True)
class Span:
    """Messages of one partition that are in somebody's hands: offsets *first* up to, not including, *end*."""

    progress: PartitionProgress
    first: int
    end: int
    is_left: bool = False
    """Whoever had them has left the loop in which he handled them, perhaps by an exception."""


@dataclass(eq=False, slots=True)
class PartitionProgress:
    """One claimed partition, from the position the group had when it was claimed.

    Offsets are dense and handed out in order, so a few numbers say it all: below ``committed`` everything is done and
    known to the database; below ``committable()`` everything is done; below ``next_offset`` everything was handed out.
    """

    topic: str
    partition: int
    partition_id: int
    epoch: int
    committed: int
    next_offset: int = field(init=False)
    pruned_to: int = 0
    """Below this, the group's old positions were deleted."""
    _ahead: deque[Message] = field(init=False, default_factory=deque)
    _in_hand: list[Span] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.next_offset = self.committed

    @property
    def read_position(self) -> int:
        """The offset to read next from the log."""
        return self.next_offset + len(self._ahead)

    @property
    def ahead(self) -> int:
        """How many messages are read and not handed out."""
        return len(self._ahead)

    @property
    def is_idle(self) -> bool:
        """Whether none of its messages is in anybody's hands."""
        return not self._in_hand

    def receive(self, messages: Sequence[Message]) -> None:
        """Keep *messages*, read from ``read_position`` on; raise OffsetGapError at an offset that is not there."""
        for expected, message in enumerate(messages, self.read_position):
            if message.offset != expected:
                raise OffsetGapError(self.topic, self.partition, expected=expected, found=message.offset or 0)
        self._ahead.extend(messages)

    def hand_out(self, at_most: int) -> tuple[list[Message], Span]:
        """Give up to *at_most* messages away, in order, with the span that stands for them until it is finished."""
        count = min(at_most, len(self._ahead))
        messages = [self._ahead.popleft() for _ in range(count)]
        span = Span(self, self.next_offset, self.next_offset + count)
        self.next_offset = span.end
        self._in_hand.append(span)
        return messages, span

    def finish(self, span: Span) -> None:
        """The messages of *span* are done."""
        self._in_hand.remove(span)

    def give_up(self, span: Span) -> None:
        """Nobody will finish *span*: it, and what was handed out after it, has to be read and handed out again."""
        self._in_hand.remove(span)
        self.next_offset = min(self.next_offset, span.first)
        self._ahead.clear()

    def drop_ahead(self) -> None:
        """Forget what is read ahead: it may be somebody else's by now, or soon."""
        self._ahead.clear()

    def committable(self) -> int:
        """The lowest offset that is not done: where a successor has to begin."""
        return min(self.next_offset, *(span.first for span in self._in_hand)) if self._in_hand else self.next_offset

    @property
    def has_uncommitted(self) -> bool:
        """Whether something is done that the database does not know of."""
        return self.committable() > self.committed
