"""What happens when somebody presses Ctrl-C, sends SIGTERM, or stops reading."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sqlmq import Message
from sqlmq.cli.signals import SignalInterrupt, Stop
from tests.support.waiting import slack_seconds, until

if TYPE_CHECKING:
    import subprocess

    from sqlmq import MQ
    from tests.cli.conftest import Sqlmq, SqlmqProcess

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are sent as Unix does")


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    line: bytes = process.stdout.readline()
    return line


def type_in(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_consumer_that_is_told_to_stop_commits_what_it_wrote_and_leaves_at_once(
    sqlmq_process: SqlmqProcess, mq: MQ, sent: signal.Signals, exit_code: int
) -> None:
    producer = mq.producer("orders")
    process = sqlmq_process("consume", "orders", "--group", "readers")
    producer.produce(Message(b"one"))
    assert read_line(process) == b"one\n"

    process.send_signal(sent)
    began = time.monotonic()
    _, errors = process.communicate(timeout=20)

    group = mq.admin.describe_group("orders", "readers")
    assert time.monotonic() - began < 3 + slack_seconds()
    assert process.returncode == exit_code
    assert b"Traceback" not in errors
    assert b"1 message consumed" in errors
    assert (group.lag, group.members) == (0, ())


def test_a_consumer_stops_at_once_when_nobody_reads_what_it_writes(sqlmq_process: SqlmqProcess, mq: MQ) -> None:
    mq.create_topic("orders", 1)
    # More than a pipe holds: the first batch of 100 blocks half-way.
    mq.producer("orders").produce_many([Message(b"x" * 10_000)] * 200)
    process = sqlmq_process("consume", "orders", "--group", "readers")
    assert process.stdout is not None
    process.stdout.read(1)

    process.send_signal(signal.SIGTERM)
    process.wait(timeout=20)

    group = mq.admin.describe_group("orders", "readers")
    assert process.returncode == 143
    assert (group.lag, group.members) == (200, ())


def test_a_reader_who_goes_away_ends_the_consumer_quietly_and_the_rest_is_not_committed(
    sqlmq_process: SqlmqProcess, mq: MQ
) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(b"x" * 10_000)] * 200)
    process = sqlmq_process("consume", "orders", "--group", "readers")
    assert process.stdout is not None
    process.stdout.read(1)

    process.stdout.close()
    process.wait(timeout=20)

    assert process.stderr is not None
    group = mq.admin.describe_group("orders", "readers")
    assert process.stderr.read() == b"0 messages consumed.\n"
    assert process.returncode == 0
    assert (group.lag, group.members) == (200, ())


def test_a_list_whose_reader_went_away_ends_quietly(sqlmq_process: SqlmqProcess) -> None:
    process = sqlmq_process("topics", "create", "orders")
    assert process.stdout is not None
    process.stdout.close()

    process.wait(timeout=20)

    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_a_line_is_sent_when_it_arrives_and_not_when_input_ends(sqlmq_process: SqlmqProcess, mq: MQ) -> None:
    consumer = mq.consumer("orders", "readers")
    process = sqlmq_process("produce", "orders")

    type_in(process, b"first\nsecond, half")
    first = consumer.consume(timeout=20)
    type_in(process, b" and whole\n")
    second = consumer.consume(timeout=20)

    process.communicate(timeout=20)
    assert (first.value, second.value) == (b"first", b"second, half and whole")
    assert process.returncode == 0


@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_producer_that_is_told_to_stop_says_how_much_it_sent(
    sqlmq_process: SqlmqProcess, mq: MQ, sent: signal.Signals, exit_code: int
) -> None:
    consumer = mq.consumer("orders", "readers")
    process = sqlmq_process("produce", "orders", "--json")
    type_in(process, b"one\ntwo\nhalf a li")
    for _ in range(2):
        read_line(process)

    process.send_signal(sent)
    process.wait(timeout=20)

    assert process.stderr is not None
    assert process.returncode == exit_code
    assert b"2 messages produced to 'orders'." in process.stderr.read()
    assert sum(partition.end_offset for partition in mq.admin.describe_topic(consumer.topic).partitions) == 2


def test_a_signal_that_interrupts_nothing_is_seen_all_the_same() -> None:
    # As one that comes when the main thread is about to block: to that it looks as if another thread got it.
    end, other_end = os.pipe()
    is_over = threading.Event()
    waiting = Stop.wait.__code__

    def send() -> None:
        until(lambda: sys._current_frames()[main_thread].f_code is waiting, "somebody who waits")
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        is_over.wait(20)
        os.close(other_end)

    main_thread = threading.get_ident()
    with Stop() as stop:
        sender = threading.Thread(target=send)
        sender.start()
        with pytest.raises(SignalInterrupt):
            stop.wait(reading=end)
    is_over.set()
    sender.join()
    os.close(end)


def test_waiting_ends_when_there_is_something_to_read_or_the_time_is_over() -> None:
    end, other_end = os.pipe()
    with Stop() as stop:
        stop.wait(0, reading=end)
        stop.wait(20, writing=other_end)
        os.write(other_end, b"-")
        stop.wait(20, reading=end)
    os.close(end)
    os.close(other_end)


def test_a_producer_whose_results_nobody_reads_says_that_it_stopped(sqlmq_process: SqlmqProcess) -> None:
    process = sqlmq_process("produce", "orders", "--json")
    assert process.stdout is not None
    process.stdout.close()

    type_in(process, b"one\n")
    process.wait(timeout=20)

    assert process.stderr is not None
    assert process.returncode == 1
    assert b"the reader of the results has closed the pipe" in process.stderr.read()


@pytest.mark.slow
def test_two_consumers_of_a_group_share_the_messages(sqlmq_process: SqlmqProcess, sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders", "--partitions", "2")
    sqlmq("produce", "orders", "--partition", "0", stdin="a\n" * 50)
    sqlmq("produce", "orders", "--partition", "1", stdin="b\n" * 50)

    processes = [sqlmq_process("consume", "orders", "--group", "readers", "--timeout", "1") for _ in range(2)]

    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert sorted(b"".join(outputs).split()) == [b"a"] * 50 + [b"b"] * 50
    assert [process.returncode for process in processes] == [0, 0]
