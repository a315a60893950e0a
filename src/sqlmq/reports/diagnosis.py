"""Why a group does not get on, where that can be told from what is stored: decisions on values, no SQL."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlmq.reports.descriptions import BlockedKey, MemberDescription, ParkedMessage, PartitionLag

FindingKind: TypeAlias = Literal[
    "no members",
    "no owner",
    "not yet",
    "silent owner",
    "no progress",
    "in place",
    "blocked keys",
    "dead letters",
    "evicted",
    "held",
]
"""What keeps messages waiting, in a word or two; docs/stuck-consumer.md has the remedies."""

_MOVING_SECONDS = 10.0
"""For how long a commit says that somebody reads who is no member."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason why messages of a group wait, and what to do about it."""

    topic: str
    group: str
    partition: int | None
    """None if it is about all partitions."""
    kind: FindingKind
    reason: str
    """A sentence or two for people."""
    remedy: str
    """What to do, with the command if there is one."""


class Transaction(NamedTuple):
    """One of another session that holds claims of groups."""

    pid: int
    application: str
    state: str
    seconds: float


class PartitionBarrier(NamedTuple):
    """A partition that was added to the topic, by number, and what of which other has to be done before it is read."""

    partition: int
    parent: int
    barrier_offset: int


class Seen(NamedTuple):
    """What was seen of a group, all at one moment or nearly."""

    lags: Sequence[PartitionLag]
    members: Sequence[MemberDescription]
    starts: Mapping[int, int]
    """The oldest offset kept, by partition."""
    in_place: Sequence[ParkedMessage]
    """Messages that are tried in their place, or stopped there."""
    blocked: Sequence[BlockedKey]
    barriers: Sequence[PartitionBarrier]
    holders: Sequence[Transaction]
    now: datetime
    """By the database's clock."""


def findings(seen: Seen, stuck_seconds: float) -> list[Finding]:
    """Why messages wait, the partitions in order.

    A partition stands still if nothing was committed for *stuck_seconds* and its oldest message has waited as long.
    """
    return [*_of_group(seen, stuck_seconds), *_of_partitions(seen, stuck_seconds), *_of_dead_letters(seen)]


def _of_group(seen: Seen, stuck_seconds: float) -> Iterator[Finding]:
    behind = [lag for lag in seen.lags if lag.lag]
    still = [lag for lag in behind if _stands_still(lag, seen.now, stuck_seconds)]
    live = [member for member in seen.members if member.is_live]
    if still:
        for holder in seen.holders:
            if holder.seconds < stuck_seconds:
                continue
            yield _finding(
                still[0],
                None,
                "held",
                f"A transaction has held a claim of a group for {_span(holder.seconds)}: server process {holder.pid}"
                f"{f', {holder.application}' if holder.application else ''}{f', {holder.state}' if holder.state else ''}."
                " If it is of this group, its partition waits for it.",
                "End the program, or its session: "
                f"SELECT pg_terminate_backend({holder.pid}). What it had not committed comes again.",
            )
    # Consumers of consumer.transaction() are no members; they show by what they commit.
    recent_seconds = min(stuck_seconds, _MOVING_SECONDS)
    is_moving = any(_is_recent(lag.committed_at, seen.now, recent_seconds) for lag in seen.lags)
    if behind and not live and not is_moving:
        heard = min((member.heartbeat_seconds for member in seen.members), default=None)
        last = "" if heard is None else f" The last one was heard of {_span(heard)} ago, and has not said goodbye."
        total = sum(lag.lag for lag in behind)
        yield _finding(
            behind[0],
            None,
            "no members",
            f"Nobody reads: the group has no live member, and {_messages(total)} waits."
            if total == 1
            else f"Nobody reads: the group has no live member, and {_messages(total)} wait.{last}",
            f"Start the consumer: your program, or `sqlmq run MODULE:HANDLER --topic {behind[0].topic} "
            f"--group {quote(behind[0].group)}`.",
        )


def _of_partitions(seen: Seen, stuck_seconds: float) -> Iterator[Finding]:
    live = {member.name: member for member in seen.members if member.is_live}
    in_place = {message.partition: message for message in seen.in_place}
    blocked = Counter(key.partition for key in seen.blocked)
    first = {key.partition: key for key in reversed(seen.blocked)}
    barriers = {one.partition: one for one in seen.barriers}
    for lag in seen.lags:
        if lag.position < seen.starts.get(lag.partition, 0):
            yield _evicted(lag, seen.starts[lag.partition])
        elif lag.partition in in_place:
            yield _in_place(lag, in_place[lag.partition])
        elif lag.lag and lag.partition in barriers:
            yield _barrier(lag, barriers[lag.partition])
        elif lag.lag and lag.owner is None and live:
            yield _finding(
                lag,
                lag.partition,
                "no owner",
                f"No member owns it, though {len(live)} of them {'is' if len(live) == 1 else 'are'} alive: "
                "none has asked for messages since it became free.",
                "Wait a lease; if it stays so, see that the programs ask: "
                f"`sqlmq groups members {quote(lag.group)} --topic {lag.topic}`.",
            )
        elif lag.lag and lag.owner is not None:
            yield from _of_owner(seen, lag, live.get(lag.owner), stuck_seconds)
        if lag.partition in first and lag.partition not in in_place:
            yield _blocked(lag, first[lag.partition], blocked[lag.partition])


def _of_owner(
    seen: Seen, lag: PartitionLag, owner: MemberDescription | None, stuck_seconds: float
) -> Iterator[Finding]:
    if owner is not None and owner.heartbeat_seconds > owner.lease_seconds / 2:
        yield _finding(
            lag,
            lag.partition,
            "silent owner",
            f"Its owner {owner.name} was last heard of {_span(owner.heartbeat_seconds)} ago.",
            f"See what became of that process. Others take over {_span(owner.lease_seconds)} after its last heartbeat.",
        )
    elif _stands_still(lag, seen.now, stuck_seconds):
        since = (
            "It has committed nothing yet"
            if lag.committed_at is None
            else (f"Nothing was committed since {lag.committed_at.isoformat(timespec='seconds')}")
        )
        yield _finding(
            lag,
            lag.partition,
            "no progress",
            f"Its owner {lag.owner} is alive, and does not get on. {since}; the oldest message, offset {lag.position}, "
            f"is {_span(lag.lag_seconds)} old. A handler that hangs, or takes long, looks like this.",
            f"See what it is: `sqlmq tail {lag.topic} --partition {lag.partition} --offset {lag.position} --max 1`; "
            "then look into that process, or restart it: the message comes again.",
        )


def _evicted(lag: PartitionLag, start: int) -> Finding:
    return _finding(
        lag,
        lag.partition,
        "evicted",
        f"Retention has deleted what the group had not read: it is at offset {lag.position}, the log begins at {start}. "
        "Its consumers raise EvictedError.",
        f"`sqlmq topics evictions {lag.topic}` tells what is lost. To go on: `sqlmq groups reset {quote(lag.group)} "
        f"--topic {lag.topic} --partition {lag.partition} --to-earliest --execute`, or on_evicted='earliest'.",
    )


def _barrier(lag: PartitionLag, before: PartitionBarrier) -> Finding:
    return _finding(
        lag,
        lag.partition,
        "not yet",
        f"It was added to the topic, and its keys come from partition {before.parent}: it is read when the group is done "
        f"there with all before offset {before.barrier_offset}, and nothing of that waits to be tried again.",
        f"Nothing, if partition {before.parent} gets on; else see what holds that up: "
        f"`sqlmq parked list {lag.topic} --group {quote(lag.group)}`.",
    )


def _in_place(lag: PartitionLag, message: ParkedMessage) -> Finding:
    which = f"{lag.topic} --group {quote(lag.group)} --partition {lag.partition} --offset {message.offset}"
    what = f"The message at offset {message.offset} has failed {_times(message.attempts)}"
    why = f", with {message.error_type}" if message.error_type else ""
    if message.state == "stopped":
        after = f"the partition waits for you to decide, {_messages(lag.lag)} with it."
        remedy = f"Repair the cause, then `sqlmq parked retry {which}`; or drop it: `sqlmq parked discard {which}`."
    else:
        after = "it is tried again in its place, and what is behind it waits."
        remedy = (
            f"`sqlmq parked show {lag.topic} {lag.partition} {message.offset} --group {quote(lag.group)}` tells why."
        )
    return _finding(lag, lag.partition, "in place", f"{what}{why}; {after}", remedy)


def _blocked(lag: PartitionLag, first: BlockedKey, keys: int) -> Finding:
    which = f"{lag.topic} --group {quote(lag.group)} --partition {lag.partition} --offset {first.first_offset}"
    more = f", and {keys - 1:,} other key{'s' if keys > 2 else ''} likewise" if keys > 1 else ""
    return _finding(
        lag,
        lag.partition,
        "blocked keys",
        f"A key's messages wait behind the one at offset {first.first_offset}, which has failed "
        f"{_times(first.attempts)}{more}. Other keys go on.",
        f"`sqlmq parked list {lag.topic} --group {quote(lag.group)}` tells why. It is tried again by itself; at once by "
        f"`sqlmq parked retry {which}`.",
    )


def _of_dead_letters(seen: Seen) -> Iterator[Finding]:
    dead = [lag for lag in seen.lags if lag.dead]
    if dead:
        total = sum(lag.dead for lag in dead)
        lag = dead[0]
        yield _finding(
            lag,
            None,
            "dead letters",
            f"{total:,} dead letter{'' if total == 1 else 's'}: nobody tries {'it' if total == 1 else 'them'} again. "
            "They hold up nothing.",
            f"`sqlmq parked list {lag.topic} --group {quote(lag.group)} --state dead`; then retry or discard.",
        )


def _stands_still(lag: PartitionLag, now: datetime, seconds: float) -> bool:
    return bool(lag.lag) and lag.lag_seconds >= seconds and not _is_recent(lag.committed_at, now, seconds)


def _is_recent(moment: datetime | None, now: datetime, seconds: float) -> bool:
    return moment is not None and (now - moment).total_seconds() < seconds


def _finding(lag: PartitionLag, partition: int | None, kind: FindingKind, reason: str, remedy: str) -> Finding:
    return Finding(lag.topic, lag.group, partition, kind, reason, remedy)


def _messages(number: int) -> str:
    return f"{number:,} message{'' if number == 1 else 's'}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _span(seconds: float) -> str:
    """*seconds* as people say it: ``4.2 s``, ``12 min``, ``3 h``."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.0f} h"
