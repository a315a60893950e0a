"""What is wanted, as ratios to a limit that is measured in the same run, so that the machine cancels out."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.databases import POSTGRES, SQLITE


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio that one benchmark reports on one database, and where it should be."""

    benchmark: str
    ratio: str
    wanted: float
    database: str = POSTGRES
    at_most: bool = False

    def is_met(self, found: float) -> bool:
        return found <= self.wanted if self.at_most else found >= self.wanted

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.wanted:g}"


TARGETS = (
    Target("producing", "produce_many 1,000 / by hand", 0.85),
    Target("producing", "produce_many 10,000 / COPY by hand", 0.7),
    Target("producing", "produce / autocommit INSERT", 0.75),
    Target("producing", "headers / none", 0.7),
    Target("producing", "produce_many 1,000 / by hand", 0.6, SQLITE),
    Target("sharing", "64 threads: one producer / a transaction each", 9),
    Target("sharing", "1,000 tasks: one producer / a transaction each", 20),
    Target("consuming", "for message in consumer / by hand", 0.5),
    Target("consuming", "poll(1000) / by hand", 0.65),
    Target("consuming", "async for / for", 0.7),
    Target("consuming", "headers / none", 0.7),
    Target("consuming", "headers, read / none", 0.7),
    Target("consuming", "poll(1000) / by hand", 0.5, SQLITE),
    Target("steady", "produce, last / first", 0.85),
    Target("steady", "commit, last / first", 0.85),
    Target("sizes", "produce: backlog large / small", 0.9),
    Target("sizes", "consume: backlog large / small", 0.9),
    Target("sizes", "produce: 256 partitions / 1", 0.9),
    Target("sizes", "consume: 256 partitions / 1", 0.9),
    Target("sizes", "consume: 50 groups / 1", 0.9),
    Target("footprint", "WAL bytes: produced and consumed / bare INSERT", 1.05, at_most=True),
    Target("idling", "statements per consumer and second", 1, at_most=True),
    Target("peers", "produced and drained: sqlmq / pgqueuer", 10),
    Target("peers", "produced and drained: sqlmq / procrastinate", 100),
    Target("peers", "produced and drained: sqlmq / huey", 100),
)
