"""Transacting: messages are taken and done with in one transaction, which the application's effects are part of.

The lock of the claim's row is what makes the partition this transaction's own. It ends with the transaction, and with
the connection: nobody has to be missed for a lease before somebody else may go on.
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
from sqlmq.store import claims, messages, offsets, topics
from sqlmq.store.offsets import Commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.model.config import OnEvicted
    from sqlmq.model.message import Message
    from sqlmq.store.claims import Claim, FreeClaims
    from sqlmq.store.groups import Group
    from sqlmq.store.topics import Topic

_AGES_SECONDS = 1e6


class BatchLimits(NamedTuple):
    """How much a transaction takes, and how long it may be left alone."""

    max_messages: int
    max_bytes: int
    quiet_seconds: float
    vanished_seconds: float
    on_evicted: OnEvicted = "raise"


class Guard(NamedTuple):
    """What tells a transaction from a later one on the same connection."""

    token: str | None


class TransactionBatch(NamedTuple):
    """A partition that the transaction holds, and what it reads there: from *start* up to, not including, *end*."""

    claim: Claim
    token: str | None
    start: int
    messages: list[Message]
    evicted: EvictedError | None = None
    """What of it retention has deleted unread."""

    @property
    def end(self) -> int:
        """Where the group goes on when this is done."""
        return (self.start if self.evicted is None else self.evicted.end) + len(self.messages)


def find_free(conn: Connection, dialect: Dialect, topic: Topic, group: Group) -> FreeClaims:
    """Look, without any lock, whether there may be something to take. Raises UnknownTopicError if the topic is gone."""
    found = claims.find_free(conn, dialect, group)
    if found is None:
        raise UnknownTopicError(topic.name)
    return found


def free_dead(conn: Connection, dialect: Dialect, group: Group) -> None:
    """Take their partitions from members whose lease is over, and remove those members.

    In a transaction of its own: a member that lives on after all finds itself gone at once, rather than wait for
    whoever goes on with its partitions.
    """
    claims.remove_dead(conn, dialect, group)


def lock_and_fetch(
    conn: Connection, dialect: Dialect, topic: Topic, group: Group, limits: BatchLimits, last: Sequence[int]
) -> TransactionBatch | None:
    """Lock a partition that nobody has, and read on in it; None if there is none, or nothing in it after all.

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
    # A statement later than the lock: whoever had it has committed his position by now.
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
    """Move the group on behind what was *taken*; the last statement before COMMIT.

    Raises TransactionEndedError if the transaction is not the one it was taken in, FencedError if the partition is not as it
    was left: then nothing may be committed.
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
    # A window of positions is deleted whenever the next one is reached, by whoever reaches it: what was before is gone.
    window = taken.start // PRUNE_EVERY
    if taken.end // PRUNE_EVERY > window:
        offsets.prune(conn, dialect, group, [offsets.Window(id_, window * PRUNE_EVERY, taken.end)])
    if not dialect.release_savepoint(conn):
        raise TransactionEndedError


def enter(conn: Connection, dialect: Dialect, *, vanished_seconds: float) -> Guard:
    """Note which transaction this is, for ``leave``; nothing is taken in it.

    The server may end it when its owner can't be reached for *vanished_seconds*. Raises IsolationError.
    """
    held = dialect.lock_and_watch(
        conn, select(literal(1).label("one")), quiet_seconds=_AGES_SECONDS, vanished_seconds=vanished_seconds
    )
    return Guard(held.token)


def leave(conn: Connection, dialect: Dialect, guard: Guard) -> None:
    """The last act before COMMIT. Raises TransactionEndedError if this is not the transaction of *guard* any more."""
    if not (claims.is_same_transaction(conn, dialect, guard.token) and dialect.release_savepoint(conn)):
        raise TransactionEndedError


def _read(conn: Connection, dialect: Dialect, topic: Topic, place: ReadPlace, limits: BatchLimits) -> FetchedRecords:
    at = Position(place.partition_id, place.offset)
    rows = messages.read(conn, dialect, [at], limit=limits.max_messages, max_bytes=limits.max_bytes)
    return FetchedRecords(topic.name, place.partition, rows, moments_from_us=dialect.moments_from_us)
