"""Threads for tasks start on demand, end by themselves, and run what was submitted whatever happens to the process."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from sqlmq.hooks.task_threads import TaskThreads
from tests.support.waiting import PATIENCE_SECONDS, until


def alive(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def test_a_task_runs_in_another_thread_and_gives_its_result() -> None:
    threads = TaskThreads("sqlmq-task")

    name = threads.submit(lambda: threading.current_thread().name).result(PATIENCE_SECONDS)

    assert name == "sqlmq-task_0"


def test_the_error_of_a_task_is_that_of_its_future() -> None:
    def fail() -> None:
        message = "broken"
        raise ValueError(message)

    with pytest.raises(ValueError, match="broken"):
        TaskThreads("sqlmq-task").submit(fail).result(PATIENCE_SECONDS)


def test_threads_end_by_themselves() -> None:
    TaskThreads("sqlmq-short").submit(lambda: None).result(PATIENCE_SECONDS)

    until(lambda: alive("sqlmq-short") == [], "the thread to end")


def test_an_idle_thread_takes_the_next_task() -> None:
    threads = TaskThreads("sqlmq-task")

    names = {threads.submit(lambda: threading.current_thread().name).result(PATIENCE_SECONDS) for _ in range(20)}

    assert len(names) < 20


def test_no_more_threads_run_than_the_most() -> None:
    threads, may_go = TaskThreads("sqlmq-two", 2), threading.Event()

    futures = [threads.submit(lambda: may_go.wait(PATIENCE_SECONDS)) for _ in range(6)]
    running = len(alive("sqlmq-two"))
    may_go.set()

    assert all(future.result(PATIENCE_SECONDS) for future in futures)
    assert running <= 2


def test_without_a_most_no_task_waits_for_another() -> None:
    threads, meeting = TaskThreads("sqlmq-task"), threading.Barrier(5, timeout=PATIENCE_SECONDS)

    futures = [threads.submit(meeting.wait) for _ in range(5)]

    assert sorted(future.result(PATIENCE_SECONDS) for future in futures) == [0, 1, 2, 3, 4]


def test_many_threads_may_submit() -> None:
    threads = TaskThreads("sqlmq-task", 3)
    results: list[int] = []

    def submit() -> None:
        results.extend(threads.submit(int).result(PATIENCE_SECONDS) for _ in range(200))

    submitters = [threading.Thread(target=submit, daemon=True) for _ in range(6)]
    for submitter in submitters:
        submitter.start()
    for submitter in submitters:
        submitter.join(PATIENCE_SECONDS)

    assert len(results) == 1_200


def test_shutting_down_runs_what_waits_and_refuses_the_rest() -> None:
    threads = TaskThreads("sqlmq-task", 1)
    futures = [threads.submit(lambda number=number: number) for number in range(50)]  # type: ignore[misc]

    threads.shut_down(PATIENCE_SECONDS)

    assert [future.result(0) for future in futures] == list(range(50))
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(lambda: None)


def test_shutting_down_may_cancel_what_waits() -> None:
    threads, may_go = TaskThreads("sqlmq-task", 1), threading.Event()
    first = threads.submit(lambda: may_go.wait(PATIENCE_SECONDS))
    waiting = threads.submit(lambda: True)

    threads.shut_down(0.0, cancel=True)
    may_go.set()

    assert first.result(PATIENCE_SECONDS)
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE_SECONDS)


def test_a_task_that_gets_no_thread_is_refused_and_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = TaskThreads("sqlmq-task")
    ran: list[int] = []

    def refuse(_thread: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threads.submit(lambda: ran.append(1))
    threads.submit(lambda: ran.append(2)).result(PATIENCE_SECONDS)

    assert ran == [2]


def test_a_task_waits_for_a_busy_thread_if_no_other_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, may_go = TaskThreads("sqlmq-task", 2), threading.Event()
    first = threads.submit(lambda: may_go.wait(PATIENCE_SECONDS))

    def refuse(_thread: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        second = threads.submit(lambda: 2)
    may_go.set()

    assert first.result(PATIENCE_SECONDS)
    assert second.result(PATIENCE_SECONDS) == 2


def test_the_end_of_the_process_waits_for_tasks_and_lets_threads_that_go_on_submit_more() -> None:
    program = """
import threading, time
from sqlmq.hooks.task_threads import TaskThreads
threads = TaskThreads("sqlmq-task", 1)
main = threading.main_thread()
def outlive():
    main.join()
    print(threads.submit(lambda: "submitted after the end").result(20))
threading.Thread(target=outlive).start()
for number in range(3):
    threads.submit(lambda number=number: print("task", number))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert done.stderr == ""
    assert sorted(done.stdout.splitlines()) == ["submitted after the end", "task 0", "task 1", "task 2"]


def test_an_interrupt_while_a_thread_starts_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, done = TaskThreads("sqlmq-task"), threading.Event()
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        real(thread)
        done.wait(PATIENCE_SECONDS)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            threads.submit(done.set)

    assert threads.submit(lambda: 42).result(PATIENCE_SECONDS) == 42
