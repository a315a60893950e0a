"""Fixtures that tests of several folders ask for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.delayed import Staged
from tests.support.failing import GroupRunner
from tests.support.processes import Processes, end, start
from tests.support.queue_state import QueueState
from tests.support.shop import Shop
from tests.support.telemetry import Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from sqlalchemy import Engine

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest
    from tests.support.processes import QueueUnderTest


@pytest.fixture
def queue_state(engine: Engine, database: DatabaseUnderTest) -> QueueState:
    """The tables of the test's queue."""
    return QueueState(engine, database.schema)


@pytest.fixture
def staged(engine: Engine, database: DatabaseUnderTest) -> Staged:
    """Its staged messages."""
    return Staged(engine, database)


@pytest.fixture
def shop(mq: MQ, engine: Engine, database: DatabaseUnderTest) -> Shop:
    """An application in the same database."""
    return Shop(mq, engine, database)


@pytest.fixture
def runner(database: DatabaseUnderTest, mq: MQ) -> Iterator[GroupRunner]:
    """A group that runs handlers on the topic `orders`, which has one partition."""
    mq.create_topic("orders", 1)
    runner = GroupRunner(database)
    yield runner
    runner.mq.close()


@pytest.fixture
def start_process() -> Iterator[Callable[..., BaseProcess]]:
    """Starts a process that does some work with some arguments; none outlives the test."""
    with ExitStack() as ending:

        def start_one(work: Callable[..., None], *arguments: object, **options: object) -> BaseProcess:
            process = start(work, *arguments, **options)
            ending.callback(end, process)
            return process

        yield start_one


@pytest.fixture
def processes(queue: QueueUnderTest, tmp_path: Path) -> Iterator[Processes]:
    """Processes with journals at the module's `queue`; none outlives the test."""
    processes = Processes(queue, tmp_path)
    yield processes
    processes.close()


@pytest.fixture
def recording() -> Iterator[Recording]:
    """What OpenTelemetry is told in this test."""
    recording = Recording()
    yield recording
    recording.close()
