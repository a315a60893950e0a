"""What a judge may find: the anomalies by name, and one found at a place of the history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlmq.verify.judge.evidence import Operation

Sort = Literal["safety", "liveness"]


class Anomaly(NamedTuple):
    """Something that must not happen."""

    code: str
    name: str
    """As Jepsen calls it, where Jepsen has it."""
    meaning: str
    sort: Sort = "safety"


ANOMALIES: Mapping[str, Anomaly] = {
    one.code: one
    for one in (
        Anomaly("A1", "lost-write", "an acknowledged message is not in the log"),
        Anomaly("A2", "aborted-read", "a message of a transaction that failed is in the log, or was delivered"),
        Anomaly("A3", "unexpected", "a message that nobody sent, or not as it was sent"),
        Anomaly("A4", "duplicate", "one message is at several offsets"),
        Anomaly("A5", "inconsistent-offsets", "one offset is said to have different messages"),
        Anomaly("A6", "offset-gap", "an offset between the log's ends has no message, or several"),
        Anomaly("A7", "nonmonotonic-send", "of two sends, the one that was over first has the higher offset"),
        Anomaly("A8", "int-send-skip", "messages of one transaction do not follow each other in their partition"),
        Anomaly(
            "A9", "torn-transaction", "a part of a transaction's messages is there, or could be seen, without the rest"
        ),
        Anomaly("A10", "cycle", "transactions come before each other in a circle"),
        Anomaly("A11", "precommitted-read", "a transaction was given a message of its own"),
        Anomaly("A12", "stale-empty-poll", "a poll returned nothing though an acknowledged message was there for it"),
        Anomaly("B1", "skipped", "the group's position passed a message that was not done"),
        Anomaly("B2", "unseen", "an acknowledged message never came to the group, not even at the end"),
        Anomaly(
            "B3", "nonmonotonic-poll", "messages came to the group for the first time in another order than the log's"
        ),
        Anomaly("B4", "redelivery", "a message came again, and nothing had happened that would explain it"),
        Anomaly("B5", "committed-regression", "the group's position went back though nobody moved it"),
        Anomaly(
            "B6", "split-ownership", "somebody who had lost a partition changed its position, or two had it at once"
        ),
        Anomaly("B7", "lost-or-duplicate-effect", "a message does not have its effect exactly once"),
        Anomaly("B8", "commit-out-of-range", "a position is outside the log"),
        Anomaly("B9", "retention-violation", "retention deleted what a group still needed"),
        Anomaly("B10", "stranded", "what a group has set aside stays aside, or is set aside though it was done"),
        Anomaly("B11", "early-delivery", "a delayed message was in the log before it was due"),
        Anomaly("B12", "abort-unchanged", "after a rollback the group went on behind it"),
        Anomaly("L1", "takeover", "a lost member's partition was left lying", "liveness"),
        Anomaly("L2", "recovery", "after the database came back, work did not go on", "liveness"),
        Anomaly("L3", "drain", "the groups did not read what was left in time", "liveness"),
        Anomaly("L4", "starvation", "a partition with messages was not served, though nothing was wrong", "liveness"),
        Anomaly(
            "L5",
            "hanging-call",
            "a call took longer than any may, or a deadlock was not reported as a failure",
            "liveness",
        ),
        Anomaly("L6", "memory", "a process grew more than it may", "liveness"),
        Anomaly("L7", "idle-queries", "an idle member asked the database too often", "liveness"),
        Anomaly("L8", "residue", "something was left in the database when all clients were gone", "liveness"),
    )
}


class Finding(NamedTuple):
    """An anomaly that was found."""

    code: str
    kind: str
    """Which way of it, as ``lost-suffix``."""
    text: str
    operations: tuple[Operation, ...] = ()
    """Those that it is about."""

    @property
    def anomaly(self) -> Anomaly:
        """Which anomaly it is."""
        return ANOMALIES[self.code]


@dataclass(slots=True)
class Findings:
    """What was found, counted; of each anomaly the first examples."""

    most_examples: int = 200
    counts: dict[str, int] = field(default_factory=dict)
    kinds: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        """Count *findings*, and keep the first."""
        for finding in findings:
            code = finding.code
            self.counts[code] = self.counts.get(code, 0) + 1
            self.kinds[code, finding.kind] = self.kinds.get((code, finding.kind), 0) + 1
            kept = self.examples.setdefault(code, [])
            if len(kept) < self.most_examples:
                kept.append(finding)
