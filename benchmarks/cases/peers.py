"""Producing and draining with one process: sqlmq, other queues, and a queue made by hand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.harness.suite import Rounds, ratio
from benchmarks.harness.workload import check
from benchmarks.peers import OURS, how_many, installed

if TYPE_CHECKING:
    from benchmarks.harness.suite import Bench
    from benchmarks.peers import Queue


def run(bench: Bench) -> None:
    peers, notes = installed(bench.database.kind)
    took: dict[str, list[tuple[float, float]]] = {peer.name: [] for peer in peers}
    counts = {peer.name: how_many(peer, quick=bench.quick) for peer in peers}
    for _ in range(bench.rounds):
        for peer in peers:
            with bench.database.scratch() as target, peer.open(target) as queue:
                took[peer.name].append(_produce_and_drain(queue, counts[peer.name]))
    for what, seconds in (("produced", _produced), ("drained", _drained), ("produced and drained", sum)):
        rates = {name: Rounds(tuple(counts[name] / seconds(both) for both in rounds)) for name, rounds in took.items()}
        bench.add(
            f"{what}, one process",
            {f"{name}, {counts[name]:,} messages": rounds for name, rounds in rates.items()},
            {f"{what}: {OURS} / {name}": ratio(rates[OURS], rates[name]) for name in rates if name != OURS},
            unit="messages/s",
            notes=notes if what == "produced and drained" else (),
        )


def _produce_and_drain(queue: Queue, count: int) -> tuple[float, float]:
    """How many seconds either took."""
    began = time.perf_counter()
    queue.produce(count)
    produced = time.perf_counter()
    done = queue.drain(count)
    drained = time.perf_counter()
    check(done == count, f"{done} of {count} messages came")
    return produced - began, drained - produced


def _produced(both: tuple[float, float]) -> float:
    return both[0]


def _drained(both: tuple[float, float]) -> float:
    return both[1]
