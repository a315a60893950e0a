"""B1 to B12: each by a history that shows it, and by one that nearly does."""

from __future__ import annotations

import pytest

from tests.verify.stories import Story, blocks, got, handed, sent, three


def killed(story: Story, p: str, at: float) -> None:
    story.note("crash", at, who=p)


def test_a_position_behind_what_was_done_skips_nothing() -> None:
    story = three()
    story.poll(handed(0, 1), 3, 4)
    story.done([0, 1], 5)
    story.position(2)

    assert story.found() == {}


def test_a_position_must_not_pass_a_message_that_never_came() -> None:
    story = three()
    story.poll(handed(0), 3, 4)
    story.done([0], 5)
    story.position(2)

    assert story.found() == {"B1": {"never-delivered"}}


def test_a_position_must_not_pass_a_message_that_was_not_done() -> None:
    story = three()
    story.poll(handed(0, 1), 3, 4)
    story.done([0], 5)
    story.position(2)

    assert story.found() == {"B1": {"not-done"}}


@pytest.mark.parametrize(("looked", "is_early"), [((5.2, 5.4), True), ((5.2, 6.5), False)])
def test_a_position_must_not_pass_a_message_before_it_is_done(looked: tuple[float, float], is_early: bool) -> None:
    story = three()
    story.poll(handed(0, 1), 3, 4)
    story.done([0, 1], 6)
    story.call("positions", *looked, "o", group="g", topic="t", answer={"positions": {"0": 1}})
    story.position(2)

    assert story.found() == ({"B1": {"not-done"}} if is_early else {})


def test_a_group_may_begin_later_than_the_log() -> None:
    story = three()
    story.group(start={"0": 2})
    story.position(2)

    assert story.found() == {}


def test_a_group_that_was_moved_skips_on_purpose() -> None:
    story = three()
    story.call("seek", 3, 4, "c", group="g", topic="t", positions={"0": 2})
    story.position(2)

    assert story.found() == {}


def test_a_group_that_is_moved_must_not_skip_what_is_behind() -> None:
    story = three()
    story.call("seek", 3, 4, "c", group="g", topic="t", positions={"0": 1})
    story.position(2)

    assert story.found() == {"B1": {"never-delivered"}}


@pytest.mark.parametrize("state", ["dead", "waiting"])
def test_a_position_may_pass_what_is_set_aside(state: str) -> None:
    story = three()
    story.group(mode="run")
    story.handle(handed(0), 3, 4, outcome="fail")
    story.row("parked", group="g", topic="t", partition=0, offset=0, state=state, attempts=1)
    story.position(1)

    assert story.found() == {}


def test_a_position_may_pass_what_was_discarded() -> None:
    story = three()
    story.group(mode="run")
    story.call("decide", 5, 6, "o", group="g", topic="t", action="discard", partition=0, offsets=[0])
    story.position(1)

    assert story.found() == {}


def test_where_messages_are_committed_before_they_are_handed_out_they_may_be_lost_with_the_consumer() -> None:
    story = three()
    story.group(ack="on_delivery")
    story.poll(handed(0), 3, None)
    story.position(1)

    assert story.found() == {}


def test_a_handler_that_raised_has_not_done_its_message() -> None:
    story = three()
    story.group(mode="run")
    story.handle(handed(0), 3, 4, outcome="fail")
    story.position(1)

    assert story.found() == {"B1": {"not-done"}}


def test_after_a_drain_every_message_has_come() -> None:
    story = three()
    story.poll(handed(0, 1), 3, 4)
    story.done([0, 1], 5)
    story.drained()
    story.position(2)

    assert story.found() == {"B2": {"unseen"}}


def test_without_a_drain_messages_may_be_unread() -> None:
    story = three()
    story.poll(handed(0, 1), 3, 4)
    story.done([0, 1], 5)
    story.position(2)

    assert story.found() == {}


def test_after_a_drain_what_came_is_committed() -> None:
    story = three()
    story.poll(handed(0, 1, 2), 3, 4)
    story.done([0, 1, 2], 5)
    story.drained()
    story.position(2)

    assert story.found() == {"B2": {"uncommitted"}}


def test_a_partition_that_is_stopped_is_not_drained_and_not_unseen() -> None:
    story = three()
    story.group(mode="run")
    story.handle(handed(0), 3, 4, outcome="fail")
    story.drained()
    story.row("parked", group="g", topic="t", partition=0, offset=0, state="stopped", attempts=1)
    story.position(0)

    assert story.found() == {}


def test_messages_must_come_in_the_order_of_the_log() -> None:
    story = three()
    story.poll(handed(1), 3, 4)
    story.poll(handed(0), 5, 6)

    assert story.found() == {"B3": {"nonmonotonic-poll"}}


def test_threads_that_ask_at_once_may_write_down_in_any_order() -> None:
    story = three()
    story.poll(handed(0), 3, 6, client="1")
    story.poll(handed(1), 3.5, 4, client="2")

    assert story.found() == {}


def test_a_message_may_come_later_if_a_member_that_was_killed_had_polled_before() -> None:
    story = three()
    story.poll([], 3, None, p="c")
    story.poll(handed(1), 3.5, 4, p="c")
    killed(story, "c", 4.5)
    story.poll(handed(0, 1), 5, 6, p="d")

    assert story.found() == {}


def test_a_message_must_not_come_later_because_a_member_that_was_killed_polled_afterwards() -> None:
    story = three()
    story.poll(handed(1), 3.5, 4, p="c")
    story.poll([], 4.2, None, p="c")
    killed(story, "c", 4.5)
    story.poll(handed(0, 1), 5, 6, p="d")

    assert story.found()["B3"] == {"nonmonotonic-poll"}


@pytest.mark.parametrize(("keys", "is_wrong"), [(("k", "k"), True), (("k", "l"), False), ((None, None), False)])
def test_a_group_that_is_run_keeps_the_order_of_each_key(keys: tuple[str | None, str | None], is_wrong: bool) -> None:
    story = Story()
    story.group(mode="run")
    for m, key in zip("ab", keys, strict=True):
        story.send([m], 1 if m == "a" else 3, 2 if m == "a" else 4, key=key)
        story.rows.append(
            {"row": "message", "topic": "t", "partition": 0, "offset": "ab".index(m), "m": m, "h": m, "key": key}
        )
    story.row("partition", topic="t", partition=0, start=0, end=2)
    story.handle([got("b", 1, key=keys[1])], 5, 6)
    story.handle([got("a", 0, key=keys[0])], 7, 8)

    assert story.found() == ({"B3": {"nonmonotonic-poll"}} if is_wrong else {})


def test_a_message_must_not_come_again_for_nothing() -> None:
    story = three()
    story.poll(handed(0), 3, 4, p="c")
    story.poll(handed(0), 5, 6, p="d")

    assert story.found() == {"B4": {"spurious"}}


def disturbed(what: str) -> Story:
    story = three()
    story.poll(handed(0), 3, 4, p="c")
    match what:
        case "killed":
            killed(story, "c", 4.5)
        case "ended":
            story.note("end", 4.5, who="c")
        case "paused":
            story.note("nemesis", 4.1, action="start", fault="pause", id=1, who=["c"])
            story.note("nemesis", 4.2, action="stop", fault="pause", id=1, who=["c"])
        case "cut off":
            story.note("nemesis", 4.1, action="start", fault="terminate", id=1)
            story.note("nemesis", 4.2, action="stop", fault="terminate", id=1)
        case "fenced":
            story.note("fenced", 4.5, "c", group="g", topic="t", partition=0)
        case "stalled":
            story.note("stalled", 4.5, "c", seconds=1.0)
        case "closed":
            story.call("close", 4.1, 4.2, "c", group="g", topic="t")
        case "failed":
            story.poll([], 4.1, 4.2, p="c", outcome="fail")
    story.poll(handed(0), 5, 6, p="d")
    return story


@pytest.mark.parametrize("what", ["killed", "ended", "paused", "cut off", "fenced", "stalled", "closed", "failed"])
def test_a_message_may_come_again_if_who_had_it_was(what: str) -> None:
    assert disturbed(what).found() == {}


def test_a_message_must_not_come_again_because_another_member_was_killed() -> None:
    story = three()
    story.poll(handed(0), 3, 4, p="c")
    killed(story, "x", 4.5)
    story.poll(handed(0), 5, 6, p="d")

    assert story.found() == {"B4": {"spurious"}}


def test_each_loss_explains_one_redelivery() -> None:
    story = disturbed("killed")
    story.poll(handed(0), 7, 8, p="e")

    assert story.found() == {"B4": {"spurious"}}


def test_a_message_must_not_come_again_after_it_was_committed_whatever_happened() -> None:
    story = three()
    story.poll(handed(0), 3, 4, p="c")
    story.done([0], 4.1)
    story.call("commit", 4.2, 4.3, "c", group="g", topic="t", answer={"positions": {"0": 1}})
    killed(story, "c", 4.5)
    story.poll(handed(0), 5, 6, p="d")

    assert story.found() == {"B4": {"committed"}}


@pytest.mark.parametrize(("second", "is_back"), [((5, 6), True), ((3.5, 6), False)])
def test_a_position_must_not_go_back(second: tuple[float, float], is_back: bool) -> None:
    story = three()
    story.poll(handed(0), 2, 2.5)
    story.done([0], 2.6)
    story.call("positions", 3, 4, "o", group="g", topic="t", answer={"positions": {"0": 1}})
    story.call("positions", *second, "q", group="g", topic="t", answer={"positions": {"0": 0}})
    story.position(1)

    assert story.found() == ({"B5": {"regression"}} if is_back else {})


def test_a_position_must_not_be_lower_at_the_end() -> None:
    story = three()
    story.poll(handed(0), 2, 2.5)
    story.done([0], 2.6)
    story.call("commit", 3, 4, "c", group="g", topic="t", answer={"positions": {"0": 1}})
    story.position(0)

    assert story.found() == {"B5": {"regression"}}


def test_a_position_may_go_back_if_the_group_is_moved() -> None:
    story = three()
    story.poll(handed(0), 2, 2.5)
    story.done([0], 2.6)
    story.call("commit", 3, 4, "c", group="g", topic="t", answer={"positions": {"0": 1}})
    story.call("seek", 5, 6, "c", group="g", topic="t", positions={"0": 0})
    story.position(0)

    assert story.found() == {}


def zombie(commit: tuple[float, float], outcome: str = "ok") -> Story:
    story = three()
    story.poll(handed(0), 2, 2.5, p="c")
    story.note("fenced", 2.6, "c", group="g", topic="t", partition=0)
    story.poll(handed(0), 3, 4, p="d")
    story.call("commit", *commit, "c", outcome, {"positions": {"0": 1}}, group="g", topic="t")
    return story


def test_who_has_lost_a_partition_must_not_commit_it() -> None:
    assert zombie((5, 6)).found() == {"B6": {"zombie-commit"}}


def test_who_loses_a_partition_while_it_commits_may_have_been_in_time() -> None:
    assert zombie((2.7, 6)).found() == {}


def test_who_has_lost_a_partition_may_be_refused() -> None:
    assert zombie((5, 6), "fail").found() == {}


@pytest.mark.parametrize(("epoch", "is_wrong"), [(7, True), (8, False)])
def test_two_owners_must_not_have_the_same_epoch(epoch: int, is_wrong: bool) -> None:
    story = Story()
    story.note("assigned", 1, "c", group="g", topic="t", partition=0, epoch=7)
    story.note("assigned", 2, "d", group="g", topic="t", partition=0, epoch=epoch)

    assert story.found() == ({"B6": {"epoch"}} if is_wrong else {})


def test_transactions_of_a_partition_follow_each_other() -> None:
    story = blocks()
    story.block(handed(0), 3, 4)
    story.block(handed(1, 2), 5, 6, p="d")
    story.position(3)

    assert story.found() == {}


def test_two_transactions_must_not_both_be_committed_with_a_message() -> None:
    story = blocks()
    story.block(handed(0), 3, 4)
    story.block(handed(0), 3.5, 6, p="d")

    assert story.found()["B6"] == {"split-ownership"}


def test_a_transaction_that_was_cut_off_and_is_late_does_no_harm() -> None:
    story = blocks()
    story.block(handed(0), 3, 4)
    story.block(handed(0), 3.5, 6, p="d", outcome="fail")
    story.block(handed(1), 7, 8)

    assert "B6" not in story.found()
    assert "B12" not in story.found()


@pytest.mark.parametrize("start", [0, 1])
def test_after_a_transaction_with_unknown_outcome_the_next_may_begin_at_either_place(start: int) -> None:
    story = blocks()
    story.block(handed(0), 3, None)
    killed(story, "c", 4)
    story.block(handed(start), 5, 6, p="d")

    assert story.found() == {}


def test_after_a_rollback_the_next_transaction_begins_at_the_same_place() -> None:
    story = blocks()
    story.block(handed(0), 3, 4, outcome="fail")
    story.block(handed(1), 5, 6)

    assert story.found() == {"B12": {"abort-unchanged"}}


def test_after_a_commit_the_next_transaction_begins_right_behind_it() -> None:
    story = blocks()
    story.block(handed(0), 3, 4)
    story.block(handed(2), 5, 6)

    assert story.found() == {"B1": {"jumped"}}


def test_a_transaction_is_given_messages_without_a_gap() -> None:
    story = blocks()
    story.block(handed(0, 2), 3, 4)

    assert story.found() == {"B1": {"jumped"}}


def test_retention_may_move_a_group_on_that_it_does_not_protect() -> None:
    story = blocks()
    story.plan(topics={"t": {"protect": False}})
    story.block(handed(2), 5, 6)
    story.row("eviction", group="g", topic="t", partition=0, kind="unread", start=0, end=2)
    story.position(3)

    assert story.found() == {}


def effect_story(outcome: str = "ok", end: float | None = 4, position: int = 1) -> Story:
    story = blocks()
    story.block(handed(0), 3, end, outcome=outcome, effects=["a"])
    story.position(position)
    return story


def test_a_message_has_its_effect_once() -> None:
    story = effect_story()
    story.row("effect", group="g", m="a", count=1)

    assert story.found() == {}


def test_a_message_must_not_have_its_effect_twice() -> None:
    story = effect_story()
    story.row("effect", group="g", m="a", count=2)

    assert story.found() == {"B7": {"duplicate-effect"}}


def test_a_committed_message_must_have_its_effect() -> None:
    assert effect_story().found() == {"B7": {"lost-effect"}}


def test_a_message_before_the_position_must_have_its_effect_though_the_outcome_of_its_transaction_is_unknown() -> None:
    assert effect_story(end=None).found() == {"B7": {"lost-effect"}}


def test_a_message_behind_the_position_must_not_have_its_effect() -> None:
    story = effect_story(end=None, position=0)
    story.row("effect", group="g", m="a", count=1)

    assert story.found() == {"B7": {"early-effect"}}


def test_a_transaction_with_unknown_outcome_may_have_had_neither() -> None:
    assert effect_story(end=None, position=0).found() == {}


def test_an_effect_that_was_rolled_back_must_not_be_there() -> None:
    story = effect_story(outcome="fail", position=0)
    story.row("effect", group="g", m="a", count=1)

    assert "aborted-effect" in story.found()["B7"]


def test_a_message_without_an_effect_needs_none() -> None:
    story = blocks()
    story.block(handed(0), 3, 4, effects=[])
    story.position(1)

    assert story.found() == {}


@pytest.mark.parametrize(
    ("log", "count", "is_torn"), [(["x"], 0, True), ([], 1, True), (["x"], 1, False), ([], 0, False)]
)
def test_a_transactions_rows_and_messages_must_be_there_together(log: list[str], count: int, is_torn: bool) -> None:
    story = Story()
    story.call("txn", 1, None, messages=[sent("x", topic="t")], effects=["order 1"])
    story.log([*log])
    story.row("effect", m="order 1", count=count)

    assert story.found() == ({"B7": {"torn"}} if is_torn else {})


def test_a_handler_with_a_session_that_returned_has_perhaps_committed() -> None:
    story = three()
    story.group(mode="run")
    story.handle(handed(0), 3, 4, transaction=True, effects=["a"], messages=[sent("x", topic="u")])

    assert story.found() == {}


def test_a_position_must_not_be_behind_the_end() -> None:
    story = three()
    story.group(start={"0": 4})
    story.position(4)

    assert story.found() == {"B8": {"beyond"}}


def test_a_position_must_not_be_before_what_is_kept() -> None:
    story = Story()
    story.send(["c"])
    story.log(["c"], start=2)
    story.call("seek", 3, 4, "c", group="g", topic="t", positions={"0": 2})
    story.position(1)

    assert story.found() == {"B8": {"before"}}


@pytest.mark.parametrize(("done", "is_early"), [(3.5, False), (7, True)])
def test_retention_must_not_delete_what_a_group_has_not_done(done: float, is_early: bool) -> None:
    story = Story()
    story.send(["a"], 1, 1.5)
    story.send(["b"], 1.6, 1.7)
    story.poll([got("a", 0)], 2, 3)
    story.done([0], done)
    story.call("retain", 4, 5, "o", topic="t", answer={"starts": {"0": 1}})
    story.log(["b"], start=1)
    story.position(1)

    assert story.found() == ({"B9": {"unread"}} if is_early else {})


def test_retention_must_not_delete_what_a_group_has_set_aside() -> None:
    story = Story()
    story.group(mode="run")
    story.log([], start=1)
    story.row("parked", group="g", topic="t", partition=0, offset=0, state="dead", attempts=3)
    story.position(1)

    assert story.found() == {"B9": {"parked"}}


@pytest.mark.parametrize("protects", [True, False])
def test_a_group_may_lose_messages_only_if_its_topic_does_not_protect_them(protects: bool) -> None:
    story = Story()
    story.plan(topics={"t": {"protect": protects}})
    story.group()
    story.log([], start=1)
    story.row("eviction", group="g", topic="t", partition=0, kind="unread", start=0, end=1)
    story.position(1)

    assert story.found() == ({"B9": {"evicted"}} if protects else {})


def test_what_waits_for_another_attempt_must_not_wait_after_a_drain() -> None:
    story = three()
    story.group(mode="run")
    story.handle(handed(0), 3, 4, outcome="fail")
    story.handle(handed(1), 5, 6)
    story.handle(handed(2), 7, 8)
    story.row("parked", group="g", topic="t", partition=0, offset=0, state="waiting", attempts=1)
    story.position(3)

    assert story.found() == {}
    story.drained()
    assert story.found() == {"B10": {"stranded"}}


def buried(at: float | None) -> Story:
    story = three()
    story.group(mode="run")
    story.handle(handed(0), 3, 4)
    if at is not None:
        killed(story, "c", at)
    story.row("parked", group="g", topic="t", partition=0, offset=0, state="dead", attempts=1)
    story.position(1)
    return story


def test_what_its_handler_has_finished_must_not_be_a_dead_letter() -> None:
    assert buried(None).found() == {"B10": {"double-terminal"}}


def test_what_a_handler_finished_whose_process_was_killed_may_be_a_dead_letter() -> None:
    assert buried(4.1).found() == {}


@pytest.mark.parametrize(("times", "is_too_often"), [(2, False), (3, True)])
def test_a_handler_must_not_be_tried_more_often_than_it_may(times: int, is_too_often: bool) -> None:
    story = three()
    story.group(mode="run", max_attempts=2)
    for turn in range(times):
        story.handle(handed(0), 3 + turn, 3.5 + turn, outcome="fail")
    story.row("parked", group="g", topic="t", partition=0, offset=0, state="dead", attempts=2)
    story.position(1)

    assert story.found() == ({"B10": {"attempts"}} if is_too_often else {})


def test_an_attempt_of_a_member_that_was_fenced_does_not_count() -> None:
    story = three()
    story.group(mode="run", max_attempts=2)
    for turn in range(3):
        story.handle(handed(0), 3 + turn, 3.5 + turn, p=f"c{turn}", outcome="fail")
    story.note("fenced", 3.4, "c0", group="g", topic="t", partition=0)
    story.row("parked", group="g", topic="t", partition=0, offset=0, state="dead", attempts=2)
    story.position(1)

    assert story.found() == {}
