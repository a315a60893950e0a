"""The messages of a run: each has an id and a hash of its content, so that damage shows."""

from __future__ import annotations

import hashlib
from itertools import count
from typing import TYPE_CHECKING

from sqlmq.model.message import Message, ReceivedMessage
from sqlmq.verify.history import Delivered, Sent

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from sqlmq.verify.plan import Plan

KEYS = 12
"""The number of keys. Some messages have none."""

_ALPHABET = bytes(range(256))


class MessageFactory:
    """Creates the messages of one process, each with a unique id."""

    def __init__(self, plan: Plan, process: str, random_: random.Random) -> None:
        self._plan = plan
        self._prefix = f"{plan.run}:{process}"
        self._random = random_
        self._numbers: Iterator[int] = count()

    def message(self) -> Message:
        """Create a message."""
        m = f"{self._prefix}:{next(self._numbers)}"
        size = self._random.randint(*self._plan.payload)
        filling = self._random.choice(_ALPHABET).to_bytes() * size
        head = f"{m} {hash_of(filling)} ".encode()
        key = self._random.choice([None, None, *range(KEYS)])
        return Message((head + filling)[: max(size, len(head))], None if key is None else f"k{key}".encode())

    def messages(self) -> list[Message]:
        """Create the messages of a batch."""
        return [self.message() for _ in range(self._random.randint(*self._plan.batch))]


def hash_of(value: bytes) -> str:
    """Return a hash of *value*."""
    return hashlib.blake2b(value, digest_size=8).hexdigest()


def id_of(value: bytes) -> str | None:
    """Return the id in *value*, or None if it has none."""
    head, space, _ = value.partition(b" ")
    return head.decode("ascii") if space and head.isascii() and head.count(b":") == 2 else None


def sent_entries(messages: Sequence[Message], due: int | None = None) -> list[Sent]:
    """Return the history's entries for *messages* that are about to be sent."""
    return [Sent(_id(one), hash_of(one.value), len(one.value), key_of(one.key), due=due) for one in messages]


def delivered_entries(messages: Sequence[ReceivedMessage], attempt: int | None = None) -> list[Delivered]:
    """Return the history's entries for *messages* that were delivered."""
    return [
        Delivered(
            one.partition,
            one.offset,
            id_of(one.value),
            hash_of(one.value),
            key_of(one.key),
            round(one.timestamp.timestamp() * 1e6),
            attempt,
        )
        for one in messages
    ]


def key_of(key: bytes | None) -> str | None:
    """Return *key* as the history writes it."""
    return None if key is None else key.decode("ascii", "backslashreplace")


def _id(message: Message) -> str:
    m = id_of(message.value)
    assert m is not None  # noqa: S101 - created by MessageFactory
    return m
