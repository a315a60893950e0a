"""What the messages of a run hold: who they are, how long, and a hash, so that damage shows."""

from __future__ import annotations

import hashlib
from itertools import count
from typing import TYPE_CHECKING

from sqlmq.model.message import Message
from sqlmq.verify.history import Delivered, Sent

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from sqlmq.verify.plan import Plan

KEYS = 12
"""How many keys there are; some messages have none."""

_ALPHABET = bytes(range(256))


class Making:
    """Makes the messages of one process, each with an id of its own."""

    def __init__(self, plan: Plan, process: str, chosen: random.Random) -> None:
        self._plan = plan
        self._prefix = f"{plan.run}:{process}"
        self._chosen = chosen
        self._numbers: Iterator[int] = count()

    def message(self) -> Message:
        """Make one."""
        m = f"{self._prefix}:{next(self._numbers)}"
        size = self._chosen.randint(*self._plan.payload)
        filling = self._chosen.choice(_ALPHABET).to_bytes() * size
        head = f"{m} {hash_of(filling)} ".encode()
        key = self._chosen.choice([None, None, *range(KEYS)])
        return Message((head + filling)[: max(size, len(head))], None if key is None else f"k{key}".encode())

    def messages(self) -> list[Message]:
        """Make as many as a batch has."""
        return [self.message() for _ in range(self._chosen.randint(*self._plan.batch))]


def hash_of(value: bytes) -> str:
    """What tells *value* from what became of it."""
    return hashlib.blake2b(value, digest_size=8).hexdigest()


def id_of(value: bytes) -> str | None:
    """The id in *value*; None if there is none that can be read."""
    head, space, _ = value.partition(b" ")
    return head.decode("ascii") if space and head.isascii() and head.count(b":") == 2 else None


def sent(messages: Sequence[Message], due: int | None = None) -> list[Sent]:
    """What the history tells of *messages* that are about to be sent."""
    return [Sent(_id(one), hash_of(one.value), len(one.value), key_of(one.key), due=due) for one in messages]


def delivered(messages: Sequence[Message], attempt: int | None = None) -> list[Delivered]:
    """What the history tells of *messages* that have arrived."""
    return [
        Delivered(
            one.partition or 0,
            one.offset or 0,
            id_of(one.value),
            hash_of(one.value),
            key_of(one.key),
            None if one.timestamp is None else round(one.timestamp.timestamp() * 1e6),
            attempt,
        )
        for one in messages
    ]


def key_of(key: bytes | None) -> str | None:
    """*key* as the history tells it."""
    return None if key is None else key.decode("ascii", "backslashreplace")


def _id(message: Message) -> str:
    m = id_of(message.value)
    assert m is not None  # noqa: S101 - made here
    return m
