"""The messages that are measured with, topics for them, and what they are checked by."""

from __future__ import annotations

import uuid
from functools import lru_cache
from typing import TYPE_CHECKING

from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq import Producer, ProducerResult

VALUE_BYTES = 200
KEYS = 1_000
"""How many different keys there are, each of eight bytes."""
HEADERS = {"type": "order", "trace": "4bf92f3577b34da6"}
FILL_BATCH = 5_000


class WrongResultError(Exception):
    """What was measured did not do what it should have done, so its rate says nothing."""


def check(holds: bool, what: str) -> None:
    """Raise WrongResultError, saying *what* went wrong, unless it *holds*."""
    if not holds:
        raise WrongResultError(what)


@lru_cache
def keys_and_values(count: int) -> list[tuple[bytes, bytes]]:
    """What *count* messages hold: a key of eight bytes, a value of 200 that begins with its number."""
    return [(b"%08d" % (i % KEYS), (b"%08d" % i).ljust(VALUE_BYTES, b"v")) for i in range(count)]


@lru_cache
def messages(count: int, *, with_headers: bool = False, with_keys: bool = True) -> list[Message]:
    """*count* messages, made before any clock runs."""
    headers = HEADERS if with_headers else None
    return [Message(value, key if with_keys else None, headers) for key, value in keys_and_values(count)]


def new_topic(mq: MQ, partitions: int = 1) -> str:
    """Create a topic. It is never deleted, because the whole database is dropped in the end."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    mq.create_topic(name, partitions)
    return name


def new_group() -> str:
    """The name of a group that has read nothing yet."""
    return f"group-{uuid.uuid4().hex[:8]}"


def fill(producer: Producer, count: int, *, with_headers: bool = False, with_keys: bool = True) -> None:
    """Append *count* messages, in few transactions."""
    batch = messages(FILL_BATCH, with_headers=with_headers, with_keys=with_keys)
    for first in range(0, count, FILL_BATCH):
        producer.produce_many(batch[: min(FILL_BATCH, count - first)])


def check_places(places: Sequence[ProducerResult], count: int) -> None:
    """Check that *places*, in the order of their messages, are dense in each partition."""
    check(len(places) == count, f"{count} messages have {len(places)} places")
    ends: dict[int, int] = {}
    for place in places:
        check(ends.get(place.partition, place.offset) == place.offset, f"offset {place.offset} does not follow")
        ends[place.partition] = place.offset + 1


def check_length(mq: MQ, name: str, count: int) -> None:
    """Check that *count* messages are in the log of the topic called *name*."""
    found = mq.admin.describe_topic(name).messages
    check(found == count, f"{found} messages are in the log instead of {count}")
