"""B7 and B10: each message has its effect exactly once, and every parked message is dealt with."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

from sqlmq.verify.judge.evidence import described
from sqlmq.verify.judge.findings import Finding
from sqlmq.verify.judge.rules.delivery import group_progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.verify.judge.evidence import Evidence, GroupDelivery, Operation, Share

Effect: TypeAlias = tuple[str | None, str]
"""A group or None, and the id of the effect."""


def effects(evidence: Evidence) -> Iterator[Finding]:
    """B7, Kafka's exactly-once test as rows: a message has its effect once if the position has passed it, else never.

    ``duplicate-effect``: more than one row. ``lost-effect``: no row, although a transaction with it was committed, or the
    position has passed its message and each receiver was to write it. ``aborted-effect``: a row although each transaction
    that was to write it was rolled back. ``early-effect``: a row although the position has not passed the message.
    ``torn``: a row without the messages of its transaction, or messages without the row.
    """
    if evidence.final is None:
        return
    rows = evidence.final.effects
    tried = _writers(evidence)
    for effect, count in rows.items():
        about = tuple(tried.get(effect, ())[:4])
        if count > 1:
            yield Finding("B7", "duplicate-effect", f"{effect[1]} has its effect {count} times.", about)
        if count and all(operation.is_failed for operation in tried.get(effect, ())):
            yield Finding(
                "B7", "aborted-effect", f"{effect[1]} has an effect although its transactions were rolled back.", about
            )
    lost: set[Effect] = set()
    for effect, operations in tried.items():
        if not rows.get(effect) and any(operation.is_ok for operation in operations):
            lost.add(effect)
            text = f"{effect[1]} has no effect although its transaction was committed."
            yield Finding("B7", "lost-effect", text, tuple(operations[:4]))
    yield from _against_positions(evidence, tried, lost)
    yield from _torn(evidence)


def _writers(evidence: Evidence) -> dict[Effect, list[Operation]]:
    tried: dict[Effect, list[Operation]] = defaultdict(list)
    for operation in evidence.operations:
        undone = set(operation.invoke.undone)
        for effect in operation.invoke.effects:
            if effect not in undone:
                tried[operation.invoke.group, effect].append(operation)
    return tried


def _against_positions(
    evidence: Evidence, tried: dict[Effect, list[Operation]], lost: set[Effect]
) -> Iterator[Finding]:
    final = evidence.final
    shares = group_progress(evidence)
    for share, deliveries in evidence.deliveries.items():
        if final is None or evidence.is_moved(share):
            continue
        position = final.positions.get(share, evidence.group_start(share))
        got: dict[tuple[int, str], list[Operation]] = defaultdict(list)
        for operation, message in deliveries:
            if message.m is not None:
                got[message.offset, message.m].append(operation)
        for (offset, m), operations in got.items():
            effect = (share[0], m)
            count = final.effects.get(effect, 0)
            if offset >= position and count:
                text = f"{described(share)}: {m} at {offset} has its effect, but the position is {position}."
                if not any(row.offset == offset for row in final.parked if row[:3] == share):
                    yield Finding("B7", "early-effect", text, tuple(operations[:4]))
            writers = tried.get(effect, ())
            is_in_all = all(
                m in operation.invoke.effects and m not in operation.invoke.undone for operation in operations
            )
            if not count and writers and is_in_all and offset < position and effect not in lost:
                if not shares[share].must_be_done(offset):
                    continue
                text = f"{described(share)}: {m} at {offset} has no effect, but the position is {position}."
                yield Finding("B7", "lost-effect", text, tuple(operations[:4]))


def _torn(evidence: Evidence) -> Iterator[Finding]:
    """Compare the effects and messages of each transaction with an unknown outcome."""
    final = evidence.final
    for operation in evidence.transactions():
        undone = set(operation.invoke.undone)
        wanted = [effect for effect in operation.invoke.effects if effect not in undone]
        sent = [one.m for one in operation.invoke.messages if one.m not in undone]
        if final is None or not operation.is_unknown or not wanted or not sent:
            continue
        if not all(m in evidence.log_rows or m in final.staged for m in sent):
            # With a group, another member may have written the effect.
            is_unshared = operation.invoke.group is None and any(final.effects.get((None, one)) for one in wanted)
            if is_unshared and not any(evidence.has_retention(evidence.attempts[m].topic) for m in sent):
                yield Finding(
                    "B7",
                    "torn",
                    f"{wanted[0]} is in the database without {sent[0]} of the same transaction.",
                    (operation,),
                )
        elif missing := [one for one in wanted if not final.effects.get((operation.invoke.group, one))]:
            yield Finding(
                "B7",
                "torn",
                f"{sent[0]} is in the log without the effect {missing[0]} of the same transaction.",
                (operation,),
            )


def stranded(evidence: Evidence) -> Iterator[Finding]:
    """B10: a parked message is never retried, or a message is parked although it was handled.

    ``stranded``: it waits for another attempt although the group was drained. ``double-terminal``: its last handler call
    succeeded without a fault afterwards, but it is parked. ``attempts``: its handler failed more often than allowed;
    attempts of a member that lost the partition do not count.
    """
    final = evidence.final
    if final is None:
        return
    drained = {operation.group_topic for operation in evidence.of("drain") if operation.is_ok}
    deliveries = {share: _by_offset(given) for share, given in evidence.deliveries.items()}
    for row in final.parked:
        share = (row.group, row.topic, row.partition)
        came = deliveries.get(share, {}).get(row.offset, [])
        about = tuple(one.operation for one in came[-2:])
        if row.state in {"waiting", "held"} and share[:2] in drained:
            text = f"{described(share)}: {row.offset} is {row.state} after {row.attempts} attempts, although the group was drained."
            yield Finding("B10", "stranded", text, about)
        if share[:2] not in evidence.decided and _is_handled(evidence, came):
            text = f"{described(share)}: {row.offset} is {row.state}, although its last handler call succeeded."
            yield Finding("B10", "double-terminal", text, about)
    yield from _too_many_attempts(evidence, deliveries)


def _is_handled(evidence: Evidence, came: list[GroupDelivery]) -> bool:
    if not came:
        return False
    last = max(came, key=lambda one: one.operation.start).operation
    if not last.is_ok or last.f != "handle" or last.completion is None:
        return False
    until = last.end + evidence.bound("takeover", 15.0)
    return not any(evidence.may_have_lost_partitions(one.operation, one.operation.start, until) for one in came)


def _too_many_attempts(
    evidence: Evidence, deliveries: dict[Share, dict[int, list[GroupDelivery]]]
) -> Iterator[Finding]:
    for share, by_offset in deliveries.items():
        most = evidence.group_fact(share[:2], "max_attempts")
        if not isinstance(most, int) or share[:2] in evidence.decided:
            continue
        for offset, came in by_offset.items():
            failed = [one.operation for one in came if one.operation.f == "handle" and one.operation.is_failed]
            if len(failed) <= most:
                continue
            counted = [one for one in failed if not _is_lost(evidence, one)]
            if len(counted) > most:
                text = f"{described(share)}: the handler failed {len(counted)} times at {offset}, but at most {most} attempts are allowed."
                yield Finding("B10", "attempts", text, tuple(counted[-2:]))


def _is_lost(evidence: Evidence, operation: Operation) -> bool:
    """Whether the member may have lost the partition during the handler call, or before its outcome was stored."""
    return evidence.may_have_lost_partitions(operation, operation.start, operation.end + evidence.bound("call", 10.0))


def _by_offset(deliveries: list[GroupDelivery]) -> dict[int, list[GroupDelivery]]:
    by_offset: dict[int, list[GroupDelivery]] = defaultdict(list)
    for one in deliveries:
        by_offset[one.message.offset].append(one)
    return by_offset
