"""What a consumer has read ahead of its partitions, and who has what of it in hand.

Not safe to share between threads: the consumer's lock guards it, but for ``leave``.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from sqlmq.consumer.prefetcher import FetchResult, Prefetcher
from sqlmq.errors import OffsetGapError
from sqlmq.operations import consume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlmq.consumer.coordinator import Coordinator
    from sqlmq.consumer.partition import AssignedPartition, Delivery
    from sqlmq.consumer.prefetcher import NextFetch, Positions
    from sqlmq.database.database import Database
    from sqlmq.model.config import MQConfig
    from sqlmq.model.message import FetchedRecords, Message

log = logging.getLogger("sqlmq.consumer")

_FETCH_MORE_SECONDS = 0.1
"""How often partitions that have nothing read ahead are looked at while others have."""
_WINDOW = 64
"""In how many partitions to look for more while there is a backlog."""
_CLOSE_SECONDS = 5.0
_MOST_AT_ONCE = 100_000
"""How many messages one look reads at the most, however many are asked for."""


class Receiver(Protocol):
    """Who gets messages and is to finish them: a thread, or a task. Equal to itself each time it asks."""

    @property
    def name(self) -> str:
        """What it is called in the log."""

    def is_alive(self) -> bool:
        """Whether it can still finish what it got."""

    def __hash__(self) -> int: ...


class FetchBuffer:
    """Reads on, hands out, takes back. What was handed out counts as in hand until it is finished or given up."""

    def __init__(self, database: Database, coordinator: Coordinator, options: MQConfig) -> None:
        self._database = database
        self._clock = database.clock
        self._coordinator = coordinator
        self._options = options
        self._buffered: dict[int, AssignedPartition] = {}
        """Partitions of which something was read ahead, those to be served next first; some may be empty, or lost."""
        self._in_flight: dict[Receiver, list[Delivery]] = {}
        self._lazy_delivery: Delivery | None = None
        self._fetch_more_at = 0.0
        self._prefetcher = Prefetcher(self._fetch)
        self._prefetch_at_most = options.read_messages
        self._has_backlog = False
        """Whether the last look found about as much as it asked for, so that there is likely to be more."""

    @property
    def has_in_flight(self) -> bool:
        """Whether anybody has something in hand."""
        return bool(self._in_flight)

    def fetch_more(self, at_most: int) -> None:
        """Read on in the partitions that have nothing read ahead; or take what was read meanwhile."""
        self.reclaim()
        if self._prefetcher.is_ready or (self._prefetcher.positions_under_way and not self._count_buffered()):
            read = self._prefetcher.receive()
            self._store_fetch(read)
            if under_way := self._prefetcher.positions_under_way:
                self._prefetcher.next_fetch = self._next_fetch(under_way, read.at_most)
        now = self._clock.monotonic()
        if self._count_buffered() and (now < self._fetch_more_at or self._prefetcher.positions_under_way):
            return
        self._fetch_more_at = now + _FETCH_MORE_SECONDS
        positions = self._positions(assigned for assigned in self.active() if not assigned.prefetched)
        if not positions:
            return
        at_most = min(max(at_most, self._options.read_messages), _MOST_AT_ONCE)
        self._prefetch_at_most = min(at_most, self._options.prefetch)
        evicted = self._store_fetch(self._fetch(positions, at_most))
        if evicted:
            self._store_fetch(self._fetch(self._positions(evicted), at_most))

    def is_ready(self, now: float) -> bool:
        """Whether something can be handed out *now*, before anything is due that asks the database or tells the log."""
        self.reclaim()
        return (
            now < self._fetch_more_at and self._count_buffered() > 0 and all(one.is_alive() for one in self._in_flight)
        )

    def deliver(self, receiver: Receiver, at_most: int) -> list[Message]:
        """Give *receiver* up to *at_most* messages, of several partitions if need be."""
        messages: list[Message] = []
        for assigned in self._partitions_with_messages():
            given, delivery = assigned.deliver(at_most - len(messages))
            messages.extend(given)
            self._in_flight.setdefault(receiver, []).append(delivery)
            if len(messages) == at_most:
                break
        self._start_prefetch()
        return messages

    def deliver_lazily(self, receiver: Receiver, at_most: int, *, is_shared: bool) -> list[Delivery]:
        """Lend a loop of *receiver* up to *at_most* messages of one partition; a single one if others want some, too."""
        assigned = next(self._partitions_with_messages(), None)
        if assigned is None:
            return []
        self._lazy_delivery = assigned.deliver_lazily(1 if is_shared or self._in_flight else at_most)
        self._in_flight[receiver] = [self._lazy_delivery]
        self._start_prefetch()
        return [self._lazy_delivery]

    def deliver_from_idle_partition(
        self, receiver: Receiver, wanted: Callable[[AssignedPartition], int]
    ) -> Delivery | None:
        """Lend *receiver* messages of a partition of which nobody has anything, as many as are *wanted* of it, if any."""
        for assigned in self._partitions_with_messages():
            if assigned.is_idle and (at_most := wanted(assigned)):
                delivery = assigned.deliver_lazily(at_most)
                self._in_flight[receiver] = [delivery]
                self._start_prefetch()
                return delivery
        return None

    def hold_partition(self, receiver: Receiver, assigned: AssignedPartition) -> Delivery:
        """Let *receiver* alone have to do with a partition, without any message of it."""
        delivery = assigned.hold_partition()
        self._in_flight[receiver] = [delivery]
        return delivery

    def reclaim(self) -> None:
        """What is lent to a loop, and not taken yet, is for whoever asks first."""
        if self._lazy_delivery is not None:
            self._lazy_delivery.assigned.reclaim()
            self._shelve(self._lazy_delivery.assigned)
            self._lazy_delivery = None

    def acknowledge(self, receiver: Receiver, *, include_interrupted: bool) -> None:
        """What *receiver* got before is done; where it left a loop only if that is wanted, else it comes again."""
        for delivery in self._in_flight.pop(receiver, ()):
            if delivery.is_interrupted and not include_interrupted:
                delivery.assigned.requeue(delivery)
            else:
                delivery.assigned.acknowledge(delivery)
                self._shelve(delivery.assigned)  # what was lent of it, and not taken, is back

    def requeue(self, receiver: Receiver) -> None:
        """What *receiver* got will not be finished: it comes again, to whoever asks."""
        for delivery in self._in_flight.pop(receiver, ()):
            delivery.assigned.requeue(delivery)

    def requeue_of_dead_receivers(self) -> list[str]:
        """A thread or task that ended with messages in hand will not finish them; return what they were called."""
        dead = [receiver for receiver in self._in_flight if not receiver.is_alive()]
        for receiver in dead:
            self.requeue(receiver)
        return [receiver.name for receiver in dead]

    def mark_interrupted(self, receiver: Receiver) -> None:
        """*receiver* has left the loop in which it got its messages."""
        # Without the lock, which may be held while the database is asked: nobody else touches what a receiver has.
        for delivery in self._in_flight.get(receiver, ()):
            delivery.is_interrupted = True

    def close(self) -> None:
        """Read nothing more ahead."""
        self._prefetcher.close(_CLOSE_SECONDS)

    def active(self) -> list[AssignedPartition]:
        """The claimed partitions, but for those that are to be handed back."""
        owned = self._coordinator
        return [assigned for id_, assigned in owned.assigned.items() if id_ not in owned.releasing]

    def _partitions_with_messages(self) -> Iterator[AssignedPartition]:
        """The partitions of which something can be handed out; the next to ask begins with another one."""
        for partition_id, assigned in list(self._buffered.items()):
            del self._buffered[partition_id]
            if assigned.prefetched and self._coordinator.assigned.get(partition_id) is assigned:
                self._buffered[partition_id] = assigned
                if partition_id not in self._coordinator.releasing:
                    yield assigned

    def _shelve(self, assigned: AssignedPartition) -> None:
        """Serve *progress* too, unless it is of an earlier claim: another one may have its place."""
        if self._coordinator.assigned.get(assigned.partition_id) is assigned:
            self._buffered[assigned.partition_id] = assigned

    def _count_buffered(self) -> int:
        """How many messages are read and not handed out."""
        return sum(assigned.prefetched for assigned in self._buffered.values())

    def _start_prefetch(self) -> None:
        """Begin to read, in another thread, as much as was asked for last, once there is room for it."""
        if (
            not self._has_backlog
            or self._prefetcher.positions_under_way
            or not self._database.dialect.reads_in_parallel
        ):
            return
        at_most = self._prefetch_at_most
        if self._count_buffered() + at_most > self._options.prefetch:
            return
        positions = self._positions(self.active())
        self._prefetcher.begin(positions, at_most, self._next_fetch(positions, at_most))

    def _next_fetch(self, positions: Positions, at_most: int) -> NextFetch:
        """Where to read after *positions*, if there is room for as much again: in those not read now, or in all again."""
        if 2 * at_most > self._options.prefetch:
            return None
        being_read = {assigned for assigned, _ in positions}
        others = self._positions(assigned for assigned in self.active() if assigned not in being_read)
        if others:
            return lambda _read: others
        return FetchResult.following_positions

    def _positions(self, progresses: Iterable[AssignedPartition]) -> Positions:
        """Where to read on: everywhere, or while there is enough to be read, where it was not done lately."""
        some = islice(progresses, _WINDOW) if self._has_backlog else progresses
        return [(assigned, assigned.read_position) for assigned in some]

    def _fetch(self, positions: Positions, at_most: int) -> FetchResult:
        found = self._database.read(consume.fetch, positions, limit=at_most, max_bytes=self._options.read_bytes)
        return FetchResult(positions, found, at_most)

    def _store_fetch(self, read: FetchResult) -> list[AssignedPartition]:
        """Keep what was *read*, as far as it follows what is kept; return the partitions to read again.

        They are those of which retention has deleted what was next.
        """
        claimed, found = self._coordinator.assigned, read.found
        evicted = []
        unfound = set(found)
        for assigned, position in read.positions:
            id_ = assigned.partition_id
            if claimed.get(id_) is assigned:
                if assigned.read_position == position:
                    if not self._receive(assigned, found.get(id_)):
                        evicted.append(assigned)
                    self._buffered[id_] = assigned
                # To the end of the row, as far as was looked.
                claimed[id_] = claimed.pop(id_)
            unfound.discard(id_)
            if found and not unfound:
                break
        self._has_backlog = read.is_backlog
        return evicted

    def _receive(self, assigned: AssignedPartition, records: FetchedRecords | None) -> bool:
        """Keep *arrival*; return False if retention has deleted what is missing before it, and it is passed over."""
        if records is None:
            return not assigned.is_behind or not self._coordinator.skip_evicted(assigned)
        try:
            assigned.receive(records)
        except OffsetGapError:
            if not self._coordinator.skip_evicted(assigned):
                raise
            return False
        return True
