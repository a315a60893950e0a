"""Did every message come to every group, in order, and again only for a reason? B1 to B4."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlmq.verify.judge.evidence import NEVER, named, ranges
from sqlmq.verify.judge.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.verify.judge.evidence import Delivery, Evidence, Reading, Share


@dataclass(slots=True)
class Finished:
    """When the messages of a share were first done, and which need not be."""

    at: dict[int, int] = field(default_factory=dict)
    excused: set[int] = field(default_factory=set)
    """Set aside, decided about by somebody, dead, or evicted with a word about it."""
    moved_to: int = 0
    """Somebody has moved the group to here: what is before was skipped on purpose."""

    def done(self, offset: int, moment: int) -> None:
        """Note that *offset* was done at *moment*, if it was not before."""
        if moment < self.at.get(offset, NEVER):
            self.at[offset] = moment

    def undone(self, start: int, end: int, moment: int) -> set[int]:
        """What from *start* to before *end* was not done at *moment*, and should have been."""
        at = self.at
        return {offset for offset in range(start, end) if at.get(offset, NEVER + 1) > moment and self.needs(offset)}

    def needs(self, offset: int) -> bool:
        """Whether the position may pass *offset* only when it is done."""
        return offset >= self.moved_to and offset not in self.excused


def finished(evidence: Evidence) -> dict[Share, Finished]:
    """What each group has done of each partition, as far as its handlers have said so."""
    shares: dict[Share, Finished] = defaultdict(Finished)
    for note in (*evidence.notes["done"], *evidence.notes["dead"]):
        if note.group is None or note.topic is None or note.partition is None:
            continue
        done = shares[note.group, note.topic, note.partition]
        if note.f == "dead":
            done.excused.update(note.offsets)
        for offset in note.offsets if note.f == "done" else ():
            done.done(offset, note.t)
    for share, deliveries in evidence.deliveries.items():
        done = shares[share]
        for operation, message in deliveries:
            completion = operation.completion
            if operation.f == "handle" and completion is not None and completion.type == "ok":
                done.done(message.offset, completion.t)
            elif operation.f == "txn" and not operation.is_failed:
                done.done(message.offset, operation.start)
    _note_moves(evidence, shares)
    return shares


def _note_moves(evidence: Evidence, shares: dict[Share, Finished]) -> None:
    for operation in evidence.of("seek"):
        if operation.reading is not None and not operation.is_failed:
            for partition, to in operation.invoke.positions.items():
                share = shares[*operation.reading, partition]
                share.moved_to = max(share.moved_to, to)
    for operation in evidence.of("decide"):
        if operation.reading is not None and operation.invoke.partition is not None and not operation.is_failed:
            shares[*operation.reading, operation.invoke.partition].excused.update(operation.invoke.offsets)
    if evidence.final is not None:
        for row in evidence.final.parked:
            shares[row.group, row.topic, row.partition].excused.add(row.offset)
        for eviction in evidence.final.evictions:
            share = shares[eviction.group, eviction.topic, eviction.partition]
            share.excused.update(range(eviction.start, eviction.end))


def skipped(evidence: Evidence) -> Iterator[Finding]:
    """B1, Jepsen's ``poll-skip``: the group's position passed a message that was not done.

    At the end by the positions that are stored, and before by every time somebody looked at them: what is before a
    position must have been done when the look was over. Done is a message when its handler said so, and written down
    before the consumer is asked again, so a process that is killed can't have moved the position first. Of groups that
    are run only the end says something: before, the position passes what is set aside, and only that says what is.
    """
    shares = finished(evidence)
    seen_at = evidence.final.positions.items() if evidence.final is not None else ()
    looks = [(share, position, NEVER) for share, position in seen_at]
    for operation in evidence.of("positions"):
        if operation.is_ok and operation.completion is not None and operation.reading is not None:
            is_final_only = evidence.mode(operation.reading) == "run"
            for partition, position in () if is_final_only else operation.completion.positions.items():
                looks.append(((*operation.reading, partition), position, operation.end))
    by_share: dict[Share, list[tuple[int, int]]] = defaultdict(list)
    for share, position, moment in looks:
        if not evidence.is_lenient(share):
            by_share[share].append((moment, position))
    for share, of_share in by_share.items():
        came = {one.message.offset for one in evidence.deliveries.get(share, ())}
        checked = evidence.start_of(share)
        for moment, position in sorted(of_share):
            passed = shares[share].undone(checked, position, moment)
            checked = max(checked, position)
            if never := passed - came:
                text = f"{named(share)}: the position is {position}, and {ranges(never)} never came to the group."
                yield Finding("B1", "never-delivered", text)
            if not_done := passed & came:
                operations = [one.operation for one in evidence.deliveries[share] if one.message.offset in not_done]
                text = f"{named(share)}: the position is {position}, and {ranges(not_done)} was not done by then."
                yield Finding("B1", "not-done", text, tuple(operations[:2]))


def unseen(evidence: Evidence) -> Iterator[Finding]:
    """B2, Jepsen's ``unseen``: a message in the log never came to a group that has read all there is.

    Only after a drain that succeeded; what the group had no right to (before its start), or has set aside, is no
    matter. What is before the position is ``skipped`` already.
    """
    if evidence.final is None:
        return
    shares = finished(evidence)
    for reading in evidence.groups:
        if not _is_drained(evidence, reading):
            continue
        for place in [one for one in evidence.log if one[0] == reading[1]]:
            share = (*reading, place[1])
            position = evidence.final.positions.get(share, evidence.start_of(share))
            if position in shares[share].excused:
                continue  # it stands still on purpose, at a message that is held or stopped
            lacking = {
                row.offset for row in evidence.log[place] if row.offset >= position and shares[share].needs(row.offset)
            }
            came = lacking.intersection(one.message.offset for one in evidence.deliveries.get(share, ()))
            if lacking - came:
                text = f"{named(share)}: {ranges(lacking - came)} never came to the group, which was drained."
                yield Finding("B2", "unseen", text)
            if came:
                text = f"{named(share)}: {ranges(came)} came to the group, which was drained, and the position is {position}."
                yield Finding("B2", "uncommitted", text)


def nonmonotonic_polls(evidence: Evidence) -> Iterator[Finding]:
    """B3, Jepsen's ``nonmonotonic-poll``: messages came for the first time in another order than the log's.

    For groups that are run, of each key: there a failing message holds back its key alone, and a message without one
    nobody. A message counts as later when it had certainly come before anybody who got the earlier one had begun to
    ask. It is no anomaly if somebody had asked before that whose answer nobody knows: he may have got the earlier one.
    """
    for share, deliveries in evidence.deliveries.items():
        if (
            evidence.is_moved(share)
            or share[:2] in evidence.decided
            or evidence.said(share[:2], "ack") == "on_delivery"
        ):
            continue
        by_key = evidence.mode(share[:2]) == "run"
        lines: dict[str | None, list[Delivery]] = defaultdict(list)
        for one in _first_of_each(deliveries):
            if not by_key or one.message.key is not None:
                lines[one.message.key if by_key else None].append(one)
        for line in lines.values():
            yield from _out_of_order(evidence, share, line)


def _first_of_each(deliveries: list[Delivery]) -> list[Delivery]:
    first: dict[int, Delivery] = {}
    for one in deliveries:
        known = first.get(one.message.offset)
        if known is None or one.operation.start < known.operation.start:
            first[one.message.offset] = one
    return [first[offset] for offset in sorted(first)]


def _out_of_order(evidence: Evidence, share: Share, line: list[Delivery]) -> Iterator[Finding]:
    """Of *line*, in order of offset: what came after something behind it had come."""
    soonest: Delivery | None = None
    for one in reversed(line):
        if (
            soonest is not None
            and soonest.operation.delivered_at < one.operation.start
            and not _may_have_come_before(evidence, share, soonest.operation.delivered_at)
        ):
            text = f"{named(share)}: {one.message.offset} came after {soonest.message.offset}."
            yield Finding("B3", "nonmonotonic-poll", text, (soonest.operation, one.operation))
        elif soonest is None or one.operation.delivered_at < soonest.operation.delivered_at:
            soonest = one


def _may_have_come_before(evidence: Evidence, share: Share, moment: int) -> bool:
    """Whether somebody's answer that nobody knows may have had the message in it."""
    group, topic, _ = share
    return any(operation.start < moment for operation in evidence.unanswered.get((group, topic), ()))


def redeliveries(evidence: Evidence) -> Iterator[Finding]:
    """B4: a message came again, and whoever had it before was not disturbed: no crash, pause, error, end or fencing.

    So each delivery but the first needs a loss of its own, of the one before it: that is the bound. ``spurious`` has
    none; ``committed`` came again though its position was committed before, which no loss explains.
    """
    committed = _committed_early(evidence)
    for share, deliveries in evidence.deliveries.items():
        if evidence.is_moved(share) or share[:2] in evidence.decided:
            continue
        latest: dict[int, Delivery] = {}
        for one in deliveries:
            offset, operation = one.message.offset, one.operation
            before = latest.get(offset)
            latest[offset] = one
            if before is None:
                continue
            if committed.get((share, offset), NEVER) < operation.began and not operation.is_failed:
                text = f"{named(share)}: {offset} came again after it was committed."
                if not evidence.is_disturbed(operation, operation.began, operation.delivered_at):
                    yield Finding("B4", "committed", text, (before.operation, operation))
            elif before.operation is not operation and not (
                evidence.is_disturbed(before.operation, before.operation.start, operation.delivered_at)
                or evidence.is_disturbed(operation, before.operation.start, operation.delivered_at)
            ):
                text = f"{named(share)}: {offset} came again, and nothing had happened to who had it."
                yield Finding("B4", "spurious", text, (before.operation, operation))


def _committed_early(evidence: Evidence) -> dict[tuple[Share, int], int]:
    """When messages were certainly committed: by transactions, and by commits that say what they committed."""
    moments: dict[tuple[Share, int], int] = {}
    for share, deliveries in evidence.deliveries.items():
        for operation, message in deliveries:
            if operation.f == "txn" and operation.is_ok:
                moments[share, message.offset] = min(operation.end, moments.get((share, message.offset), NEVER))
    positions: dict[Share, list[tuple[int, int]]] = defaultdict(list)
    for operation in evidence.of("commit", "positions"):
        if operation.is_ok and operation.completion is not None and operation.reading is not None:
            # What is before the position of a group that is run may be set aside, and come again.
            is_set_aside = evidence.mode(operation.reading) == "run"
            for partition, position in () if is_set_aside else operation.completion.positions.items():
                positions[*operation.reading, partition].append((position, operation.end))
    for share, said in positions.items():
        said.sort(reverse=True)
        earliest, place = NEVER, 0
        for offset in sorted({one.message.offset for one in evidence.deliveries.get(share, ())}, reverse=True):
            while place < len(said) and said[place][0] > offset:
                earliest = min(earliest, said[place][1])
                place += 1
            if earliest < moments.get((share, offset), NEVER):
                moments[share, offset] = earliest
    return moments


def _is_drained(evidence: Evidence, reading: Reading) -> bool:
    return any(operation.reading == reading and operation.is_ok for operation in evidence.of("drain"))
