"""Attempts: messages of a partition are parked, counted, recorded as failed, and finished.

Each function but ``load`` first locks the claim until the transaction ends. If another member owns the partition by
now, or an operator has decided about the message meanwhile, it writes nothing and returns False. All are idempotent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlmq.hooks.failpoints import failpoint
from sqlmq.operations import consume
from sqlmq.store import claims, offsets, parked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.store.claims import Claim
    from sqlmq.store.groups import Group
    from sqlmq.store.offsets import Commit
    from sqlmq.store.parked import ParkedRecord, ParkedRow


class ClaimedPartition(NamedTuple):
    """A partition that a member of a group owns."""

    group: Group
    member_id: int
    claim: Claim


class Found(NamedTuple):
    """What is stored about a partition when a worker gets it."""

    rows: list[ParkedRow]
    standing: dict[int, Commit]
    """The group's positions, by partition id, and up to where messages were in the hands of the owner before."""


def load(conn: Connection, dialect: Dialect, group: Group, partition_ids: Sequence[int]) -> Found:
    """Return what *group* has parked in *partition_ids*, and its positions there. Takes no lock."""
    return Found(
        parked.load(conn, dialect, group, partition_ids),
        offsets.positions_in_flight(conn, dialect, group, partition_ids),
    )


def begin(
    conn: Connection,
    dialect: Dialect,
    claimed_partition: ClaimedPartition,
    position: Commit,
    aside: Sequence[tuple[int, bytes | None, int]],
    trying: ParkedRecord | None,
) -> bool:
    """Park *aside*, which waits behind others of its key, commit *position*, and record the attempt.

    *trying* is the record of the message that is attempted, if it has one of its own.
    """
    if trying is not None and not _put(conn, dialect, claimed_partition, trying):
        return False
    if not _move(conn, dialect, claimed_partition, position):
        return False
    parked.put_waiting(conn, dialect, claimed_partition.group, claimed_partition.claim.partition_id, aside)
    failpoint("attempt.begun")
    return True


def record(
    conn: Connection, dialect: Dialect, claimed_partition: ClaimedPartition, position: Commit, outcome: ParkedRecord
) -> bool:
    """Record the *outcome* of a failed attempt, and commit *position*."""
    failpoint("park.before")
    is_ours = _put(conn, dialect, claimed_partition, outcome) and _move(conn, dialect, claimed_partition, position)
    failpoint("park.after")
    return is_ours


def settle(
    conn: Connection,
    dialect: Dialect,
    claimed_partition: ClaimedPartition,
    position: Commit,
    offset: int | None,
    *,
    own_driver: bool = True,
) -> bool:
    """Commit *position* and delete the parked message at *offset*, which was handled.

    *own_driver* is False on a connection that the application made.
    """
    if not _move(conn, dialect, claimed_partition, position, own_driver=own_driver):
        return False
    if offset is not None:
        parked.remove(conn, dialect, claimed_partition.group, claimed_partition.claim.partition_id, offset)
    failpoint("settle.after")
    return True


def uncount_attempt(
    conn: Connection, dialect: Dialect, claimed_partition: ClaimedPartition, position: Commit, offset: int
) -> bool:
    """Uncount the interrupted attempt at the message at *offset*, and commit *position*."""
    if not _move(conn, dialect, claimed_partition, position):
        return False
    parked.uncount_attempt(conn, dialect, claimed_partition.group, claimed_partition.claim.partition_id, offset)
    return True


def _put(conn: Connection, dialect: Dialect, claimed_partition: ClaimedPartition, record: ParkedRecord) -> bool:
    # Lock the claim before the row, in the same order as an operator's decision.
    is_ours = claims.lock(
        conn, dialect, claimed_partition.group, claimed_partition.member_id, [claimed_partition.claim]
    )
    return bool(is_ours) and parked.put(conn, dialect, claimed_partition.group, record)


def _move(
    conn: Connection,
    dialect: Dialect,
    claimed_partition: ClaimedPartition,
    position: Commit,
    *,
    own_driver: bool = True,
) -> bool:
    group, member_id, claim = claimed_partition
    moved = consume.commit(
        conn, dialect, group, member_id, [(claim, position)], updating_in_flight=True, own_driver=own_driver
    )
    return bool(moved)
