"""What is wanted. Most are ratios to a limit that is measured in the same run, so that the machine cancels out."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.databases import POSTGRES, SQLITE


@dataclass(frozen=True, slots=True)
class Target:
    """A figure (a ratio, or what one variant has) that a benchmark reports on a database, and where it should be."""

    benchmark: str
    figure: str
    wanted: float
    database: str = POSTGRES
    at_most: bool = False
    unit: str = ""
    """Of a figure that is no ratio."""

    def is_met(self, found: float) -> bool:
        return found <= self.wanted if self.at_most else found >= self.wanted

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.wanted:g} {self.unit}".rstrip()


TARGETS = (
    Target("producing", "produce_many 1,000 / by hand", 0.85),
    Target("producing", "produce_many 10,000 / COPY by hand", 0.7),
    Target("producing", "produce / autocommit INSERT", 0.75),
    Target("producing", "produce / pgmq send", 0.85),
    Target("producing", "headers / none", 0.7),
    Target("producing", "produce_many 1,000 / by hand", 0.6, SQLITE),
    Target("consuming", "for message in consumer / by hand", 0.5),
    Target("consuming", "poll(1000) / by hand", 0.65),
    Target("consuming", "async for / for", 0.7),
    Target("consuming", "headers / none", 0.7),
    Target("consuming", "headers, read / none", 0.7),
    Target("consuming", "poll(1000) / by hand", 0.5, SQLITE),
    Target("consuming", "async for / for", 0.7, SQLITE),
    Target("sharing", "64 threads: one producer / a transaction each", 9),
    Target("sharing", "1,000 tasks: one producer / a transaction each", 20),
    Target("writing", "100 a call, 8 partitions: produce / no lock", 0.85),
    Target("writing", "1 a call, 1 partition: produce / no lock", 0.65),
    Target("reading", "8 processes, 1,000 a poll: sqlmq / pgmq", 8),
    Target("reading", "8 processes, 10 a poll: sqlmq / pgmq", 1.5),
    Target("peers", "produced and drained: sqlmq / pgmq", 5),
    Target("peers", "produced and drained: sqlmq / pgqueuer", 10),
    Target("peers", "produced and drained: sqlmq / procrastinate", 100),
    Target("peers", "produced and drained: sqlmq / huey", 100),
    Target("peers", "produced and drained: sqlmq / huey", 100, SQLITE),
    Target("peers", "produced and drained: sqlmq / litequeue", 100, SQLITE),
    Target("waking", "another process, notices, p50", 3, at_most=True, unit="ms"),
    Target("waking", "another process, notices, p99", 12, at_most=True, unit="ms"),
    Target("waking", "p50: notices / pgmq", 1, at_most=True),
    Target("waking", "p99: notices / pgmq", 1, at_most=True),
    Target("waking", "another process, looking, p99", 60, at_most=True, unit="ms"),
    Target("waking", "another process, looking, p99", 60, SQLITE, at_most=True, unit="ms"),
    Target("handling", "p50: set aside / well", 1.2, at_most=True),
    Target("handling", "p50: set aside / well", 1.2, SQLITE, at_most=True),
    Target("steady", "produce, last / first", 0.85),
    Target("steady", "poll(1) and commit, last / first", 0.85),
    Target("steady", "produce: nothing deleted / all deleted", 1.2, at_most=True),
    Target("sizes", "produce: backlog large / small", 0.9),
    Target("sizes", "consume: backlog large / small", 0.9),
    Target("sizes", "produce: 1,024 partitions / 1", 0.9),
    Target("sizes", "produce: 1,024 partitions / 1, no keys", 0.9),
    Target("sizes", "consume: 1,024 partitions / 1", 0.9),
    Target("sizes", "consume: 100 groups / 1", 0.9),
    Target("sizes", "1,024 partitions, statements of a poll", 1, at_most=True),
    Target("wal", "WAL bytes: produced and consumed / bare INSERT", 1.05, at_most=True),
    Target("wal", "consumed, poll(100)", 2, at_most=True, unit="bytes/message"),
    Target("memory", "growth over a backlog", 50, at_most=True, unit="MB"),
    Target("memory", "growth over messages of 1 MB / prefetch_bytes", 4, at_most=True),
    Target("idling", "statements of a consumer in a second", 1, at_most=True),
    Target("idling", "processor in all, % of a core", 3, at_most=True, unit="%"),
)
