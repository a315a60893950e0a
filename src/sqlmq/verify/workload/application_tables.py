"""What the application of a run has beside the queue, in the same database: rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import insert
from sqlalchemy.sql import column, table

from sqlmq.verify.history import Placed
from sqlmq.verify.workload.payloads import id_of, sent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Insert

    from sqlmq.model.message import Message, ProducerResult
    from sqlmq.verify.history import Sent

EFFECT, ROW = "verify_effect", "verify_row"
"""Tables of the application's: what consumers did in their transactions, and what producers did."""


class Step(NamedTuple):
    """A message that a transaction sends, and whether it is in a savepoint that is rolled back."""

    topic: str
    message: Message
    is_undone: bool = False

    @property
    def m(self) -> str:
        """The message's id."""
        return id_of(self.message.value) or ""


class Told(NamedTuple):
    """What the history tells of the steps of a transaction."""

    messages: list[Sent]
    undone: list[str]

    @classmethod
    def of(cls, steps: Iterable[Step]) -> Told:
        """Tell of *steps*, in their order."""
        steps = list(steps)
        messages = [sent([step.message])[0]._replace(topic=step.topic) for step in steps]
        return cls(messages, [step.m for step in steps if step.is_undone])


def row(schema: str | None, name: str, m: str, group: str | None = None) -> Insert:
    """The statement that writes a row for *m*, in the transaction of whoever executes it."""
    target = table(name, column("group_name"), column("m"), schema=schema)
    return insert(target).values(group_name=group, m=m)


def placed(messages: Sequence[Message], results: Sequence[ProducerResult | None]) -> list[Placed]:
    """Where *messages* are, as far as that was told."""
    return [
        Placed(id_of(message.value) or "", *(() if result is None else (result.partition, result.offset)))
        for message, result in zip(messages, results, strict=True)
    ]
