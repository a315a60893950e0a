"""What comes out of a handler: each result and each exception has an outcome, and writing it down can't fail."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import Message, ReceivedMessage, Retry
from tests.support.handlers import Recorder, drain, numbered, parked_rows, position, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlmq import MQ

ONCE = Retry(max_attempts=1)


class NoTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class EndingTextError(Exception):
    def __str__(self) -> str:
        raise SystemExit


class NumberTextError(Exception):
    def __str__(self) -> str:
        return 42  # type: ignore[return-value]  # noqa: PLE0307 - an error of the application


class NoReprError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class StrangeText(str):
    """A text whose methods can't be relied on."""

    __slots__ = ()

    def splitlines(self, *_: object) -> list[str]:
        raise RuntimeError("no lines")

    def encode(self, *_: object, **_named: object) -> bytes:
        raise RuntimeError("no bytes")


class StrangeTextError(Exception):
    def __str__(self) -> str:
        return StrangeText("strange")


class NamelessMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name == "__qualname__":
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class NamelessError(Exception, metaclass=NamelessMeta):
    pass


class NoClassError(Exception):
    @property  # type: ignore[misc]  # as lazy objects have it
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class NotesError(Exception):
    __notes__ = 7  # type: ignore[assignment]


class LibraryTimeout(BaseException):
    """Some libraries of green threads raise such, so that no ``except Exception`` catches it."""


NoModuleError = type("NoModuleError", (Exception,), {"__module__": None})
ERRORS: dict[str, BaseException] = {
    "no text": NoTextError(),
    "a text that ends programs": EndingTextError(),
    "a number for a text": NumberTextError(),
    "no repr": NoReprError(NoReprError()),
    "a strange text": StrangeTextError(),
    "no name": NamelessError(),
    "no module": NoModuleError("x"),
    "no class": NoClassError(),
    "strange notes": NotesError(),
    "nothing to say": Exception(),
    "text that no database stores": ValueError("NUL \x00, half \ud800"),
    "a group": ExceptionGroup("several", [NoTextError(), NoModuleError("x")]),
    "a cancelled future": concurrent.futures.CancelledError(),
    "a cancelled task": asyncio.CancelledError(),
    "a time-out of a library": LibraryTimeout(),
    "a group of others than Exceptions": BaseExceptionGroup("several", [LibraryTimeout(), GeneratorExit()]),
}


def poisoned(mq: MQ) -> list[str]:
    """Send a poisoned message for each of ERRORS, each with a key of its own, and a good one after each."""
    names = list(ERRORS)
    messages = [Message(name.encode(), key=name.encode()) for name in names]
    send(mq, [one for message in messages for one in (message, Message(b"good", key=message.key))])
    return names


@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "transaction"])
def test_every_exception_is_a_failed_attempt_at_its_message_only(mq: MQ, transaction: bool) -> None:
    names = poisoned(mq)
    handled: list[bytes] = []

    def handler(message: ReceivedMessage, *_session: object) -> None:
        if message.value != b"good":
            raise ERRORS[message.value.decode()]
        handled.append(message.value)

    summary = drain(mq.consumer("orders", "billing"), handler, retry=ONCE, transaction=transaction)

    assert len(handled) == len(names)
    assert (summary.handled, summary.dead) == (len(names), len(names))
    dead = {message.key: message for message in mq.admin.parked("orders", "billing").list("dead")}
    assert set(dead) == {name.encode() for name in names}
    assert all(message.error_type for message in dead.values())
    assert dead[b"no text"].error == "(its text can't be printed)"
    assert str(dead[b"a number for a text"].error_type).endswith("NumberTextError")
    assert dead[b"no module"].error_type == "NoModuleError"
    assert dead[b"text that no database stores"].error == "NUL , half \\ud800"


def test_every_exception_of_a_batch_is_found_at_its_message(mq: MQ) -> None:
    names = poisoned(mq)

    def handler(messages: list[ReceivedMessage]) -> None:
        for message in messages:
            if message.value != b"good":
                raise ERRORS[message.value.decode()]

    summary = drain(mq.consumer("orders", "billing"), handler, batch_size=10, retry=Retry(2, backoff_seconds=0))

    assert (summary.handled, summary.dead) == (len(names), len(names))


def test_an_exception_that_is_no_exception_is_tried_again(mq: MQ) -> None:
    send(mq, numbered(1))
    raised: list[BaseException] = [asyncio.CancelledError(), LibraryTimeout()]

    def handler(_message: ReceivedMessage) -> None:
        if raised:
            raise raised.pop()

    summary = drain(mq.consumer("orders", "billing"), handler)

    assert (summary.handled, summary.failures, summary.dead) == (1, 2, 0)


def test_the_log_has_a_line_for_each_exception(mq: MQ, caplog: pytest.LogCaptureFixture) -> None:
    names = poisoned(mq)

    def handler(message: ReceivedMessage) -> None:
        if message.value != b"good":
            raise ERRORS[message.value.decode()]

    with caplog.at_level(logging.ERROR, "sqlmq"):
        drain(mq.consumer("orders", "billing"), handler, retry=ONCE)

    # That the records can be formatted, tracebacks included, is what caplog has shown by now.
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(names)
    assert "NoTextError: (its text can't be printed)" in "\n".join(lines)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_log_handler_that_raises_does_not_end_the_run(
    mq: MQ, monkeypatch: pytest.MonkeyPatch, batch_size: int | None
) -> None:
    send(mq, numbered(2, keys=2))
    emitted: list[str] = []

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            emitted.append(record.getMessage())
            raise ArithmeticError("of a log handler")

    log, raising = logging.getLogger("sqlmq.consumer"), Raising()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.addHandler(raising)
    try:
        summary = drain(mq.consumer("orders", "billing"), Recorder({b"0": 5}), batch_size=batch_size)
    finally:
        log.removeHandler(raising)

    assert (summary.handled, summary.dead) == (1, 1)
    assert any("failed" in line for line in emitted)


@pytest.mark.sync_only(
    "asyncio closes a coroutine that awaits a future with it; tests/aio/test_run.py raises it itself"
)
@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "transaction"])
def test_a_stray_generator_exit_is_a_failed_attempt(mq: MQ, transaction: bool) -> None:
    send(mq, numbered(2, keys=2))

    def handler(message: ReceivedMessage, *_session: object) -> None:
        if message.value == b"0":
            raise GeneratorExit

    summary = drain(mq.consumer("orders", "billing"), handler, retry=ONCE, transaction=transaction)

    assert (summary.handled, summary.dead) == (1, 1)


@pytest.mark.sync_only("sys.exit() in a thread is no business of an event loop")
@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), BaseExceptionGroup("several", [ValueError(), SystemExit(3)])],
    ids=["SystemExit", "KeyboardInterrupt", "group"],
)
def test_an_exception_for_the_program_ends_the_run_and_no_attempt_counts(mq: MQ, error: BaseException) -> None:
    send(mq, numbered(2))

    def handler(_message: ReceivedMessage) -> None:
        raise error

    with pytest.raises(type(error)):
        mq.consumer("orders", "billing").run(handler, handle_signals=False)

    assert position(mq) == 0
    assert drain(mq.consumer("orders", "billing"), Recorder(), retry=ONCE).handled == 2


# --- What is returned ---


async def coroutine() -> None: ...


def generator() -> Iterator[None]:
    yield


async def asynchronous_generator() -> AsyncIterator[None]:
    yield


class Awaitable:
    def __await__(self) -> Iterator[None]:
        return iter(())


UNFINISHED: dict[str, tuple[Callable[[], object], str]] = {
    "a coroutine": (coroutine, "returned a coroutine, which nothing awaits: use AsyncMQ"),
    "an awaitable": (Awaitable, "returned an awaitable (Awaitable), which nothing awaits: use AsyncMQ"),
    "a generator": (generator, "returned a generator"),
    "an asynchronous generator": (asynchronous_generator, "returned an asynchronous generator"),
    "a future": (Future[None], "returned a Future"),
    "a map": (lambda: map(print, []), "returned a map object"),
}


@pytest.mark.sync_only("with asyncio, what is awaitable is awaited: tests/aio/test_run.py")
@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 2}, {"transaction": True}], ids=["plain", "batch", "transaction"]
)
@pytest.mark.parametrize(("returned", "reason"), UNFINISHED.values(), ids=UNFINISHED)
def test_a_result_with_work_still_to_be_done_is_a_failed_attempt(
    mq: MQ, options: dict[str, Any], returned: Callable[[], object], reason: str
) -> None:
    send(mq, numbered(2, keys=2))

    summary = drain(mq.consumer("orders", "billing"), lambda *_given: returned(), retry=ONCE, **options)

    assert (summary.handled, summary.dead) == (0, 2)
    assert all(reason in str(message.error) for message in mq.admin.parked("orders", "billing").list("dead"))


@pytest.mark.sync_only("with asyncio, the tests' handlers are coroutine functions")
@pytest.mark.parametrize("kind", ["generator", "asynchronous generator"])
def test_a_function_that_yields_is_refused_before_any_message(mq: MQ, kind: str) -> None:
    send(mq, numbered(1))
    consumer = mq.consumer("orders", "billing")

    def handler(_message: Message) -> Iterator[None]:
        yield

    async def asynchronous_handler(_message: Message) -> AsyncIterator[None]:
        yield

    with pytest.raises(TypeError, match="must not `yield`"):
        consumer.run(handler if kind == "generator" else asynchronous_handler)

    assert position(mq) == 0


@pytest.mark.parametrize(
    "result", [0, True, "text", [1], object(), iter([1]), range(3)], ids=lambda result: type(result).__name__
)
def test_any_other_result_is_ignored(mq: MQ, result: object) -> None:
    send(mq, numbered(2))

    assert drain(mq.consumer("orders", "billing"), lambda _message: result).handled == 2


def test_what_was_parked_before_stays_in_order_when_a_result_is_refused(mq: MQ) -> None:
    send(mq, numbered(4, keys=2))
    order: list[bytes] = []
    refused: list[bytes] = []

    def handler(message: ReceivedMessage) -> object:
        if message.value == b"0" and not refused:
            refused.append(message.value)
            return generator()
        order.append(message.value)
        return None

    summary = drain(mq.consumer("orders", "billing"), handler)

    assert [value for value in order if value in (b"0", b"2")] == [b"0", b"2"]
    assert (summary.handled, summary.failures) == (4, 1)
    assert parked_rows(mq) == []
