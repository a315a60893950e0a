"""What excuses an anomaly, and what only looks as if it did."""

from __future__ import annotations

import pytest

from tests.verify.stories import Story, blocks, got, handed, sent, three


def moved(outcome: str = "ok", group: str = "g") -> Story:
    """A group that is moved back after it has read a message, and reads it again."""
    story = three()
    story.poll(handed(1), 3, 4)
    story.call("seek", 4.1, 4.2, "o", outcome, group=group, topic="t", positions={"0": 0})
    story.poll(handed(0, 1), 5, 6)
    return story


def test_a_group_that_was_moved_gets_messages_again_and_in_another_order() -> None:
    assert moved().found() == {}


@pytest.mark.parametrize(("outcome", "group"), [("fail", "g"), ("ok", "h")])
def test_a_move_that_failed_or_of_another_group_excuses_nothing(outcome: str, group: str) -> None:
    assert set(moved(outcome, group).found()) == {"B3", "B4"}


def test_a_group_that_was_moved_in_one_partition_is_judged_in_the_others() -> None:
    story = Story()
    story.send(["a", "b"])
    story.log([], partition=0)
    story.log(["a", "b"], partition=1)
    story.poll([got("b", 1, 1)], 3, 4)
    story.call("seek", 4.1, 4.2, "o", group="g", topic="t", positions={"0": 0})
    story.poll([got("a", 0, 1)], 5, 6)

    assert story.found() == {"B3": {"nonmonotonic-poll"}}


@pytest.mark.parametrize(("outcome", "codes"), [("ok", set[str]()), ("fail", {"B3", "B4"})])
def test_messages_with_a_decision_come_again(outcome: str, codes: set[str]) -> None:
    story = three()
    story.poll(handed(1), 3, 4)
    story.call("decide", 4.1, 4.2, "o", outcome, group="g", topic="t", action="retry", partition=0, offsets=[0, 1])
    story.poll(handed(0, 1), 5, 6)

    assert set(story.found()) == codes


def test_a_decision_that_failed_discards_nothing() -> None:
    story = three()
    story.group(mode="run")
    story.call("decide", 5, 6, "o", "fail", group="g", topic="t", action="discard", partition=0, offsets=[0])
    story.position(1)

    assert story.found() == {"B1": {"never-delivered"}}


def test_a_seek_that_failed_skips_nothing() -> None:
    story = three()
    story.call("seek", 3, 4, "c", "fail", group="g", topic="t", positions={"0": 2})
    story.position(2)

    assert story.found() == {"B1": {"never-delivered"}}


@pytest.mark.parametrize(("group", "outcome"), [("h", "ok"), ("g", "fail")])
def test_only_a_drain_of_the_group_that_succeeded_says_that_it_has_read_all(group: str, outcome: str) -> None:
    story = three()
    story.poll(handed(0), 3, 4)
    story.done([0], 5)
    story.call("drain", 10, 11, "parent", outcome, group=group, topic="t")
    story.position(1)

    unseen = [finding.text for finding in story.verdict().findings.examples.get("B2", ())]
    assert not any(text.startswith("g on ") for text in unseen)


def test_the_first_time_that_a_message_was_done_counts() -> None:
    story = three()
    story.poll(handed(0), 2, 2.5, p="c")
    story.done([0], 3, "c")
    story.note("crash", 3.5, who="c")
    story.call("positions", 4, 5, "o", group="g", topic="t", answer={"positions": {"0": 1}})
    story.done([0], 6, "d")
    story.position(1)

    assert story.found() == {}


def test_transactions_of_a_group_that_was_moved_begin_anywhere() -> None:
    story = blocks()
    story.block(handed(0), 3, 4)
    story.call("seek", 4.1, 4.2, "o", group="g", topic="t", positions={"0": 2})
    story.block(handed(2), 5, 6)

    assert story.found() == {}


def test_a_transaction_between_two_possible_positions_was_not_possible() -> None:
    story = blocks()
    story.block(handed(0, 1), 3, None, p="x")
    story.block(handed(1), 5, 6)

    assert story.found()["B6"] == {"split-ownership"}


def test_a_late_transaction_between_two_possible_positions_does_no_harm() -> None:
    story = blocks()
    story.block(handed(0, 1), 3, None, p="x")
    story.block(handed(1), 5, 6, outcome="fail")
    story.block(handed(2), 7, 8)

    assert story.found() == {}


def test_retention_of_one_topic_says_nothing_of_the_groups_of_another() -> None:
    story = three()
    story.call("poll", 3, 4, "x", group="other", topic="u", answer={"delivered": []})
    story.rows[-1]["start"] = 1
    story.rows.pop(0)
    story.poll(handed(0), 3, 4)
    story.done([0], 5)
    story.position(1)

    assert "B9" not in story.found()


def test_retention_may_take_from_a_group_what_is_committed_before_it_is_handed_out() -> None:
    story = Story()
    story.group(ack="on_delivery")
    story.send(["b"])
    story.log(["b"], start=1)
    story.position(1)

    assert story.found() == {}


def test_effects_of_a_group_that_was_moved_are_not_held_against_its_position() -> None:
    story = blocks()
    story.block(handed(0), 3, 4, effects=["a"])
    story.call("seek", 5, 6, "o", group="g", topic="t", positions={"0": 0})
    story.row("effect", group="g", m="a", count=1)
    story.position(0)

    assert story.found() == {}


def test_an_effect_that_one_of_those_who_got_the_message_would_not_write_may_be_lacking() -> None:
    story = blocks()
    story.block(handed(0), 3, None, p="x", effects=["a"])
    story.block(handed(0), 5, 6, effects=[])
    story.position(1)

    assert story.found() == {}


def test_an_effect_of_a_savepoint_that_was_rolled_back_may_be_lacking() -> None:
    story = blocks()
    story.block(handed(0), 3, 4, effects=["a"], undone=["a"])
    story.position(1)

    assert story.found() == {}


def test_a_dead_letter_has_no_effect() -> None:
    story = three()
    story.group(mode="run")
    story.handle(handed(0), 3, 4, outcome="fail", transaction=True, effects=["a"])
    story.row("parked", group="g", topic="t", partition=0, offset=0, state="dead", attempts=1)
    story.position(1)

    assert story.found() == {}


@pytest.mark.parametrize(("losses", "codes"), [(0, {"B10"}), (1, set[str]())])
def test_the_last_handler_of_a_dead_letter_counts_and_an_earlier_loss(losses: int, codes: set[str]) -> None:
    story = three()
    story.group(mode="run")
    story.handle(handed(0), 3, 4, p="c", outcome="fail")
    story.handle(handed(0), 5, 6, p="d")
    if losses:
        story.note("fenced", 3.5, "c", group="g", topic="t", partition=0)
    story.row("parked", group="g", topic="t", partition=0, offset=0, state="dead", attempts=1)
    story.position(1)

    assert set(story.found()) == codes


def test_attempts_are_those_of_handlers_that_raised() -> None:
    story = three()
    story.group(mode="run", max_attempts=1)
    story.handle(handed(0), 3, 4, outcome="fail")
    story.handle(handed(0), 5, 6)
    story.handle(handed(0), 7, 8, outcome="info")
    story.position(1)

    assert "B10" not in story.found()


@pytest.mark.slow
@pytest.mark.parametrize("state", ["staged", "placed"])
def test_an_effect_goes_with_messages_that_are_stored_still(state: str) -> None:
    story = Story()
    story.call("txn", 1, None, messages=[sent("x", topic="t", due=9)], effects=["order 1"])
    if state == "staged":
        story.row("staged", m="x")
        story.log([])
    else:
        story.log(["x"])
    story.row("effect", m="order 1", count=0)

    assert story.found() == {"B7": {"torn"}}
