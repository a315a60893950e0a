"""Running a handler: workers in threads of their own, watched by the thread that called ``run``; stopping in good order."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.consumer.core import NO_DEADLINE
from sqlmq.consumer.worker import signals
from sqlmq.consumer.worker.attempts import TRANSIENT, AttemptRecorder
from sqlmq.consumer.worker.dispatcher import Dispatcher
from sqlmq.consumer.worker.executor import ExecutionStep, NotBegunError
from sqlmq.errors import ConsumerClosedError, DatabaseBusyError, DatabaseUnavailableError, FencedError
from sqlmq.model import validation
from sqlmq.model.retry import next_batch_hint
from sqlmq.model.timing import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from sqlmq.consumer.core import ConsumerCore
    from sqlmq.consumer.worker.dispatcher import Attempt, Terms
    from sqlmq.consumer.worker.executor import Executor
    from sqlmq.model.message import Message

log = logging.getLogger("sqlmq.consumer")

_WATCH_SECONDS = 1.0
"""How often the workers are looked after when nothing happens."""
_SAME_SIGNAL_SECONDS = 0.2
"""Two signals so soon after each other are one: a terminal, or systemd, sends it to a process and to those who pass it on."""
_RECOVER_SECONDS = 0.5
"""How long a worker waits after the database was away."""


class Limits(NamedTuple):
    """How many workers there are, and how long things may take, in seconds; None is for ever."""

    concurrency: int
    stop_seconds: float
    max_processing_seconds: float | None
    idle_seconds: float | None

    @classmethod
    def checked(
        cls, concurrency: int, stop_seconds: float, max_processing_seconds: float | None, idle_seconds: float | None
    ) -> Limits:
        """Make them, or raise TypeError or ValueError."""
        return cls(
            validation.integer("concurrency", concurrency),
            validation.seconds("stop_seconds", stop_seconds),
            None
            if max_processing_seconds is None
            else validation.seconds("max_processing_seconds", max_processing_seconds, may_be_zero=False),
            None if idle_seconds is None else validation.seconds("idle_seconds", idle_seconds),
        )


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run has done."""

    handled: int
    """Messages that were handled."""
    failures: int
    """Attempts that failed."""
    parked: int
    """Messages that were set aside, for a time at least."""
    dead: int
    """Messages that became dead letters."""
    skipped: int


class Worker:
    """A thread that handles messages, and what it does at this moment."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.batch_hint = 1
        self.attempt: Attempt | None = None
        self.began = math.inf
        """When its handler got what it has now, by the monotonic clock."""
        self.is_replaced = False
        """Whether another one has taken its place, because its handler does not end."""
        self.has_warned = False
        self.thread: threading.Thread

    def is_alive(self) -> bool:
        """Whether it can still finish what it has; as ``Receiver``."""
        return self.thread.is_alive()


class WorkerPool:
    """One call of ``run``. Its workers take turns at looking for messages, so that idle ones cost nothing."""

    def __init__(self, core: ConsumerCore, terms: Terms, limits: Limits, executor: Executor) -> None:
        self._core = core
        self._options = core.config
        self._terms = terms
        self._limits = limits
        self._executor = executor
        self._lock = core.lock
        self._clock = core.clock
        self._dispatcher = Dispatcher(core, terms)
        self._recorder = AttemptRecorder(core, self._dispatcher, terms)
        self._fetch_lock = threading.Lock()
        self._changed = self._clock.condition()
        self._workers: list[Worker] = []
        self._error: BaseException | None = None
        self._signals = 0
        self._signalled_at = 0.0
        self._last_signal: signal.Signals | None = None
        self._busy_at = math.inf
        """When somebody last had something to do, by the monotonic clock; not before somebody has looked for it."""
        self.is_stopping = False

    @property
    def expects_successor(self) -> bool:
        """Whether somebody is expected to take this process's place."""
        return self._last_signal is signal.SIGTERM

    def stop(self) -> None:
        """Begin no other message. May be called by any thread, and by a signal."""
        self.is_stopping = True
        # In a thread of its own: whoever a signal has interrupted may hold the lock that waking takes, or logging.
        threading.Thread(target=self._tell_of_stop, name="sqlmq-stop", daemon=True).start()

    @contextlib.contextmanager
    def taking_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT, in good order at the first, at once at the second.

        SIGTERM is taken for the end of this process, not of its work: somebody is to take its place.
        """
        before: signals.Handlers = {}
        signals.install(self._on_signal, before)
        try:
            yield
        finally:
            signals.restore(before)

    def work(self) -> RunSummary:
        """Handle messages until told to stop; return what was done.

        Raises what ended a worker, if it was not a message that failed; KeyboardInterrupt, with its number, for a second
        signal.
        """
        try:
            for number in range(self._limits.concurrency):
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
        counters = self._recorder.counters
        return RunSummary(counters.handled, counters.failures, counters.parked, counters.dead, counters.skipped)

    def work_and_close(self) -> RunSummary:
        """As ``work``; then close the consumer."""
        try:
            return self.work()
        finally:
            self._core.coordinator.expects_successor = self.expects_successor
            self._core.close()

    def _start(self, name: str) -> None:
        worker = Worker(name)
        worker.thread = threading.Thread(target=self._keep_working, args=[worker], name=name, daemon=True)
        self._workers.append(worker)
        worker.thread.start()

    # What a worker does.

    def _keep_working(self, worker: Worker) -> None:
        try:
            while not worker.is_replaced and (attempt := self._next(worker)) is not None:
                self._attempt(worker, attempt)
        except ConsumerClosedError:
            self._fail(None)
        except BaseException as error:  # noqa: BLE001 - raised by whoever called for the run
            self._fail(error)

    def _next(self, worker: Worker) -> Attempt | None:
        """Wait for something to do; None when there will be nothing any more."""
        wakeups = self._core.wakeups
        with self._fetch_lock:
            looks = 0
            while True:
                seen = wakeups.count
                if self.is_stopping:
                    return None
                attempt = self._fetch(worker)
                if attempt is not None:
                    worker.attempt = attempt
                    return attempt
                self._busy_at = min(self._busy_at, self._clock.monotonic())
                with self._lock:
                    next_check_at = self._dispatcher.next_check_at()
                # What is due and can't be had now, as while the database is away, is looked for again and again, not at once.
                is_due = next_check_at <= self._clock.monotonic()
                deadline = Deadline(math.inf if is_due else next_check_at)
                is_woken = wakeups.wait(wakeups.pause(looks, deadline, may_delegate=not is_due), seen)
                looks = 0 if is_woken else looks + 1
                if is_woken:
                    with self._lock:
                        self._dispatcher.check_soon()

    def _fetch(self, worker: Worker) -> Attempt | None:
        """The next attempt for *worker*; None if nothing can be handled now, also while the database is unavailable."""
        with self._lock:
            if not self._core.prepare_delivery(1, NO_DEADLINE):
                return None
            try:
                return self._dispatcher.next_attempt(worker, worker.batch_hint)
            except (DatabaseUnavailableError, DatabaseBusyError) as error:
                self._core.log_retry(error)
                return None

    def _attempt(self, worker: Worker, attempt: Attempt) -> None:
        recorder = self._recorder
        try:
            if self._begin(worker, attempt):
                self._handle(worker, attempt)
        except FencedError as error:
            log.warning("%s", error, extra=recorder.log_fields("fenced", attempt, error=error))
            recorder.abandon(worker, attempt)
        except TRANSIENT as error:
            log.warning(
                "%s goes on trying: %s", worker.name, error, extra=recorder.log_fields("retry", attempt, error=error)
            )
            recorder.abandon(worker, attempt, is_uncertain=attempt.is_settling)
            self._pause()
        finally:
            self._busy_at = self._clock.monotonic()
            worker.attempt, worker.began, worker.has_warned = None, math.inf, False
            self._core.wakeups.wake()  # whoever looks for messages: this partition is free again

    def _begin(self, worker: Worker, attempt: Attempt) -> bool:
        try:
            return self._recorder.begin(worker, attempt)
        except TRANSIENT as error:
            log.warning(
                "%s goes on trying: %s",
                worker.name,
                error,
                extra=self._recorder.log_fields("retry", attempt, error=error),
            )
            self._recorder.requeue(worker)
            self._pause()
            return False

    def _handle(self, worker: Worker, attempt: Attempt) -> None:
        recorder = self._recorder
        began = worker.began = self._clock.monotonic()
        step = ExecutionStep(
            self._counted(worker, recorder.batches(attempt, self._may_go_on)),
            lambda conn: recorder.settle(attempt, conn),
            lambda: recorder.committed(attempt),
        )
        try:
            self._executor(step)
        except NotBegunError as failure:
            self._interrupt(worker, attempt)
            raise failure.__cause__ or failure from None
        except Exception as error:
            if attempt.is_settling and isinstance(error, (FencedError, *TRANSIENT)):
                if recorder.claim(attempt):
                    raise
            elif attempt.current:
                self._failed(worker, attempt, error)
            else:
                self._interrupt(worker, attempt)
                raise
        except BaseException:
            self._interrupt(worker, attempt)
            raise
        else:
            if recorder.claim(attempt):
                recorder.succeed(worker, attempt, is_settled=self._executor.is_settling)
                handled = 1 if not attempt.current else attempt.messages.index(attempt.current[-1]) + 1
                worker.batch_hint = self._next_stride(worker.batch_hint, handled, self._clock.monotonic() - began)

    def _interrupt(self, worker: Worker, attempt: Attempt) -> None:
        if self._recorder.claim(attempt):
            self._recorder.interrupt(worker, attempt)

    def _failed(self, worker: Worker, attempt: Attempt, error: BaseException) -> None:
        worker.batch_hint = 1
        if self._recorder.claim(attempt):
            self._recorder.fail(worker, attempt, error)

    def _next_stride(self, batch_hint: int, handled: int, seconds: float) -> int:
        # With a single attempt it has to be certain which message it was made at.
        return 1 if self._terms.retry.max_attempts == 1 else next_batch_hint(batch_hint, handled, seconds)

    def _counted(self, worker: Worker, batches: Iterator[list[Message]]) -> Iterator[list[Message]]:
        for batch in batches:
            worker.began, worker.has_warned = self._clock.monotonic(), False
            yield batch
            self._recorder.counters.count_handled(len(batch))

    def _may_go_on(self) -> bool:
        return not self.is_stopping and self._core.may_continue(self._clock.monotonic())

    def _fail(self, error: BaseException | None) -> None:
        with self._changed:
            self._error = self._error or error
            self.is_stopping = True
            self._changed.notify_all()
        self._core.wakeups.wake()

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.is_stopping, _RECOVER_SECONDS)

    # What the thread does that called for the run.

    def _watch(self) -> None:
        lease = self._options.lease_seconds
        most = self._limits.max_processing_seconds
        pause = min(_WATCH_SECONDS, lease / 4, math.inf if most is None else most / 4)
        while not self.is_stopping:
            if self._is_idle():
                return
            self._check_stuck_workers(self._clock.monotonic())
            with self._changed:
                self._changed.wait_for(lambda: self.is_stopping, self._until_idle(pause))

    def _until_idle(self, pause: float) -> float:
        timeout = self._limits.idle_seconds
        if timeout is None or math.isinf(self._busy_at):
            return pause
        return max(0.001, min(pause, self._busy_at + timeout - self._clock.monotonic()))

    def _is_idle(self) -> bool:
        timeout = self._limits.idle_seconds
        if timeout is None or self._clock.monotonic() - self._busy_at < timeout:
            return False
        with self._lock:
            return len(self._dispatcher) == 0 and all(worker.attempt is None for worker in self._workers)

    def _check_stuck_workers(self, now: float) -> None:
        most = self._limits.max_processing_seconds
        for worker in list(self._workers):
            attempt, seconds = worker.attempt, now - worker.began
            if attempt is None or seconds <= 0 or not attempt.current:
                continue
            if most is not None and seconds > most:
                self._end_stuck(worker, attempt, most)
            elif seconds > self._options.lease_seconds and not worker.has_warned:
                worker.has_warned = True
                log.warning(
                    "The handler has had %s for %.0f seconds, longer than lease_seconds. It keeps the partition, which "
                    "waits for it; max_processing_seconds would end that.",
                    attempt.current[0],
                    seconds,
                    extra=self._recorder.log_fields("handler slow", attempt, seconds=seconds),
                )

    def _end_stuck(self, worker: Worker, attempt: Attempt, most: float) -> None:
        if not self._recorder.claim(attempt):
            return
        error = TimeoutError(f"The handler did not end within {most} seconds (max_processing_seconds).")
        worker.is_replaced = True
        self._workers.remove(worker)
        self._recorder.end_stuck(worker, attempt, error)
        self._executor.abandon(worker)
        self._start(worker.name)

    def _end(self) -> None:
        """Wait for the workers, as long as they may take; take back what does not end."""
        deadline = Deadline.after(self._limits.stop_seconds, self._clock.monotonic())
        for worker in self._workers:
            while worker.thread.is_alive() and self._signals < 2 and not deadline.passed(self._clock.monotonic()):
                worker.thread.join(min(0.1, deadline.remaining(self._clock.monotonic())))
        for worker in self._workers:
            attempt = worker.attempt
            if attempt is None or not worker.thread.is_alive() or not self._recorder.claim(attempt):
                continue
            log.warning(
                "The handler did not end within %.0f seconds (stop_seconds); %s is delivered again.",
                self._limits.stop_seconds,
                attempt.current or attempt.messages,
                extra=self._recorder.log_fields("handler abandoned", attempt, seconds=self._limits.stop_seconds),
            )
            worker.is_replaced = True
            self._executor.abandon(worker)
            try:
                self._recorder.interrupt(worker, attempt)
            except TRANSIENT as error:
                log.warning(
                    "An attempt that was interrupted counts all the same: %s",
                    error,
                    extra=self._recorder.log_fields("failure unwritten", attempt, error=error),
                )

    def _tell_of_stop(self) -> None:
        self._wake()
        if self._signals == 1 and self._last_signal is not None:
            log.info(
                "%s: what is in the handler's hands is finished first; a second signal ends it at once.",
                self._last_signal.name,
                extra=self._core.coordinator.log_fields("run stopping"),
            )

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._core.wakeups.wake()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = self._clock.monotonic()
        if self._signals and now - self._signalled_at < _SAME_SIGNAL_SECONDS:
            return
        self._signals, self._signalled_at = self._signals + 1, now
        self._last_signal = signal.Signals(number)
        self.stop()
