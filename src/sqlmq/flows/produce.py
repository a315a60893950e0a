"""Producing: from messages to their places in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from sqlmq.dialects import Batch
from sqlmq.message import ProducerResult
from sqlmq.options import check_partition
from sqlmq.partitioner import partition_for_key
from sqlmq.store import messages

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect
    from sqlmq.message import Message
    from sqlmq.store.topics import Topic

CHUNK_MESSAGES = 5_000
"""Messages in one statement at the most; more gain nothing and make the server hold them all at once."""
CHUNK_BYTES = 16 * 1024 * 1024
"""Bytes of values in one statement at the most, but for a single message."""


class Routed(NamedTuple):
    """A message, and the number of the partition it asks for; None leaves that to its key, or to the rotation."""

    message: Message
    partition: int | None


class Placed(NamedTuple):
    """A message, and the partition of a topic it goes to, by its number."""

    topic: Topic
    number: int
    message: Message

    @property
    def partition_id(self) -> int:
        """The database's id of the partition."""
        return self.topic.partition_ids[self.number]


class Turn(Protocol):
    """Chooses the partition for messages without a key."""

    def next(self, partitions: int) -> int:
        """The number of one of *partitions*."""


def place(topic: Topic, routed: Sequence[Routed], turn: Turn) -> list[Placed]:
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
        placed.append(Placed(topic, number, message))
    return placed


def append(conn: Connection, dialect: Dialect, placed: Sequence[Placed]) -> list[ProducerResult]:
    """Number the messages and add them to the log; results are in the order of *placed*.

    The partitions' rows are locked in order of id until the transaction ends, whatever the number of statements and
    topics, so two producers can't wait for each other.
    """
    results: list[ProducerResult | None] = [None] * len(placed)
    for chunk in chunks(placed):
        _note(results, chunk, placed, messages.append(conn, dialect, _batches(chunk, placed)))
    return [result for result in results if result is not None]


def publish(conn: Connection, dialect: Dialect, placed: Sequence[Placed]) -> list[ProducerResult | None]:
    """As ``append``, in somebody else's transaction, of any isolation level; None for what is staged.

    Staged messages keep their order in each partition, and are in the log once ``flows.stage.move`` has moved them.
    """
    results: list[ProducerResult | None] = [None] * len(placed)
    for chunk in chunks(placed):
        bases = messages.publish(conn, dialect, _batches(chunk, placed))
        if bases is not None:
            _note(results, chunk, placed, bases)
    return results


def fits_one_statement(placed: Sequence[Placed]) -> bool:
    """Whether ``append`` needs a single statement for *placed*."""
    return len(placed) <= CHUNK_MESSAGES and sum(len(one.message.value) for one in placed) <= CHUNK_BYTES


def chunks(placed: Sequence[Placed]) -> Iterable[list[list[int]]]:
    """The places in *placed* of each partition's messages, by rising partition id, cut into statements."""
    places: dict[int, list[int]] = {}
    for i, one in enumerate(placed):
        places.setdefault(one.partition_id, []).append(i)

    chunk: list[list[int]] = []
    count = size = 0
    for partition_id in sorted(places):
        part: list[int] = []
        for i in places[partition_id]:
            length = len(placed[i].message.value)
            if count and (count == CHUNK_MESSAGES or size + length > CHUNK_BYTES):
                yield [*chunk, part] if part else chunk
                chunk, part, count, size = [], [], 0, 0
            part.append(i)
            count += 1
            size += length
        chunk.append(part)
    if chunk:
        yield chunk


def _batches(chunk: list[list[int]], placed: Sequence[Placed]) -> list[Batch]:
    return [
        Batch(placed[part[0]].topic.name, placed[part[0]].partition_id, [placed[i].message for i in part])
        for part in chunk
    ]


def _note(
    results: list[ProducerResult | None], chunk: list[list[int]], placed: Sequence[Placed], bases: Sequence[int]
) -> None:
    for part, base in zip(chunk, bases, strict=True):
        for offset, i in enumerate(part, base):
            results[i] = ProducerResult(placed[i].topic.name, placed[i].number, offset)
