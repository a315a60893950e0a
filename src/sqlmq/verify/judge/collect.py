"""Builds the evidence from a history, with one pass for each kind of fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.verify.judge.evidence import (
    NEVER,
    SECOND,
    Evidence,
    GroupDelivery,
    InjectedFault,
    Operation,
    SendAttempt,
    client_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq.verify.history import Event, Final


def collect_evidence(events: Sequence[Event], final: Final | None) -> Evidence:
    """Pair invocations with completions, and index what the rules look up."""
    evidence = Evidence(events, final)
    open_operations: dict[tuple[str, int], Operation] = {}
    for event in events:
        if event.type == "note":
            evidence.notes[event.f].append(event)
        elif event.type == "invoke":
            operation = Operation(event)
            open_operations[event.p, event.i] = operation
            evidence.operations.append(operation)
        elif event.of is not None and (operation_of := open_operations.pop((event.p, event.of), None)) is not None:
            operation_of.completion = event
    for plan in evidence.notes["plan"]:
        evidence.plan = plan.more
    _add_groups(evidence)
    _add_attempts(evidence)
    _add_deliveries(evidence)
    _add_log(evidence)
    _add_faults(evidence)
    _add_losses(evidence)
    return evidence


def _add_groups(evidence: Evidence) -> None:
    for operation in evidence.operations:
        if operation.group_topic is not None:
            evidence.groups.setdefault(operation.group_topic, None)
    for note in evidence.notes["group"]:
        if note.group is not None and note.topic is not None:
            evidence.groups[note.group, note.topic] = note


def _add_attempts(evidence: Evidence) -> None:
    for operation in evidence.operations:
        invoke = operation.invoke
        if not invoke.messages:
            continue
        undone = set(invoke.undone)
        for sent in invoke.messages:
            attempt = SendAttempt(operation, sent, sent.topic or invoke.topic or "", sent.m in undone)
            if evidence.attempts.setdefault(sent.m, attempt) is not attempt:
                evidence.reused_ids.append(attempt)


def _add_deliveries(evidence: Evidence) -> None:
    for operation in evidence.operations:
        group_topic = operation.group_topic
        if group_topic is not None:
            for message in operation.delivered:
                evidence.deliveries[*group_topic, message.partition].append(GroupDelivery(operation, message))
    for deliveries in evidence.deliveries.values():
        deliveries.sort(key=lambda one: one.operation.delivered_at)


def _add_log(evidence: Evidence) -> None:
    if evidence.final is None:
        return
    for row in evidence.final.log:
        evidence.log[row.topic, row.partition].append(row)
        if row.m is not None:
            evidence.log_rows[row.m].append(row)
    for rows in evidence.log.values():
        rows.sort(key=lambda row: row.offset)


def _add_faults(evidence: Evidence) -> None:
    stops = {
        str(note.more.get("id")): note.t for note in evidence.notes["nemesis"] if note.more.get("action") == "stop"
    }
    for note in evidence.notes["nemesis"]:
        if note.more.get("action") == "start":
            end = stops.get(str(note.more.get("id")), NEVER)
            evidence.faults.append(InjectedFault(str(note.more.get("fault")), note.t, end, _processes_of(note)))


def _add_losses(evidence: Evidence) -> None:
    recovery = evidence.bound("takeover", 15.0)
    last_seen = {event.p: event.t for event in evidence.events}
    for fault in evidence.faults:
        end = min(fault.end + recovery, NEVER)
        if fault.who:
            for process in fault.who:
                evidence.losses[process].add(fault.start, end)
        else:
            evidence.database_disturbed.add(fault.start, end)
    for note in (*evidence.notes["crash"], *evidence.notes["end"]):
        for process in _processes_of(note):
            evidence.losses[process].add(min(note.t, last_seen.get(process, note.t)), NEVER)
    for note in evidence.notes["fenced"]:
        evidence.losses[client_of(note)].add(note.t, note.t)
    for note in evidence.notes["stalled"]:
        seconds = note.more.get("seconds")
        length = int(seconds * SECOND) if isinstance(seconds, (int, float)) else 0
        evidence.losses[note.p].add(note.t - length, note.t + recovery)
    for operation in evidence.operations:
        if operation.group_topic is None:
            continue
        if operation.f == "poll" and operation.is_unknown:
            evidence.unanswered[operation.group_topic].append(operation)
        if operation.f == "decide" and not operation.is_failed:
            evidence.decided.add(operation.group_topic)
            if not operation.invoke.offsets:
                evidence.undecidable.add(operation.group_topic)
        if operation.f == "close":
            evidence.losses[operation.client].add(operation.start, NEVER)
        elif operation.completion is None:
            evidence.failed_calls[operation.client].add(operation.start, NEVER)
        elif operation.completion.type in {"fail", "info"}:
            evidence.failed_calls[operation.client].add(operation.start, operation.completion.t)


def _processes_of(note: Event) -> tuple[str, ...]:
    who = note.more.get("who")
    if isinstance(who, str):
        return (who,)
    return tuple(str(one) for one in who) if isinstance(who, list) else ()
