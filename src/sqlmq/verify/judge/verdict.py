"""Applies all rules to the evidence and decides the outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sqlmq.verify.history import without_collector
from sqlmq.verify.judge.collect import collect_evidence
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
"""With fewer acknowledged messages the verdict is unknown, unless the plan says otherwise."""

SAFETY_RULES: tuple[Callable[[Evidence], Iterable[Finding]], ...] = (
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
    """The judge's verdict on a run."""

    outcome: Outcome
    findings: Findings
    allowed: dict[str, int]
    """Findings that were allowed: how often, by code, name or kind."""
    doubts: list[str]
    """Why the run proves too little, if so."""
    counts: dict[str, int]
    waits: Waits
    fairness: dict[str, float]
    evidence: Evidence

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return EXIT_CODES[self.outcome]


def judge(
    events: Sequence[Event],
    final: Final | None,
    *,
    allow: Collection[str] = (),
    least_acknowledged: int | None = None,
) -> Verdict:
    """Search the history and the final state for every anomaly.

    *allow* names anomalies that do not count, by code (``A1``), name (``lost-write``) or kind (``lost-suffix``). Without
    *final* the verdict is never ``valid``: lost and skipped messages show only there.
    """
    with without_collector():
        return _judge(events, final, frozenset(allow), least_acknowledged)


def _judge(events: Sequence[Event], final: Final | None, allow: Collection[str], least: int | None) -> Verdict:
    evidence = collect_evidence(events, final)
    findings, allowed = Findings(), dict[str, int]()
    for rule in SAFETY_RULES:
        findings.add(_not_allowed(rule(evidence), allow, allowed))
    waits = liveness.measure_waits(evidence)
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
        findings.add(_not_allowed(found, allow, allowed))
    counts = count_events(evidence)
    doubts = list(_doubts(evidence, counts, least))
    categories = {found[0].anomaly.category for found in findings.examples.values()}
    outcome: Outcome = (
        "invalid"
        if "safety" in categories
        else "unknown"
        if doubts
        else "liveness"
        if "liveness" in categories
        else "valid"
    )
    return Verdict(outcome, findings, allowed, doubts, counts, waits, liveness.fairness(evidence), evidence)


def _not_allowed(found: Iterable[Finding], allow: Collection[str], allowed: dict[str, int]) -> Iterable[Finding]:
    for finding in found:
        names = (finding.code, finding.anomaly.name, finding.kind)
        reason = next((name for name in names if name in allow), None)
        if reason is None:
            yield finding
        else:
            allowed[reason] = allowed.get(reason, 0) + 1


def count_events(evidence: Evidence) -> dict[str, int]:
    """Count the events, messages, effects and faults of a run."""
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
        yield f"Only {counts['acknowledged']} messages were acknowledged; at least {needed} are needed."
    if evidence.groups and not counts["delivered"]:
        yield "No message was delivered to any group."
    if evidence.final is None:
        yield "The final state is missing: lost and skipped messages show only there."
    faults = evidence.plan.get("faults")
    happened = {fault.name for fault in evidence.faults}
    for fault in faults if isinstance(faults, list) else ():
        if fault != "none" and fault not in happened:
            yield f"The fault {fault!r} was requested but did not happen."
