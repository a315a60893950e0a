"""The queue as it must be, in lists and numbers: topics, their logs, and what groups know of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sqlmq import Consumer, Message, ReceivedMessage
from sqlmq.model.partitioner import partition_for_key
from tests.support.queue_state import Place, place_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


Policy = Literal["park", "dead", "skip", "stop"]

MOST_ATTEMPTS: dict[Policy, int] = {"park": 2, "dead": 1, "skip": 1, "stop": 1}


@dataclass(frozen=True)
class Stored:
    """A message of the log."""

    value: bytes
    key: bytes | None
    is_by_key: bool
    """Whether its key has decided where it is."""


@dataclass
class Delayed:
    """A message that waits to become due."""

    message: Message
    partition: int


@dataclass
class Group:
    """How far a group has come, per partition."""

    committed: dict[int, int] = field(default_factory=dict)
    """What was committed for certain."""
    done: dict[int, int] = field(default_factory=dict)
    """What may have been committed at the most."""
    delivered: set[Place] = field(default_factory=set)
    passed_over: set[Place] = field(default_factory=set)
    """What it was moved past unread."""

    def has(self, place: Place) -> bool:
        """Whether nothing that follows *place* has to wait for it."""
        return place in self.delivered or place in self.passed_over

    def may_be_done(self, done: dict[int, int]) -> None:
        for partition, offset in done.items():
            self.done[partition] = max(offset, self.done.get(partition, 0))

    def commit(self, done: dict[int, int]) -> None:
        self.may_be_done(done)
        for partition, offset in done.items():
            self.committed[partition] = max(offset, self.committed.get(partition, 0))

    def move(self, partition: int, offset: int) -> None:
        """Somebody has moved it to *offset*."""
        at_least = self.committed.get(partition, 0)
        self.passed_over |= {(partition, passed) for passed in range(at_least, offset)}
        self.committed[partition] = self.done[partition] = offset


@dataclass(eq=False)
class Reader:
    """A consumer, and what it was given."""

    consumer: Consumer
    topic: str
    group: str
    next_offsets: dict[int, int] = field(default_factory=dict)
    """By partition, of those it was given messages of: the offset after the last one."""
    done: dict[int, int] = field(default_factory=dict)
    """By partition: the offset after the last one that is done."""
    left: set[int] = field(default_factory=set)
    """Partitions whose last message is the one at which a loop was left."""
    is_fenced: bool = False
    """Whether somebody has moved its group under it."""

    def ask(self) -> None:
        self.left.clear()
        self.done.update(self.next_offsets)

    def commit(self) -> None:
        for partition in self.left & self.next_offsets.keys():
            self.next_offsets[partition] += 1
        self.ask()

    def forget(self, partitions: Iterable[int]) -> None:
        """It has nothing more to do with these."""
        for partition in partitions:
            self.next_offsets.pop(partition, None)
            self.done.pop(partition, None)
            self.left.discard(partition)


@dataclass
class Aside:
    """A message that the group of the workers has set aside, or stands at."""

    state: Literal["waiting", "dead", "held", "stopped"]
    attempts: int
    is_due: bool

    @property
    def is_in_place(self) -> bool:
        """Whether its partition waits for it."""
        return self.state in ("held", "stopped")


@dataclass
class Workers:
    """The group whose members handle messages, one at a time, with a handler that may fail."""

    policy: Policy
    position: dict[int, int] = field(default_factory=dict)
    aside: dict[Place, Aside] = field(default_factory=dict)
    finished: set[Place] = field(default_factory=set)
    """Handled, given up, discarded or passed over."""

    def has(self, place: Place) -> bool:
        found = self.aside.get(place)
        return place in self.finished or (found is not None and found.state == "dead")

    def take(self, topic: Topic, message: ReceivedMessage, *, fails: bool) -> None:
        """It is given to the handler, which *fails* or not."""
        place = place_of(message)
        topic.check(message)
        self._check_turn(topic, place)
        attempts = self.aside[place].attempts + 1 if place in self.aside else 1
        if fails and self.policy == "stop":
            self.aside[place] = Aside("stopped", attempts, is_due=False)
            return
        self._pass(place)
        if not fails:
            self._finish(place)
        elif attempts < MOST_ATTEMPTS[self.policy]:
            self.aside[place] = Aside("waiting", attempts, is_due=False)
        elif self.policy == "skip":
            self._finish(place)
        else:
            self.aside[place] = Aside("dead", attempts, is_due=False)

    def _check_turn(self, topic: Topic, place: Place) -> None:
        found = self.aside.get(place)
        waited_for = [other for other in self.aside if other[0] == place[0] and self.aside[other].is_in_place]
        assert not set(waited_for) - {place}, "a message was handled in a partition that waits for another one"
        if found is not None:
            assert found.state in ("waiting", "held"), f"a message was handled that is {found.state}"
            assert found.is_due, "a message was tried again before its time"
        else:
            assert place[1] >= self.position.get(place[0], topic.partitions[place[0]].start), "handled once more"
            self.pass_blocked(topic, place[0], place[1])
        assert not self._is_blocked(topic, place), "a message was handled before an earlier one of its key"

    def pass_blocked(self, topic: Topic, partition: int, offset: int) -> None:
        """It went on to *offset*: what is before that waits behind others of its key."""
        begin = self.position.get(partition, topic.partitions[partition].start)
        for passed in range(begin, offset):
            assert self._is_blocked(topic, (partition, passed)), f"{partition}@{passed} was passed over"
            self.aside[partition, passed] = Aside("waiting", 0, is_due=True)
        self.position[partition] = max(begin, offset)

    def _is_blocked(self, topic: Topic, place: Place) -> bool:
        key = topic.at(place).key
        if key is None:
            return False
        return any(
            found.state == "waiting" and other[0] == place[0] and other[1] < place[1] and topic.at(other).key == key
            for other, found in self.aside.items()
        )

    def retry(self, places: Iterable[Place]) -> None:
        for place in places:
            self.aside[place] = Aside("held" if self.aside[place].is_in_place else "waiting", 0, is_due=True)

    def discard(self, places: Iterable[Place]) -> None:
        for place in list(places):
            if self.aside[place].is_in_place:
                self._pass(place)
            self._finish(place)

    def move(self, topic: Topic, partition: int, offset: int) -> None:
        """The group was moved: from *offset* on everything comes again."""
        for place, found in list(self.aside.items()):
            if place[0] == partition and (place[1] >= offset or found.is_in_place):
                del self.aside[place]
        self.finished = {place for place in self.finished if place[0] != partition or place[1] < offset}
        begin = self.position.get(partition, topic.partitions[partition].start)
        self.finished |= {(partition, passed) for passed in range(begin, offset)}
        self.position[partition] = offset

    def _pass(self, place: Place) -> None:
        self.position[place[0]] = max(self.position.get(place[0], 0), place[1] + 1)

    def _finish(self, place: Place) -> None:
        self.aside.pop(place, None)
        self.finished.add(place)


@dataclass
class Partition:
    stored: list[Stored] = field(default_factory=list)
    """Everything ever appended, by offset."""
    start: int = 0
    """What is before this is gone."""


@dataclass
class Topic:
    """A topic, its log, and what there is to it."""

    name: str
    partitions: list[Partition]
    groups: dict[str, Group] = field(default_factory=dict)
    workers: Workers | None = None
    delayed: dict[int, Delayed] = field(default_factory=dict)
    of_key: dict[bytes, list[Place]] = field(default_factory=dict)
    """Where the messages of a key are, those that it has placed, in the order they were appended."""

    def append(self, partition: int, message: Message, *, is_by_key: bool) -> int:
        stored = Stored(message.value, message.key, is_by_key and message.key is not None)
        offset = len(self.partitions[partition].stored)
        self.partitions[partition].stored.append(stored)
        if stored.is_by_key and stored.key is not None:
            assert partition == self.home_of(stored.key), "a key is not in its partition"
            self.of_key.setdefault(stored.key, []).append((partition, offset))
        return offset

    def home_of(self, key: bytes) -> int:
        return partition_for_key("murmur2", key, len(self.partitions))

    def at(self, place: Place) -> Stored:
        return self.partitions[place[0]].stored[place[1]]

    def kept(self) -> Iterator[tuple[Place, bytes]]:
        """What is in the log."""
        for number, partition in enumerate(self.partitions):
            for offset in range(partition.start, len(partition.stored)):
                yield (number, offset), partition.stored[offset].value

    def check(self, message: ReceivedMessage) -> None:
        """It is the one that was appended there."""
        stored = self.at(place_of(message))
        assert (message.topic, message.value, message.key) == (self.name, stored.value, stored.key)

    def check_order(self, reading: Group | Workers, place: Place) -> None:
        """Those of a key come in the order they were appended, also where the key has moved to a new partition."""
        stored = self.at(place)
        if not stored.is_by_key or stored.key is None:
            return
        for before in self.of_key[stored.key]:
            if before == place:
                return
            is_gone = before[1] < self.partitions[before[0]].start
            assert is_gone or reading.has(before), f"{place} came before {before}, which is of the same key"
