"""A queue in memory that keeps every promise, and records what its clients do.

Nothing runs and no time passes. Clients are generators that yield how long each step takes. What a client does between two
yields happens at once, like a commit.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from sqlmq.verify.history import Delivered, Placed, Sent, event_of, final_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlmq.verify.history import Event, Final, Json

Line: TypeAlias = "dict[str, Json]"
Steps: TypeAlias = "Generator[float]"
"""A client: yields after each step the seconds until the next one."""

ORDERS, TRIMMED, COPIES = "orders", "trimmed", "copies"
START_NS = 1_000_000_000_000
"""The clock at the start."""
DATABASE_US = 1_700_000_000_000_000
"""The database's clock at the start."""


@dataclass(slots=True)
class Stored:
    """A message in the log."""

    m: str
    h: str
    key: str | None
    at: int


@dataclass(slots=True)
class GroupState:
    """The state of a group in one partition."""

    position: int = 0
    owner: str | None = None
    free_at: float = 0.0
    epoch: int = 0
    parked: dict[int, tuple[str, int]] = field(default_factory=dict)
    """State and attempts, by offset."""


class History:
    """A history as lines of JSON, and the final state. Edits change it."""

    def __init__(self, lines: list[Line], rows: list[Line]) -> None:
        self.lines = lines
        self.rows = rows

    def events(self) -> list[Event]:
        """Return the events in order of time."""
        return sorted(map(event_of, self.lines), key=lambda event: event.t)

    def final(self) -> Final:
        """Return the final state."""
        return final_of(self.rows)


class SimulatedQueue:
    """A queue with three topics, one of which has retention, and the positions of its groups."""

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

    def write(self, process: str, kind: str, f: str, **fields: object) -> int:
        """Write a line of *process* and return its number."""
        number = next(self._numbers[process])
        line: Line = {"i": number, "t": START_NS + int(self.now * 1e9), "p": process, "type": kind, "f": f}
        self.lines.append(line | {name: plain(value) for name, value in fields.items()})
        return number

    def new_message(
        self, process: str, *, key: str | None = None, topic: str | None = None, due: int | None = None
    ) -> Sent:
        """Return a message with a new id."""
        m = f"r1:{process}:{next(self._messages[process])}"
        return Sent(m, f"{zlib.crc32(m.encode()):08x}", len(m), key, topic, None, due)

    def append(self, topic: str, sent: Sent) -> Placed:
        """Append a message to the log."""
        partition = zlib.crc32((sent.key or sent.m).encode()) % self.partitions
        log = self.log[topic, partition]
        log.append(Stored(sent.m, sent.h, sent.key, self.database_us()))
        return Placed(sent.m, partition, len(log) - 1)

    def delivered(self, topic: str, partition: int, offset: int) -> Delivered:
        """Return a message as it is delivered to a group."""
        stored = self.log[topic, partition][offset]
        return Delivered(partition, offset, stored.m, stored.h, stored.key, stored.at)

    def database_us(self) -> int:
        """Return the database's clock."""
        return DATABASE_US + int(self.now * 1e6)

    def chance(self, share: float) -> bool:
        """Return True with probability *share*."""
        return self.random.random() < share

    def is_killed(self, process: str, share: float = 0.01) -> bool:
        """Kill *process* with probability *share*; return whether it was killed."""
        if not (self.faults and self.sends_left > 0 and self.chance(share)):
            return False
        number = next(self._faults)
        self.write("parent", "note", "nemesis", action="start", fault="kill", id=number, who=[process])
        self.write("parent", "note", "crash", who=process)
        self.write("parent", "note", "nemesis", action="stop", fault="kill", id=number, who=[process])
        return True

    def begin_pause(self, process: str) -> int:
        """Pause *process* and return the number of the fault."""
        number = next(self._faults)
        self.write("parent", "note", "nemesis", action="start", fault="pause", id=number, who=[process])
        return number

    def end_pause(self, process: str, number: int) -> None:
        """Resume *process*."""
        self.write("parent", "note", "nemesis", action="stop", fault="pause", id=number, who=[process])

    def is_over(self) -> bool:
        """Whether no more messages will be sent."""
        return not self.producers_left and not self.staged

    def is_drained(self, group: str, topic: str) -> bool:
        """Whether the group has read everything."""
        return self.is_over() and all(
            state.position == len(self.log[topic, partition])
            and not any(what == "waiting" for what, _ in state.parked.values())
            for partition in range(self.partitions)
            for state in [self.states[group, topic, partition]]
        )

    def rows(self) -> list[Line]:
        """Return the final state as rows."""
        found: list[Line] = []
        for (topic, partition), log in self.log.items():
            start = self.starts[topic, partition]
            found.append({"row": "partition", "topic": topic, "partition": partition, "start": start, "end": len(log)})
            for offset in range(start, len(log)):
                stored = log[offset]
                about: Line = {"row": "message", "topic": topic, "partition": partition, "offset": offset}
                found.append(about | {"m": stored.m, "h": stored.h, "key": stored.key, "at": stored.at})
        for (group, topic, partition), state in self.states.items():
            about = {"group": group, "topic": topic, "partition": partition}
            found.append({"row": "position", **about, "offset": state.position})
            for offset, (what, attempts) in state.parked.items():
                found.append({"row": "parked", **about, "offset": offset, "state": what, "attempts": attempts})
        for (whose, m), count in self.effects.items():
            found.append({"row": "effect", "group": whose, "m": m, "count": count})
        found.append({"row": "residue", "what": "sessions idle in a transaction", "count": 0, "most": 0})
        return found


def plain(value: object) -> Json:
    """Return *value* as it is written to a line of JSON."""
    if isinstance(value, (Sent, Placed, Delivered)):
        return {name: one for name, one in value._asdict().items() if one is not None or name == "m"}
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    message = f"{value!r} cannot be written to a history"
    raise TypeError(message)
