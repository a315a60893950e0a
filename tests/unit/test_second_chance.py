"""A test that fails has a second chance, unless it is marked to have one only; what it failed with is shown anyway."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest
from pathlib import Path

def fails_at_first(name):
    if not Path(name).exists():
        Path(name).touch()
        raise ArithmeticError(name)

@pytest.fixture
def unsteady(request):
    fails_at_first(request.node.name)

def test_steady(): pass
def test_unsteady(): fails_at_first("body")
def test_unsteady_fixture(unsteady): pass
def test_wrong(): raise ValueError("wrong")

@pytest.mark.once
def test_once(): fails_at_first("once")
"""


@pytest.fixture
def made(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest('pytest_plugins = ["tests.second_chance"]')
    pytester.makeini("[pytest]\nmarkers = once: one chance")
    return pytester


def ran(pytester: pytest.Pytester, *options: str) -> tuple[dict[str, int], str]:
    """How it went, counted, and what was printed."""
    result = pytester.run(sys.executable, "-m", "pytest", *options)
    return result.parseoutcomes(), result.stdout.str()


@pytest.mark.parametrize("processes", [(), ("-n", "1")], ids=["here", "in a worker"])
def test_what_fails_is_run_again_and_shown(made: pytest.Pytester, processes: tuple[str, ...]) -> None:
    made.makepyfile(TESTS)

    outcomes, shown = ran(made, "--second-chance", *processes)

    assert outcomes == {"passed": 3, "failed": 2, "rerun": 3}
    assert "failed at first: test_what_fails_is_run_again_and_shown.py::test_unsteady (call)" in shown
    assert "ArithmeticError: body" in shown
    assert "ArithmeticError: test_unsteady_fixture" in shown


def test_nothing_is_run_again_unless_that_is_asked_for(made: pytest.Pytester) -> None:
    made.makepyfile(TESTS)

    outcomes, _ = ran(made)

    assert outcomes == {"passed": 1, "failed": 3, "errors": 1}


def test_many_failures_are_not_by_chance(made: pytest.Pytester) -> None:
    made.makepyfile("\n".join(f"def test_{number}(): assert False" for number in range(9)))

    outcomes, _ = ran(made, "--second-chance")

    assert outcomes == {"failed": 9, "rerun": 5}


def test_who_has_used_up_the_time_has_no_second_chance(made: pytest.Pytester) -> None:
    made.makepyfile("import threading\ndef test_hangs(): threading.Event().wait(30)")

    outcomes, _ = ran(made, "--second-chance", "--timeout", "1")

    assert outcomes == {"failed": 1}
