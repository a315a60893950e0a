"""The coalescer lets nobody wait for company, nobody be forgotten, and nobody pay for another batch."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest

from sqlmq.errors import DatabaseBusyError, DatabaseUnavailableError, OutcomeUnknownError
from sqlmq.model.message import Message, ProducerResult
from sqlmq.operations.produce import RoutedMessage
from sqlmq.producer.batcher import MOST_TOGETHER, Batcher
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PATIENCE_SECONDS = 10.0


def routed(value: bytes) -> RoutedMessage:
    return RoutedMessage(Message(value), None)


class Log:
    """An append that waits for permission, and fails as it is told."""

    topic = "orders"
    batch_seconds: float = PATIENCE_SECONDS

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.threads: list[threading.Thread] = []
        self.failures: deque[BaseException | None] = deque()
        self.may_go = threading.Event()
        self.may_go.set()
        self.has_begun = threading.Semaphore(0)
        self._offset = 0

    def append_batch(self, messages: Sequence[RoutedMessage]) -> list[ProducerResult]:
        self.threads.append(threading.current_thread())
        self.batches.append([one.message.value for one in messages])
        self.has_begun.release()
        assert self.may_go.wait(PATIENCE_SECONDS)
        failure = self.failures.popleft() if self.failures else None
        if failure is not None:
            raise failure
        first = self._offset
        self._offset += len(messages)
        return [ProducerResult("orders", 0, offset) for offset in range(first, self._offset)]

    def wait_for_batch(self) -> None:
        assert self.has_begun.acquire(timeout=PATIENCE_SECONDS)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def coalescer(log: Log) -> Iterator[Batcher]:
    made = Batcher(log)
    yield made
    log.may_go.set()
    # Where a message is stranded, closing waits for it for ever.
    closing = threading.Thread(target=made.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_SECONDS)


class Threads:
    """Starts a thread for each call. One that is stranded fails its test, and does not keep the run from ending."""

    def submit(self, call: Callable[..., ProducerResult], *arguments: object) -> Future[ProducerResult]:
        future: Future[ProducerResult] = Future()

        def run() -> None:
            try:
                future.set_result(call(*arguments))
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test looks at it
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future


@pytest.fixture
def threads() -> Threads:
    return Threads()


def until_waiting(coalescer: Batcher, count: int) -> None:
    """Return when *count* messages wait for the batch that is under way."""

    def waiting() -> int:
        # A message under way stays in the queue until its outcome is known.
        return sum(one.batch is None for one in list(coalescer._waiting))

    until(lambda: waiting() == count, f"{count} messages to wait")


def call_behind(coalescer: Batcher, threads: Threads, values: list[bytes]) -> list[Future[ProducerResult]]:
    """Have *values* wait in calls, in this order, behind what is under way."""
    calls = []
    for value in values:
        calls.append(threads.submit(coalescer.call, routed(value), None))
        until_waiting(coalescer, len(calls))
    return calls


def test_a_lone_caller_sends_in_its_own_thread(coalescer: Batcher, log: Log) -> None:
    result = coalescer.call(routed(b"42"), None)

    assert result == ("orders", 0, 0)
    assert log.threads == [threading.current_thread()]


def test_callers_one_after_the_other_each_send_alone(coalescer: Batcher, log: Log) -> None:
    for value in (b"0", b"1", b"2"):
        coalescer.call(routed(value), None)

    assert log.batches == [[b"0"], [b"1"], [b"2"]]


def test_callers_that_come_during_a_batch_go_together_in_the_next(
    coalescer: Batcher, log: Log, threads: Threads
) -> None:
    log.may_go.clear()
    first = threads.submit(coalescer.call, routed(b"first"), None)
    log.wait_for_batch()
    calls = call_behind(coalescer, threads, [b"0", b"1", b"2", b"3"])

    log.may_go.set()

    assert first.result(PATIENCE_SECONDS).offset == 0
    assert [call.result(PATIENCE_SECONDS).offset for call in calls] == [1, 2, 3, 4]
    assert log.batches == [[b"first"], [b"0", b"1", b"2", b"3"]]


def test_the_lead_is_handed_to_one_that_waits(coalescer: Batcher, log: Log, threads: Threads) -> None:
    log.may_go.clear()
    first = threads.submit(coalescer.call, routed(b"first"), None)
    log.wait_for_batch()
    calls = call_behind(coalescer, threads, [b"0", b"1"])

    log.may_go.set()
    for call in (first, *calls):
        call.result(PATIENCE_SECONDS)

    assert len(set(log.threads)) == 2


def test_a_leader_returns_when_its_own_batch_is_done(coalescer: Batcher, log: Log, threads: Threads) -> None:
    log.may_go.clear()
    first = threads.submit(coalescer.call, routed(b"first"), None)
    log.wait_for_batch()
    call_behind(coalescer, threads, [b"behind"])
    may_begin, log.may_go = log.may_go, threading.Event()

    may_begin.set()

    assert first.result(PATIENCE_SECONDS).offset == 0


def test_no_batch_has_more_than_the_most(coalescer: Batcher, log: Log) -> None:
    log.may_go.clear()
    futures = [coalescer.submit(routed(b"first"))]
    log.wait_for_batch()
    futures += [coalescer.submit(routed(b"")) for _ in range(MOST_TOGETHER + 1)]

    log.may_go.set()
    results = [future.result(PATIENCE_SECONDS) for future in futures]

    assert [len(batch) for batch in log.batches] == [1, MOST_TOGETHER, 1]
    assert [result.offset for result in results] == list(range(MOST_TOGETHER + 2))


def test_submitting_does_not_wait(coalescer: Batcher, log: Log) -> None:
    log.may_go.clear()

    futures = [coalescer.submit(routed(b"%d" % i)) for i in range(3)]

    assert not any(future.done() for future in futures)


def test_an_error_reaches_all_of_its_batch_and_nobody_else(coalescer: Batcher, log: Log, threads: Threads) -> None:
    log.may_go.clear()
    log.failures.extend([None, RuntimeError("refused"), None])
    first = threads.submit(coalescer.call, routed(b"first"), None)
    log.wait_for_batch()
    calls = call_behind(coalescer, threads, [b"0", b"1"])

    log.may_go.set()

    assert first.result(PATIENCE_SECONDS).offset == 0
    for call in calls:
        with pytest.raises(RuntimeError, match="refused"):
            call.result(PATIENCE_SECONDS)
    assert coalescer.call(routed(b"after"), None).offset == 1


def test_a_call_with_a_timeout_that_is_not_reached_returns_the_place(coalescer: Batcher) -> None:
    assert coalescer.call(routed(b"42"), PATIENCE_SECONDS) == ("orders", 0, 0)


def test_a_call_whose_turn_does_not_come_in_time_is_never_sent(coalescer: Batcher, log: Log) -> None:
    log.may_go.clear()
    first = coalescer.submit(routed(b"first"))
    log.wait_for_batch()

    with pytest.raises(TimeoutError, match="will not be"):
        coalescer.call(routed(b"late"), 0.01)
    log.may_go.set()
    first.result(PATIENCE_SECONDS)
    coalescer.call(routed(b"after"), None)

    assert log.batches == [[b"first"], [b"after"]]


def test_a_call_that_is_under_way_at_its_timeout_has_an_unknown_outcome(coalescer: Batcher, log: Log) -> None:
    log.may_go.clear()

    # Long enough for the thread that sends to have begun.
    with pytest.raises(OutcomeUnknownError):
        coalescer.call(routed(b"42"), 1)
    log.may_go.set()

    assert coalescer.call(routed(b"after"), None).offset == 1


def test_a_cancelled_message_is_left_out(coalescer: Batcher, log: Log) -> None:
    log.may_go.clear()
    first = coalescer.submit(routed(b"first"))
    log.wait_for_batch()
    kept, cancelled = coalescer.submit(routed(b"kept")), coalescer.submit(routed(b"cancelled"))

    assert cancelled.cancel()
    log.may_go.set()

    assert [first.result(PATIENCE_SECONDS).offset, kept.result(PATIENCE_SECONDS).offset] == [0, 1]
    assert log.batches == [[b"first"], [b"kept"]]


def test_those_behind_a_batch_of_cancelled_messages_are_sent(coalescer: Batcher, log: Log) -> None:
    log.may_go.clear()
    first = coalescer.submit(routed(b"first"))
    log.wait_for_batch()
    assert coalescer.submit(routed(b"cancelled")).cancel()

    log.may_go.set()
    first.result(PATIENCE_SECONDS)

    assert coalescer.submit(routed(b"after")).result(PATIENCE_SECONDS).offset == 1


def test_an_interrupted_leader_strands_nobody(coalescer: Batcher, log: Log, threads: Threads) -> None:
    log.may_go.clear()
    log.failures.append(KeyboardInterrupt())
    leader = threads.submit(coalescer.call, routed(b"leader"), None)
    log.wait_for_batch()
    calls = call_behind(coalescer, threads, [b"0", b"1"])

    log.may_go.set()

    with pytest.raises(KeyboardInterrupt):
        leader.result(PATIENCE_SECONDS)
    assert [call.result(PATIENCE_SECONDS).offset for call in calls] == [0, 1]


def test_those_in_the_batch_of_an_interrupted_leader_are_told_that_the_outcome_is_unknown(
    coalescer: Batcher, log: Log, threads: Threads
) -> None:
    log.may_go.clear()
    log.failures.extend([None, KeyboardInterrupt()])
    first = threads.submit(coalescer.call, routed(b"first"), None)
    log.wait_for_batch()
    leader, follower = call_behind(coalescer, threads, [b"leader", b"follower"])

    log.may_go.set()
    first.result(PATIENCE_SECONDS)

    with pytest.raises(KeyboardInterrupt):
        leader.result(PATIENCE_SECONDS)
    with pytest.raises(OutcomeUnknownError):
        follower.result(PATIENCE_SECONDS)


def test_a_caller_that_is_interrupted_while_it_waits_strands_nobody(
    coalescer: Batcher, log: Log, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_waiting: object) -> None:
        raise KeyboardInterrupt

    log.may_go.clear()
    first = threads.submit(coalescer.call, routed(b"first"), None)
    log.wait_for_batch()
    with monkeypatch.context() as patched:
        patched.setattr("sqlmq.producer.batcher._WaitingCall.sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            coalescer.call(routed(b"interrupted"), None)
    behind = coalescer.submit(routed(b"behind"))

    log.may_go.set()

    first.result(PATIENCE_SECONDS)
    assert behind.result(PATIENCE_SECONDS).topic == "orders"


def test_close_waits_for_everything_that_was_submitted(coalescer: Batcher, log: Log) -> None:
    log.may_go.clear()
    futures = [coalescer.submit(routed(b"first"))]
    log.wait_for_batch()
    futures += [coalescer.submit(routed(b"%d" % i)) for i in range(MOST_TOGETHER + 1)]
    closing = threading.Thread(target=coalescer.close)
    closing.start()

    log.may_go.set()
    closing.join(PATIENCE_SECONDS)

    assert all(future.done() for future in futures)


def test_closing_does_not_try_each_batch_where_the_database_is_gone(coalescer: Batcher, log: Log) -> None:
    log.may_go.clear()
    log.failures.append(DatabaseUnavailableError("gone"))
    futures = [coalescer.submit(routed(b"%d" % number)) for number in range(2 * MOST_TOGETHER)]
    log.wait_for_batch()
    closing = threading.Thread(target=coalescer.close)
    closing.start()
    until(lambda: coalescer._is_closed, "the coalescer to take nothing more")

    log.may_go.set()
    closing.join(PATIENCE_SECONDS)

    assert not closing.is_alive()
    assert len(log.batches) == 1
    assert {str(future.exception(0)) for future in futures} == {"gone"}


def test_closing_without_having_sent_anything_ends(coalescer: Batcher) -> None:
    coalescer.close()


def test_many_threads_get_their_own_results(coalescer: Batcher, log: Log, threads: Threads) -> None:
    sent = [b"%d" % i for i in range(200)]

    calls = [threads.submit(coalescer.call, routed(value), None) for value in sent]
    results = [call.result(PATIENCE_SECONDS) for call in calls]

    in_order = [value for batch in log.batches for value in batch]
    assert [in_order[result.offset] for result in results] == sent


# --- Callbacks and threads ---


def test_a_callback_that_raises_is_logged_and_the_others_are_called(
    coalescer: Batcher, caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Event()

    def fail(_future: Future[ProducerResult]) -> None:
        message = "broken"
        raise ValueError(message)

    future = coalescer.submit(routed(b"42"))
    future.add_done_callback(fail)
    future.add_done_callback(lambda _: called.set())

    assert called.wait(PATIENCE_SECONDS)
    until(lambda: "exception calling callback" in caplog.text, "the record of the error")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_means_to_end_its_thread_keeps_no_other_from_being_called(
    coalescer: Batcher, log: Log, error: type[BaseException]
) -> None:
    called = threading.Event()

    def fail(_future: Future[ProducerResult]) -> None:
        raise error

    log.may_go.clear()
    coalescer.submit(routed(b"42")).add_done_callback(fail)
    coalescer.submit(routed(b"43")).add_done_callback(lambda _: called.set())
    log.may_go.set()

    assert called.wait(PATIENCE_SECONDS)


def test_a_callback_of_a_future_that_is_done_is_called_at_once(coalescer: Batcher) -> None:
    future = coalescer.submit(routed(b"42"))
    future.result(PATIENCE_SECONDS)
    threads_of_callbacks: list[threading.Thread] = []

    future.add_done_callback(lambda _: threads_of_callbacks.append(threading.current_thread()))

    assert threads_of_callbacks == [threading.current_thread()]


def test_a_callback_of_a_cancelled_message_is_called_by_the_thread_that_cancels(coalescer: Batcher, log: Log) -> None:
    log.may_go.clear()
    coalescer.submit(routed(b"first"))
    log.wait_for_batch()
    future = coalescer.submit(routed(b"cancelled"))
    threads_of_callbacks: list[threading.Thread] = []
    future.add_done_callback(lambda _: threads_of_callbacks.append(threading.current_thread()))

    future.cancel()

    assert threads_of_callbacks == [threading.current_thread()]


def test_the_callbacks_of_messages_that_a_caller_has_sent_run_in_another_thread(coalescer: Batcher, log: Log) -> None:
    """The caller waits for its own message alone."""
    log.may_go.clear()
    first = coalescer.submit(routed(b"first"))
    log.wait_for_batch()
    may_end, called = threading.Event(), threading.Event()

    def callback(_future: Future[ProducerResult]) -> None:
        called.set()
        may_end.wait(PATIENCE_SECONDS)

    coalescer.submit(routed(b"second")).add_done_callback(callback)
    log.may_go.set()
    first.result(PATIENCE_SECONDS)

    assert coalescer.call(routed(b"mine"), None).topic == "orders"
    assert called.wait(PATIENCE_SECONDS)
    may_end.set()


def test_closing_waits_for_callbacks(coalescer: Batcher) -> None:
    called: list[int] = []
    for _ in range(20):
        coalescer.submit(routed(b"42")).add_done_callback(lambda future: called.append(future.result().offset))

    coalescer.close()

    assert called == list(range(20))


def test_a_message_is_sent_by_its_own_thread_if_no_other_can_be_started(
    coalescer: Batcher, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    called: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        future = coalescer.submit(routed(b"42"))
        coalescer.call(routed(b"43"), PATIENCE_SECONDS)
    future.add_done_callback(lambda done: called.append(done.result().offset))

    assert called == [0]
    assert set(log.threads) == {threading.current_thread()}
    assert coalescer.submit(routed(b"44")).result(PATIENCE_SECONDS).offset == 2


def test_no_thread_is_left_when_nothing_was_submitted_for_a_while(coalescer: Batcher) -> None:
    coalescer.submit(routed(b"42")).result(PATIENCE_SECONDS)

    until(lambda: not coalescer._threads._threads, "the thread to end")


def test_a_lost_wake_up_is_found_by_the_one_that_waits(coalescer: Batcher, log: Log, threads: Threads) -> None:
    log.may_go.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Batcher, "_hand_over", lambda _batcher: None)
        first = threads.submit(coalescer.call, routed(b"first"), None)
        log.wait_for_batch()
        behind = threads.submit(coalescer.call, routed(b"behind"), None)
        until_waiting(coalescer, 1)
        log.may_go.set()

        assert [call.result(PATIENCE_SECONDS).offset for call in (first, behind)] == [0, 1]


def test_one_that_waits_for_a_batch_that_does_not_end_gives_up(coalescer: Batcher, log: Log, threads: Threads) -> None:
    log.may_go.clear()
    log.batch_seconds = 0.0
    first = threads.submit(coalescer.call, routed(b"first"), None)
    log.wait_for_batch()

    with pytest.raises(DatabaseBusyError, match="was not sent"):
        coalescer.call(routed(b"behind"), None)
    log.may_go.set()

    assert first.result(PATIENCE_SECONDS).offset == 0
    assert coalescer.call(routed(b"after"), None).offset == 1
    assert log.batches == [[b"first"], [b"after"]]


def test_what_interrupts_the_leading_thread_sends_alone(coalescer: Batcher, log: Log) -> None:
    results: list[ProducerResult] = []
    append = log.append_batch

    def interrupted(messages: Sequence[RoutedMessage]) -> list[ProducerResult]:
        if not results:
            results.append(ProducerResult("orders", 0, -1))
            results.append(coalescer.call(routed(b"inner"), None))
            results.append(coalescer.call(routed(b"inner"), PATIENCE_SECONDS))
        return append(messages)

    log.append_batch = interrupted  # type: ignore[method-assign]
    outer = coalescer.call(routed(b"outer"), None)

    assert [result.offset for result in (*results[1:], outer)] == [0, 1, 2]


def test_nobody_waits_for_a_lead_that_another_thread_takes_first(
    coalescer: Batcher, log: Log, threads: Threads
) -> None:
    """Between the look at the lead and the attempt to take it, another thread may be faster."""
    log.may_go.clear()
    log.batch_seconds = 0.0
    first = threads.submit(coalescer.call, routed(b"first"), None)
    log.wait_for_batch()
    coalescer._has_leader = False  # as it was seen just before

    with pytest.raises(DatabaseBusyError, match="was not sent"):
        coalescer.call(routed(b"behind"), None)
    log.may_go.set()

    assert first.result(PATIENCE_SECONDS).offset == 0


def test_the_end_of_the_process_does_not_wait_for_a_batch_that_does_not_end(
    coalescer: Batcher, log: Log, threads: Threads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log.may_go.clear()
    log.batch_seconds = 0.0
    first = threads.submit(coalescer.call, routed(b"first"), None)
    log.wait_for_batch()
    future = coalescer.submit(routed(b"behind"))
    monkeypatch.setattr(Batcher, "_is_ending", lambda _batcher: True)

    until(lambda: not coalescer._threads._threads, "the thread that sends to end")

    assert future.cancelled()
    assert "1 messages for topic 'orders' were not sent before the end of the process" in caplog.text
    log.may_go.set()
    assert first.result(PATIENCE_SECONDS).offset == 0
