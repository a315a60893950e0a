"""The judge accepts correct histories, and sees through each that was edited."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlmq.verify.judge.rules.cycles import strongly_connected, without_loose_ends
from sqlmq.verify.judge.verdict import judged
from sqlmq.verify.selftest.cases import Control, checked
from sqlmq.verify.selftest.edits import EDITS, Edit, controls, edited
from sqlmq.verify.selftest.simulator import Simulation

EXAMPLES = int(os.environ.get("SQLMQ_VERIFY_EXAMPLES", "10"))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 10)
@given(seed=st.integers(0, 10**9), sends=st.integers(20, 120), partitions=st.integers(1, 4), faults=st.booleans())
def test_a_correct_history_is_valid(seed: int, sends: int, partitions: int, faults: bool) -> None:
    history = Simulation(seed, sends=sends, partitions=partitions, faults=faults).run()

    verdict = judged(history.events(), history.final(), least_acknowledged=1)

    assert verdict.findings.examples == {}
    assert verdict.outcome == "valid"


def test_a_correct_history_has_what_can_go_wrong_in_it() -> None:
    counts = judged((history := Simulation(3).run()).events(), history.final()).counts

    assert min(counts[what] for what in ("failed", "unknown", "redelivered", "effects", "faults")) > 0


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_an_edited_history_is_seen_through(edit: Edit) -> None:
    for seed in range(max(1, EXAMPLES // 10)):
        draft = edited(edit, seed)

        verdict = judged(draft.history.events(), draft.history.final())

        assert edit.code in verdict.findings.counts
        assert verdict.outcome in {"invalid", "liveness"}


def test_there_is_an_edit_for_each_anomaly_of_safety() -> None:
    from sqlmq.verify.judge.findings import ANOMALIES

    codes = {code for code, anomaly in ANOMALIES.items() if anomaly.sort == "safety"}

    assert codes - {edit.code for edit in EDITS} == set()


def test_a_control_is_right_only_if_what_was_expected_was_found() -> None:
    correct = next(controls())
    expecting = Control("x", "x", frozenset({"A1"}), correct.happen)

    assert checked(correct, Path(), 1).is_right
    assert not checked(expecting, Path(), 1).is_right


def test_a_control_that_must_be_accepted_is_wrong_if_anything_is_found() -> None:
    lost = next(one for one in controls() if one.name == "lost-message")
    expecting_nothing = Control("x", "x", frozenset(), lost.happen)

    assert not checked(expecting_nothing, Path(), 1).is_right


@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=8, max_size=8))
def test_circles_are_what_leads_to_each_other(edges: list[list[int]]) -> None:
    reach = [set(targets) for targets in edges]
    for _ in range(8):
        reach = [set().union(targets, *(reach[target] for target in targets)) for targets in reach]
    expected = {
        frozenset(other for other in range(8) if other in reach[node] and node in reach[other])
        for node in range(8)
        if any(other != node and other in reach[node] and node in reach[other] for other in range(8))
    }

    found = {frozenset(component) for component in strongly_connected(edges, without_loose_ends(edges))}

    assert found == {one for one in expected if len(one) > 1}
