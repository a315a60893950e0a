"""Everything that is looked for, and what follows from what was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sqlmq.verify.history import without_collector
from sqlmq.verify.judge.collect import gathered
from sqlmq.verify.judge.evidence import Evidence
from sqlmq.verify.judge.findings import Findings
from sqlmq.verify.judge.rules import delivery, effects, liveness, log_content, ordering, positions, transactions
from sqlmq.verify.judge.rules.liveness import Waits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from sqlmq.verify.history import Event, Final
    from sqlmq.verify.judge.findings import Finding

Outcome = Literal["valid", "invalid", "liveness", "unknown"]

EXIT_CODES: dict[Outcome, int] = {"valid": 0, "invalid": 1, "liveness": 2, "unknown": 3}

LEAST_ACKNOWLEDGED = 1_000
"""With fewer acknowledged messages nothing is proved, unless the plan says otherwise."""

SAFETY: tuple[Callable[[Evidence], Iterable[Finding]], ...] = (
    log_content.lost_writes,
    log_content.aborted_reads,
    log_content.unexpected,
    log_content.duplicates,
    log_content.inconsistent_offsets,
    log_content.offset_gaps,
    log_content.send_skips,
    log_content.torn_transactions,
    log_content.early_deliveries,
    ordering.nonmonotonic_sends,
    ordering.out_of_turn,
    ordering.cycles,
    ordering.precommitted_reads,
    ordering.stale_reads,
    delivery.skipped,
    delivery.unseen,
    delivery.nonmonotonic_polls,
    delivery.redeliveries,
    transactions.broken_successions,
    positions.regressions,
    positions.out_of_range,
    positions.zombie_commits,
    positions.retention_violations,
    effects.effects,
    effects.stranded,
)


@dataclass(slots=True)
class Verdict:
    """What the judge says of a run."""

    outcome: Outcome
    findings: Findings
    allowed: dict[str, int]
    """What was found and is allowed, by code or kind: how often."""
    doubts: list[str]
    """Why nothing is proved, if it is so."""
    counts: dict[str, int]
    waits: Waits
    fairness: dict[str, float]
    evidence: Evidence

    @property
    def exit_code(self) -> int:
        """What a command ends with."""
        return EXIT_CODES[self.outcome]


def judged(
    events: Sequence[Event],
    final: Final | None,
    *,
    allow: Collection[str] = (),
    least_acknowledged: int | None = None,
) -> Verdict:
    """Look for every anomaly in what happened, and in the state at the end.

    *allow* names anomalies by code (``A1``), name (``lost-write``) or kind (``lost-suffix``) that do not count. Without
    *final*, nothing can be valid: what is lost, and what is skipped, shows only there.
    """
    with without_collector():
        return _judged(events, final, frozenset(allow), least_acknowledged)


def _judged(events: Sequence[Event], final: Final | None, allow: Collection[str], least: int | None) -> Verdict:
    evidence = gathered(events, final)
    findings, allowed = Findings(), dict[str, int]()
    for look in SAFETY:
        findings.add(_counting(look(evidence), allow, allowed))
    waits = liveness.measured(evidence)
    for found in (
        liveness.slow_takeovers(evidence, waits),
        liveness.starved_shares(evidence, waits),
        liveness.slow_recoveries(evidence, waits),
        liveness.failed_drains(evidence),
        liveness.hanging_calls(evidence),
        liveness.grown_memory(evidence),
        liveness.busy_idlers(evidence),
        liveness.residue(evidence),
    ):
        findings.add(_counting(found, allow, allowed))
    counts = counted(evidence)
    doubts = list(_doubts(evidence, counts, least))
    sorts = {found[0].anomaly.sort for found in findings.examples.values()}
    outcome: Outcome = (
        "invalid" if "safety" in sorts else "unknown" if doubts else "liveness" if "liveness" in sorts else "valid"
    )
    return Verdict(outcome, findings, allowed, doubts, counts, waits, liveness.fairness(evidence), evidence)


def _counting(found: Iterable[Finding], allow: Collection[str], allowed: dict[str, int]) -> Iterable[Finding]:
    for finding in found:
        names = (finding.code, finding.anomaly.name, finding.kind)
        reason = next((name for name in names if name in allow), None)
        if reason is None:
            yield finding
        else:
            allowed[reason] = allowed.get(reason, 0) + 1


def counted(evidence: Evidence) -> dict[str, int]:
    """How much of what there was."""
    counts = dict.fromkeys(
        (
            "events",
            "attempted",
            "acknowledged",
            "failed",
            "unknown",
            "delivered",
            "redelivered",
            "in the log",
            "effects",
        ),
        0,
    )
    counts["events"] = len(evidence.events)
    for attempt in evidence.attempts.values():
        operation = attempt.operation
        counts["attempted"] += 1
        which = "acknowledged" if operation.is_ok else "failed" if operation.is_failed else "unknown"
        counts[which] += 1
    for deliveries in evidence.deliveries.values():
        counts["delivered"] += len(deliveries)
        counts["redelivered"] += len(deliveries) - len({one.message.offset for one in deliveries})
    if evidence.final is not None:
        counts["in the log"] = len(evidence.final.log)
        counts["effects"] = sum(evidence.final.effects.values())
    counts["faults"] = len(evidence.faults)
    return counts


def _doubts(evidence: Evidence, counts: dict[str, int], least: int | None) -> Iterable[str]:
    wanted = evidence.plan.get("least")
    said = wanted.get("acks") if isinstance(wanted, dict) else None
    needed = least if least is not None else said if isinstance(said, int) else LEAST_ACKNOWLEDGED
    if counts["acknowledged"] < needed:
        yield f"Only {counts['acknowledged']} messages were acknowledged, and {needed} are needed."
    if evidence.groups and not counts["delivered"]:
        yield "Nothing was delivered to any group."
    if evidence.final is None:
        yield "The state at the end is not known: what is lost or skipped shows only there."
    faults = evidence.plan.get("faults")
    happened = {fault.name for fault in evidence.faults}
    for fault in faults if isinstance(faults, list) else ():
        if fault != "none" and fault not in happened:
            yield f"The fault {fault!r} was asked for, and did not happen."
