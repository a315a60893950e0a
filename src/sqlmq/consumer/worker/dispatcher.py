"""Which messages a worker handles next: parked ones that are due, then those of the log.

Not safe to share between threads: the consumer's lock guards it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlmq.consumer.coordinator import claim_of
from sqlmq.consumer.partition import AssignedPartition, Delivery
from sqlmq.consumer.worker.parked_keys import ParkedEntry, ParkedKeys
from sqlmq.model.message import ReceivedMessage
from sqlmq.model.retry import attempts_of_interrupted
from sqlmq.operations import attempts, consume
from sqlmq.operations.attempts import ClaimedPartition
from sqlmq.store.offsets import Commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.worker.config import RunConfig
    from sqlmq.store.parked import ParkedRow

log = logging.getLogger("sqlmq.consumer")

_REFRESH_POLLS = 5
"""How many poll intervals apart the rows of parked messages are read again: operators may have changed them."""
_REFRESH_POLLS_WHEN_IDLE = 10
"""How many, unless a wake-up hints at a change: each time costs an idle consumer a statement."""
_LOOK_AHEAD = 100
"""How many more messages to take than are wanted, where some may have to be parked behind their keys."""


@dataclass(eq=False, slots=True)
class Attempt:
    """Messages of one partition that one worker handles. No other worker has that partition meanwhile."""

    assigned: AssignedPartition
    claimed_partition: ClaimedPartition
    parked_keys: ParkedKeys
    delivery: Delivery
    messages: list[ReceivedMessage]
    """The messages to handle, in order."""
    to_park: list[ParkedEntry] = field(default_factory=list)
    """The messages before them, whose keys are parked."""
    entry: ParkedEntry | None = None
    """What is known about the only message, if it has a record of its own."""
    is_parked: bool = False
    """Whether the only message is parked, below the group's position."""
    current: list[ReceivedMessage] = field(default_factory=list)
    """What the handler got last."""
    taken: int = 0
    """How many of the messages the handler has got."""
    is_settling: bool = False
    """Whether the handler has returned, and its transaction is being committed."""
    has_ended: bool = False
    """Whether its outcome is decided."""

    def next_batch(self, *, together: bool) -> list[ReceivedMessage]:
        """Take the next messages for the handler: one, or *together* all; those before are done.

        Empty at the end, and if the partition was lost.
        """
        if self.taken == len(self.messages):
            return []
        count = len(self.messages) if together else 1
        if count > 1:
            batch = self.messages if self.delivery.take_together(count) else []
        else:
            # A parked message is not part of the delivery, which only holds its partition.
            message = self.messages[self.taken] if self.is_parked else self.delivery.take()
            batch = [] if message is None else [message]
        if batch:
            self.taken += count
            self.current = batch
        return batch

    def position(self, offset: int, *, in_flight_to: int = 0) -> Commit:
        """The group's position at *offset*, with the end of what is in flight, now or when the owner before crashed."""
        in_flight_to = max(in_flight_to, self.parked_keys.maybe_attempted_to)
        return Commit(self.assigned.partition_id, offset, in_flight_to if in_flight_to > offset else 0)


def killed_by_message(position: int, in_flight_to: int) -> bool:
    """Whether the owner before crashed during an attempt at the message at *position*.

    That is certain only if this was the only message in flight. Of several, any may have been in the handler.
    """
    return in_flight_to == position + 1


class Dispatcher:
    """Knows the parked messages of each assigned partition, and chooses the next attempt."""

    def __init__(self, core: ConsumerCore, config: RunConfig) -> None:
        self._database = core.database
        self._clock = core.clock
        self._coordinator = core.coordinator
        self._buffer = core.buffer
        self._poll_seconds = core.config.poll_max_seconds
        self._config = config
        self._parked_keys: dict[int, tuple[AssignedPartition, ParkedKeys]] = {}
        """Of each assigned partition, by its id. A partition that was lost and assigned again has another first part."""
        self._refresh_at = 0.0
        self._is_woken = False
        self._full: set[int] = set()

    def next_attempt(self, worker: Receiver, batch_hint: int) -> Attempt | None:
        """The next attempt for *worker*: a parked message that is due, else up to *batch_hint* messages of a log; or None.

        Reads the parked messages of newly assigned partitions, and from time to time those of all idle ones.
        """
        now = self._clock.monotonic()
        self._update(now)
        for assigned, parked_keys in self._parked_keys.values():
            if assigned.is_idle and self._is_active(assigned) and (entry := parked_keys.due(now)):
                return self._attempt_at_parked(worker, assigned, parked_keys, entry)
        for assigned in self._buffer.idle_partitions_with_messages():
            if at_most := self._wanted_from_log(assigned, batch_hint, now):
                return self._attempt_at_log(self._buffer.deliver_from(worker, assigned, at_most), batch_hint)
        return None

    def next_check_at(self) -> float:
        """When, by the monotonic clock, ``next_attempt`` may find something without a wake-up.

        That is when an attempt is due in an idle partition, or when rows are to be read again.
        """
        extra_polls = 0 if self._is_woken else _REFRESH_POLLS_WHEN_IDLE - _REFRESH_POLLS
        due = (parked_keys.next_due_at() for assigned, parked_keys in self._parked_keys.values() if assigned.is_idle)
        return min((self._refresh_at + extra_polls * self._poll_seconds, *due))

    def check_soon(self) -> None:
        """Read rows again a little earlier: after a wake-up, operators may have changed them."""
        self._is_woken = True

    def forget(self, assigned: AssignedPartition) -> None:
        """Read the rows of *assigned* before its next attempt, because what is known here may be wrong."""
        self._parked_keys.pop(assigned.partition_id, None)

    def __len__(self) -> int:
        """How many messages wait for another attempt."""
        return sum(len(parked_keys) + parked_keys.is_blocked for _, parked_keys in self._parked_keys.values())

    # What is known of each partition.

    def _update(self, now: float) -> None:
        """Read the rows of partitions that are new here, and if it is time, of all idle ones."""
        assigned_now = self._coordinator.assigned
        self._parked_keys = {
            id_: known for id_, known in self._parked_keys.items() if assigned_now.get(id_) is known[0]
        }
        active = self._buffer.active()
        new = [assigned for assigned in active if assigned.partition_id not in self._parked_keys]
        to_refresh: list[AssignedPartition] = []
        if now >= self._refresh_at:
            self._refresh_at = now + _REFRESH_POLLS * self._poll_seconds
            self._is_woken = False
            to_refresh = [
                assigned for assigned in active if assigned.partition_id in self._parked_keys and assigned.is_idle
            ]
        if not new and not to_refresh:
            return

        rows, positions = self._load([*new, *to_refresh])
        for assigned in new:
            id_ = assigned.partition_id
            self._adopt_new(assigned, rows[id_], positions.get(id_), now)
        for assigned in to_refresh:
            self._refresh(assigned, rows[assigned.partition_id], now)

    def _load(self, partitions: Sequence[AssignedPartition]) -> tuple[dict[int, list[ParkedRow]], dict[int, Commit]]:
        """Read rows and positions by partition id, and follow a position that an operator has moved on."""
        ids = [assigned.partition_id for assigned in partitions]
        found = self._database.read(attempts.load, self._coordinator.group, ids)
        for assigned in partitions:
            if (position := found.standing.get(assigned.partition_id)) is not None:
                assigned.skip_to(position.offset)
        rows: dict[int, list[ParkedRow]] = {id_: [] for id_ in ids}
        for row in found.rows:
            rows[row.partition_id].append(row)
        return rows, found.standing

    def _adopt_new(
        self, assigned: AssignedPartition, rows: Sequence[ParkedRow], position: Commit | None, now: float
    ) -> None:
        """Take over what earlier owners have left of a partition: parked messages, and perhaps messages in flight."""
        in_flight_to = 0 if position is None else position.in_flight_to or 0
        assigned.maybe_attempted_to = in_flight_to
        first = assigned.committable()
        parked_keys = self._parked_keys_of(rows, first, in_flight_to, now)
        if parked_keys.blocking is None and killed_by_message(first, in_flight_to):
            parked_keys.blocking = ParkedEntry(first, None, 1, has_unknown_outcome=True)
        self._set_parked_keys(assigned, parked_keys)

    def _refresh(self, assigned: AssignedPartition, rows: Sequence[ParkedRow], now: float) -> None:
        """Replace what is known of a partition. Only the end of what earlier owners had in flight stays as it was."""
        _, known = self._parked_keys[assigned.partition_id]
        parked_keys = self._parked_keys_of(rows, assigned.committable(), known.maybe_attempted_to, now)
        parked_keys.keep_due(known)
        self._set_parked_keys(assigned, parked_keys)

    def _parked_keys_of(
        self, rows: Sequence[ParkedRow], position: int, maybe_attempted_to: int, now: float
    ) -> ParkedKeys:
        """What the *rows* of the database say about a partition."""
        waiting = [self._entry_of(row, now) for row in rows if row.state == "waiting"]
        # Another row below or above the position is out of date: an operator has moved the group.
        blocking = next((row for row in rows if row.state != "waiting" and row.offset == position), None)
        return ParkedKeys(
            waiting,
            blocking=None if blocking is None else self._entry_of(blocking, now),
            is_stopped=blocking is not None and blocking.state == "stopped",
            maybe_attempted_to=maybe_attempted_to,
        )

    def _entry_of(self, row: ParkedRow, now: float) -> ParkedEntry:
        # No attempt is further away than the longest delay, and none without a failure before it waits at all: more is left
        # of a clock that was set back.
        longest_seconds = self._config.retry.max_delay_seconds if row.attempts else 0.0
        due_at = -math.inf if row.attempt_open else now + min(row.due_seconds, longest_seconds)
        return ParkedEntry(
            row.offset, row.key, row.attempts, due_at, is_recorded=True, has_unknown_outcome=row.attempt_open
        )

    def _set_parked_keys(self, assigned: AssignedPartition, parked_keys: ParkedKeys) -> None:
        id_ = assigned.partition_id
        self._parked_keys[id_] = (assigned, parked_keys)
        if len(parked_keys) < self._config.max_parked:
            self._full.discard(id_)
        elif id_ not in self._full:
            self._full.add(id_)
            log.error(
                "Partition %d of topic %r waits: group %r has parked %d of its messages, and max_parked is %d.",
                assigned.partition,
                assigned.topic,
                self._coordinator.group.name,
                len(parked_keys),
                self._config.max_parked,
                extra=self._coordinator.log_fields(
                    "partition full", partition=assigned.partition, messages=len(parked_keys)
                ),
            )

    def _is_active(self, assigned: AssignedPartition) -> bool:
        id_ = assigned.partition_id
        return self._coordinator.assigned.get(id_) is assigned and id_ not in self._coordinator.releasing

    # The attempts.

    def _wanted_from_log(self, assigned: AssignedPartition, batch_hint: int, now: float) -> int:
        """How many messages to take of a partition's log; 0 for none."""
        known = self._parked_keys.get(assigned.partition_id)
        if known is None:
            return 0
        _, parked_keys = known
        if parked_keys.blocking is not None:
            return 1 if parked_keys.is_blocked and parked_keys.blocking.due_at <= now else 0
        if not parked_keys.may_read_on(self._config.max_parked):
            return 0
        look_ahead = _LOOK_AHEAD if len(parked_keys) else 0
        return self._counted_together(assigned.next_offset, parked_keys, batch_hint) + look_ahead

    def _counted_together(self, offset: int, parked_keys: ParkedKeys, batch_hint: int) -> int:
        """How many messages from *offset* on may share an attempt; 1 if a crash may have ended an attempt at the first."""
        return 1 if offset < parked_keys.maybe_attempted_to else self._config.batch_size or batch_hint

    def _attempt_at_log(self, delivery: Delivery, batch_hint: int) -> Attempt:
        assigned = delivery.assigned
        _, parked_keys = self._parked_keys[assigned.partition_id]
        claimed_partition = self._claimed_partition(assigned)
        delivered = list(delivery.pending)
        if parked_keys.blocking is not None:
            only = delivered[:1]
            return Attempt(assigned, claimed_partition, parked_keys, delivery, only, entry=parked_keys.blocking)
        most = self._counted_together(delivery.first, parked_keys, batch_hint)
        to_park, messages = parked_keys.split(delivered, most, self._config.max_parked - len(parked_keys))
        entry = self._new_entry(messages[0], parked_keys) if messages else None
        if entry is not None and not entry.attempts:
            entry = None
        parked = [self._new_entry(message, parked_keys) for message in to_park]
        return Attempt(assigned, claimed_partition, parked_keys, delivery, messages, parked, entry)

    def _new_entry(self, message: ReceivedMessage, parked_keys: ParkedKeys) -> ParkedEntry:
        """What is known about a *message* without a record."""
        offset = message.offset
        may_be_attempted = offset < parked_keys.maybe_attempted_to
        attempts = attempts_of_interrupted(self._config.retry) if may_be_attempted else 0
        return ParkedEntry(offset, message.key, attempts)

    def _attempt_at_parked(
        self, worker: Receiver, assigned: AssignedPartition, parked_keys: ParkedKeys, entry: ParkedEntry
    ) -> Attempt:
        """Read the parked message from the log. The attempt has no message if the log does not have it any more."""
        claimed_partition = self._claimed_partition(assigned)
        found = self._database.read(consume.fetch, [(assigned, entry.offset)], limit=1, max_bytes=1)
        records = found.get(assigned.partition_id)
        fetched = [] if records is None else records.messages()
        messages = [message for message in fetched if message.offset == entry.offset]
        delivery = self._buffer.hold_partition(worker, assigned)
        return Attempt(assigned, claimed_partition, parked_keys, delivery, messages, entry=entry, is_parked=True)

    def _claimed_partition(self, assigned: AssignedPartition) -> ClaimedPartition:
        return ClaimedPartition(self._coordinator.group, self._coordinator.member_id, claim_of(assigned))
