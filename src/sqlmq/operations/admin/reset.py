"""A group's positions moved, back or forward: in several partitions by an operator, in one by ``seek``.

A position is the group's newest row, so a move deletes all others. It holds the locks of the claims, as every write of a
position does, and raises their epochs: commits of messages that were read at the old position are fenced.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.errors import GroupInUseError, InvalidOffsetError, UnknownTopicError
from sqlmq.hooks.failpoints import failpoint
from sqlmq.model.positions import Shift
from sqlmq.model.validation import check_partition
from sqlmq.operations.admin.topics import find_topic
from sqlmq.reports.descriptions import PartitionReset
from sqlmq.store import claims, groups, messages, offsets, parked, topics
from sqlmq.store.offsets import Commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.model.positions import SeekTo, Start, Target
    from sqlmq.store.claims import Claim
    from sqlmq.store.groups import Group
    from sqlmq.store.topics import Topic

LOCK_SECONDS = 1.0
"""How long a statement waits for a locked claim before the transaction is retried."""
CLOCK_SET_BACK = timedelta(hours=1)
"""How far a clock may be set back without hiding a message from a start at a moment, however long the log is."""
READ_MESSAGES = 1_000_000
"""How many messages are read in any case, all partitions together. Up to as many, nothing hides a message."""
READ_LEAST_MESSAGES = 10_000
"""How many of each partition."""
_WINDOW = 50_000
"""How many messages one statement reads: about 10 ms."""


class ResetRequest(NamedTuple):
    """Which group, where to, and in which partitions; None means all."""

    topic: str
    group: str
    target: Target
    partitions: Sequence[int] | None


class CompletedReset(NamedTuple):
    """The changes, and the ids of their topic and group."""

    topic_id: int
    group_id: int
    changes: list[PartitionReset]


def preview(conn: Connection, dialect: Dialect, wanted: ResetRequest) -> list[PartitionReset]:
    """Return what ``reset`` would do now. Takes no lock."""
    topic = find_topic(conn, dialect, wanted.topic)
    group = groups.get(conn, dialect, topic, wanted.group)
    return _changes(conn, dialect, topic, group, wanted.target, _numbers(topic, wanted))


def reset(conn: Connection, dialect: Dialect, wanted: ResetRequest, *, force: bool) -> CompletedReset:
    """Move the group, and revoke the claims of those partitions.

    Raises GroupInUseError while members are alive, unless *force*.
    """
    dialect.limit_lock_wait(conn, LOCK_SECONDS)
    topic = topics.lock_shared(conn, dialect, find_topic(conn, dialect, wanted.topic))
    if topic is None:
        raise UnknownTopicError(wanted.topic)
    group = groups.get(conn, dialect, topic, wanted.group)
    numbers = _numbers(topic, wanted)
    ids = [topic.partition_ids[number] for number in numbers]
    # A partition without a claim row would have no lock.
    claims.add_claims(conn, dialect, group, topic)
    claims.lock_all(conn, dialect, group, ids)
    # Read after the locks: a member that joins from now on waits for them, and then reads the new positions.
    members = groups.members(conn, dialect, group)
    if members and not force:
        raise GroupInUseError(topic.name, group.name, tuple(member.name for member in members))
    changes = _changes(conn, dialect, topic, group, wanted.target, numbers)
    claims.revoke(conn, dialect, group, ids)
    _move(conn, dialect, group, [Commit(id_, change.to_offset, 0) for id_, change in zip(ids, changes, strict=True)])
    return CompletedReset(topic.id, group.id, changes)


def seek(
    conn: Connection, dialect: Dialect, topic: Topic, group: Group, member_id: int, claim: Claim, to: SeekTo
) -> tuple[Claim, int] | None:
    """Move the group in the partition of *claim*; return the claim with its new epoch, and the new position.

    Returns None, and changes nothing, if *member_id* has lost the claim.
    """
    renewed = claims.bump_epoch(conn, dialect, group, member_id, claim)
    if renewed is None:
        return None
    topic = find_topic(conn, dialect, topic.name)
    if claim.partition_id not in topic.partition_ids:
        raise UnknownTopicError(topic.name)
    (change,) = _changes(conn, dialect, topic, group, to, [topic.partition_ids.index(claim.partition_id)])
    _move(conn, dialect, group, [Commit(claim.partition_id, change.to_offset, 0)])
    return renewed, change.to_offset


def start(conn: Connection, dialect: Dialect, topic: Topic, group: Group, to: Start) -> None:
    """Commit the start of a new group at a time or at ``latest``: it reads only messages from there on."""
    bounds = _bounds(conn, dialect, topic)
    found = _first_since(conn, dialect, bounds, to) if isinstance(to, datetime) else _ends(bounds)
    offsets.insert_all(conn, dialect, group, [Commit(id_, offset) for id_, offset in found.items()])


def _move(conn: Connection, dialect: Dialect, group: Group, commits: Sequence[Commit]) -> None:
    """Make *commits* the group's positions, and forget parked messages from there on: the log delivers them again."""
    offsets.replace(conn, dialect, group, commits)
    parked.forget(conn, dialect, group, {commit.partition_id: commit.offset for commit in commits})
    failpoint("replay.moved")


def _numbers(topic: Topic, wanted: ResetRequest) -> list[int]:
    numbers = wanted.target if isinstance(wanted.target, Mapping) else wanted.partitions
    if numbers is None:
        numbers = range(topic.partitions)
    # In order of partition id, as claims are locked.
    return sorted({check_partition(topic.name, number, topic.partitions) for number in numbers})


def _changes(
    conn: Connection, dialect: Dialect, topic: Topic, group: Group, target: Target, numbers: Sequence[int]
) -> list[PartitionReset]:
    ids = [topic.partition_ids[number] for number in numbers]
    positions = offsets.positions(conn, dialect, group, ids)
    all_bounds = _bounds(conn, dialect, topic)
    if any(id_ not in positions or id_ not in all_bounds for id_ in ids):
        raise UnknownTopicError(topic.name)
    bounds = {id_: all_bounds[id_] for id_ in ids}
    goals = _goals(conn, dialect, topic, target, positions, bounds)
    forgotten = parked.count_forgotten(conn, dialect, group, goals)
    return [
        PartitionReset(number, positions[id_], goals[id_], *bounds[id_], forgotten.get(id_, 0))
        for number, id_ in zip(numbers, ids, strict=True)
    ]


def _goals(
    conn: Connection,
    dialect: Dialect,
    topic: Topic,
    target: Target,
    positions: dict[int, int],
    bounds: dict[int, tuple[int, int]],
) -> dict[int, int]:
    """Return the new position, by partition id, for each partition of *bounds*."""
    if target == "latest":
        return _ends(bounds)
    if target == "earliest":
        return {id_: oldest for id_, (oldest, _) in bounds.items()}
    if isinstance(target, Shift):
        return {id_: max(oldest, min(positions[id_] + target.messages, end)) for id_, (oldest, end) in bounds.items()}
    if isinstance(target, timedelta):
        target = messages.moment_ago(conn, dialect, target.total_seconds())
    if isinstance(target, datetime):
        return _first_since(conn, dialect, bounds, target)
    goals = {}
    for id_, (oldest, end) in bounds.items():
        number = topic.partition_ids.index(id_)
        offset = target[number] if isinstance(target, Mapping) else int(target)
        if not oldest <= offset <= end:
            raise InvalidOffsetError(topic.name, number, offset, oldest, end)
        goals[id_] = offset
    return goals


def _first_since(
    conn: Connection, dialect: Dialect, bounds: dict[int, tuple[int, int]], moment: datetime
) -> dict[int, int]:
    """Return, by partition id, the offset of the first message not older than *moment*; the end if all are older.

    Moments in a log are not sorted: where the clock was set back, later messages look older. So a binary search finds one
    such message, and those before it are read in order: all that may have been appended since *moment*, though the clock
    was set back by an hour, and in any case the last million. docs/design/time.md has the reasons and the measurements.
    """
    newer = _bisected(conn, dialect, bounds, moment)
    read = max(READ_LEAST_MESSAGES, READ_MESSAGES // max(1, len(bounds)))
    starts = {id_: max(bounds[id_][0], end - read) for id_, end in newer.items()}
    if moment.year > 1:  # the first moments of the calendar have none an hour before
        unread = {id_: (bounds[id_][0], first) for id_, first in starts.items() if first > bounds[id_][0]}
        starts |= _bisected(conn, dialect, unread, moment - CLOCK_SET_BACK)
    else:
        starts = {id_: start for id_, (start, _) in bounds.items()}
    return {id_: _first_read(conn, dialect, id_, starts[id_], end, moment) for id_, end in newer.items()}


def _bisected(
    conn: Connection, dialect: Dialect, bounds: dict[int, tuple[int, int]], moment: datetime
) -> dict[int, int]:
    """Return, by partition id, the offset of a message not older than *moment* behind one that is older; or the end.

    A binary search in all partitions at once: each step is one statement that reads one message of each partition by its
    offset.
    """
    ranges = dict(bounds)
    while middles := {id_: (low + high) // 2 for id_, (low, high) in ranges.items() if low < high}:
        newer = messages.not_older(conn, dialect, middles, moment)
        for id_, middle in middles.items():
            low, high = ranges[id_]
            ranges[id_] = (low, middle) if id_ in newer else (middle + 1, high)
    return {id_: low for id_, (low, _) in ranges.items()}


def _first_read(conn: Connection, dialect: Dialect, partition_id: int, start: int, end: int, moment: datetime) -> int:
    """Return the offset of the first message from *start* on that is not older than *moment*; *end* if there is none."""
    for first in range(start, end, _WINDOW):
        found = messages.first_not_older(conn, dialect, partition_id, first, min(first + _WINDOW, end), moment)
        if found is not None:
            return found
    return end


def _bounds(conn: Connection, dialect: Dialect, topic: Topic) -> dict[int, tuple[int, int]]:
    return {topic.partition_ids[number]: found for number, found in messages.bounds(conn, dialect, topic).items()}


def _ends(bounds: dict[int, tuple[int, int]]) -> dict[int, int]:
    return {id_: end for id_, (_, end) in bounds.items()}
