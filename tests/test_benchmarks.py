"""The benchmarks run, check what they measured, and say so; how fast is not asked here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.databases import POSTGRES, SQLITE, BenchDatabase
from benchmarks.report import found
from benchmarks.suite import Bench, Result, Rounds, once
from benchmarks.targets import TARGETS, Target
from benchmarks.workload import WrongResultError, check_places
from sqlmq import ProducerResult

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("database", "name"), [("sqlite", "consuming"), ("postgres", "producing")], indirect=["database"]
)
def test_a_quick_run_measures_the_database_it_is_given(database: DatabaseUnderTest, name: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"

    assert main(["--only", name, "--quick", "--url", database.url, "--json", str(report)]) == 0

    written = json.loads(report.read_text(encoding="utf-8"))
    kind = POSTGRES if database.is_postgres else SQLITE
    assert written["quick"]
    assert list(written["databases"]) == [kind]
    assert written["failures"] == {}
    assert {result["benchmark"] for result in written["results"]} == {name}
    assert all(rate["median"] > 0 for result in written["results"] for rate in result["rates"].values())
    mine = [one for one in TARGETS if one.benchmark == name and one.database == kind]
    measured = [one for one in written["targets"] if one["found"] is not None]
    assert len(measured) == len(mine)


def test_a_benchmark_that_fails_is_reported_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_bench: Bench) -> None:
        raise WrongResultError("3 messages are in the log instead of 4")

    def succeed(bench: Bench) -> None:
        bench.add("nothing", {"a": once(1)}, {}, unit="messages/s")

    for name in BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(module, "run", fail if name == "producing" else succeed)

    exit_code = main(["--quick", "--url", f"sqlite:///{tmp_path / 'queue.db'}"])

    assert exit_code == 1
    assert "producing, SQLite FAILED: WrongResultError: 3 messages" in capsys.readouterr().out


def test_a_command_without_a_benchmark_of_that_name_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "guessing"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)

    assert result.returncode == 2
    assert "guessing" in result.stderr


def test_every_target_belongs_to_a_benchmark() -> None:
    assert {target.benchmark for target in TARGETS} <= set(BENCHMARKS)


def test_a_target_is_met_by_the_median_of_the_ratios() -> None:
    target = next(target for target in TARGETS if not target.at_most)
    rounds = Rounds((target.wanted - 0.1, target.wanted + 0.1, target.wanted + 0.2))
    result = Result(target.benchmark, target.database, "", "messages/s", {}, {target.ratio: rounds})

    ((_, measured),) = [pair for pair in found([result]) if pair[0] == target]

    assert measured is rounds
    assert target.is_met(rounds.median)
    assert not target.is_met(rounds.low)


def test_a_target_for_a_cost_is_met_from_below() -> None:
    target = Target("footprint", "WAL bytes", 1.05, at_most=True)

    assert target.is_met(1.05)
    assert not target.is_met(1.06)


def test_variants_go_by_turns_and_the_first_round_is_not_counted(bench: Bench) -> None:
    turns: list[str] = []

    def measure(name: str, rate: float) -> float:
        turns.append(name)
        return rate if len(turns) > 2 else 1e9

    result = bench.compare("", {"a": lambda: measure("a", 2), "b": lambda: measure("b", 4)}, {"a / b": ("a", "b")})

    assert turns == ["a", "b"] * 6
    assert list(result.rates["a"].values) == [2.0] * 5
    assert list(result.ratios["a / b"].values) == [0.5] * 5


def test_places_with_a_gap_are_no_result() -> None:
    with pytest.raises(WrongResultError, match="offset 2 does not follow"):
        check_places([ProducerResult("t", 0, 0), ProducerResult("t", 1, 7), ProducerResult("t", 0, 2)], 3)


@pytest.fixture
def bench() -> Bench:
    return Bench("producing", BenchDatabase(SQLITE, "sqlite://"), quick=False, show=lambda _result: None)
