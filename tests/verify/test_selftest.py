"""The judge accepts correct histories, and sees through each that was edited."""

from __future__ import annotations

import inspect
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlmq.verify.judge.rules.cycles import prune_sources, strongly_connected
from sqlmq.verify.judge.verdict import judge
from tests.verify.selftest import mutations
from tests.verify.selftest.__main__ import main
from tests.verify.selftest.cases import Case, checked
from tests.verify.selftest.edits import EDITS, Edit, cases, edited
from tests.verify.selftest.mutations import MUTATIONS
from tests.verify.selftest.simulator import Simulation

EXAMPLES = int(os.environ.get("SQLMQ_VERIFY_EXAMPLES", "10"))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 10)
@given(seed=st.integers(0, 10**9), sends=st.integers(20, 120), partitions=st.integers(1, 4), faults=st.booleans())
def test_a_correct_history_is_valid(seed: int, sends: int, partitions: int, faults: bool) -> None:
    history = Simulation(seed, sends=sends, partitions=partitions, faults=faults).run()

    verdict = judge(history.events(), history.final(), least_acknowledged=1)

    assert verdict.findings.examples == {}
    assert verdict.outcome == "valid"


def test_a_correct_history_has_what_can_go_wrong_in_it() -> None:
    counts = judge((history := Simulation(3).run()).events(), history.final()).counts

    assert min(counts[what] for what in ("failed", "unknown", "redelivered", "effects", "faults")) > 0


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_an_edited_history_is_seen_through(edit: Edit) -> None:
    for seed in range(max(1, EXAMPLES // 10)):
        draft = edited(edit, seed)

        verdict = judge(draft.history.events(), draft.history.final())

        assert edit.code in verdict.findings.counts
        assert verdict.outcome in {"invalid", "liveness"}


def test_there_is_an_edit_for_each_anomaly_of_safety() -> None:
    from sqlmq.verify.judge.findings import ANOMALIES

    codes = {code for code, anomaly in ANOMALIES.items() if anomaly.category == "safety"}

    assert codes - {edit.code for edit in EDITS} == set()


def test_a_control_is_right_only_if_what_was_expected_was_found() -> None:
    correct = next(cases())
    expecting = Case("x", "x", frozenset({"A1"}), correct.happen)

    assert checked(correct, Path(), 1).is_right
    assert not checked(expecting, Path(), 1).is_right


def test_a_control_that_must_be_accepted_is_wrong_if_anything_is_found() -> None:
    lost = next(one for one in cases() if one.name == "lost-message")
    expecting_nothing = Case("x", "x", frozenset(), lost.happen)

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

    found = {frozenset(component) for component in strongly_connected(edges, prune_sources(edges))}

    assert found == {one for one in expected if len(one) > 1}


def test_selftest_prints_what_was_caught(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code = main(["--only", "correct", "--only", "lost-message"])

    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[0], row[-1]) for row in rows] == [("correct", "yes"), ("lost-message", "yes")]
    assert "A1" in " ".join(rows[1][2:])
    assert exit_code == 0


def test_selftest_fails_if_something_was_not_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sqlmq.verify.judge import verdict

    monkeypatch.setattr(verdict, "SAFETY_RULES", ())

    exit_code = main(["--only", "lost-message"])

    assert exit_code == 1
    assert "NO" in capsys.readouterr().out


def test_selftest_lists_the_cases_if_none_has_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code = main(["--only", "nonsense"])

    assert exit_code == 2
    assert "lost-message" in capsys.readouterr().err


def test_every_mutation_replaces_a_step_that_the_library_has(monkeypatch: pytest.MonkeyPatch) -> None:
    patched: dict[str, list[tuple[object, str, object]]] = {name: [] for name in MUTATIONS}

    for name, mutation in MUTATIONS.items():
        monkeypatch.setattr(mutations, "_patch", lambda *patch, _name=name: patched[_name].append(patch))
        mutation.apply(random.Random(0))

    wrong = [
        f"{mutation}: {name} of {owner!r}"
        for mutation, patches in patched.items()
        for owner, name, replacement in patches
        if not _can_replace(getattr(owner, name, None), replacement)
    ]
    assert all(patched.values())
    assert wrong == []


def _can_replace(original: object, replacement: object) -> bool:
    """Whether *replacement* accepts the arguments that *original* is called with."""
    replacement = replacement.__func__ if isinstance(replacement, staticmethod) else replacement
    if not callable(original) or not callable(replacement):
        return False
    parameters = inspect.signature(original).parameters.values()
    positional = [None for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    keywords = {one.name: None for one in parameters if one.kind is one.KEYWORD_ONLY}
    try:
        inspect.signature(replacement).bind(*positional, **keywords)
    except TypeError:
        return False
    return True
