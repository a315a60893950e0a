"""Processes that do one thing at the same moment: eight producers, or eight consumers.

They are started once, for all rounds. A job is a context manager, made in each process, which prepares itself before it
gives the work to be done; the work of all begins when the last of them is ready.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.harness.workload import WrongResultError, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    Job = Callable[..., AbstractContextManager[Callable[[], int]]]

TIMEOUT_SECONDS = 120.0


class Shift(NamedTuple):
    """What one process did: how many messages, and when, by the clock that all processes share."""

    began: float
    ended: float
    messages: int


class Crew:
    """The processes, and what is sent to them."""

    def __init__(self, size: int) -> None:
        # Not forked: this process has threads.
        context = multiprocessing.get_context("spawn")
        self.size = size
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(
        self, job: Job, arguments: Sequence[tuple[Any, ...]], *, when_ready: Callable[[], object] = lambda: None
    ) -> float:
        """Do *job* in each process with its own *arguments*, and return the rate of all of them together.

        *when_ready* is called once all are prepared, before any begins. The clock runs from the first beginning to the
        last end.
        """
        for pipe, ours in zip(self._pipes, arguments, strict=True):
            pipe.send((job, ours))
        for pipe in self._pipes:
            _answer(pipe)
        when_ready()
        for pipe in self._pipes:
            pipe.send("go")
        shifts = [Shift(*_answer(pipe)) for pipe in self._pipes]
        seconds = max(shift.ended for shift in shifts) - min(shift.began for shift in shifts)
        return sum(shift.messages for shift in shifts) / seconds

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            process.kill()
            process.join()


@contextmanager
def crew(size: int) -> Iterator[Crew]:
    """A crew that is sent home in the end."""
    made = Crew(size)
    try:
        yield made
    finally:
        made.close()


def _answer(pipe: Connection) -> Any:  # noqa: ANN401 - whatever was sent
    check(pipe.poll(TIMEOUT_SECONDS), "a process did not answer")
    answer = pipe.recv()
    if isinstance(answer, BaseException):
        raise WrongResultError(f"in a process of the crew: {answer!r}") from answer
    return answer


def _serve(pipe: Connection) -> None:
    """Do one job after the other, until the pipe is closed."""
    while True:
        try:
            job, arguments = pipe.recv()
        except EOFError:
            return
        try:
            with job(*arguments) as work:
                pipe.send("ready")
                pipe.recv()
                began = time.perf_counter()
                count = work()
                ended = time.perf_counter()
            pipe.send((began, ended, count))
        except Exception as error:  # noqa: BLE001 - raised by who asked
            pipe.send(WrongResultError(f"{type(error).__name__}: {error}"))
