"""What the database holds, for Prometheus: ends, positions, lag, owners, what is set aside, what was lost.

``REGISTRY.register(Collector(mq))`` in an application that serves metrics already, or ``sqlmq metrics``. Needs
prometheus_client: ``pip install 'sqlmq[prometheus]'``. One exporter for a database is enough, wherever it runs: everything is
read from the tables, nothing is counted in the process.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from prometheus_client import Metric
from prometheus_client.registry import Collector as BaseCollector

from sqlmq.errors import SqlmqError, UnknownTopicError
from sqlmq.hooks.log_events import log_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlmq.mq import MQ
    from sqlmq.reports.descriptions import Eviction, PartitionLag, TopicDescription

log = logging.getLogger("sqlmq.prometheus")

_PARTITION = ("topic", "partition")
_GROUP = ("topic", "group", "partition")
_METRICS = {
    "sqlmq_up": ("gauge", "Whether the database answered: 1 or 0.", ()),
    "sqlmq_scrape_seconds": ("gauge", "How long it took to ask the database.", ()),
    "sqlmq_topic_appended_messages": ("counter", "Messages ever appended: the next offset.", _PARTITION),
    "sqlmq_topic_stored_messages": ("gauge", "Messages in the log.", _PARTITION),
    "sqlmq_topic_estimated_bytes": ("gauge", "About what they take, by the 100 newest.", _PARTITION),
    "sqlmq_group_passed_messages": ("counter", "Messages the group has committed or set aside: its position.", _GROUP),
    "sqlmq_group_lag_messages": ("gauge", "Messages not committed yet.", _GROUP),
    "sqlmq_group_lag_seconds": ("gauge", "Age of the oldest message that is not committed.", _GROUP),
    "sqlmq_group_owned": ("gauge", "Whether a live member reads the partition: 1 or 0.", _GROUP),
    "sqlmq_group_waiting_messages": ("gauge", "Messages set aside and not dead.", _GROUP),
    "sqlmq_group_dead_messages": ("gauge", "Dead letters.", _GROUP),
    "sqlmq_group_evicted_messages": (
        "counter",
        "Messages the group has lost to retention, unread or parked.",
        ("topic", "group", "kind"),
    ),
}


class Collector(BaseCollector):
    """Reads the state of a queue from its database whenever Prometheus asks. May be asked by several at once.

    A scrape is one statement for all groups, and four short ones for each topic; none counts the log. When the database does
    not answer, ``sqlmq_up`` is 0 and everything else is left out. *topics* are those to tell of; all if not given.
    """

    names: ClassVar[frozenset[str]] = frozenset(
        name + ("_total" if kind == "counter" else "") for name, (kind, _, _) in _METRICS.items()
    )
    """The names of all metrics, as they are in queries."""

    def __init__(self, mq: MQ, *, topics: Sequence[str] | None = None) -> None:
        self._mq = mq
        self._topics = None if topics is None else list(topics)

    def describe(self) -> Iterable[Metric]:
        """The metrics without their values, so that registering asks no database."""
        return _families().values()

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
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
                continue  # deleted meanwhile, or not made yet
            _tell_topic(families, described)
            _tell_evictions(families, topic, evictions)
        for lag in self._mq.admin.lag():
            if self._topics is None or lag.topic in self._topics:
                _tell_lag(families, lag)


def _tell_topic(families: dict[str, Metric], topic: TopicDescription) -> None:
    for partition in topic.partitions:
        where = {"topic": topic.name, "partition": str(partition.partition)}
        _add(families, "sqlmq_topic_appended_messages", where, partition.end_offset)
        _add(families, "sqlmq_topic_stored_messages", where, partition.messages)
        _add(families, "sqlmq_topic_estimated_bytes", where, partition.estimated_bytes)


def _tell_evictions(families: dict[str, Metric], topic: str, evictions: Sequence[Eviction]) -> None:
    lost: Counter[tuple[str, str]] = Counter()
    for eviction in evictions:
        lost[eviction.group, eviction.kind] += eviction.messages
    for (group, kind), messages in lost.items():
        _add(families, "sqlmq_group_evicted_messages", {"topic": topic, "group": group, "kind": kind}, messages)


def _tell_lag(families: dict[str, Metric], lag: PartitionLag) -> None:
    where = {"topic": lag.topic, "group": lag.group, "partition": str(lag.partition)}
    _add(families, "sqlmq_group_passed_messages", where, lag.position)
    _add(families, "sqlmq_group_lag_messages", where, lag.lag)
    _add(families, "sqlmq_group_lag_seconds", where, lag.lag_seconds)
    _add(families, "sqlmq_group_owned", where, lag.owner is not None)
    _add(families, "sqlmq_group_waiting_messages", where, lag.waiting)
    _add(families, "sqlmq_group_dead_messages", where, lag.dead)


def _families() -> dict[str, Metric]:
    return {name: Metric(name, description, kind) for name, (kind, description, _) in _METRICS.items()}


def _add(families: dict[str, Metric], name: str, labels: dict[str, str], value: float) -> None:
    kind, _, expected = _METRICS[name]
    assert tuple(labels) == expected  # noqa: S101 - what the documentation promises
    families[name].add_sample(name + ("_total" if kind == "counter" else ""), labels, float(value))
