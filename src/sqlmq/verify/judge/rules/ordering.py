"""A7, A10, A11, A12: the order of the log agrees with real time."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING

from sqlmq.verify.judge.evidence import NEVER, ends_of
from sqlmq.verify.judge.findings import Finding
from sqlmq.verify.judge.rules.cycles import prune_sources, strongly_connected
from sqlmq.verify.judge.rules.log_content import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.verify.judge.evidence import Evidence, Operation, SendAttempt, Share, TopicPartition


def nonmonotonic_sends(evidence: Evidence) -> Iterator[Finding]:
    """A7, Jepsen's ``nonmonotonic-send``: a send that ended before another one began has the higher offset.

    Checked across all senders, by real time. The order of a single sender is a special case.
    """
    for (topic, partition), rows in evidence.log.items():
        earliest_end, earliest = NEVER, None
        for row in reversed(rows):
            attempt = _committing_attempt(evidence, row.m)
            if attempt is None:
                continue
            operation = attempt.operation
            if earliest is not None and earliest_end < operation.start:
                text = f"In {topic}/{partition}, {row.m} at {row.offset} was sent after a message with a higher offset was acknowledged."
                yield Finding("A7", "realtime", text, (earliest, operation))
            elif operation.is_ok and operation.end < earliest_end:
                earliest_end, earliest = operation.end, operation


def out_of_turn(evidence: Evidence) -> Iterator[Finding]:
    """A7 for sends that one client submitted in a row (``in_turn``): their order in a partition is different."""
    newest: dict[tuple[str, str, int], tuple[int, Operation]] = {}
    for operation in evidence.of("send"):
        if operation.invoke.more.get("in_turn") is not True or operation.is_failed:
            continue
        for row in rows_of(evidence, operation):
            sender = (operation.client, row.topic, row.partition)
            offset, before = newest.get(sender, (-1, operation))
            if row.offset < offset:
                text = (
                    f"In {row.topic}/{row.partition}, {row.m} at {row.offset} was submitted after the one at {offset}."
                )
                yield Finding("A7", "out-of-turn", text, (before, operation))
            else:
                newest[sender] = (row.offset, operation)


def cycles(evidence: Evidence) -> Iterator[Finding]:
    """A10, Adya's G0 and G1c, with real time: transactions precede each other in a cycle.

    One precedes another if its message is directly before the other's in a partition (ww), if the other received its
    message (wr), or if it ended before the other began. Kafka allows G0. Each set of transactions with cycles is
    reported once.
    """
    nodes = [
        operation
        for operation in evidence.operations
        if not operation.is_failed
        and (operation.invoke.messages or (operation.f == "txn" and operation.invoke.delivered and operation.is_ok))
    ]
    number = {id(operation): index for index, operation in enumerate(nodes)}
    edges: list[list[int]] = [[] for _ in nodes]
    kinds: dict[tuple[int, int], str] = {}
    _add_write_edges(evidence, number, edges, kinds)
    _add_read_edges(evidence, nodes, number, edges, kinds)
    _add_time_edges(nodes, edges)
    for component in strongly_connected(edges, prune_sources(edges)):
        members = [one for one in component if one < len(nodes)]
        if len(members) < 2:
            continue
        inside = set(members)
        found = {kind for (one, other), kind in kinds.items() if one in inside and other in inside}
        name = ("G1c" if "wr" in found else "G0") + ("" if len(members) == len(component) else "-realtime")
        text = f"{len(members)} transactions precede each other in a cycle ({name})."
        yield Finding("A10", name, text, tuple(nodes[one] for one in sorted(members)[:6]))


def _add_write_edges(
    evidence: Evidence, number: dict[int, int], edges: list[list[int]], kinds: dict[tuple[int, int], str]
) -> None:
    for rows in evidence.log.values():
        before: int | None = None
        for row in rows:
            attempt = _committing_attempt(evidence, row.m)
            writer = None if attempt is None else number.get(id(attempt.operation))
            if writer is None:
                continue
            if before is not None and before != writer and (before, writer) not in kinds:
                kinds[before, writer] = "ww"
                edges[before].append(writer)
            before = writer


def _add_read_edges(
    evidence: Evidence,
    nodes: list[Operation],
    number: dict[int, int],
    edges: list[list[int]],
    kinds: dict[tuple[int, int], str],
) -> None:
    for reader, operation in enumerate(nodes):
        if operation.f != "txn":
            continue
        for message in operation.invoke.delivered:
            attempt = _committing_attempt(evidence, message.m)
            writer = None if attempt is None else number.get(id(attempt.operation))
            if writer is not None and writer != reader and kinds.get((writer, reader)) != "wr":
                kinds[writer, reader] = "wr"
                edges[writer].append(reader)


def _add_time_edges(nodes: list[Operation], edges: list[list[int]]) -> None:
    """Add a node for each end of an operation, all of them in a chain.

    This needs three edges for each operation instead of one for each pair of operations.
    """
    ends = sorted((operation.end, index) for index, operation in enumerate(nodes) if operation.is_ok)
    moments = [end for end, _ in ends]
    first = len(nodes)
    edges.extend([first + place + 1] if place + 1 < len(ends) else [] for place in range(len(ends)))
    for place, (_, index) in enumerate(ends):
        edges[index].append(first + place)
    for index, operation in enumerate(nodes):
        ended = bisect_left(moments, operation.start)
        if ended:
            edges[first + ended - 1].append(index)


def precommitted_reads(evidence: Evidence) -> Iterator[Finding]:
    """A11, ``precommitted-read`` (Jepsen's Bufstream ``early_read``): a transaction received a message that it sent itself."""
    for operation in evidence.transactions():
        own = {sent.m for sent in operation.invoke.messages}
        for message in operation.delivered:
            if message.m in own:
                text = f"{message.m} was delivered in the transaction that sent it."
                yield Finding("A11", "precommitted-read", text, (operation,))


def stale_reads(evidence: Evidence) -> Iterator[Finding]:
    """A12, Jepsen's ``realtime-lag``: a read that began after a message was acknowledged did not see it.

    ``stale-snapshot``: a snapshot of the ends did not include it. ``empty-poll``: a consumer that owned the partition
    before and after its poll received nothing, although the message was not delivered yet. ``empty-transaction``: the
    same for a transaction while no other transaction of its group was active.
    """
    acknowledged = _acknowledged(evidence)
    for snapshot in evidence.of("snapshot"):
        for partition, end in ends_of(snapshot).items() if snapshot.is_ok else ():
            newest = acknowledged[snapshot.invoke.topic or "", partition].before(snapshot.start)
            if newest >= end:
                text = f"Offset {newest} of partition {partition} was acknowledged, but a later snapshot ends at {end}."
                yield Finding("A12", "stale-snapshot", text, (snapshot,))
    delivered: dict[Share, _RunningMaximum] = defaultdict(_RunningMaximum)
    for share, deliveries in evidence.deliveries.items():
        for one in deliveries:
            delivered[share].add(one.operation.start, one.message.offset)
    for operation in evidence.of("poll", "txn"):
        group_topic = operation.group_topic
        if group_topic is None or operation.completion is None or not operation.is_ok or operation.delivered:
            continue
        start = operation.called_at
        for partition in _served_partitions(evidence, operation, start):
            share = (*group_topic, partition)
            newest = acknowledged[group_topic[1], partition].before(start)
            beyond = max(delivered[share].before(operation.end + 1), evidence.group_start(share) - 1)
            if newest <= beyond or newest < evidence.log_start((group_topic[1], partition)) or evidence.is_moved(share):
                continue
            kind = "empty-poll" if operation.f == "poll" else "empty-transaction"
            text = (
                f"Nothing was delivered from partition {partition}, although offset {newest} was acknowledged before."
            )
            yield Finding("A12", kind, text, (operation,))


class _RunningMaximum:
    """The highest number added for any earlier moment. Numbers may be added in any order, before the first query."""

    def __init__(self) -> None:
        self._added: list[tuple[int, int]] = []
        self._moments: list[int] = []
        self._highest: list[int] = []

    def add(self, moment: int, number: int) -> None:
        self._added.append((moment, number))

    def before(self, moment: int) -> int:
        """Return the highest number of all moments before *moment*; -1 if there is none."""
        if len(self._highest) < len(self._added):
            self._added.sort()
            highest = -1
            self._moments = [one for one, _ in self._added]
            self._highest = [highest := max(highest, number) for _, number in self._added]
        count = bisect_left(self._moments, moment)
        return self._highest[count - 1] if count else -1


def _acknowledged(evidence: Evidence) -> dict[TopicPartition, _RunningMaximum]:
    newest: dict[TopicPartition, _RunningMaximum] = defaultdict(_RunningMaximum)
    for operation in evidence.transactions():
        if operation.is_ok:
            for row in rows_of(evidence, operation):
                newest[row.topic, row.partition].add(operation.end, row.offset)
    return newest


def _served_partitions(evidence: Evidence, operation: Operation, start: int) -> set[int]:
    """Return the partitions from which *operation* would have received any available message."""
    group_topic, completion = operation.group_topic, operation.completion
    if group_topic is None or completion is None or evidence.may_redeliver_after(operation, start, operation.end):
        return set()
    if operation.f == "poll":
        owned = [one.more.get("owned") for one in (operation.invoke, completion)]
        before, after = (
            {one for one in each if isinstance(one, int)} if isinstance(each, list) else set() for each in owned
        )
        return before & after
    if evidence.count_concurrent(group_topic, start, operation.end) > 1:
        return set()
    return {partition for topic, partition in evidence.log if topic == group_topic[1]}


def _committing_attempt(evidence: Evidence, m: str | None) -> SendAttempt | None:
    """Return the attempt whose commit appended *m*; None if it is unknown or *m* was appended later."""
    attempt = None if m is None else evidence.attempts.get(m)
    return None if attempt is None or attempt.is_appended_later or attempt.operation.is_failed else attempt
