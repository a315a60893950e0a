"""What stands beside the log for one partition of a group: the messages that are not handled in their turn.

Pure, and not safe to share between threads. Moments are of the monotonic clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlmq.model.message import Message

Lane: TypeAlias = "bytes | int"
"""What keeps an order of its own: a key, or, where there is none, one message by its offset."""


@dataclass(slots=True)
class ParkedEntry:
    """A message that waits for an attempt."""

    offset: int
    key: bytes | None
    attempts: int = 0
    due_at: float = -math.inf
    is_recorded: bool = False
    """Whether the database has a row of it."""
    has_unknown_outcome: bool = False
    """Whether its last attempt was begun and nobody knows how it ended: the process did."""

    @property
    def lane(self) -> Lane:
        """What it is in order with."""
        return self.offset if self.key is None else self.key


class ParkedKeys:
    """The messages of one partition that were set aside, in lanes; and the one that is held in its place, if any."""

    def __init__(
        self, waiting: Iterable[ParkedEntry], *, held: ParkedEntry | None, is_stopped: bool, suspect_to: int
    ) -> None:
        self.blocking = held
        """The message at the group's position, if it was tried there before."""
        self.is_stopped = is_stopped
        """Whether that one is not tried any more, before somebody has decided."""
        self.maybe_attempted_to = suspect_to
        """Below this, messages may have been in hand when their owner's process ended, without a record of their own."""
        self._lanes: dict[Lane, deque[ParkedEntry]] = {}
        self._count = 0
        for one in waiting:
            self.put(one)

    def __len__(self) -> int:
        return self._count

    def put(self, message: ParkedEntry) -> None:
        """Set *message* aside, in its lane behind all that are there."""
        self._lanes.setdefault(message.lane, deque()).append(message)
        self._count += 1

    def pop(self, message: ParkedEntry) -> None:
        """*message*, the first of its lane, does not wait any more: the next one is due."""
        lane = self._lanes[message.lane]
        lane.popleft()
        self._count -= 1
        if not lane:
            del self._lanes[message.lane]

    def due(self, now: float) -> ParkedEntry | None:
        """The first of a lane that has been due the longest."""
        first = min(self._heads(), key=lambda one: one.due_at, default=None)
        return first if first is not None and first.due_at <= now else None

    @property
    def is_blocked(self) -> bool:
        """Whether a message waits in its place for another attempt."""
        return self.blocking is not None and not self.is_stopped

    def next_due_at(self) -> float:
        """When there is something to do; never, if nothing waits."""
        held_at = self.blocking.due_at if self.blocking is not None and self.is_blocked else math.inf
        return min(held_at, *(one.due_at for one in self._heads()), math.inf)

    def may_read_on(self, most: int) -> bool:
        """Whether the partition may be read on: nothing is held in its place, and fewer than *most* are set aside."""
        return self.blocking is None and self._count < most

    def split(self, messages: Sequence[Message], most: int, room: int) -> tuple[list[Message], list[Message]]:
        """Of *messages*, from the group's position on: those to set aside first, and up to *most* to handle after them.

        Those to set aside are the first ones, up to *room*, whose keys wait; those to handle end where a key waits.
        """
        waiting = 0
        while waiting < min(len(messages), room) and messages[waiting].key in self._lanes:
            waiting += 1
        end = waiting
        while end < min(len(messages), waiting + most) and messages[end].key not in self._lanes:
            end += 1
        return list(messages[:waiting]), list(messages[waiting:end])

    def _heads(self) -> Iterator[ParkedEntry]:
        return (lane[0] for lane in self._lanes.values())
