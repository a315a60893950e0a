"""What the judge knows of a run: invocations with their completions, who sent and got what, and what disturbed whom.

Everything is made once, in one pass in the order of time, so that each anomaly can be looked for in a pass of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from sqlmq.verify.history import Delivered, Event, Final, Json, LogRow, Sent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NEVER = 1 << 62
"""A moment after everything: when an operation without a completion ended."""
SECOND = 1_000_000_000

Place: TypeAlias = tuple[str, int]
"""A topic, and the number of one of its partitions."""
Reading: TypeAlias = tuple[str, str]
"""A group, and the topic that it reads."""
Share: TypeAlias = tuple[str, str, int]
"""A group, a topic, and the number of one of its partitions."""
Mode = Literal["lease", "transaction", "run"]


@dataclass(slots=True)
class Operation:
    """An invocation and what came of it."""

    invoke: Event
    completion: Event | None = None

    @property
    def f(self) -> str:
        """What was tried."""
        return self.invoke.f

    @property
    def client(self) -> str:
        """Who tried it: a consumer or producer of a process."""
        return client_of(self.invoke)

    @property
    def start(self) -> int:
        """When it began."""
        return self.invoke.t

    @property
    def began(self) -> int:
        """When the call began: a transaction is written down once its messages are known."""
        began = self.invoke.more.get("began")
        return began if isinstance(began, int) else self.invoke.t

    @property
    def end(self) -> int:
        """When it was over; NEVER if nobody knows."""
        return NEVER if self.completion is None or self.completion.type == "info" else self.completion.t

    @property
    def is_ok(self) -> bool:
        """Whether it certainly happened."""
        return self.completion is not None and self.completion.type == "ok" and not self.is_deferred

    @property
    def is_failed(self) -> bool:
        """Whether it certainly did not."""
        return self.completion is not None and self.completion.type == "fail"

    @property
    def is_unknown(self) -> bool:
        """Whether nobody knows."""
        return not (self.is_ok or self.is_failed)

    @property
    def is_deferred(self) -> bool:
        """Whether its handler's return says nothing yet: the transaction around it was committed afterwards, or not."""
        return self.f == "handle" and self.is_set("transaction")

    @property
    def delivered(self) -> tuple[Delivered, ...]:
        """What was delivered: polls know it when they return, handlers and transactions when they begin."""
        if self.invoke.delivered or self.completion is None:
            return self.invoke.delivered
        return self.completion.delivered

    @property
    def delivered_at(self) -> int:
        """When it was certainly delivered."""
        return self.start if self.invoke.delivered or self.completion is None else self.completion.t

    @property
    def reading(self) -> Reading | None:
        """Which group read which topic in it."""
        return (
            None if self.invoke.group is None or self.invoke.topic is None else (self.invoke.group, self.invoke.topic)
        )

    def is_set(self, flag: str) -> bool:
        """Whether the invocation has *flag*."""
        return self.invoke.more.get(flag) is True


class Attempt(NamedTuple):
    """A message that somebody tried to send."""

    operation: Operation
    sent: Sent
    topic: str
    is_undone: bool
    """In a savepoint that was rolled back."""

    @property
    def is_later(self) -> bool:
        """Whether it comes into the log after its transaction: it is delayed, or was staged."""
        return self.sent.due is not None or self.operation.is_set("staged")


class Delivery(NamedTuple):
    """A message as a group got it, and in which operation."""

    operation: Operation
    message: Delivered


@dataclass(slots=True)
class Spans:
    """Stretches of time, asked whether one of them touches another stretch."""

    _spans: list[tuple[int, int]] = field(default_factory=list)
    _latest_ends: list[int] = field(default_factory=list)

    def add(self, start: int, end: int) -> None:
        """Add the time from *start* to *end*."""
        self._spans.append((start, end))
        self._latest_ends.clear()

    def touches(self, start: int, end: int) -> bool:
        """Whether any of them has a moment from *start* to *end*."""
        if not self._latest_ends:
            self._spans.sort()
            latest = -1
            for _, one_end in self._spans:
                latest = max(latest, one_end)
                self._latest_ends.append(latest)
        count = bisect_right(self._spans, (end, NEVER))
        return count > 0 and self._latest_ends[count - 1] >= start


@dataclass(slots=True)
class Fault:
    """Something that was done to the run."""

    name: str
    start: int
    end: int
    who: tuple[str, ...]
    """The processes; nobody in particular if it was done to the database."""


@dataclass(slots=True)
class Evidence:
    """All that is known of a run."""

    events: Sequence[Event]
    final: Final | None
    operations: list[Operation] = field(default_factory=list)
    notes: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    attempts: dict[str, Attempt] = field(default_factory=dict)
    reused: list[Attempt] = field(default_factory=list)
    """Second attempts with an id that had one: the workload is wrong."""
    deliveries: dict[Share, list[Delivery]] = field(default_factory=lambda: defaultdict(list))
    """In order of the moment at which each was certainly delivered."""
    log: dict[Place, list[LogRow]] = field(default_factory=lambda: defaultdict(list))
    """The final log in order of offset; empty without one."""
    places: dict[str, list[LogRow]] = field(default_factory=lambda: defaultdict(list))
    """Where each message is in the final log."""
    groups: dict[Reading, Event | None] = field(default_factory=dict)
    """What was said of each group that read anything."""
    faults: list[Fault] = field(default_factory=list)
    unanswered: dict[Reading, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    """Polls whose answer nobody knows: they may have got anything."""
    decided: set[Reading] = field(default_factory=set)
    """Groups about whose parked messages somebody has decided."""
    undecidable: set[Reading] = field(default_factory=set)
    """Those of them where it is not said about which."""
    lost: dict[str, Spans] = field(default_factory=lambda: defaultdict(Spans))
    """By process or client: when it may have lost what it had, by no fault of its own."""
    erred: dict[str, Spans] = field(default_factory=lambda: defaultdict(Spans))
    """By client: its calls that failed, or that nobody knows of."""
    database: Spans = field(default_factory=Spans)
    """When the database itself was disturbed."""
    plan: Mapping[str, Json] = field(default_factory=dict)
    _by_kind: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    _work: dict[Reading, tuple[list[int], list[int]]] = field(default_factory=dict)
    """When operations of a group began, and when they ended, both sorted."""

    def of(self, *kinds: str) -> list[Operation]:
        """The operations of these kinds, in order of their beginning."""
        if not self._by_kind:
            for operation in self.operations:
                self._by_kind[operation.f].append(operation)
        found = [self._by_kind[kind] for kind in kinds if kind in self._by_kind]
        return found[0] if len(found) == 1 else sorted(chain(*found), key=lambda operation: operation.start)

    def transactions(self) -> Iterator[Operation]:
        """Whatever may have written messages: each is one transaction."""
        return (operation for operation in self.operations if operation.invoke.messages)

    def mode(self, reading: Reading) -> Mode:
        """How the group reads."""
        note = self.groups.get(reading)
        said = None if note is None else note.more.get("mode")
        return "transaction" if said == "transaction" else "run" if said == "run" else "lease"

    def said(self, reading: Reading, what: str) -> Json:
        """What the group's note says of *what*."""
        note = self.groups.get(reading)
        return None if note is None else note.more.get(what)

    def start_of(self, share: Share) -> int:
        """The offset at which the group began."""
        starts = self.said(share[:2], "start")
        start = starts.get(str(share[2]), 0) if isinstance(starts, dict) else 0
        return start if isinstance(start, int) else 0

    def is_moved(self, share: Share) -> bool:
        """Whether somebody may have moved the group in this partition, by seek or reset."""
        return any(
            operation.reading == share[:2] and not operation.is_failed and _concerns(operation, share[2])
            for operation in self.of("seek")
        )

    def is_lenient(self, share: Share) -> bool:
        """Whether messages may be done with without a word about each.

        They were committed before they were handed out, or somebody has decided about some and did not say which.
        """
        return self.said(share[:2], "ack") == "on_delivery" or share[:2] in self.undecidable

    def is_lost(self, who: Operation, start: int, end: int) -> bool:
        """Whether the client of *who* may have lost what it had from *start* to *end*: killed, paused, ended, fenced, cut off."""
        return (
            self.database.touches(start, end)
            or self.lost[who.client].touches(start, end)
            or self.lost[who.invoke.p].touches(start, end)
        )

    def is_disturbed(self, who: Operation, start: int, end: int) -> bool:
        """Whether it may have lost or given back what it had, by an error of a call too."""
        return self.erred[who.client].touches(start, end) or self.is_lost(who, start, end)

    def at_work(self, reading: Reading, start: int, end: int) -> int:
        """How many operations of the group were going on at some time from *start* to *end*."""
        if not self._work:
            for operation in self.operations:
                if operation.reading is not None:
                    starts, ends = self._work.setdefault(operation.reading, ([], []))
                    starts.append(operation.began)
                    ends.append(operation.end)
            for both in self._work.values():
                for moments in both:
                    moments.sort()
        starts, ends = self._work.get(reading, ([], []))
        return bisect_right(starts, end) - bisect_left(ends, start)

    def bound(self, name: str, default: float) -> int:
        """A bound of the plan, in nanoseconds."""
        bounds = self.plan.get("bounds")
        seconds = bounds.get(name, default) if isinstance(bounds, dict) else default
        return int((seconds if isinstance(seconds, (int, float)) else default) * SECOND)

    def has_retention(self, topic: str) -> bool:
        """Whether messages of *topic* may be gone from its beginning."""
        trimmed = self.final is not None and any(
            start > 0 for (of, _), (start, _) in self.final.ends.items() if of == topic
        )
        return trimmed or self.topic_says(topic, "retention") is True

    def topic_says(self, topic: str, what: str) -> Json:
        """What the plan says about *what* of *topic*."""
        topics = self.plan.get("topics")
        about = topics.get(topic) if isinstance(topics, dict) else None
        return about.get(what) if isinstance(about, dict) else None

    def start_in_log(self, place: Place) -> int:
        """The oldest offset that is kept."""
        return 0 if self.final is None else self.final.ends.get(place, (0, 0))[0]


def client_of(event: Event) -> str:
    """Who did it: a consumer or producer of a process, or the process if it has one only."""
    return event.p if event.client is None else f"{event.p}/{event.client}"


def _concerns(operation: Operation, partition: int) -> bool:
    positions = operation.invoke.positions
    return not positions or partition in positions


def ends_of(look: Operation) -> dict[int, int]:
    """The end of each partition, as a snapshot showed it."""
    return _numbers(look, "ends")


def starts_of(look: Operation) -> dict[int, int]:
    """The oldest offset of each partition, as a snapshot showed it, or retention left it."""
    return _numbers(look, "starts")


def _numbers(look: Operation, which: str) -> dict[int, int]:
    said = None if look.completion is None else look.completion.more.get(which)
    items = said.items() if isinstance(said, dict) else ()
    return {int(partition): number for partition, number in items if isinstance(number, int)}


def named(share: Share) -> str:
    """Tell whose share of what it is."""
    group, topic, partition = share
    return f"{group} on {topic}/{partition}"


def ranges(numbers: Iterable[int]) -> str:
    """Tell numbers shortly: ``3-7, 9``."""
    told: list[str] = []
    first = last = None
    for number in [*sorted(set(numbers)), None]:
        if last is not None and first is not None and number != last + 1:
            told.append(str(first) if first == last else f"{first}-{last}")
            first = None
        first = number if first is None else first
        last = number
    return ", ".join(told)
