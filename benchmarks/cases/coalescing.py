"""Who sends what waits together: the first that waits (a leader who hands over), or a thread of its own (a flusher)?

Both send the same messages by the same statement; only who runs it differs. The library has the leader; the flusher
lives here, to be measured against it. Each round checks that every message got a place of its own.
"""

from __future__ import annotations

import functools
import statistics
import threading
import time
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING

from benchmarks.harness.suite import Rounds
from benchmarks.harness.workload import check, new_topic
from sqlmq import MQ, Message, ProducerResult
from sqlmq.operations.produce import RoutedMessage
from sqlmq.producer.batcher import MOST_TOGETHER, Batcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.suite import Bench

    Append = Callable[[list[RoutedMessage]], list[ProducerResult]]
    Send = Callable[[RoutedMessage], ProducerResult]

MESSAGES = 4_000
CALLERS = (1, 8, 64)


class Flusher:
    """One thread sends; callers queue their messages and wait."""

    def __init__(self, append: Append) -> None:
        self._append = append
        self._waiting: SimpleQueue[tuple[RoutedMessage, Future[ProducerResult]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def call(self, routed: RoutedMessage) -> ProducerResult:
        future: Future[ProducerResult] = Future()
        self._waiting.put((routed, future))
        return future.result()

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < MOST_TOGETHER and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    self._waiting.put(None)
                    break
                batch.append(following)
            results = self._append([routed for routed, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)


def run(bench: Bench) -> None:
    with MQ(bench.url) as mq:
        name = new_topic(mq)
        producer = mq.producer(name)
        core = producer._core  # noqa: SLF001 - what is measured is below the face
        flusher = Flusher(core.append_batch)
        leader = Batcher(core)
        ways: dict[str, Send] = {"leader": lambda one: leader.call(one, None), "flusher": flusher.call}
        try:
            for callers in CALLERS:
                _compare(bench, ways, callers, bench.scale(MESSAGES, 500))
        finally:
            flusher.close()
            leader.close()


def _compare(bench: Bench, ways: dict[str, Send], callers: int, messages: int) -> None:
    slowest: dict[str, list[float]] = {name: [] for name in ways}

    def round_of(name: str) -> float:
        rate, p99 = measure(ways[name], callers, messages)
        slowest[name].append(p99)
        return rate

    measures: dict[str, Callable[[], float]] = {name: functools.partial(round_of, name) for name in ways}
    bench.compare(f"{callers} callers", measures, {f"{callers} callers: leader / flusher": ("leader", "flusher")})
    # The first round is no more counted than that of the rates.
    p99 = {name: Rounds(tuple(values[bench.warm_up_rounds :])) for name, values in slowest.items()}
    bench.add(f"{callers} callers, p99 of a call", p99, {}, unit="ms")


def measure(send: Send, callers: int, messages: int) -> tuple[float, float]:
    """Messages per second, and the 99th percentile of a call in milliseconds."""
    each = max(1, min(messages, 250 * callers) // callers)
    took: list[float] = []
    places: list[ProducerResult] = []

    def call() -> None:
        for _ in range(each):
            began = time.perf_counter()
            place = send(RoutedMessage(Message(b"v" * 200, b"key-0001"), None))
            took.append(time.perf_counter() - began)
            places.append(place)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    check(len(set(places)) == each * callers, "two messages have one place")
    return each * callers / seconds, statistics.quantiles(took, n=100)[98] * 1000
