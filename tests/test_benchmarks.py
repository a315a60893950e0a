"""The benchmarks run, check what they measured, and say so; how fast is not asked here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.harness.crew import crew
from benchmarks.harness.databases import POSTGRES, SQLITE, BenchDatabase
from benchmarks.harness.record import Record, verdicts
from benchmarks.harness.report import BEGIN, END, publish, update
from benchmarks.harness.suite import Bench, Result, Rounds, once
from benchmarks.harness.targets import TARGETS, Target
from benchmarks.harness.workload import WrongResultError, check, check_places
from sqlmq import ProducerResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import DatabaseUnderTest

ROOT = Path(__file__).parent.parent


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("database", "name"),
    [("sqlite", "consuming"), ("postgres", "producing"), ("postgres", "steady"), ("postgres", "wal")],
    indirect=["database"],
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
    # Without the packages that ours is measured against, their targets are not measured.
    mine = [one for one in TARGETS if one.benchmark == name and one.database == kind and "pgmq" not in one.figure]
    measured = [one["figure"] for one in written["targets"] if one["found"] is not None]
    assert {one.figure for one in mine} <= set(measured)
    assert list(written["seconds"]) == [f"{name}, {kind}"]


def test_a_benchmark_that_fails_is_reported_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_bench: Bench) -> None:
        raise WrongResultError("3 messages are in the log instead of 4")

    def succeed(bench: Bench) -> None:
        bench.add("nothing", {"a": once(1)}, {}, unit="messages/s")

    for name in BENCHMARKS:
        module = importlib.import_module(f"benchmarks.cases.{name}")
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
    result = Result(target.benchmark, target.database, "", "messages/s", {}, {target.figure: rounds})

    (verdict,) = [one for one in verdicts([result]) if one.target == target]

    assert verdict.found is rounds
    assert verdict.is_met
    assert not target.is_met(rounds.low)


def test_a_target_may_be_for_what_one_variant_has() -> None:
    target = next(target for target in TARGETS if target.unit == "ms")
    result = Result(target.benchmark, target.database, "", "ms", {target.figure: once(target.wanted + 1)}, {})

    (verdict,) = [one for one in verdicts([result]) if one.target == target]

    assert str(verdict) == "MISSED"


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


def test_a_ratio_to_what_is_not_installed_is_left_out(bench: Bench) -> None:
    result = bench.compare("", {"a": lambda: 2.0}, {"a / pgmq": ("a", "pgmq")})

    assert result.ratios == {}


def test_processes_begin_together_and_their_rates_add_up() -> None:
    with crew(2) as processes:
        rate = processes.run(count_to, [(10,), (20,)])

    assert rate > 0


def test_what_goes_wrong_in_a_process_is_told() -> None:
    with crew(2) as processes, pytest.raises(WrongResultError, match="nothing to count"):
        processes.run(count_to, [(10,), (0,)])


@contextmanager
def count_to(number: int) -> Iterator[Callable[[], int]]:
    check(number > 0, "nothing to count")
    yield lambda: number


def test_places_with_a_gap_are_no_result() -> None:
    with pytest.raises(WrongResultError, match="offset 2 does not follow"):
        check_places([ProducerResult("t", 0, 0), ProducerResult("t", 1, 7), ProducerResult("t", 0, 2)], 3)


def test_a_record_is_read_as_it_was_written(record: Record, tmp_path: Path) -> None:
    record.write(tmp_path / "record.json")

    assert Record.read(tmp_path / "record.json") == record


def test_a_report_has_every_result_and_its_plots_are_small_and_always_the_same(record: Record, tmp_path: Path) -> None:
    plots = publish(record, tmp_path / "one")
    publish(record, tmp_path / "two")

    page = (tmp_path / "one" / "results.md").read_text(encoding="utf-8")
    assert all(result.title in page for result in record.results)
    assert plots == ["limits", "times", "costs", "peers", "snapshot"]
    for plot in plots:
        drawn = (tmp_path / "one" / f"{plot}.svg").read_bytes()
        assert drawn == (tmp_path / "two" / f"{plot}.svg").read_bytes()
        assert len(drawn) < 60_000
        assert f"({plot}.svg)" in page


def test_conclusions_go_between_the_marks_of_a_page_and_what_people_wrote_stays(record: Record, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# How\n\n{BEGIN}\nof another day\n{END}\n\n## Why\n", encoding="utf-8")

    for _ in range(2):
        update(page, record, tmp_path / "performance", ["peers"])

    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# How\n\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\n\n## Why\n")
    assert "of another day" not in text
    assert text.count("**missed**") == 1
    assert "](performance/peers.svg)" in text


def test_a_page_without_the_marks_is_left_as_it_is(record: Record, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# How\n", encoding="utf-8")

    with pytest.raises(ValueError, match="results"):
        update(page, record, tmp_path, [])

    assert page.read_text(encoding="utf-8") == "# How\n"


def test_the_page_about_performance_has_the_marks() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

    assert 0 < page.index(BEGIN) < page.index(END)


@pytest.fixture
def record() -> Record:
    """A run that has something for each plot, and misses one of its targets."""
    machine = {
        "system": "a system",
        "cores": 2,
        "processor": "a processor",
        "load_average": [0.5, 0.4, 0.3],
        "python": "CPython 3.11",
        "packages": {"sqlmq": "1.0", "pgmq": None},
        "fdatasync_microseconds": 100,
    }
    settings = {"version": "18", "source": "here", "settings": {"fsync": "on"}}
    found = Record(machine, {POSTGRES: settings}, quick=False, taken_at="2026-01-01T00:00:00+00:00")
    missed = next(target for target in TARGETS if target.wanted <= 1 and not target.at_most)
    for target in (
        missed,
        next(target for target in TARGETS if target.wanted > 1 and not target.at_most),
        next(target for target in TARGETS if target.at_most),
    ):
        rounds = Rounds((target.wanted * 0.9, target.wanted * (0.95 if target is missed else 1), target.wanted * 1.1))
        ratios = {target.figure: rounds}
        found.results.append(Result(target.benchmark, target.database, f"for {target.figure}", "", {}, ratios))
    rates = {"sqlmq, 100 messages": Rounds((900.0, 1000.0)), "pgmq, 100 messages": Rounds((90.0, 100.0))}
    found.results.append(Result("peers", POSTGRES, "produced and drained, one process", "messages/s", rates, {}))
    parts = {"produce": Rounds((10.0, 11.0, 10.0)), "by hand: a counter row": Rounds((10.0, 5.0, 2.5))}
    found.results.append(Result("steady", POSTGRES, "an old snapshot held", "transactions/s", parts, {}))
    return found


@pytest.fixture
def bench() -> Bench:
    return Bench("producing", BenchDatabase(SQLITE, "sqlite://"), quick=False, show=lambda _result: None)
