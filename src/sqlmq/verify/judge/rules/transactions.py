"""Groups that read in transactions, played through: B12, and of B1, B4 and B6 what can be said of these.

A partition is worked on by one transaction at a time, and its position is what the transactions before it have left. So
which positions there can be at any moment follows from the history, and each transaction has to begin at one of them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from sqlmq.verify.judge.evidence import named
from sqlmq.verify.judge.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.verify.judge.evidence import Evidence, Operation, Share


def broken_successions(evidence: Evidence) -> Iterator[Finding]:
    """B12 ``abort-unchanged``, B1 ``jumped``, B6 ``split-ownership``: a transaction that did not begin where the one before it ended.

    After one that was committed the next begins behind it, after one that was rolled back where that began (Jepsen's
    abort workload for Redpanda: the client must rewind), after one of which nobody knows at either place.

    - Too far on: B12 if what was passed over was just rolled back, else B1.
    - Too far back, or in the middle of what was committed: B6, if it was committed itself. One that was not may have
      been cut off and late, and has done no harm.
    """
    by_share: dict[Share, list[Operation]] = defaultdict(list)
    for operation in evidence.of("txn"):
        if operation.reading is not None and operation.invoke.delivered:
            by_share[*operation.reading, operation.invoke.delivered[0].partition].append(operation)
    for share, operations in by_share.items():
        if evidence.mode(share[:2]) == "transaction" and not evidence.is_moved(share):
            yield from _played(evidence, share, operations)


def _played(evidence: Evidence, share: Share, operations: list[Operation]) -> Iterator[Finding]:
    """Follow the positions through *operations*, in the order in which they began: that in which they had the lock."""
    possible = {evidence.start_of(share)}
    before: Operation | None = None
    evicted = _evicted_to(evidence, share)
    for operation in operations:
        offsets = [message.offset for message in operation.invoke.delivered]
        start, end = offsets[0], offsets[-1] + 1
        if offsets != list(range(start, end)):
            text = f"{named(share)}: a transaction was given {', '.join(map(str, offsets))}."
            yield Finding("B1", "jumped", text, (operation,))
        if start not in possible:
            if start < max(possible) and not operation.is_ok:
                continue  # it was cut off, and is late: what it began with was so once
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
    told = " or ".join(map(str, sorted(possible)))
    if start > max(possible):
        is_after_abort = before is not None and before.is_failed
        text = f"{named(share)}: a transaction began at {start}, and not at {told}."
        if is_after_abort:
            return Finding("B12", "abort-unchanged", text, operations)
        return Finding("B1", "jumped", text, operations)
    text = f"{named(share)}: a transaction was committed that began at {start}, and not at {told}."
    return Finding("B6", "split-ownership", text, operations)


def _evicted_to(evidence: Evidence, share: Share) -> set[int]:
    """Where the group may go on after retention took something from it."""
    if evidence.final is None:
        return set()
    return {one.end for one in evidence.final.evictions if (one.group, one.topic, one.partition) == share}
