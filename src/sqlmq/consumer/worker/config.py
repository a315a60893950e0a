"""The options of one ``run``. Besides this module, the two consumers and the command ``run`` list them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlmq.model import validation
from sqlmq.model.retry import FailurePolicy, Retry, check_policy, check_retry

_DEFAULT_RETRY = Retry()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The options of ``Consumer.run`` and ``AsyncConsumer.run``, checked. ``Consumer.run`` documents each.

    Raises TypeError or ValueError for a wrong one. The handler's ``session`` is not here: what it may be differs between
    the two.
    """

    batch_size: int | None = None
    transaction: bool = False
    concurrency: int = 1
    retry: Retry = _DEFAULT_RETRY
    on_failure: FailurePolicy | None = None
    max_parked: int = 1_000
    max_processing_seconds: float | None = None
    stop_seconds: float = 25.0
    idle_seconds: float | None = None
    handle_signals: bool = True

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            validation.integer("batch_size", self.batch_size)
        validation.integer("concurrency", self.concurrency)
        validation.integer("max_parked", self.max_parked)
        check_retry(self.retry)
        check_policy(self.on_failure)
        validation.seconds("stop_seconds", self.stop_seconds)
        if self.max_processing_seconds is not None:
            validation.seconds("max_processing_seconds", self.max_processing_seconds, may_be_zero=False)
        if self.idle_seconds is not None:
            validation.seconds("idle_seconds", self.idle_seconds)

    @property
    def has_batches(self) -> bool:
        """Whether the handler takes lists of messages."""
        return self.batch_size is not None
