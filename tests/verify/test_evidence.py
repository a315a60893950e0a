"""How what is known is looked up, and told."""

from __future__ import annotations

import pytest

from sqlmq.verify.judge.evidence import Intervals, ranges
from tests.verify.stories import Story, sent


@pytest.mark.parametrize(
    ("numbers", "told"), [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([5, 3, 4, 9, 11, 12], "3-5, 9, 11-12")]
)
def test_numbers_are_told_as_ranges(numbers: list[int], told: str) -> None:
    assert ranges(numbers) == told


@pytest.mark.parametrize(
    ("start", "end", "touches"),
    [(0, 9, False), (0, 10, True), (15, 16, True), (20, 30, True), (21, 30, False), (21, 40, True)],
)
def test_a_stretch_touches_those_that_share_a_moment_with_it(start: int, end: int, touches: bool) -> None:
    spans = Intervals()
    spans.add(40, 50)
    spans.add(10, 20)
    spans.add(12, 13)

    assert spans.overlaps(start, end) == touches


def test_no_stretch_touches_nothing() -> None:
    assert not Intervals().overlaps(0, 1)


def test_a_message_of_a_savepoint_that_was_rolled_back_does_not_tear_its_transaction() -> None:
    story = Story()
    story.call("txn", 1, None, messages=[sent("a", topic="t"), sent("b", topic="t")], undone=["b"])
    story.log(["a"])

    assert story.found() == {}


def test_a_delayed_message_does_not_tear_its_transaction() -> None:
    story = Story()
    story.call("txn", 1, None, messages=[sent("a", topic="t"), sent("b", topic="t", due=9)])
    story.log(["a"])
    story.row("staged", m="b")

    assert story.found() == {}
