"""Consume: from positions to messages, and back to positions."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from typing import TYPE_CHECKING, Protocol

from sqlmq.dialects import Position
from sqlmq.hooks.failpoints import failpoint
from sqlmq.model.message import FetchedRecords
from sqlmq.store import claims, offsets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.model.message import LogRow
    from sqlmq.store.claims import Claim
    from sqlmq.store.groups import Group

PRUNE_EVERY = 1_000
"""How many old positions of a partition are kept before they are deleted."""


class PartitionToRead(Protocol):
    """A partition whose messages are fetched: its topic, number and database id."""

    topic: str
    partition: int
    partition_id: int


def fetch(
    conn: Connection,
    dialect: Dialect,
    positions: Sequence[tuple[PartitionToRead, int]],
    *,
    limit: int,
    max_bytes: int,
) -> dict[int, FetchedRecords]:
    """Read messages from *positions* in several partitions at once; return them by partition id. Takes no lock."""
    by_id = {assigned.partition_id: assigned for assigned, _ in positions}
    wanted = [Position(assigned.partition_id, position) for assigned, position in positions]
    rows = dialect.read(conn, wanted, limit=limit, max_bytes=max_bytes)
    found: dict[int, FetchedRecords] = {}
    for partition_id, run in _runs(rows):
        topic, number = by_id[partition_id].topic, by_id[partition_id].partition
        found[partition_id] = FetchedRecords(topic, number, run, moments_from_us=dialect.moments_from_us)
    return found


def _runs(rows: Sequence[LogRow]) -> Iterator[tuple[int, Sequence[LogRow]]]:
    """Yield the rows of each partition, with its id.

    The rows of a partition are adjacent, so a binary search finds their end. Checking every row costs more.
    """
    first = 0
    while first < len(rows):
        partition_id = rows[first][0]
        end = bisect_left(rows, True, first, key=partial(_is_of_another, partition_id))
        yield partition_id, rows[first:end]
        first = end


def _is_of_another(partition_id: int, row: LogRow) -> bool:
    return row[0] != partition_id


def commit(
    conn: Connection,
    dialect: Dialect,
    group: Group,
    member_id: int,
    finished: Iterable[tuple[Claim, offsets.Commit]],
    *,
    durably: bool = True,
    updating_in_flight: bool = False,
    own_driver: bool = True,
) -> list[offsets.Commit]:
    """Commit positions in the partitions that *member_id* still owns; return the commits that were written.

    Locks the claims until the transaction ends, so no member takes a partition over between the check and the write.
    Commits that are missing from the result are fenced: another member owns the partition, and nothing was written.
    Unless *durably*, a crash of the server right after may lose the commit, and the messages come again.
    *updating_in_flight* also updates the in-flight offset of an existing position. *own_driver* is False on a
    connection that the application made.
    """
    finished = list(finished)
    if not finished:
        return []
    failpoint("position.before")
    written = None
    if own_driver:
        written = offsets.commit_claimed(
            conn, dialect, group, member_id, finished, durably=durably, updating_in_flight=updating_in_flight
        )
    if written is not None:
        failpoint("position.after")
        return [commit for _, commit in finished if commit.partition_id in written]
    held = {claim.partition_id for claim in claims.lock(conn, dialect, group, member_id, [c for c, _ in finished])}
    commits = [commit for _, commit in finished if commit.partition_id in held]
    failpoint("fence.checked")
    offsets.insert_all(conn, dialect, group, commits, updating_in_flight=updating_in_flight)
    failpoint("position.after")
    return commits


def prune(
    conn: Connection, dialect: Dialect, group: Group, member_id: int, windows: Sequence[tuple[Claim, offsets.Window]]
) -> None:
    """Delete old positions in *windows*, in the partitions that *member_id* still owns.

    In others, the group may have been moved back to one of them.
    """
    held = claims.lock(conn, dialect, group, member_id, [claim for claim, _ in windows])
    ours = [window for claim, window in windows if claim in held]
    if ours:
        offsets.prune(conn, dialect, group, ours)
