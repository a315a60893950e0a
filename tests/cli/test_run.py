"""`sqlmq run`: handlers found and called, told to stop, killed, and started again."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from sqlmq import Message
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    import subprocess

    from click.testing import Result
    from sqlalchemy import Engine

    from sqlmq import MQ
    from tests.cli.conftest import Refusal, Sqlmq, SqlmqProcess
    from tests.support.queue_state import QueueState

sends_signals = pytest.mark.skipif(os.name == "nt", reason="signals are sent as Unix does")

HANDLERS = """
import asyncio, logging, os, pathlib, time

from opentelemetry import trace
from sqlalchemy import text

from sqlmq import Message

HERE = pathlib.Path(__file__).parent
logging.getLogger("sqlmq").addHandler(logging.FileHandler(HERE / "log"))
number = 7


def note(message):
    with (HERE / "handled").open("a") as file:
        file.write(f"{os.getpid()} {message.value.decode()}\\n")


async def note_soon(message):
    await asyncio.sleep(0)
    note(message)


def note_in_disguise(message):
    return note_soon(message)


def note_lazily(message):
    yield note(message)


def note_trace(message):
    trace_id = trace.get_current_span().get_span_context().trace_id
    note(Message(f"{trace_id:032x}".encode()))


async def note_trace_soon(message):
    note_trace(message)


class Handlers:
    @staticmethod
    def note(message):
        note(message)


def note_all(messages):
    for message in messages:
        note(message)
    note(Message(b"together"))


def note_in_transaction(message, session):
    session.execute(text("SELECT 1"))
    note(message)


def complain(message):
    logging.getLogger("shop").warning("no stock for %s", message.value.decode())
    raise ValueError(f"no stock for {message.value.decode()}")


def wait(message):
    note(message)
    while not (HERE / "go").exists():
        time.sleep(0.01)


async def wait_in_loop(message):
    note(message)
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)


def die_of_poison(message):
    if message.value == b"poison":
        note(message)
        os._exit(9)
    note(message)
"""


SLOW = """
import pathlib, time

(pathlib.Path(__file__).parent / "importing").touch()
while True:
    time.sleep(0.01)
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the modules `shop_handlers`, `broken`, and `slow`, whose import never ends; the current one."""
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "shop_handlers.py").write_text(HANDLERS)
    (directory / "slow.py").write_text(SLOW)
    (directory / "broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(directory)
    # What one test imports in this process is not the next one's.
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "shop_handlers", raising=False)
    return directory


def handled(shop: Path) -> list[str]:
    """What handlers have noted down, in order."""
    return [line.partition(" ")[2] for line in lines(shop)]


def lines(shop: Path) -> list[str]:
    file = shop / "handled"
    return file.read_text().splitlines() if file.exists() else []


def fill(mq: MQ, *values: str, partitions: int = 1) -> None:
    """Send *values*, each with itself as the key, to the topic `orders`."""
    mq.create_topic("orders", partitions)
    mq.producer("orders").produce_many([Message(value.encode(), value.encode()) for value in values])


BILLING = ("--topic", "orders", "--group", "billing")


def run(sqlmq: Sqlmq, handler: str, *options: str) -> Result:
    return sqlmq("run", handler, *BILLING, "--idle-seconds", "0", *options)


def start(sqlmq_process: SqlmqProcess, shop: Path, handler: str, *options: str) -> subprocess.Popen[bytes]:
    return sqlmq_process("run", f"shop_handlers:{handler}", *BILLING, *options, cwd=shop)


def lag(mq: MQ) -> int:
    return mq.admin.describe_group("orders", "billing").lag


def send_twice(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal, and again when it is not taken for the same any more."""
    process.send_signal(number)
    again_at = time.monotonic() + 1.2
    until(lambda: time.monotonic() > again_at, "the second signal's time")
    process.send_signal(number)


def until_told(shop: Path, number: signal.Signals) -> None:
    """Wait until the process has taken the signal *number*: sent is not arrived."""
    until(lambda: number.name in (shop / "log").read_text(), "the signal to arrive")


DEAD_LETTERS = "SELECT msg_offset, attempts, error_type FROM sqlmq_parked WHERE state = 'dead' ORDER BY msg_offset"


# --- The handler ---


@pytest.mark.parametrize("handler", ["note", "note_soon", "Handlers.note"])
def test_each_message_is_given_to_the_handler(sqlmq: Sqlmq, mq: MQ, shop: Path, handler: str) -> None:
    fill(mq, "a", "b", "c")

    result = run(sqlmq, f"shop_handlers:{handler}")

    assert result.exit_code == 0, result.output
    assert handled(shop) == ["a", "b", "c"]
    assert lag(mq) == 0
    assert "3 messages handled, 0 attempts failed" in result.stderr


def test_batches_are_given_as_lists(sqlmq: Sqlmq, mq: MQ, shop: Path) -> None:
    fill(mq, "a", "b", "c")

    result = run(sqlmq, "shop_handlers:note_all", "--batch-size", "10")

    assert result.exit_code == 0, result.output
    assert handled(shop) == ["a", "b", "c", "together"]


def test_in_a_transaction_the_handler_gets_a_session(sqlmq: Sqlmq, mq: MQ, shop: Path) -> None:
    fill(mq, "a", "b")

    result = run(sqlmq, "shop_handlers:note_in_transaction", "--transaction")

    assert result.exit_code == 0, result.output
    assert handled(shop) == ["a", "b"]


@pytest.mark.parametrize("handler", ["note_trace", "note_trace_soon"])
def test_a_handler_is_in_the_trace_of_its_message_if_that_is_wanted(
    sqlmq: Sqlmq, mq: MQ, shop: Path, handler: str
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    message = Message(b"a", headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"})
    mq.producer("orders").produce(message)
    assert run(sqlmq, f"shop_handlers:{handler}").exit_code == 0
    mq.producer("orders").produce(message)

    result = run(sqlmq, f"shop_handlers:{handler}", "--opentelemetry")

    assert result.exit_code == 0, result.output
    assert handled(shop) == ["0" * 32, trace_id]


@pytest.mark.usefixtures("shop")
def test_without_opentelemetry_the_command_says_what_to_install(sqlmq: Sqlmq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "sqlmq.opentelemetry", raising=False)

    result = run(sqlmq, "shop_handlers:note", "--opentelemetry")

    assert result.exit_code == 1
    assert "pip install 'sqlmq[opentelemetry]'" in result.stderr


@pytest.mark.usefixtures("shop")
def test_a_message_that_fails_becomes_a_dead_letter_and_the_log_says_so_with_place_and_time(
    sqlmq: Sqlmq, mq: MQ, queue_state: QueueState
) -> None:
    fill(mq, "a")

    result = run(sqlmq, "shop_handlers:complain", "--max-attempts", "2", "--backoff-seconds", "0")

    assert result.exit_code == 0, result.output
    assert queue_state.rows(DEAD_LETTERS) == [(0, 2, "ValueError")]
    time_and_level = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
    assert re.search(
        time_and_level + r"ERROR .*orders/0@0 failed, and it is a dead letter", result.stderr, re.MULTILINE
    )
    assert re.search(time_and_level + r"WARNING .* shop: no stock for a", result.stderr, re.MULTILINE)
    assert "1 dead letter," in result.stderr


def test_a_coroutine_that_nothing_awaits_is_a_failure_that_says_so(
    sqlmq: Sqlmq, mq: MQ, queue_state: QueueState, shop: Path
) -> None:
    fill(mq, "a")

    result = run(sqlmq, "shop_handlers:note_in_disguise", "--max-attempts", "1")

    assert result.exit_code == 0, result.output
    assert queue_state.rows(DEAD_LETTERS) == [(0, 1, "TypeError")]
    assert (
        "TypeError: The handler returned a coroutine, which nothing awaits: use AsyncMQ, or `sqlmq run`"
        in result.stderr
    )
    assert not (shop / "handled").exists()


@pytest.mark.usefixtures("shop")
def test_a_new_group_can_begin_with_the_next_message(sqlmq: Sqlmq, mq: MQ) -> None:
    fill(mq, "a")

    result = run(sqlmq, "shop_handlers:note", "--start", "latest")

    assert "0 messages handled" in result.stderr


@pytest.mark.usefixtures("shop")
def test_the_log_says_what_is_read_and_how(sqlmq: Sqlmq) -> None:
    result = run(sqlmq, "shop_handlers:note", "--concurrency", "2", "--max-attempts", "unlimited")

    assert "shop_handlers:note handles topic 'orders' for group 'billing'" in result.stderr
    assert "2 partitions in parallel, unlimited attempts" in result.stderr


NO_HANDLERS = {
    "no_such:handle": "Module 'no_such' was not found",
    "shop_handlers:missing": "Module 'shop_handlers' has no 'missing'",
    "shop_handlers:number": "shop_handlers:number must be a function, not int",
    "shop_handlers:note_lazily": "a handler must not `yield`",
    "shop_handlers": "does not have the form MODULE:HANDLER",
    "shop_handlers:": "does not have the form MODULE:HANDLER",
}


@pytest.mark.usefixtures("shop")
def test_a_handler_that_is_not_there_is_a_usage_error(refusal: Refusal) -> None:
    said = {handler: refusal("run", handler, *BILLING) for handler in NO_HANDLERS}

    assert [handler for handler, complaint in NO_HANDLERS.items() if complaint not in said[handler]] == []
    assert [handler for handler in NO_HANDLERS if "Traceback" in said[handler]] == []


@pytest.mark.usefixtures("shop")
def test_a_module_that_fails_to_import_is_shown_with_its_own_traceback(sqlmq: Sqlmq) -> None:
    result = run(sqlmq, "broken:handle")

    assert result.exit_code == 2
    assert "import no_such_module_anywhere" in result.stderr
    assert "Importing 'broken' failed, see above" in result.stderr


@pytest.mark.usefixtures("shop")
def test_options_that_make_no_sense_are_usage_errors(refusal: Refusal) -> None:
    for options in (("--max-attempts", "0"), ("--max-attempts", "many"), ("--concurrency", "0"), ("--topic", "-")):
        assert "Error: " in refusal("run", "shop_handlers:note", *BILLING, *options)


# --- Signals ---


# How a signal is taken does not depend on what kind of handler runs: each of both once.
each_signal = pytest.mark.parametrize(
    ("handler", "number"), [("wait", signal.SIGTERM), ("wait_in_loop", signal.SIGINT)]
)


@pytest.mark.slow
@sends_signals
@each_signal
def test_a_first_signal_lets_the_handler_finish_and_commits(
    sqlmq_process: SqlmqProcess, mq: MQ, shop: Path, number: signal.Signals, handler: str
) -> None:
    fill(mq, "a", "b")
    process = start(sqlmq_process, shop, handler)
    until(lambda: handled(shop) == ["a"], "the handler to begin")

    process.send_signal(number)
    until_told(shop, number)
    (shop / "go").touch()
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 0, errors
    assert handled(shop) == ["a"]
    assert lag(mq) == 1
    assert mq.admin.describe_group("orders", "billing").members == ()
    assert b"1 message handled" in errors


@pytest.mark.slow
@sends_signals
@each_signal
def test_a_second_signal_does_not_wait_for_the_handler(
    sqlmq_process: SqlmqProcess, mq: MQ, shop: Path, number: signal.Signals, handler: str
) -> None:
    fill(mq, "a")
    process = start(sqlmq_process, shop, handler, "--stop-seconds", "600")
    until(lambda: handled(shop) == ["a"], "the handler to begin")

    process.send_signal(number)
    until_told(shop, number)
    again_at = time.monotonic() + 0.3  # not taken for the same any more
    until(lambda: time.monotonic() > again_at, "the second signal's time")
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 128 + number, errors
    assert lag(mq) == 1
    assert mq.admin.describe_group("orders", "billing").members == ()


@sends_signals
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_signal_before_anything_has_begun_ends_it_there(sqlmq_process: SqlmqProcess, shop: Path) -> None:
    process = sqlmq_process("run", "slow:note", "--topic", "orders", "--group", "billing", cwd=shop)
    until((shop / "importing").exists, "the import to begin")

    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    # Not by the signal itself: process 1 of a container would not be ended by that.
    assert process.returncode == 143, errors


@pytest.mark.slow
@sends_signals
def test_a_signal_that_comes_twice_at_once_is_one(sqlmq_process: SqlmqProcess, mq: MQ, shop: Path) -> None:
    fill(mq, "a")
    process = start(sqlmq_process, shop, "wait")
    until(lambda: handled(shop) == ["a"], "the handler to begin")

    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    (shop / "go").touch()
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 0, errors
    assert lag(mq) == 0


# --- Processes ---


def pids(shop: Path) -> set[int]:
    return {int(line.partition(" ")[0]) for line in lines(shop)}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return _state(pid) != "Z"


def _state(pid: int) -> str:
    # A child that has ended, and whose parent is gone, may have nobody who collects it, in a container.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "?"


def start_two(sqlmq_process: SqlmqProcess, mq: MQ, shop: Path, handler: str, *options: str) -> subprocess.Popen[bytes]:
    """Start two processes that share four partitions, and wait until both have some."""
    mq.create_topic("orders", 4)
    process = start(sqlmq_process, shop, handler, "--processes", "2", *options)

    def is_shared() -> bool:
        if "billing" not in mq.admin.groups("orders"):
            return False
        owners = [partition.owner for partition in mq.admin.describe_group("orders", "billing").partitions]
        return None not in owners and len(set(owners)) == 2

    until(is_shared, "two members to share the partitions")
    return process


@pytest.mark.slow
@sends_signals
def test_several_processes_share_the_partitions_and_end_together(
    sqlmq_process: SqlmqProcess, mq: MQ, shop: Path
) -> None:
    process = start_two(sqlmq_process, mq, shop, "note")
    fill(mq, *map(str, range(40)), partitions=4)
    until(lambda: len(handled(shop)) == 40, "all messages to be handled")
    children = pids(shop)

    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 0, errors
    assert len(children) == 2
    assert process.pid not in children
    assert sorted(handled(shop), key=int) == [str(number) for number in range(40)]
    assert mq.admin.describe_group("orders", "billing").members == ()
    assert not any(map(is_alive, children))


@pytest.mark.slow
@sends_signals
def test_a_message_that_kills_its_process_becomes_a_dead_letter_and_the_others_are_handled(
    sqlmq_process: SqlmqProcess, mq: MQ, shop: Path, queue_state: QueueState
) -> None:
    fill(mq, "a", "poison", "b", "c")

    process = start(
        sqlmq_process,
        shop,
        "die_of_poison",
        "--processes",
        "2",
        "--max-attempts",
        "2",
        "--lease-seconds",
        "1",
        "--backoff-seconds",
        "0",
    )
    until(lambda: handled(shop).count("c") > 0 and len(queue_state.rows(DEAD_LETTERS)) == 1, "all to be dealt with")
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 0, errors
    assert queue_state.rows(DEAD_LETTERS) == [(1, 2, "ProcessEnded")]
    assert handled(shop).count("poison") == 2
    assert {"a", "b", "c"} < set(handled(shop))
    assert errors.count(b"ended with exit code 9. It restarts in") == 2


@pytest.mark.slow
@sends_signals
def test_no_process_is_left_when_the_one_that_watches_them_is_killed(
    sqlmq_process: SqlmqProcess, mq: MQ, shop: Path
) -> None:
    process = start_two(sqlmq_process, mq, shop, "note")
    fill(mq, *map(str, range(40)), partitions=4)
    until(lambda: len(pids(shop)) == 2, "both to handle something")

    process.kill()

    until(lambda: not any(map(is_alive, pids(shop))), "the processes to end")
    until(lambda: mq.admin.describe_group("orders", "billing").members == (), "them to have left in good order")


@pytest.mark.slow
@sends_signals
def test_a_second_signal_ends_all_processes_at_once(sqlmq_process: SqlmqProcess, mq: MQ, shop: Path) -> None:
    process = start_two(sqlmq_process, mq, shop, "wait", "--stop-seconds", "600")
    fill(mq, *map(str, range(40)), partitions=4)
    until(lambda: len(pids(shop)) == 2, "both to handle something")

    send_twice(process, signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 143, errors
    assert not any(map(is_alive, pids(shop)))


@sends_signals
@pytest.mark.usefixtures("shop")
def test_what_is_wrong_with_the_command_line_ends_all_processes(
    sqlmq: Sqlmq, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(sqlmq, "shop_handlers:missing", "--processes", "2")

    assert result.exit_code == 2
    assert "Module 'shop_handlers' has no 'missing'" in capfd.readouterr().err


@sends_signals
@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_tables_that_are_missing_are_told_once_and_end_the_command(sqlmq: Sqlmq, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE sqlmq_version"))
        connection.execute(text("DROP TABLE sqlmq_topic CASCADE"))

    result = run(sqlmq, "shop_handlers:note", "--processes", "2")

    assert result.exit_code == 1
    assert "sqlmq db upgrade" in result.stderr


@pytest.mark.slow
@sends_signals
def test_processes_that_find_nothing_more_end_the_command(sqlmq_process: SqlmqProcess, mq: MQ, shop: Path) -> None:
    fill(mq, "a", "b", partitions=2)

    process = start(sqlmq_process, shop, "note", "--processes", "2", "--idle-seconds", "0.5")
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 0, errors
    assert sorted(handled(shop)) == ["a", "b"]
