"""B1 to B4: every message is delivered to every group, in order, and redelivered only for a reason."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlmq.verify.judge.evidence import NEVER, described, ranges
from sqlmq.verify.judge.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.verify.judge.evidence import Evidence, GroupDelivery, GroupTopic, Share


@dataclass(slots=True)
class GroupProgress:
    """When a group first completed the messages of a partition, and which it need not complete."""

    done_at: dict[int, int] = field(default_factory=dict)
    excused: set[int] = field(default_factory=set)
    """Parked, decided about by an operator, dead letters, or evicted with a record."""
    moved_to: int = 0
    """The group was moved to this offset, so earlier messages were skipped on purpose."""

    def mark_done(self, offset: int, moment: int) -> None:
        """Record that *offset* was completed at *moment*, unless it was completed earlier."""
        if moment < self.done_at.get(offset, NEVER):
            self.done_at[offset] = moment

    def not_done(self, start: int, end: int, moment: int) -> set[int]:
        """Return the offsets from *start* to before *end* that should have been completed at *moment* and were not."""
        at = self.done_at
        return {
            offset for offset in range(start, end) if at.get(offset, NEVER + 1) > moment and self.must_be_done(offset)
        }

    def must_be_done(self, offset: int) -> bool:
        """Whether the position may pass *offset* only after its completion."""
        return offset >= self.moved_to and offset not in self.excused


def group_progress(evidence: Evidence) -> dict[Share, GroupProgress]:
    """Return what each group has completed in each partition, as its handlers recorded it."""
    shares: dict[Share, GroupProgress] = defaultdict(GroupProgress)
    for note in (*evidence.notes["done"], *evidence.notes["dead"]):
        if note.group is None or note.topic is None or note.partition is None:
            continue
        done = shares[note.group, note.topic, note.partition]
        if note.f == "dead":
            done.excused.update(note.offsets)
        for offset in note.offsets if note.f == "done" else ():
            done.mark_done(offset, note.t)
    for share, deliveries in evidence.deliveries.items():
        done = shares[share]
        for operation, message in deliveries:
            completion = operation.completion
            if operation.f == "handle" and completion is not None and completion.type == "ok":
                done.mark_done(message.offset, completion.t)
            elif operation.f == "txn" and not operation.is_failed:
                done.mark_done(message.offset, operation.start)
    _note_moves(evidence, shares)
    return shares


def _note_moves(evidence: Evidence, shares: dict[Share, GroupProgress]) -> None:
    for operation in evidence.of("seek"):
        if operation.group_topic is not None and not operation.is_failed:
            for partition, to in operation.invoke.positions.items():
                share = shares[*operation.group_topic, partition]
                share.moved_to = max(share.moved_to, to)
    for operation in evidence.of("decide"):
        if operation.group_topic is not None and operation.invoke.partition is not None and not operation.is_failed:
            shares[*operation.group_topic, operation.invoke.partition].excused.update(operation.invoke.offsets)
    if evidence.final is not None:
        for row in evidence.final.parked:
            shares[row.group, row.topic, row.partition].excused.add(row.offset)
        for eviction in evidence.final.evictions:
            share = shares[eviction.group, eviction.topic, eviction.partition]
            share.excused.update(range(eviction.start, eviction.end))


def skipped(evidence: Evidence) -> Iterator[Finding]:
    """B1, Jepsen's ``poll-skip``: the group's position passed a message that was not completed.

    Checks the final positions and each position that was read during the run: every message before it must have been
    completed when the read ended. Handlers record a completion before the next poll, so a killed process cannot have
    moved the position first. For groups that run a handler only the final positions prove something, because during the
    run their positions pass parked messages, and only the final state says which messages are parked.
    """
    shares = group_progress(evidence)
    seen_at = evidence.final.positions.items() if evidence.final is not None else ()
    looks = [(share, position, NEVER) for share, position in seen_at]
    for operation in evidence.of("positions"):
        if operation.is_ok and operation.completion is not None and operation.group_topic is not None:
            is_final_only = evidence.mode(operation.group_topic) == "run"
            for partition, position in () if is_final_only else operation.completion.positions.items():
                looks.append(((*operation.group_topic, partition), position, operation.end))
    by_share: dict[Share, list[tuple[int, int]]] = defaultdict(list)
    for share, position, moment in looks:
        if not evidence.has_unknown_completions(share):
            by_share[share].append((moment, position))
    for share, of_share in by_share.items():
        came = {one.message.offset for one in evidence.deliveries.get(share, ())}
        checked = evidence.group_start(share)
        for moment, position in sorted(of_share):
            passed = shares[share].not_done(checked, position, moment)
            checked = max(checked, position)
            if never := passed - came:
                text = f"{described(share)}: the position is {position}, but {ranges(never)} was never delivered."
                yield Finding("B1", "never-delivered", text)
            if not_done := passed & came:
                operations = [one.operation for one in evidence.deliveries[share] if one.message.offset in not_done]
                text = (
                    f"{described(share)}: the position is {position}, but {ranges(not_done)} was not completed by then."
                )
                yield Finding("B1", "not-done", text, tuple(operations[:2]))


def unseen(evidence: Evidence) -> Iterator[Finding]:
    """B2, Jepsen's ``unseen``: a message in the log was never delivered to a group that has read everything.

    Checked only after a successful drain. Messages before the group's start and parked messages are excused; messages
    before the position are B1 already.
    """
    if evidence.final is None:
        return
    shares = group_progress(evidence)
    for group_topic in evidence.groups:
        if not _is_drained(evidence, group_topic):
            continue
        for place in [one for one in evidence.log if one[0] == group_topic[1]]:
            share = (*group_topic, place[1])
            position = evidence.final.positions.get(share, evidence.group_start(share))
            if position in shares[share].excused:
                continue  # it stops there on purpose, at a message that is held or stopped
            lacking = {
                row.offset
                for row in evidence.log[place]
                if row.offset >= position and shares[share].must_be_done(row.offset)
            }
            came = lacking.intersection(one.message.offset for one in evidence.deliveries.get(share, ()))
            if lacking - came:
                text = (
                    f"{described(share)}: {ranges(lacking - came)} was never delivered to the group, which was drained."
                )
                yield Finding("B2", "unseen", text)
            if came:
                text = f"{described(share)}: {ranges(came)} was delivered to the group, which was drained, but the position is {position}."
                yield Finding("B2", "uncommitted", text)


def nonmonotonic_polls(evidence: Evidence) -> Iterator[Finding]:
    """B3, Jepsen's ``nonmonotonic-poll``: messages were first delivered in a different order than the log's.

    For groups that run a handler, checked for each key: there a failing message blocks only its key, and a message
    without a key blocks none. The order is wrong if the later message was certainly delivered before the call that
    delivered the earlier one began. It is excused by a poll with an unknown outcome that began before: it may have
    received the earlier message.
    """
    for share, deliveries in evidence.deliveries.items():
        if (
            evidence.is_moved(share)
            or share[:2] in evidence.decided
            or evidence.group_fact(share[:2], "ack") == "on_delivery"
        ):
            continue
        by_key = evidence.mode(share[:2]) == "run"
        lines: dict[str | None, list[GroupDelivery]] = defaultdict(list)
        for one in _first_of_each(deliveries):
            if not by_key or one.message.key is not None:
                lines[one.message.key if by_key else None].append(one)
        for line in lines.values():
            yield from _out_of_order(evidence, share, line)


def _first_of_each(deliveries: list[GroupDelivery]) -> list[GroupDelivery]:
    first: dict[int, GroupDelivery] = {}
    for one in deliveries:
        known = first.get(one.message.offset)
        if known is None or one.operation.start < known.operation.start:
            first[one.message.offset] = one
    return [first[offset] for offset in sorted(first)]


def _out_of_order(evidence: Evidence, share: Share, line: list[GroupDelivery]) -> Iterator[Finding]:
    """Yield the deliveries of *line*, in order of offset, that came after one with a higher offset."""
    soonest: GroupDelivery | None = None
    for one in reversed(line):
        if (
            soonest is not None
            and soonest.operation.delivered_at < one.operation.start
            and not _may_be_in_unknown_answer(evidence, share, soonest.operation.delivered_at)
        ):
            text = f"{described(share)}: {one.message.offset} was delivered after {soonest.message.offset}."
            yield Finding("B3", "nonmonotonic-poll", text, (soonest.operation, one.operation))
        elif soonest is None or one.operation.delivered_at < soonest.operation.delivered_at:
            soonest = one


def _may_be_in_unknown_answer(evidence: Evidence, share: Share, moment: int) -> bool:
    """Whether a poll with an unknown outcome may have received the message before *moment*."""
    group, topic, _ = share
    return any(operation.start < moment for operation in evidence.unanswered.get((group, topic), ()))


def redeliveries(evidence: Evidence) -> Iterator[Finding]:
    """B4: a message was redelivered although its previous receiver had no crash, pause, error, end or fencing.

    Each redelivery needs a loss of its own, of the delivery before it: that is the bound. ``spurious`` has no such loss;
    ``committed`` was redelivered although its position was committed before, which no loss explains.
    """
    committed = _commit_times(evidence)
    for share, deliveries in evidence.deliveries.items():
        if evidence.is_moved(share) or share[:2] in evidence.decided:
            continue
        latest: dict[int, GroupDelivery] = {}
        for one in deliveries:
            offset, operation = one.message.offset, one.operation
            before = latest.get(offset)
            latest[offset] = one
            if before is None:
                continue
            if committed.get((share, offset), NEVER) < operation.called_at and not operation.is_failed:
                text = f"{described(share)}: {offset} was redelivered after it was committed."
                if not evidence.may_redeliver_after(operation, operation.called_at, operation.delivered_at):
                    yield Finding("B4", "committed", text, (before.operation, operation))
            elif before.operation is not operation and not (
                evidence.may_redeliver_after(before.operation, before.operation.start, operation.delivered_at)
                or evidence.may_redeliver_after(operation, before.operation.start, operation.delivered_at)
            ):
                text = f"{described(share)}: {offset} was redelivered without a fault of its previous receiver."
                yield Finding("B4", "spurious", text, (before.operation, operation))


def _commit_times(evidence: Evidence) -> dict[tuple[Share, int], int]:
    """Return when messages were certainly committed: by transactions, and by commits that record their positions."""
    moments: dict[tuple[Share, int], int] = {}
    for share, deliveries in evidence.deliveries.items():
        for operation, message in deliveries:
            if operation.f == "txn" and operation.is_ok:
                moments[share, message.offset] = min(operation.end, moments.get((share, message.offset), NEVER))
    positions: dict[Share, list[tuple[int, int]]] = defaultdict(list)
    for operation in evidence.of("commit", "positions"):
        if operation.is_ok and operation.completion is not None and operation.group_topic is not None:
            # A group that runs a handler may have parked messages before its position. They are delivered again.
            may_have_parked = evidence.mode(operation.group_topic) == "run"
            for partition, position in () if may_have_parked else operation.completion.positions.items():
                positions[*operation.group_topic, partition].append((position, operation.end))
    for share, reads in positions.items():
        reads.sort(reverse=True)
        earliest, place = NEVER, 0
        for offset in sorted({one.message.offset for one in evidence.deliveries.get(share, ())}, reverse=True):
            while place < len(reads) and reads[place][0] > offset:
                earliest = min(earliest, reads[place][1])
                place += 1
            if earliest < moments.get((share, offset), NEVER):
                moments[share, offset] = earliest
    return moments


def _is_drained(evidence: Evidence, group_topic: GroupTopic) -> bool:
    return any(operation.group_topic == group_topic and operation.is_ok for operation in evidence.of("drain"))
