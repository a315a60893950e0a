"""What the judge says is told to people, to programs, and to CI servers; and the command that does it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from sqlmq.cli.root import main
from sqlmq.verify import report
from tests.verify.selftest.simulator import Simulation
from tests.verify.stories import Story, got

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def lost(count: int = 1) -> Story:
    """So many messages are lost, of a process that does other things before and after."""
    story = Story()
    story.plan(replay="sqlmq verify run --seed 7", environment={"fsync": "on"})
    story.send(["before"], 1, 2)
    for number in range(count):
        story.send([f"lost {number}"], 10 + number, 10.5 + number)
    story.send(["after"], 5000, 5001)
    story.poll([got("before", 0)], 6000, 6001)
    story.note("nemesis", 3, action="start", fault="pause", id=1, who=["c"])
    story.note("nemesis", 1503, action="stop", fault="pause", id=1, who=["c"])
    story.log(["before", "after"])
    return story


def written(story: Story, directory: Path) -> Path:
    """The story as files of a run."""
    by_process: dict[str, str] = {}
    for line in story.lines:
        by_process[str(line["p"])] = by_process.get(str(line["p"]), "") + json.dumps(line) + "\n"
    for process, text in by_process.items():
        (directory / f"{process}.jsonl").write_text(text)
    rows = "".join(json.dumps(row) + "\n" for row in [*story.rows, {"row": "end"}])
    (directory / "final.jsonl").write_text(rows)
    return directory


def sqlmq(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="sqlmq")


def test_the_result_holds_counts_and_examples_with_their_events() -> None:
    told = report.result(lost().verdict())

    assert (told["verdict"], told["exit_code"]) == ("invalid", 1)
    assert told["counts"] == {
        "events": 11,
        "attempted": 3,
        "acknowledged": 3,
        "failed": 0,
        "unknown": 0,
        "delivered": 1,
        "redelivered": 0,
        "in the log": 2,
        "effects": 0,
        "faults": 1,
    }
    assert isinstance(told["anomalies"], list)
    (anomaly,) = told["anomalies"]
    assert isinstance(anomaly, dict)
    assert (anomaly["code"], anomaly["count"], anomaly["kinds"]) == ("A1", 1, {"lost-middle": 1})
    assert "lost 0" in json.dumps(anomaly["examples"])


def test_the_report_shows_an_anomaly_among_what_its_process_did() -> None:
    text = report.markdown(lost().verdict())

    assert text.startswith("# sqlmq verify: invalid\n")
    assert "| A1 | lost-write | 1 |" in text
    marked = [line for line in text.splitlines() if line.startswith("> ")]
    assert len(marked) == 2
    assert all("send" in line for line in marked)
    assert "before" in text.partition("### A1")[2]
    assert "sends after" in text.partition("### A1")[2]
    assert "```sh\nsqlmq verify run --seed 7\n```" in text
    assert '`{"fsync": "on"}`' in text


def test_the_report_shows_the_first_examples_and_counts_all() -> None:
    text = report.markdown(lost(30).verdict())

    assert "| A1 | lost-write | 30 |" in text
    assert f"\n{report.EXAMPLES}. lost {report.EXAMPLES - 1} was acknowledged" in text
    assert f"\n{report.EXAMPLES + 1}. " not in text


def test_the_report_tells_when_each_fault_was_and_how_long_it_was_until_work_went_on() -> None:
    story = lost()
    story.poll([got("after", 1)], 1600, 1603)

    text = report.markdown(story.verdict())

    assert "| pause | 0.003 | 1.5 | c |" in text


def test_junits_readers_get_a_case_for_each_anomaly() -> None:
    suite = ET.fromstring(report.as_junit(lost().verdict()))  # noqa: S314 - our own

    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert failed == ["A1 lost-write"]
    assert (suite.get("failures"), suite.get("tests")) == ("1", str(len(list(suite.iter("testcase")))))


def test_what_proves_nothing_is_a_failure_for_junits_readers() -> None:
    story = Story()
    story.plan(faults=["kill"])
    story.send(["a"])
    story.log(["a"])

    suite = ET.fromstring(report.as_junit(story.verdict()))  # noqa: S314 - our own

    assert [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None] == [
        "enough evidence"
    ]


def test_check_judges_a_directory_and_writes_its_report_there(tmp_path: Path) -> None:
    result = sqlmq("verify", "check", str(written(lost(), tmp_path)), "--junit", str(tmp_path / "junit.xml"))

    assert result.exit_code == 1
    assert "A1 lost-write, 1 times: lost 0" in result.output
    assert json.loads((tmp_path / "result.json").read_text())["verdict"] == "invalid"
    assert (tmp_path / "report.md").read_text().startswith("# sqlmq verify: invalid")
    assert (tmp_path / "junit.xml").read_text().startswith("<?xml")


def test_check_judges_files_with_a_state_at_the_end_from_elsewhere(tmp_path: Path) -> None:
    written(lost(), tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "final.jsonl").rename(elsewhere / "state.jsonl")
    files = [str(path) for path in tmp_path.glob("*.jsonl")]

    result = sqlmq(
        "verify",
        "check",
        *files,
        "--final",
        str(elsewhere / "state.jsonl"),
        "--out",
        str(elsewhere),
        "--json",
        "--allow",
        "A1",
    )

    told = json.loads(result.output)
    assert (told["verdict"], told["allowed"]) == ("unknown", {"A1": 1})
    assert result.exit_code == 3
    assert (elsewhere / "report.md").exists()
    assert not (tmp_path / "report.md").exists()


def test_check_may_be_told_how_much_is_enough(tmp_path: Path) -> None:
    written(lost(), tmp_path)

    assert sqlmq("verify", "check", str(tmp_path), "--least", "3", "--allow", "lost-write").exit_code == 0
    assert sqlmq("verify", "check", str(tmp_path), "--least", "4", "--allow", "lost-write").exit_code == 3


@pytest.mark.parametrize("text", ["", "no json\n{}\n"])
def test_check_says_what_it_cant_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)

    result = sqlmq("verify", "check", str(tmp_path))

    assert result.exit_code == 64
    assert result.output.startswith("Error: ")


def test_check_judges_a_directory_twice_with_the_same_result(tmp_path: Path) -> None:
    written(lost(), tmp_path)
    first = sqlmq("verify", "check", str(tmp_path), "--json").output

    assert sqlmq("verify", "check", str(tmp_path), "--json").output == first


def test_check_accepts_a_correct_history(tmp_path: Path) -> None:
    history = Simulation(1, sends=60).run()
    story = Story()
    story.lines, story.rows = history.lines, history.rows

    result = sqlmq("verify", "check", str(written(story, tmp_path)))

    assert result.exit_code == 0, result.output
