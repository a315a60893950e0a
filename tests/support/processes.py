"""Processes that tests start, fork and kill."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from sqlmq import MQ
from tests.support.journal import Story
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection as Pipe
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess
    from pathlib import Path

TOPIC, GROUP = "orders", "billing"
PARTITIONS = 6
END_SECONDS = 60.0
"""Far more than a process takes that has little to do."""

# Some tests are about a fork while threads run.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@dataclass(frozen=True)
class QueueUnderTest:
    """Where a queue is, and the lease of its consumers."""

    url: str
    schema: str | None = None
    lease_seconds: float = 2.0

    def open(self, **options: Any) -> MQ:
        return MQ(self.url, schema=self.schema, lease_seconds=self.lease_seconds, poll_max_seconds=0.2, **options)


class Processes:
    """Starts processes, kills some, and reads all their journals."""

    def __init__(self, queue: QueueUnderTest, directory: Path) -> None:
        self._queue = queue
        self._directory = directory
        self._journals: dict[str, Path] = {}
        self.running: dict[str, BaseProcess] = {}
        self.killed: set[str] = set()

    def start(self, kind: str, work: Callable[..., None], *arguments: object) -> str:
        name = f"{kind}-{len(self._journals)}"
        self._journals[name] = self._directory / f"{name}.journal"
        self.running[name] = start(work, self._queue, self._journals[name], *arguments)
        return name

    def kill(self, name: str) -> None:
        end(self.running.pop(name))
        self.killed.add(name)

    def has_begun(self, name: str) -> bool:
        path = self._journals[name]
        return path.exists() and path.stat().st_size > 0

    def wait(self, deadline: float) -> None:
        for process in self.running.values():
            process.join(max(0.0, deadline - time.monotonic()))
        assert {name: process.exitcode for name, process in self.running.items() if process.exitcode != 0} == {}

    def stories(self, kind: str) -> list[Story]:
        return [
            Story.read(path, was_killed=name in self.killed)
            for name, path in self._journals.items()
            if name.startswith(kind)
        ]

    def close(self) -> None:
        for process in self.running.values():
            end(process)


def start(work: Callable[..., None], *arguments: object, **options: object) -> BaseProcess:
    """Start a process that does *work*; it is killed when this one ends."""
    process: BaseProcess = _context().Process(  # type: ignore[attr-defined]  # each context has one
        target=work, args=arguments, kwargs=options, daemon=True
    )
    process.start()
    return process


def end(process: BaseProcess) -> None:
    """Kill *process*, if it still runs."""
    process.kill()
    process.join(END_SECONDS)


def in_process(work: Callable[..., None], *arguments: object, **options: object) -> int | None:
    """Do *work* in a process; return its exit code, or None if it did not end."""
    process = start(work, *arguments, **options)
    process.join(END_SECONDS)
    exit_code: int | None = process.exitcode
    end(process)
    return exit_code


def _context() -> BaseContext:
    """Return how processes are started: where it can be, from one that has imported everything and opened nothing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload([__name__, "sqlmq.dialects.postgresql.dialect", "sqlmq.dialects.sqlite.dialect"])
    return forkserver


def end_at_once(exit_code: int) -> NoReturn:
    """End this process as a crash does: nothing is closed, flushed or sent."""
    os._exit(exit_code)


def fork(work: Callable[[], None]) -> int:
    """Fork a child that does *work*; return its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - printed, and shown by the exit code
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(100)
        os._exit(0)
    return pid


def ended(pid: int) -> int:
    """Wait for a child, and return its exit code."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def in_child(work: Callable[[], None]) -> int:
    """Do *work* in a forked child; return its exit code."""
    return ended(fork(work))


def in_fork(action: Callable[[], str]) -> str:
    """Run *action* in a forked child; return what it returned, or the name of what it raised."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child(pipe: Pipe) -> None:
        try:
            pipe.send(action())
        except BaseException as error:  # noqa: BLE001 - reported to the parent
            pipe.send(type(error).__name__)

    process = context.Process(target=child, args=(theirs,))
    process.start()
    try:
        assert ours.poll(PATIENCE_SECONDS), "the child does not answer"
        answer: str = ours.recv()
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0, f"the child ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
        theirs.close()
    return answer
