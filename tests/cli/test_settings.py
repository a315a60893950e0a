from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from sqlmq import Message, Retry
from sqlmq.cli.root import main

if TYPE_CHECKING:
    from pathlib import Path

    from sqlmq import MQ
    from tests.cli.conftest import Sqlmq


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("--url", "sqlite:///mine.db", "topics", "list"),
        ("topics", "--url", "sqlite:///mine.db", "list"),
        ("topics", "list", "--url", "sqlite:///mine.db"),
        ("--url", "sqlite:///other.db", "topics", "list", "--url", "sqlite:///mine.db"),
    ],
)
def test_the_database_may_be_named_before_and_after_the_command(here: Path, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, arguments, env={"SQLMQ_URL": "sqlite:///environment.db"})

    assert result.exit_code == 0, result.output
    assert [file.name for file in here.glob("*.db")] == ["mine.db"]


def test_the_environment_names_the_database_if_the_command_line_does_not(here: Path) -> None:
    result = CliRunner().invoke(main, ["topics", "list"], env={"SQLMQ_URL": "sqlite:///environment.db"})

    assert result.exit_code == 0
    assert (here / "environment.db").exists()


def test_without_a_url_a_file_is_used_and_named(here: Path) -> None:
    result = CliRunner().invoke(main, ["topics", "create", "orders", "--json"])

    assert (here / "sqlmq.db").exists()
    assert "Using sqlite:///sqlmq.db" in result.stderr
    assert json.loads(result.stdout)["created"]


@pytest.mark.parametrize("around", ["{}\n", "  {}", "\t{} \r\n"])
@pytest.mark.parametrize("is_typed", [True, False], ids=["typed", "environment"])
def test_blanks_and_newlines_around_a_url_are_none_of_its_parts(here: Path, around: str, *, is_typed: bool) -> None:
    url = around.format("sqlite:///mine.db")

    result = CliRunner().invoke(
        main, [*(["--url", url] if is_typed else []), "topics", "list"], env={} if is_typed else {"SQLMQ_URL": url}
    )

    assert result.exit_code == 0, result.output
    assert [file.name for file in here.iterdir()] == ["mine.db"]


@pytest.mark.parametrize("empty", ["", " \n"])
@pytest.mark.parametrize("is_typed", [True, False], ids=["typed", "environment"])
def test_an_empty_url_does_not_mean_the_default_database(here: Path, empty: str, *, is_typed: bool) -> None:
    result = CliRunner().invoke(
        main, [*(["--url", empty] if is_typed else []), "topics", "list"], env={} if is_typed else {"SQLMQ_URL": empty}
    )

    assert result.exit_code == 2
    assert ("--url is empty" if is_typed else "SQLMQ_URL is set, but empty") in result.stderr
    assert list(here.iterdir()) == []


def test_a_url_that_was_typed_is_used_whatever_the_environment_says(here: Path) -> None:
    result = CliRunner().invoke(main, ["topics", "list", "--url", "sqlite:///mine.db"], env={"SQLMQ_URL": ""})

    assert result.exit_code == 0, result.output
    assert [file.name for file in here.iterdir()] == ["mine.db"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_text_that_the_terminal_cannot_encode_ends_no_command(
    mq: MQ, settings: dict[str, str], encoding: str
) -> None:
    shown = "Zoë\U0001f600"
    mq.create_topic("orders", 1)
    mq.producer("orders").produce(Message(b"x", headers={"name": shown}))

    def fail(_message: Message) -> None:
        raise ValueError(shown)

    mq.consumer("orders", "billing").run(fail, retry=Retry(max_attempts=1), idle_seconds=0, handle_signals=False)
    as_table, one, as_json = (
        CliRunner(charset=encoding).invoke(main, ["parked", *arguments, "--group", "billing"], env=settings)
        for arguments in (["list", "orders"], ["show", "orders", "0", "0"], ["list", "orders", "--json"])
    )

    assert [result.exit_code for result in (as_table, one, as_json)] == [0, 0, 0]
    assert shown.encode(encoding, errors="backslashreplace").decode(encoding) in as_table.stdout
    assert json.loads(as_json.stdout)["error"] == shown


@pytest.mark.usefixtures("here")
def test_failpoints_of_the_environment_that_are_none_are_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlmq.hooks.failpoints._is_environment_read", False)

    result = CliRunner().invoke(
        main, ["--url", "sqlite:///q.db", "topics", "list"], env={"SQLMQ_FAILPOINTS": "commit.never=raise"}
    )

    assert (result.exit_code, result.stdout) == (1, "")
    assert "SQLMQ_FAILPOINTS: Unknown failpoint 'commit.never'." in result.stderr


@pytest.mark.usefixtures("here")
def test_an_error_is_one_line_on_stderr_and_exit_code_1() -> None:
    result = CliRunner().invoke(main, ["--url", "sqlite:///q.db", "topics", "describe", "nope"])

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "Error: Topic 'nope' does not exist. Create it with `sqlmq topics create nope`.\n"


@pytest.mark.usefixtures("here")
def test_verbose_shows_the_traceback_of_an_error() -> None:
    result = CliRunner().invoke(main, ["--url", "sqlite:///q.db", "topics", "describe", "nope", "-v"])

    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_a_wrong_command_line_is_exit_code_2() -> None:
    assert CliRunner().invoke(main, ["topics", "create"]).exit_code == 2


def test_logging_is_as_it_was_after_a_command(sqlmq: Sqlmq) -> None:
    logger = logging.getLogger("sqlmq")
    before = (logger.level, list(logger.handlers))

    sqlmq("topics", "list", "-vv")

    assert (logger.level, list(logger.handlers)) == before


@pytest.mark.slow
@pytest.mark.parametrize("url", ["postgresql://me:s3cret@127.0.0.1:1/app", "mysql://me:s3cret@host/app"])
def test_a_database_that_cannot_be_used_is_an_error_without_its_password(url: str) -> None:
    result = CliRunner().invoke(main, ["db", "upgrade", "--url", url])

    assert result.exit_code == 1
    assert "\nError: " in f"\n{result.stderr}"
    assert "s3cret" not in result.output
