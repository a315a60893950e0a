"""What a member holds becomes what the group's rows say, and nothing in flight is released."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from sqlmq.model.assignment import Assignment, Reconciliation, reconcile


class Situation(NamedTuple):
    assignment: Assignment
    held: dict[int, int]
    recorded: dict[int, int]
    idle: set[int]
    recorded_as_wanting: bool


partition_ids = st.integers(1, 8)
epochs = st.dictionaries(partition_ids, st.integers(1, 2))


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    recorded = draw(epochs)
    release = draw(st.sets(st.sampled_from(sorted(recorded)))) if recorded else set()
    assignment = Assignment((), draw(st.integers(0, 2)), tuple(sorted(release)), share=draw(st.integers(0, 8)))
    return Situation(assignment, draw(epochs), recorded, draw(st.sets(partition_ids)), draw(st.booleans()))


def reconciled(seen: Situation) -> Reconciliation:
    return reconcile(
        seen.assignment,
        held=seen.held,
        recorded=seen.recorded,
        idle=seen.idle,
        recorded_as_wanting=seen.recorded_as_wanting,
    )


def without(epochs: dict[int, int], *ids: int) -> dict[int, int]:
    return {id_: epoch for id_, epoch in epochs.items() if id_ not in ids}


@given(situations())
def test_what_is_held_is_then_what_is_recorded(seen: Situation) -> None:
    changes = reconciled(seen)

    held = without(seen.held, *changes.lost, *changes.release_now)
    recorded = without(seen.recorded, *changes.release_now)

    assert held == recorded
    assert changes.kept == len(recorded)


@given(situations())
def test_a_partition_that_is_held_and_recorded_is_released_only_if_idle_and_above_the_share(seen: Situation) -> None:
    changes = reconciled(seen)

    ours = {id_ for id_, epoch in seen.held.items() if seen.recorded.get(id_) == epoch}

    assert ours.isdisjoint(changes.lost)
    assert ours & set(changes.release_now) == ours & set(seen.assignment.release) & seen.idle
    assert changes.releasing == ours & set(seen.assignment.release)


@given(situations())
def test_once_it_is_applied_there_is_nothing_left_to_change(seen: Situation) -> None:
    changes = reconciled(seen)
    held = without(seen.held, *changes.lost, *changes.release_now)
    after = Assignment((), 0, tuple(changes.releasing - set(changes.release_now)), seen.assignment.share)

    again = reconcile(
        after,
        held=held,
        recorded=without(seen.recorded, *changes.release_now),
        idle=seen.idle,
        recorded_as_wanting=changes.kept < changes.share,
    )

    assert not again.lost
    assert not again.changes_database
    assert again.is_complete(0) is (changes.kept >= changes.share and not after.release)


@given(situations())
def test_others_check_the_group_exactly_if_a_row_was_changed_for_them(seen: Situation) -> None:
    changes = reconciled(seen)

    is_wrong_about_wanting = seen.recorded_as_wanting != (changes.kept < seen.assignment.share)

    assert changes.changed_group(0) is (bool(changes.release_now) or is_wrong_about_wanting)
    assert changes.changed_group(1)
    assert changes.changes_database is (changes.changed_group(0) or seen.assignment.take_at_most > 0)
