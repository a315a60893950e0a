"""A second chance for a test that fails: it is run again at once, and what it failed with is shown in any case.

Thousands of tests with threads, processes and servers, on a machine that does other things too, include a few that are
unsteady, and a run should not be lost to one. Such a test is a defect all the same, so nothing is hidden: what failed
the first time stands in the summary. There is no second chance for a test that is marked with `once`: if a promise is
broken one time in a hundred, then it is broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

AT_MOST = 5
"""How many tests may have one, in each process: where more fail, it is not by chance."""
RERUN = "rerun"

_given = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--second-chance", action="store_true", help="run a test that fails a second time")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_given] = 0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> object:
    """Run the test, and run it again if it fails and may have a second chance."""
    if not item.config.getoption("second_chance") or item.get_closest_marker("once"):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    failed = [report for report in reports if report.failed]
    if failed and item.config.stash[_given] < AT_MOST and not any(_is_timeout(report) for report in failed):
        item.config.stash[_given] += 1
        for report in failed:
            report.outcome = RERUN  # type: ignore[assignment]
            item.ihook.pytest_runtest_logreport(report=report)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    return (RERUN, "R", "RERUN") if report.outcome == RERUN else None


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Show what failed the first time."""
    for report in terminalreporter.stats.get(RERUN, []):
        terminalreporter.section(f"failed at first: {report.nodeid} ({report.when})", sep="_", red=True)
        terminalreporter.line(report.longreprtext)
        for name, content in report.sections:
            terminalreporter.line(f"{name}:\n{content}")


def _is_timeout(report: pytest.TestReport) -> bool:
    """Whether the test has had all of its time, which pytest-timeout gives to both attempts together."""
    return "Failed: Timeout" in report.longreprtext
