"""Code of the application runs in the middle of ours: callbacks, log handlers, events, signal handlers, forks.

It goes through, or it gets an error. It never waits for itself, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlmq import MQ, AsyncMQ, Message
from sqlmq.errors import DatabaseBusyError, ForkedError, SessionError, SqlmqError
from tests.support.processes import forks
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from sqlalchemy import Engine

    from sqlmq import Consumer, Producer, ProducerResult
    from tests.conftest import DatabaseUnderTest

sqlite_only = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def mq(database: DatabaseUnderTest) -> Iterator[MQ]:
    with MQ(database.url, schema=database.schema) as mq:
        mq.create_topic("orders", 1)
        yield mq


def count(mq: MQ) -> int:
    return mq.admin.describe_topic("orders").messages


def in_thread(call: Callable[[], object]) -> object:
    """The result of *call* in a thread that a deadlock leaves behind."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert results, "it waits for itself"
    return results[0]


# --- Callbacks ---


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda producer: producer.produce(Message(b"next")), id="produce"),
        pytest.param(lambda producer: producer.submit(Message(b"next")).result(PATIENCE_SECONDS), id="submit"),
        pytest.param(lambda producer: producer.produce_many([Message(b"next")]), id="produce_many"),
        pytest.param(lambda producer: producer.close(), id="close"),
    ],
)
def test_a_callback_may_use_the_producer_whose_message_it_is_of(mq: MQ, act: Callable[[Producer], object]) -> None:
    producer = mq.producer("orders")
    is_over = threading.Event()

    def callback(_future: Future[ProducerResult]) -> None:
        act(producer)
        is_over.set()

    producer.submit(Message(b"first")).add_done_callback(callback)

    assert is_over.wait(PATIENCE_SECONDS)


def test_a_callback_that_does_not_end_delays_nobody(mq: MQ) -> None:
    producer = mq.producer("orders")
    has_begun, may_end = threading.Event(), threading.Event()

    def callback(_future: Future[ProducerResult]) -> None:
        if (
            threading.current_thread() is not threading.main_thread()
        ):  # where it is called if the message was sent before
            has_begun.set()
            may_end.wait(PATIENCE_SECONDS)

    def begin() -> bool:
        producer.submit(Message(b"first")).add_done_callback(callback)
        return has_begun.wait(0.1)

    until(begin, "a callback")
    sent = count(mq)
    try:
        results = [
            producer.submit(Message(b"other")).result(PATIENCE_SECONDS / 3),
            producer.produce(Message(b"third"), timeout=PATIENCE_SECONDS / 3),
        ]
        in_thread(lambda: producer.produce(Message(b"fourth")))
    finally:
        may_end.set()

    assert [result.offset - sent for result in results] == [0, 1]


def test_a_callback_may_wait_for_the_next_callback(mq: MQ) -> None:
    producer = mq.producer("orders")
    inner, outer = threading.Event(), threading.Event()

    def callback(_future: Future[ProducerResult]) -> None:
        producer.submit(Message(b"next")).add_done_callback(lambda _: inner.set())
        if inner.wait(PATIENCE_SECONDS):
            outer.set()

    producer.submit(Message(b"first")).add_done_callback(callback)

    assert outer.wait(PATIENCE_SECONDS)


def test_callbacks_are_called_in_the_order_of_the_messages(mq: MQ) -> None:
    called: list[int] = []

    with mq.producer("orders") as producer:
        for _ in range(300):
            producer.submit(Message(b"")).add_done_callback(lambda future: called.append(future.result().offset))

    assert called == list(range(300))


# --- Log records ---


class ToQueue(logging.Handler):
    """Sends each record into the queue, except those that arise while it does so."""

    def __init__(self, producer: Producer) -> None:
        super().__init__()
        self._producer = producer
        self._inside = threading.local()
        self.sent = self.refused = 0

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self._inside, "is_sending", False):
            return
        self._inside.is_sending = True
        try:
            self._producer.produce(Message(record.getMessage().encode()))
            self.sent += 1
        except SqlmqError:
            self.refused += 1
        finally:
            self._inside.is_sending = False


@pytest.fixture
def echoing_mq(database: DatabaseUnderTest) -> Iterator[MQ]:
    """An MQ whose engine logs each statement."""
    engine = create_engine(database.url, echo=True)
    with MQ(engine, schema=database.schema) as mq:
        mq.create_topic("orders", 1)
        yield mq
    engine.dispose()


@pytest.fixture
def echoing(echoing_mq: MQ) -> Iterator[tuple[Producer, ToQueue]]:
    """A producer of that MQ, and a handler that sends all records by that producer."""
    producer = echoing_mq.producer("orders")
    handler = ToQueue(producer)
    logging.getLogger().addHandler(handler)
    try:
        yield producer, handler
    finally:
        logging.getLogger().removeHandler(handler)


def test_a_log_handler_may_send_into_the_queue_what_arises_while_it_is_sent_to(
    echoing: tuple[Producer, ToQueue],
) -> None:
    producer, handler = echoing

    in_thread(lambda: [producer.produce(Message(b"mine")) for _ in range(3)])
    in_thread(lambda: producer.produce_many([Message(b"mine"), Message(b"mine too")]))

    # On Postgres an append is not a statement of SQLAlchemy's, so it logs none.
    assert handler.sent > 0 or not producer._core.database.dialect.one_writer


def test_a_log_handler_may_send_into_the_queue_what_the_commit_of_a_block_logs(
    echoing_mq: MQ, echoing: tuple[Producer, ToQueue]
) -> None:
    """The block has locked the partition then. The handler would wait for it until the database gives up, after 30 seconds."""
    producer, _handler = echoing
    producer.produce(Message(b"first"))
    began = time.monotonic()

    with (
        echoing_mq.consumer("orders", "billing") as consumer,
        consumer.transaction(timeout=PATIENCE_SECONDS) as tx,
    ):
        publication = producer.produce(Message(b"of the block"), session=tx.session)

    assert time.monotonic() - began < 15.0
    assert publication.result is not None


def test_threads_that_log_into_the_queue_do_not_wait_for_each_other(echoing: tuple[Producer, ToQueue]) -> None:
    """One is in the handler and waits for its message; the one that sends it must not wait for the handler's lock."""
    producer, _handler = echoing
    log = logging.getLogger("application")
    log.setLevel(logging.INFO)

    def work() -> None:
        for number in range(5):
            log.info("number %d", number)
            producer.produce(Message(b"mine"))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)

    assert not any(thread.is_alive() for thread in threads)


def test_the_error_of_a_log_handler_does_not_become_that_of_a_message(
    echoing: tuple[Producer, ToQueue], capsys: pytest.CaptureFixture[str]
) -> None:
    producer, handler = echoing

    def refuse(record: logging.LogRecord) -> None:
        if threading.current_thread() is threading.main_thread():
            raise OSError(record.levelname)

    handler.emit = refuse  # type: ignore[method-assign]
    result = producer.produce(Message(b"mine"))

    assert result.offset == 0
    capsys.readouterr()


# --- In the middle of a statement: events of the engine, signal handlers, finalizers ---


@pytest.fixture
def interrupted(mq: MQ) -> Iterator[Callable[[Callable[[], object]], list[object]]]:
    """Runs something in the middle of the next append, in the thread that appends; gives its results, or errors."""
    waiting: list[tuple[Callable[[], object], list[object]]] = []

    def interrupt(*_: object) -> None:
        if waiting:
            call, results = waiting.pop()
            try:
                results.append(call())
            except Exception as error:  # noqa: BLE001 - the test looks at it
                results.append(error)

    real = type(mq._database.dialect).append

    def append(self: object, *arguments: Any) -> object:
        interrupt()
        return real(self, *arguments)  # type: ignore[arg-type]

    def during(call: Callable[[], object]) -> list[object]:
        results: list[object] = []
        waiting.append((call, results))
        return results

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(mq._database.dialect), "append", append)
        yield during


def test_what_interrupts_a_send_goes_through_or_is_refused(
    mq: MQ, interrupted: Callable[[Callable[[], object]], list[object]]
) -> None:
    producer = mq.producer("orders")
    results = interrupted(lambda: producer.produce(Message(b"inner")))

    in_thread(lambda: producer.produce(Message(b"outer")))

    (result,) = results
    assert isinstance(result, SessionError) == mq._database.dialect.one_writer
    assert count(mq) == (1 if mq._database.dialect.one_writer else 2)


def test_what_interrupts_a_send_may_submit(mq: MQ, interrupted: Callable[[Callable[[], object]], list[object]]) -> None:
    producer = mq.producer("orders")
    results = interrupted(lambda: producer.submit(Message(b"inner")))

    in_thread(lambda: producer.produce(Message(b"outer")))

    future: Any = results[0]
    assert future.result(PATIENCE_SECONDS).offset == 1


def test_what_interrupts_a_send_may_close_the_producer(
    mq: MQ, interrupted: Callable[[Callable[[], object]], list[object]]
) -> None:
    producer = mq.producer("orders")
    results = interrupted(producer.close)

    in_thread(lambda: producer.produce(Message(b"outer")))

    assert results == [None]
    assert count(mq) == 1


@sqlite_only
def test_an_event_that_does_not_end_keeps_no_other_thread_for_ever(
    mq: MQ, interrupted: Callable[[Callable[[], object]], list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlmq.database.database._BLOCK_SECONDS", 0.01)
    monkeypatch.setattr("sqlmq.database.database._TURN_SECONDS", 0.02)
    has_begun, may_end = threading.Event(), threading.Event()

    def wait() -> bool:
        has_begun.set()
        return may_end.wait(PATIENCE_SECONDS)

    interrupted(wait)
    stuck = threading.Thread(target=mq.producer("orders").produce, args=[Message(b"42")], daemon=True)
    stuck.start()
    assert has_begun.wait(PATIENCE_SECONDS)

    with pytest.raises(DatabaseBusyError, match="Other threads have kept"):
        mq.producer("orders").produce(Message(b"43"))
    may_end.set()
    stuck.join(PATIENCE_SECONDS)

    assert count(mq) == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
def test_a_signal_handler_may_submit_at_any_moment(mq: MQ) -> None:
    producer = mq.producer("orders")
    futures: list[Future[ProducerResult]] = []
    before = signal.signal(signal.SIGALRM, lambda *_: futures.append(producer.submit(Message(b"of the handler"))))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in range(200):
            producer.produce(Message(b"mine"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)

    for future in futures:
        future.result(PATIENCE_SECONDS)

    assert count(mq) == 200 + len(futures)


@pytest.fixture
def during_commit(
    mq: MQ, database: DatabaseUnderTest, engine: Engine
) -> Iterator[Callable[[Callable[[Consumer], object]], object]]:
    """Runs something in the middle of a consumer's commit, in its thread; gives the result, or the error."""
    mq.producer("orders").produce_many([Message(b"42")] * 3)
    with MQ(engine, schema=database.schema) as owner:
        consumer = owner.consumer("orders", "billing")
        assert len(consumer.poll(2, timeout=PATIENCE_SECONDS)) == 2

        def run(act: Callable[[Consumer], object]) -> object:
            outcomes: list[object] = []

            def interrupt(*_: object) -> None:
                if threading.current_thread() is threading.main_thread() and not outcomes:
                    outcomes.append(None)
                    try:
                        outcomes[0] = act(consumer)
                    except Exception as error:  # noqa: BLE001 - the test looks at it
                        outcomes[0] = error

            event.listen(engine, "checkout", interrupt)
            consumer.commit()
            event.remove(engine, "checkout", interrupt)
            return outcomes[0]

        yield run


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda consumer: consumer.consume(timeout=0), id="consume"),
        pytest.param(lambda consumer: consumer.poll(timeout=0), id="poll"),
        pytest.param(lambda consumer: next(iter(consumer)), id="iterate"),
        pytest.param(lambda consumer: consumer.commit(), id="commit"),
        pytest.param(lambda consumer: consumer.seek(0, 0), id="seek"),
        pytest.param(lambda consumer: consumer.transaction(timeout=0).__enter__(), id="transaction"),
    ],
)
def test_what_interrupts_a_call_of_a_consumer_is_refused_by_it(
    mq: MQ, during_commit: Callable[[Callable[[Consumer], object]], object], act: Callable[[Consumer], object]
) -> None:
    """It would find half of a step, and could commit what was not delivered."""
    outcome = during_commit(act)

    assert isinstance(outcome, RuntimeError)
    assert "interrupted" in str(outcome)
    assert mq.admin.lag("orders", "billing")[0].lag == 1


def test_what_interrupts_a_call_of_a_consumer_may_close_it(
    mq: MQ, during_commit: Callable[[Callable[[Consumer], object]], object]
) -> None:
    outcome = during_commit(lambda consumer: consumer.close())

    assert outcome is None
    with mq.consumer("orders", "billing") as other:  # gets the partition at once: the first one has left
        assert other.consume(timeout=PATIENCE_SECONDS).value == b"42"


# --- Forks ---


@forks
@sqlite_only
def test_a_fork_inside_a_transaction_does_not_wait_for_it(mq: MQ) -> None:
    mq.producer("orders").produce(Message(b"42"))
    waited: list[float] = []

    with mq.consumer("orders", "billing") as consumer, consumer.transaction(timeout=PATIENCE_SECONDS):
        before = mq._database.clock.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(0)
        waited.append(mq._database.clock.monotonic() - before)
        os.waitpid(child, 0)

    assert waited[0] < 3.0  # it took five seconds when it waited


@forks
@sqlite_only
def test_a_fork_beside_a_transaction_waits_a_second_at_most(mq: MQ) -> None:
    """The transaction may be waiting for the fork."""
    mq.producer("orders").produce(Message(b"42"))
    is_inside, has_forked = threading.Event(), threading.Event()

    def hold() -> bool:
        with mq.consumer("orders", "billing") as consumer, consumer.transaction(timeout=PATIENCE_SECONDS):
            is_inside.set()
            return has_forked.wait(PATIENCE_SECONDS)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert is_inside.wait(PATIENCE_SECONDS)
    before = mq._database.clock.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(0)
    seconds = mq._database.clock.monotonic() - before
    has_forked.set()
    os.waitpid(child, 0)
    holder.join(PATIENCE_SECONDS)

    assert seconds < 4.0  # one second is the limit, on a machine that is not busy


@forks
def test_a_child_that_was_forked_in_the_middle_of_a_call_sends_or_gets_an_error(
    mq: MQ, interrupted: Callable[[Callable[[], object]], list[object]]
) -> None:
    """As by a log handler or an event that starts a process. On SQLite the library has locks that are the parent's."""
    producer = mq.producer("orders")

    def fork() -> int:
        child = os.fork()
        if child == 0:
            status = 2
            try:
                producer.produce(Message(b"of the child"))
                status = 0
            except ForkedError:
                status = 1
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    results = interrupted(fork)
    in_thread(lambda: producer.produce(Message(b"outer")))

    is_refused = mq._database.dialect.one_writer
    assert results == [int(is_refused)]
    assert count(mq) == (1 if is_refused else 2)


@forks
@pytest.mark.parametrize("is_first", [True, False], ids=["registered before ours", "registered after ours"])
def test_a_hook_of_a_fork_uses_no_connection_of_another_process(
    mq: MQ, database: DatabaseUnderTest, *, is_first: bool
) -> None:
    """Hooks that were registered before ours run in the child while the connections are still the parent's."""
    program = f"""
import os, sys
producer = None
def hook():
    try:
        producer.produce(Message(b"of the hook"))
        outcome = "sent"
    except Exception as error:
        outcome = type(error).__name__
    os.write(1, f"{{outcome}}\\n".encode())
hooks = dict(before=hook, after_in_parent=hook, after_in_child=hook)
if {is_first}:
    os.register_at_fork(**hooks)
from sqlmq import MQ, Message
if not {is_first}:
    os.register_at_fork(**hooks)
mq = MQ({database.url!r}, schema={database.schema!r})
producer = mq.producer("orders")
producer.produce(Message(b"before"))
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
producer.produce(Message(b"after"))
mq.close()
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["SessionError" if is_first else "sent"] * 3
    assert count(mq) == (2 if is_first else 5)


# --- What a cancellation leaves behind ---


@sqlite_only
def test_an_invalidated_connection_of_a_session_keeps_no_lock(database: DatabaseUnderTest) -> None:
    """As after a request that was cut off in a statement, which an exception, and so its frames, still refer to."""

    async def cut_off() -> None:
        engine = create_async_engine(make_url(database.url).set(drivername="sqlite+aiosqlite"))
        async with AsyncMQ(database.url) as mq:
            producer = await mq.producer("orders")
            async with engine.begin() as conn:
                await conn.execute(text("CREATE TABLE invoice (number INTEGER)"))
            conn = await engine.connect()
            await conn.execute(text("INSERT INTO invoice VALUES (1)"))
            await producer.produce(Message(b"42"), session=conn)
            driven: Any = (await conn.get_raw_connection()).driver_connection
            endless = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"
            unfinished = await driven.execute(endless)
            await unfinished.fetchone()

            await conn.invalidate()

            other = sqlite3.connect(make_url(database.url).database or "", timeout=0.5, isolation_level=None)
            try:
                other.execute("BEGIN IMMEDIATE")
            finally:
                other.close()
            assert unfinished is not None
            await conn.close()
        await engine.dispose()

    asyncio.run(cut_off())


# --- The end of the process ---


def run_program(text: str, database: DatabaseUnderTest) -> str:
    """The output of a program that has an MQ, and a producer for the topic orders."""
    begin = f"""
import atexit, threading
from sqlmq import MQ, Message
mq = MQ({database.url!r}, schema={database.schema!r})
producer = mq.producer("orders")
"""
    done = subprocess.run(
        [sys.executable, "-c", begin + textwrap.dedent(text)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_is_sent_while_the_process_ends_arrives(mq: MQ, database: DatabaseUnderTest) -> None:
    """Threads are not waited for any more then, and some versions of Python start none."""
    program = """
        def at_exit():
            producer.submit(Message(b"submitted"))
            producer.produce(Message(b"with a limit"), timeout=20)
            producer.produce_many([Message(b"together")])
            for _ in range(50):
                producer.submit(Message(b"submitted"))

        atexit.register(at_exit)
        producer.produce(Message(b"before"))
    """

    run_program(program, database)

    assert count(mq) == 54


def test_an_mq_may_be_closed_and_read_while_the_process_ends(mq: MQ, database: DatabaseUnderTest) -> None:
    program = """
        def at_exit():
            with mq.consumer("orders", "billing") as consumer:
                print(consumer.consume(timeout=20).value)
            mq.close()

        atexit.register(at_exit)
        for _ in range(50):
            producer.submit(Message(b"42"))
    """

    output = run_program(program, database)

    assert output == "b'42'\n"
    assert count(mq) == 50


def test_threads_that_outlive_the_main_thread_may_submit(mq: MQ, database: DatabaseUnderTest) -> None:
    program = """
        def outlive():
            threading.main_thread().join()
            for _ in range(50):
                producer.submit(Message(b"42"))

        threading.Thread(target=outlive).start()
    """

    run_program(program, database)

    assert count(mq) == 50


# --- No more threads ---


class Shortage:
    """Threads of the library can't be started while it is on."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.is_on = False
        self.refused: list[str] = []
        real = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            if self.is_on and thread.name.startswith("sqlmq"):
                self.refused.append(thread.name)
                message = "can't start new thread"
                raise RuntimeError(message)
            real(thread)

        patched.setattr(threading.Thread, "start", start)


@pytest.fixture
def shortage(monkeypatch: pytest.MonkeyPatch) -> Shortage:
    return Shortage(monkeypatch)


def test_a_message_is_sent_without_threads(mq: MQ, shortage: Shortage) -> None:
    """Where connections are opened, and watched, by threads, there may be an error first. Then all is as before."""
    producer = mq.producer("orders")
    producer.produce(Message(b"warm"))
    shortage.is_on = True

    results = [
        producer.produce(Message(b"mine")),
        producer.produce(Message(b"mine"), timeout=PATIENCE_SECONDS),
        producer.submit(Message(b"mine")).result(PATIENCE_SECONDS),
    ]
    shortage.is_on = False

    assert [result.offset for result in results] == [1, 2, 3]
    assert producer.submit(Message(b"mine")).result(PATIENCE_SECONDS).offset == 4


def test_a_consumer_that_can_send_no_heartbeats_does_not_join(mq: MQ, shortage: Shortage) -> None:
    mq.producer("orders").produce(Message(b"42"))
    shortage.is_on = True
    with pytest.raises(RuntimeError, match="can't start new thread"):
        mq.consumer("orders", "billing")
    shortage.is_on = False

    members = mq.admin.members("orders", "billing") if mq.admin.groups("orders") else []
    with mq.consumer("orders", "billing") as consumer:
        message = consumer.consume(timeout=PATIENCE_SECONDS)

    assert members == []
    assert message.value == b"42"


def test_an_mq_whose_threads_could_not_be_started_closes(database: DatabaseUnderTest, shortage: Shortage) -> None:
    mq = MQ(database.url, schema=database.schema)
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    consumer = mq.consumer("orders", "billing")
    shortage.is_on = True
    with contextlib.suppress(RuntimeError):  # a connection more may be needed, which a thread opens
        producer.produce(Message(b"42"))
        consumer.consume(timeout=PATIENCE_SECONDS)
        consumer.poll(timeout=0.01)  # waits, for which other threads would look
    shortage.is_on = False

    mq.close()

    assert shortage.refused
    assert consumer.closed


def test_an_event_of_the_engine_may_produce(database: DatabaseUnderTest, engine: Engine) -> None:
    """A listener runs in the middle of our statements, on an engine that the application gave us."""
    outcomes: list[object] = []
    with MQ(engine, schema=database.schema) as mq:
        mq.create_topic("orders", 1)
        producer = mq.producer("orders")

        def listener(*_: object) -> None:
            if not outcomes:
                outcomes.append(None)
                try:
                    outcomes.append(producer.produce(Message(b"inner")))
                except SessionError as error:
                    outcomes.append(error)

        event.listen(engine, "commit", listener)
        in_thread(lambda: producer.produce_many([Message(b"x" * 100_000)] * 2))
        event.remove(engine, "commit", listener)

        assert count(mq) >= 2
    until(lambda: len(outcomes) in {0, 2}, "the listener's outcome")
