"""How long it takes until somebody else goes on where a process was killed, and what one that was paused may still do."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from sqlmq import Message
from tests.faults import holder
from tests.support.processes import GROUP, TOPIC, QueueUnderTest
from tests.support.waiting import receive, slack_seconds, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest
    from tests.support.processes import Processes

LEASE_SECONDS, POLL_SECONDS, MARGIN_SECONDS = 2.0, 0.2, 1.0
KILLS = int(os.environ.get("SQLMQ_TAKEOVERS", "2"))
PAUSES = int(os.environ.get("SQLMQ_PAUSES", "1"))

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(60 + 10 * (KILLS + PAUSES)),
    pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True),
    pytest.mark.skipif(os.name == "nt", reason="kill -9 does not exist there"),
]


@pytest.fixture
def queue(database: DatabaseUnderTest) -> QueueUnderTest:
    queue = QueueUnderTest(database.url, database.schema, LEASE_SECONDS)
    with queue.open() as mq:
        mq.create_topic(TOPIC, 1)
    return queue


def test_a_killed_consumers_messages_go_to_another_one_when_its_lease_is_over(
    queue: QueueUnderTest, processes: Processes, tmp_path: Path
) -> None:
    took: list[float] = []
    with queue.open() as mq:
        producer = mq.producer(TOPIC)
        for number in range(KILLS):
            # Not one that goes on: it might commit what it has before it is killed, and nothing would be left.
            name = processes.start("holder", holder.hold, tmp_path / "never", time.monotonic() + 120)
            producer.produce(Message(b""))
            until(lambda name=name: processes.has_begun(name), "it to have the message")  # type: ignore[misc]
            # In a group with one partition that one has: it waits.
            with mq.consumer(TOPIC, GROUP) as other:
                processes.kill(name)
                killed_at = time.monotonic()

                assert [message.offset for message in receive(other, 1)] == [number]

                took.append(time.monotonic() - killed_at)
                other.commit()

    print(f"{KILLS} kills, taken over after {min(took):.2f} to {max(took):.2f} s")
    assert max(took) <= LEASE_SECONDS + POLL_SECONDS + MARGIN_SECONDS + slack_seconds()


def test_a_consumer_that_was_paused_for_two_leases_commits_nothing_any_more(
    queue: QueueUnderTest, processes: Processes, tmp_path: Path
) -> None:
    told: list[str] = []
    with queue.open() as mq:
        producer = mq.producer(TOPIC)
        for number in range(PAUSES):
            go_on = tmp_path / f"go on {number}"
            name = processes.start("holder", holder.hold, go_on, time.monotonic() + 120)
            producer.produce(Message(b""))
            until(lambda name=name: processes.has_begun(name), "it to have the message")  # type: ignore[misc]
            process = processes.running[name]
            assert process.pid is not None

            os.kill(process.pid, signal.SIGSTOP)
            stopped_at = time.monotonic()
            with mq.consumer(TOPIC, GROUP) as other:
                assert [message.offset for message in receive(other, 1)] == [number]
                until(lambda since=stopped_at: time.monotonic() - since >= 2 * LEASE_SECONDS, "two leases")  # type: ignore[misc]
                go_on.touch()
                os.kill(process.pid, signal.SIGCONT)
                process.join(60)

                # Not by the one that was paused, and not yet by the other.
                assert mq.admin.describe_group(TOPIC, GROUP).partitions[0].position == number
                other.commit()
            told += processes.stories("holder")[number].troubles

    assert told == ["FencedError"] * PAUSES
