"""Correct histories, made at random: a queue in memory that keeps every promise, used by clients that are killed.

Nothing runs, and no time passes: clients are generators that say how long each step takes, and take turns in the order of
their clocks. What one does between two steps happens at once, like a commit. So calls overlap as they do in processes.
"""

from __future__ import annotations

import heapq
import itertools
import random
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from sqlmq.verify.history import Delivered, Placed, Sent, event_of, final_of
from tests.verify.selftest.simulated_members import lease_member, run_member, transaction_member

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlmq.verify.history import Event, Final, Json

Line: TypeAlias = "dict[str, Json]"
Steps: TypeAlias = "Generator[float]"
"""What a client does: after each step, the seconds until the next."""

ORDERS, TRIMMED, COPIES = "orders", "trimmed", "copies"
START_NS = 1_000_000_000_000
"""The clock at the beginning."""
DATABASE_US = 1_700_000_000_000_000
"""The database's clock then."""


@dataclass(slots=True)
class Stored:
    """A message in the log."""

    m: str
    h: str
    key: str | None
    at: int


@dataclass(slots=True)
class GroupState:
    """What the database knows of a group in one partition."""

    position: int = 0
    owner: str | None = None
    free_at: float = 0.0
    epoch: int = 0
    parked: dict[int, tuple[str, int]] = field(default_factory=dict)
    """By offset: state and attempts."""


class History:
    """A history as lines of JSON, and the state at the end: what edits are made to."""

    def __init__(self, lines: list[Line], rows: list[Line]) -> None:
        self.lines = lines
        self.rows = rows

    def events(self) -> list[Event]:
        """The events, in order of time."""
        return sorted(map(event_of, self.lines), key=lambda event: event.t)

    def final(self) -> Final:
        """The state at the end."""
        return final_of(self.rows)


class Simulation:
    """A queue with three topics, one of which is trimmed, and groups that read by lease, in transactions, and with a handler."""

    def __init__(self, seed: int, *, sends: int = 150, partitions: int = 3, faults: bool = True) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.partitions = partitions
        self.lines: list[Line] = []
        self.log: dict[tuple[str, int], list[Stored]] = {
            (topic, partition): [] for topic in (ORDERS, TRIMMED, COPIES) for partition in range(partitions)
        }
        self.starts: dict[tuple[str, int], int] = defaultdict(int)
        self.states: dict[tuple[str, str, int], GroupState] = defaultdict(GroupState)
        self.effects: dict[tuple[str | None, str], int] = defaultdict(int)
        self.staged: list[tuple[int, str, Stored]] = []
        self.sends_left = sends
        self.producers_left = 0
        self.now = 0.0
        self._numbers: dict[str, itertools.count[int]] = defaultdict(itertools.count)
        self._messages: dict[str, itertools.count[int]] = defaultdict(itertools.count)
        self._faults = itertools.count()
        self._turn = itertools.count()
        self._queue: list[tuple[float, int, Steps]] = []

    # What clients write down.

    def write(self, process: str, kind: str, f: str, **fields: object) -> int:
        """Write a line of *process*; return its number."""
        number = next(self._numbers[process])
        line: Line = {"i": number, "t": START_NS + int(self.now * 1e9), "p": process, "type": kind, "f": f}
        self.lines.append(line | {name: plain(value) for name, value in fields.items()})
        return number

    def new_message(
        self, process: str, *, key: str | None = None, topic: str | None = None, due: int | None = None
    ) -> Sent:
        """A message that nobody has tried to send before."""
        m = f"r1:{process}:{next(self._messages[process])}"
        return Sent(m, f"{zlib.crc32(m.encode()):08x}", len(m), key, topic, None, due)

    def append(self, topic: str, sent: Sent) -> Placed:
        """Put a message into the log."""
        partition = zlib.crc32((sent.key or sent.m).encode()) % self.partitions
        log = self.log[topic, partition]
        log.append(Stored(sent.m, sent.h, sent.key, self.database_us()))
        return Placed(sent.m, partition, len(log) - 1)

    def delivered(self, topic: str, partition: int, offset: int) -> Delivered:
        """A message as a group gets it."""
        stored = self.log[topic, partition][offset]
        return Delivered(partition, offset, stored.m, stored.h, stored.key, stored.at)

    def database_us(self) -> int:
        """The database's clock."""
        return DATABASE_US + int(self.now * 1e6)

    def chance(self, share: float) -> bool:
        """True in *share* of all cases."""
        return self.random.random() < share

    def is_killed(self, process: str, share: float = 0.01) -> bool:
        """Kill *process*, perhaps."""
        if not (self.faults and self.sends_left > 0 and self.chance(share)):
            return False
        number = next(self._faults)
        self.write("parent", "note", "nemesis", action="start", fault="kill", id=number, who=[process])
        self.write("parent", "note", "crash", who=process)
        self.write("parent", "note", "nemesis", action="stop", fault="kill", id=number, who=[process])
        return True

    def begin_pause(self, process: str) -> int:
        """Stop *process*; return the number of the fault."""
        number = next(self._faults)
        self.write("parent", "note", "nemesis", action="start", fault="pause", id=number, who=[process])
        return number

    def end_pause(self, process: str, number: int) -> None:
        """Let *process* go on."""
        self.write("parent", "note", "nemesis", action="stop", fault="pause", id=number, who=[process])

    def is_over(self) -> bool:
        """Whether nothing will be sent any more."""
        return not self.producers_left and not self.staged

    def is_drained(self, group: str, topic: str) -> bool:
        """Whether the group has read all there is."""
        return self.is_over() and all(
            state.position == len(self.log[topic, partition])
            and not any(what == "waiting" for what, _ in state.parked.values())
            for partition in range(self.partitions)
            for state in [self.states[group, topic, partition]]
        )

    # The run.

    def start(self, steps: Steps, after: float = 0.0) -> None:
        """Have a client take its steps."""
        heapq.heappush(self._queue, (self.now + after, next(self._turn), steps))

    def run(self) -> History:
        """Let all clients take their steps; return what they wrote."""
        self._plan()
        groups: list[tuple[str, str, Callable[[Simulation, str, str, str], Steps]]] = [
            ("billing", ORDERS, lease_member),
            ("totals", ORDERS, transaction_member),
            ("mails", ORDERS, run_member),
            ("clicks", TRIMMED, lease_member),
        ]
        for producer in range(3):
            self.producers_left += 1
            self.start(self._producer(f"producer-{producer}"), 0.01 * producer)
        for group, topic, member in groups:
            for number in range(2):
                self.start(member(self, f"{group}-{number}", group, topic), 0.05 * number)
            self.start(self._drain(group, topic))
        self.start(self._observer([(group, topic) for group, topic, _ in groups]), 0.1)
        self.start(self._mover())
        while self._queue:
            self.now, _, steps = heapq.heappop(self._queue)
            pause = next(steps, None)
            if pause is not None:
                heapq.heappush(self._queue, (self.now + pause, next(self._turn), steps))
        return History(self.lines, self._rows())

    def _plan(self) -> None:
        topics = {
            topic: {"partitions": self.partitions, "retention": topic == TRIMMED} for topic in (ORDERS, TRIMMED, COPIES)
        }
        bounds = {"takeover": 8.0, "recovery": 5.0, "drain": 600.0, "starvation": 8.0, "call": 10.0}
        facts = {"run": "r1", "topics": topics, "bounds": bounds, "least": {"acks": 20}}
        self.write("parent", "note", "plan", **facts)
        for group, topic, mode in (
            ("billing", ORDERS, "lease"),
            ("totals", ORDERS, "transaction"),
            ("mails", ORDERS, "run"),
            ("clicks", TRIMMED, "lease"),
        ):
            most = {"max_attempts": 3} if mode == "run" else {}
            self.write("parent", "note", "group", group=group, topic=topic, mode=mode, ack="auto", **most)

    def _producer(self, name: str) -> Steps:
        for life in itertools.count():
            process = f"{name}.{life}"
            while self.sends_left > 0:
                self.sends_left -= 1
                how = self.random.random()
                steps = (
                    self._send(process)
                    if how < 0.7
                    else self._own_transaction(process)
                    if how < 0.9
                    else self._delay(process)
                )
                if (yield from steps):
                    break
                yield self.random.uniform(0.0, 0.05)
            else:
                self.producers_left -= 1
                return
            yield self.random.uniform(0.05, 0.5)

    def _send(self, process: str) -> Generator[float, None, bool]:
        """One call of produce_many; return whether the process was killed in it."""
        topic = self.random.choice((ORDERS, ORDERS, TRIMMED))
        messages = [self.new_message(process, key=self._key()) for _ in range(self.random.choice((1, 1, 5)))]
        of = self.write(process, "invoke", "send", topic=topic, messages=messages)
        yield self.random.uniform(0.001, 0.02)
        if self.chance(0.05):
            self.write(process, "fail", "send", of=of, err="DatabaseBusyError")
            return False
        if self.is_killed(process):
            return True
        placed = [self.append(topic, sent) for sent in messages]
        yield self.random.uniform(0.001, 0.02)
        if self.is_killed(process):
            return True
        if self.chance(0.03):
            self.write(process, "info", "send", of=of, err="OutcomeUnknownError")
        else:
            self.write(process, "ok", "send", of=of, placed=placed)
        return False

    def _own_transaction(self, process: str) -> Generator[float, None, bool]:
        """A transaction of an application, with rows of its own and, perhaps, a savepoint that is rolled back."""
        messages = [self.new_message(process, key=self._key(), topic=topic) for topic in (ORDERS, TRIMMED, ORDERS)]
        undone = [messages[-1].m] if self.chance(0.3) else []
        effects = [f"{messages[0].m}/order"]
        is_aborted = self.chance(0.2)
        of = self.write(process, "invoke", "txn", messages=messages, effects=effects, undone=undone, abort=is_aborted)
        yield self.random.uniform(0.001, 0.02)
        if is_aborted:
            self.write(process, "fail", "txn", of=of, err="Abort")
            return False
        if self.is_killed(process, 0.03):
            return True
        for sent in messages:
            if sent.m not in undone:
                self.append(sent.topic or "", sent)
        self.effects[None, effects[0]] += 1
        yield self.random.uniform(0.001, 0.02)
        if self.is_killed(process, 0.03):
            return True
        self.write(process, "ok", "txn", of=of)
        return False

    def _delay(self, process: str) -> Generator[float, None, bool]:
        sent = self.new_message(process, due=self.database_us() + self.random.randrange(1_000_000))
        of = self.write(process, "invoke", "send", topic=ORDERS, messages=[sent])
        yield 0.005
        self.staged.append((sent.due or 0, ORDERS, Stored(sent.m, sent.h, None, 0)))
        yield 0.005
        self.write(process, "ok", "send", of=of, placed=[Placed(sent.m)])
        if self.chance(0.2):
            yield from self._cancel(process, sent)
        return False

    def _cancel(self, process: str, sent: Sent) -> Steps:
        of = self.write(process, "invoke", "cancel", topic=ORDERS, message=sent.m)
        yield 0.005
        kept = [one for one in self.staged if one[2].m != sent.m]
        is_cancelled, self.staged = len(kept) < len(self.staged), kept
        yield 0.005
        self.write(process, "ok", "cancel", of=of, cancelled=is_cancelled)

    def _mover(self) -> Steps:
        """Whoever moves delayed messages into the log once they are due."""
        while not self.is_over():
            for one in [one for one in self.staged if one[0] <= self.database_us()]:
                self.staged.remove(one)
                self.append(one[1], Sent(one[2].m, one[2].h))
            yield 0.05

    def _observer(self, groups: list[tuple[str, str]]) -> Steps:
        """Looks at ends and positions, and trims what everybody has read."""
        while not self.is_over():
            topic = self.random.choice((ORDERS, TRIMMED))
            of = self.write("observer", "invoke", "snapshot", topic=topic)
            yield 0.003
            places = [(partition, (topic, partition)) for partition in range(self.partitions)]
            ends = {str(partition): len(self.log[place]) for partition, place in places}
            starts = {str(partition): self.starts[place] for partition, place in places}
            yield 0.003
            self.write("observer", "ok", "snapshot", of=of, ends=ends, starts=starts)
            group, topic = self.random.choice(groups)
            of = self.write("observer", "invoke", "positions", group=group, topic=topic)
            yield 0.003
            positions = {
                str(partition): self.states[group, topic, partition].position for partition in range(self.partitions)
            }
            yield 0.003
            self.write("observer", "ok", "positions", of=of, positions=positions)
            yield from self._retain()
            yield 0.1

    def _retain(self) -> Steps:
        of = self.write("observer", "invoke", "retain", topic=TRIMMED)
        yield 0.003
        for partition in range(self.partitions):
            unread = self.states["clicks", TRIMMED, partition].position
            place = (TRIMMED, partition)
            self.starts[place] = max(self.starts[place], min(unread, len(self.log[place]) - 10))
        yield 0.003
        starts = {str(partition): self.starts[TRIMMED, partition] for partition in range(self.partitions)}
        self.write("observer", "ok", "retain", of=of, starts=starts)

    def _drain(self, group: str, topic: str) -> Steps:
        while not self.is_over():
            yield 0.5
        of = self.write("parent", "invoke", "drain", group=group, topic=topic)
        while not self.is_drained(group, topic):
            yield 0.1
        self.write("parent", "ok", "drain", of=of)

    def _key(self) -> str | None:
        return f"k{self.random.randrange(12)}" if self.chance(0.8) else None

    def _rows(self) -> list[Line]:
        rows: list[Line] = []
        for (topic, partition), log in self.log.items():
            start = self.starts[topic, partition]
            rows.append({"row": "partition", "topic": topic, "partition": partition, "start": start, "end": len(log)})
            for offset in range(start, len(log)):
                stored = log[offset]
                about: Line = {"row": "message", "topic": topic, "partition": partition, "offset": offset}
                rows.append(about | {"m": stored.m, "h": stored.h, "key": stored.key, "at": stored.at})
        for (group, topic, partition), state in self.states.items():
            about = {"group": group, "topic": topic, "partition": partition}
            rows.append({"row": "position", **about, "offset": state.position})
            for offset, (what, attempts) in state.parked.items():
                rows.append({"row": "parked", **about, "offset": offset, "state": what, "attempts": attempts})
        for (whose, m), count in self.effects.items():
            rows.append({"row": "effect", "group": whose, "m": m, "count": count})
        rows.append({"row": "residue", "what": "sessions idle in a transaction", "count": 0, "most": 0})
        return rows


def plain(value: object) -> Json:
    """*value* as it stands in a line of JSON."""
    if isinstance(value, (Sent, Placed, Delivered)):
        return {name: one for name, one in value._asdict().items() if one is not None or name == "m"}
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    message = f"{value!r} can't stand in a history"
    raise TypeError(message)
