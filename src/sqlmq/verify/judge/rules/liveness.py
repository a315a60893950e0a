"""L1 to L8: work goes on in time. Without a bound in the plan, a time is only measured."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.verify.judge.evidence import NEVER, SECOND, InjectedFault, described
from sqlmq.verify.judge.findings import Finding
from sqlmq.verify.judge.rules.log_content import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlmq.verify.judge.evidence import Evidence, Share, TopicPartition

_DEADLOCK = "40P01"


class Wait(NamedTuple):
    """How long messages of a partition waited for a member to read them."""

    share: Share
    start: int
    end: int
    cause: str
    """The fault before it, for example ``crash`` or ``pause``; empty if there was none."""

    @property
    def seconds(self) -> float:
        """The length of the wait."""
        return (self.end - self.start) / SECOND


@dataclass(slots=True)
class Waits:
    """All waits of a run, and how long each fault's effect lasted."""

    takeovers: list[Wait] = field(default_factory=list)
    starved: list[Wait] = field(default_factory=list)
    recoveries: list[tuple[InjectedFault, float]] = field(default_factory=list)


def measure_waits(evidence: Evidence) -> Waits:
    """Measure how long messages waited until the next delivery from their partition.

    A wait begins when the message is acknowledged, or with the last fault of the group before that delivery.
    """
    waits = Waits()
    acknowledged = _acknowledged(evidence)
    drains = [one.start for one in evidence.of("drain")]
    over = min(drains, default=evidence.events[-1].t if evidence.events else 0)
    fault_times = _fault_times(evidence)
    for group_topic in evidence.groups:
        if evidence.mode(group_topic) == "run":
            continue  # there a message may wait for its next attempt, or for its key
        mine = sorted(fault_times[group_topic])
        for place, sends in acknowledged.items():
            if place[0] == group_topic[1]:
                _measure(evidence, waits, (*group_topic, place[1]), sends, mine, over)
    for fault in evidence.faults:
        if not fault.who and fault.end < NEVER and (seconds := _recovery(evidence, fault)) is not None:
            waits.recoveries.append((fault, seconds))
    return waits


def _measure(
    evidence: Evidence,
    waits: Waits,
    share: Share,
    sends: Sequence[tuple[int, int]],
    fault_times: Sequence[tuple[int, str]],
    over: int,
) -> None:
    """Measure for each delivery of *share* how long its messages had waited."""
    moments = [moment for moment, _ in fault_times]
    previous = 0
    ordered = sorted(sends)
    brought: set[int] = set()
    next_place = 0
    for one in [*evidence.deliveries.get(share, ()), None]:
        at = over if one is None else min(over, one.operation.delivered_at)
        # The first message that was not delivered yet: while there is one, a member should be reading.
        while next_place < len(ordered) and ordered[next_place][0] in brought:
            next_place += 1
        if next_place < len(ordered):
            since = max(previous, ordered[next_place][1])
            place = bisect_right(moments, at) - 1
            cause = ""
            if place >= 0 and moments[place] > since:
                since, cause = fault_times[place]
            if at > since:
                wait = Wait(share, since, at, cause)
                (waits.takeovers if cause else waits.starved).append(wait)
        if one is None:
            break
        brought.add(one.message.offset)
        previous = max(previous, at)


def slow_takeovers(evidence: Evidence, waits: Waits) -> Iterator[Finding]:
    """L1: after a member was lost, messages of its partition waited longer than the bound ``takeover``.

    The clock restarts with each fault of the group, so a wait is measured from the last of them.
    """
    yield from _too_long(waits.takeovers, evidence.bound("takeover", -1), "L1", "takeover")


def starved_shares(evidence: Evidence, waits: Waits) -> Iterator[Finding]:
    """L4: a partition with messages was not read for longer than the bound ``starvation``, without a fault."""
    yield from _too_long(waits.starved, evidence.bound("starvation", -1), "L4", "starvation")


def _too_long(waits: Sequence[Wait], bound: int, code: str, kind: str) -> Iterator[Finding]:
    for wait in waits if bound >= 0 else ():
        if wait.end - wait.start > bound:
            after = f" after {wait.cause}" if wait.cause else ""
            text = (
                f"{described(wait.share)}: messages waited {wait.seconds:.1f} s{after}; bound {bound / SECOND:.1f} s."
            )
            yield Finding(code, kind, text)


def slow_recoveries(evidence: Evidence, waits: Waits) -> Iterator[Finding]:
    """L2: after the database came back, the first acknowledgement took longer than the bound ``recovery``."""
    bound = evidence.bound("recovery", -1)
    for fault, seconds in waits.recoveries if bound >= 0 else ():
        if seconds * SECOND > bound:
            text = f"{seconds:.1f} s after the end of {fault.name}, nothing was acknowledged yet; bound {bound / SECOND:.1f} s."
            yield Finding("L2", "recovery", text)


def failed_drains(evidence: Evidence) -> Iterator[Finding]:
    """L3: new members did not read the remaining messages within the bound ``drain``."""
    bound = evidence.bound("drain", -1)
    for operation in evidence.of("drain"):
        if not operation.is_ok:
            yield Finding("L3", "drain", f"Group {operation.invoke.group} was not drained.", (operation,))
        elif 0 <= bound < operation.end - operation.start:
            text = f"Group {operation.invoke.group} was drained in {(operation.end - operation.start) / SECOND:.1f} s."
            yield Finding("L3", "drain", text, (operation,))


def hanging_calls(evidence: Evidence) -> Iterator[Finding]:
    """L5: a call took longer than the bound ``call`` without a fault, or a deadlock was not reported as a failure.

    A poll, a drain and a handler may take any time. A transaction is measured from when it has messages.
    """
    bound = evidence.bound("call", -1)
    for operation in evidence.operations:
        completion = operation.completion
        if completion is None:
            continue
        if completion.sqlstate == _DEADLOCK and completion.type != "fail":
            yield Finding("L5", "deadlock", "A deadlock was not reported as a failure.", (operation,))
        if bound < 0 or operation.f in {"poll", "drain", "handle", "retain", "close"}:
            continue
        seconds = (completion.t - operation.start) / SECOND
        if completion.t - operation.start > bound and not evidence.may_have_lost_partitions(
            operation, operation.start, completion.t
        ):
            text = f"A {operation.f} of {operation.client} took {seconds:.1f} s; bound {bound / SECOND:.1f} s."
            yield Finding("L5", "hanging", text, (operation,))


def grown_memory(evidence: Evidence) -> Iterator[Finding]:
    """L6: a process grew by more than the bound ``rss`` bytes since it first recorded its size."""
    bounds = evidence.plan.get("bounds")
    bound = bounds.get("rss") if isinstance(bounds, dict) else None
    first: dict[str, int] = {}
    reported: set[str] = set()
    for note in evidence.notes["rss"]:
        size = note.more.get("bytes")
        if not isinstance(size, int) or not isinstance(bound, int):
            continue
        growth = size - first.setdefault(note.p, size)
        if growth > bound and note.p not in reported:
            reported.add(note.p)
            yield Finding("L6", "memory", f"{note.p} has grown by {growth:,} bytes; bound {bound:,}.")


def busy_idlers(evidence: Evidence) -> Iterator[Finding]:
    """L7: an idle member executed more queries per second than the bound ``queries``."""
    bounds = evidence.plan.get("bounds")
    bound = bounds.get("queries") if isinstance(bounds, dict) else None
    for note in evidence.notes["idle"]:
        queries, seconds = note.more.get("queries"), note.more.get("seconds")
        if not (isinstance(queries, int) and isinstance(seconds, (int, float)) and isinstance(bound, (int, float))):
            continue
        if queries > bound * seconds:
            yield Finding("L7", "idle", f"{note.p} executed {queries} queries in {seconds:.1f} s while idle.")


def residue(evidence: Evidence) -> Iterator[Finding]:
    """L8: sessions, locks or members remained in the database when all clients were gone."""
    for row in evidence.final.residue if evidence.final is not None else ():
        if row.remaining > row.most:
            yield Finding("L8", "residue", f"{row.remaining} {row.what} remained; at most {row.most} may remain.")


def fairness(evidence: Evidence) -> dict[str, float]:
    """Jain's index over the deliveries of each group's partitions: 1 if all are equal, 1/n if one has all. Reported, not judged."""
    counts: dict[str, list[int]] = defaultdict(list)
    for (group, topic, _), deliveries in evidence.deliveries.items():
        counts[f"{group} on {topic}"].append(len(deliveries))
    return {
        name: sum(each) ** 2 / (len(each) * sum(one * one for one in each))
        for name, each in counts.items()
        if any(each)
    }


def _acknowledged(evidence: Evidence) -> dict[TopicPartition, list[tuple[int, int]]]:
    """By partition: offsets, and when each was acknowledged."""
    acknowledged: dict[TopicPartition, list[tuple[int, int]]] = defaultdict(list)
    for operation in evidence.transactions():
        if operation.is_ok:
            for row in rows_of(evidence, operation):
                acknowledged[row.topic, row.partition].append((row.offset, operation.end))
    return acknowledged


def _fault_times(evidence: Evidence) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """For each group: when a fault of a member or of the database began or ended."""
    members: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for operation in evidence.operations:
        if operation.group_topic is not None:
            members[operation.invoke.p].add(operation.group_topic)
    fault_times: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for fault in evidence.faults:
        group_topics = (
            {group_topic for who in fault.who for group_topic in members[who]} if fault.who else set(evidence.groups)
        )
        for group_topic in group_topics:
            fault_times[group_topic] += [(fault.start, fault.name), (min(fault.end, NEVER - 1), fault.name)]
    for name in ("crash", "end"):
        for moment, process in _processes_of(evidence, name):
            for group_topic in members[process]:
                fault_times[group_topic].append((moment, name))
    for operation in evidence.operations:
        if operation.group_topic is not None and operation.f in {"close", "seek"}:
            fault_times[operation.group_topic].append((operation.start, operation.f))
        elif operation.group_topic is not None and operation.completion is not None and operation.is_failed:
            fault_times[operation.group_topic].append((operation.completion.t, "an error"))
    return fault_times


def _processes_of(evidence: Evidence, kind: str) -> Iterator[tuple[int, str]]:
    for note in evidence.notes[kind]:
        who = note.more.get("who")
        for one in who if isinstance(who, list) else [who]:
            if isinstance(one, str):
                yield note.t, one


def _recovery(evidence: Evidence, fault: InjectedFault) -> float | None:
    """Return the seconds from the end of *fault* to the first acknowledgement of a later operation; None if none was tried."""
    tried = [one for one in evidence.transactions() if one.start >= fault.end]
    ends = [one.end for one in tried if one.is_ok]
    if ends:
        return (min(ends) - fault.end) / SECOND
    return (evidence.events[-1].t - fault.end) / SECOND if tried else None
