"""`sqlmq` in scripts and containers: a URL with a newline, an empty one, an ASCII terminal, closed pipes, odd bytes."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING

from case import COMMAND, COMMAND_SECONDS, Case, crowding, last_line, run
from sqlmq import MQ, Message, Retry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlmq import ReceivedMessage

SURROUNDINGS: dict[str, dict[str, str]] = {
    "utf-8": {},
    "ascii": {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "dumb": {"TERM": "dumb", "COLUMNS": "5"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
}
MANY = 3000
FAILED = "boom [/red] \x1b[2J é \U0001f600 \x00 [bold]"


def judge(case: Case) -> None:
    with MQ(case.url) as mq:
        partition = fill(mq)
    for name, environment in SURROUNDINGS.items():
        for arguments in commands(name, partition):
            check_command(case, name, arguments, environment)
    check_pipes(case)
    check_urls(case)
    check(
        case, "produce, odd bytes", case.run_command("produce", "odd", input_bytes=b"\xff\x00\r\n\xef\xbb\xbfbom\n\n")
    )


def fill(mq: MQ) -> int:
    """Produce messages that are hard to print, park one, and return its partition."""
    many = mq.producer("many")
    key, headers = "Zoë\U0001f600".encode(), {"name": "é[/b]"}
    for number in range(MANY):
        many.submit(Message(b"line %d \xff\xfe \x1b[31m [red]x[/]" % number, key=key, headers=headers))
    place = mq.producer("few").produce(Message(b"\xff\x00[/x]", key=b"\xfe[/y]", headers={"name": "é\u202e"}))
    mq.consumer("few", "failing").run(fail, retry=Retry(max_attempts=1), idle_seconds=1, handle_signals=False)
    return place.partition


def fail(_message: ReceivedMessage) -> None:
    raise ValueError(FAILED)


def commands(name: str, partition: int) -> list[list[str]]:
    """Return the commands that print something. *name* makes the names of their groups."""
    parked = ["few", "--group", "failing"]
    read = ["consume", "few", "--timeout", "3", "--group"]
    return [
        ["parked", "list", *parked],
        ["parked", "show", "few", str(partition), "0", "--group", "failing"],
        ["parked", "list", *parked, "--json"],
        ["tail", "few", "--last", "1", "--timeout", "1"],
        ["topics", "list"],
        ["groups", "describe", "failing"],
        ["lag"],
        ["doctor"],
        [*read, f"json-{name}", "--json"],
        [*read, f"format-{name}", "--format", "%k %h %s\\n"],
    ]


def check_command(case: Case, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
    ended = case.run_command(*arguments, environment=environment)
    # The exit code of doctor says what it has found.
    most = 63 if arguments == ["doctor"] else 0
    check(case, f"{name}: {' '.join(arguments[:2])}", ended, most)


def check_pipes(case: Case) -> None:
    """Let the reader of the output end first."""
    sqlmq = shlex.join(COMMAND)
    for pipe in (
        f"{sqlmq} consume many --group head --timeout 3 2>errors.txt | head -1",
        f"{sqlmq} tail many --last 500 --timeout 2 2>errors.txt | head -1",
        f"{sqlmq} topics list 2>errors.txt | true",
    ):
        ended = subprocess.run(
            ["sh", "-c", f"{pipe}; cat errors.txt >&2"],
            env={**os.environ, "SQLMQ_URL": case.url},
            cwd=case.directory,
            capture_output=True,
            check=False,
            timeout=COMMAND_SECONDS * crowding(),
        )
        check(case, pipe.removeprefix(sqlmq), ended)


def check_urls(case: Case) -> None:
    urls = {"a URL with a newline": f"{case.url}\n", "a URL with blanks": f" {case.url} "}
    if not case.is_sqlite:
        urls["postgres://"] = case.url.replace("postgresql+psycopg://", "postgres://")
    for name, url in urls.items():
        check(case, name, case.run_command("topics", "list", environment={"SQLMQ_URL": url}))
    ended = case.run_command("produce", "oops", environment={"SQLMQ_URL": ""}, input_bytes=b"x\n")
    if ended.returncode == 0:
        case.fault(f"SQLMQ_URL is set and empty: the message went into a new file: {last_line(ended.stderr)}")


def check(case: Case, what: str, ended: subprocess.CompletedProcess[bytes], most: int = 0) -> None:
    said = ended.stderr.decode(errors="replace")
    if not 0 <= ended.returncode <= most or "Traceback" in said:
        case.fault(f"{what}: ended with {ended.returncode}: {last_line(said)}")


if __name__ == "__main__":
    run(judge)
