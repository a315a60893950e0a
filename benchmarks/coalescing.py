"""Who sends what waits together: the first that waits (a leader who hands over), or a thread of its own (a flusher)?

Both send the same messages by the same statement; only who runs it differs. The library has the leader; the flusher
lives here, to be measured against it. Each round checks that every message got a place of its own.
"""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING

from sqlmq import MQ, Message, ProducerResult
from sqlmq.coalescer import MOST_TOGETHER, Coalescer
from sqlmq.flows.produce import Routed

if TYPE_CHECKING:
    from collections.abc import Callable

    Append = Callable[[list[Routed]], list[ProducerResult]]
    Send = Callable[[Routed], ProducerResult]

ROUNDS, MESSAGES = 7, 4_000
CALLERS = (1, 8, 64)


class Flusher:
    """One thread sends; callers queue their messages and wait."""

    def __init__(self, append: Append) -> None:
        self._append = append
        self._waiting: SimpleQueue[tuple[Routed, Future[ProducerResult]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def call(self, routed: Routed) -> ProducerResult:
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


def run(url: str, *, quick: bool) -> None:
    rounds, messages = (2, 500) if quick else (ROUNDS, MESSAGES)
    with MQ(url) as mq:
        producer = mq.producer(f"bench-{uuid.uuid4().hex[:8]}")
        flusher = Flusher(producer._append)  # noqa: SLF001 - what both send through
        leader = Coalescer(producer.topic, producer._append)  # noqa: SLF001 - what both send through
        try:
            for callers in CALLERS:
                rates: dict[str, list[float]] = {"leader": [], "flusher": []}
                worst: dict[str, list[float]] = {"leader": [], "flusher": []}
                for _ in range(rounds):
                    for name, send in (("leader", lambda one: leader.call(one, None)), ("flusher", flusher.call)):
                        rate, p99 = measure(send, callers, messages)
                        rates[name].append(rate)
                        worst[name].append(p99)
                ratio = statistics.median(a / b for a, b in zip(rates["leader"], rates["flusher"], strict=True))
                print(f"{callers:>3} callers: leader/flusher {ratio:.2f}", end="")
                medians = {name: (statistics.median(rates[name]), statistics.median(worst[name])) for name in worst}
                print("".join(f" | {name} {rate:,.0f}/s, p99 {p99:.1f} ms" for name, (rate, p99) in medians.items()))
        finally:
            flusher.close()
            leader.close()
            mq.delete_topics(producer.topic)


def measure(send: Send, callers: int, messages: int) -> tuple[float, float]:
    """Messages per second, and the 99th percentile of a call in milliseconds."""
    each = max(1, min(messages, 250 * callers) // callers)
    took: list[float] = []
    places: list[ProducerResult] = []

    def call() -> None:
        for _ in range(each):
            began = time.perf_counter()
            place = send(Routed(Message(b"v" * 200, b"key-0001"), None))
            took.append(time.perf_counter() - began)
            places.append(place)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    assert len(set(places)) == each * callers
    return each * callers / seconds, statistics.quantiles(took, n=100)[98] * 1000
