"""What stands aside of all partitions of one consumer, and which messages are the next to be handled.

Not safe to share between threads: the consumer's lock guards it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.consumer.coordinator import claim_of
from sqlmq.consumer.partition import AssignedPartition, Delivery
from sqlmq.consumer.worker.parked_keys import ParkedEntry, ParkedKeys
from sqlmq.model import validation
from sqlmq.model.message import Message
from sqlmq.model.retry import attempts_of_interrupted, check_policy, check_retry
from sqlmq.operations import attempts, consume
from sqlmq.operations.attempts import ClaimedPartition
from sqlmq.store.offsets import Commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq.consumer.buffer import Receiver
    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.model.retry import FailurePolicy, Retry
    from sqlmq.store.parked import ParkedRow

log = logging.getLogger("sqlmq.consumer")

_REFRESH_POLLS = 5
"""How many polls apart rows are read again, which people may have changed."""
_REST_POLLS = 10
"""And how many, if nobody has told of anything: for all who idle, that is a statement each time."""
_BEYOND = 100
"""How many messages to look at beyond those wanted, where some may have to be set aside."""


class Terms(NamedTuple):
    """How messages are to be handled."""

    retry: Retry
    policy: FailurePolicy | None
    max_parked: int
    batch_size: int | None

    @classmethod
    def checked(
        cls, retry: Retry | None, on_failure: FailurePolicy | None, max_parked: int, batch_size: int | None
    ) -> Terms:
        """Make them, or raise TypeError or ValueError."""
        return cls(
            check_retry(retry),
            check_policy(on_failure),
            validation.integer("max_parked", max_parked),
            None if batch_size is None else validation.integer("batch_size", batch_size),
        )


@dataclass(eq=False, slots=True)
class Attempt:
    """Messages of one partition in the hands of one worker, who alone has to do with that partition meanwhile."""

    assigned: AssignedPartition
    claimed_partition: ClaimedPartition
    parked_keys: ParkedKeys
    delivery: Delivery
    messages: list[Message]
    """To be handled, in order."""
    to_park: list[ParkedEntry] = field(default_factory=list)
    """Those before them, whose keys wait."""
    entry: ParkedEntry | None = None
    """What is known about the only message, if it has a record of its own."""
    is_parked: bool = False
    """Whether that one stands aside, below the group's position."""
    current: list[Message] = field(default_factory=list)
    """What the handler has right now, or had last."""
    is_settling: bool = False
    """Whether the handler is done, and its transaction is being committed."""
    has_ended: bool = False
    """Whether it is known how it ended."""

    def position(self, offset: int, *, in_hand_to: int = 0) -> Commit:
        """The group's position at *offset*, with what is in hand there, and what was when the owner before ended."""
        in_hand_to = max(in_hand_to, self.parked_keys.maybe_attempted_to)
        return Commit(self.assigned.partition_id, offset, in_hand_to if in_hand_to > offset else 0)


class Dispatcher:
    """Knows what stands aside of each claimed partition; chooses what to handle next."""

    def __init__(self, core: ConsumerCore, terms: Terms) -> None:
        self._database = core.database
        self._clock = core.clock
        self._coordinator = core.coordinator
        self._buffer = core.buffer
        self._terms = terms
        self._options = core.config
        self._parked_keys: dict[int, tuple[AssignedPartition, ParkedKeys]] = {}
        self._refresh_at = 0.0
        self._is_woken = False
        self._full: set[int] = set()

    def next_attempt(self, worker: Receiver, batch_hint: int) -> Attempt | None:
        """Give *worker* what is due of one partition, or up to *stride* messages of its log; None if there is nothing.

        Asks the database what stands aside of partitions that are new here, and now and then of all that are free.
        """
        now = self._clock.monotonic()
        self._look(now)
        for assigned, aside in self._parked_keys.values():
            if assigned.is_idle and self._is_claimed(assigned) and (waiting := aside.due(now)):
                return self._parked(worker, assigned, aside, waiting)
        for assigned in self._buffer.idle_partitions_with_messages():
            if at_most := self._wanted_from_log(assigned, batch_hint, now):
                return self._new_attempt(self._buffer.deliver_from(worker, assigned, at_most), batch_hint)
        return None

    def next_check_at(self) -> float:
        """When, by the monotonic clock, there is something to ``choose``, if nobody says so before.

        Something that stands aside is due then, in a partition that nobody works on; or it is time to read rows again.
        """
        patience = (0 if self._is_woken else _REST_POLLS - _REFRESH_POLLS) * self._options.poll_max_seconds
        due = (aside.next_due_at() for assigned, aside in self._parked_keys.values() if assigned.is_idle)
        return min((self._refresh_at + patience, *due))

    def check_soon(self) -> None:
        """Somebody was woken: people may have changed rows."""
        self._is_woken = True

    def forget(self, assigned: AssignedPartition) -> None:
        """What is known here may be wrong: ask before the partition is worked on again."""
        self._parked_keys.pop(assigned.partition_id, None)

    def __len__(self) -> int:
        """How many messages wait for another attempt."""
        return sum(len(aside) + aside.is_blocked for _, aside in self._parked_keys.values())

    def _look(self, now: float) -> None:
        active = self._buffer.active()
        claimed = self._coordinator.assigned
        self._parked_keys = {id_: entry for id_, entry in self._parked_keys.items() if claimed.get(id_) is entry[0]}
        unknown = [assigned for assigned in active if assigned.partition_id not in self._parked_keys]
        known: list[AssignedPartition] = []
        if now >= self._refresh_at:
            self._refresh_at = now + _REFRESH_POLLS * self._options.poll_max_seconds
            self._is_woken = False
            known = [assigned for assigned in active if assigned.partition_id in self._parked_keys and assigned.is_idle]
        if not unknown and not known:
            return
        ids = [assigned.partition_id for assigned in (*unknown, *known)]
        found = self._database.read(attempts.load, self._coordinator.group, ids)
        for assigned in (*unknown, *known):
            if (standing := found.standing.get(assigned.partition_id)) is not None:
                assigned.skip_to(standing.offset)
        rows: dict[int, list[ParkedRow]] = {id_: [] for id_ in ids}
        for row in found.rows:
            rows[row.partition_id].append(row)
        for assigned in unknown:
            standing = found.standing.get(assigned.partition_id)
            in_hand_to = 0 if standing is None else standing.in_hand_to or 0
            position = assigned.committable()
            assigned.maybe_attempted_to = in_hand_to
            aside = _aside(rows[assigned.partition_id], position, in_hand_to, now)
            if aside.blocking is None and in_hand_to == position + 1:
                # The only message in hand: it is certain that it was being handled.
                aside.blocking = ParkedEntry(position, None, 1, has_unknown_outcome=True)
            self._note(assigned, aside)
        for assigned in known:
            suspect_to = self._parked_keys[assigned.partition_id][1].maybe_attempted_to
            self._note(assigned, _aside(rows[assigned.partition_id], assigned.committable(), suspect_to, now))

    def _note(self, assigned: AssignedPartition, aside: ParkedKeys) -> None:
        self._parked_keys[assigned.partition_id] = (assigned, aside)
        is_full = len(aside) >= self._terms.max_parked
        if is_full and assigned.partition_id not in self._full:
            log.error(
                "Partition %d of topic %r waits: group %r has set %d of its messages aside, and max_parked is %d.",
                assigned.partition,
                assigned.topic,
                self._coordinator.group.name,
                len(aside),
                self._terms.max_parked,
                extra=self._coordinator.log_fields("partition full", partition=assigned.partition, messages=len(aside)),
            )
        (self._full.add if is_full else self._full.discard)(assigned.partition_id)

    def _is_claimed(self, assigned: AssignedPartition) -> bool:
        id_ = assigned.partition_id
        return self._coordinator.assigned.get(id_) is assigned and id_ not in self._coordinator.releasing

    def _wanted_from_log(self, assigned: AssignedPartition, batch_hint: int, now: float) -> int:
        entry = self._parked_keys.get(assigned.partition_id)
        if entry is None:
            return 0
        _, aside = entry
        if aside.blocking is not None:
            return 1 if not aside.is_stopped and aside.blocking.due_at <= now else 0
        if not aside.may_read_on(self._terms.max_parked):
            return 0
        return self._most(assigned.next_offset, aside, batch_hint) + (_BEYOND if len(aside) else 0)

    def _most(self, offset: int, aside: ParkedKeys, batch_hint: int) -> int:
        return 1 if offset < aside.maybe_attempted_to else self._terms.batch_size or batch_hint

    def _new_attempt(self, delivery: Delivery, batch_hint: int) -> Attempt:
        assigned = delivery.assigned
        aside = self._parked_keys[assigned.partition_id][1]
        lent = list(delivery.pending)
        if aside.blocking is not None:
            return Attempt(assigned, self._claimed_partition(assigned), aside, delivery, lent[:1], entry=aside.blocking)
        most = self._most(delivery.first, aside, batch_hint)
        set_aside, messages = aside.split(lent, most, self._terms.max_parked - len(aside))
        waiting = self._untried(messages[0], aside) if messages else None
        if waiting is not None and not waiting.attempts:
            waiting = None
        behind = [self._untried(message, aside) for message in set_aside]
        return Attempt(assigned, self._claimed_partition(assigned), aside, delivery, messages, behind, waiting)

    def _untried(self, message: Message, aside: ParkedKeys) -> ParkedEntry:
        """What is known about a *message* that has no record."""
        offset = message.offset or 0
        return ParkedEntry(
            offset, message.key, attempts_of_interrupted(self._terms.retry) if offset < aside.maybe_attempted_to else 0
        )

    def _parked(
        self, worker: Receiver, assigned: AssignedPartition, aside: ParkedKeys, waiting: ParkedEntry
    ) -> Attempt:
        claimed_partition = self._claimed_partition(assigned)
        found = self._database.read(consume.fetch, [(assigned, waiting.offset)], limit=1, max_bytes=1)
        arrived = found[assigned.partition_id].messages() if assigned.partition_id in found else []
        messages = [one for one in arrived if one.offset == waiting.offset]
        return Attempt(
            assigned,
            claimed_partition,
            aside,
            self._buffer.hold_partition(worker, assigned),
            messages,
            entry=waiting,
            is_parked=True,
        )

    def _claimed_partition(self, assigned: AssignedPartition) -> ClaimedPartition:
        return ClaimedPartition(self._coordinator.group, self._coordinator.member_id, claim_of(assigned))


def _aside(rows: Sequence[ParkedRow], position: int, suspect_to: int, now: float) -> ParkedKeys:
    """What stands aside of a partition, by the *rows* of the database."""
    waiting = [_waiting(row, now) for row in rows if row.state == "waiting"]
    held = next((row for row in rows if row.state != "waiting" and row.offset == position), None)
    return ParkedKeys(
        waiting,
        held=None if held is None else _waiting(held, now),
        is_stopped=held is not None and held.state == "stopped",
        suspect_to=suspect_to,
    )


def _waiting(row: ParkedRow, now: float) -> ParkedEntry:
    due_at = -math.inf if row.attempt_open else now + row.due_seconds
    return ParkedEntry(
        row.offset, row.key, row.attempts, due_at, is_recorded=True, has_unknown_outcome=row.attempt_open
    )
