"""How far a consumer has come in one partition: what is read ahead, in hand, finished, committed.

Pure, and not safe to share between threads: the consumer's lock guards it.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlmq.model.message import Message, check_dense

if TYPE_CHECKING:
    from sqlmq.model.message import FetchedRecords


@dataclass(eq=False, slots=True)
class Delivery:
    """Messages of one partition that are in somebody's hands, from the offset *first* on, which is the lowest not done.

    Those of a loop are lent to it: it takes one after the other, without the consumer's lock, and what it has not taken
    can be recalled under the lock at any moment. That works because each message leaves the deque once, at one end.
    """

    assigned: AssignedPartition
    first: int
    pending: deque[Message] = field(default_factory=deque)
    is_interrupted: bool = False
    """Whoever had them has left the loop in which he handled them, perhaps by an exception."""

    def take(self) -> Message | None:
        """The next message that is lent, None if there is none; the one before is done."""
        try:
            message = self.pending.popleft()
        except IndexError:
            return None
        self.first = message.offset or 0
        return message

    def take_together(self, count: int) -> bool:
        """Take the next *count* messages, none of which is done before all are; return False if they were recalled."""
        first = self.first
        for number in range(count):
            message = self.take()
            if number == 0:
                first = self.first
            if message is None:
                self.first = first
                return False
        self.first = first
        return True

    def skip_next(self) -> None:
        """Be done with the next message that is lent: it stands elsewhere, and does not come again if this is given up."""
        message = self.take()
        if message is not None:
            self.first += 1


class _Prefetched:
    """What is read and not handed out: messages, and after them rows of which none are made yet."""

    __slots__ = ("_arrivals", "_in_rows", "_made")

    def __init__(self) -> None:
        self._made: deque[Message] = deque()
        self._arrivals: deque[FetchedRecords] = deque()
        self._in_rows = 0

    def __len__(self) -> int:
        return len(self._made) + self._in_rows

    def add(self, records: FetchedRecords) -> None:
        self._arrivals.append(records)
        self._in_rows += len(records)

    def take(self, at_most: int) -> list[Message]:
        while len(self._made) < at_most and self._arrivals:
            records = self._arrivals.popleft()
            self._in_rows -= len(records)
            self._made.extend(records.messages())
        if at_most < len(self._made):
            return [self._made.popleft() for _ in range(at_most)]
        taken = list(self._made)
        self._made.clear()
        return taken

    def put_back(self, message: Message) -> None:
        self._made.appendleft(message)

    def clear(self) -> None:
        self._made.clear()
        self._arrivals.clear()
        self._in_rows = 0


@dataclass(eq=False, slots=True)
class AssignedPartition:
    """One claimed partition, from the position the group had when it was claimed.

    Offsets are dense and handed out in order, so a few numbers say it all: below ``committed`` everything is done and
    known to the database; below ``committable()`` everything is done; below ``next_offset`` everything was handed out.
    """

    topic: str
    partition: int
    partition_id: int
    epoch: int
    committed: int
    log_start: int = 0
    """The oldest offset that was kept when the partition was claimed."""
    next_offset: int = field(init=False)
    pruned_to: int = 0
    """Below this, the group's old positions were deleted."""
    old_positions: float = math.inf
    """How many of the group's old positions there are; nobody knows, at first, how many the owners before have left."""
    in_flight_to: int | None = None
    """Up to where the database takes messages to be in a handler's hands; None if attempts are not counted."""
    maybe_attempted_to: int = 0
    """Below this, messages that are not done may have been tried, by attempts that have no record of their own."""
    _prefetched: _Prefetched = field(init=False, default_factory=_Prefetched)
    _in_flight: list[Delivery] = field(init=False, default_factory=list)
    _lazy_delivery: Delivery | None = field(init=False, default=None)
    """The one of them of which something is lent."""

    def __post_init__(self) -> None:
        self.next_offset = self.committed

    @property
    def read_position(self) -> int:
        """The offset to read next from the log."""
        return self.next_offset + len(self._prefetched)

    @property
    def is_behind(self) -> bool:
        """Whether the log is known to begin later than where it is to be read."""
        return self.read_position < self.log_start

    @property
    def prefetched(self) -> int:
        """How many messages are read and not handed out."""
        return len(self._prefetched)

    @property
    def is_idle(self) -> bool:
        """Whether none of its messages is in anybody's hands."""
        return not self._in_flight

    def receive(self, records: FetchedRecords) -> None:
        """Keep *arrival*, read from ``read_position`` on; raise OffsetGapError at an offset that is not there."""
        check_dense(self.topic, self.partition, records.offsets(), self.read_position)
        self._prefetched.add(records)

    def deliver(self, at_most: int) -> tuple[list[Message], Delivery]:
        """Give up to *at_most* messages away, in order, with the span that stands for them until it is finished."""
        self.reclaim()
        messages = self._prefetched.take(at_most)
        return messages, self._new_delivery(len(messages))

    def deliver_lazily(self, at_most: int) -> Delivery:
        """Lend up to *at_most* messages to a loop, which takes them in order."""
        messages, delivery = self.deliver(at_most)
        delivery.pending.extend(messages)
        self._lazy_delivery = delivery
        return delivery

    def reclaim(self) -> None:
        """Take back, to the front of what is read ahead, what was lent and is not taken yet."""
        delivery, self._lazy_delivery = self._lazy_delivery, None
        # A loop may take from the other end at this very moment.
        with suppress(IndexError):
            while delivery is not None:
                self._prefetched.put_back(delivery.pending.pop())
                self.next_offset -= 1

    def hold_partition(self) -> Delivery:
        """A span of no message: something else of the partition is in somebody's hands."""
        return self._new_delivery(0)

    def acknowledge(self, delivery: Delivery) -> None:
        """What was taken of *span* is done."""
        self.reclaim()
        self._in_flight.remove(delivery)

    def requeue(self, delivery: Delivery) -> None:
        """Nobody will finish *span*: it, and what was handed out after it, has to be read and handed out again."""
        self.drop_prefetched()
        self._in_flight.remove(delivery)
        self.next_offset = min(self.next_offset, delivery.first)

    def drop_prefetched(self) -> None:
        """Forget what is read ahead, or lent: it may be somebody else's by now, or soon."""
        self.reclaim()
        self._prefetched.clear()

    def note_committed(self, offset: int) -> None:
        """The database knows that everything below *offset* is done."""
        self.committed = max(self.committed, offset)
        self.old_positions += 1

    def skip_to(self, offset: int) -> None:
        """Somebody else has moved the group on to *offset*, while nothing was in anybody's hands."""
        if self.is_idle and offset > self.next_offset:
            self.drop_prefetched()
            self.next_offset = offset
            self.note_committed(offset)

    def skip_evicted_to(self, end: int) -> bool:
        """Read on at *end*: what is before it, and was not read, is in the log no more. Only once all read is handed out."""
        self.reclaim()
        if self._prefetched:
            return False
        self.next_offset = end
        return True

    def note_pruned(self, end: int) -> None:
        """The database has no position below *end* any more."""
        self.pruned_to = end
        self.old_positions = 0

    def committable(self) -> int:
        """The lowest offset that is not done: where a successor has to begin."""
        return (
            min(self.next_offset, *(delivery.first for delivery in self._in_flight))
            if self._in_flight
            else self.next_offset
        )

    def _new_delivery(self, count: int) -> Delivery:
        delivery = Delivery(self, self.next_offset)
        self.next_offset += count
        self._in_flight.append(delivery)
        return delivery

    @property
    def has_recorded_in_flight(self) -> bool:
        """Whether the database takes messages that are not done to be in a handler's hands."""
        return (self.in_flight_to or 0) > self.committable()

    @property
    def maybe_attempted_beyond(self) -> int:
        """Up to where messages that are not done may have been tried; 0 if none have."""
        return self.maybe_attempted_to if self.maybe_attempted_to > self.committable() else 0

    @property
    def has_uncommitted(self) -> bool:
        """Whether something is done that the database does not know of."""
        return self.committable() > self.committed
