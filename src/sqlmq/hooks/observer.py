"""The interface of telemetry: an observer wraps each send, and each call of a handler.

What an observer raises, returns or swallows changes nothing of what it wraps: its own errors are logged. Otherwise a
defect of telemetry would make good messages dead letters, or a failed handler look as if it had succeeded.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from sqlmq.hooks.error_text import text_of, type_name
from sqlmq.hooks.log_events import log_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager
    from types import TracebackType

    from sqlmq.model.message import Message, ProducerResult, ReceivedMessage

log = logging.getLogger("sqlmq.observer")

Given = TypeVar("Given")
Result = TypeVar("Result")


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
        """Return a context for the handler's call with *messages* of one partition. It should pass errors on."""


def observe_send(
    observer: Observer, topic: str, messages: Sequence[Message], send: Callable[[Sequence[Message]], list[Sent]]
) -> list[Sent]:
    """Send *messages* by *send*, wrapped by *observer*. Returns what *send* returned, or raises what it raised."""
    return _observed(observer.send, topic, messages, send)


def observe_submit(
    observer: Observer, topic: str, message: Message, submit: Callable[[Message], Future[ProducerResult]]
) -> Future[ProducerResult]:
    """Submit *message* by *submit*, wrapped by *observer*. Returns what *submit* returned, or raises what it raised."""
    return _observed(observer.submit, topic, message, submit)


class ObservedHandling:
    """A ``with`` block around the call of a handler, wrapped by an observer."""

    def __init__(self, observer: Observer, group: str, messages: Sequence[ReceivedMessage]) -> None:
        self._observer = observer
        self._group = group
        self._messages = messages
        self._context: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        try:
            context = self._observer.handle(self._group, self._messages)
            context.__enter__()
        except Exception as error:  # noqa: BLE001 - the observer's own
            _log(error)
        else:
            self._context = context

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._context is None:
            return
        try:
            self._context.__exit__(kind, error, traceback)
        except Exception as own:  # noqa: BLE001 - the observer's own, or what the handler raised
            if own is not error:
                _log(own)


class _Call(Generic[Given, Result]):
    """A function that is called once, with what the observer or we give it, and how that ended."""

    def __init__(self, function: Callable[[Given], Result]) -> None:
        self._function = function
        self._has_begun = False
        self._result: list[Result] = []
        self._error: BaseException | None = None

    def __call__(self, given: Given) -> Result:
        # A second call must not send the messages again.
        if self._has_begun:
            return self.outcome(given)
        self._has_begun = True
        try:
            result = self._function(given)
        except BaseException as error:
            self._error = error
            raise
        self._result.append(result)
        return result

    def outcome(self, given: Given) -> Result:
        """Return or raise how the call ended. Makes it, with *given*, if the observer has not."""
        if self._error is not None:
            raise self._error
        return self._result[0] if self._has_begun else self(given)

    def log_unless_own(self, error: Exception) -> None:
        """Log *error* unless the function has raised it."""
        if error is not self._error:
            _log(error)


def _observed(
    observe: Callable[[str, Given, Callable[[Given], Result]], object],
    topic: str,
    given: Given,
    function: Callable[[Given], Result],
) -> Result:
    call = _Call(function)
    try:
        observe(topic, given, call)
    except Exception as error:  # noqa: BLE001 - the observer's own, or what *function* raised
        call.log_unless_own(error)
    return call.outcome(given)


def _log(error: Exception) -> None:
    log.warning(
        "An observer failed, and is ignored for this call: %s: %s",
        type_name(error),
        text_of(error),
        extra=log_fields("observer failed", error=error),
    )
