"""``sqlmq metrics``: serve metrics of the database to Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.cli.signals import Stop

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from sqlmq.mq import MQ


@click.command(
    epilog=example(
        "sqlmq metrics",
        "sqlmq metrics --host 0.0.0.0 --port 9000 --topic orders",
        "sqlmq metrics --once | grep lag_seconds",
    )
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9464, show_default=True, help="Port to listen on.")
@click.option("-t", "--topic", "topics", multiple=True, metavar="NAME", help="Only this topic; may be repeated.")
@click.option("--once", is_flag=True, help="Print the metrics once, then end.")
@database_options
@pass_settings
def metrics(settings: Settings, host: str, port: int, topics: tuple[str, ...], *, once: bool) -> None:
    """Serve the state of the queue to Prometheus at /metrics, until Ctrl-C or SIGTERM.

    The metrics are end offsets, positions, lag, owners, parked and evicted messages. Each scrape reads them from the
    database, so one server is enough for a database. There is no password and no TLS: every client that can reach the
    port can read the names of topics and groups, and the numbers.

    With --once the exit code is 1 if the database did not answer.
    """
    with settings.open() as mq:
        if once:
            mq.admin.topics()  # raises the error, which the metrics would only count
            _print(_registry(mq, topics))
            return
        _serve(_registry(mq, topics), host, port)


def _registry(mq: MQ, topics: tuple[str, ...]) -> CollectorRegistry:
    # Imported first, because it names the extra if prometheus_client is not installed.
    from sqlmq.prometheus import Collector  # isort: split

    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(Collector(mq, topics=topics or None))
    return registry


def _print(registry: CollectorRegistry) -> None:
    from prometheus_client import generate_latest

    click.echo(generate_latest(registry), nl=False)


def _serve(registry: CollectorRegistry, host: str, port: int) -> None:
    from prometheus_client import start_http_server

    with Stop() as stop:
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as error:
            message = f"Cannot listen on {host}:{port}: {error.strerror or error}."
            raise click.ClickException(message) from error
        click.echo(f"http://{host}:{server.server_port}/metrics", err=True)
        try:
            stop.wait()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
