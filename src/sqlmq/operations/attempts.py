"""Parking: messages of a partition set aside, counted, recorded as failed, done with.

Each verb but ``load`` first locks the claim, if it is still *claim*, until the transaction ends; if not, somebody else
owns the partition: then it writes nothing and returns False. So it does if somebody has decided about the message
meanwhile (``flows.decide``): what is known of it is not true any more. All can be repeated without harm.
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
    """The right of a member of a group to one partition."""

    group: Group
    member_id: int
    claim: Claim


class Found(NamedTuple):
    """What stands beside the log when a partition is claimed."""

    rows: list[ParkedRow]
    standing: dict[int, Commit]
    """The group's positions, by partition id, and up to where messages were in the hands of the owner before."""


def load(conn: Connection, dialect: Dialect, group: Group, partition_ids: Sequence[int]) -> Found:
    """What *group* has set aside of *partition_ids*, and what was in hand there. Takes no lock."""
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
    """Set *aside* what waits behind others of its key, move the group on to *position*, and say what is tried there.

    *trying* is the message that is tried, if it has a record of its own.
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
    """Write down what becomes of a message whose attempt has failed, with the group's *position* after that."""
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
    """Move the group on to *position*; the message at *offset*, which was set aside or held, is done with.

    Unless it is our *own_driver*, but one of the application's, whatever it may be.
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
    """Uncount the attempt at the message at *offset*, which was interrupted."""
    if not _move(conn, dialect, claimed_partition, position):
        return False
    parked.uncount_attempt(conn, dialect, claimed_partition.group, claimed_partition.claim.partition_id, offset)
    return True


def _put(conn: Connection, dialect: Dialect, claimed_partition: ClaimedPartition, record: ParkedRecord) -> bool:
    # Before the row: whoever decides about it locks the claim first, too.
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
