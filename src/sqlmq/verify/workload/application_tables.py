"""The rows that the application of a run writes to the same database, beside the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import insert
from sqlalchemy.sql import column, table

from sqlmq.verify.history import Placed
from sqlmq.verify.workload.payloads import id_of, sent_entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Insert

    from sqlmq.model.message import Message, ProducerResult
    from sqlmq.verify.history import Sent

EFFECT, ROW = "verify_effect", "verify_row"
"""Tables of the application: the rows that consumers write in their transactions, and those that producers write."""


class TransactionSend(NamedTuple):
    """A message that a transaction sends; *is_undone* if it is in a savepoint that is rolled back."""

    topic: str
    message: Message
    is_undone: bool = False

    @property
    def m(self) -> str:
        """The id of the message."""
        return id_of(self.message.value) or ""


class TransactionSends(NamedTuple):
    """The history's entries for the messages of a transaction."""

    messages: list[Sent]
    undone: list[str]

    @classmethod
    def of(cls, sends: Iterable[TransactionSend]) -> TransactionSends:
        """Return the entries for *sends*, in order."""
        sends = list(sends)
        messages = [sent_entries([send.message])[0]._replace(topic=send.topic) for send in sends]
        return cls(messages, [send.m for send in sends if send.is_undone])


def insert_row(schema: str | None, name: str, m: str, group: str | None = None) -> Insert:
    """Return the INSERT of a row for *m*."""
    target = table(name, column("group_name"), column("m"), schema=schema)
    return insert(target).values(group_name=group, m=m)


def placed_entries(messages: Sequence[Message], results: Sequence[ProducerResult | None]) -> list[Placed]:
    """Return the history's entries for the partitions and offsets in *results*."""
    return [
        Placed(id_of(message.value) or "", *(() if result is None else (result.partition, result.offset)))
        for message, result in zip(messages, results, strict=True)
    ]
