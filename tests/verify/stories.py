"""Histories written by hand, as short as they can be: who did what, from when to when, in milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.verify.history import Json, event_of, final_of
from sqlmq.verify.judge.verdict import Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlmq.verify.history import Final

MS = 1_000_000


def sent(m: str, **more: Json) -> dict[str, Json]:
    """A message as it is sent: its hash is its id, so that a story can give it another one."""
    return {"m": m, "h": m, "n": 1, **more}


def got(m: str | None, offset: int, partition: int = 0, **more: Json) -> dict[str, Json]:
    """A message as it is delivered."""
    return {"m": m, "h": m or "", "partition": partition, "offset": offset, **more}


class Story:
    """A history and a state at the end, built line by line."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Json]] = []
        self.rows: list[dict[str, Json]] = []
        self.has_end = True

    def line(self, p: str, kind: str, f: str, at: float, **fields: Json) -> int:
        number = len(self.lines)
        self.lines.append({"i": number, "t": int(at * MS), "p": p, "type": kind, "f": f, **fields})
        return number

    def note(self, f: str, at: float = 0, p: str = "parent", **fields: Json) -> None:
        self.line(p, "note", f, at, **fields)

    def plan(self, **fields: Json) -> None:
        self.note("plan", 0, "parent", **fields)

    def group(self, name: str = "g", **fields: Json) -> None:
        self.note("group", 0, "parent", group=name, topic="t", **fields)

    def call(
        self,
        f: str,
        start: float,
        end: float | None,
        p: str = "p",
        outcome: str = "ok",
        answer: Mapping[str, Json] | None = None,
        **fields: Json,
    ) -> None:
        """An operation; without an end it has no completion."""
        of = self.line(p, "invoke", f, start, **fields)
        if end is not None:
            told = {} if outcome == "ok" else {"err": "Error"}
            self.line(p, outcome, f, end, of=of, **told, **(answer or {}))

    def send(
        self,
        ms: Sequence[str],
        start: float = 1,
        end: float | None = 2,
        p: str = "p",
        outcome: str = "ok",
        **more: Json,
    ) -> None:
        """One call of produce_many to topic t."""
        self.call("send", start, end, p, outcome, topic="t", messages=[sent(m, **more) for m in ms])

    def poll(
        self,
        got_: Sequence[dict[str, Json]],
        start: float,
        end: float | None,
        p: str = "c",
        outcome: str = "ok",
        **more: Json,
    ) -> None:
        self.call("poll", start, end, p, outcome, {"delivered": list(got_), **more}, group="g", topic="t", **more)

    def done(self, offsets: Sequence[int], at: float, p: str = "c", partition: int = 0) -> None:
        self.note("done", at, p, group="g", topic="t", partition=partition, offsets=list(offsets))

    def block(
        self,
        got_: Sequence[dict[str, Json]],
        start: float,
        end: float | None,
        p: str = "c",
        outcome: str = "ok",
        **more: Json,
    ) -> None:
        """A transaction of the group g on topic t."""
        self.call("txn", start, end, p, outcome, None, group="g", topic="t", delivered=list(got_), **more)

    def handle(
        self,
        got_: Sequence[dict[str, Json]],
        start: float,
        end: float | None,
        p: str = "c",
        outcome: str = "ok",
        **more: Json,
    ) -> None:
        self.call("handle", start, end, p, outcome, None, group="g", topic="t", delivered=list(got_), **more)

    def drained(self, at: float = 1000) -> None:
        self.call("drain", at, at + 1, "parent", group="g", topic="t")

    def log(self, ms: Sequence[str | None], partition: int = 0, start: int = 0, topic: str = "t", **more: Json) -> None:
        """What a partition holds at the end."""
        about: dict[str, Json] = {"topic": topic, "partition": partition}
        for offset, m in enumerate(ms, start):
            self.rows.append({"row": "message", **about, "offset": offset, "m": m, "h": m or "", **more})
        self.rows.append({"row": "partition", **about, "start": start, "end": start + len(ms)})

    def row(self, row: str, **fields: Json) -> None:
        self.rows.append({"row": row, **fields})

    def position(self, offset: int, partition: int = 0) -> None:
        self.row("position", group="g", topic="t", partition=partition, offset=offset)

    def final(self) -> Final | None:
        return final_of(self.rows) if self.has_end else None

    def verdict(self, allow: Collection[str] = ()) -> Verdict:
        events = sorted(map(event_of, self.lines), key=lambda event: event.t)
        return judge(events, self.final(), allow=allow, least_acknowledged=0)

    def found(self) -> dict[str, set[str]]:
        """By code: the kinds of what the judge finds."""
        found: dict[str, set[str]] = {}
        for code, kind in self.verdict().findings.kinds:
            found.setdefault(code, set()).add(kind)
        return found


def three() -> Story:
    """Three messages, one after the other, in partition 0."""
    story = Story()
    for number, m in enumerate("abc"):
        story.send([m], 1 + 0.1 * number, 1.05 + 0.1 * number)
    story.log(["a", "b", "c"])
    return story


def handed(*offsets: int) -> list[dict[str, Json]]:
    return [{"m": "abc"[offset], "h": "abc"[offset], "partition": 0, "offset": offset} for offset in offsets]


def blocks() -> Story:
    story = three()
    story.group(mode="transaction")
    return story
