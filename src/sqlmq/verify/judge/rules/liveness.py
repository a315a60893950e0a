"""Does work go on, and soon? L1 to L8. A bound that the plan does not give is not judged, only measured."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.verify.judge.evidence import NEVER, SECOND, Fault, named
from sqlmq.verify.judge.findings import Finding
from sqlmq.verify.judge.rules.log_content import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlmq.verify.judge.evidence import Evidence, Place, Share

_DEADLOCK = "40P01"


class Wait(NamedTuple):
    """How long messages of a share waited for somebody to take them."""

    share: Share
    start: int
    end: int
    cause: str
    """``crash``, ``pause`` ..., or nothing if nothing had happened to its owner."""

    @property
    def seconds(self) -> float:
        """How long it was."""
        return (self.end - self.start) / SECOND


@dataclass(slots=True)
class Waits:
    """All waits of a run that are worth a look, and how long each fault's effect lasted."""

    takeovers: list[Wait] = field(default_factory=list)
    starved: list[Wait] = field(default_factory=list)
    recoveries: list[tuple[Fault, float]] = field(default_factory=list)


def measured(evidence: Evidence) -> Waits:
    """Find how long messages waited: until the next delivery of their partition.

    From when they were there, or from the last thing that happened to the group before that delivery.
    """
    waits = Waits()
    acknowledged = _acknowledged(evidence)
    drains = [one.start for one in evidence.of("drain")]
    over = min(drains, default=evidence.events[-1].t if evidence.events else 0)
    troubles = _troubles(evidence)
    for reading in evidence.groups:
        if evidence.mode(reading) == "run":
            continue  # there a message may wait for its attempt, or its key
        mine = sorted(troubles[reading])
        for place, sends in acknowledged.items():
            if place[0] == reading[1]:
                _measure(evidence, waits, (*reading, place[1]), sends, mine, over)
    for fault in evidence.faults:
        if not fault.who and fault.end < NEVER and (seconds := _recovery(evidence, fault)) is not None:
            waits.recoveries.append((fault, seconds))
    return waits


def _measure(
    evidence: Evidence,
    waits: Waits,
    share: Share,
    sends: Sequence[tuple[int, int]],
    troubles: Sequence[tuple[int, str]],
    over: int,
) -> None:
    """Go through the deliveries of *share*, and see for each how long what it brought had been waiting."""
    moments = [moment for moment, _ in troubles]
    previous = 0
    ordered = sorted(sends)
    brought: set[int] = set()
    next_place = 0
    for one in [*evidence.deliveries.get(share, ()), None]:
        at = over if one is None else min(over, one.operation.delivered_at)
        # The first message that nobody had got yet: as long as there is one, somebody should be at work.
        while next_place < len(ordered) and ordered[next_place][0] in brought:
            next_place += 1
        if next_place < len(ordered):
            since = max(previous, ordered[next_place][1])
            place = bisect_right(moments, at) - 1
            cause = ""
            if place >= 0 and moments[place] > since:
                since, cause = troubles[place]
            if at > since:
                wait = Wait(share, since, at, cause)
                (waits.takeovers if cause else waits.starved).append(wait)
        if one is None:
            break
        brought.add(one.message.offset)
        previous = max(previous, at)


def slow_takeovers(evidence: Evidence, waits: Waits) -> Iterator[Finding]:
    """L1: after a member was lost, its partition was left lying with messages in it for longer than the bound ``takeover``.

    The clock starts anew with each thing that happens to the group, so waits are those after the last of them.
    """
    yield from _too_long(waits.takeovers, evidence.bound("takeover", -1), "L1", "takeover")


def starved_shares(evidence: Evidence, waits: Waits) -> Iterator[Finding]:
    """L4: a partition with messages was not served for longer than the bound ``starvation``, and nothing had happened."""
    yield from _too_long(waits.starved, evidence.bound("starvation", -1), "L4", "starvation")


def _too_long(waits: Sequence[Wait], bound: int, code: str, kind: str) -> Iterator[Finding]:
    for wait in waits if bound >= 0 else ():
        if wait.end - wait.start > bound:
            after = f" after {wait.cause}" if wait.cause else ""
            text = (
                f"{named(wait.share)}: messages waited for {wait.seconds:.1f} s{after}, bound {bound / SECOND:.1f} s."
            )
            yield Finding(code, kind, text)


def slow_recoveries(evidence: Evidence, waits: Waits) -> Iterator[Finding]:
    """L2: when the database had come back, it took longer than the bound ``recovery`` until anything was acknowledged."""
    bound = evidence.bound("recovery", -1)
    for fault, seconds in waits.recoveries if bound >= 0 else ():
        if seconds * SECOND > bound:
            text = f"{seconds:.1f} s after {fault.name} was over, nothing was acknowledged yet, bound {bound / SECOND:.1f} s."
            yield Finding("L2", "recovery", text)


def failed_drains(evidence: Evidence) -> Iterator[Finding]:
    """L3: fresh clients did not read what was left within the bound ``drain``, or gave up."""
    bound = evidence.bound("drain", -1)
    for operation in evidence.of("drain"):
        if not operation.is_ok:
            yield Finding("L3", "drain", f"Group {operation.invoke.group} was not drained.", (operation,))
        elif 0 <= bound < operation.end - operation.start:
            text = f"Group {operation.invoke.group} was drained in {(operation.end - operation.start) / SECOND:.1f} s."
            yield Finding("L3", "drain", text, (operation,))


def hanging_calls(evidence: Evidence) -> Iterator[Finding]:
    """L5: a call took longer than the bound ``call``, without the time its process was paused; or a deadlock was no failure.

    A poll, a drain and a handler may wait as long as they like; a transaction counts from when it has messages.
    """
    bound = evidence.bound("call", -1)
    for operation in evidence.operations:
        completion = operation.completion
        if completion is None:
            continue
        if completion.sqlstate == _DEADLOCK and completion.type != "fail":
            yield Finding("L5", "deadlock", "A deadlock was reported as something else than a failure.", (operation,))
        if bound < 0 or operation.f in {"poll", "drain", "handle", "retain", "close"}:
            continue
        seconds = (completion.t - operation.start) / SECOND
        if completion.t - operation.start > bound and not evidence.is_lost(operation, operation.start, completion.t):
            text = f"A {operation.f} of {operation.client} took {seconds:.1f} s, bound {bound / SECOND:.1f} s."
            yield Finding("L5", "hanging", text, (operation,))


def grown_memory(evidence: Evidence) -> Iterator[Finding]:
    """L6: a process that told its size grew by more than the bound ``rss``, in bytes, since it told it for the first time."""
    bounds = evidence.plan.get("bounds")
    bound = bounds.get("rss") if isinstance(bounds, dict) else None
    first: dict[str, int] = {}
    told: set[str] = set()
    for note in evidence.notes["rss"]:
        size = note.more.get("bytes")
        if not isinstance(size, int) or not isinstance(bound, int):
            continue
        growth = size - first.setdefault(note.p, size)
        if growth > bound and note.p not in told:
            told.add(note.p)
            yield Finding("L6", "memory", f"{note.p} has grown by {growth:,} bytes, bound {bound:,}.")


def busy_idlers(evidence: Evidence) -> Iterator[Finding]:
    """L7: an idle member asked the database more often in a second than the bound ``queries``."""
    bounds = evidence.plan.get("bounds")
    bound = bounds.get("queries") if isinstance(bounds, dict) else None
    for note in evidence.notes["idle"]:
        queries, seconds = note.more.get("queries"), note.more.get("seconds")
        if not (isinstance(queries, int) and isinstance(seconds, (int, float)) and isinstance(bound, (int, float))):
            continue
        if queries > bound * seconds:
            yield Finding("L7", "idle", f"{note.p} asked {queries} times in {seconds:.1f} s with nothing to do.")


def residue(evidence: Evidence) -> Iterator[Finding]:
    """L8: sessions in a transaction, locks, members or other things were left when all clients were gone."""
    for row in evidence.final.residue if evidence.final is not None else ():
        if row.left > row.most:
            yield Finding("L8", "residue", f"{row.left} {row.what} were left; {row.most} may be.")


def fairness(evidence: Evidence) -> dict[str, float]:
    """Jain's index over the deliveries of each group's partitions: 1 if all had the same, 1/n if one had all. Only told."""
    counts: dict[str, list[int]] = defaultdict(list)
    for (group, topic, _), deliveries in evidence.deliveries.items():
        counts[f"{group} on {topic}"].append(len(deliveries))
    return {
        name: sum(each) ** 2 / (len(each) * sum(one * one for one in each))
        for name, each in counts.items()
        if any(each)
    }


def _acknowledged(evidence: Evidence) -> dict[Place, list[tuple[int, int]]]:
    """By place: offsets, and when each was acknowledged."""
    acknowledged: dict[Place, list[tuple[int, int]]] = defaultdict(list)
    for operation in evidence.transactions():
        if operation.is_ok:
            for row in rows_of(evidence, operation):
                acknowledged[row.topic, row.partition].append((row.offset, operation.end))
    return acknowledged


def _troubles(evidence: Evidence) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """For each group: the moments at which something happened to a member, or to the database, or was over."""
    members: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for operation in evidence.operations:
        if operation.reading is not None:
            members[operation.invoke.p].add(operation.reading)
    troubles: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for fault in evidence.faults:
        readings = {reading for who in fault.who for reading in members[who]} if fault.who else set(evidence.groups)
        for reading in readings:
            troubles[reading] += [(fault.start, fault.name), (min(fault.end, NEVER - 1), fault.name)]
    for name in ("crash", "end"):
        for moment, process in _whoms(evidence, name):
            for reading in members[process]:
                troubles[reading].append((moment, name))
    for operation in evidence.operations:
        if operation.reading is not None and operation.f in {"close", "seek"}:
            troubles[operation.reading].append((operation.start, operation.f))
        elif operation.reading is not None and operation.completion is not None and operation.is_failed:
            troubles[operation.reading].append((operation.completion.t, "an error"))
    return troubles


def _whoms(evidence: Evidence, kind: str) -> Iterator[tuple[int, str]]:
    for note in evidence.notes[kind]:
        who = note.more.get("who")
        for one in who if isinstance(who, list) else [who]:
            if isinstance(one, str):
                yield note.t, one


def _recovery(evidence: Evidence, fault: Fault) -> float | None:
    """How long after *fault* it was until an operation that began after it was acknowledged; None if none was tried."""
    tried = [one for one in evidence.transactions() if one.start >= fault.end]
    ends = [one.end for one in tried if one.is_ok]
    if ends:
        return (min(ends) - fault.end) / SECOND
    return (evidence.events[-1].t - fault.end) / SECOND if tried else None
