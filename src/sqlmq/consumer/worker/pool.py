"""One call of ``run``: workers in threads of their own, watched by the thread that called it; and how it stops.

One thing in spite of its length: what a worker does, who watches it, and how it is stopped share a few fields.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlmq.consumer.core import NO_DEADLINE
from sqlmq.consumer.worker.attempts import AttemptRecorder
from sqlmq.consumer.worker.dispatcher import Dispatcher
from sqlmq.consumer.worker.executor import (
    TRANSIENT,
    Aborted,
    Failed,
    NotCommitted,
    NotStarted,
    Succeeded,
)
from sqlmq.consumer.worker.signals import SignalLink
from sqlmq.errors import ConsumerClosedError, DatabaseBusyError, DatabaseUnavailableError, FencedError
from sqlmq.hooks.log_hold import LogHold
from sqlmq.model.retry import next_batch_hint
from sqlmq.model.timing import Deadline

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from types import FrameType

    from sqlalchemy import Connection

    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.worker.config import RunConfig
    from sqlmq.consumer.worker.dispatcher import Attempt
    from sqlmq.consumer.worker.executor import Executor
    from sqlmq.model.message import ReceivedMessage

log = logging.getLogger("sqlmq.consumer")

_WATCH_SECONDS = 1.0
"""How often the workers are checked when nothing happens."""
_SAME_SIGNAL_SECONDS = 0.2
"""Two signals within this time are one: a terminal and systemd send it to a process and to its parent, which forwards it."""
_RECOVER_SECONDS = 0.5
"""How long a worker pauses after an error of the database."""
_JOIN_SECONDS = 0.1
"""How often the end of a worker is waited for, so that a second signal is noticed."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run has done."""

    handled: int
    """Messages that were handled."""
    failures: int
    """Attempts that failed."""
    parked: int
    """Messages that were parked, for a time at least."""
    dead: int
    """Messages that became dead letters."""
    skipped: int


class Worker:
    """A thread that handles messages, and its attempt at this moment."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.batch_hint = 1
        """How many messages its next attempt may count together."""
        self.attempt: Attempt | None = None
        self.began = math.inf
        """When its handler got its present messages, by the monotonic clock."""
        self.is_replaced = False
        """Whether another worker has taken its place, because its handler does not return."""
        self.has_warned = False
        """Whether the log has a warning of its present messages."""
        self.thread: threading.Thread

    def is_alive(self) -> bool:
        """Whether it can still finish what it has; as ``Receiver``."""
        return self.thread.is_alive()


class WorkerPool:
    """The workers of one run. They take turns at fetching, so that idle ones cost nothing."""

    def __init__(self, core: ConsumerCore, config: RunConfig, executor: Executor) -> None:
        self._core = core
        self.config = config
        self._executor = executor
        self._lock = core.lock
        self.clock = core.clock
        self._dispatcher = Dispatcher(core, config)
        self.recorder = AttemptRecorder(core, self._dispatcher, config)
        self._fetch_lock = threading.Lock()
        self._changed = self.clock.condition()
        self._workers: list[Worker] = []
        self._missing: list[str] = []
        """The names of workers that have to be started again."""
        self._error: BaseException | None = None
        self._signals = 0
        self._signalled_at = 0.0
        self._last_signal: signal.Signals | None = None
        self._idle_since = math.inf
        """When a worker first found nothing since the last attempt, by the monotonic clock; infinite until one has."""
        self._idle_at_wakeup = -1
        """How many wake-ups there were before the last fetch that found nothing. A later one may be for a message."""
        self.is_stopping = False

    @property
    def expects_successor(self) -> bool:
        """Whether another process is expected to take this one's place."""
        return self._last_signal is signal.SIGTERM

    def stop(self) -> None:
        """Begin no other message. May be called by any thread, and by a signal handler."""
        self._stop(self._wake)

    @contextlib.contextmanager
    def taking_signals(self, task: asyncio.Task[object] | None = None) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT, unless ``handle_signals`` is False: at the first in good order, at the second at once.

        SIGTERM means the end of this process, not of its work: another one is expected to take its place. *task* is the
        task that awaits the run. Handlers from before are called too.
        """
        link = SignalLink(self._on_signal, task)
        try:
            if self.config.handle_signals:
                link.install()
            yield
        finally:
            link.remove()

    def work(self) -> RunSummary:
        """Handle messages until ``stop``; return what was done.

        Raises what ended a worker, unless it was a failed message; KeyboardInterrupt, with its number, for a second
        signal.
        """
        try:
            for number in range(self.config.concurrency):
                self._start(f"sqlmq-run-{number}")
            self._watch()
        finally:
            self.is_stopping = True
            self._wake()
            self._end()
        if self._error is not None:
            raise self._error
        if self._signals > 1:
            raise KeyboardInterrupt(self._last_signal)
        counters = self.recorder.counters
        return RunSummary(counters.handled, counters.failures, counters.parked, counters.dead, counters.skipped)

    def work_and_close(self) -> RunSummary:
        """Handle messages as ``work`` does, then close the consumer."""
        try:
            return self.work()
        finally:
            self._core.coordinator.expects_successor = self.expects_successor
            self._core.close()

    def may_continue(self) -> bool:
        """Whether a handler may get the next message of its attempt."""
        return not self.is_stopping and self._core.may_continue(self.clock.monotonic())

    def _start(self, name: str) -> None:
        worker = Worker(name)
        worker.thread = threading.Thread(target=self._keep_working, args=[worker], name=name, daemon=True)
        self._workers.append(worker)
        try:
            worker.thread.start()
        except BaseException:
            if not worker.thread.is_alive():
                self._workers.remove(worker)
            raise

    def _start_missing(self) -> None:
        """Start the workers that take the place of stuck ones; those for which no thread can be started come later."""
        while self._missing:
            try:
                self._start(self._missing[-1])
            except RuntimeError as error:
                log.warning(
                    "%s can't be started, and is tried again: %s",
                    self._missing[-1],
                    error,
                    extra=self._core.log_fields("thread missing", error),
                )
                return
            self._missing.pop()

    # What a worker does, in its thread.

    def _keep_working(self, worker: Worker) -> None:
        try:
            while not worker.is_replaced and (attempt := self._next(worker)) is not None:
                self._attempt(worker, attempt)
        except ConsumerClosedError:
            self._fail(None)
        except BaseException as error:  # noqa: BLE001 - raised by the thread that called run()
            self._fail(error)

    def _next(self, worker: Worker) -> Attempt | None:
        """Wait for the next attempt; None at the end of the run."""
        wakeups = self._core.wakeups
        polls = seen = 0
        has_fetched = False
        while True:
            with LogHold() as hold, self._fetch_lock:
                while True:
                    if not has_fetched:
                        seen = wakeups.count
                        if self.is_stopping:
                            return None
                        has_looked = self._fetch(worker)
                        if worker.attempt is not None:
                            return worker.attempt
                        if has_looked:
                            self._note_idle(seen)
                        has_fetched = True
                        if hold.has_records:
                            break  # emit them without the lock, for which other workers wait
                    polls = 0 if self._wait_for_attempt(polls, seen) else polls + 1
                    has_fetched = False

    def _wait_for_attempt(self, polls: int, seen: int) -> bool:
        """Wait after poll number *polls*, which found nothing; return whether there was a wake-up since the count *seen*."""
        wakeups = self._core.wakeups
        with self._lock:
            next_check_at = self._dispatcher.next_check_at()
        # What is due and was not found, as while the database is unavailable, is polled for with pauses.
        is_due = next_check_at <= self.clock.monotonic()
        deadline = Deadline(math.inf if is_due else next_check_at)
        is_woken = wakeups.wait(wakeups.pause(polls, deadline, may_delegate=not is_due), seen)
        if is_woken:
            with self._lock:
                self._dispatcher.check_soon()
        return is_woken

    def _fetch(self, worker: Worker) -> bool:
        """Fetch the next attempt of *worker*, if there is one. Return False if it can't be known, as without a database."""
        with self._lock:
            if not self._core.prepare_delivery(1, NO_DEADLINE):
                return False
            try:
                # With the lock held, so that the run is not taken to be idle before the worker has it.
                worker.attempt = self._dispatcher.next_attempt(worker, worker.batch_hint)
            except (DatabaseUnavailableError, DatabaseBusyError) as error:
                self._core.log_retry(error)
                return False
            return True

    def _note_idle(self, seen: int) -> None:
        """Note that a fetch after *seen* wake-ups has found nothing, and have the run checked for its end."""
        if self.config.idle_seconds is not None:
            with self._changed:
                self._idle_since = min(self._idle_since, self.clock.monotonic())
                self._idle_at_wakeup = seen
                self._changed.notify_all()

    def _attempt(self, worker: Worker, attempt: Attempt) -> None:
        recorder = self.recorder
        try:
            if self._begin(worker, attempt):
                self._handle(worker, attempt)
        except FencedError as error:
            log.warning("%s", error, extra=recorder.log_fields("fenced", attempt, error=error))
            recorder.abandon(worker, attempt)
        except TRANSIENT as error:
            self._log_retry(worker, attempt, error)
            recorder.abandon(worker, attempt, is_uncertain=attempt.is_settling)
            self._pause()
        finally:
            # Whether messages are left is not known before the next fetch, however long that takes.
            self._idle_since = math.inf
            self._core.wakeups.wake()  # the worker that fetches: this partition is idle again
            worker.attempt, worker.began, worker.has_warned = None, math.inf, False

    def _begin(self, worker: Worker, attempt: Attempt) -> bool:
        try:
            return self.recorder.begin(worker, attempt)
        except TRANSIENT as error:
            self._log_retry(worker, attempt, error)
            self.recorder.requeue(worker)
            self._pause()
            return False

    def _handle(self, worker: Worker, attempt: Attempt) -> None:
        """Execute *attempt* and record its outcome, unless another thread has decided it: the handler took too long."""
        recorder = self.recorder
        began = worker.began = self.clock.monotonic()
        outcome = self._executor.execute(_WorkerExecution(self, worker, attempt))
        is_ours = recorder.mark_ended(attempt)
        match outcome:
            case Succeeded():
                if is_ours:
                    recorder.succeed(worker, attempt, is_settled=self._executor.commits_positions)
                    worker.batch_hint = self._next_batch_hint(worker, attempt, self.clock.monotonic() - began)
            case Failed(error):
                worker.batch_hint = 1
                if is_ours:
                    recorder.fail(worker, attempt, error)
            case NotCommitted(cause):
                # Whether it took effect is known only to the database, which is asked before the next attempt.
                if is_ours:
                    raise cause
            case NotStarted(cause) | Aborted(cause):
                if is_ours:
                    recorder.interrupt(worker, attempt)
                raise cause

    def _next_batch_hint(self, worker: Worker, attempt: Attempt, seconds: float) -> int:
        # With a single attempt for each message, it has to be certain at which message a process crashed.
        if self.config.retry.max_attempts == 1:
            return 1
        return next_batch_hint(worker.batch_hint, max(1, attempt.taken), seconds)

    def _log_retry(self, worker: Worker, attempt: Attempt, error: BaseException) -> None:
        fields = self.recorder.log_fields("retry", attempt, error=error)
        log.warning("%s goes on trying: %s", worker.name, error, extra=fields)

    def _fail(self, error: BaseException | None) -> None:
        """End the run, with the first *error* of a worker."""
        with self._changed:
            self._error = self._error or error
            self.is_stopping = True
            self._changed.notify_all()
        self._core.wakeups.wake()

    def _pause(self) -> None:
        self._wait_for_stop(_RECOVER_SECONDS)

    # What the thread does that called run().

    def _watch(self) -> None:
        """Check the workers until the run is stopped or idle."""
        lease_seconds = self._core.config.lease_seconds
        max_seconds = self.config.max_processing_seconds
        pause = min(_WATCH_SECONDS, lease_seconds / 4, math.inf if max_seconds is None else max_seconds / 4)
        while not self.is_stopping:
            if self._is_idle():
                return
            self._check_stuck_workers(self.clock.monotonic())
            with self._changed:
                if not self.is_stopping:
                    self._changed.wait(self._until_idle(pause))

    def _wait_for_stop(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(self._has_stopped, seconds)

    def _has_stopped(self) -> bool:
        return self.is_stopping

    def _until_idle(self, pause: float) -> float:
        """How long to wait: up to *pause*, and not beyond the moment at which the run may be idle."""
        idle_seconds = self.config.idle_seconds
        if idle_seconds is None or math.isinf(self._idle_since):
            return pause
        return max(0.001, min(pause, self._idle_since + idle_seconds - self.clock.monotonic()))

    def _is_idle(self) -> bool:
        idle_seconds = self.config.idle_seconds
        if idle_seconds is None or self.clock.monotonic() - self._idle_since < idle_seconds:
            return False
        with self._lock:
            # A worker that has finished wakes the one that fetches first, and then has no attempt any more.
            has_ended = len(self._dispatcher) == 0 and all(worker.attempt is None for worker in self._workers)
            return has_ended and self._core.wakeups.count == self._idle_at_wakeup

    def _check_stuck_workers(self, now: float) -> None:
        """End attempts that exceed max_processing_seconds; warn of those that exceed the lease."""
        self._start_missing()
        max_seconds, lease_seconds = self.config.max_processing_seconds, self._core.config.lease_seconds
        for worker in list(self._workers):
            attempt, seconds = worker.attempt, now - worker.began
            if attempt is None or seconds <= 0 or not attempt.current:
                continue
            if max_seconds is not None and seconds > max_seconds:
                self._end_stuck(worker, attempt, max_seconds)
            elif seconds > lease_seconds and not worker.has_warned:
                worker.has_warned = True
                log.warning(
                    "The handler has had %s for %.0f seconds, longer than lease_seconds. It keeps the partition, which "
                    "waits for it; max_processing_seconds would end that.",
                    attempt.current[0],
                    seconds,
                    extra=self.recorder.log_fields("handler slow", attempt, seconds=seconds),
                )

    def _end_stuck(self, worker: Worker, attempt: Attempt, max_seconds: float) -> None:
        """Fail the attempt of a handler that does not return, and start another worker in its place."""
        if not self.recorder.mark_ended(attempt):
            return
        error = TimeoutError(f"The handler did not end within {max_seconds} seconds (max_processing_seconds).")
        worker.is_replaced = True
        self._workers.remove(worker)
        self.recorder.end_stuck(worker, attempt, error)
        self._executor.abandon(worker)
        self._missing.append(worker.name)
        self._start_missing()

    def _end(self) -> None:
        """Wait for the workers up to stop_seconds, then interrupt the attempts of those that have not ended."""
        deadline = Deadline.after(self.config.stop_seconds, self.clock.monotonic())
        for worker in self._workers:
            while worker.thread.is_alive() and self._signals < 2 and not deadline.passed(self.clock.monotonic()):
                worker.thread.join(min(_JOIN_SECONDS, deadline.remaining(self.clock.monotonic())))
        for worker in self._workers:
            attempt = worker.attempt
            if attempt is not None and worker.thread.is_alive() and self.recorder.mark_ended(attempt):
                self._abandon(worker, attempt)

    def _abandon(self, worker: Worker, attempt: Attempt) -> None:
        seconds = self.config.stop_seconds
        log.warning(
            "The handler did not end within %.0f seconds (stop_seconds); %s is delivered again.",
            seconds,
            attempt.current or attempt.messages,
            extra=self.recorder.log_fields("handler abandoned", attempt, seconds=seconds),
        )
        worker.is_replaced = True
        self._executor.abandon(worker)
        try:
            self.recorder.interrupt(worker, attempt)
        except TRANSIENT as error:
            log.warning(
                "An interrupted attempt could not be uncounted: %s",
                error,
                extra=self.recorder.log_fields("failure unwritten", attempt, error=error),
            )

    # Stopping.

    def _stop(self, announce: Callable[[], None]) -> None:
        self.is_stopping = True
        # In a thread of its own: the thread that a signal interrupts may hold the lock of a wake-up, or that of logging.
        # If it can't be started, each waiting thread notices at its next look.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=announce, name="sqlmq-stop", daemon=True).start()

    def _announce_signal(self) -> None:
        self._wake()
        if self._signals == 1 and self._last_signal is not None:
            log.info(
                "%s: the messages in flight are finished first. A second signal ends the run at once.",
                self._last_signal.name,
                extra=self._core.coordinator.log_fields("run stopping"),
            )

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._core.wakeups.wake()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = self.clock.monotonic()
        if self._signals and now - self._signalled_at < _SAME_SIGNAL_SECONDS:
            return
        self._signals, self._signalled_at = self._signals + 1, now
        self._last_signal = signal.Signals(number)
        self._stop(self._announce_signal)


class _WorkerExecution:
    """One attempt of one worker, as ``Execution``."""

    def __init__(self, pool: WorkerPool, worker: Worker, attempt: Attempt) -> None:
        self._pool = pool
        self._worker = worker
        self._attempt = attempt
        # Looked up once: next_batch is called for each message.
        self._monotonic = pool.clock.monotonic
        self._counters = pool.recorder.counters
        self._has_batches = pool.config.has_batches

    @property
    def has_begun(self) -> bool:
        """Whether the handler has got any messages."""
        return bool(self._attempt.current)

    @property
    def is_settling(self) -> bool:
        """Whether the handler has returned, and its transaction is being committed."""
        return self._attempt.is_settling

    def next_batch(self) -> list[ReceivedMessage]:
        """The next messages for the handler; empty at the end. The messages before are done."""
        attempt = self._attempt
        if attempt.current:
            self._counters.count_handled(len(attempt.current))
            # Before the next one is taken from the delivery: what was taken is acknowledged.
            if not self._pool.may_continue():
                return []
        batch = attempt.next_batch(together=self._has_batches)
        if batch:
            self._worker.began, self._worker.has_warned = self._monotonic(), False
        return batch

    def settle(self, conn: Connection) -> None:
        """Commit the group's position in the handler's transaction."""
        self._pool.recorder.settle(self._attempt, conn)

    def committed(self) -> None:
        """Note that this transaction has committed."""
        self._pool.recorder.committed(self._attempt)
