"""``consumer.transaction()``: messages are read and acknowledged in one transaction with the application's effects.

The lock on the claim's row makes the partition the transaction's own. It ends with the transaction, and with the
connection: after a crash, the next consumer need not wait for a lease.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import literal, select

from sqlmq.dialects import Position
from sqlmq.errors import EvictedError, FencedError, OffsetGapError, TransactionEndedError, UnknownTopicError
from sqlmq.hooks.failpoints import failpoint
from sqlmq.model.message import FetchedRecords, check_dense
from sqlmq.operations import retention
from sqlmq.operations.consume import PRUNE_EVERY
from sqlmq.operations.retention import ReadPlace
from sqlmq.store import claims, offsets, topics
from sqlmq.store.offsets import Commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.model.config import OnEvicted
    from sqlmq.model.message import ReceivedMessage
    from sqlmq.store.claims import Claim, FreeClaims
    from sqlmq.store.groups import Group
    from sqlmq.store.topics import Topic

_AGES_SECONDS = 1e6


class BatchLimits(NamedTuple):
    """How much a transaction reads, and how long it may be silent."""

    max_messages: int
    max_bytes: int
    quiet_seconds: float
    vanished_seconds: float
    on_evicted: OnEvicted = "raise"


class Guard(NamedTuple):
    """A token of a transaction, which a later one on the same connection does not have."""

    token: str | None


class TransactionBatch(NamedTuple):
    """A partition that the transaction has locked, and the messages it read there, from *start* to *end*."""

    claim: Claim
    token: str | None
    start: int
    messages: list[ReceivedMessage]
    evicted: EvictedError | None = None
    """What retention deleted of it before it was read."""

    @property
    def end(self) -> int:
        """The group's next position."""
        return (self.start if self.evicted is None else self.evicted.end) + len(self.messages)


def find_free(conn: Connection, dialect: Dialect, topic: Topic, group: Group) -> FreeClaims:
    """Read, without a lock, whether there may be something to lock. Raises UnknownTopicError if the topic is gone."""
    found = claims.find_free(conn, dialect, group)
    if found is None:
        raise UnknownTopicError(topic.name)
    return found


def free_dead(conn: Connection, dialect: Dialect, group: Group) -> None:
    """Free the partitions of members whose lease is over, and remove those members.

    Runs in a transaction of its own, so that a member that is alive after all notices it at once, and does not have to
    wait for the transaction that uses its partitions.
    """
    claims.remove_dead(conn, dialect, group)


def lock_and_fetch(
    conn: Connection, dialect: Dialect, topic: Topic, group: Group, limits: BatchLimits, last: Sequence[int]
) -> TransactionBatch | None:
    """Lock a partition without an owner and read from it; None if there is none, or it has no messages.

    Raises IsolationError if the transaction could not see the group's newest position, OffsetGapError, EvictedError.
    """
    claim, held = claims.lock_free_claim(
        conn,
        dialect,
        group,
        last=last,
        quiet_seconds=limits.quiet_seconds,
        vanished_seconds=limits.vanished_seconds,
    )
    if claim is None:
        return None
    failpoint("take.held")
    # In a statement after the lock, which sees the position that the previous holder committed.
    start = offsets.positions(conn, dialect, group, [claim.partition_id]).get(claim.partition_id)
    if start is None:
        return None
    place = ReadPlace(topics.number_of(conn, dialect, topic, claim.partition_id), claim.partition_id, start)
    arrived, evicted = _read(conn, dialect, topic, place, limits), None
    try:
        check_dense(topic.name, place.partition, arrived.offsets(), start)
    except OffsetGapError:
        evicted = retention.find_eviction(conn, dialect, topic.name, group.name, place)
        if evicted is None:
            raise
        if limits.on_evicted == "raise":
            raise evicted from None
        arrived = _read(conn, dialect, topic, place._replace(offset=evicted.end), limits)
        check_dense(topic.name, place.partition, arrived.offsets(), evicted.end)
    failpoint("take.after")
    return TransactionBatch(claim, held.token, start, arrived.messages(), evicted) if arrived else None


def finish(conn: Connection, dialect: Dialect, topic: Topic, group: Group, taken: TransactionBatch) -> None:
    """Commit the position after *taken*; the last statement before COMMIT.

    Raises TransactionEndedError if this is not the transaction that read the messages, FencedError if the claim has
    changed: then nothing may be committed.
    """
    id_ = taken.claim.partition_id
    failpoint("position.before")
    moved = claims.commit_locked(
        conn, dialect, group, taken.claim, taken.token, start=taken.start, commit=Commit(id_, taken.end)
    )
    failpoint("position.after")
    if not moved:
        if not claims.is_same_transaction(conn, dialect, taken.token):
            raise TransactionEndedError
        raise FencedError(topic.name, group.name, (topics.number_of(conn, dialect, topic, id_),))
    # The consumer that reaches the next window deletes the old positions. Earlier windows are already deleted.
    window = taken.start // PRUNE_EVERY
    if taken.end // PRUNE_EVERY > window:
        offsets.prune(conn, dialect, group, [offsets.Window(id_, window * PRUNE_EVERY, taken.end)])
    if not dialect.release_savepoint(conn):
        raise TransactionEndedError


def enter(conn: Connection, dialect: Dialect, *, vanished_seconds: float) -> Guard:
    """Record which transaction this is, for ``leave``. Reads no messages.

    The server may end it if the client can't be reached for *vanished_seconds*. Raises IsolationError.
    """
    held = dialect.lock_and_watch(
        conn, select(literal(1).label("one")), quiet_seconds=_AGES_SECONDS, vanished_seconds=vanished_seconds
    )
    return Guard(held.token)


def leave(conn: Connection, dialect: Dialect, guard: Guard) -> None:
    """Check, right before COMMIT, that this is still the transaction of *guard*. Raises TransactionEndedError."""
    if not (claims.is_same_transaction(conn, dialect, guard.token) and dialect.release_savepoint(conn)):
        raise TransactionEndedError


def _read(conn: Connection, dialect: Dialect, topic: Topic, place: ReadPlace, limits: BatchLimits) -> FetchedRecords:
    at = Position(place.partition_id, place.offset)
    rows = dialect.read(conn, [at], limit=limits.max_messages, max_bytes=limits.max_bytes)
    return FetchedRecords(topic.name, place.partition, rows, moments_from_us=dialect.moments_from_us)
