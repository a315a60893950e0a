"""The parked messages of one partition, by key, and the message that blocks the partition, if there is one.

Pure. Not safe to share between threads: the consumer's lock guards it. Times are those of the monotonic clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlmq.model.message import ReceivedMessage

Lane: TypeAlias = "bytes | int"
"""What has an order of its own: a key, or the offset of a message without a key."""


@dataclass(slots=True)
class ParkedEntry:
    """What is known about a message that is attempted again: one that is parked, or one that blocks its partition."""

    offset: int
    key: bytes | None
    attempts: int = 0
    due_at: float = -math.inf
    is_recorded: bool = False
    """Whether it has a row in the database."""
    has_unknown_outcome: bool = False
    """Whether its last attempt began and has no outcome, because the process ended."""

    @property
    def lane(self) -> Lane:
        """The lane whose order it keeps."""
        return self.offset if self.key is None else self.key


class ParkedKeys:
    """The parked messages of one partition, in lanes, and the message at the group's position that blocks it, if any.

    The first message of a lane is attempted when it is due. Those behind it wait for it.
    """

    def __init__(
        self,
        entries: Iterable[ParkedEntry],
        *,
        blocking: ParkedEntry | None = None,
        is_stopped: bool = False,
        maybe_attempted_to: int = 0,
    ) -> None:
        self.blocking = blocking
        """The message at the group's position, if an attempt at it has failed."""
        self.is_stopped = is_stopped
        """Whether the blocking message waits for an operator's decision, not for another attempt."""
        self.maybe_attempted_to = maybe_attempted_to
        """Messages below this may have been in flight when their owner's process ended, without a record of their own."""
        self._lanes: dict[Lane, deque[ParkedEntry]] = {}
        self._count = 0
        for entry in entries:
            self.put(entry)

    def __len__(self) -> int:
        return self._count

    def put(self, entry: ParkedEntry) -> None:
        """Park *entry*, in its lane behind all that are there."""
        self._lanes.setdefault(entry.lane, deque()).append(entry)
        self._count += 1

    def pop(self, entry: ParkedEntry) -> None:
        """Remove *entry*, the first of its lane."""
        lane = self._lanes[entry.lane]
        lane.popleft()
        self._count -= 1
        if not lane:
            del self._lanes[entry.lane]

    def due(self, now: float) -> ParkedEntry | None:
        """The first of a lane that has been due for longest; None if none is due at *now*."""
        first = min(self._heads(), key=attrgetter("due_at"), default=None)
        return first if first is not None and first.due_at <= now else None

    @property
    def is_blocked(self) -> bool:
        """Whether a message blocks the partition until its next attempt."""
        return self.blocking is not None and not self.is_stopped

    def next_due_at(self) -> float:
        """When the next attempt is due; infinite if there is none."""
        blocking_at = self.blocking.due_at if self.blocking is not None and self.is_blocked else math.inf
        return min(blocking_at, *(entry.due_at for entry in self._heads()), math.inf)

    def keep_due(self, known: ParkedKeys) -> None:
        """Keep each attempt due no later than it was *known* to be, unless there was another attempt since.

        How long an attempt is away is worked out by the database's clock when its row is read. While a clock that was set
        back catches up, it would be as far away each time.
        """
        known_entries = {entry.offset: entry for entry in known._entries()}
        for entry in self._entries():
            before = known_entries.get(entry.offset)
            if before is not None and before.attempts == entry.attempts:
                entry.due_at = min(entry.due_at, before.due_at)

    def may_read_on(self, max_parked: int) -> bool:
        """Whether later messages of the partition may be handled."""
        return self.blocking is None and self._count < max_parked

    def split(
        self, messages: Sequence[ReceivedMessage], most: int, room: int
    ) -> tuple[list[ReceivedMessage], list[ReceivedMessage]]:
        """Split *messages*, from the group's position on, into those to park and up to *most* behind them to handle.

        Those to park are the first ones whose keys are parked, up to *room*. Those to handle end before the next parked
        key.
        """
        park = 0
        while park < min(len(messages), room) and messages[park].key in self._lanes:
            park += 1
        end = park
        while end < min(len(messages), park + most) and messages[end].key not in self._lanes:
            end += 1
        return list(messages[:park]), list(messages[park:end])

    def _entries(self) -> Iterator[ParkedEntry]:
        for lane in self._lanes.values():
            yield from lane
        if self.blocking is not None:
            yield self.blocking

    def _heads(self) -> Iterator[ParkedEntry]:
        return (lane[0] for lane in self._lanes.values())
