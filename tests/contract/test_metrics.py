"""What Prometheus is told of a queue; and that the dashboard and the alerts ask for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from sqlmq import MQ, Message, Retention, Retry
from sqlmq.prometheus import Collector

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest, MakeMQ

GRAFANA = Path(__file__).parent.parent.parent / "docs" / "grafana"
METRIC = re.compile(r"\bsqlmq_[a-z_]+")

pytestmark = pytest.mark.sync_only("Prometheus asks in a thread of its own")


@pytest.fixture
def registry(mq: MQ) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Collector(mq))
    return registry


def test_prometheus_is_told_how_far_a_group_is_and_what_it_has_set_aside(mq: MQ, registry: CollectorRegistry) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(b"good"), Message(b"bad"), Message(b"good")])

    def handler(message: Message) -> None:
        if message.value == b"bad":
            raise ValueError

    mq.consumer("orders", "billing").run(handler, retry=Retry(max_attempts=1), idle_seconds=0)
    mq.producer("orders").produce(Message(b"later"))
    where = {"topic": "orders", "group": "billing", "partition": "0"}

    names = ("passed_messages_total", "lag_messages", "dead_messages", "waiting_messages", "owned")
    assert [registry.get_sample_value(f"sqlmq_group_{name}", where) for name in names] == [3, 1, 1, 0, 0]
    behind = registry.get_sample_value("sqlmq_group_lag_seconds", where)
    assert behind is not None
    assert 0 <= behind < 60
    partition = {"topic": "orders", "partition": "0"}
    assert registry.get_sample_value("sqlmq_topic_appended_messages_total", partition) == 4
    assert registry.get_sample_value("sqlmq_topic_stored_messages", partition) == 4
    assert registry.get_sample_value("sqlmq_up") == 1


def test_prometheus_is_told_what_a_group_has_lost(mq: MQ, registry: CollectorRegistry) -> None:
    mq.create_topic("orders", 1, retention=Retention(max_messages=1, protect_groups=False))
    mq.consumer("orders", "billing").close()
    mq.producer("orders").produce_many([Message(b"")] * 4)
    mq.admin.apply_retention()

    lost = {"topic": "orders", "group": "billing", "kind": "unread"}
    assert registry.get_sample_value("sqlmq_group_evicted_messages_total", lost) == 3


def test_a_collector_of_some_topics_tells_of_no_other(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    mq.consumer("payments", "billing").close()
    registry = CollectorRegistry()
    registry.register(Collector(mq, topics=["orders", "deleted-meanwhile"]))

    topics = {sample.labels.get("topic") for metric in registry.collect() for sample in metric.samples}
    assert topics == {"orders", None}


def test_registering_asks_no_database_and_one_that_does_not_answer_is_down(
    make_mq: MakeMQ, caplog: pytest.LogCaptureFixture
) -> None:
    mq = make_mq()
    mq.close()
    registry = CollectorRegistry()
    registry.register(Collector(mq))

    assert registry.get_sample_value("sqlmq_up") == 0
    assert "No metrics could be read" in caplog.text
    assert [metric.name for metric in registry.collect() if metric.samples] == ["sqlmq_up", "sqlmq_scrape_seconds"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_metric_has_a_name_that_is_known(mq: MQ, database: DatabaseUnderTest) -> None:
    del database
    mq.create_topic("orders", 1, retention=Retention(max_messages=1, protect_groups=False))
    mq.consumer("orders", "billing").close()
    mq.producer("orders").produce_many([Message(b"")] * 4)
    mq.admin.apply_retention()

    told = {sample.name for metric in Collector(mq).collect() for sample in metric.samples}
    assert told == Collector.names


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_dashboard_and_alerts_ask_for_metrics_that_there_are(database: DatabaseUnderTest) -> None:
    del database
    dashboard = json.loads((GRAFANA / "sqlmq.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    asked += re.findall(r"^ *expr: (.*)$", (GRAFANA / "alerts.yaml").read_text(encoding="utf-8"), re.MULTILINE)

    used = {name for expression in asked for name in METRIC.findall(expression)}
    assert used == Collector.names


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_panels_are_apart_and_lie_within_the_dashboard(database: DatabaseUnderTest) -> None:
    del database
    panels = json.loads((GRAFANA / "sqlmq.json").read_text(encoding="utf-8"))["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + across, place["y"] + down) for across in range(place["w"]) for down in range(place["h"])}
        assert not taken & cells, panel["title"]
        assert all(0 <= x < 24 for x, _ in cells), panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
