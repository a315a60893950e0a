"""The poller of a queue, which a test makes poll, and does not wait for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq import MQ, Consumer

RARELY: dict[str, Any] = {
    "poll_min_seconds": 60.0,
    "poll_max_seconds": 60.0,
    "notify": False,
    # A consumer that commits or sends a heartbeat by the clock is woken, and the poller does not poll for it meanwhile.
    "commit_interval_seconds": 60.0,
    "lease_seconds": 180.0,
}
"""Options of an MQ whose waiting consumers rely on the poller at once, which polls by the clock in no test."""


def unwatched(mq: MQ) -> MQ:
    """Keep *mq* from noticing by itself that a SQLite file has changed; return it."""
    mq._background.poller._can_watch = False
    return mq


def poll_for_all(mq: MQ, consumers: Sequence[Consumer]) -> None:
    """Make the poller of *mq* poll for all *consumers*, and wait until it has found nothing."""
    asked_at = time.monotonic()
    # A consumer that begins to wait says so before it starts the thread.
    until(lambda: mq._background.poller.poll_now(at_groups=True), "a poller at work")
    until(lambda: all(consumer._core.wakeups.polled_at >= asked_at for consumer in consumers), "a poll for all")
