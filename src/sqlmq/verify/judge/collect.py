"""A history put in order: everything that is looked up later is made here, in one pass for each sort of thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.verify.judge.evidence import NEVER, SECOND, Attempt, Delivery, Evidence, Fault, Operation, client_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq.verify.history import Event, Final


def gathered(events: Sequence[Event], final: Final | None) -> Evidence:
    """Pair invocations with completions, and look up everything by what it is about."""
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
    _note_groups(evidence)
    _note_attempts(evidence)
    _note_deliveries(evidence)
    _note_log(evidence)
    _note_faults(evidence)
    _note_losses(evidence)
    return evidence


def _note_groups(evidence: Evidence) -> None:
    for operation in evidence.operations:
        if operation.reading is not None:
            evidence.groups.setdefault(operation.reading, None)
    for note in evidence.notes["group"]:
        if note.group is not None and note.topic is not None:
            evidence.groups[note.group, note.topic] = note


def _note_attempts(evidence: Evidence) -> None:
    for operation in evidence.operations:
        invoke = operation.invoke
        if not invoke.messages:
            continue
        undone = set(invoke.undone)
        for sent in invoke.messages:
            attempt = Attempt(operation, sent, sent.topic or invoke.topic or "", sent.m in undone)
            if evidence.attempts.setdefault(sent.m, attempt) is not attempt:
                evidence.reused.append(attempt)


def _note_deliveries(evidence: Evidence) -> None:
    for operation in evidence.operations:
        reading = operation.reading
        if reading is not None:
            for message in operation.delivered:
                evidence.deliveries[*reading, message.partition].append(Delivery(operation, message))
    for deliveries in evidence.deliveries.values():
        deliveries.sort(key=lambda one: one.operation.delivered_at)


def _note_log(evidence: Evidence) -> None:
    if evidence.final is None:
        return
    for row in evidence.final.log:
        evidence.log[row.topic, row.partition].append(row)
        if row.m is not None:
            evidence.places[row.m].append(row)
    for rows in evidence.log.values():
        rows.sort(key=lambda row: row.offset)


def _note_faults(evidence: Evidence) -> None:
    stops = {
        str(note.more.get("id")): note.t for note in evidence.notes["nemesis"] if note.more.get("action") == "stop"
    }
    for note in evidence.notes["nemesis"]:
        if note.more.get("action") == "start":
            end = stops.get(str(note.more.get("id")), NEVER)
            evidence.faults.append(Fault(str(note.more.get("fault")), note.t, end, _whom(note)))


def _note_losses(evidence: Evidence) -> None:
    lingering = evidence.bound("takeover", 15.0)
    last_seen = {event.p: event.t for event in evidence.events}
    for fault in evidence.faults:
        end = min(fault.end + lingering, NEVER)
        if fault.who:
            for process in fault.who:
                evidence.lost[process].add(fault.start, end)
        else:
            evidence.database.add(fault.start, end)
    for note in (*evidence.notes["crash"], *evidence.notes["end"]):
        for process in _whom(note):
            evidence.lost[process].add(min(note.t, last_seen.get(process, note.t)), NEVER)
    for note in evidence.notes["fenced"]:
        evidence.lost[client_of(note)].add(note.t, note.t)
    for note in evidence.notes["stalled"]:
        seconds = note.more.get("seconds")
        length = int(seconds * SECOND) if isinstance(seconds, (int, float)) else 0
        evidence.lost[note.p].add(note.t - length, note.t + lingering)
    for operation in evidence.operations:
        if operation.reading is None:
            continue
        if operation.f == "poll" and operation.is_unknown:
            evidence.unanswered[operation.reading].append(operation)
        if operation.f == "decide" and not operation.is_failed:
            evidence.decided.add(operation.reading)
            if not operation.invoke.offsets:
                evidence.undecidable.add(operation.reading)
        if operation.f == "close":
            evidence.lost[operation.client].add(operation.start, NEVER)
        elif operation.completion is None:
            evidence.erred[operation.client].add(operation.start, NEVER)
        elif operation.completion.type in {"fail", "info"}:
            evidence.erred[operation.client].add(operation.start, operation.completion.t)


def _whom(note: Event) -> tuple[str, ...]:
    who = note.more.get("who")
    if isinstance(who, str):
        return (who,)
    return tuple(str(one) for one in who) if isinstance(who, list) else ()
