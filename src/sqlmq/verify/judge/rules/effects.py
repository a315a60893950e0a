"""Do messages have their effects once? B7; and does what was set aside come to its end? B10."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

from sqlmq.verify.judge.evidence import named
from sqlmq.verify.judge.findings import Finding
from sqlmq.verify.judge.rules.delivery import finished

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.verify.judge.evidence import Delivery, Evidence, Operation, Share

Effect: TypeAlias = tuple[str | None, str]
"""A group, or none, and the id of the effect."""


def effects(evidence: Evidence) -> Iterator[Finding]:
    """B7, Kafka's exactly-once test as rows: each message has its effect once if the position is behind it, else not at all.

    ``duplicate-effect``: more than one row. ``lost-effect``: none, though a transaction with it was committed, or the
    position is behind its message and everybody who got it was to write it. ``aborted-effect``: a row though everybody who
    was to write it rolled back. ``early-effect``: a row though the position is not behind the message. ``torn``: a row
    without the messages of its transaction, or the other way round.
    """
    if evidence.final is None:
        return
    rows = evidence.final.effects
    tried = _tried(evidence)
    for effect, count in rows.items():
        about = tuple(tried.get(effect, ())[:4])
        if count > 1:
            yield Finding("B7", "duplicate-effect", f"{effect[1]} has its effect {count} times.", about)
        if count and all(operation.is_failed for operation in tried.get(effect, ())):
            yield Finding("B7", "aborted-effect", f"{effect[1]} has an effect that nobody committed.", about)
    lost: set[Effect] = set()
    for effect, operations in tried.items():
        if not rows.get(effect) and any(operation.is_ok for operation in operations):
            lost.add(effect)
            text = f"{effect[1]} has no effect, and its transaction was committed."
            yield Finding("B7", "lost-effect", text, tuple(operations[:4]))
    yield from _against_positions(evidence, tried, lost)
    yield from _torn(evidence)


def _tried(evidence: Evidence) -> dict[Effect, list[Operation]]:
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
    shares = finished(evidence)
    for share, deliveries in evidence.deliveries.items():
        if final is None or evidence.is_moved(share):
            continue
        position = final.positions.get(share, evidence.start_of(share))
        got: dict[tuple[int, str], list[Operation]] = defaultdict(list)
        for operation, message in deliveries:
            if message.m is not None:
                got[message.offset, message.m].append(operation)
        for (offset, m), operations in got.items():
            effect = (share[0], m)
            count = final.effects.get(effect, 0)
            if offset >= position and count:
                text = f"{named(share)}: {m} at {offset} has its effect, and the position is {position}."
                if not any(row.offset == offset for row in final.parked if row[:3] == share):
                    yield Finding("B7", "early-effect", text, tuple(operations[:4]))
            writers = tried.get(effect, ())
            is_everybodys = all(
                m in operation.invoke.effects and m not in operation.invoke.undone for operation in operations
            )
            if not count and writers and is_everybodys and offset < position and effect not in lost:
                if not shares[share].needs(offset):
                    continue
                text = f"{named(share)}: {m} at {offset} has no effect, and the position is {position}."
                yield Finding("B7", "lost-effect", text, tuple(operations[:4]))


def _torn(evidence: Evidence) -> Iterator[Finding]:
    """Effects and messages of one transaction, where nobody knows what became of it."""
    final = evidence.final
    for operation in evidence.transactions():
        undone = set(operation.invoke.undone)
        wanted = [effect for effect in operation.invoke.effects if effect not in undone]
        sent = [one.m for one in operation.invoke.messages if one.m not in undone]
        if final is None or not operation.is_unknown or not wanted or not sent:
            continue
        if not all(m in evidence.places or m in final.staged for m in sent):
            # Others of the group may have had the effect; without a group nobody can.
            is_lone = operation.invoke.group is None and any(final.effects.get((None, one)) for one in wanted)
            if is_lone and not any(evidence.has_retention(evidence.attempts[m].topic) for m in sent):
                yield Finding("B7", "torn", f"{wanted[0]} is there without {sent[0]} of its transaction.", (operation,))
        elif missing := [one for one in wanted if not final.effects.get((operation.invoke.group, one))]:
            yield Finding(
                "B7", "torn", f"{sent[0]} is there without the effect {missing[0]} of its transaction.", (operation,)
            )


def stranded(evidence: Evidence) -> Iterator[Finding]:
    """B10: what a group has set aside stays aside, or stands aside though it was done.

    ``stranded``: it waits for another attempt, and the group has been drained. ``double-terminal``: its last handler
    finished it, was not disturbed after that, and it is set aside. ``attempts``: its handler raised more often than it may;
    attempts of a member that lost the partition do not count.
    """
    final = evidence.final
    if final is None:
        return
    drained = {operation.reading for operation in evidence.of("drain") if operation.is_ok}
    deliveries = {share: _by_offset(given) for share, given in evidence.deliveries.items()}
    for row in final.parked:
        share = (row.group, row.topic, row.partition)
        came = deliveries.get(share, {}).get(row.offset, [])
        about = tuple(one.operation for one in came[-2:])
        if row.state in {"waiting", "held"} and share[:2] in drained:
            text = (
                f"{named(share)}: {row.offset} is {row.state} after {row.attempts} attempts, and the group was drained."
            )
            yield Finding("B10", "stranded", text, about)
        if share[:2] not in evidence.decided and _is_done(evidence, came):
            text = f"{named(share)}: {row.offset} is {row.state}, and its last handler finished it."
            yield Finding("B10", "double-terminal", text, about)
    yield from _too_many_attempts(evidence, deliveries)


def _is_done(evidence: Evidence, came: list[Delivery]) -> bool:
    if not came:
        return False
    last = max(came, key=lambda one: one.operation.start).operation
    if not last.is_ok or last.f != "handle" or last.completion is None:
        return False
    until = last.end + evidence.bound("takeover", 15.0)
    return not any(evidence.is_lost(one.operation, one.operation.start, until) for one in came)


def _too_many_attempts(evidence: Evidence, deliveries: dict[Share, dict[int, list[Delivery]]]) -> Iterator[Finding]:
    for share, by_offset in deliveries.items():
        most = evidence.said(share[:2], "max_attempts")
        if not isinstance(most, int) or share[:2] in evidence.decided:
            continue
        for offset, came in by_offset.items():
            failed = [one.operation for one in came if one.operation.f == "handle" and one.operation.is_failed]
            if len(failed) <= most:
                continue
            counted = [one for one in failed if not _is_lost(evidence, one)]
            if len(counted) > most:
                text = f"{named(share)}: the handler raised {len(counted)} times at {offset}, and may {most} times."
                yield Finding("B10", "attempts", text, tuple(counted[-2:]))


def _is_lost(evidence: Evidence, operation: Operation) -> bool:
    """Whether its member may have lost the partition while it handled the message, or before that was written down."""
    return evidence.is_lost(operation, operation.start, operation.end + evidence.bound("call", 10.0))


def _by_offset(deliveries: list[Delivery]) -> dict[int, list[Delivery]]:
    by_offset: dict[int, list[Delivery]] = defaultdict(list)
    for one in deliveries:
        by_offset[one.message.offset].append(one)
    return by_offset
