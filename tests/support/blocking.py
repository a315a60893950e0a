"""The queue's face for asyncio, made to look like the synchronous one, so that one suite tests both.

An event loop runs in a thread. Each thread of a test has one long-lived task there that makes its calls, because what a
task received is its own; when the thread is dead, the task ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self, cast

from sqlmq import AsyncAdmin, AsyncConsumer, AsyncMQ, AsyncParked, AsyncProducer
from tests.support.application import Wrapped, unwrapped, unwrapped_source
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncSession

    from sqlmq import MQ, AsyncTransaction, Consumer, Message, ProducerResult, ReceivedMessage, RunSummary
    from sqlmq.aio.admin import AsyncTail

Face = AsyncMQ | AsyncAdmin | AsyncProducer | AsyncConsumer | AsyncParked
Call = tuple["Callable[[], Awaitable[Any]]", contextvars.Context, "Future[Any]"]


class Loop:
    """An event loop in a thread, with a task for each thread that calls."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, context: self.complaints.append(context))
        self._lock = threading.Lock()
        self._actors: dict[threading.Thread, _Actor] = {}
        self.complaints: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="event-loop", daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Await what *call* returns, in the task of the calling thread and with its context variables."""
        with self._lock:
            for thread in [thread for thread in self._actors if not thread.is_alive()]:
                self._actors.pop(thread).end()
            thread = threading.current_thread()
            if thread not in self._actors:
                self._actors[thread] = _Actor(self._loop)
            actor = self._actors[thread]
        return actor.run(call)

    def close(self) -> None:
        for actor in self._actors.values():
            actor.end()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        left = asyncio.all_tasks(self._loop)
        self._loop.close()
        assert not left, f"tasks left: {left}"
        assert not self.complaints, f"the event loop complained: {self.complaints}"


class _Actor:
    """A task that makes one call after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ended: Future[None] = Future()
        self._calls: asyncio.Queue[Call | None] = asyncio.Queue()
        started: Future[asyncio.Task[None]] = Future()

        def start() -> None:
            task = loop.create_task(self._serve())
            task.add_done_callback(lambda _task: self._ended.set_result(None))
            started.set_result(task)

        loop.call_soon_threadsafe(start, context=contextvars.Context())
        started.result(PATIENCE_SECONDS)

    def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        answer: Future[Any] = Future()
        self._loop.call_soon_threadsafe(self._calls.put_nowait, (call, contextvars.copy_context(), answer))
        return answer.result()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._calls.put_nowait, None)
        self._ended.result(PATIENCE_SECONDS)

    async def _serve(self) -> None:
        while (ordered := await self._calls.get()) is not None:
            call, context, answer = ordered
            tokens = [(variable, variable.set(value)) for variable, value in context.items()]
            try:
                answer.set_result(await call())
            except Exception as error:  # noqa: BLE001 - raised in the thread that called
                answer.set_exception(error)
            for variable, token in tokens:
                variable.reset(token)
            del ordered, call, context, answer, tokens


class Blocking:
    """An object for asyncio, with the methods of the synchronous one; what is private is that one's own."""

    def __init__(self, aio: Face, loop: Loop) -> None:
        self._aio = aio
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        if not hasattr(type(self._aio), name) or name.startswith("_"):
            assert not isinstance(self._aio, AsyncConsumer)
            return getattr(self._aio._sync, name)
        member = getattr(self._aio, name)
        return self._blocking(member) if inspect.iscoroutinefunction(member) else member

    def __enter__(self) -> Self:
        assert not isinstance(self._aio, AsyncAdmin | AsyncParked)
        self._loop.run(self._aio.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        aio = self._aio
        assert not isinstance(aio, AsyncAdmin | AsyncParked)
        self._loop.run(lambda: aio.__aexit__(kind, error, traceback))

    def __repr__(self) -> str:
        assert not isinstance(self._aio, AsyncConsumer)
        return repr(self._aio._sync)

    def _blocking(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = self._loop.run(lambda: method(*arguments, **unwrapped(options)))
            return wrapped(result, self._loop) if isinstance(result, AsyncProducer | AsyncConsumer) else result

        return call


class BlockingMQ(Blocking):
    _aio: AsyncMQ

    @property
    def admin(self) -> Blocking:
        return wrapped(self._aio.admin, self._loop)


class BlockingAdmin(Blocking):
    _aio: AsyncAdmin

    def parked(self, topic: str, group: str) -> Blocking:
        return wrapped(self._aio.parked(topic, group), self._loop)

    def tail(self, topic: str, **options: Any) -> Iterator[Message]:
        tail = self._aio.tail(topic, **options)
        # As the synchronous one does: what is wrong is raised at the call, and from that moment on messages are seen.
        self._loop.run(tail._begin)
        return self._each(tail)

    def _each(self, tail: AsyncTail) -> Iterator[Message]:
        while True:
            try:
                message = self._loop.run(tail.__anext__)
            except StopAsyncIteration:
                return
            yield message


class BlockingProducer(Blocking):
    _aio: AsyncProducer

    def submit(self, message: Message, *, partition: int | None = None) -> Submitted:
        async def submit() -> asyncio.Future[ProducerResult]:
            return self._aio.submit(message, partition=partition)

        return Submitted(self._loop.run(submit), self._loop)


class Submitted:
    """The future of a submitted message, as the synchronous producer's."""

    def __init__(self, future: asyncio.Future[ProducerResult], loop: Loop) -> None:
        self._future = future
        self._loop = loop

    def done(self) -> bool:
        return self._future.done()

    def cancel(self) -> bool:
        async def cancel() -> bool:
            is_cancelled = self._future.cancel()
            # What waits in the core is withdrawn when the loop comes round to it.
            await asyncio.wait([asyncio.ensure_future(_nothing())])
            return is_cancelled

        return cast("bool", self._loop.run(cancel))

    def result(self, timeout: float | None = None) -> ProducerResult:
        async def wait() -> None:
            await asyncio.wait([self._future], timeout=timeout)

        self._loop.run(wait)
        return self._future.result()


class BlockingConsumer(Blocking):
    _aio: AsyncConsumer

    def messages(self) -> Iterator[Message]:
        return self._each(self._aio.messages())

    def consume_chan(self) -> Iterator[Message]:
        return self._each(self._aio.consume_chan())

    def __iter__(self) -> Iterator[Message]:
        return self._each(aiter(self._aio))

    def _each(self, iterator: Any) -> Iterator[Message]:
        try:
            while True:
                try:
                    message = self._loop.run(iterator.__anext__)
                except StopAsyncIteration:
                    return
                yield message
        finally:
            self._loop.run(iterator.aclose)

    def transaction(self, *, session: Any = None, **options: Any) -> BlockingTransaction:
        async def transaction() -> AsyncTransaction:
            return self._aio.transaction(session=unwrapped_source(session), **options)

        return BlockingTransaction(self._loop.run(transaction), self._loop)

    def run(self, handler: Callable[..., object], *, session: Any = None, **options: Any) -> RunSummary:
        """Run *handler* as a coroutine, which calls it in a thread, where tests may block."""

        async def awaited(given: Any, *sessions: AsyncSession) -> object:
            return await asyncio.to_thread(handler, given, *(Wrapped(one, self._loop) for one in sessions))

        options["session"] = unwrapped_source(session)
        return cast("RunSummary", self._loop.run(lambda: self._aio.run(awaited, **options)))

    def __getattr__(self, name: str) -> Any:
        return self._aio._core if name == "_core" else super().__getattr__(name)

    def __repr__(self) -> str:
        return repr(self._aio._core)

    def acknowledge(self) -> None:
        async def acknowledge() -> None:
            self._aio._core.acknowledge(self._aio._fetcher.receiver())

        self._loop.run(acknowledge)


class BlockingTransaction:
    """A transaction of a consumer, as the synchronous consumer's."""

    def __init__(self, aio: AsyncTransaction, loop: Loop) -> None:
        self._aio = aio
        self._loop = loop

    def __enter__(self) -> Self:
        self._loop.run(self._aio.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.run(lambda: self._aio.__aexit__(kind, error, traceback))

    def __iter__(self) -> Iterator[ReceivedMessage]:
        return iter(self._aio)

    @property
    def messages(self) -> list[ReceivedMessage]:
        return self._aio.messages

    @property
    def session(self) -> Wrapped:
        return Wrapped(self._aio.session, self._loop)

    @property
    def connection(self) -> Wrapped:
        return Wrapped(self._aio.connection, self._loop)


def acknowledge(consumer: Consumer) -> None:
    """Finish what the calling thread got, without asking for more."""
    aio: object = consumer
    if isinstance(aio, BlockingConsumer):
        aio.acknowledge()
    else:
        consumer._core.acknowledge(threading.current_thread())


def blocking(aio: AsyncMQ, loop: Loop) -> MQ:
    """*aio* as an MQ."""
    return cast("MQ", wrapped(aio, loop))


def wrapped(aio: Face, loop: Loop) -> Blocking:
    kinds: dict[type, type[Blocking]] = {
        AsyncMQ: BlockingMQ,
        AsyncAdmin: BlockingAdmin,
        AsyncProducer: BlockingProducer,
        AsyncConsumer: BlockingConsumer,
    }
    return kinds.get(type(aio), Blocking)(aio, loop)


async def _nothing() -> None: ...
