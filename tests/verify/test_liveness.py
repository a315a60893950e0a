"""L1 to L8, and when nothing is proved."""

from __future__ import annotations

import pytest

from sqlmq.verify.history import event_of
from sqlmq.verify.judge.verdict import judge
from tests.verify.stories import Story, got

LIMITS = {"takeover": 1.0, "starvation": 1.0, "recovery": 1.0, "drain": 1.0, "call": 1.0, "rss": 1000, "queries": 2.0}


def bounded() -> Story:
    story = Story()
    story.plan(bounds=dict(LIMITS))
    return story


def waiting(seen: float) -> Story:
    """A message that is acknowledged at 2 ms, and comes when it is *seen*."""
    story = bounded()
    story.send(["a"])
    story.log(["a"])
    story.poll([got("a", 0)], seen - 1, seen)
    return story


@pytest.mark.parametrize(("seen", "is_late"), [(1001, False), (1004, True)])
def test_a_message_must_not_wait_longer_than_the_bound(seen: float, is_late: bool) -> None:
    assert waiting(seen).found() == ({"L4": {"starvation"}} if is_late else {})


@pytest.mark.parametrize(("killed_at", "code"), [(100, "L1"), (1500, None)])
def test_after_a_loss_the_clock_starts_anew(killed_at: float, code: str | None) -> None:
    story = waiting(2000)
    story.poll([], 1, None, p="d")
    story.note("crash", killed_at, who="d")

    assert set(story.found()) == ({code} if code else set())


def test_a_loss_in_another_group_is_no_reason_to_wait() -> None:
    story = waiting(2000)
    story.call("poll", 1, None, "d", group="h", topic="t")
    story.note("crash", 1500, who="d")

    assert "L4" in story.found()


def test_waiting_is_over_when_the_drain_begins() -> None:
    story = bounded()
    story.send(["a"])
    story.log(["a"])
    story.poll([], 1, 1.5)
    story.drained(500)
    story.poll([got("a", 0)], 5000, 5001)
    story.done([0], 5002)
    story.position(1)

    assert story.found() == {}


@pytest.mark.parametrize(("next_end", "is_late"), [(1100, False), (1300, True)])
def test_when_the_database_is_back_something_is_acknowledged_soon(next_end: float, is_late: bool) -> None:
    story = bounded()
    story.note("nemesis", 100, action="start", fault="terminate", id=1)
    story.note("nemesis", 200, action="stop", fault="terminate", id=1)
    story.send(["a"], 210, 220, outcome="fail")
    story.send(["b"], 900, next_end, p="q")
    story.log(["b"])

    assert story.found() == ({"L2": {"recovery"}} if is_late else {})


@pytest.mark.parametrize(("end", "outcome"), [(1500, "ok"), (500, "fail")])
def test_a_drain_must_be_done_in_time(end: float, outcome: str) -> None:
    story = bounded()
    story.call("drain", 10, end, "parent", outcome, group="g", topic="t")

    assert story.found() == {"L3": {"drain"}}


@pytest.mark.parametrize(
    ("end", "paused", "is_hanging"), [(900, False, False), (1100, False, True), (1100, True, False)]
)
def test_a_call_must_not_take_longer_than_the_bound(end: float, paused: bool, is_hanging: bool) -> None:
    story = bounded()
    story.send(["a"], 1, end)
    story.log(["a"])
    if paused:
        story.note("nemesis", 100, action="start", fault="pause", id=1, who=["p"])
        story.note("nemesis", 900, action="stop", fault="pause", id=1, who=["p"])

    assert story.found() == ({"L5": {"hanging"}} if is_hanging else {})


@pytest.mark.parametrize(("outcome", "is_wrong"), [("fail", False), ("info", True)])
def test_a_deadlock_is_a_failure(outcome: str, is_wrong: bool) -> None:
    story = Story()
    story.call("send", 1, 2, "p", outcome, {"sqlstate": "40P01"}, topic="t", messages=[])

    assert story.found() == ({"L5": {"deadlock"}} if is_wrong else {})


@pytest.mark.parametrize(("size", "is_too_big"), [(6000, False), (6001, True)])
def test_a_process_must_not_grow_without_bounds(size: int, is_too_big: bool) -> None:
    story = bounded()
    for at, bytes_ in ((1, 5000), (2, size), (3, size)):
        story.note("rss", at, "c", bytes=bytes_)

    assert story.found() == ({"L6": {"memory"}} if is_too_big else {})
    assert story.verdict().findings.counts.get("L6", 0) == is_too_big


@pytest.mark.parametrize(("queries", "is_busy"), [(20, False), (21, True)])
def test_an_idle_member_must_not_ask_all_the_time(queries: int, is_busy: bool) -> None:
    story = bounded()
    story.note("idle", 1, "c", queries=queries, seconds=10.0)

    assert story.found() == ({"L7": {"idle"}} if is_busy else {})


@pytest.mark.parametrize(("left", "is_wrong"), [(1, False), (2, True)])
def test_nothing_must_be_left_in_the_database(left: int, is_wrong: bool) -> None:
    story = Story()
    story.row("residue", what="locks", count=left, most=1)

    assert story.found() == ({"L8": {"residue"}} if is_wrong else {})


def test_bounds_that_are_not_given_are_not_judged() -> None:
    story = waiting(100_000)
    story.lines[0]["bounds"] = {}

    assert story.found() == {}


def test_a_run_in_which_enough_happened_and_nothing_was_wrong_is_valid() -> None:
    verdict = waiting(10).verdict()

    assert (verdict.outcome, verdict.exit_code, verdict.doubts) == ("valid", 0, [])


def test_what_is_late_is_told_apart_from_what_is_wrong() -> None:
    late = waiting(5000)
    wrong = waiting(5000)
    wrong.position(7)

    assert (late.verdict().outcome, late.verdict().exit_code) == ("liveness", 2)
    assert (wrong.verdict().outcome, wrong.verdict().exit_code) == ("invalid", 1)


def test_too_few_acknowledged_messages_prove_nothing() -> None:
    story = waiting(10)

    verdict = judge([event_of(line) for line in story.lines], story.final())

    assert (verdict.outcome, verdict.exit_code) == ("unknown", 3)
    assert verdict.doubts == ["Only 1 messages were acknowledged; at least 1000 are needed."]


def test_the_plan_says_how_many_are_enough() -> None:
    story = waiting(10)
    story.lines[0]["least"] = {"acks": 1}

    assert judge([event_of(line) for line in story.lines], story.final()).outcome == "valid"


def test_a_fault_that_was_asked_for_and_did_not_happen_proves_nothing() -> None:
    story = waiting(10)
    story.lines[0]["faults"] = ["kill", "pause"]
    story.note("nemesis", 1, action="start", fault="kill", id=1, who=["x"])

    assert story.verdict().doubts == ["The fault 'pause' was requested but did not happen."]
    assert story.verdict().outcome == "unknown"


def test_a_run_in_which_nothing_was_delivered_proves_nothing() -> None:
    story = Story()
    story.group()
    story.send(["a"])
    story.log(["a"])

    assert story.verdict().outcome == "unknown"


def test_without_the_state_at_the_end_nothing_is_proved_and_something_may_be_wrong() -> None:
    story = waiting(10)
    story.has_end = False
    assert story.verdict().outcome == "unknown"

    story.send(["b"], 3, 4, outcome="fail")
    story.poll([got("b", 1)], 5, 6)
    assert story.verdict().outcome == "invalid"


@pytest.mark.parametrize("name", ["A1", "lost-write", "lost-suffix"])
def test_what_is_allowed_is_told_and_does_not_count(name: str) -> None:
    story = waiting(10)
    story.send(["b"], 3, 4)

    verdict = story.verdict(allow=[name])

    assert (verdict.outcome, verdict.allowed) == ("valid", {name: 1})


def test_only_what_is_allowed_does_not_count() -> None:
    story = waiting(10)
    story.send(["b"], 3, 4)
    story.send(["c"], 1, 2, p="q", outcome="fail")
    story.poll([got("c", 1)], 11, 12)

    assert story.verdict(allow=["A1"]).outcome == "invalid"
