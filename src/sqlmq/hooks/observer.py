"""The seam for telemetry: what stands around each sending, and around each call of a handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from sqlmq.model.message import Message, ProducerResult


class Destined(Protocol):
    """What a producer returns for a message: a ProducerResult, a Publication or a DelayedMessage."""

    @property
    def partition(self) -> int:
        """The number of the partition it goes to."""


Sent = TypeVar("Sent", bound=Destined)


class Observer(Protocol):
    """Stands around what an MQ sends and handles: see ``MQ.observe``. Called by any thread, and by several at once."""

    def send(
        self, topic: str, messages: Sequence[Message], send: Callable[[Sequence[Message]], list[Sent]]
    ) -> list[Sent]:
        """Call *send* once, with *messages* or as many others in their place; return what it returns, raise what it raises.

        With ``session=`` *send* gives them to the transaction, with a delay it stores them.
        """

    def submit(
        self, topic: str, message: Message, submit: Callable[[Message], Future[ProducerResult]]
    ) -> Future[ProducerResult]:
        """Call *submit* once, with *message* or another one in its place, and return its future."""

    def handle(self, group: str, messages: Sequence[Message]) -> AbstractContextManager[object]:
        """What to enter around the handler's call with *messages* of one partition. It lets errors pass."""
