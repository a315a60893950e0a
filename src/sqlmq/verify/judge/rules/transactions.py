"""Groups that read in transactions: B12, and the parts of B1, B4 and B6 that their order proves.

One transaction at a time works on a partition, and its position is where the transactions before have left it. So the history
determines the possible positions at each moment, and each transaction must begin at one of them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from sqlmq.verify.judge.evidence import described
from sqlmq.verify.judge.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.verify.judge.evidence import Evidence, Operation, Share


def broken_successions(evidence: Evidence) -> Iterator[Finding]:
    """B12 ``abort-unchanged``, B1 ``jumped``, B6 ``split-ownership``: a transaction did not begin where the previous one ended.

    After a commit the next transaction begins behind it; after a rollback it begins where the previous one began
    (Jepsen's abort workload for Redpanda: the client must rewind); after an unknown outcome it may begin at either place.

    - Too far ahead: B12 if the previous transaction was rolled back, else B1.
    - Too far back, or inside committed messages: B6 if the transaction was committed. Otherwise it may have been
      disconnected and recorded late, and did no harm.
    """
    by_share: dict[Share, list[Operation]] = defaultdict(list)
    for operation in evidence.of("txn"):
        if operation.group_topic is not None and operation.invoke.delivered:
            by_share[*operation.group_topic, operation.invoke.delivered[0].partition].append(operation)
    for share, operations in by_share.items():
        if evidence.mode(share[:2]) == "transaction" and not evidence.is_moved(share):
            yield from _follow_positions(evidence, share, operations)


def _follow_positions(evidence: Evidence, share: Share, operations: list[Operation]) -> Iterator[Finding]:
    """Follow the possible positions through *operations*, in the order of their starts: the order in which they had the lock."""
    possible = {evidence.group_start(share)}
    before: Operation | None = None
    evicted = _evicted_to(evidence, share)
    for operation in operations:
        offsets = [message.offset for message in operation.invoke.delivered]
        start, end = offsets[0], offsets[-1] + 1
        if offsets != list(range(start, end)):
            text = f"{described(share)}: a transaction received {', '.join(map(str, offsets))}."
            yield Finding("B1", "jumped", text, (operation,))
        if start not in possible:
            if start < max(possible) and not operation.is_ok:
                continue  # it was disconnected and recorded late: its start was right earlier
            if start not in evicted:
                yield _misplaced(share, start, possible, before, operation)
            possible = {start}
        if operation.is_ok:
            possible = {end}
        elif operation.is_unknown:
            possible = {*possible, end}
        before = operation


def _misplaced(share: Share, start: int, possible: set[int], before: Operation | None, operation: Operation) -> Finding:
    operations = (operation,) if before is None else (before, operation)
    expected = " or ".join(map(str, sorted(possible)))
    if start > max(possible):
        is_after_abort = before is not None and before.is_failed
        text = f"{described(share)}: a transaction began at {start} instead of {expected}."
        if is_after_abort:
            return Finding("B12", "abort-unchanged", text, operations)
        return Finding("B1", "jumped", text, operations)
    text = f"{described(share)}: a committed transaction began at {start} instead of {expected}."
    return Finding("B6", "split-ownership", text, operations)


def _evicted_to(evidence: Evidence, share: Share) -> set[int]:
    """Return the positions at which the group may go on after an eviction."""
    if evidence.final is None:
        return set()
    return {one.end for one in evidence.final.evictions if (one.group, one.topic, one.partition) == share}
