"""Rolling restarts of consumers that run a handler: each partition moves once, and nothing waits for a lease."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest

from sqlmq.consumer.worker.pool import WorkerPool
from sqlmq.store.offsets import Commit
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq import MQ, Consumer, Message
    from tests.conftest import MakeMQ
    from tests.support.queue_state import QueueState

PARTITIONS = 6
AGES_SECONDS = 600.0
"""A lease that no test waits for."""


class Service:
    """One process of a service, so to say: a consumer that runs in a thread until a signal comes."""

    def __init__(self, mq: MQ) -> None:
        self.consumer: Consumer = mq.consumer("orders", "billing")
        self._thread = threading.Thread(target=self.consumer.run, args=[_handle], daemon=True)
        self._thread.start()
        until(lambda: self.consumer._core._run is not None, "the run to begin")

    def end(self, number: signal.Signals) -> None:
        """Take a signal as the main thread would, and end."""
        pool = self.consumer._core._run
        assert isinstance(pool, WorkerPool)
        pool._on_signal(number, None)
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()


def _handle(message: Message) -> None:
    del message


class Services:
    """Those of one group, and its topic."""

    def __init__(self, make_mq: MakeMQ, state: QueueState) -> None:
        self._make_mq = make_mq
        self._state = state
        self.mq = make_mq()
        self.mq.create_topic("orders", PARTITIONS)
        self._all: list[Service] = []

    def start(self) -> Service:
        service = Service(self._make_mq(lease_seconds=AGES_SECONDS))
        self._all.append(service)
        return service

    def start_three(self) -> list[Service]:
        services = [self.start() for _ in range(3)]
        self.until_counts(2, 2, 2)
        return services

    def counts(self) -> list[int]:
        group = self.mq.admin.describe_group("orders", "billing")
        owners = [partition.owner for partition in group.partitions]
        return sorted((owners.count(name) for name in group.members), reverse=True)

    def until_counts(self, *counts: int) -> None:
        until(lambda: self.counts() == list(counts), f"partitions shared out as {counts}")

    def let_half_a_lease_pass(self) -> None:
        self._state.make_memberships_older(AGES_SECONDS / 2)

    def epochs(self) -> list[int]:
        return self._state.epochs()

    def end(self) -> None:
        for service in self._all:
            if not service.consumer.closed:
                service.end(signal.SIGINT)


@pytest.fixture
def services(make_mq: MakeMQ, queue_state: QueueState) -> Iterator[Services]:
    made = Services(make_mq, queue_state)
    yield made
    made.end()


def test_each_partition_moves_once_where_each_is_stopped_before_its_successor_starts(services: Services) -> None:
    old = services.start_three()
    before = services.epochs()

    for service in old:
        service.end(signal.SIGTERM)
        services.start()
        services.until_counts(2, 2, 2)

    # One for leaving, one for taking.
    assert services.epochs() == [epoch + 2 for epoch in before]


@pytest.mark.slow
def test_each_partition_moves_once_where_each_successor_starts_first(services: Services) -> None:
    old = services.start_three()
    before = services.epochs()
    services.let_half_a_lease_pass()

    for service in old:
        services.start()
        service.end(signal.SIGTERM)
        services.until_counts(2, 2, 2)

    assert services.epochs() == [epoch + 2 for epoch in before]


def test_without_a_successor_the_others_take_over(services: Services) -> None:
    first, *_ = services.start_three()

    first.end(signal.SIGTERM)
    services.let_half_a_lease_pass()

    services.until_counts(3, 3)


@pytest.mark.slow
def test_what_ctrl_c_has_stopped_is_shared_out_at_once(services: Services) -> None:
    first, *_ = services.start_three()

    first.end(signal.SIGINT)

    services.until_counts(3, 3)


def test_what_was_left_is_fenced_from_the_one_that_left_it(services: Services) -> None:
    service = services.start()
    services.until_counts(6)
    owned = service.consumer._core.coordinator
    until(lambda: len(owned.assigned) == PARTITIONS, "the member to hear what it has claimed")
    progress = next(iter(owned.assigned.values()))

    service.end(signal.SIGTERM)

    # As a handler that was still at work would.
    assert not owned.record_in_flight(progress, Commit(progress.partition_id, 0, 1))
