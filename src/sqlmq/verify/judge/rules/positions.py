"""Positions that go back, or where they can't be; what lost owners wrote; what retention took. B5, B6, B8, B9."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.verify.judge.evidence import NEVER, client_of, named, ranges, starts_of
from sqlmq.verify.judge.findings import Finding
from sqlmq.verify.judge.rules.delivery import finished

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlmq.verify.judge.evidence import Delivery, Evidence, Operation, Place, Share


class Look(NamedTuple):
    """A position as somebody saw it, at some time from *start* to *end*."""

    start: int
    end: int
    position: int
    operation: Operation | None


def regressions(evidence: Evidence) -> Iterator[Finding]:
    """B5: a position was lower than at an earlier look, or than it was committed, though nobody moved the group."""
    for share, looks in _looks(evidence).items():
        if evidence.is_moved(share):
            continue
        highest: Look | None = None
        over: list[Look] = sorted(looks, key=lambda look: look.end)
        place = 0
        for look in sorted(looks, key=lambda look: look.start):
            # What was over when this one began is what this one must have seen.
            while place < len(over) and over[place].end < look.start:
                if highest is None or over[place].position > highest.position:
                    highest = over[place]
                place += 1
            if highest is not None and look.position < highest.position:
                text = f"{named(share)}: the position was {highest.position}, and {look.position} later."
                about = tuple(one.operation for one in (highest, look) if one.operation is not None)
                yield Finding("B5", "regression", text, about)


def out_of_range(evidence: Evidence) -> Iterator[Finding]:
    """B8: a position is beyond the end of its partition, or before its start and nothing is said of an eviction."""
    if evidence.final is None:
        return
    evicted = {(one.group, one.topic, one.partition) for one in evidence.final.evictions}
    for share, looks in _looks(evidence).items():
        start, end = evidence.final.ends.get(share[1:], (0, 0))
        for look in looks:
            about = () if look.operation is None else (look.operation,)
            if look.position > end:
                yield Finding("B8", "beyond", f"{named(share)}: the position is {look.position}, the end {end}.", about)
            elif look.operation is None and look.position < start and share not in evicted:
                yield Finding(
                    "B8", "before", f"{named(share)}: the position is {look.position}, the start {start}.", about
                )


def zombie_commits(evidence: Evidence) -> Iterator[Finding]:
    """B6, as fencing tokens prevent it (Jepsen's etcd 3.4.3): whoever lost a partition to somebody else changed its position.

    ``zombie-commit``: a commit of a partition was accepted from a client though another one had been given messages of it
    since this one was, before the commit began. ``epoch``: two owners have the same epoch.
    """
    given = {share: _Given(deliveries) for share, deliveries in evidence.deliveries.items()}
    for commit in evidence.of("commit"):
        if not commit.is_ok or commit.completion is None or commit.reading is None:
            continue
        for partition in commit.completion.positions:
            share = (*commit.reading, partition)
            successor = given[share].successor_of(commit) if share in given else None
            if successor is not None:
                text = f"{named(share)}: {commit.client} committed after {successor.client} had got messages of it."
                yield Finding("B6", "zombie-commit", text, (successor, commit))
    yield from _epochs(evidence)


class _Given:
    """Who was given messages of a share last; asked in order of time."""

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self._deliveries = deliveries
        self._count = 0
        self._last_at: dict[str, int] = {}
        self._last: dict[str, Operation] = {}

    def successor_of(self, commit: Operation) -> Operation | None:
        """Who asked for messages, and got them, after the client of *commit* got its last and before it began to commit."""
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
        # A note may be late, so a lower one says nothing; the same one can't be given to two.
        owner = client_of(note)
        known = owners.setdefault((*share, epoch), owner)
        if known != owner:
            yield Finding("B6", "epoch", f"{named(share)}: epoch {epoch} was given to {known}, and to {owner}.")


def retention_violations(evidence: Evidence) -> Iterator[Finding]:
    """B9: retention deleted messages that a group had not done, or has set aside.

    Where the topic protects what groups need, nobody loses anything, with a word about it or without; where it does not,
    each loss is told. Judged by the starts that retention itself told, when it did, and at the end.
    """
    if evidence.final is None:
        return
    shares = finished(evidence)
    checked: dict[Share, int] = {}
    for trim in sorted(_trims(evidence), key=lambda trim: trim.moment):
        for group, topic in evidence.groups:
            share = (group, topic, trim.place[1])
            if topic != trim.place[0] or evidence.is_lenient(share):
                continue
            begun = checked.get(share, evidence.start_of(share))
            checked[share] = max(trim.start, begun)
            if needed := shares[share].undone(begun, trim.start, trim.moment):
                text = f"{named(share)}: {ranges(needed)} was deleted before the group had done with it."
                yield Finding("B9", "unread", text, trim.about)
    for row in evidence.final.parked:
        if row.offset < evidence.start_in_log((row.topic, row.partition)):
            text = f"{named((row.group, row.topic, row.partition))}: {row.offset} is set aside, and deleted."
            yield Finding("B9", "parked", text)
    for one in evidence.final.evictions:
        if evidence.topic_says(one.topic, "protect") is not False:
            text = f"{named((one.group, one.topic, one.partition))}: {one.start} to before {one.end} was taken from the group."
            yield Finding("B9", "evicted", text)


class _Trim(NamedTuple):
    """A partition that begins at *start*, as was known at a *moment*."""

    moment: int
    place: Place
    start: int
    about: tuple[Operation, ...] = ()


def _trims(evidence: Evidence) -> Iterator[_Trim]:
    for operation in evidence.of("retain", "snapshot"):
        starts = starts_of(operation)
        for partition, start in starts.items() if operation.invoke.topic is not None else ():
            yield _Trim(operation.end, (operation.invoke.topic or "", partition), start, (operation,))
    if evidence.final is not None:
        for place, (start, _) in evidence.final.ends.items():
            yield _Trim(NEVER, place, start)


def _looks(evidence: Evidence) -> dict[Share, list[Look]]:
    looks: dict[Share, list[Look]] = defaultdict(list)
    for operation in evidence.of("positions", "commit"):
        if operation.is_ok and operation.completion is not None and operation.reading is not None:
            for partition, position in operation.completion.positions.items():
                # What a commit has committed it may have done at any time before it returned.
                look = Look(operation.start, operation.end, position, operation)
                looks[*operation.reading, partition].append(look)
    if evidence.final is not None:
        for share, position in evidence.final.positions.items():
            looks[share].append(Look(NEVER, NEVER, position, None))
    return looks
