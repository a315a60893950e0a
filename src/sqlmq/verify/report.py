"""The verdict for people and programs: JSON, a Markdown report and JUnit XML."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias
from xml.etree import ElementTree as ET

from sqlmq.verify.judge.evidence import NEVER, SECOND, Operation
from sqlmq.verify.judge.findings import ANOMALIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sqlmq.verify.history import Event, Json
    from sqlmq.verify.judge.evidence import Evidence
    from sqlmq.verify.judge.findings import Finding
    from sqlmq.verify.judge.rules.liveness import Wait
    from sqlmq.verify.judge.verdict import Verdict

Result: TypeAlias = "dict[str, Json]"

EXAMPLES = 8
"""How many examples of an anomaly the report shows."""
_AROUND = 2
"""How many events of the same process are shown before and after those of an example."""
_WIDEST = 160

_SENTENCES = {
    "valid": "No anomaly was found: every promise was kept, as far as this run can show.",
    "invalid": "A promise was broken.",
    "liveness": "No message was lost, duplicated or reordered, but something took too long.",
    "unknown": "No anomaly was found, but the run proves too little.",
}


def result(verdict: Verdict) -> Result:
    """Return *verdict* as JSON."""
    evidence = verdict.evidence
    lines = _EventLines(evidence)
    return {
        "verdict": verdict.outcome,
        "exit_code": verdict.exit_code,
        "doubts": list(verdict.doubts),
        "counts": dict(verdict.counts),
        "seconds": lines.seconds(evidence.events[-1].t) if evidence.events else 0.0,
        "anomalies": [
            {
                "code": code,
                "name": ANOMALIES[code].name,
                "meaning": ANOMALIES[code].meaning,
                "category": ANOMALIES[code].category,
                "count": verdict.findings.counts[code],
                "kinds": {kind: count for (of, kind), count in verdict.findings.kinds.items() if of == code},
                "examples": [_example(finding, lines) for finding in found],
            }
            for code, found in verdict.findings.examples.items()
        ],
        "allowed": dict(verdict.allowed),
        "faults": _timeline(verdict, lines),
        "errors": _errors(evidence),
        "waits": {"after faults": _spread(verdict.waits.takeovers), "without faults": _spread(verdict.waits.starved)},
        "fairness": {name: round(index, 3) for name, index in verdict.fairness.items()},
        "plan": dict(evidence.plan),
    }


def write(verdict: Verdict, directory: Path, junit: Path | None = None) -> Result:
    """Write ``result.json`` and ``report.md`` to *directory*, and a JUnit file if *junit* is given; return the result."""
    found = result(verdict)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (directory / "report.md").write_text(markdown(verdict), encoding="utf-8")
    if junit is not None:
        junit.write_text(as_junit(verdict), encoding="utf-8")
    return found


def markdown(verdict: Verdict) -> str:
    """Return the report as Markdown."""
    return "\n".join(_report(verdict)) + "\n"


def _report(verdict: Verdict) -> Iterator[str]:
    lines = _EventLines(verdict.evidence)
    yield f"# sqlmq verify: {verdict.outcome}"
    yield ""
    yield _SENTENCES[verdict.outcome]
    yield from (f"- {doubt}" for doubt in verdict.doubts)
    yield ""
    yield from _table(("what", "count"), [(name, f"{count:,}") for name, count in verdict.counts.items()])
    yield "## Anomalies"
    yield ""
    rows = [
        (code, ANOMALIES[code].name, f"{count:,}", ANOMALIES[code].meaning)
        for code, count in sorted(verdict.findings.counts.items())
    ]
    yield from _table(("code", "name", "count", "meaning"), rows) if rows else iter(("None.", ""))
    if verdict.allowed:
        yield "Allowed: " + ", ".join(f"{name} ({count:,})" for name, count in verdict.allowed.items()) + "."
        yield ""
    for code, found in sorted(verdict.findings.examples.items()):
        yield f"### {code} {ANOMALIES[code].name}"
        yield ""
        for number, finding in enumerate(found[:EXAMPLES], start=1):
            yield f"{number}. {_shortened(finding.text, 400)} ({finding.kind})"
            yield ""
            if finding.operations:
                yield "```"
                yield from lines.around(finding.operations)
                yield "```"
                yield ""
    yield from _report_of_faults(verdict, lines)
    yield "## Plan"
    yield ""
    for name, fact in verdict.evidence.plan.items():
        yield f"- {name}: `{_shortened(json.dumps(fact), 500)}`"
    replay = verdict.evidence.plan.get("replay")
    if isinstance(replay, str):
        yield ""
        yield "To repeat the run:"
        yield ""
        yield f"```sh\n{replay}\n```"


def _report_of_faults(verdict: Verdict, lines: _EventLines) -> Iterator[str]:
    rows = [
        tuple("" if one is None else str(one) for one in fault.values())
        for fault in _timeline(verdict, lines)
        if isinstance(fault, dict)
    ]
    yield "## Faults"
    yield ""
    if rows:
        yield "`recovered`: seconds until work went on, from the end of a database fault or the start of a process fault."
        yield ""
        yield from _table(("fault", "at", "seconds", "target", "recovered"), rows)
    else:
        yield "None."
        yield ""
    for name, waits in (("after a fault", verdict.waits.takeovers), ("without a fault", verdict.waits.starved)):
        spread = _spread(waits)
        if spread:
            yield f"- Messages waited {name}: " + ", ".join(f"{what} {seconds} s" for what, seconds in spread.items())
    for group, index in verdict.fairness.items():
        yield f"- {group}: Jain's fairness index over its partitions: {index:.2f}"
    errors = _errors(verdict.evidence)
    for what, count in errors.items():
        yield f"- {what}: {count:,}"
    yield ""


def as_junit(verdict: Verdict) -> str:
    """Return a JUnit test suite with a case for each anomaly."""
    suite = ET.Element("testsuite", name="sqlmq verify", tests=str(len(ANOMALIES) + 1))
    failures = 0
    for code, anomaly in ANOMALIES.items():
        case = ET.SubElement(suite, "testcase", classname="sqlmq.verify", name=f"{code} {anomaly.name}")
        if found := verdict.findings.examples.get(code):
            failures += 1
            message = f"{verdict.findings.counts[code]:,} times: {anomaly.meaning}"
            failure = ET.SubElement(case, "failure", message=message)
            failure.text = "\n".join(finding.text for finding in found[:EXAMPLES])
    case = ET.SubElement(suite, "testcase", classname="sqlmq.verify", name="enough evidence")
    if verdict.doubts:
        failures += 1
        ET.SubElement(case, "failure", message=" ".join(verdict.doubts))
    suite.set("failures", str(failures))
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


class _EventLines:
    """Formats the events of a history as lines for people."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._start = evidence.events[0].t if evidence.events else 0
        self._of_process: dict[str, list[Event]] = {}

    def seconds(self, t: int) -> float:
        """Return the seconds since the start of the history."""
        return round((t - self._start) / SECOND, 3)

    def around(self, operations: Sequence[Operation]) -> list[str]:
        """Format the events of *operations*, marked with ``>``, with some events of the same processes around them, in order of time."""
        marked = {id(event) for operation in operations for event in _events(operation)}
        shown: dict[int, Event] = {}
        for operation in operations:
            events = self._events_of(operation.invoke.p)
            for place, event in enumerate(events):
                if id(event) in marked:
                    for near in events[max(0, place - _AROUND) : place + _AROUND + 1]:
                        shown[id(near)] = near
        ordered = sorted(shown.values(), key=lambda event: event.t)
        return [("> " if id(event) in marked else "  ") + self.line(event) for event in ordered]

    def line(self, event: Event) -> str:
        """Format one event."""
        parts = [f"{self.seconds(event.t):>10.4f} s  {event.p:<16} {event.type:<6} {event.f:<9}"]
        parts += [str(one) for one in (event.group, event.topic) if one is not None]
        parts += [] if event.partition is None else [f"/{event.partition}"]
        parts += [f"sends {', '.join(one.m for one in event.messages)}"] if event.messages else []
        parts += [f"at {', '.join(f'{one.partition}@{one.offset}' for one in event.placed)}"] if event.placed else []
        got = ", ".join(f"{one.partition}@{one.offset} {one.m}" for one in event.delivered)
        parts += [f"receives {got}"] if got else []
        parts += [f"offsets {list(event.offsets)}"] if event.offsets else []
        parts += [f"positions {dict(event.positions)}"] if event.positions else []
        parts += [one for one in (event.err, event.sqlstate) if one is not None]
        return _shortened(" ".join(parts), _WIDEST)

    def _events_of(self, process: str) -> list[Event]:
        if process not in self._of_process:
            self._of_process[process] = [event for event in self._evidence.events if event.p == process]
        return self._of_process[process]


def _events(operation: Operation) -> list[Event]:
    return [event for event in (operation.invoke, operation.completion) if event is not None]


def _example(finding: Finding, lines: _EventLines) -> Json:
    events = [event for operation in finding.operations for event in _events(operation)]
    return {"kind": finding.kind, "text": finding.text, "events": [lines.line(event) for event in events]}


def _timeline(verdict: Verdict, lines: _EventLines) -> list[Json]:
    """Return each fault, and how long it took until work went on."""
    recoveries = {id(fault): seconds for fault, seconds in verdict.waits.recoveries}
    timeline: list[Json] = []
    for fault in verdict.evidence.faults:
        affected = [wait.seconds for wait in verdict.waits.takeovers if fault.start <= wait.start <= fault.end]
        recovered = recoveries.get(id(fault), max(affected, default=None))
        timeline.append(
            {
                "fault": fault.name,
                "at": lines.seconds(fault.start),
                "seconds": None if fault.end == NEVER else round((fault.end - fault.start) / SECOND, 3),
                "target": ", ".join(fault.who) or "the database",
                "recovered": None if recovered is None else round(recovered, 3),
            }
        )
    return timeline


def _errors(evidence: Evidence) -> dict[str, Json]:
    """Count the calls that ended with each error."""
    counts = Counter(
        f"{operation.f} {operation.completion.type} {operation.completion.err or ''}".strip()
        for operation in evidence.operations
        if operation.completion is not None and operation.completion.type in {"fail", "info"}
    )
    return dict(counts.most_common(30))


def _spread(waits: Sequence[Wait]) -> dict[str, Json]:
    seconds = sorted(wait.seconds for wait in waits)
    if not seconds:
        return {}
    return {
        "median": round(seconds[len(seconds) // 2], 3),
        "99 %": round(seconds[len(seconds) * 99 // 100], 3),
        "max": round(seconds[-1], 3),
    }


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 4] + " ..."


def summary(verdict: Verdict, directory: Path) -> str:
    """Summarize *verdict* for people; the report is in *directory*."""
    counts = ", ".join(f"{count:,} {name}" for name, count in verdict.counts.items())
    lines = [f"{verdict.outcome}: {counts}.", *verdict.doubts]
    for code, found in sorted(verdict.findings.examples.items()):
        lines.append(f"{code} {found[0].anomaly.name}, {verdict.findings.counts[code]:,} times: {found[0].text}")
    lines += [f"Allowed: {name}, {count:,} times." for name, count in verdict.allowed.items()]
    return "\n".join([*lines, f"Report: {directory / 'report.md'}"])
