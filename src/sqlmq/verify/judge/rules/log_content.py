"""A1 to A6, A8, A9, B11: the log contains what was sent, once and complete."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from sqlmq.verify.judge.evidence import ends_of, ranges
from sqlmq.verify.judge.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlmq.verify.history import FinalMessage
    from sqlmq.verify.judge.evidence import Evidence, Operation, SendAttempt, TopicPartition


_SpanningTransaction: TypeAlias = "tuple[Operation, list[tuple[int, int]]]"
"""A transaction, and the partitions and offsets of its messages in one topic."""


def lost_writes(evidence: Evidence) -> Iterator[Finding]:
    """A1, Jepsen's ``lost-write``: a message that was acknowledged or delivered is not in the final log.

    A message of an operation with unknown outcome counts if a message of the same transaction was seen, because then it
    was committed (Jepsen's ``must-have-committed?``). A message that retention may have deleted is not lost. The kind
    says which part of the sender's acknowledged messages was lost: ``lost-prefix``, ``lost-middle`` or ``lost-suffix``
    (as Jepsen's NATS checker).
    """
    if evidence.final is None:
        return
    seen = _delivered_ids(evidence)
    cancelled = _cancelled(evidence)
    acknowledged: dict[str, list[str]] = defaultdict(list)
    lost: dict[str, set[str]] = defaultdict(set)
    known = _known_places(evidence)
    for operation in evidence.transactions():
        if operation.is_failed or not _was_committed(evidence, operation, seen):
            continue
        for sent in operation.invoke.messages:
            attempt = evidence.attempts[sent.m]
            if attempt.operation is not operation or attempt.is_undone or sent.m in cancelled:
                continue
            acknowledged[operation.client].append(sent.m)
            if sent.m in evidence.log_rows or sent.m in evidence.final.staged:
                continue
            if not _is_trimmed(evidence, attempt, known):
                lost[operation.client].add(sent.m)
    for client, missing in lost.items():
        yield from _classified(evidence, acknowledged[client], missing)


def _classified(evidence: Evidence, acknowledged: Sequence[str], missing: set[str]) -> Iterator[Finding]:
    kept = [number for number, m in enumerate(acknowledged) if m not in missing]
    first, last = (kept[0], kept[-1]) if kept else (len(acknowledged), -1)
    for number, m in enumerate(acknowledged):
        if m not in missing:
            continue
        kind = "lost-suffix" if number > last else "lost-prefix" if number < first else "lost-middle"
        operation = evidence.attempts[m].operation
        how = "was acknowledged" if operation.is_ok else "was committed, because a part of its transaction was seen,"
        yield Finding("A1", kind, f"{m} {how} but is not in the log.", (operation,))


def aborted_reads(evidence: Evidence) -> Iterator[Finding]:
    """A2, Adya's G1a (Jepsen's ``g1a-cases``): a message of a failed transaction is in the log, or was delivered.

    The same holds for a message in a savepoint that was rolled back, whatever the outcome of its transaction.
    """
    for m, operations in _sightings(evidence).items():
        attempt = evidence.attempts.get(m)
        if attempt is None:
            continue
        if attempt.operation.is_failed:
            yield Finding("A2", "aborted", f"{m} was rolled back but is in the log.", (attempt.operation, *operations))
        elif attempt.is_undone:
            text = f"{m} was rolled back with its savepoint but is in the log."
            yield Finding("A2", "savepoint", text, (attempt.operation, *operations))


def unexpected(evidence: Evidence) -> Iterator[Finding]:
    """A3, Jepsen's ``unexpected``: a message that no client sent, or that is not as it was sent.

    ``unknown``: no client tried to send this id. ``corrupt``: the value or the key is different. ``misplaced``: it is in
    another topic, not in the partition that its sender chose, or not in the partition of its key. ``cancelled``: its
    cancellation was confirmed.
    """
    seen: set[tuple[str | None, str, str | None, str, int]] = set()
    of_key: dict[tuple[str, str], tuple[int, str]] = {}
    cancelled = _cancelled(evidence)
    for operation, topic, partition, offset, m, h, key in _contents(evidence):
        facts = (m, h, key, topic, partition)
        if facts in seen:
            continue
        seen.add(facts)
        where, whose = f"{topic}/{partition}@{offset}", () if operation is None else (operation,)
        attempt = None if m is None else evidence.attempts.get(m)
        if m is None or attempt is None:
            what = "has no readable id" if m is None else f"is {m}, which no client tried to send"
            yield Finding("A3", "unknown", f"The message at {where} {what}.", whose)
            continue
        about = (attempt.operation, *whose)
        if (h, key) != (attempt.sent.h, attempt.sent.key):
            what = "value" if h != attempt.sent.h else "key"
            yield Finding("A3", "corrupt", f"{m} at {where} has a different {what} than it was sent with.", about)
        if topic != attempt.topic or partition != (
            partition if attempt.sent.partition is None else attempt.sent.partition
        ):
            yield Finding("A3", "misplaced", f"{m} is at {where}, but was not sent there.", about)
        elif key is not None and attempt.sent.partition is None:
            home, other = of_key.setdefault((topic, key), (partition, m))
            if home != partition:
                yield Finding(
                    "A3",
                    "misplaced",
                    f"{m} at {where} has the same key as {other}, which is in partition {home}.",
                    about,
                )
        if m in cancelled:
            yield Finding("A3", "cancelled", f"{m} was cancelled but is at {where}.", about)


def duplicates(evidence: Evidence) -> Iterator[Finding]:
    """A4, Jepsen's ``duplicate``: one message has several offsets, in the log or in deliveries.

    The workload sends every id once, so only the library can have duplicated it.
    """
    places: dict[str, set[tuple[str, int, int]]] = defaultdict(set)
    for _, topic, partition, offset, m, _, _ in _contents(evidence):
        if m is not None:
            places[m].add((topic, partition, offset))
    for m, where in places.items():
        if len(where) > 1:
            offsets = ", ".join(f"{topic}/{partition}@{offset}" for topic, partition, offset in sorted(where))
            attempt = evidence.attempts.get(m)
            yield Finding("A4", "duplicate", f"{m} is at {offsets}.", () if attempt is None else (attempt.operation,))
    for attempt in evidence.reused_ids:
        text = f"{attempt.sent.m} was sent twice by the workload itself, so it proves nothing."
        yield Finding("A3", "reused", text, (attempt.operation,))


def inconsistent_offsets(evidence: Evidence) -> Iterator[Finding]:
    """A5, Jepsen's ``inconsistent-offsets``: an offset has different messages in different answers.

    Compares acknowledgements, deliveries and the final log.
    """
    seen: dict[tuple[str, int, int], str | None] = {}
    reported: set[tuple[str, int, int]] = set()
    for operation, place, m in _claims(evidence):
        known = seen.setdefault(place, m)
        if known != m and place not in reported:
            reported.add(place)
            topic, partition, offset = place
            text = f"{topic}/{partition}@{offset} is {known} in one answer and {m} in another."
            yield Finding("A5", "inconsistent", text, () if operation is None else (operation,))


def offset_gaps(evidence: Evidence) -> Iterator[Finding]:
    """A6: an offset inside a partition's log has no message or several, or one outside of it has a message.

    Kafka does not promise this. Offsets from a database sequence would fail here.
    """
    if evidence.final is None:
        return
    for place in sorted({*evidence.final.ends, *evidence.log}):
        topic, partition = place
        offsets = [row.offset for row in evidence.log.get(place, ())]
        if place not in evidence.final.ends:
            yield Finding("A6", "no-partition", f"{topic}/{partition} has messages but does not exist.")
            continue
        start, end = evidence.final.ends[place]
        if missing := set(range(start, end)).difference(offsets):
            text = f"{topic}/{partition} has no message at {ranges(missing)}, from {start} to before {end}."
            yield Finding("A6", "gap", text)
        if outside := {offset for offset in offsets if not start <= offset < end}:
            text = f"{topic}/{partition} has messages at {ranges(outside)}, outside of {start} to before {end}."
            yield Finding("A6", "outside", text)
        if len(set(offsets)) < len(offsets):
            twice = {one for one, other in pairwise(offsets) if one == other}
            yield Finding("A6", "twice", f"{topic}/{partition} has several messages at {ranges(twice)}.")


def send_skips(evidence: Evidence) -> Iterator[Finding]:
    """A8, Jepsen's ``int-send-skip``: the messages of one transaction are not consecutive or not in order in a partition.

    Kafka allows other messages in between. Delayed and staged messages are appended one by one, so they are exempt.
    """
    for operation in evidence.transactions():
        if operation.is_failed:
            continue
        by_place: dict[TopicPartition, list[int]] = defaultdict(list)
        for row in rows_of(evidence, operation):
            by_place[row.topic, row.partition].append(row.offset)
        for (topic, partition), offsets in by_place.items():
            if offsets != list(range(offsets[0], offsets[0] + len(offsets))):
                text = f"A transaction's messages are in {topic}/{partition} at {', '.join(map(str, offsets))}."
                yield Finding("A8", "send-skip", text, (operation,))


def torn_transactions(evidence: Evidence) -> Iterator[Finding]:
    """A9: some messages of a transaction are in the log and some are not, or a snapshot included only some of them.

    Missing messages of acknowledged transactions are A1 already, so this rule checks those with an unknown outcome. A
    snapshot is the ends of all partitions, read by one statement.
    """
    if evidence.final is None:
        return
    known = _known_places(evidence)
    for operation in evidence.transactions():
        if not operation.is_unknown:
            continue
        expected = [
            evidence.attempts[sent.m]
            for sent in operation.invoke.messages
            if not evidence.attempts[sent.m].is_undone and not evidence.attempts[sent.m].is_appended_later
        ]
        here = [one for one in expected if one.sent.m in evidence.log_rows]
        gone = [one for one in expected if one.sent.m not in evidence.log_rows]
        gone = [one for one in gone if not _is_trimmed(evidence, one, known)]
        if here and gone:
            text = f"{here[0].sent.m} is in the log, but {gone[0].sent.m} of the same transaction is not."
            yield Finding("A9", "torn", text, (operation,))
    yield from _torn_snapshots(evidence)


def _torn_snapshots(evidence: Evidence) -> Iterator[Finding]:
    snapshots: dict[str, list[Operation]] = defaultdict(list)
    for snapshot in evidence.of("snapshot"):
        if snapshot.is_ok and snapshot.invoke.topic is not None:
            snapshots[snapshot.invoke.topic].append(snapshot)
    spanning: dict[str, list[_SpanningTransaction]] = defaultdict(list)
    for operation in evidence.transactions() if snapshots else ():
        offsets: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row in rows_of(evidence, operation):
            offsets[row.topic].append((row.partition, row.offset))
        for topic, places in offsets.items():
            if len(places) > 1 and topic in snapshots:
                spanning[topic].append((operation, places))
    for topic, of_topic in snapshots.items():
        yield from _torn_of_topic(of_topic, spanning[topic])


def _torn_of_topic(snapshots: list[Operation], spanning: list[_SpanningTransaction]) -> Iterator[Finding]:
    begun = 0
    current: list[_SpanningTransaction] = []
    for snapshot in snapshots:
        # Only a transaction that overlaps the snapshot can be seen in part. One that was seen whole stays whole.
        while begun < len(spanning) and spanning[begun][0].start <= snapshot.end:
            current.append(spanning[begun])
            begun += 1
        ends = ends_of(snapshot)
        going_on: list[_SpanningTransaction] = []
        for operation, places in current:
            if operation.end < snapshot.start:
                continue
            shown = {offset < ends[partition] for partition, offset in places if partition in ends}
            if shown != {True}:
                going_on.append((operation, places))
            if len(shown) > 1:
                text = "A snapshot of all ends included some messages of a transaction without the others."
                yield Finding("A9", "torn-snapshot", text, (operation, snapshot))
        current = going_on


def early_deliveries(evidence: Evidence) -> Iterator[Finding]:
    """B11: a delayed message was appended before it was due, by the database's clock."""
    reported: set[str] = set()
    rows = [(row.m, row.at) for rows in evidence.log_rows.values() for row in rows]
    delivered = [(one.message.m, one.message.at) for deliveries in evidence.deliveries.values() for one in deliveries]
    for m, at in (*rows, *delivered):
        attempt = None if m is None else evidence.attempts.get(m)
        due = None if attempt is None else attempt.sent.due
        if m is None or attempt is None or due is None or at is None or at >= due or m in reported:
            continue
        reported.add(m)
        text = f"{m} was appended {(due - at) / 1e6:.6f} seconds before it was due."
        yield Finding("B11", "early", text, (attempt.operation,))


def rows_of(evidence: Evidence, operation: Operation) -> Iterator[FinalMessage]:
    """Yield the log rows of the messages that a transaction appended with its commit, in the order of sending."""
    for sent in operation.invoke.messages:
        attempt = evidence.attempts[sent.m]
        if attempt.operation is operation and not attempt.is_appended_later and (rows := evidence.log_rows.get(sent.m)):
            yield rows[0]


def _was_committed(evidence: Evidence, operation: Operation, seen: set[str]) -> bool:
    if operation.is_ok:
        return True
    return any(sent.m in seen or sent.m in evidence.log_rows for sent in operation.invoke.messages)


def _is_trimmed(evidence: Evidence, attempt: SendAttempt, known: dict[str, tuple[str, int, int]]) -> bool:
    """Whether retention may have deleted the message: its offset is below the log's start, or is unknown."""
    if not evidence.has_retention(attempt.topic):
        return False
    place = known.get(attempt.sent.m)
    if place is None:
        # Retention keeps what groups need, so a deleted message was delivered, unless no group protects it.
        readers = [group_topic for group_topic in evidence.groups if group_topic[1] == attempt.topic]
        evicted = any(one.topic == attempt.topic for one in (evidence.final.evictions if evidence.final else ()))
        return (
            evicted
            or not readers
            or any(evidence.group_fact(group_topic, "ack") == "on_delivery" for group_topic in readers)
        )
    topic, partition, offset = place
    return offset < evidence.log_start((topic, partition))


def _known_places(evidence: Evidence) -> dict[str, tuple[str, int, int]]:
    """Return the offsets of messages that senders and readers have received."""
    known: dict[str, tuple[str, int, int]] = {}
    for _, place, m in _claims(evidence):
        if m is not None:
            known.setdefault(m, place)
    return known


def _delivered_ids(evidence: Evidence) -> set[str]:
    return {
        one.message.m for deliveries in evidence.deliveries.values() for one in deliveries if one.message.m is not None
    }


def _sightings(evidence: Evidence) -> dict[str, tuple[Operation, ...]]:
    """Return the messages in the log and in deliveries, each with one operation that received it."""
    sightings: dict[str, tuple[Operation, ...]] = dict.fromkeys(evidence.log_rows, ())
    for deliveries in evidence.deliveries.values():
        for one in deliveries:
            if one.message.m is not None and not sightings.get(one.message.m):
                sightings[one.message.m] = (one.operation,)
    return sightings


def _cancelled(evidence: Evidence) -> set[str]:
    return {
        str(operation.invoke.more.get("message"))
        for operation in evidence.of("cancel")
        if operation.is_ok and operation.completion is not None and operation.completion.more.get("cancelled") is True
    }


def _claims(evidence: Evidence) -> Iterator[tuple[Operation | None, tuple[str, int, int], str | None]]:
    """Yield every claim that a message has an offset: acknowledgements, deliveries and the log."""
    for operation in evidence.transactions():
        if operation.completion is not None and operation.completion.type == "ok":
            for placed in operation.completion.placed:
                if placed.partition is not None and placed.offset is not None and placed.m in evidence.attempts:
                    topic = evidence.attempts[placed.m].topic
                    yield operation, (topic, placed.partition, placed.offset), placed.m
    for reader, topic, partition, offset, m, _, _ in _contents(evidence):
        yield reader, (topic, partition, offset), m


def _contents(
    evidence: Evidence,
) -> Iterator[tuple[Operation | None, str, int, int, str | None, str, str | None]]:
    """Yield every message in the log and in deliveries: operation, topic, partition, offset, id, hash, key."""
    for rows in evidence.log.values():
        for row in rows:
            yield None, row.topic, row.partition, row.offset, row.m, row.h, row.key
    for (_, topic, _), deliveries in evidence.deliveries.items():
        for operation, message in deliveries:
            yield operation, topic, message.partition, message.offset, message.m, message.h, message.key
