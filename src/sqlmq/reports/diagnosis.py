"""Why the messages of a group wait, where the tables show it. Pure functions of what was seen; no SQL."""

from __future__ import annotations

from collections import Counter
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.model.timing import CLOCK_STEP_SECONDS
from sqlmq.reports.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlmq.reports.descriptions import BlockedKey, MemberDescription, ParkedMessage, PartitionLag

_RECENT_COMMIT_SECONDS = 10.0
"""A group whose last commit is younger than this has a reader, even without members."""


class OpenClaimTransaction(NamedTuple):
    """A transaction of another session that holds locks on claims of groups."""

    pid: int
    application: str
    state: str
    seconds: float


class PartitionBarrier(NamedTuple):
    """A partition that was added to the topic, and what the group must finish before it reads that partition."""

    partition: int
    parent: int
    """The partition that the keys come from."""
    barrier_offset: int
    """The group must finish everything before this offset of *parent*."""


class GroupEvidence(NamedTuple):
    """What the tables show of a group, all at nearly the same moment."""

    lags: Sequence[PartitionLag]
    members: Sequence[MemberDescription]
    starts: Mapping[int, int]
    """The oldest offset kept, by partition."""
    in_place: Sequence[ParkedMessage]
    """Parked messages that their partitions wait for: retried in place, or stopped."""
    blocked: Sequence[BlockedKey]
    barriers: Sequence[PartitionBarrier]
    claim_holders: Sequence[OpenClaimTransaction]
    now: datetime
    """By the database's clock."""


def find_problems(seen: GroupEvidence, stuck_seconds: float) -> list[Problem]:
    """Return why messages wait, the partitions in order.

    A partition counts as stuck if nothing was committed for *stuck_seconds* and its oldest message has waited as long.
    """
    return [*_of_group(seen, stuck_seconds), *_of_partitions(seen, stuck_seconds), *_of_dead_letters(seen)]


def _of_group(seen: GroupEvidence, stuck_seconds: float) -> Iterator[Problem]:
    behind = [lag for lag in seen.lags if lag.lag]
    stuck = [lag for lag in behind if _is_stuck(lag, seen.now, stuck_seconds)]
    if stuck:
        for holder in seen.claim_holders:
            if holder.seconds >= stuck_seconds:
                yield _held_claim(stuck[0], holder)
    # Consumers that use consumer.transaction() are no members; only their commits show that they read.
    recent_seconds = min(stuck_seconds, _RECENT_COMMIT_SECONDS)
    commits = any(_is_recent(lag.committed_at, seen.now, recent_seconds) for lag in seen.lags)
    if behind and not commits and not any(member.is_live for member in seen.members):
        yield _no_members(behind, seen.members)


def _held_claim(lag: PartitionLag, holder: OpenClaimTransaction) -> Problem:
    session = ", ".join(filter(None, (f"server process {holder.pid}", holder.application, holder.state)))
    return _problem(
        lag,
        None,
        "held-claim",
        f"A transaction has held a claim of a group for {_duration(holder.seconds)}: {session}. If the claim is of this "
        "group, its partition waits for that transaction.",
        f"End the program, or its session: SELECT pg_terminate_backend({holder.pid}). Its uncommitted messages are "
        "delivered again.",
    )


def _no_members(behind: Sequence[PartitionLag], members: Sequence[MemberDescription]) -> Problem:
    total = sum(lag.lag for lag in behind)
    last = ""
    if members:
        last = f" The last heartbeat was {_heartbeat(members)}, and the member did not leave the group."
    return _problem(
        behind[0],
        None,
        "no-members",
        f"The group has no live member, and {_messages(total)} {'waits' if total == 1 else 'wait'}.{last}",
        f"Start the consumer: your program, or `sqlmq run MODULE:HANDLER --topic {behind[0].topic} "
        f"--group {quote(behind[0].group)}`.",
    )


def _heartbeat(members: Sequence[MemberDescription]) -> str:
    ahead = max(member.heartbeat_ahead_seconds for member in members)
    if ahead > CLOCK_STEP_SECONDS:
        return f"before the database's clock was set back, by {_duration(ahead)} or more"
    return f"{_duration(min(member.heartbeat_seconds for member in members))} ago"


def _of_partitions(seen: GroupEvidence, stuck_seconds: float) -> Iterator[Problem]:
    live = {member.name: member for member in seen.members if member.is_live}
    in_place = {message.partition: message for message in seen.in_place}
    blocked = Counter(key.partition for key in seen.blocked)
    first_blocked = {key.partition: key for key in reversed(seen.blocked)}
    barriers = {barrier.partition: barrier for barrier in seen.barriers}
    for lag in seen.lags:
        if lag.position < seen.starts.get(lag.partition, 0):
            yield _evicted(lag, seen.starts[lag.partition])
        elif lag.partition in in_place:
            yield _blocked_partition(lag, in_place[lag.partition])
        elif lag.lag and lag.partition in barriers:
            yield _partition_barrier(lag, barriers[lag.partition])
        elif lag.lag and lag.owner is None and live:
            yield _no_owner(lag, len(live))
        elif lag.lag and lag.owner is not None:
            yield from _of_owner(seen, lag, live.get(lag.owner), stuck_seconds)
        if lag.partition in first_blocked and lag.partition not in in_place:
            yield _blocked_keys(lag, first_blocked[lag.partition], blocked[lag.partition])


def _of_owner(
    seen: GroupEvidence, lag: PartitionLag, owner: MemberDescription | None, stuck_seconds: float
) -> Iterator[Problem]:
    if owner is not None and owner.heartbeat_seconds > owner.lease_seconds / 2:
        yield _problem(
            lag,
            lag.partition,
            "silent-owner",
            f"The last heartbeat of its owner {owner.name} was {_duration(owner.heartbeat_seconds)} ago.",
            f"Look at that process. Other members take over {_duration(owner.lease_seconds)} after its last heartbeat.",
        )
    elif _is_stuck(lag, seen.now, stuck_seconds):
        yield _no_progress(lag)


def _no_owner(lag: PartitionLag, live: int) -> Problem:
    members = "1 member is alive" if live == 1 else f"{live} members are alive"
    return _problem(
        lag,
        lag.partition,
        "no-owner",
        f"No member owns the partition, though {members}: none has asked for messages since it became free.",
        "Wait for one lease. If it stays free, check that the programs ask for messages: "
        f"`sqlmq groups members {quote(lag.group)} --topic {lag.topic}`.",
    )


def _no_progress(lag: PartitionLag) -> Problem:
    if lag.committed_at is None:
        since = "It has committed nothing yet"
    else:
        since = f"Its last commit was at {lag.committed_at.isoformat(timespec='seconds')}"
    return _problem(
        lag,
        lag.partition,
        "no-progress",
        f"Its owner {lag.owner} is alive but makes no progress. {since}; the oldest message, offset {lag.position}, is "
        f"{_duration(lag.lag_seconds)} old. A handler that hangs or is slow looks like this.",
        f"Look at the message: `sqlmq tail {lag.topic} --partition {lag.partition} --offset {lag.position} --limit 1`. "
        "Then look into that process, or restart it: the message is delivered again.",
    )


def _evicted(lag: PartitionLag, start: int) -> Problem:
    return _problem(
        lag,
        lag.partition,
        "evicted",
        f"Retention has deleted messages that the group had not read: its position is {lag.position}, the log begins at "
        f"{start}. Its consumers raise EvictedError.",
        f"`sqlmq topics evictions {lag.topic}` shows what was lost. To continue: `sqlmq groups reset {quote(lag.group)} "
        f"--topic {lag.topic} --partition {lag.partition} --to-earliest --execute`, or on_evicted='earliest'.",
    )


def _partition_barrier(lag: PartitionLag, barrier: PartitionBarrier) -> Problem:
    return _problem(
        lag,
        lag.partition,
        "partition-barrier",
        f"The partition was added to the topic, and its keys come from partition {barrier.parent}. The group reads it "
        f"after it has finished everything there before offset {barrier.barrier_offset}, retries included.",
        f"Nothing, if partition {barrier.parent} makes progress. Otherwise look at what it waits for: "
        f"`sqlmq parked list {lag.topic} --group {quote(lag.group)}`.",
    )


def _blocked_partition(lag: PartitionLag, message: ParkedMessage) -> Problem:
    which = f"{lag.topic} --group {quote(lag.group)} --partition {lag.partition} --offset {message.offset}"
    failed = f"The message at offset {message.offset} has failed {_times(message.attempts)}"
    error = f", with {message.error_type}" if message.error_type else ""
    if message.state == "stopped":
        effect = f"the partition waits for your decision, with {_messages(lag.lag)}."
        remedy = f"Repair the cause, then `sqlmq parked retry {which}`; or drop it: `sqlmq parked discard {which}`."
    else:
        effect = "it is retried in its place, and the messages behind it wait."
        remedy = (
            f"`sqlmq parked show {lag.topic} {lag.partition} {message.offset} --group {quote(lag.group)}` shows why."
        )
    return _problem(lag, lag.partition, "blocked-partition", f"{failed}{error}; {effect}", remedy)


def _blocked_keys(lag: PartitionLag, first: BlockedKey, keys: int) -> Problem:
    which = f"{lag.topic} --group {quote(lag.group)} --partition {lag.partition} --offset {first.first_offset}"
    more = f"; {keys - 1:,} other key{'s wait' if keys > 2 else ' waits'} as well" if keys > 1 else ""
    return _problem(
        lag,
        lag.partition,
        "blocked-keys",
        f"The messages of a key wait behind the one at offset {first.first_offset}, which has failed "
        f"{_times(first.attempts)}{more}. All other keys continue.",
        f"`sqlmq parked list {lag.topic} --group {quote(lag.group)}` shows why. The message is retried by itself; at once "
        f"with `sqlmq parked retry {which}`.",
    )


def _of_dead_letters(seen: GroupEvidence) -> Iterator[Problem]:
    dead = [lag for lag in seen.lags if lag.dead]
    if dead:
        total = sum(lag.dead for lag in dead)
        lag = dead[0]
        yield _problem(
            lag,
            None,
            "dead-letters",
            f"{total:,} dead letter{' is' if total == 1 else 's are'} not retried any more. No other message waits for "
            f"{'it' if total == 1 else 'them'}.",
            f"`sqlmq parked list {lag.topic} --group {quote(lag.group)} --state dead`; then retry or discard.",
        )


def _is_stuck(lag: PartitionLag, now: datetime, seconds: float) -> bool:
    return bool(lag.lag) and lag.lag_seconds >= seconds and not _is_recent(lag.committed_at, now, seconds)


def _is_recent(moment: datetime | None, now: datetime, seconds: float) -> bool:
    """Whether *moment* is less than *seconds* away from *now*: ago, or ahead because the clock was set back since."""
    return moment is not None and abs((now - moment).total_seconds()) < seconds


def _problem(lag: PartitionLag, partition: int | None, code: str, summary: str, remedy: str) -> Problem:
    return Problem(code, summary, remedy, lag.topic, lag.group, partition)


def _messages(number: int) -> str:
    return f"{number:,} message{'' if number == 1 else 's'}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _duration(seconds: float) -> str:
    """Format *seconds* for people: ``4.2 s``, ``12 min``, ``3 h``."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.0f} h"
