"""One worker of a run, in steps that a test takes one at a time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sqlmq.consumer.worker.config import RunConfig
from sqlmq.consumer.worker.executor import DirectExecutor
from sqlmq.consumer.worker.pool import Worker, WorkerPool
from sqlmq.consumer.worker.results import ResultCheck

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import Consumer, ReceivedMessage, Retry
    from sqlmq.model.retry import FailurePolicy


class SteppedWorker:
    """Handles messages of *consumer* as its ``run`` would, without its threads and waits."""

    def __init__(
        self, consumer: Consumer, handler: Callable[[ReceivedMessage], object], retry: Retry, on_failure: FailurePolicy
    ) -> None:
        self._consumer = consumer
        config = RunConfig(retry=retry, on_failure=on_failure)
        self._pool = WorkerPool(consumer._core, config, DirectExecutor(handler, ResultCheck(), in_batches=False))
        consumer._core.begin_run(self._pool)

    def work(self) -> bool:
        """Check the group and the parked messages, and handle one message; return whether there was any."""
        worker = Worker("stepped-worker")
        worker.thread = threading.current_thread()
        self._pool._dispatcher._refresh_at = 0.0
        self._consumer._core.coordinator.recheck_group_soon()
        self._pool._fetch(worker)
        if worker.attempt is None:
            return False
        self._pool._attempt(worker, worker.attempt)
        return True
