"""One assigned partition: what of it is prefetched, in flight, acknowledged and committed.

Pure. Not safe to share between threads: the consumer's lock guards it, except for ``Delivery.take`` and what calls that.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlmq.model.message import ReceivedMessage, check_dense

if TYPE_CHECKING:
    from sqlmq.model.message import FetchedRecords


@dataclass(eq=False, slots=True)
class Delivery:
    """Messages of one partition that are in flight. The offset *first* is the lowest that is not done.

    A lazy delivery keeps its messages in *pending*. The loop that got it takes one after the other, without the
    consumer's lock. What it has not taken can be reclaimed at any moment, with the lock. That is safe because each
    message leaves the deque once, from one of its ends.
    """

    assigned: AssignedPartition
    first: int
    pending: deque[ReceivedMessage] = field(default_factory=deque)
    is_interrupted: bool = False
    """Whether the receiver has left the loop in which it handled them, perhaps by an exception."""

    def take(self) -> ReceivedMessage | None:
        """Return the next pending message, or None. The message before it is done."""
        try:
            message = self.pending.popleft()
        except IndexError:
            return None
        self.first = message.offset
        return message

    def take_together(self, count: int) -> bool:
        """Take the next *count* messages, which are done together. Return False if some of them were reclaimed."""
        is_complete = self.take() is not None
        first = self.first
        for _ in range(count - 1):
            is_complete = is_complete and self.take() is not None
        self.first = first  # none of them is done before all are
        return is_complete

    def skip_next(self) -> None:
        """Skip the next message. It was parked, so it must not be redelivered if the rest is requeued."""
        message = self.take()
        if message is not None:
            self.first += 1


class _Prefetched:
    """What is fetched and not delivered: first messages, and behind them rows of which no messages are built yet."""

    __slots__ = ("_messages", "_records", "_rows")

    def __init__(self) -> None:
        self._messages: deque[ReceivedMessage] = deque()
        self._records: deque[FetchedRecords] = deque()
        self._rows = 0

    def __len__(self) -> int:
        return len(self._messages) + self._rows

    def add(self, records: FetchedRecords) -> None:
        self._records.append(records)
        self._rows += len(records)

    def take(self, at_most: int) -> list[ReceivedMessage]:
        while len(self._messages) < at_most and self._records:
            records = self._records.popleft()
            self._rows -= len(records)
            self._messages.extend(records.messages())
        if at_most < len(self._messages):
            return [self._messages.popleft() for _ in range(at_most)]
        taken = list(self._messages)
        self._messages.clear()
        return taken

    def put_back(self, message: ReceivedMessage) -> None:
        self._messages.appendleft(message)

    def clear(self) -> None:
        self._messages.clear()
        self._records.clear()
        self._rows = 0


@dataclass(eq=False, slots=True)
class AssignedPartition:
    """A partition that is assigned to a consumer, read from the position that its group had then.

    Offsets are dense and delivered in order, so a few numbers hold the whole state. Everything below ``committed`` is
    done, and the database knows it. Everything below ``committable()`` is done. Everything below ``next_offset`` was
    delivered.
    """

    topic: str
    partition: int
    partition_id: int
    epoch: int
    committed: int
    log_start: int = 0
    """The oldest offset in the log when the partition was assigned."""
    next_offset: int = field(init=False)
    pruned_to: int = 0
    """The group's old positions below this were deleted."""
    old_positions: float = math.inf
    """How many old positions of the group are in the database. Unknown at first: earlier owners may have left some."""
    in_flight_to: int | None = None
    """The end of the messages that the database takes to be in flight; None if attempts are not counted."""
    maybe_attempted_to: int = 0
    """Messages below this that are not done may have been attempted without a record of their own."""
    _prefetched: _Prefetched = field(init=False, default_factory=_Prefetched)
    _in_flight: list[Delivery] = field(init=False, default_factory=list)
    _lazy_delivery: Delivery | None = field(init=False, default=None)
    """The one of them that has pending messages."""

    def __post_init__(self) -> None:
        self.next_offset = self.committed

    @property
    def read_position(self) -> int:
        """The offset to fetch next from the log."""
        return self.next_offset + len(self._prefetched)

    @property
    def is_behind(self) -> bool:
        """Whether the log is known to begin above the read position."""
        return self.read_position < self.log_start

    @property
    def prefetched(self) -> int:
        """How many messages are fetched and not delivered."""
        return len(self._prefetched)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it is in flight."""
        return not self._in_flight

    def receive(self, records: FetchedRecords) -> None:
        """Add *records*, which were fetched from ``read_position`` on. Raises OffsetGapError if an offset is missing."""
        check_dense(self.topic, self.partition, records.offsets(), self.read_position)
        self._prefetched.add(records)

    def deliver(self, at_most: int) -> tuple[list[ReceivedMessage], Delivery]:
        """Deliver up to *at_most* messages, in order. The delivery stands for them until it is acknowledged."""
        self.reclaim()
        messages = self._prefetched.take(at_most)
        return messages, self._new_delivery(len(messages))

    def deliver_lazily(self, at_most: int) -> Delivery:
        """Deliver up to *at_most* messages that their receiver takes one by one."""
        messages, delivery = self.deliver(at_most)
        delivery.pending.extend(messages)
        self._lazy_delivery = delivery
        return delivery

    def reclaim(self) -> None:
        """Move what is pending in a lazy delivery back to the front of what is prefetched."""
        delivery, self._lazy_delivery = self._lazy_delivery, None
        # Its receiver may take from the other end at this moment, so that the deque is empty before we know it.
        with suppress(IndexError):
            while delivery is not None:
                self._prefetched.put_back(delivery.pending.pop())
                self.next_offset -= 1

    def hold_partition(self) -> Delivery:
        """Keep the partition from being idle without delivering a message: one from below its position is in flight."""
        return self._new_delivery(0)

    def acknowledge(self, delivery: Delivery) -> None:
        """Note that what was taken of *delivery* is done."""
        self.reclaim()
        self._in_flight.remove(delivery)

    def requeue(self, delivery: Delivery) -> None:
        """Drop *delivery*, which will not be finished: its messages and those behind it are fetched again."""
        self.drop_prefetched()
        self._in_flight.remove(delivery)
        self.next_offset = min(self.next_offset, delivery.first)

    def drop_prefetched(self) -> None:
        """Forget what is prefetched or pending: the partition may be lost by now, or soon."""
        self.reclaim()
        self._prefetched.clear()

    def note_committed(self, offset: int) -> None:
        """Note that the database has the position *offset*."""
        self.committed = max(self.committed, offset)
        self.old_positions += 1

    def skip_to(self, offset: int) -> None:
        """Follow the group, which was moved to *offset* from elsewhere, unless something is in flight."""
        if self.is_idle and offset > self.next_offset:
            self.drop_prefetched()
            self.next_offset = offset
            self.note_committed(offset)

    def skip_evicted_to(self, end: int) -> bool:
        """Continue at *end*, because retention has deleted what is below it. Return False while messages are prefetched."""
        self.reclaim()
        if self._prefetched:
            return False
        self.next_offset = end
        return True

    def note_pruned(self, end: int) -> None:
        """Note that the group's positions below *end* were deleted."""
        self.pruned_to = end
        self.old_positions = 0

    def committable(self) -> int:
        """The lowest offset that is not done: where the next owner has to begin."""
        # A delivery that was requeued has moved next_offset back, perhaps below others that are still in flight.
        return min(self.next_offset, min((delivery.first for delivery in self._in_flight), default=self.next_offset))

    def _new_delivery(self, count: int) -> Delivery:
        delivery = Delivery(self, self.next_offset)
        self.next_offset += count
        self._in_flight.append(delivery)
        return delivery

    @property
    def has_recorded_in_flight(self) -> bool:
        """Whether the database takes messages that are not done to be in flight."""
        return (self.in_flight_to or 0) > self.committable()

    @property
    def maybe_attempted_beyond(self) -> int:
        """The end of the messages that are not done and may have been attempted; 0 if there are none."""
        return self.maybe_attempted_to if self.maybe_attempted_to > self.committable() else 0

    @property
    def has_uncommitted(self) -> bool:
        """Whether something is done that is not committed."""
        return self.committable() > self.committed
