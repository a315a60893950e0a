"""Decisions about notices: when one is due, and whether a connection hears."""

from __future__ import annotations

import pytest

from sqlmq.background.listener import ListenerHealth
from sqlmq.background.notifier import NotifySchedule, Probe
from sqlmq.hooks.clock import Clock
from sqlmq.operations.notify import topic_id


def test_the_first_notice_of_a_topic_is_due_at_once() -> None:
    schedule = NotifySchedule()

    assert schedule.ready({1, 2}, 100.0) == {1, 2}
    assert schedule.pause({1, 2}, 100.0) == 0


@pytest.mark.parametrize(("commits", "seconds"), [(1, 0.004), (2, 0.004), (3, 0.01), (500, 0.01)])
def test_the_next_one_waits_the_longer_the_more_there_was_to_tell_and_holds_up_no_other_topic(
    commits: int, seconds: float
) -> None:
    schedule = NotifySchedule()
    schedule.note({1: commits}, {1}, {1}, 100.0)

    assert schedule.ready({1, 2}, 100.0 + seconds - 0.001) == {2}
    assert schedule.pause({1}, 100.0 + seconds - 0.001) == pytest.approx(0.001)
    assert schedule.ready({1}, 100.0001 + seconds) == {1}


def test_where_nobody_waits_a_notice_is_held_back_for_a_second() -> None:
    schedule = NotifySchedule()
    schedule.note({1: 1}, {1}, set(), 100.0)

    assert schedule.ready({1}, 100.9) == set()
    assert schedule.ready({1}, 101.0) == {1}
    assert schedule.awaited({1}, 101.0) == set()


def test_that_somebody_waits_is_believed_for_a_second() -> None:
    schedule = NotifySchedule()
    schedule.note({1: 1}, {1}, {1}, 100.0)
    schedule.note({1: 1}, set(), set(), 100.5)

    assert schedule.awaited({1, 2}, 100.9) == {1}
    assert schedule.awaited({1, 2}, 101.0) == set()
    assert schedule.ready({1}, 100.52) == {1}


def test_a_schedule_forgets_topics_of_long_ago() -> None:
    schedule = NotifySchedule()
    for number in range(5_000):
        schedule.note({number: 1}, {number}, {number}, float(number))

    assert len(schedule._not_before) <= 1_001
    assert len(schedule._awaited_until) <= 1_001


def test_a_connection_whose_first_probe_does_not_arrive_is_deaf() -> None:
    hearing = probed_at(100.0)

    hearing.arrived(set(), 104.9)
    assert (hearing.is_over, hearing.receives_nothing) == (False, False)
    hearing.arrived({"7"}, 105.0)
    assert (hearing.is_over, hearing.receives_nothing) == (True, True)


def test_a_connection_that_heard_before_is_not_deaf_but_dead() -> None:
    hearing = probed_at(100.0)
    assert hearing.probe is not None
    hearing.arrived({hearing.probe.payload}, 100.1)
    assert not hearing.is_probe_due(130.0)
    assert hearing.is_probe_due(130.2)
    hearing.probe = Probe(Clock(token=lambda: "second"))
    hearing.probe.sent_at = 130.2

    hearing.arrived(set(), 135.3)

    assert hearing.is_over
    assert not hearing.receives_nothing


def test_a_probe_that_could_not_be_sent_tells_nothing() -> None:
    hearing = ListenerHealth(100.0)
    hearing.probe = Probe(Clock(token=lambda: "first"))

    hearing.arrived(set(), 1_000.0)

    assert not hearing.is_over
    assert hearing.pause(1_000.0) > 0


@pytest.mark.parametrize("payload", ["", "x", "-1", "1.5", "probe 1", "9" * 20, "\u0661", "1 "])
def test_what_anybody_may_send_is_no_topic(payload: str) -> None:
    assert topic_id(payload) is None


def test_a_topics_number_is_one() -> None:
    assert topic_id("42") == 42


def probed_at(now: float) -> ListenerHealth:
    hearing = ListenerHealth(now)
    assert hearing.is_probe_due(now)
    hearing.probe = Probe(Clock(token=lambda: "first"))
    hearing.probe.sent_at = now
    return hearing
