"""B5, B6, B8, B9: positions that go back or are out of range, commits of former owners, and retention."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.verify.judge.evidence import NEVER, client_of, described, ranges, starts_of
from sqlmq.verify.judge.findings import Finding
from sqlmq.verify.judge.rules.delivery import group_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlmq.verify.judge.evidence import Evidence, GroupDelivery, Operation, Share, TopicPartition


class PositionRead(NamedTuple):
    """A position that was read at some time from *start* to *end*."""

    start: int
    end: int
    position: int
    operation: Operation | None


def regressions(evidence: Evidence) -> Iterator[Finding]:
    """B5: a position was lower than one that was read or committed earlier, without a seek or reset."""
    for share, reads in _position_reads(evidence).items():
        if evidence.is_moved(share):
            continue
        highest: PositionRead | None = None
        over: list[PositionRead] = sorted(reads, key=lambda read: read.end)
        place = 0
        for read in sorted(reads, key=lambda read: read.start):
            # A read must see the effect of every read or commit that ended before it began.
            while place < len(over) and over[place].end < read.start:
                if highest is None or over[place].position > highest.position:
                    highest = over[place]
                place += 1
            if highest is not None and read.position < highest.position:
                text = f"{described(share)}: the position was {highest.position} and later {read.position}."
                about = tuple(one.operation for one in (highest, read) if one.operation is not None)
                yield Finding("B5", "regression", text, about)


def out_of_range(evidence: Evidence) -> Iterator[Finding]:
    """B8: a position is beyond the end of its partition, or before its start without a recorded eviction."""
    if evidence.final is None:
        return
    evicted = {(one.group, one.topic, one.partition) for one in evidence.final.evictions}
    for share, reads in _position_reads(evidence).items():
        start, end = evidence.final.ends.get(share[1:], (0, 0))
        for read in reads:
            about = () if read.operation is None else (read.operation,)
            if read.position > end:
                yield Finding(
                    "B8", "beyond", f"{described(share)}: the position is {read.position}, but the end is {end}.", about
                )
            elif read.operation is None and read.position < start and share not in evicted:
                yield Finding(
                    "B8",
                    "before",
                    f"{described(share)}: the position is {read.position}, but the start is {start}.",
                    about,
                )


def zombie_commits(evidence: Evidence) -> Iterator[Finding]:
    """B6, which fencing tokens prevent (Jepsen's etcd 3.4.3): a former owner of a partition changed its position.

    ``zombie-commit``: a commit was accepted although, before it began, another client had received messages of the
    partition more recently. ``epoch``: two owners have the same epoch.
    """
    given = {share: _Receivers(deliveries) for share, deliveries in evidence.deliveries.items()}
    for commit in evidence.of("commit"):
        if not commit.is_ok or commit.completion is None or commit.group_topic is None:
            continue
        for partition in commit.completion.positions:
            share = (*commit.group_topic, partition)
            successor = given[share].successor_of(commit) if share in given else None
            if successor is not None:
                text = f"{described(share)}: {commit.client} committed after {successor.client} had received messages of it."
                yield Finding("B6", "zombie-commit", text, (successor, commit))
    yield from _epochs(evidence)


class _Receivers:
    """The clients that received messages of a partition, queried in order of time."""

    def __init__(self, deliveries: Sequence[GroupDelivery]) -> None:
        self._deliveries = deliveries
        self._count = 0
        self._last_at: dict[str, int] = {}
        self._last: dict[str, Operation] = {}

    def successor_of(self, commit: Operation) -> Operation | None:
        """Return an operation of another client that received messages after the client of *commit* did and before the commit."""
        while (
            self._count < len(self._deliveries) and self._deliveries[self._count].operation.delivered_at < commit.start
        ):
            operation = self._deliveries[self._count].operation
            self._last_at[operation.client] = operation.delivered_at
            self._last[operation.client] = operation
            self._count += 1
        own = self._last_at.get(commit.client, NEVER)
        others = (one for client, one in self._last.items() if client != commit.client and one.start > own)
        return next(others, None)


def _epochs(evidence: Evidence) -> Iterator[Finding]:
    owners: dict[tuple[str, str, int, int], str] = {}
    for note in evidence.notes["assigned"]:
        epoch = note.more.get("epoch")
        if note.group is None or note.topic is None or note.partition is None or not isinstance(epoch, int):
            continue
        share = (note.group, note.topic, note.partition)
        # A note may be late, so a lower epoch proves nothing. But two owners must not have the same epoch.
        owner = client_of(note)
        known = owners.setdefault((*share, epoch), owner)
        if known != owner:
            yield Finding("B6", "epoch", f"{described(share)}: epoch {epoch} was given to both {known} and {owner}.")


def retention_violations(evidence: Evidence) -> Iterator[Finding]:
    """B9: retention deleted messages that a group had not completed, or has parked.

    If the topic protects groups, no group may lose a message, with or without a recorded eviction; otherwise each loss
    must be recorded. Checks the starts after each retention, in each snapshot and in the final state.
    """
    if evidence.final is None:
        return
    shares = group_progress(evidence)
    checked: dict[Share, int] = {}
    for log_start in sorted(_log_starts(evidence), key=lambda log_start: log_start.moment):
        for group, topic in evidence.groups:
            share = (group, topic, log_start.place[1])
            if topic != log_start.place[0] or evidence.has_unknown_completions(share):
                continue
            begun = checked.get(share, evidence.group_start(share))
            checked[share] = max(log_start.start, begun)
            if needed := shares[share].not_done(begun, log_start.start, log_start.moment):
                text = f"{described(share)}: {ranges(needed)} was deleted before the group had completed it."
                yield Finding("B9", "unread", text, log_start.about)
    for row in evidence.final.parked:
        if row.offset < evidence.log_start((row.topic, row.partition)):
            text = f"{described((row.group, row.topic, row.partition))}: {row.offset} is parked but deleted."
            yield Finding("B9", "parked", text)
    for one in evidence.final.evictions:
        if evidence.topic_fact(one.topic, "protect") is not False:
            text = f"{described((one.group, one.topic, one.partition))}: {one.start} to before {one.end} was evicted although the topic protects groups."
            yield Finding("B9", "evicted", text)


class _LogStart(NamedTuple):
    """The start of a partition, as known at *moment*."""

    moment: int
    place: TopicPartition
    start: int
    about: tuple[Operation, ...] = ()


def _log_starts(evidence: Evidence) -> Iterator[_LogStart]:
    for operation in evidence.of("retain", "snapshot"):
        starts = starts_of(operation)
        for partition, start in starts.items() if operation.invoke.topic is not None else ():
            yield _LogStart(operation.end, (operation.invoke.topic or "", partition), start, (operation,))
    if evidence.final is not None:
        for place, (start, _) in evidence.final.ends.items():
            yield _LogStart(NEVER, place, start)


def _position_reads(evidence: Evidence) -> dict[Share, list[PositionRead]]:
    reads: dict[Share, list[PositionRead]] = defaultdict(list)
    for operation in evidence.of("positions", "commit"):
        if operation.is_ok and operation.completion is not None and operation.group_topic is not None:
            for partition, position in operation.completion.positions.items():
                # A commit may have taken effect at any time before it returned.
                read = PositionRead(operation.start, operation.end, position, operation)
                reads[*operation.group_topic, partition].append(read)
    if evidence.final is not None:
        for share, position in evidence.final.positions.items():
            reads[share].append(PositionRead(NEVER, NEVER, position, None))
    return reads
