"""A process ends at each failpoint of each way to use a queue, and another one goes on: every promise is kept."""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from sqlmq import Message
from tests.faults import lives, nursery
from tests.faults.lives import (
    CANCELLED,
    CANCELLING,
    COMMITTED,
    FOUND,
    HANDLED,
    KEEP_MESSAGES,
    KEPT,
    KINDS,
    LIVES,
    MOVED,
    MOVING,
    PARTITIONS,
    POISON,
    RECEIPTS,
    SENDING,
    SENT,
    UNDONE,
    Line,
)
from tests.faults.points import POINTS
from tests.support.processes import GROUP, TOPIC, QueueUnderTest
from tests.support.queue_state import QueueState, check_sqlite_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Engine

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

HITS = int(os.environ.get("SQLMQ_CRASH_POINT_HITS", "1"))
"""How often a process ends at each failpoint that it reaches several times."""
CRASHES = int(os.environ.get("SQLMQ_TRANSACTION_CRASHES", "40"))
ONLY_ON_SQLITE = {"append.locked"}
ONLY_ON_POSTGRES = {"statement.before", "statement.after", "commit.sent", "notify.before", "notify.after"}
BY_CHANCE = {"notify.before", "notify.after"}
"""Reached in the background, which a short life may not leave any time."""

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a crash is that of a forked child"),
]
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def queue(database: DatabaseUnderTest, engine: Engine) -> QueueUnderTest:
    queue = QueueUnderTest(database.url, database.schema, lease_seconds=60.0)
    with queue.open() as mq:
        mq.create_topic(TOPIC, PARTITIONS)
        mq.create_topic(RECEIPTS, 1)
    with engine.begin() as connection:
        lives.make_tables(connection)
    return queue


@BOTH
def test_every_failpoint_is_reached(queue: QueueUnderTest, database: DatabaseUnderTest, tmp_path: Path) -> None:
    assert nursery.in_nursery(nursery.reach_everywhere, queue, tmp_path) == 0

    reached = set(json.loads((tmp_path / "told").read_text()))
    elsewhere = ONLY_ON_SQLITE if database.is_postgres else ONLY_ON_POSTGRES
    assert reached == set(POINTS) - elsewhere


@BOTH
@pytest.mark.slow
@pytest.mark.timeout(nursery.PATIENCE_SECONDS + 30)
@pytest.mark.parametrize("kind", list(LIVES))
def test_wherever_a_process_ends_another_one_goes_on_and_every_promise_is_kept(
    kind: str, mq: MQ, queue: QueueUnderTest, engine: Engine, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)

    exit_code = nursery.in_nursery(nursery.crash_everywhere, queue, tmp_path, kind, HITS, seed)

    assert exit_code == 0, f"seed {seed}"
    story = Story(mq, engine, tmp_path)
    assert {point for point in story.reached if not story.crashed.get(point)} <= BY_CHANCE, f"seed {seed}"
    CHECKS[kind](story)
    if engine.dialect.name == "sqlite":
        check_sqlite_file(queue.url)


@BOTH
@pytest.mark.slow
def test_processes_that_die_at_once_at_any_step_have_each_effect_once(
    mq: MQ, queue: QueueUnderTest, engine: Engine, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    mq.producer(TOPIC).produce_many(Message(b"", b"%d" % number) for number in range(20 * CRASHES))
    mq.consumer(TOPIC, GROUP).close()

    exit_code = nursery.in_nursery(nursery.crash_at_once, queue, tmp_path, CRASHES, seed)

    assert exit_code == 0, f"seed {seed}"
    state = QueueState(engine, None)
    ends = {one.partition: one.end_offset for one in mq.admin.describe_topic(TOPIC).partitions}
    assert effects_of(state) == {partition: list(range(end)) for partition, end in ends.items()}, f"seed {seed}"
    by_the_last = len(state.log(RECEIPTS))
    assert sum(ends.values()) - by_the_last > CRASHES / 10, "processes died before they handled anything"


class Story:
    """What the lives have told, and what they have left."""

    def __init__(self, mq: MQ, engine: Engine, directory: Path) -> None:
        self.mq = mq
        self.state = QueueState(engine, None)
        self.reached: dict[str, int]
        self.crashed: dict[str, int]
        self.reached, self.crashed = json.loads((directory / "told").read_text())
        self.lines = [Line(*json.loads(line)) for line in (directory / "journal").read_text().splitlines()]

    def told(self, what: str) -> list[str]:
        """The values of all lines about that."""
        return [value for line in self.lines if line.what == what for value in line.facts[0]]

    def batches(self, what: str) -> list[list[str]]:
        return [line.facts[0] for line in self.lines if line.what == what]

    def log(self, topic: str = TOPIC) -> dict[int, list[str]]:
        """Each partition's values, in order; there is no gap in the offsets."""
        return self.state.texts(topic)

    def values(self, topic: str = TOPIC) -> Counter[str]:
        return Counter(value for values in self.log(topic).values() for value in values)

    def ends(self) -> dict[int, int]:
        return {one.partition: one.end_offset for one in self.mq.admin.describe_topic(TOPIC).partitions}


def check_what_was_sent(story: Story) -> None:
    """What was acknowledged is there once, what was not is there once or not at all, and calls are whole."""
    found = story.values()
    assert [value for value, count in found.items() if count > 1] == []
    assert set(story.told(SENT)) <= set(found) <= set(story.told(SENDING))
    assert [batch for batch in story.batches(SENDING) if 0 < sum(value in found for value in batch) < len(batch)] == []


def check_order(story: Story) -> None:
    """The messages of each life are in the log in the order in which it has sent them, in each partition."""
    places = {value: place for place, value in enumerate(story.told(SENDING))}
    for values in story.log().values():
        assert [places[value] for value in values] == sorted(places[value] for value in values)


def check_producing(story: Story) -> None:
    check_what_was_sent(story)
    check_order(story)


def check_publishing(story: Story) -> None:
    """There is a message in each topic for each order, and no other."""
    check_what_was_sent(story)
    orders = Counter(story.state.column("SELECT note FROM customer_order"))
    assert story.values() == story.values(RECEIPTS) == orders
    assert set(orders) & set(story.told(UNDONE)) == set()


def check_delaying(story: Story) -> None:
    """What was stored is in the log once, unless it was taken back."""
    check_what_was_sent(story)
    assert len(story.told(CANCELLING)) >= len(story.told(CANCELLED)) > 0
    assert set(story.values()) & set(story.told(CANCELLING)) == set()
    assert story.state.rows("SELECT * FROM sqlmq_staged") == []


def check_consuming(story: Story) -> None:
    """All is handled, in order, and nothing again that was committed."""
    last: dict[tuple[str, int], int] = {}
    handled_to: dict[int, int] = defaultdict(int)
    committed_to: dict[int, int] = defaultdict(int)
    for life, what, facts in story.lines:
        partition, offset = facts
        if what == COMMITTED:
            committed_to[partition] = max(committed_to[partition], offset + 1)
        if what == HANDLED:
            assert committed_to[partition] <= offset <= handled_to[partition], (life, facts)
            assert offset == last.get((life, partition), offset - 1) + 1, (life, facts)
            last[life, partition] = offset
            handled_to[partition] = max(handled_to[partition], offset + 1)
    assert handled_to == committed_to == story.ends()


def check_transacting(story: Story) -> None:
    """Each message has had its effect once, in order, and its receipt."""
    assert effects_of(story.state) == {partition: list(range(end)) for partition, end in story.ends().items()}
    assert story.values(RECEIPTS) == story.values()


def effects_of(state: QueueState) -> dict[int, list[int]]:
    """The offsets of the messages that had effects, by partition, in the order of the effects."""
    effects: dict[int, list[int]] = defaultdict(list)
    for partition, offset in state.rows("SELECT partition_number, message_offset FROM effect ORDER BY id"):
        effects[partition].append(offset)
    return effects


def check_running(story: Story) -> None:
    """Each message is handled, in the order of its key, or a dead letter; none twice in a row in one process."""
    handled: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for life, what, facts in story.lines:
        if what == HANDLED:
            key, number = facts
            handled[key][life].append(number)
    for name in _sent_by(story):
        for key, kinds in KINDS.items():
            wanted = [number for number, kind in enumerate(kinds) if kind != POISON]
            runs = list(handled[f"{name}/{key}"].values())
            # Each process goes on from where the one before was certainly done, or before that.
            assert [run for run in runs if run != list(range(run[0], run[-1] + 1))] == [], (name, key, runs)
            assert sorted({number for run in runs for number in run}) == wanted, (name, key, runs)
    check_dead_letters(story)


def check_running_in_transactions(story: Story) -> None:
    """Each message has had its effect once, in the order of its key, or is a dead letter."""
    effects: dict[str, list[int]] = defaultdict(list)
    for key, number in story.state.rows("SELECT message_key, number FROM attempt ORDER BY id"):
        effects[key].append(number)
    sent = _sent_by(story)
    assert effects == {
        f"{name}/{key}": [number for number, kind in enumerate(kinds) if kind != POISON]
        for name in sent
        for key, kinds in KINDS.items()
    }
    check_dead_letters(story)


def check_dead_letters(story: Story) -> None:
    """All was read; the poisoned messages, and no others, are dead letters."""
    group = story.mq.admin.describe_group(TOPIC, GROUP)
    assert [(one.position, one.lag) for one in group.partitions] == [(one.end_offset, 0) for one in group.partitions]
    rows = story.state.rows("SELECT state, key FROM sqlmq_parked")
    assert sorted((state, bytes(key)) for state, key in rows) == sorted(
        ("dead", f"{name}/p".encode()) for name in _sent_by(story)
    )


def _sent_by(story: Story) -> set[str]:
    """The lives whose messages are in the log: those that have told so, and some whose end came before that."""
    keys = {json.loads(value)[1].rpartition("/")[0] for value in story.values()}
    assert set(story.told(SENT)) <= keys
    return keys


def check_retaining(story: Story) -> None:
    """As much is kept as was asked for, without a gap; nothing of it was lost to the group unread."""
    (partition,) = story.mq.admin.describe_topic(KEPT).partitions
    offsets = [offset for _, offset in story.state.log(KEPT)]
    assert offsets == list(range(partition.end_offset - KEEP_MESSAGES, partition.end_offset))
    assert partition.end_offset >= 6 * len({line.life for line in story.lines})
    assert story.mq.admin.evictions(KEPT) == []


def check_replaying(story: Story) -> None:
    """Told that it was moved, a group is there; after an end meanwhile, where it was or where it was to go."""
    interrupted = 0
    for before, line in pairwise(story.lines):
        if before.what == MOVING and line.what == MOVED:
            assert line.facts[0] == before.facts[1], line
        if before.what == MOVING and line.what == FOUND:
            interrupted += 1
            assert [now for now, *places in zip(line.facts[0], *before.facts, strict=True) if now not in places] == []
    assert interrupted > 0
    assert [partition.lag for partition in story.mq.admin.describe_group(TOPIC, GROUP).partitions] == [0] * PARTITIONS


CHECKS: dict[str, Callable[[Story], None]] = {
    "producing": check_producing,
    "publishing": check_publishing,
    "delaying": check_delaying,
    "consuming": check_consuming,
    "transacting": check_transacting,
    "running": check_running,
    "running_in_transactions": check_running_in_transactions,
    "retaining": check_retaining,
    "replaying": check_replaying,
}
