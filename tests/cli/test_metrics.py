"""``sqlmq metrics``: what Prometheus gets, over a real connection."""

from __future__ import annotations

import signal
import socket
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Sqlmq, SqlmqProcess

pytestmark = pytest.mark.parametrize("database", ["sqlite", "postgres-schema"], indirect=True)


def test_metrics_are_printed_once(sqlmq: Sqlmq) -> None:
    sqlmq("produce", "orders", stdin="1\n2\n")
    sqlmq("consume", "orders", "--group", "billing", "--limit", "1")

    lines = sqlmq("metrics", "--once").stdout.splitlines()

    assert "# TYPE sqlmq_group_lag_messages gauge" in lines
    behind = [line for line in lines if line.startswith('sqlmq_group_lag_messages{group="billing",partition=')]
    assert sum(float(line.split()[-1]) for line in behind) == 1


def test_some_topics_are_printed_alone(sqlmq: Sqlmq) -> None:
    sqlmq("topics", "create", "orders")
    sqlmq("topics", "create", "payments")

    printed = sqlmq("metrics", "--once", "--topic", "payments").stdout
    assert 'topic="payments"' in printed
    assert 'topic="orders"' not in printed


def test_without_prometheus_client_the_command_says_what_to_install(
    sqlmq: Sqlmq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "sqlmq.prometheus", raising=False)

    result = sqlmq("metrics", "--once")

    assert result.exit_code == 1
    assert "pip install 'sqlmq[prometheus]'" in result.stderr


@pytest.mark.slow
def test_metrics_are_served_until_sigterm(sqlmq: Sqlmq, sqlmq_process: SqlmqProcess) -> None:
    sqlmq("produce", "orders", stdin="1\n")
    process = sqlmq_process("metrics", "--port", "0")
    assert process.stderr is not None
    url = process.stderr.readline().decode().strip()

    def scrape(_number: int) -> str:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - of our own process
            return str(answer.read().decode())

    with ThreadPoolExecutor(4) as threads:
        scraped = list(threads.map(scrape, range(8)))
    process.send_signal(signal.SIGTERM)

    assert all("sqlmq_up 1.0" in one and 'sqlmq_topic_stored_messages{partition="0"' in one for one in scraped)
    assert process.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(urllib.error.URLError):
        scrape(0)


def test_an_address_that_is_taken_is_an_error(sqlmq: Sqlmq) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = sqlmq("metrics", "--port", str(taken.getsockname()[1]))

    assert refused.exit_code == 1
    assert "Cannot listen on 127.0.0.1" in refused.stderr
