"""The quick lane: which combinations of database and world a test runs in."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.lanes import choose

if TYPE_CHECKING:
    from tests.lanes import Combination

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
