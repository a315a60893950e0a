"""Producing: from messages to their places in the log."""

from __future__ import annotations

from collections import Counter
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sqlmq.dialects import PartitionSlice
from sqlmq.hooks.failpoints import failpoint
from sqlmq.model.message import ProducerResult, RecordBatch, has_any
from sqlmq.model.partitioner import partition_for_key
from sqlmq.model.validation import check_partition
from sqlmq.store import messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.model.message import Message
    from sqlmq.store.topics import Topic


_CANDIDATES = 16
"""How many partitions to choose from at the most, where any will do."""


class RoutedMessage(NamedTuple):
    """A message, and the number of the partition it asks for; None leaves that to its key, or to the rotation."""

    message: Message
    partition: int | None


class PlacedMessage(NamedTuple):
    """A message, and the partition of a topic it goes to, by its number."""

    topic: Topic
    number: int
    message: Message
    by_key: bool
    """Whether its key has decided that."""

    def on(self, topic: Topic) -> PlacedMessage:
        """The same on *topic*, which is the same with other partitions."""
        key = self.message.key
        if self.by_key and key is not None:
            return self._replace(topic=topic, number=partition_for_key(topic.partitioner, key, topic.partitions))
        return self._replace(topic=topic, number=check_partition(topic.name, self.number, topic.partitions))


class PartitionRun(NamedTuple):
    """So many messages, one after the other, for the partition of a topic with this number."""

    topic: Topic
    number: int
    messages: int


class AppendBatch(NamedTuple):
    """What is appended together: messages in order of their partitions' ids, and where each stood before."""

    contents: RecordBatch
    runs: Sequence[PartitionRun]
    order: Sequence[int]
    alternatives: Sequence[int] = ()
    """Numbers of partitions that would do as well as the one there is."""


class KeylessPartitioner(Protocol):
    """Chooses the partition for messages without a key."""

    def next(self, partitions: int) -> int:
        """The number of one of *partitions*."""


def place(topic: Topic, routed: Sequence[RoutedMessage], turn: KeylessPartitioner) -> list[PlacedMessage]:
    """Give each message its partition. Those without a key go together, to the one whose turn it is."""
    keyless: int | None = None
    placed = []
    for message, partition in routed:
        number = partition
        if number is not None:
            check_partition(topic.name, number, topic.partitions)
        elif message.key is not None:
            number = partition_for_key(topic.partitioner, message.key, topic.partitions)
        else:
            keyless = number = turn.next(topic.partitions) if keyless is None else keyless
        placed.append(PlacedMessage(topic, number, message, by_key=partition is None and message.key is not None))
    return placed


def load(placed: Sequence[PlacedMessage]) -> AppendBatch:
    """Put messages, which may be of several topics, in order."""
    if len(placed) == 1:
        (one,) = placed
        return AppendBatch(RecordBatch.of([one.message]), [PartitionRun(one.topic, one.number, 1)], (0,))
    ids = [one.topic.partition_ids[one.number] for one in placed]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    targets = {id_: (one.topic, one.number) for id_, one in zip(ids, placed, strict=True)}
    counts = Counter(ids)
    runs = [PartitionRun(*targets[id_], counts[id_]) for id_ in sorted(counts)]
    return AppendBatch(RecordBatch.of([placed[i].message for i in order]), runs, order)


def load_keyed(topic: Topic, contents: RecordBatch, turn: KeylessPartitioner) -> AppendBatch:
    """As ``place`` and ``load``, for messages that all leave the partition to their key, or to *turn*."""
    keys, partitions = contents.keys, topic.partitions
    if partitions == 1:
        return AppendBatch(contents, [PartitionRun(topic, 0, len(keys))], range(len(keys)))
    keyless = turn.next(partitions) if None in keys else 0
    if not has_any(keys):
        others = [(keyless + i) % partitions for i in range(1, min(partitions, _CANDIDATES))]
        return AppendBatch(contents, [PartitionRun(topic, keyless, len(keys))], range(len(keys)), others)
    partitioner = topic.partitioner
    numbers = [keyless if key is None else partition_for_key(partitioner, key, partitions) for key in keys]
    ids = [topic.partition_ids[number] for number in numbers]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    counts = Counter(numbers)
    runs = [
        PartitionRun(topic, number, counts[number]) for number in sorted(counts, key=topic.partition_ids.__getitem__)
    ]
    return AppendBatch(contents.in_order(order), runs, order)


def append(conn: Connection, dialect: Dialect, load: AppendBatch) -> list[ProducerResult]:
    """Number the messages and add them to the log; results are in the order in which they were given.

    The partitions' rows are locked in order of id until the transaction ends, whatever the number of statements and
    topics, so two producers can't wait for each other. If other partitions would do as well, it is one that nobody else
    has locked.
    """
    failpoint("append.before")
    if load.alternatives:
        results = _append_to_any(conn, dialect, load)
    else:
        results = _results(load, messages.append(conn, dialect, _parts(load), load.contents))
    failpoint("append.after")
    return results


def publish(conn: Connection, dialect: Dialect, load: AppendBatch) -> list[ProducerResult] | None:
    """As ``append``, in somebody else's transaction, of any isolation level; None if the messages were staged.

    Staged messages keep their order in each partition, and are in the log once ``flows.stage.move`` has moved them.
    """
    failpoint("publish.before")
    bases = messages.publish(conn, dialect, _parts(load), load.contents)
    failpoint("publish.after")
    return None if bases is None else _results(load, bases)


def _append_to_any(conn: Connection, dialect: Dialect, load: AppendBatch) -> list[ProducerResult]:
    (run,) = load.runs
    topic = run.topic
    (part,) = _parts(load)
    others = [topic.partition_ids[number] for number in load.alternatives]
    chosen, base = messages.append_to_any(conn, dialect, part, others, load.contents)
    return _results(load._replace(runs=[run._replace(number=topic.partition_ids.index(chosen))]), [base])


def _parts(load: AppendBatch) -> list[PartitionSlice]:
    return [
        PartitionSlice(topic.name, topic.partition_ids[number], count, topic.partitions)
        for topic, number, count in load.runs
    ]


def _results(load: AppendBatch, bases: Sequence[int]) -> list[ProducerResult]:
    results: list[ProducerResult] = []
    for (topic, number, count), base in zip(load.runs, bases, strict=True):
        fields = zip(repeat(topic.name), repeat(number), range(base, base + count))
        # What the class does, 0.23 us for each, without its frame of Python: 0.13.
        results.extend(map(tuple.__new__, repeat(ProducerResult), fields))
    if len(load.runs) > 1:  # or they are in the order in which they were given
        for place, result in zip(load.order, results.copy(), strict=True):
            results[place] = result
    return results
