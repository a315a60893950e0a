"""Retention: move a partition's start, delete what is before it, and record which groups lost messages.

A round for one partition is ``plan`` (no lock), ``advance`` (one short transaction), ``delete`` (some thousand messages
in each transaction, repeated) and ``forget_parked``. It may stop after any of them, and the next round continues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlmq.errors import EvictedError
from sqlmq.hooks.failpoints import failpoint
from sqlmq.model.retention import losses, protected_from, runs
from sqlmq.model.timing import CLOCK_STEP_SECONDS
from sqlmq.store import claims
from sqlmq.store import retention as store_retention
from sqlmq.store.groups import Group

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.model.retention import Loss, Retention
    from sqlmq.store.retention import PartitionExtent, RetentionCandidate

LOCK_SECONDS = 1.0
"""How long to wait for a row's lock before the partition is left for the next round."""
DELETE_MESSAGES = 5_000
"""How many messages one transaction deletes: 1.5 to 7 ms, measured on Postgres."""
ADVANCE_MESSAGES = 1_000_000
"""How far a partition's start moves in one round, at most."""
_WINDOW = 10_000
"""How many messages one statement examines."""
_PARKED = 1_000
"""How many parked messages one transaction deletes."""


class ReadPlace(NamedTuple):
    """A position to read from, with the number and the id of its partition."""

    partition: int
    partition_id: int
    offset: int


class MeasuredBytes(NamedTuple):
    """The size of a partition's messages up to an offset."""

    to: int
    size_bytes: int


class RetentionPlan(NamedTuple):
    """Where a partition may start."""

    extent: PartitionExtent
    start: int
    """The start by the limits and the groups."""
    free: int
    """No group needs messages before this offset."""
    overdue: int
    """From *free* to here, messages are older than ``protect_max_seconds``, so no group protects them."""
    sized: MeasuredBytes | None
    """The measured size from *start* on."""


class Advance(NamedTuple):
    """A partition whose start was moved."""

    start: int
    losses: list[Loss]


def due(conn: Connection, dialect: Dialect, topic_id: int | None) -> list[RetentionCandidate]:
    """Return the partitions, of one topic or all, that may have to be trimmed."""
    return store_retention.due(conn, dialect, topic_id)


def expired(conn: Connection, dialect: Dialect, topic_id: int, retention: Retention) -> set[int]:
    """Return the ids of a topic's groups that protect nothing any more."""
    if not retention.protect_groups:
        return set()
    return store_retention.expired(conn, dialect, topic_id, retention.group_expiry_seconds)


def plan(conn: Connection, dialect: Dialect, due: RetentionCandidate, expired: Collection[int]) -> RetentionPlan | None:
    """Find where a partition should start; None if nothing changes. Takes no lock.

    Examines the messages that are about to be deleted.
    """
    extent = store_retention.extent(conn, dialect, due.partition_id)
    if extent is None or not due.retention.is_limited:
        return None
    walk = _RetentionScan(conn, dialect, due, extent)
    standings = store_retention.standings(conn, dialect, due.topic_id, due.partition_id)
    free = protected_from(due.retention, standings, expired, extent.start, extent.end)
    overdue = free
    if due.retention.protect_max_seconds is not None:
        overdue = walk.older_than(due.retention.protect_max_seconds, free, extent.end)
    start = walk.within_limits(min(overdue, walk.furthest))
    sized = walk.sized_from(start)
    is_news = start > extent.start or sized != _sized(extent)
    return RetentionPlan(extent, start, free, overdue, sized) if is_news else None


def advance(
    conn: Connection, dialect: Dialect, due: RetentionCandidate, expired: Collection[int], planned: RetentionPlan
) -> Advance | None:
    """Move a partition's start to *planned*; None, with nothing changed, if the situation has changed since.

    Locks the partition's row, like an append, while it reads the groups' positions again.
    """
    dialect.limit_lock_wait(conn, LOCK_SECONDS)
    extent = store_retention.extent(conn, dialect, due.partition_id, locked=True)
    if extent is None or (extent.start, *extent[3:]) != (planned.extent.start, *planned.extent[3:]):
        return None
    standings = store_retention.standings(conn, dialect, due.topic_id, due.partition_id)
    free = protected_from(due.retention, standings, expired, extent.start, extent.end)
    if planned.start > free and (free < planned.free or planned.start > planned.overdue):
        return None
    lost = losses(due.retention, standings, expired, extent.start, planned.start)
    for loss in lost:
        if not loss.is_stored:
            store_retention.settle_position(conn, dialect, loss, due.partition_id)
        store_retention.note_eviction(conn, dialect, loss.group_id, due.partition_id, "unread", loss.start, loss.end)
    store_retention.begin_at(conn, dialect, due.partition_id, planned.start, *(planned.sized or (None, None)))
    failpoint("retention.advanced")
    return Advance(planned.start, lost)


def delete(conn: Connection, dialect: Dialect, partition_id: int) -> int | None:
    """Delete some messages below a partition's start; return how many, or None if none are left."""
    dialect.limit_lock_wait(conn, LOCK_SECONDS)
    bounds = store_retention.keep_from_purge(conn, dialect, partition_id)
    if bounds is None or bounds[0] >= bounds[1]:
        return None
    purged_to, start = bounds
    deleted = store_retention.delete_range(
        conn, dialect, partition_id, purged_to, min(start, purged_to + DELETE_MESSAGES)
    )
    failpoint("retention.deleted")
    return deleted


def start(conn: Connection, dialect: Dialect, due: RetentionCandidate) -> int | None:
    """Return the oldest offset of a partition; None if its topic was deleted."""
    return store_retention.start(conn, dialect, due.partition_id)


def groups_losing_parked(conn: Connection, dialect: Dialect, due: RetentionCandidate) -> list[tuple[int, str]]:
    """Return the groups with parked messages that are no longer in the log."""
    start = store_retention.start(conn, dialect, due.partition_id)
    standings = store_retention.standings(conn, dialect, due.topic_id, due.partition_id)
    return [
        (one.group_id, one.name)
        for one in standings
        if start is not None and one.first_parked is not None and one.first_parked < start
    ]


def forget_parked(
    conn: Connection, dialect: Dialect, due: RetentionCandidate, group_id: int, group: str
) -> list[tuple[int, int]]:
    """Delete a group's parked messages that are no longer in the log, under the claim's lock; return their ranges."""
    dialect.limit_lock_wait(conn, LOCK_SECONDS)
    claims.lock_all(conn, dialect, Group(group_id, group, ""), [due.partition_id])
    start = store_retention.start(conn, dialect, due.partition_id)
    if start is None:
        return []
    offsets = store_retention.parked_below(conn, dialect, group_id, due.partition_id, start, _PARKED)
    lost = runs(offsets)
    for first, end in lost:
        store_retention.note_eviction(conn, dialect, group_id, due.partition_id, "parked", first, end)
    if offsets:
        store_retention.forget_parked(conn, dialect, group_id, due.partition_id, offsets)
    return lost


def find_eviction(conn: Connection, dialect: Dialect, topic: str, group: str, place: ReadPlace) -> EvictedError | None:
    """Return the error for what retention deleted of what a group is about to read at *place*, if anything."""
    start = store_retention.start(conn, dialect, place.partition_id)
    if start is None or start <= place.offset:
        return None
    return EvictedError(topic, group, place.partition, start=place.offset, end=start)


class _RetentionScan:
    """Examines a partition from its start, as far as the start may move in one round."""

    def __init__(self, conn: Connection, dialect: Dialect, due: RetentionCandidate, extent: PartitionExtent) -> None:
        self._conn = conn
        self._dialect = dialect
        self._id = due.partition_id
        self._terms = due.retention
        self._extent = extent
        self.furthest = min(extent.end, extent.start + ADVANCE_MESSAGES)
        self._sized = None if self._terms.max_bytes is None else self._measured()

    def within_limits(self, limit: int) -> int:
        """Return the start, *limit* at most, from which on the limits are kept."""
        start = self._extent.start
        if self._terms.max_messages is not None:
            start = max(start, self._extent.end - self._terms.max_messages)
        start = min(start, limit)
        if start < limit and self._terms.max_bytes is not None:
            start = max(start, self._within_bytes(self._terms.max_bytes, limit))
        if start < limit and self._terms.max_age_seconds is not None:
            start = self.older_than(self._terms.max_age_seconds, start, limit)
        return start

    def older_than(self, seconds: float, start: int, limit: int) -> int:
        """Return the end, *limit* at most, of the messages from *start* that are all older than *seconds*.

        A message whose moment lies ahead of the clock, which was set back since, is as old as the next one that is older.
        Otherwise a single one would keep all behind it until the clock has caught up.
        """
        limit = max(start, min(limit, self.furthest))
        while start < limit:
            younger = self._first_younger(start, limit, seconds)
            if younger is None:
                return limit
            offset, age = younger
            if age >= -CLOCK_STEP_SECONDS:
                return offset
            end = min(limit, offset + _WINDOW)
            older = store_retention.first_older(self._conn, self._dialect, self._id, offset + 1, end, seconds)
            if older is None:
                return offset
            start = older + 1
        return limit

    def _first_younger(self, start: int, limit: int, seconds: float) -> tuple[int, float] | None:
        for window in _windows(start, limit):
            younger = store_retention.first_younger(self._conn, self._dialect, self._id, *window, seconds)
            if younger is not None:
                return younger
        return None

    def sized_from(self, start: int) -> MeasuredBytes | None:
        """Return the measured size without the messages before *start*."""
        if self._sized is None:
            return None
        return MeasuredBytes(max(self._sized.to, start), self._sized.size_bytes - self._size(self._extent.start, start))

    def _measured(self) -> MeasuredBytes:
        """Return the stored size plus that of newer messages. It measures a message when it comes and when it goes."""
        to, size_bytes = _sized(self._extent) or MeasuredBytes(self._extent.start, 0)
        end = min(self._extent.end, to + ADVANCE_MESSAGES)
        return MeasuredBytes(end, size_bytes + self._size(to, end))

    def _within_bytes(self, most: int, limit: int) -> int:
        assert self._sized is not None  # noqa: S101 - measured if max_bytes is set
        rest = self._sized.size_bytes
        for first, end in _windows(self._extent.start, min(limit, self._sized.to)):
            if rest <= most:
                return first
            for offset, size in store_retention.sizes_bytes(self._conn, self._dialect, self._id, first, end):
                if rest <= most:
                    return offset
                rest -= size
        return min(limit, self._sized.to)

    def _size(self, start: int, end: int) -> int:
        return sum(
            store_retention.size_bytes(self._conn, self._dialect, self._id, *window) for window in _windows(start, end)
        )


def _sized(extent: PartitionExtent) -> MeasuredBytes | None:
    return (
        None
        if extent.measured_to is None or extent.measured_bytes is None
        else MeasuredBytes(extent.measured_to, extent.measured_bytes)
    )


def _windows(start: int, end: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + _WINDOW, end)) for first in range(start, end, _WINDOW))
