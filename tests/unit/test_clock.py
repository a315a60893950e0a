"""Clock, waits and chance, as a test gives them to an MQ."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from sqlmq import MQ, Message
from sqlmq.hooks.clock import SYSTEM, check_clock
from sqlmq.operations import consume
from sqlmq.testing import Clock
from tests.support.clock import ManualClock
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from pathlib import Path

    from sqlmq.model.message import FetchedRecords


def test_without_a_runtime_it_is_the_systems() -> None:
    assert check_clock(None) is SYSTEM


def test_what_is_no_runtime_is_refused() -> None:
    with pytest.raises(TypeError, match=r"clock must be a sqlmq.testing.Clock, not Random"):
        MQ("sqlite://", clock=Random())  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't fork there")
def test_forked_children_draw_something_else_than_their_parent_and_each_other() -> None:
    drawn = []
    for _ in range(3):
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            os.write(writing, b"%d" % SYSTEM.random.getrandbits(64))
            os._exit(0)
        os.waitpid(child, 0)
        drawn.append(int(os.read(reading, 100)))
        os.close(reading)
        os.close(writing)

    assert len({*drawn, SYSTEM.random.getrandbits(64)}) == 4


def test_what_is_drawn_can_be_made_alike_each_time() -> None:
    def partitions() -> list[int | None]:
        with MQ("sqlite://", clock=Clock(random=Random(7))) as mq:
            mq.create_topic("orders", 1_000)
            return [mq.producer("orders").produce(Message(b"")).partition for _ in range(3)]

    assert partitions() == partitions()


def test_a_wait_for_a_message_ends_when_the_clock_says_so_and_not_before(tmp_path: Path) -> None:
    clock = ManualClock()
    with (
        MQ(f"sqlite:///{tmp_path}/queue.db", clock=clock.clock, poll_max_seconds=100.0) as mq,
        ThreadPoolExecutor(1) as threads,
    ):
        mq.create_topic("orders", 1)
        consumer = mq.consumer("orders", "billing")
        polled = threads.submit(consumer.poll, timeout=86_400.0)
        until(lambda: bool(clock.waits()), "somebody waits")

        clock.advance(86_399.0)
        was_done = polled.done()
        clock.advance(1.0)

        assert polled.result(PATIENCE_SECONDS) == []
        assert not was_done


def test_a_member_that_asks_for_nothing_gives_its_partitions_back_after_five_minutes_of_the_clock(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    with MQ(f"sqlite:///{tmp_path}/queue.db", clock=clock.clock) as mq:
        mq.create_topic("orders", 1)
        consumer = mq.consumer("orders", "billing")
        consumer.poll(timeout=0)
        owned = consumer.partitions

        def gives_back() -> bool:
            clock.advance(1.0)
            return consumer.partitions == ()

        clock.advance(290.0)
        until(lambda: bool(clock.waits()), "the threads have looked")
        still_owned = consumer.partitions
        until(gives_back, "it has given its partition back")

        assert owned == still_owned == (0,)
        assert clock.monotonic() >= 1_300.0


def test_nothing_is_delivered_whose_lease_has_ended_while_it_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    fetch, delays = consume.fetch, [0.0, 100.0]

    def fetch_slowly(*args: Any, **options: Any) -> dict[int, FetchedRecords]:
        found = fetch(*args, **options)
        clock.advance(delays.pop() if found and delays else 0.0)
        return found

    monkeypatch.setattr(consume, "fetch", fetch_slowly)
    with MQ(f"sqlite:///{tmp_path}/queue.db", clock=clock.clock, lease_seconds=60.0) as mq:
        mq.create_topic("orders", 1)
        mq.producer("orders").produce(Message(b"1"))
        consumer = mq.consumer("orders", "billing")
        mq._background.heartbeat.stop()

        late, in_time = consumer.poll(timeout=0), consumer.poll(timeout=0)

    assert late == []
    assert [message.value for message in in_time] == [b"1"]


def test_an_event_of_the_clock_is_set_as_any_other() -> None:
    event = ManualClock().clock.event()
    threading.Timer(0.0, event.set).start()

    assert event.wait(1e6)
