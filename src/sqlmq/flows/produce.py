"""Producing: from messages to their places in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
    from sqlmq.partitioner import Rotation
    from sqlmq.store.topics import Topic

CHUNK_MESSAGES = 5_000
"""Messages in one statement at the most; more gain nothing and make the server hold them all at once."""
CHUNK_BYTES = 16 * 1024 * 1024
"""Bytes of values in one statement at the most, but for a single message."""


class Routed(NamedTuple):
    """A message, and the number of the partition it asks for; None leaves that to its key, or to the rotation."""

    message: Message
    partition: int | None


def append(
    conn: Connection, dialect: Dialect, topic: Topic, routed: Sequence[Routed], rotation: Rotation
) -> list[ProducerResult]:
    """Give each message its partition, number them, and add them to the log; results are in the order of *routed*.

    Keyless messages go together, to the partition whose turn it is. The partitions' rows are locked in order of id
    until the transaction ends, whatever the number of statements, so two producers can't wait for each other.
    """
    results: list[ProducerResult | None] = [None] * len(routed)
    for chunk in chunks(topic, routed, rotation):
        batches = [Batch(topic.partition_ids[number], [routed[i].message for i in places]) for number, places in chunk]
        bases = messages.append(conn, dialect, topic.name, batches)
        for (number, places), base in zip(chunk, bases, strict=True):
            for offset, i in enumerate(places, base):
                results[i] = ProducerResult(topic.name, number, offset)
    return [result for result in results if result is not None]


def fits_one_statement(routed: Sequence[Routed]) -> bool:
    """Whether ``append`` needs a single statement for *routed*."""
    return len(routed) <= CHUNK_MESSAGES and sum(len(one.message.value) for one in routed) <= CHUNK_BYTES


def chunks(topic: Topic, routed: Sequence[Routed], rotation: Rotation) -> Iterable[list[tuple[int, list[int]]]]:
    """Partition numbers with the places of their messages in *routed*, by rising partition id, cut into statements."""
    keyless: int | None = None
    places: dict[int, list[int]] = {}
    for i, (message, partition) in enumerate(routed):
        number = partition
        if number is not None:
            check_partition(topic.name, number, topic.partitions)
        elif message.key is not None:
            number = partition_for_key(topic.partitioner, message.key, topic.partitions)
        else:
            keyless = number = rotation.next(topic.partitions) if keyless is None else keyless
        places.setdefault(number, []).append(i)

    chunk: list[tuple[int, list[int]]] = []
    count = size = 0
    for number in sorted(places, key=lambda number: topic.partition_ids[number]):
        part: list[int] = []
        for i in places[number]:
            length = len(routed[i].message.value)
            if count and (count == CHUNK_MESSAGES or size + length > CHUNK_BYTES):
                yield [*chunk, (number, part)] if part else chunk
                chunk, part, count, size = [], [], 0, 0
            part.append(i)
            count += 1
            size += length
        chunk.append((number, part))
    yield chunk
