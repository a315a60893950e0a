"""The messages that a consumer has fetched, and the receivers that have some of them in flight.

Not safe to share between threads: the consumer's lock guards it, except for ``mark_interrupted``.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from sqlmq.consumer.prefetcher import FetchResult, NextFetch, Prefetcher
from sqlmq.errors import OffsetGapError
from sqlmq.operations import consume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlmq.consumer.coordinator import Coordinator
    from sqlmq.consumer.partition import AssignedPartition, Delivery
    from sqlmq.consumer.prefetcher import Positions
    from sqlmq.database.database import Database
    from sqlmq.model.config import MQConfig
    from sqlmq.model.message import FetchedRecords, ReceivedMessage

log = logging.getLogger("sqlmq.consumer")

_FETCH_MORE_SECONDS = 0.1
"""How often partitions without buffered messages are read while other partitions have some."""
_WINDOW = 64
"""How many partitions one fetch reads while there is a backlog."""
_CLOSE_SECONDS = 5.0
_MAX_FETCH_MESSAGES = 100_000
"""How many messages one fetch reads at most, whatever the caller asks for."""


class Receiver(Protocol):
    """A thread, task or worker that gets messages and has to finish them.

    Deliveries are kept by receiver, so it must be hashable, and equal to itself at each call. A ``threading.Thread`` is one.
    """

    @property
    def name(self) -> str:
        """Its name in log records."""

    def is_alive(self) -> bool:
        """Whether it can still finish what it got. When it can't, its messages are delivered again."""

    def __hash__(self) -> int: ...


class _RoundRobin:
    """The order in which partitions are served. It is the order of the coordinator's dict, where ``fetch`` begins to read."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def served(self, partition_id: int) -> None:
        """Move a partition behind all others, because it was read just now."""
        assigned = self._coordinator.assigned
        assigned[partition_id] = assigned.pop(partition_id)


class FetchBuffer:
    """Fetches messages, delivers them, and takes them back.

    A delivery is in flight until its receiver acknowledges it, or until it is requeued.
    """

    def __init__(self, database: Database, coordinator: Coordinator, options: MQConfig) -> None:
        self._database = database
        self._clock = database.clock
        self._coordinator = coordinator
        self._options = options
        self._round_robin = _RoundRobin(coordinator)
        self._buffered: dict[int, AssignedPartition] = {}
        """Partitions that have had buffered messages, next to be served first; some may be empty by now, or lost."""
        self._in_flight: dict[Receiver, list[Delivery]] = {}
        self._lazy_delivery: Delivery | None = None
        self._fetch_more_at = 0.0
        self._prefetcher = Prefetcher(self._fetch)
        self._prefetch_at_most = options.read_messages
        self._has_backlog = False
        """Whether the last fetch was full enough to expect more messages."""

    @property
    def has_in_flight(self) -> bool:
        """Whether any receiver has messages in flight."""
        return bool(self._in_flight)

    def fetch_more(self, at_most: int) -> None:
        """Take over what was prefetched; read the partitions without buffered messages if that is due."""
        self.reclaim()
        prefetcher = self._prefetcher
        # Without anything to deliver, wait for the prefetch: a second read beside it would find the same messages.
        if prefetcher.is_ready or (prefetcher.positions_under_way and not self._count_buffered()):
            self._collect_prefetched()

        now = self._clock.monotonic()
        has_more_coming = now < self._fetch_more_at or bool(prefetcher.positions_under_way)
        if self._count_buffered() and has_more_coming:
            return
        self._fetch_more_at = now + _FETCH_MORE_SECONDS
        positions = self._positions(assigned for assigned in self.active() if not assigned.prefetched)
        if not positions:
            return

        at_most = min(max(at_most, self._options.read_messages), _MAX_FETCH_MESSAGES)
        self._prefetch_at_most = min(at_most, self._options.prefetch)
        evicted = self._store_fetch(self._fetch(positions, at_most))
        if evicted:
            self._store_fetch(self._fetch(self._positions(evicted), at_most))

    def is_ready(self, now: float) -> bool:
        """Whether messages can be delivered at *now*, and nothing is due before that needs the database or the log."""
        self.reclaim()
        has_messages = now < self._fetch_more_at and self._count_buffered() > 0
        return has_messages and all(receiver.is_alive() for receiver in self._in_flight)

    def deliver(self, receiver: Receiver, at_most: int) -> list[ReceivedMessage]:
        """Deliver up to *at_most* messages to *receiver*, of as many partitions as that takes."""
        messages: list[ReceivedMessage] = []
        for assigned in self._partitions_with_messages():
            delivered, delivery = assigned.deliver(at_most - len(messages))
            messages.extend(delivered)
            self._in_flight.setdefault(receiver, []).append(delivery)
            if len(messages) == at_most:
                break
        self._start_prefetch()
        return messages

    def deliver_lazily(self, receiver: Receiver, at_most: int, *, is_shared: bool) -> list[Delivery]:
        """Deliver up to *at_most* messages of one partition to a loop; one message if other receivers want some too."""
        assigned = next(self._partitions_with_messages(), None)
        if assigned is None:
            return []
        self._lazy_delivery = assigned.deliver_lazily(1 if is_shared or self._in_flight else at_most)
        self._in_flight[receiver] = [self._lazy_delivery]
        self._start_prefetch()
        return [self._lazy_delivery]

    def idle_partitions_with_messages(self) -> Iterator[AssignedPartition]:
        """Yield the partitions that have messages to deliver and none in flight, in the order in which they are served."""
        return (assigned for assigned in self._partitions_with_messages() if assigned.is_idle)

    def deliver_from(self, receiver: Receiver, assigned: AssignedPartition, at_most: int) -> Delivery:
        """Deliver up to *at_most* messages of *assigned*, of which nothing is in flight, to *receiver* alone."""
        delivery = assigned.deliver_lazily(at_most)
        self._in_flight[receiver] = [delivery]
        self._start_prefetch()
        return delivery

    def hold_partition(self, receiver: Receiver, assigned: AssignedPartition) -> Delivery:
        """Reserve a partition for *receiver* without delivering any message of it."""
        delivery = assigned.hold_partition()
        self._in_flight[receiver] = [delivery]
        return delivery

    def reclaim(self) -> None:
        """Take back what a loop has not taken yet of its lazy delivery, for the receiver that asks now."""
        if self._lazy_delivery is not None:
            self._lazy_delivery.assigned.reclaim()
            self._add_buffered(self._lazy_delivery.assigned)
            self._lazy_delivery = None

    def acknowledge(self, receiver: Receiver, *, include_interrupted: bool) -> None:
        """Acknowledge what *receiver* got before.

        The message at which it left a loop is requeued, unless *include_interrupted*.
        """
        for delivery in self._in_flight.pop(receiver, ()):
            if delivery.is_interrupted and not include_interrupted:
                delivery.assigned.requeue(delivery)
            else:
                delivery.assigned.acknowledge(delivery)
                self._add_buffered(delivery.assigned)  # has what a lazy delivery had left

    def acknowledge_all(self, chosen: Callable[[Receiver], bool]) -> None:
        """Acknowledge what the *chosen* receivers got, but for the messages at which they left a loop."""
        for receiver in filter(chosen, list(self._in_flight)):
            self.acknowledge(receiver, include_interrupted=False)

    def requeue(self, receiver: Receiver) -> None:
        """Requeue what *receiver* got and will not finish: the next receiver that asks gets it."""
        for delivery in self._in_flight.pop(receiver, ()):
            delivery.assigned.requeue(delivery)

    def requeue_of_dead_receivers(self) -> list[str]:
        """Requeue the messages of threads and tasks that have ended without finishing them; return their names."""
        dead = [receiver for receiver in self._in_flight if not receiver.is_alive()]
        for receiver in dead:
            self.requeue(receiver)
        return [receiver.name for receiver in dead]

    def mark_interrupted(self, receiver: Receiver) -> None:
        """Note that *receiver* has left the loop in which it got its messages: the last one is not done."""
        # Without the lock, which another thread may hold while it asks the database. Only the receiver itself changes
        # its deliveries.
        for delivery in self._in_flight.get(receiver, ()):
            delivery.is_interrupted = True

    def close(self) -> None:
        """End the prefetcher."""
        self._prefetcher.close(_CLOSE_SECONDS)

    def active(self) -> list[AssignedPartition]:
        """The assigned partitions, except for those that are being released."""
        coordinator = self._coordinator
        return [assigned for id_, assigned in coordinator.assigned.items() if id_ not in coordinator.releasing]

    def _partitions_with_messages(self) -> Iterator[AssignedPartition]:
        """Yield the partitions with messages to deliver. Each goes behind the others, so the next call begins with another."""
        for partition_id, assigned in list(self._buffered.items()):
            del self._buffered[partition_id]
            if assigned.prefetched and self._coordinator.assigned.get(partition_id) is assigned:
                self._buffered[partition_id] = assigned
                if partition_id not in self._coordinator.releasing:
                    yield assigned

    def _add_buffered(self, assigned: AssignedPartition) -> None:
        """Serve *assigned* too, unless it is of an earlier claim: the partition may be assigned again by now."""
        if self._coordinator.assigned.get(assigned.partition_id) is assigned:
            self._buffered[assigned.partition_id] = assigned

    def _count_buffered(self) -> int:
        """How many messages are fetched and not delivered."""
        return sum(assigned.prefetched for assigned in self._buffered.values())

    def _collect_prefetched(self) -> None:
        """Wait for the prefetch under way and store its result. Tell the one that follows it where to go on."""
        result = self._prefetcher.receive()
        self._store_fetch(result)
        if positions := self._prefetcher.positions_under_way:
            self._prefetcher.next_fetch = self._next_fetch(positions, result.at_most)

    def _start_prefetch(self) -> None:
        """Begin to fetch in the prefetcher's thread, if there is a backlog, and room for as much as was asked for last."""
        if not self._has_backlog or self._prefetcher.positions_under_way:
            return
        at_most = self._prefetch_at_most
        if not self._database.dialect.reads_in_parallel or self._count_buffered() + at_most > self._options.prefetch:
            return
        positions = self._positions(self.active())
        self._prefetcher.begin(positions, at_most, self._next_fetch(positions, at_most))

    def _next_fetch(self, positions: Positions, at_most: int) -> NextFetch | None:
        """Where to read after *positions*; None if there is no room for as much again."""
        if 2 * at_most > self._options.prefetch:
            return None
        being_read = {assigned for assigned, _ in positions}
        return NextFetch(self._positions(assigned for assigned in self.active() if assigned not in being_read))

    def _positions(self, partitions: Iterable[AssignedPartition]) -> Positions:
        """Where to read *partitions* on; with a backlog, only those that were read least recently."""
        some = islice(partitions, _WINDOW) if self._has_backlog else partitions
        return [(assigned, assigned.read_position) for assigned in some]

    def _fetch(self, positions: Positions, at_most: int) -> FetchResult:
        found = self._database.read(consume.fetch, positions, limit=at_most, max_bytes=self._options.read_bytes)
        return FetchResult(positions, found, at_most)

    def _store_fetch(self, result: FetchResult) -> list[AssignedPartition]:
        """Buffer what follows the messages that are buffered already.

        Returns the partitions to read again: retention has deleted what they were read for, and they skip it.
        """
        assigned_now, found = self._coordinator.assigned, result.found
        evicted = []
        for assigned, position in _served(result):
            id_ = assigned.partition_id
            if assigned_now.get(id_) is not assigned:
                continue  # lost, or lost and assigned again, while the database was read
            # Otherwise messages were requeued or dropped meanwhile, and have to be read first.
            if assigned.read_position == position:
                if not self._receive(assigned, found.get(id_)):
                    evicted.append(assigned)
                self._buffered[id_] = assigned
            self._round_robin.served(id_)
        self._has_backlog = result.is_backlog
        return evicted

    def _receive(self, assigned: AssignedPartition, records: FetchedRecords | None) -> bool:
        """Buffer *records*. Return False if retention has deleted messages before them, and *assigned* skips those."""
        if records is None:
            return not assigned.is_behind or not self._coordinator.skip_evicted(assigned)
        try:
            assigned.receive(records)
        except OffsetGapError:
            if not self._coordinator.skip_evicted(assigned):
                raise
            return False
        return True


def _served(result: FetchResult) -> Positions:
    """The positions of *result* up to the last partition with messages; all, if none has any.

    A fetch ends when it has enough. Partitions behind the last one found may never have been read, so they keep their turn.
    """
    if not result.found:
        return result.positions
    last = max(index for index, (assigned, _) in enumerate(result.positions) if assigned.partition_id in result.found)
    return result.positions[: last + 1]
