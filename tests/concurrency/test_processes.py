"""Many processes on one database, and what is left when some of them are killed with `kill -9`."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.concurrency import workers
from tests.support.journal import Story, check_acknowledged
from tests.support.processes import GROUP, PARTITIONS, TOPIC, Processes, QueueUnderTest
from tests.support.queue_state import check_sqlite_file
from tests.support.waiting import read_texts

if TYPE_CHECKING:
    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

WRITER_KILLS = int(os.environ.get("SQLMQ_WRITER_KILLS", "60"))
CHAOS_SECONDS = float(os.environ.get("SQLMQ_CHAOS_SECONDS", "12"))
PATIENCE_SECONDS = 60.0
LEASE_SECONDS = 2.0

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="kill -9 does not exist there")]
SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def queue(database: DatabaseUnderTest) -> QueueUnderTest:
    queue = QueueUnderTest(database.url, database.schema, LEASE_SECONDS)
    with queue.open() as mq:
        mq.create_topic(TOPIC, PARTITIONS)
    return queue


Log = dict[int, list[str]]


@SQLITE
def test_processes_and_threads_share_a_sqlite_file_without_one_locked_database(
    queue: QueueUnderTest, processes: Processes
) -> None:
    for _ in range(4):
        processes.start("both", workers.produce_and_consume, 4, 40)

    processes.wait(time.monotonic() + PATIENCE_SECONDS)

    stories = processes.stories("both")
    assert [failure for story in stories for failure in story.failures] == []
    assert [trouble for story in stories for trouble in story.troubles if "locked" in trouble] == []
    with queue.open() as mq:
        log = read_texts(mq, TOPIC)
        assert mq.admin.describe_group(TOPIC, GROUP).lag == 0
    check_acknowledged(log, stories)
    delivered = [fact for story in stories for _, _, facts in story.polls for fact in facts]
    everything = [(p, o, value) for p, values in log.items() for o, value in enumerate(values)]
    assert sorted(delivered) == sorted(everything)


@SQLITE
@pytest.mark.faults
@pytest.mark.timeout(2 * PATIENCE_SECONDS + WRITER_KILLS)
def test_a_sqlite_file_survives_the_killing_of_its_writers(
    queue: QueueUnderTest, processes: Processes, database: DatabaseUnderTest
) -> None:
    chosen = random.Random(3)
    pause = threading.Event()
    until = time.monotonic() + PATIENCE_SECONDS + WRITER_KILLS
    writers = [processes.start("writer", workers.produce, until, 0.0) for _ in range(8)]

    while len(processes.killed) < WRITER_KILLS:
        victim = chosen.choice([name for name in writers if name not in processes.killed])
        while not processes.has_begun(victim):
            assert time.monotonic() < until
            pause.wait(0.01)
        pause.wait(chosen.uniform(0, 0.05))
        processes.kill(victim)
        writers.append(processes.start("writer", workers.produce, until, 0.0))
    for name in list(processes.running):
        processes.kill(name)

    stories = processes.stories("writer")
    assert [failure for story in stories for failure in story.failures] == []
    check_sqlite_file(database.url)
    with queue.open() as mq:
        check_acknowledged(read_texts(mq, TOPIC), stories)


@BOTH
@pytest.mark.faults
@pytest.mark.timeout(CHAOS_SECONDS + 3 * PATIENCE_SECONDS)
def test_consumers_that_are_killed_lose_nothing_and_repeat_only_what_was_not_committed(
    queue: QueueUnderTest, processes: Processes, database: DatabaseUnderTest
) -> None:
    chosen = random.Random()
    pause = threading.Event()
    producing_until = time.monotonic() + CHAOS_SECONDS
    consuming_until = producing_until + 2 * PATIENCE_SECONDS
    for _ in range(8):
        processes.start("producer", workers.produce, producing_until, 0.1)
    consumers = [processes.start("consumer", workers.consume, consuming_until) for _ in range(8)]

    while time.monotonic() < producing_until:
        pause.wait(chosen.uniform(0.1, 0.9))
        victim = consumers.pop(chosen.randrange(len(consumers)))
        processes.kill(victim)
        consumers.append(processes.start("consumer", workers.consume, consuming_until))

    end_calmly(processes, queue)
    with queue.open() as mq:
        last = drain(mq)
        log = read_texts(mq, TOPIC)
    if not database.is_postgres:
        check_sqlite_file(database.url)
    stories = [*processes.stories("consumer"), last]
    producers = processes.stories("producer")
    assert [failure for story in (*stories, *producers) for failure in story.failures] == []
    check_acknowledged(log, producers)
    History(stories).check(log)
    assert len(processes.killed) >= CHAOS_SECONDS / 2


def end_calmly(processes: Processes, queue: QueueUnderTest) -> None:
    """Wait until the consumers have caught up, then have all processes end by themselves."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = threading.Event()
    with queue.open() as mq:
        while any(process.is_alive() for name, process in processes.running.items() if name.startswith("producer")):
            assert time.monotonic() < deadline
            pause.wait(0.05)
        while mq.admin.describe_group(TOPIC, GROUP).lag:
            assert time.monotonic() < deadline, "the consumers do not catch up"
            pause.wait(0.05)
    for name, process in processes.running.items():
        if name.startswith("consumer"):
            process.terminate()
    processes.wait(deadline)


def drain(mq: MQ) -> Story:
    """What is still to be had by the group, as the story of one more consumer."""
    story = Story("drain")
    deadline = time.monotonic() + PATIENCE_SECONDS
    with mq.consumer(TOPIC, GROUP) as consumer:
        while len(consumer.partitions) < PARTITIONS or mq.admin.describe_group(TOPIC, GROUP).lag:
            assert time.monotonic() < deadline
            asked_at = time.monotonic()
            got = consumer.poll(timeout=0.1)
            consumer.commit()
            facts = [(m.partition, m.offset, m.value.decode()) for m in got]
            story.polls.append((asked_at, time.monotonic(), facts))
    return story


@dataclass
class Run:
    """Messages of one partition that one process got one after the other, without a break in their offsets."""

    story: Story
    partition: int
    first: int
    end: int
    began_at: float


@dataclass
class History:
    """Everything that all consumers of a group were given, and what it must be like."""

    stories: list[Story]
    runs: list[Run] = field(default_factory=list)

    def check(self, log: Log) -> None:
        for story in self.stories:
            self._follow(story, log)
        self.runs.sort(key=lambda run: run.began_at)
        repeated = self._repeated()
        unsettled = sum(self._unsettled(story) for story in self.stories if story.was_killed)
        troubled = [story for story in self.stories if story.troubles]
        figures = (
            f"{sum(map(len, log.values()))} messages, {sum(story.was_killed for story in self.stories)} kills, "
            f"{len(repeated)} repeated of at most {unsettled} handed out and not known to be committed at a kill, "
            f"{len(troubled)} consumers that lost partitions alive"
        )
        print(figures)
        print(*{trouble for story in troubled for trouble in story.troubles}, sep="\n")
        self._check_that_nothing_is_missing(log)
        self._check_that_nothing_committed_comes_again()
        # One that was stopped by the machine for longer than its lease counts as killed: it was given up, alive.
        given_up = {story.name for story in self.stories if story.was_killed or story.troubles}
        assert [(p, o, who) for p, o, who in repeated if who not in given_up] == [], figures
        if not troubled:
            assert len(repeated) <= unsettled, figures

    def _follow(self, story: Story, log: Log) -> None:
        """Cut what one consumer got into runs; within a poll each partition's messages are in order, without gaps."""
        current: dict[int, Run] = {}
        for _, got_at, facts in story.polls:
            in_this_poll: set[int] = set()
            for partition, offset, value in facts:
                assert log[partition][offset] == value
                run = current.get(partition)
                if run is None or run.end != offset:
                    assert partition not in in_this_poll, "a gap within one poll"
                    assert run is None or offset < run.end or self._others_had(story, partition, run.end, offset)
                    run = current[partition] = Run(story, partition, offset, offset, got_at)
                    self.runs.append(run)
                run.end = offset + 1
                in_this_poll.add(partition)

    def _others_had(self, story: Story, partition: int, start: int, end: int) -> bool:
        """Whether others were given the offsets between two runs of *story*."""
        had = {
            offset
            for other in self.stories
            if other is not story
            for _, _, facts in other.polls
            for number, offset, _ in facts
            if number == partition
        }
        return had >= set(range(start, end))

    def _check_that_nothing_is_missing(self, log: Log) -> None:
        """First deliveries come in order of offset: a run begins at the latest where the earlier ones have ended."""
        ends: dict[int, int] = defaultdict(int)
        for run in self.runs:
            assert run.first <= ends[run.partition], f"offsets of partition {run.partition} were passed over"
            ends[run.partition] = max(ends[run.partition], run.end)
        assert dict(ends) == {partition: len(values) for partition, values in log.items()}

    def _check_that_nothing_committed_comes_again(self) -> None:
        commits = sorted(
            (moment, partition, offset)
            for story in self.stories
            for moment, offsets in story.commits
            for partition, offset in offsets.items()
        )
        polls = sorted(poll for story in self.stories for poll in story.polls)
        committed: dict[int, int] = defaultdict(int)
        for asked_at, _, facts in polls:
            while commits and commits[0][0] < asked_at:
                _, partition, offset = commits.pop(0)
                committed[partition] = max(committed[partition], offset)
            again = [(partition, offset) for partition, offset, _ in facts if offset < committed[partition]]
            assert again == [], "delivered after a commit of it was acknowledged"

    def _repeated(self) -> list[tuple[int, int, str]]:
        """Partition and offset of each delivery but the last, with the name of whoever it was in vain for."""
        repeated = []
        latest: dict[tuple[int, int], str] = {}
        for run in self.runs:
            for offset in range(run.first, run.end):
                if (before := latest.get((run.partition, offset))) is not None:
                    repeated.append((run.partition, offset, before))
                latest[run.partition, offset] = run.story.name
        return repeated

    def _unsettled(self, story: Story) -> int:
        """How many messages a consumer was given after its last acknowledged commit, over its partitions."""
        settled: dict[int, int] = defaultdict(int)
        for _, offsets in story.commits:
            for partition, offset in offsets.items():
                settled[partition] = max(settled[partition], offset)
        given = {(partition, offset) for _, _, facts in story.polls for partition, offset, _ in facts}
        return sum(offset >= settled[partition] for partition, offset in given)
