"""Runs under faults, short ones, judged; and a few in which something is broken, which the judge has to see."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import pytest

from sqlmq.verify import history
from sqlmq.verify.judge.verdict import judge
from sqlmq.verify.plan import Plan
from sqlmq.verify.workload import run
from tests.verify.selftest.cases import checked
from tests.verify.selftest.mutation_runs import UNBROKEN, cases
from tests.verify.selftest.mutations import MUTATIONS

if TYPE_CHECKING:
    from pathlib import Path

    from sqlmq.verify.judge.verdict import Verdict
    from tests.conftest import DatabaseUnderTest

SECONDS = float(os.environ.get("SQLMQ_VERIFY_SECONDS", "12"))
FEW = ("acknowledged-uncommitted", "effects-apart")
TRIED = (UNBROKEN, *MUTATIONS) if os.environ.get("SQLMQ_VERIFY_MUTATIONS") == "all" else FEW

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="kill -9 does not exist there")]
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


def told(verdict: Verdict) -> str:
    """What the judge objects to."""
    examples = [one.text for found in verdict.findings.examples.values() for one in found[:5]]
    return "\n".join([verdict.outcome, *verdict.doubts, *examples])


@BOTH
@pytest.mark.faults
@pytest.mark.timeout(180 + 3 * SECONDS)
def test_a_run_under_faults_breaks_no_promise(database: DatabaseUnderTest, tmp_path: Path) -> None:
    plan = Plan.of(
        database.url,
        None,
        secrets.token_hex(4),
        tmp_path / "run",
        seed=secrets.randbelow(1_000_000),
        seconds=SECONDS,
        least=100,
        producers=2,
        rate=200.0,
        fault_seconds=0.6,
        lease_seconds=2.0,
        handling_seconds=0.1,
    )

    ran = run.perform(plan)
    verdict = judge(*history.read_directory(plan.directory))

    faults = [fault.name for fault in verdict.evidence.faults]
    assert verdict.outcome == "valid", f"seed {plan.seed}: {told(verdict)}"
    assert (ran.broken, ran.late) == ([], [])
    assert faults.count("kill") >= 3
    assert faults.count("pause") >= 1
    assert verdict.counts["acknowledged"] > 100
    assert verdict.counts["delivered"] > verdict.counts["acknowledged"]
    assert verdict.counts["effects"] > verdict.counts["acknowledged"]


@pytest.mark.parametrize("name", TRIED)
def test_the_judge_sees_what_is_broken(name: str, tmp_path: Path) -> None:
    (case,) = (one for one in cases(None) if one.name == name)

    seen = checked(case, tmp_path, secrets.randbelow(1_000_000))

    assert seen.is_right, seen
