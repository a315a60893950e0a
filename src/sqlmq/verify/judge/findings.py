"""The anomalies by name, and what was found of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlmq.verify.judge.evidence import Operation

Category = Literal["safety", "liveness"]


class Anomaly(NamedTuple):
    """Something that must not happen in a correct queue."""

    code: str
    name: str
    """Jepsen's name where it has one."""
    meaning: str
    category: Category = "safety"


ANOMALIES: Mapping[str, Anomaly] = {
    one.code: one
    for one in (
        Anomaly("A1", "lost-write", "an acknowledged message is not in the log"),
        Anomaly("A2", "aborted-read", "a message of a transaction that failed is in the log, or was delivered"),
        Anomaly("A3", "unexpected", "a message that no client sent, or not as it was sent"),
        Anomaly("A4", "duplicate", "one message is at several offsets"),
        Anomaly("A5", "inconsistent-offsets", "one offset has different messages in different answers"),
        Anomaly("A6", "offset-gap", "an offset inside the log has no message, or several"),
        Anomaly("A7", "nonmonotonic-send", "of two sends, the one that ended first has the higher offset"),
        Anomaly("A8", "int-send-skip", "the messages of one transaction are not consecutive in their partition"),
        Anomaly("A9", "torn-transaction", "some messages of a transaction are visible without the others"),
        Anomaly("A10", "cycle", "transactions precede each other in a cycle"),
        Anomaly("A11", "precommitted-read", "a transaction received a message that it sent itself"),
        Anomaly("A12", "stale-empty-poll", "a poll returned nothing although an acknowledged message was available"),
        Anomaly("B1", "skipped", "the group's position passed a message that was not handled"),
        Anomaly("B2", "unseen", "an acknowledged message was never delivered to the group"),
        Anomaly(
            "B3", "nonmonotonic-poll", "messages were first delivered to the group in a different order than the log's"
        ),
        Anomaly("B4", "redelivery", "a message was redelivered without a reason"),
        Anomaly("B5", "committed-regression", "the group's position went back without a seek or reset"),
        Anomaly(
            "B6",
            "split-ownership",
            "a member committed a partition it had lost, or two members owned one at the same time",
        ),
        Anomaly("B7", "lost-or-duplicate-effect", "a message does not have its effect exactly once"),
        Anomaly("B8", "commit-out-of-range", "a position is outside the log"),
        Anomaly("B9", "retention-violation", "retention deleted what a group still needed"),
        Anomaly("B10", "stranded", "a parked message is never retried, or a handled message is parked"),
        Anomaly("B11", "early-delivery", "a delayed message was in the log before it was due"),
        Anomaly("B12", "abort-unchanged", "after a rollback the group went on behind the rolled-back messages"),
        Anomaly("L1", "takeover", "the partition of a lost member was not taken over in time", "liveness"),
        Anomaly("L2", "recovery", "work did not resume in time after the database came back", "liveness"),
        Anomaly("L3", "drain", "a group did not read the remaining messages in time", "liveness"),
        Anomaly("L4", "starvation", "a partition with messages was not read in time, without a fault", "liveness"),
        Anomaly(
            "L5",
            "hanging-call",
            "a call took too long, or a deadlock was not reported as a failure",
            "liveness",
        ),
        Anomaly("L6", "memory", "the memory of a process grew too much", "liveness"),
        Anomaly("L7", "idle-queries", "an idle member queried the database too often", "liveness"),
        Anomaly("L8", "residue", "something remained in the database when all clients were gone", "liveness"),
    )
}


class Finding(NamedTuple):
    """One occurrence of an anomaly."""

    code: str
    kind: str
    """The variant, for example ``lost-suffix``."""
    text: str
    operations: tuple[Operation, ...] = ()
    """The operations involved."""

    @property
    def anomaly(self) -> Anomaly:
        """The anomaly of this code."""
        return ANOMALIES[self.code]


@dataclass(slots=True)
class Findings:
    """All findings, counted, with the first examples of each anomaly."""

    max_examples: int = 200
    counts: dict[str, int] = field(default_factory=dict)
    kinds: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        """Count *findings* and keep the first of each anomaly."""
        for finding in findings:
            code = finding.code
            self.counts[code] = self.counts.get(code, 0) + 1
            self.kinds[code, finding.kind] = self.kinds.get((code, finding.kind), 0) + 1
            kept = self.examples.setdefault(code, [])
            if len(kept) < self.max_examples:
                kept.append(finding)
