"""What the judge knows of a run: operations with their outcomes, what was sent and delivered, and which faults hit which client.

The evidence is built once, in order of time, so that each rule is a single pass over it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from sqlmq.verify.history import Delivered, Event, Final, FinalMessage, Json, Sent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NEVER = 1 << 62
"""A moment after all others: the end of an operation without a completion."""
SECOND = 1_000_000_000

TopicPartition: TypeAlias = tuple[str, int]
"""A topic and the number of one of its partitions."""
GroupTopic: TypeAlias = tuple[str, str]
"""A group and the topic that it reads."""
Share: TypeAlias = tuple[str, str, int]
"""A group, a topic and the number of a partition: what a group has read of one partition."""
Mode = Literal["lease", "transaction", "run"]


@dataclass(slots=True)
class Operation:
    """An invocation and its completion."""

    invoke: Event
    completion: Event | None = None

    @property
    def f(self) -> str:
        """The name of the operation."""
        return self.invoke.f

    @property
    def client(self) -> str:
        """The client: a consumer or producer of a process."""
        return client_of(self.invoke)

    @property
    def start(self) -> int:
        """When the invocation was recorded."""
        return self.invoke.t

    @property
    def called_at(self) -> int:
        """When the call began. A transaction is recorded later, once its messages are known."""
        began = self.invoke.more.get("began")
        return began if isinstance(began, int) else self.invoke.t

    @property
    def end(self) -> int:
        """When the operation ended; NEVER if its outcome is unknown."""
        return NEVER if self.completion is None or self.completion.type == "info" else self.completion.t

    @property
    def is_ok(self) -> bool:
        """Whether the operation certainly happened."""
        return self.completion is not None and self.completion.type == "ok" and not self.is_deferred

    @property
    def is_failed(self) -> bool:
        """Whether the operation certainly did not happen."""
        return self.completion is not None and self.completion.type == "fail"

    @property
    def is_unknown(self) -> bool:
        """Whether the outcome is unknown."""
        return not (self.is_ok or self.is_failed)

    @property
    def is_deferred(self) -> bool:
        """Whether the handler's return proves nothing, because its transaction commits only afterwards."""
        return self.f == "handle" and self.has_flag("transaction")

    @property
    def delivered(self) -> tuple[Delivered, ...]:
        """The delivered messages: known when a poll returns, or when a handler or transaction begins."""
        if self.invoke.delivered or self.completion is None:
            return self.invoke.delivered
        return self.completion.delivered

    @property
    def delivered_at(self) -> int:
        """When the messages were certainly delivered."""
        return self.start if self.invoke.delivered or self.completion is None else self.completion.t

    @property
    def group_topic(self) -> GroupTopic | None:
        """The group and the topic that it read in this operation."""
        return (
            None if self.invoke.group is None or self.invoke.topic is None else (self.invoke.group, self.invoke.topic)
        )

    def has_flag(self, flag: str) -> bool:
        """Whether *flag* is true in the invocation."""
        return self.invoke.more.get(flag) is True


class SendAttempt(NamedTuple):
    """A message that a client tried to send."""

    operation: Operation
    sent: Sent
    topic: str
    is_undone: bool
    """Whether it was in a savepoint that was rolled back."""

    @property
    def is_appended_later(self) -> bool:
        """Whether it is appended after its transaction, because it is delayed or staged."""
        return self.sent.due is not None or self.operation.has_flag("staged")


class GroupDelivery(NamedTuple):
    """A message as a group received it, and in which operation."""

    operation: Operation
    message: Delivered


@dataclass(slots=True)
class Intervals:
    """Intervals of time, which can be searched for an overlap."""

    _intervals: list[tuple[int, int]] = field(default_factory=list)
    _latest_ends: list[int] = field(default_factory=list)

    def add(self, start: int, end: int) -> None:
        """Add the interval from *start* to *end*."""
        self._intervals.append((start, end))
        self._latest_ends.clear()

    def overlaps(self, start: int, end: int) -> bool:
        """Whether one of them overlaps the interval from *start* to *end*, both included."""
        if not self._latest_ends:
            self._intervals.sort()
            latest = -1
            for _, one_end in self._intervals:
                latest = max(latest, one_end)
                self._latest_ends.append(latest)
        count = bisect_right(self._intervals, (end, NEVER))
        return count > 0 and self._latest_ends[count - 1] >= start


@dataclass(slots=True)
class InjectedFault:
    """A fault that the nemesis injected."""

    name: str
    start: int
    end: int
    who: tuple[str, ...]
    """The processes that it hit; empty for a fault of the database."""


@dataclass(slots=True)
class Evidence:
    """Everything known of a run."""

    events: Sequence[Event]
    final: Final | None
    operations: list[Operation] = field(default_factory=list)
    notes: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    attempts: dict[str, SendAttempt] = field(default_factory=dict)
    reused_ids: list[SendAttempt] = field(default_factory=list)
    """Attempts with an id that was used before: an error of the workload."""
    deliveries: dict[Share, list[GroupDelivery]] = field(default_factory=lambda: defaultdict(list))
    """In order of the time at which each was certainly delivered."""
    log: dict[TopicPartition, list[FinalMessage]] = field(default_factory=lambda: defaultdict(list))
    """The final log in order of offset; empty without a final state."""
    log_rows: dict[str, list[FinalMessage]] = field(default_factory=lambda: defaultdict(list))
    """The rows of the final log by message id."""
    groups: dict[GroupTopic, Event | None] = field(default_factory=dict)
    """The ``group`` note of each group that read anything."""
    faults: list[InjectedFault] = field(default_factory=list)
    unanswered: dict[GroupTopic, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    """Polls with an unknown outcome: they may have received any message."""
    decided: set[GroupTopic] = field(default_factory=set)
    """Groups for which an operator has decided about parked messages."""
    undecidable: set[GroupTopic] = field(default_factory=set)
    """Groups for which the history does not say about which parked messages."""
    losses: dict[str, Intervals] = field(default_factory=lambda: defaultdict(Intervals))
    """By process or client: when it may have lost its partitions, without an error of its own."""
    failed_calls: dict[str, Intervals] = field(default_factory=lambda: defaultdict(Intervals))
    """By client: its calls that failed or have an unknown outcome."""
    database_disturbed: Intervals = field(default_factory=Intervals)
    """When the database itself had a fault."""
    plan: Mapping[str, Json] = field(default_factory=dict)
    _by_kind: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    _work: dict[GroupTopic, tuple[list[int], list[int]]] = field(default_factory=dict)
    """Start and end times of the operations of a group, both sorted."""

    def of(self, *kinds: str) -> list[Operation]:
        """Return the operations of these kinds in order of their start."""
        if not self._by_kind:
            for operation in self.operations:
                self._by_kind[operation.f].append(operation)
        found = [self._by_kind[kind] for kind in kinds if kind in self._by_kind]
        return found[0] if len(found) == 1 else sorted(chain(*found), key=lambda operation: operation.start)

    def transactions(self) -> Iterator[Operation]:
        """Iterate over the operations that may have written messages. Each is one transaction."""
        return (operation for operation in self.operations if operation.invoke.messages)

    def mode(self, group_topic: GroupTopic) -> Mode:
        """Return how the group reads."""
        note = self.groups.get(group_topic)
        value = None if note is None else note.more.get("mode")
        return "transaction" if value == "transaction" else "run" if value == "run" else "lease"

    def group_fact(self, group_topic: GroupTopic, what: str) -> Json:
        """Return the field *what* of the group's note."""
        note = self.groups.get(group_topic)
        return None if note is None else note.more.get(what)

    def group_start(self, share: Share) -> int:
        """Return the offset at which the group began."""
        starts = self.group_fact(share[:2], "start")
        start = starts.get(str(share[2]), 0) if isinstance(starts, dict) else 0
        return start if isinstance(start, int) else 0

    def is_moved(self, share: Share) -> bool:
        """Whether the group may have been moved in this partition, by seek or reset."""
        return any(
            operation.group_topic == share[:2] and not operation.is_failed and _concerns(operation, share[2])
            for operation in self.of("seek")
        )

    def has_unknown_completions(self, share: Share) -> bool:
        """Whether messages may be completed without a record.

        They were committed on delivery, or an operator has decided about parked messages that the history does not name.
        """
        return self.group_fact(share[:2], "ack") == "on_delivery" or share[:2] in self.undecidable

    def may_have_lost_partitions(self, who: Operation, start: int, end: int) -> bool:
        """Whether the client of *who* may have lost its partitions between *start* and *end*: killed, paused, ended, fenced, disconnected."""
        return (
            self.database_disturbed.overlaps(start, end)
            or self.losses[who.client].overlaps(start, end)
            or self.losses[who.invoke.p].overlaps(start, end)
        )

    def may_redeliver_after(self, who: Operation, start: int, end: int) -> bool:
        """Whether what the client of *who* had may be redelivered: it may have lost its partitions, or one of its calls failed."""
        return self.failed_calls[who.client].overlaps(start, end) or self.may_have_lost_partitions(who, start, end)

    def count_concurrent(self, group_topic: GroupTopic, start: int, end: int) -> int:
        """Count the operations of the group that overlap the interval from *start* to *end*."""
        if not self._work:
            for operation in self.operations:
                if operation.group_topic is not None:
                    starts, ends = self._work.setdefault(operation.group_topic, ([], []))
                    starts.append(operation.called_at)
                    ends.append(operation.end)
            for both in self._work.values():
                for moments in both:
                    moments.sort()
        starts, ends = self._work.get(group_topic, ([], []))
        return bisect_right(starts, end) - bisect_left(ends, start)

    def bound(self, name: str, default: float) -> int:
        """Return a bound of the plan in nanoseconds."""
        bounds = self.plan.get("bounds")
        seconds = bounds.get(name, default) if isinstance(bounds, dict) else default
        return int((seconds if isinstance(seconds, (int, float)) else default) * SECOND)

    def has_retention(self, topic: str) -> bool:
        """Whether retention may have deleted messages of *topic*."""
        trimmed = self.final is not None and any(
            start > 0 for (of, _), (start, _) in self.final.ends.items() if of == topic
        )
        return trimmed or self.topic_fact(topic, "retention") is True

    def topic_fact(self, topic: str, what: str) -> Json:
        """Return the field *what* of *topic* in the plan."""
        topics = self.plan.get("topics")
        about = topics.get(topic) if isinstance(topics, dict) else None
        return about.get(what) if isinstance(about, dict) else None

    def log_start(self, place: TopicPartition) -> int:
        """Return the oldest offset that is kept."""
        return 0 if self.final is None else self.final.ends.get(place, (0, 0))[0]


def client_of(event: Event) -> str:
    """Return the client of *event*: a consumer or producer of its process, or the process if it has only one."""
    return event.p if event.client is None else f"{event.p}/{event.client}"


def _concerns(operation: Operation, partition: int) -> bool:
    positions = operation.invoke.positions
    return not positions or partition in positions


def ends_of(snapshot: Operation) -> dict[int, int]:
    """Return the end of each partition in a snapshot."""
    return _numbers(snapshot, "ends")


def starts_of(snapshot: Operation) -> dict[int, int]:
    """Return the oldest offset of each partition, in a snapshot or after retention."""
    return _numbers(snapshot, "starts")


def _numbers(snapshot: Operation, which: str) -> dict[int, int]:
    value = None if snapshot.completion is None else snapshot.completion.more.get(which)
    items = value.items() if isinstance(value, dict) else ()
    return {int(partition): number for partition, number in items if isinstance(number, int)}


def described(share: Share) -> str:
    """Describe *share* for a finding."""
    group, topic, partition = share
    return f"{group} on {topic}/{partition}"


def ranges(numbers: Iterable[int]) -> str:
    """Format numbers as ranges: ``3-7, 9``."""
    ranges_: list[str] = []
    first = last = None
    for number in [*sorted(set(numbers)), None]:
        if last is not None and first is not None and number != last + 1:
            ranges_.append(str(first) if first == last else f"{first}-{last}")
            first = None
        first = number if first is None else first
        last = number
    return ", ".join(ranges_)
