"""The quick lane: which combinations of database and world a test runs in."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lanes import choose

if TYPE_CHECKING:
    from tests.lanes import Combination

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = [("sqlite", "sync"), ("sqlite", "asyncio"), ("postgres-schema", "sync"), ("postgres", "asyncio")]


@pytest.mark.parametrize("offset", range(8))
def test_a_test_runs_on_both_databases_and_in_both_worlds_with_two_runs(offset: int) -> None:
    chosen = choose(CONTRACT, offset)

    assert len(chosen) == 2
    assert {kind == "sqlite" for kind, _ in chosen} == {True, False}
    assert {world for _, world in chosen} == {"sync", "asyncio"}


def test_all_combinations_are_used_equally_often_by_different_tests() -> None:
    used = Counter(combination for offset in range(100) for combination in choose(CONTRACT, offset))

    assert used == dict.fromkeys(CONTRACT, 50)


@pytest.mark.parametrize(
    ("combinations", "size"),
    [
        ([("", "")], 1),
        ([("sqlite", ""), ("postgres", ""), ("postgres-schema", "")], 2),
        ([("postgres", "sync"), ("postgres", "asyncio")], 2),
        ([("", "sync"), ("", "asyncio")], 2),
        ([("sqlite", "sync"), ("postgres", "sync"), ("postgres-schema", "sync")], 2),
    ],
)
def test_a_test_without_all_combinations_covers_those_that_it_has(combinations: list[Combination], size: int) -> None:
    for offset in range(4):
        chosen = choose(combinations, offset)

        assert len(chosen) == size
        assert {kind == "sqlite" for kind, _ in chosen} == {kind == "sqlite" for kind, _ in combinations}
        assert {world for _, world in chosen} == {world for _, world in combinations}


def test_pgbouncer_is_used_only_by_a_test_that_runs_with_nothing_else() -> None:
    for offset in range(6):
        assert ("pgbouncer", "sync") not in choose([*CONTRACT, ("pgbouncer", "sync")], offset)
    assert choose([("pgbouncer", "")], 3) == [("pgbouncer", "")]


SUITE = """
import pytest

@pytest.mark.slow
def test_slow(): pass

def test_without_a_database(): pass

@pytest.mark.parametrize("way", ["sync", "asyncio"])
@pytest.mark.parametrize("database", ["sqlite", "postgres", "postgres-schema"])
@pytest.mark.parametrize("size", [1, 2])
def test_contract(size, database, way): pass
"""


@pytest.mark.parametrize(("lane", "runs"), [("quick", 1 + 2 * 2), ("all", 2 + 2 * 6)])
def test_a_lane_runs_each_test_with_each_of_its_other_parameters(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, lane: str, runs: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest('pytest_plugins = ["tests.lanes"]')
    pytester.makeini("[pytest]\nmarkers = slow: slow")
    pytester.makepyfile(SUITE)

    result = pytester.run(sys.executable, "-m", "pytest", "-v", "-p", "no:xdist", "--lane", lane)

    passed = [line.split()[0] for line in result.outlines if " PASSED" in line]
    assert len(passed) == runs
    assert {name.partition("[")[2][:2] for name in passed if "contract" in name} == {"1-", "2-"}
    assert any("test_slow" in name for name in passed) is (lane == "all")
