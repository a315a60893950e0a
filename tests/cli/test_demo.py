from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sqlmq import MQ
from sqlmq.cli.demo.journal import Entry, Log, judge, read

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest

DEMO = [sys.executable, "-m", "sqlmq.cli", "demo"]


def entries(*numbers: int, at: int = 0) -> list[Entry]:
    """Messages of one key in partition 0, seen one after the other from *at* on."""
    return [Entry(at + place, 0, number, "key", number) for place, number in enumerate(numbers)]


# --- The books ---


def test_what_a_process_noted_is_read_back(tmp_path: Path) -> None:
    with Log(tmp_path / "log") as log:
        log.note([(1, 2, "key", 3), (4, 5, "key", 6)])
        log.note([(7, 8, "other", 9)])

    found = read(tmp_path / "log")

    assert [entry[1:] for entry in found] == [(1, 2, "key", 3), (4, 5, "key", 6), (7, 8, "other", 9)]
    assert read(tmp_path / "never") == []


def test_everything_once_and_in_order_is_good() -> None:
    verdict = judge("g", entries(0, 1, 2), {"a": entries(0, 1), "b": entries(2, at=10)}, None)

    assert verdict.is_good
    assert (verdict.handled, verdict.again_after_kill, verdict.again_otherwise) == (3, 0, 0)


def test_a_message_that_nobody_handled_is_lost() -> None:
    verdict = judge("g", entries(0, 1, 2), {"a": entries(0, 2)}, None)

    assert not verdict.is_good
    assert verdict.lost == 1


def test_a_message_that_nobody_sent_is_noticed() -> None:
    verdict = judge("g", entries(0), {"a": entries(0, 1)}, None)

    assert not verdict.is_good
    assert verdict.unknown == 1


def test_a_later_message_of_a_key_that_came_first_is_noticed() -> None:
    verdict = judge("g", entries(0, 1, 2), {"a": entries(0, 2), "b": entries(1, at=10)}, None)

    assert not verdict.is_good
    assert verdict.out_of_order == 1


def test_what_the_killed_consumer_had_handled_may_come_again() -> None:
    handled = {"killed": entries(0, 1, 2), "b": entries(1, 2, 3, at=10)}

    verdict = judge("g", entries(0, 1, 2, 3), handled, "killed")

    assert verdict.is_good
    assert (verdict.again_after_kill, verdict.again_otherwise) == (2, 0)


def test_what_came_again_without_a_kill_is_told_apart() -> None:
    verdict = judge("g", entries(0, 1), {"a": entries(0, 1), "b": entries(1, at=10)}, None)

    assert verdict.is_good
    assert (verdict.again_after_kill, verdict.again_otherwise) == (0, 1)


# --- The demo itself ---


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.xdist_group("demo")
def test_the_demo_shows_that_nothing_is_lost(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path), "SQLMQ_URL": "sqlite:////never/used.db"}

    done = subprocess.run(DEMO, env=environment, capture_output=True, text=True, check=False, timeout=110)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing was lost: each group handled all 4,000 messages" in done.stdout
    assert "with SIGKILL" in done.stdout
    assert "the others have taken over its partitions" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.xdist_group("demo")
@pytest.mark.parametrize("database", ["postgres-schema"], indirect=True)
def test_the_demo_runs_in_a_database_of_ones_own_and_leaves_nothing_there(database: DatabaseUnderTest) -> None:
    where = ["--url", database.url, "--schema", str(database.schema)]

    done = subprocess.run([*DEMO, *where], capture_output=True, text=True, check=False, timeout=110)

    with MQ(database.url, schema=database.schema) as mq:
        topics = mq.admin.topics()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing was lost" in done.stdout
    assert topics == []


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.xdist_group("demo")
@pytest.mark.skipif(os.name == "nt", reason="signals are sent as Unix does")
def test_a_demo_that_is_interrupted_leaves_neither_processes_nor_files(tmp_path: Path) -> None:
    process = subprocess.Popen(DEMO, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        while "Group 'billing'" not in process.stdout.readline():
            assert process.poll() is None

        process.send_signal(signal.SIGTERM)
        # Every process of the demo's that is left holds a file in the directory, which would then still be made.
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_the_demo_refuses_a_database_that_its_processes_cannot_share() -> None:
    done = subprocess.run([*DEMO, "--url", "sqlite://"], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "in memory" in done.stderr
