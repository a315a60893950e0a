"""The interface of telemetry: an observer wraps each send, and each call of a handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from sqlmq.model.message import Message, ProducerResult, ReceivedMessage


class Destined(Protocol):
    """What a producer returns for a message: a ProducerResult, a Publication or a DelayedMessage."""

    @property
    def partition(self) -> int:
        """The number of the message's partition."""


Sent = TypeVar("Sent", bound=Destined)


class Observer(Protocol):
    """Wraps what an MQ sends and handles: see ``MQ.observe``. Several threads may call it at once."""

    def send(
        self, topic: str, messages: Sequence[Message], send: Callable[[Sequence[Message]], list[Sent]]
    ) -> list[Sent]:
        """Call *send* once, with *messages* or the same number of others; return its result and pass its errors on.

        With ``session=``, *send* adds them to the transaction; with a delay, it stores them.
        """

    def submit(
        self, topic: str, message: Message, submit: Callable[[Message], Future[ProducerResult]]
    ) -> Future[ProducerResult]:
        """Call *submit* once, with *message* or another one, and return its future."""

    def handle(self, group: str, messages: Sequence[ReceivedMessage]) -> AbstractContextManager[object]:
        """Return a context for the handler's call with *messages* of one partition. It must pass errors on."""
