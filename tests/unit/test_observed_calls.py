"""An observer wraps what it is given, and changes nothing of it, whatever it raises, returns or swallows."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import Message, ProducerResult
from sqlmq.hooks.observer import ObservedHandling, observe_send, observe_submit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MESSAGES = [Message(b"1"), Message(b"2")]


class Log:
    """Counts what is sent, and fails if it is told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.sent: list[list[Message]] = []
        self._error = error

    def send(self, messages: Sequence[Message]) -> list[ProducerResult]:
        self.sent.append(list(messages))
        if self._error is not None:
            raise self._error
        return [ProducerResult("orders", 0, offset) for offset in range(len(messages))]

    def submit(self, message: Message) -> Future[ProducerResult]:
        future: Future[ProducerResult] = Future()
        future.set_result(self.send([message])[0])
        return future


class Observer:
    """An observer that does *wrap* around each call, and *handle* around a handler's."""

    def __init__(
        self, wrap: Callable[[Any, Callable[[Any], Any]], Any], handle: Callable[[], Any] = nullcontext
    ) -> None:
        self._wrap = wrap
        self._handle = handle

    def send(self, _topic: str, messages: Any, send: Callable[[Any], Any]) -> Any:
        return self._wrap(messages, send)

    def submit(self, _topic: str, message: Any, submit: Callable[[Any], Any]) -> Any:
        return self._wrap(message, submit)

    def handle(self, _group: str, _messages: Any) -> Any:
        return self._handle()


def fails(_given: Any, _call: Callable[[Any], Any]) -> Any:
    raise ArithmeticError("of the observer")


def fails_afterwards(given: Any, call: Callable[[Any], Any]) -> Any:
    call(given)
    raise ArithmeticError("of the observer")


def forgets(_given: Any, _call: Callable[[Any], Any]) -> Any:
    return None


def returns_nothing(given: Any, call: Callable[[Any], Any]) -> Any:
    call(given)


def calls_twice(given: Any, call: Callable[[Any], Any]) -> Any:
    call(given)
    return call(given)


def swallows(given: Any, call: Callable[[Any], Any]) -> Any:
    with suppress(Exception):
        return call(given)


def replaces_the_error(given: Any, call: Callable[[Any], Any]) -> Any:
    try:
        return call(given)
    except Exception as error:
        raise ArithmeticError("of the observer") from error


WAYS = [fails, fails_afterwards, forgets, returns_nothing, calls_twice, swallows, replaces_the_error]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_sent_is_sent_once_whatever_an_observer_does(way: Any) -> None:
    log = Log()

    results = observe_send(Observer(way), "orders", MESSAGES, log.send)
    future = observe_submit(Observer(way), "orders", MESSAGES[0], log.submit)

    assert [result.offset for result in results] == [0, 1]
    assert future.result(0).offset == 0
    assert log.sent == [MESSAGES, MESSAGES[:1]]


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_to_send_is_raised_whatever_an_observer_does(way: Any) -> None:
    log = Log(ValueError("of the database"))

    with pytest.raises(ValueError, match="of the database"):
        observe_send(Observer(way), "orders", MESSAGES, log.send)

    assert log.sent == [MESSAGES]


def test_an_observer_may_send_other_messages() -> None:
    log = Log()

    observe_send(Observer(lambda _given, call: call([Message(b"3")])), "orders", MESSAGES[:1], log.send)

    assert [[message.value for message in messages] for messages in log.sent] == [[b"3"]]


# --- Around a handler ---


class FailsBefore(nullcontext[None]):
    def __enter__(self) -> None:
        raise ArithmeticError("of the observer")


@contextmanager
def fails_after() -> Iterator[None]:
    yield
    raise ArithmeticError("of the observer")


@contextmanager
def swallows_around() -> Iterator[None]:
    with suppress(BaseException):
        yield


@contextmanager
def replaces() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ArithmeticError("of the observer") from error


def no_context() -> object:
    return object()


AROUND = [FailsBefore, fails_after, swallows_around, replaces, no_context]


@pytest.mark.parametrize("around", AROUND)
def test_a_handler_has_succeeded_whatever_an_observer_does(around: Any, caplog: pytest.LogCaptureFixture) -> None:
    handled = []

    with ObservedHandling(Observer(fails, around), "billing", []):
        handled.append(1)

    assert handled == [1]
    is_at_fault = around in (FailsBefore, fails_after, no_context)
    assert [record.__dict__["sqlmq_event"] for record in caplog.records] == ["observer failed"] * is_at_fault


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("error", [ValueError("of the handler"), StopIteration(), SystemExit(3)], ids=repr)
def test_a_handler_has_failed_whatever_an_observer_does(around: Any, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, ObservedHandling(Observer(fails, around), "billing", []):
        raise error

    assert raised.value is error
