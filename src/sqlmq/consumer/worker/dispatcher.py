"""What stands aside of all partitions of one consumer, and which messages are the next to be handled.

Not safe to share between threads: the consumer's lock guards it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.consumer.coordinator import claim_of
from sqlmq.consumer.partition import PartitionProgress, Span
from sqlmq.consumer.worker.parked_keys import Aside, Waiting
from sqlmq.model.config import check_count
from sqlmq.model.message import Message
from sqlmq.model.retry import check_policy, check_retry
from sqlmq.operations import attempts, consume
from sqlmq.operations.attempts import Seat
from sqlmq.store.offsets import Commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq.consumer.buffer import Receiver, Stock
    from sqlmq.consumer.coordinator import Ownership
    from sqlmq.database.database import Database
    from sqlmq.model.config import Options
    from sqlmq.model.retry import FailurePolicy, Retry
    from sqlmq.store.parked import Row

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
            check_count("max_parked", max_parked),
            None if batch_size is None else check_count("batch_size", batch_size),
        )


@dataclass(eq=False, slots=True)
class Attempt:
    """Messages of one partition in the hands of one worker, who alone has to do with that partition meanwhile."""

    progress: PartitionProgress
    seat: Seat
    aside: Aside
    span: Span
    messages: list[Message]
    """To be handled, in order."""
    set_aside: list[Waiting] = field(default_factory=list)
    """Those before them, whose keys wait."""
    waiting: Waiting | None = None
    """What is known about the only message, if it has a record of its own."""
    is_parked: bool = False
    """Whether that one stands aside, below the group's position."""
    current: list[Message] = field(default_factory=list)
    """What the handler has right now, or had last."""
    is_settling: bool = False
    """Whether the handler is done, and its transaction is being committed."""
    is_over: bool = False
    """Whether it is known how it ended."""

    def position(self, offset: int, *, in_hand_to: int = 0) -> Commit:
        """The group's position at *offset*, with what is in hand there, and what was when the owner before ended."""
        in_hand_to = max(in_hand_to, self.aside.suspect_to)
        return Commit(self.progress.partition_id, offset, in_hand_to if in_hand_to > offset else 0)


class Parking:
    """Knows what stands aside of each claimed partition; chooses what to handle next."""

    def __init__(self, database: Database, ownership: Ownership, stock: Stock, options: Options, terms: Terms) -> None:
        self._database = database
        self._runtime = database.runtime
        self._ownership = ownership
        self._stock = stock
        self._terms = terms
        self._options = options
        self._asides: dict[int, tuple[PartitionProgress, Aside]] = {}
        self._refresh_at = 0.0
        self._is_stirred = False
        self._full: set[int] = set()

    def choose(self, worker: Receiver, stride: int) -> Attempt | None:
        """Give *worker* what is due of one partition, or up to *stride* messages of its log; None if there is nothing.

        Asks the database what stands aside of partitions that are new here, and now and then of all that are free.
        """
        now = self._runtime.monotonic()
        self._look(now)
        for progress, aside in self._asides.values():
            if progress.is_idle and self._is_claimed(progress) and (waiting := aside.due(now)):
                return self._parked(worker, progress, aside, waiting)
        span = self._stock.reserve(worker, lambda progress: self._wanted(progress, stride, now))
        return None if span is None else self._fresh(span, stride)

    def look_at(self) -> float:
        """When, by the monotonic clock, there is something to ``choose``, if nobody says so before.

        Something that stands aside is due then, in a partition that nobody works on; or it is time to read rows again.
        """
        patience = (0 if self._is_stirred else _REST_POLLS - _REFRESH_POLLS) * self._options.poll_max_seconds
        due = (aside.next_due_at() for progress, aside in self._asides.values() if progress.is_idle)
        return min((self._refresh_at + patience, *due))

    def stir(self) -> None:
        """Somebody was woken: people may have changed rows."""
        self._is_stirred = True

    def forget(self, progress: PartitionProgress) -> None:
        """What is known here may be wrong: ask before the partition is worked on again."""
        self._asides.pop(progress.partition_id, None)

    def __len__(self) -> int:
        """How many messages wait for another attempt."""
        return sum(len(aside) + aside.is_holding for _, aside in self._asides.values())

    def _look(self, now: float) -> None:
        active = self._stock.active()
        claimed = self._ownership.claimed
        self._asides = {id_: entry for id_, entry in self._asides.items() if claimed.get(id_) is entry[0]}
        unknown = [progress for progress in active if progress.partition_id not in self._asides]
        known: list[PartitionProgress] = []
        if now >= self._refresh_at:
            self._refresh_at = now + _REFRESH_POLLS * self._options.poll_max_seconds
            self._is_stirred = False
            known = [progress for progress in active if progress.partition_id in self._asides and progress.is_idle]
        if not unknown and not known:
            return
        ids = [progress.partition_id for progress in (*unknown, *known)]
        group, dialect = self._ownership.group, self._database.dialect
        found = self._database.read(lambda conn: attempts.load(conn, dialect, group, ids))
        for progress in (*unknown, *known):
            if (standing := found.standing.get(progress.partition_id)) is not None:
                progress.skip_to(standing.offset)
        rows: dict[int, list[Row]] = {id_: [] for id_ in ids}
        for row in found.rows:
            rows[row.partition_id].append(row)
        for progress in unknown:
            standing = found.standing.get(progress.partition_id)
            in_hand_to = 0 if standing is None else standing.in_hand_to or 0
            position = progress.committable()
            progress.suspect_to = in_hand_to
            aside = _aside(rows[progress.partition_id], position, in_hand_to, now)
            if aside.held is None and in_hand_to == position + 1:
                # The only message in hand: it is certain that it was being handled.
                aside.held = Waiting(position, None, 1, has_failed_silently=True)
            self._note(progress, aside)
        for progress in known:
            suspect_to = self._asides[progress.partition_id][1].suspect_to
            self._note(progress, _aside(rows[progress.partition_id], progress.committable(), suspect_to, now))

    def _note(self, progress: PartitionProgress, aside: Aside) -> None:
        self._asides[progress.partition_id] = (progress, aside)
        is_full = len(aside) >= self._terms.max_parked
        if is_full and progress.partition_id not in self._full:
            log.error(
                "Partition %d of topic %r waits: group %r has set %d of its messages aside, and max_parked is %d.",
                progress.partition,
                progress.topic,
                self._ownership.group.name,
                len(aside),
                self._terms.max_parked,
                extra=self._ownership.facts("partition full", partition=progress.partition, messages=len(aside)),
            )
        (self._full.add if is_full else self._full.discard)(progress.partition_id)

    def _is_claimed(self, progress: PartitionProgress) -> bool:
        id_ = progress.partition_id
        return self._ownership.claimed.get(id_) is progress and id_ not in self._ownership.leaving

    def _wanted(self, progress: PartitionProgress, stride: int, now: float) -> int:
        entry = self._asides.get(progress.partition_id)
        if entry is None:
            return 0
        _, aside = entry
        if aside.held is not None:
            return 1 if not aside.is_stopped and aside.held.due_at <= now else 0
        if not aside.may_read_on(self._terms.max_parked):
            return 0
        return self._most(progress.next_offset, aside, stride) + (_BEYOND if len(aside) else 0)

    def _most(self, offset: int, aside: Aside, stride: int) -> int:
        return 1 if offset < aside.suspect_to else self._terms.batch_size or stride

    def _fresh(self, span: Span, stride: int) -> Attempt:
        progress = span.progress
        aside = self._asides[progress.partition_id][1]
        lent = list(span.lent)
        if aside.held is not None:
            return Attempt(progress, self._seat(progress), aside, span, lent[:1], waiting=aside.held)
        most = self._most(span.first, aside, stride)
        set_aside, messages = aside.split(lent, most, self._terms.max_parked - len(aside))
        waiting = self._untried(messages[0], aside) if messages else None
        if waiting is not None and not waiting.attempts:
            waiting = None
        behind = [self._untried(message, aside) for message in set_aside]
        return Attempt(progress, self._seat(progress), aside, span, messages, behind, waiting)

    def _untried(self, message: Message, aside: Aside) -> Waiting:
        """What is known about a *message* that has no record."""
        offset = message.offset or 0
        return Waiting(offset, message.key, self._terms.retry.counted_once if offset < aside.suspect_to else 0)

    def _parked(self, worker: Receiver, progress: PartitionProgress, aside: Aside, waiting: Waiting) -> Attempt:
        seat, dialect = self._seat(progress), self._database.dialect
        found = self._database.read(
            lambda conn: consume.fetch(conn, dialect, [(progress, waiting.offset)], limit=1, max_bytes=1)
        )
        arrived = found[progress.partition_id].messages() if progress.partition_id in found else []
        messages = [one for one in arrived if one.offset == waiting.offset]
        return Attempt(
            progress, seat, aside, self._stock.occupy(worker, progress), messages, waiting=waiting, is_parked=True
        )

    def _seat(self, progress: PartitionProgress) -> Seat:
        return Seat(self._ownership.group, self._ownership.member_id, claim_of(progress))


def _aside(rows: Sequence[Row], position: int, suspect_to: int, now: float) -> Aside:
    """What stands aside of a partition, by the *rows* of the database."""
    waiting = [_waiting(row, now) for row in rows if row.state == "waiting"]
    held = next((row for row in rows if row.state != "waiting" and row.offset == position), None)
    return Aside(
        waiting,
        held=None if held is None else _waiting(held, now),
        is_stopped=held is not None and held.state == "stopped",
        suspect_to=suspect_to,
    )


def _waiting(row: Row, now: float) -> Waiting:
    due_at = -math.inf if row.is_trying else now + row.due_seconds
    return Waiting(row.offset, row.key, row.attempts, due_at, is_recorded=True, has_failed_silently=row.is_trying)
