"""Ctrl-C at any instruction loses no lead, no message and no lock: what comes after it works."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from sqlmq.database.writer_lock import WriterLock
from sqlmq.model.message import Message, ProducerResult
from sqlmq.operations.produce import RoutedMessage
from sqlmq.producer.batcher import Batcher, _SubmitSender
from tests.support.interrupts import Interrupter, ends

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    Start = Callable[[], object]

ROUTED = RoutedMessage(Message(b"42"), None)
FILES = ("producer/batcher.py", "hooks/log_hold.py", "hooks/task_threads.py")


class Log:
    """Appends at once."""

    topic = "orders"
    batch_seconds = 10.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset = 0

    def append_batch(self, routed: Sequence[RoutedMessage]) -> list[ProducerResult]:
        with self._lock:
            first = self._offset
            self._offset += len(routed)
        return [ProducerResult("orders", 0, first + number) for number in range(len(routed))]


class Scene:
    """A batcher, and futures of messages that were submitted to it."""

    def __init__(self) -> None:
        self.batcher = Batcher(Log())
        self.futures: list[Future[ProducerResult]] = []

    def call(self) -> Start:
        return lambda: self.batcher.call(ROUTED, None)

    def submit(self) -> Start:
        return lambda: self.futures.append(self.batcher.submit(ROUTED))

    def lead_others(self) -> Start:
        """A call that leads a batch with messages of others, whose futures it has to complete."""
        self.batcher._sender = _SubmitSender()  # as if a thread were about to come, and did not
        for _ in range(2):
            self.submit()()
        self.batcher._sender = None
        return self.call()

    def close(self) -> Start:
        for _ in range(2):
            self.submit()()
        return self.batcher.close

    def strands(self) -> list[str]:
        """What does not end after the interrupt."""
        left = []
        if not ends(lambda: self.batcher.call(ROUTED, None)):
            left.append("a call")
        if not all(ends(lambda future=future: future.exception(10)) and future.done() for future in self.futures):  # type: ignore[misc]
            left.append("a future")
        if not ends(self.batcher.close, 20):
            left.append("close")
        return left


@pytest.mark.parametrize(
    ("act", "second"),
    [
        pytest.param(Scene.call, 0, id="call"),
        pytest.param(Scene.call, 2, id="call, and once more while it is cleared up"),
        pytest.param(Scene.submit, 0, id="submit"),
        pytest.param(Scene.lead_others, 0, id="a call that leads others"),
        pytest.param(Scene.lead_others, 3, id="a call that leads others, and once more while it is cleared up"),
        pytest.param(Scene.close, 0, id="close"),
    ],
)
def test_an_interrupt_at_any_instruction_of_the_batcher_strands_nobody(
    act: Callable[[Scene], Start], second: int
) -> None:
    scenes: list[Scene] = []

    def begin() -> Start:
        scenes.append(Scene())
        return act(scenes[-1])

    places, stranded = 0, {}
    for where in Interrupter(*FILES).each(begin, second=second):
        places += 1
        if left := scenes[-1].strands():
            stranded[where] = left

    assert stranded == {}
    assert places > 20


def test_an_interrupt_at_any_instruction_leaves_no_writer_lock_behind() -> None:
    locks: list[WriterLock] = []

    def begin() -> Start:
        lock = WriterLock()
        locks.append(lock)

        def hold() -> None:
            release = lock.release
            try:
                lock.acquire(1.0)
            finally:
                try:  # noqa: SIM105 - as the database does it
                    release()
                except RuntimeError:
                    pass

        return hold

    def is_lost() -> bool:
        return locks[-1].is_mine or not ends(lambda: locks[-1].acquire(1.0) or pytest.fail("it is held"))

    lost = [where for where in Interrupter("database/writer_lock.py").each(begin) if is_lost()]

    assert lost == []
