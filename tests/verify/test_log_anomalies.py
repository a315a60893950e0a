"""A1 to A12 and B11: each by a history that shows it, and by one that nearly does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.verify.stories import Story, got, sent

if TYPE_CHECKING:
    from sqlmq.verify.history import Json


def test_an_acknowledged_message_that_is_in_the_log_is_not_lost() -> None:
    story = Story()
    story.send(["a"])
    story.log(["a"])

    assert story.found() == {}


@pytest.mark.parametrize(
    ("kept", "kind"), [(["b", "c"], "lost-prefix"), (["a", "c"], "lost-middle"), (["a", "b"], "lost-suffix")]
)
def test_an_acknowledged_message_that_is_not_in_the_log_is_lost_and_it_is_said_where(
    kept: list[str], kind: str
) -> None:
    story = Story()
    for number, m in enumerate("abc"):
        story.send([m], 10 * number, 10 * number + 1)
    story.log(kept)

    assert story.found() == {"A1": {kind}}


def test_what_an_unknown_send_tried_may_be_in_the_log_or_not() -> None:
    story = Story()
    story.send(["a"], outcome="info")
    story.send(["b"], 5, None)
    story.send(["c"], 6, None, p="q")
    story.log(["b"])

    assert story.found() == {}


def test_what_an_unknown_send_tried_is_lost_if_it_was_delivered_and_is_gone() -> None:
    story = Story()
    story.send(["a"], 1, None)
    story.poll([got("a", 0)], 2, 3)
    story.log([])

    assert story.found()["A1"] == {"lost-suffix"}


def test_what_retention_has_deleted_is_not_lost() -> None:
    story = Story()
    story.call(
        "send", 1, 2, topic="t", messages=[sent("a")], answer={"placed": [{"m": "a", "partition": 0, "offset": 0}]}
    )
    story.log([], start=1)

    assert story.found() == {}


def test_what_retention_has_not_deleted_is_lost_though_the_topic_is_trimmed() -> None:
    story = Story()
    story.call(
        "send", 1, 2, topic="t", messages=[sent("a")], answer={"placed": [{"m": "a", "partition": 0, "offset": 1}]}
    )
    story.send(["b"], 5, 6)
    story.log(["b"], start=1)

    assert "A1" in story.found()


def test_a_delayed_message_that_is_stored_still_or_was_cancelled_is_not_lost() -> None:
    story = Story()
    story.send(["a", "b"], due=9)
    story.call("cancel", 3, 4, topic="t", message="b", answer={"cancelled": True})
    story.row("staged", topic="t", partition=0, m="a")
    story.log([])

    assert story.found() == {}


def test_a_delayed_message_that_could_not_be_cancelled_any_more_must_be_there() -> None:
    story = Story()
    story.send(["a"], due=9)
    story.call("cancel", 3, 4, topic="t", message="a", answer={"cancelled": False})
    story.log([])

    assert story.found() == {"A1": {"lost-suffix"}}


def test_a_message_of_a_send_that_failed_must_not_be_in_the_log() -> None:
    story = Story()
    story.send(["a"], outcome="fail")
    story.log(["a"])

    assert story.found() == {"A2": {"aborted"}}


def test_a_message_of_a_send_that_failed_must_not_be_delivered_though_it_is_gone_later() -> None:
    story = Story()
    story.send(["a"], outcome="fail")
    story.poll([got("a", 0)], 3, 4)
    story.log([])

    assert story.found()["A2"] == {"aborted"}


def test_a_message_of_a_savepoint_that_was_rolled_back_must_not_be_in_the_log() -> None:
    story = Story()
    story.call("txn", 1, 2, messages=[sent("a", topic="t"), sent("b", topic="t")], undone=["b"])
    story.log(["a", "b"])

    assert story.found() == {"A2": {"savepoint"}}


def test_without_the_message_of_its_savepoint_a_transaction_is_whole() -> None:
    story = Story()
    story.call("txn", 1, 2, messages=[sent("a", topic="t"), sent("b", topic="t")], undone=["b"])
    story.log(["a"])

    assert story.found() == {}


def test_a_message_that_no_client_sent_is_unexpected() -> None:
    story = Story()
    story.log(["a"])

    assert story.found() == {"A3": {"unknown"}}


def test_a_message_that_cant_be_read_is_unexpected() -> None:
    story = Story()
    story.log([None])

    assert story.found() == {"A3": {"unknown"}}


@pytest.mark.parametrize("change", [{"h": "other"}, {"key": "other"}, {"key": None}])
def test_a_message_that_comes_with_another_value_or_key_is_corrupt(change: dict[str, Json]) -> None:
    story = Story()
    story.send(["a"], key="k")
    story.log(["a"], key="k")
    story.poll([got("a", 0) | {"key": "k"} | change], 3, 4)

    assert story.found() == {"A3": {"corrupt"}}


def test_a_message_must_be_in_the_partition_that_its_sender_chose() -> None:
    story = Story()
    story.send(["a"], partition=1)
    story.log(["a"], partition=0)

    assert story.found() == {"A3": {"misplaced"}}


def test_messages_of_one_key_must_be_in_one_partition() -> None:
    story = Story()
    story.send(["a"], 1, 2, key="k")
    story.send(["b"], 3, 4, key="k")
    story.log(["a"], partition=0, key="k")
    story.log(["b"], partition=1, key="k")

    assert story.found() == {"A3": {"misplaced"}}


def test_messages_of_one_key_may_be_where_their_senders_chose() -> None:
    story = Story()
    story.send(["a"], 1, 2, key="k", partition=0)
    story.send(["b"], 3, 4, key="k", partition=1)
    story.log(["a"], partition=0, key="k")
    story.log(["b"], partition=1, key="k")

    assert story.found() == {}


def test_a_message_that_was_cancelled_must_not_come() -> None:
    story = Story()
    story.send(["a"], due=9)
    story.call("cancel", 3, 4, topic="t", message="a", answer={"cancelled": True})
    story.log(["a"])

    assert story.found() == {"A3": {"cancelled"}}


def test_a_message_must_not_be_at_two_offsets() -> None:
    story = Story()
    story.send(["a"])
    story.log(["a", "a"])

    assert story.found() == {"A4": {"duplicate"}}


def test_a_message_that_two_groups_got_is_no_duplicate() -> None:
    story = Story()
    story.send(["a"])
    story.log(["a"])
    for group in ("g", "h"):
        story.call("poll", 3, 4, group, group=group, topic="t", answer={"delivered": [got("a", 0)]})

    assert story.found() == {}


def test_what_its_sender_was_told_must_be_where_the_message_is() -> None:
    story = Story()
    placed: dict[str, Json] = {"placed": [{"m": "a", "partition": 0, "offset": 0}]}
    story.call("send", 1, 2, topic="t", messages=[sent("a"), sent("b")], answer=placed)
    story.log(["b", "a"])

    assert "inconsistent" in story.found()["A5"]


def test_an_offset_must_not_be_delivered_with_two_messages() -> None:
    story = Story()
    story.send(["a", "b"])
    story.log(["a", "b"])
    story.poll([got("b", 0)], 3, 4)

    assert story.found()["A5"] == {"inconsistent"}


def test_there_must_be_no_gap_between_the_ends_of_a_partition() -> None:
    story = Story()
    story.send(["a"])
    story.send(["b"], 3, 4)
    story.row("message", topic="t", partition=0, offset=0, m="a", h="a")
    story.row("message", topic="t", partition=0, offset=2, m="b", h="b")
    story.row("partition", topic="t", partition=0, start=0, end=3)

    assert story.found() == {"A6": {"gap"}}


@pytest.mark.parametrize(("start", "end"), [(0, 1), (1, 2)])
def test_there_must_be_no_message_outside_of_the_ends_of_a_partition(start: int, end: int) -> None:
    story = Story()
    story.send(["a", "b"])
    for offset, m in enumerate("ab"):
        story.row("message", topic="t", partition=0, offset=offset, m=m, h=m)
    story.row("partition", topic="t", partition=0, start=start, end=end)

    assert story.found() == {"A6": {"outside"}}


def test_an_offset_must_not_have_two_messages() -> None:
    story = Story()
    story.send(["a"])
    story.send(["b"], 1, 2, p="q")
    for m in "ab":
        story.row("message", topic="t", partition=0, offset=0, m=m, h=m)
    story.row("partition", topic="t", partition=0, start=0, end=1)

    assert story.found()["A6"] == {"twice"}


def test_a_trimmed_partition_begins_later_and_has_no_gap() -> None:
    story = Story()
    story.send(["a"])
    story.log(["a"], start=7)

    assert story.found() == {}


def test_a_send_that_began_after_another_was_over_must_be_behind_it() -> None:
    story = Story()
    story.send(["a"], 1, 2, p="p")
    story.send(["b"], 3, 4, p="q")
    story.log(["b", "a"])

    assert story.found()["A7"] == {"realtime"}


@pytest.mark.parametrize("outcome", ["ok", "info"])
def test_sends_that_overlap_may_be_in_any_order(outcome: str) -> None:
    story = Story()
    story.send(["a"], 1, 3, p="p", outcome=outcome)
    story.send(["b"], 2, 4, p="q")
    story.log(["b", "a"])

    assert story.found() == {}


def test_a_send_with_unknown_outcome_may_have_taken_place_long_after() -> None:
    story = Story()
    story.send(["a"], 1, 2, p="p", outcome="info")
    story.send(["b"], 3, 4, p="q")
    story.log(["b", "a"])

    assert story.found() == {}


def test_a_delayed_message_comes_when_it_is_due_and_behind_others() -> None:
    story = Story()
    story.send(["a"], 1, 2, due=0)
    story.send(["b"], 3, 4)
    story.log(["b", "a"])

    assert story.found() == {}


@pytest.mark.parametrize("order", [["b", "a"], ["a", "x", "b"]])
def test_messages_of_a_batch_must_follow_each_other_in_order(order: list[str]) -> None:
    story = Story()
    story.send(["a", "b"], 1, 5)
    story.send(["x"], 2, 4, p="q")
    story.log([*order, *({"x"} - set(order))])

    assert story.found()["A8"] == {"send-skip"}


def test_messages_of_a_batch_are_in_order_in_each_partition() -> None:
    story = Story()
    story.send(["a", "b", "c"], 1, 5)
    story.send(["x"], 2, 4, p="q")
    story.log(["a", "c", "x"], partition=0)
    story.log(["b"], partition=1)

    assert story.found() == {}


def test_staged_messages_of_a_transaction_may_be_apart() -> None:
    story = Story()
    story.call("txn", 1, 5, messages=[sent("a", topic="t"), sent("b", topic="t")], staged=True)
    story.send(["x"], 2, 4, p="q")
    story.log(["b", "x", "a"])

    assert story.found() == {}


def test_of_an_unknown_transaction_all_messages_must_be_there_or_none() -> None:
    story = Story()
    story.send(["a", "b"], 1, None)
    story.log(["a"])

    assert story.found()["A9"] == {"torn"}


def test_an_unknown_transaction_whose_first_message_retention_has_deleted_is_not_torn() -> None:
    story = Story()
    story.send(["a", "b"], 1, None)
    story.poll([got("a", 0)], 2, 3)
    story.done([0], 4)
    story.log(["b"], start=1)

    assert story.found() == {}


@pytest.mark.parametrize(("ends", "is_torn"), [([1, 0], True), ([0, 1], True), ([0, 0], False), ([1, 1], False)])
def test_a_snapshot_must_show_all_of_a_transaction_or_nothing(ends: list[int], is_torn: bool) -> None:
    story = Story()
    story.send(["a", "b"], 1, 9)
    story.log(["a"], partition=0)
    story.log(["b"], partition=1)
    story.call("snapshot", 3, 4, "o", topic="t", answer={"ends": {"0": ends[0], "1": ends[1]}})

    assert story.found() == ({"A9": {"torn-snapshot"}} if is_torn else {})


def test_two_transactions_must_not_come_before_each_other() -> None:
    story = Story()
    story.send(["a1", "a2"], 1, 9, p="p")
    story.send(["b1", "b2"], 1, 9, p="q")
    story.log(["a1", "b1"], partition=0)
    story.log(["b2", "a2"], partition=1)

    assert story.found() == {"A10": {"G0"}}


def test_a_transaction_must_not_come_before_one_whose_message_it_got() -> None:
    story = Story()
    story.block([got("b", 1)], 1, 9, p="p", messages=[sent("a", topic="t")])
    story.block([got("a", 0)], 1, 9, p="q", messages=[sent("b", topic="t")])
    story.log(["a", "b"])
    story.group(mode="transaction")

    assert story.found()["A10"] == {"G1c"}


def test_a_circle_may_go_through_time() -> None:
    story = Story()
    story.send(["a"], 1, 2, p="p")
    story.send(["b1", "b2"], 3, 9, p="q")
    story.send(["c"], 1, 9, p="r")
    story.log(["b1", "c"], partition=0)
    story.log(["c2"], partition=1)
    story.send(["c2"], 1, 9, p="s")
    story.log(["b2", "a"], partition=2)

    assert story.found()["A10"] == {"G0-realtime"}


def test_two_transactions_in_the_same_order_everywhere_are_no_circle() -> None:
    story = Story()
    story.send(["a1", "a2"], 1, 9, p="p")
    story.send(["b1", "b2"], 1, 9, p="q")
    story.log(["a1", "b1"], partition=0)
    story.log(["a2", "b2"], partition=1)

    assert story.found() == {}


def test_a_transaction_must_not_be_given_its_own_message() -> None:
    story = Story()
    story.group(mode="transaction")
    story.block([got("a", 0)], 1, 9, messages=[sent("a", topic="t")])
    story.log(["a"])
    story.position(1)

    assert story.found() == {"A11": {"precommitted-read"}}


@pytest.mark.parametrize(("start", "is_stale"), [(3, True), (1.5, False)])
def test_a_snapshot_must_show_what_was_acknowledged_before_it_began(start: float, is_stale: bool) -> None:
    story = Story()
    story.send(["a"], 1, 2)
    story.call("snapshot", start, 4, "o", topic="t", answer={"ends": {"0": 0}})
    story.log(["a"])

    assert story.found() == ({"A12": {"stale-snapshot"}} if is_stale else {})


def empty_poll(start: float = 3, end: float = 4, owned: list[int] | None = None) -> Story:
    story = Story()
    story.send(["a"], 1, 2)
    story.log(["a"])
    story.poll([], start, end, owned=[0] if owned is None else list(owned))
    return story


def test_a_poll_must_not_come_back_empty_when_there_is_a_message() -> None:
    assert empty_poll().found() == {"A12": {"empty-poll"}}


def test_a_poll_that_began_before_the_acknowledgement_may_be_empty() -> None:
    assert empty_poll(start=1.5).found() == {}


def test_a_poll_of_a_partition_of_another_member_may_be_empty() -> None:
    assert empty_poll(owned=[1]).found() == {}


def test_a_poll_may_be_empty_when_the_message_is_in_flight() -> None:
    story = empty_poll(start=5, end=6)
    story.poll([got("a", 0)], 3, 4)

    assert story.found() == {}


def test_a_poll_of_a_process_that_was_paused_may_be_empty() -> None:
    story = empty_poll()
    story.note("nemesis", 3.2, action="start", fault="pause", id=1, who=["c"])
    story.note("nemesis", 3.4, action="stop", fault="pause", id=1, who=["c"])

    assert story.found() == {}


@pytest.mark.parametrize("others", [0, 1])
def test_an_empty_transaction_is_stale_only_if_no_other_transaction_was_active(others: int) -> None:
    story = Story()
    story.group(mode="transaction")
    story.send(["a"], 1, 2)
    story.log(["a"])
    story.block([], 4, 5, began=3_000_000)
    if others:
        story.block([], 3.5, 4.5, p="d", began=2_500_000)

    assert story.found() == ({} if others else {"A12": {"empty-transaction"}})


@pytest.mark.parametrize(("at", "is_early"), [(99, True), (100, False)])
def test_a_delayed_message_must_not_be_appended_before_it_is_due(at: int, is_early: bool) -> None:
    story = Story()
    story.send(["a"], due=100)
    story.log(["a"], at=at)

    assert story.found() == ({"B11": {"early"}} if is_early else {})
