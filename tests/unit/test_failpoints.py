"""Failpoints: what they do when they are armed, and how they are armed."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sqlmq import MQ
from sqlmq.hooks import failpoints
from sqlmq.hooks.failpoints import EXIT_CODE, POINTS, FailpointError, Gate, armed, failpoint, raising
from tests.support.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent.parent
POINT = "commit.before"


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has made no MQ yet, and is left with nothing armed."""
    monkeypatch.setattr(failpoints, "_is_environment_read", False)
    monkeypatch.setattr(failpoints, "_armed", {})


def in_process(value: str, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SQLMQ_FAILPOINTS": value},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def named_in_code() -> set[str]:
    return {
        ast.literal_eval(node.args[0])
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint"
    }


def test_every_failpoint_in_the_code_is_registered_and_every_one_registered_is_in_the_code() -> None:
    assert named_in_code() == set(POINTS)


def test_every_failpoint_is_documented_with_its_meaning() -> None:
    page = (ROOT / "docs" / "failpoints.md").read_text(encoding="utf-8")

    documented = dict(re.findall(r"^\| `([a-z]+\.[a-z]+)` \| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE))

    assert documented == dict(POINTS)


def test_nothing_happens_at_a_failpoint_that_is_not_armed() -> None:
    with armed("claim.after", raising()):
        failpoint(POINT)

    failpoint("claim.after")


def test_an_action_is_called_each_time_while_it_is_armed() -> None:
    calls: list[int] = []

    with armed(POINT, lambda: calls.append(1)):
        failpoint(POINT)
        failpoint(POINT)
    failpoint(POINT)

    assert calls == [1, 1]


def test_an_action_for_the_nth_time_is_called_only_then() -> None:
    calls: list[int] = []
    counted: list[str] = []

    with armed(POINT, lambda: calls.append(len(counted)), nth=2):
        for _ in range(3):
            counted.append(POINT)
            failpoint(POINT)

    assert calls == [2]


def test_several_actions_at_one_point_are_called_in_the_order_in_which_they_were_armed() -> None:
    calls: list[str] = []

    with armed(POINT, lambda: calls.append("first")), armed(POINT, lambda: calls.append("second")):
        failpoint(POINT)
    failpoint(POINT)

    assert calls == ["first", "second"]


def test_a_point_stays_armed_until_the_last_who_armed_it_is_done() -> None:
    with armed(POINT, raising()):
        with armed(POINT, lambda: None):
            pass
        with pytest.raises(FailpointError):
            failpoint(POINT)


def test_an_error_of_ones_own_is_raised() -> None:
    with armed(POINT, raising(KeyError("mine"))), pytest.raises(KeyError, match="mine"):
        failpoint(POINT)


def test_a_name_that_no_failpoint_has_is_an_error_that_names_a_close_one() -> None:
    with (
        pytest.raises(ValueError, match=r"Unknown failpoint 'comit.before'. Did you mean 'commit.before'"),
        armed("comit.before", raising()),
    ):
        pass


def test_a_gate_holds_a_thread_until_it_is_opened() -> None:
    gate, passed = Gate(), threading.Event()

    def go() -> None:
        failpoint(POINT)
        passed.set()

    with armed(POINT, gate):
        thread = threading.Thread(target=go)
        thread.start()
        gate.reached()
        was_held = not passed.is_set()
        gate.open()
        thread.join(PATIENCE_SECONDS)

    assert was_held
    assert passed.is_set()


def test_whoever_comes_to_a_gate_while_somebody_is_held_passes() -> None:
    gate = Gate()

    with armed(POINT, gate):
        thread = threading.Thread(target=lambda: failpoint(POINT))
        thread.start()
        gate.reached()
        failpoint(POINT)
        gate.open()
        thread.join(PATIENCE_SECONDS)


def test_a_gate_that_nobody_opens_raises_where_it_holds() -> None:
    with armed(POINT, Gate(0.01)), pytest.raises(FailpointError, match=r"not opened within 0.01 seconds"):
        failpoint(POINT)


def test_waiting_for_a_gate_that_nobody_reaches_ends() -> None:
    with pytest.raises(TimeoutError, match=r"No thread has reached the failpoint within 0.01 seconds"):
        Gate(0.01).reached()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("commit.before", r"'commit.before' must be point=action"),
        ("commit.before=raise@0", r"'commit.before=raise@0' must be"),
        ("commit.before=raise@x", r"'commit.before=raise@x' must be"),
        ("commit.before=explode", r"Unknown action 'explode'\. Use one of raise, exit, stop\."),
        ("commit.never=raise", r"Unknown failpoint 'commit.never'\."),
        ("claim.after=raise;nonsense", r"'nonsense' must be"),
    ],
)
@pytest.mark.usefixtures("unread")
def test_a_wrong_value_of_the_environment_is_told_to_whoever_makes_an_mq(
    text: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLMQ_FAILPOINTS", text)

    for _ in range(2):
        with pytest.raises(ValueError, match=f"^SQLMQ_FAILPOINTS: {complaint}"):
            MQ("sqlite://")
    assert failpoints._armed == {}


@pytest.mark.usefixtures("unread")
def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLMQ_FAILPOINTS", " claim.after=raise@1; ;claim.before=raise ")
    MQ("sqlite://").close()
    monkeypatch.setenv("SQLMQ_FAILPOINTS", "nonsense")
    MQ("sqlite://").close()

    for name in ("claim.before", "claim.after"):
        with pytest.raises(FailpointError):
            failpoint(name)
    failpoint("claim.after")


@pytest.mark.usefixtures("unread")
def test_what_the_environment_arms_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SQLMQ_FAILPOINTS", "claim.after=raise")

    MQ("sqlite://").close()

    assert [record.getMessage() for record in caplog.records] == [
        "Failpoints are armed by SQLMQ_FAILPOINTS: claim.after=raise"
    ]


@pytest.mark.faults
def test_a_process_ends_at_the_failpoint_that_its_environment_names() -> None:
    ended = in_process("begin.after=exit@2", "from sqlmq import MQ\nMQ('sqlite://').create_topic('orders')\nprint(1)\n")

    assert (ended.returncode, ended.stdout) == (EXIT_CODE, "")


@pytest.mark.faults
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes can't be stopped there")
def test_a_process_stops_at_a_failpoint_and_goes_on_when_it_is_continued() -> None:
    program = "from sqlmq import MQ\nMQ('sqlite://').create_topic('orders')\nprint('done')\n"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "SQLMQ_FAILPOINTS": "begin.after=stop@2"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        was_stopped = os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)

    assert was_stopped
    assert output == "done\n"
