"""The state of a queue for Prometheus: ends, positions, lag, owners, parked and evicted messages.

Use ``REGISTRY.register(Collector(mq))`` in an application that already serves metrics, or run ``sqlmq metrics``. Needs
prometheus_client: ``pip install 'sqlmq[prometheus]'``. One exporter is enough for a database, wherever it runs: all values
are read from the tables, and nothing is counted in the process.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from sqlmq.errors import MissingDependencyError, SqlmqError, UnknownTopicError
from sqlmq.hooks.log_events import log_fields

try:
    from prometheus_client import Metric
    from prometheus_client.registry import Collector as BaseCollector
except ModuleNotFoundError as error:
    raise MissingDependencyError("prometheus_client", "prometheus") from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlmq.mq import MQ
    from sqlmq.reports.descriptions import Eviction, PartitionLag, TopicDescription

log = logging.getLogger("sqlmq.prometheus")

_PARTITION = ("topic", "partition")
_GROUP = ("topic", "group", "partition")
_METRICS = {
    "sqlmq_up": ("gauge", "Whether the database answered: 1 or 0.", ()),
    "sqlmq_scrape_seconds": ("gauge", "Duration of the queries of this scrape.", ()),
    "sqlmq_topic_appended_messages": ("counter", "Messages ever appended: the next offset.", _PARTITION),
    "sqlmq_topic_stored_messages": ("gauge", "Messages in the log.", _PARTITION),
    "sqlmq_topic_estimated_bytes": ("gauge", "Estimated size of the messages, from the 100 newest.", _PARTITION),
    "sqlmq_group_passed_messages": ("counter", "Messages the group has committed or parked: its position.", _GROUP),
    "sqlmq_group_lag_messages": ("gauge", "Messages not committed yet.", _GROUP),
    "sqlmq_group_lag_seconds": ("gauge", "Age of the oldest message that is not committed.", _GROUP),
    "sqlmq_group_owned": ("gauge", "Whether a live member reads the partition: 1 or 0.", _GROUP),
    "sqlmq_group_waiting_messages": ("gauge", "Parked messages that are not dead letters.", _GROUP),
    "sqlmq_group_dead_messages": ("gauge", "Dead letters.", _GROUP),
    "sqlmq_group_evicted_messages": (
        "counter",
        "Messages the group lost to retention, unread or parked.",
        ("topic", "group", "kind"),
    ),
}


class Collector(BaseCollector):
    """Reads the state of a queue from its database at each scrape. Several scrapes may run at the same time.

    A scrape is one statement for all groups and four short ones for each topic; none counts the log. If the database does
    not answer, ``sqlmq_up`` is 0 and all other metrics are left out. *topics* restricts the metrics to these topics.
    """

    names: ClassVar[frozenset[str]] = frozenset(
        name + ("_total" if kind == "counter" else "") for name, (kind, _, _) in _METRICS.items()
    )
    """The names of all metrics, as in queries."""

    def __init__(self, mq: MQ, *, topics: Sequence[str] | None = None) -> None:
        self._mq = mq
        self._topics = None if topics is None else list(topics)

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values, so that registering makes no query."""
        return _families().values()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics with their present values."""
        families = _families()
        began = time.monotonic()
        try:
            self._fill(families)
            is_up = True
        except SqlmqError as error:
            log.warning("No metrics could be read: %s", error, extra=log_fields("metrics failed", error=error))
            families, is_up = _families(), False
        families["sqlmq_up"].add_sample("sqlmq_up", {}, float(is_up))
        families["sqlmq_scrape_seconds"].add_sample("sqlmq_scrape_seconds", {}, time.monotonic() - began)
        return families.values()

    def _fill(self, families: dict[str, Metric]) -> None:
        for topic in self._mq.admin.topics() if self._topics is None else self._topics:
            try:
                described, evictions = self._mq.admin.describe_topic(topic), self._mq.admin.evictions(topic)
            except UnknownTopicError:
                continue  # deleted meanwhile, or not created yet
            _add_topic(families, described)
            _add_evictions(families, topic, evictions)
        for lag in self._mq.admin.lag():
            if self._topics is None or lag.topic in self._topics:
                _add_lag(families, lag)


def _add_topic(families: dict[str, Metric], topic: TopicDescription) -> None:
    for partition in topic.partitions:
        where = {"topic": topic.name, "partition": str(partition.partition)}
        _add(families, "sqlmq_topic_appended_messages", where, partition.end_offset)
        _add(families, "sqlmq_topic_stored_messages", where, partition.messages)
        _add(families, "sqlmq_topic_estimated_bytes", where, partition.estimated_bytes)


def _add_evictions(families: dict[str, Metric], topic: str, evictions: Sequence[Eviction]) -> None:
    lost: Counter[tuple[str, str]] = Counter()
    for eviction in evictions:
        lost[eviction.group, eviction.kind] += eviction.messages
    for (group, kind), messages in lost.items():
        _add(families, "sqlmq_group_evicted_messages", {"topic": topic, "group": group, "kind": kind}, messages)


def _add_lag(families: dict[str, Metric], lag: PartitionLag) -> None:
    where = {"topic": lag.topic, "group": lag.group, "partition": str(lag.partition)}
    _add(families, "sqlmq_group_passed_messages", where, lag.position)
    _add(families, "sqlmq_group_lag_messages", where, lag.lag)
    _add(families, "sqlmq_group_lag_seconds", where, lag.lag_seconds)
    _add(families, "sqlmq_group_owned", where, lag.owner is not None)
    _add(families, "sqlmq_group_waiting_messages", where, lag.waiting)
    _add(families, "sqlmq_group_dead_messages", where, lag.dead)


def _families() -> dict[str, Metric]:
    return {name: Metric(name, help_text, kind) for name, (kind, help_text, _) in _METRICS.items()}


def _add(families: dict[str, Metric], name: str, labels: dict[str, str], value: float) -> None:
    kind, _, expected = _METRICS[name]
    assert tuple(labels) == expected  # noqa: S101 - what the documentation promises
    families[name].add_sample(name + ("_total" if kind == "counter" else ""), labels, float(value))
