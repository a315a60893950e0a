"""``sqlmq run``: call an application's handler with the messages of a topic until a signal arrives."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import click

from sqlmq.cli.options import on_evicted_option, start_option
from sqlmq.cli.output import count
from sqlmq.cli.run import handler_loading, log_format
from sqlmq.cli.run.supervisor import Supervisor
from sqlmq.cli.settings import Settings, database_options, example, lease_option, pass_settings
from sqlmq.cli.signals import SignalInterrupt, Stop
from sqlmq.consumer.worker.executor import is_awaited
from sqlmq.errors import InvalidGroupError, InvalidTopicError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.retry import FailurePolicy, Retry
from sqlmq.model.validation import check_group, check_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlmq.aio import AsyncMQ
    from sqlmq.consumer.worker.pool import RunSummary
    from sqlmq.model.config import OnEvicted
    from sqlmq.model.positions import Start
    from sqlmq.mq import MQ

log = logging.getLogger("sqlmq.cli")

_UNLIMITED = "unlimited"
_SECONDS = click.FloatRange(min=0)


def _check_attempts(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if value != _UNLIMITED and (not value.isdecimal() or int(value) < 1):
        message = f"{value!r} is neither a number of attempts, 1 or more, nor {_UNLIMITED!r}."
        raise click.BadParameter(message)
    return value


@click.command(
    epilog=example(
        "sqlmq run app.billing:handle --topic orders --group billing",
        "sqlmq run app.search:index --topic orders --group search --batch-size 500 --processes 4",
        "sqlmq run app.books:post --topic orders --group books --transaction --on-failure stop",
    )
)
@click.argument("handler", callback=handler_loading.check_name, metavar="MODULE:HANDLER")
@click.option("-t", "--topic", required=True, metavar="NAME", help="Topic to read; created if missing.")
@click.option("-g", "--group", required=True, metavar="NAME", help="Group to read as.")
@start_option
@on_evicted_option
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Run N processes, each a member of the group. Of 2 or more, one that dies is restarted.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Handle up to N partitions at a time in each process: in threads, or in the event loop.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="N", help="Pass lists of up to N messages to the handler."
)
@click.option(
    "--transaction",
    is_flag=True,
    help="Also pass a session to the handler. Its changes commit with the group's position, or not at all.",
)
@click.option(
    "--max-attempts",
    callback=_check_attempts,
    default="5",
    show_default=True,
    metavar="N",
    help="The number of attempts of a message, or unlimited.",
)
@click.option(
    "--backoff-seconds",
    type=_SECONDS,
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="The delay of the first retry. Later delays grow, up to --max-delay-seconds.",
)
@click.option(
    "--max-delay-seconds",
    type=_SECONDS,
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="The longest delay of a retry.",
)
@click.option(
    "--on-failure",
    type=click.Choice(get_args(FailurePolicy)),
    help="The policy for a failed message. Default: park; dead for messages without a key.",
)
@click.option(
    "--max-parked",
    type=click.IntRange(min=1),
    default=1_000,
    show_default=True,
    metavar="N",
    help="Stop reading a partition while N of its messages are parked.",
)
@click.option(
    "--max-processing-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Release a partition if its handler takes longer; the attempt counts as failed.",
)
@click.option(
    "--stop-seconds",
    type=_SECONDS,
    default=25.0,
    show_default=True,
    metavar="SECONDS",
    help="How long handlers may continue after the first signal.",
)
@click.option("--idle-seconds", type=_SECONDS, metavar="SECONDS", help="End when no message has arrived for this long.")
@lease_option
@click.option(
    "--log-level",
    type=click.Choice(log_format.LEVELS),
    default="info",
    show_default=True,
    help="The level of log messages on stderr, from sqlmq and from the handler's modules.",
)
@click.option(
    "--opentelemetry",
    is_flag=True,
    help="Trace each call of the handler with OpenTelemetry, configured by its environment variables.",
)
@database_options
@pass_settings
@click.pass_context
def run(
    ctx: click.Context,
    settings: Settings,
    /,
    handler: str,
    topic: str,
    group: str,
    *,
    start: Start,
    on_evicted: OnEvicted,
    processes: int,
    lease_seconds: float,
    log_level: str,
    opentelemetry: bool,
    **terms: Any,  # noqa: ANN401 - the options of Consumer.run, each checked above
) -> None:
    """Call a handler with each message of a topic, until SIGTERM or Ctrl-C.

    MODULE:HANDLER is a function or coroutine function in an importable module; the current directory is searched too. A
    message is finished when the handler returns. If the handler raises, the message is retried. After the last attempt
    it becomes a dead letter, and the other messages continue.

    After the first signal the messages in flight are finished, positions are committed, and the exit code is 0. A second
    signal ends the command at once.
    """
    try:
        check_topic(topic)
        check_group(group)
    except (InvalidTopicError, InvalidGroupError) as error:
        raise click.UsageError(str(error)) from error
    instrument = _instrument() if opentelemetry else None
    log_format.begin(ctx, settings, log_level)
    if processes > 1:
        with settings.open() as mq:
            # An error of the database is reported once, before the processes start.
            mq.admin.topics()
        environment = os.environ | settings.environment()
        supervisor = Supervisor(processes, _arguments(ctx), environment, stop_seconds=terms["stop_seconds"])
        ctx.exit(supervisor.run())
    arguments = _RunArguments(topic, group, start, on_evicted, lease_seconds, instrument, _terms(terms))
    with Stop() as stop:
        with stop.raising():
            function = handler_loading.load(handler)
        fields = log_fields("run started", topic=topic, group=group)
        log.info("%s handles topic %r for group %r: %s.", handler, topic, group, _how(terms), extra=fields)
        work = _run_in_loop if is_awaited(function) else _run_in_threads
        summary = work(settings, stop, function, arguments)
    log.info(
        "Ended: %s.",
        _counts(summary),
        extra=log_fields("run ended", topic=topic, group=group, messages=summary.handled),
    )


class _RunArguments(NamedTuple):
    """The topic, the group and the options of a run."""

    topic: str
    group: str
    start: Start
    on_evicted: OnEvicted
    lease_seconds: float
    instrument: Callable[[MQ | AsyncMQ], object] | None
    terms: dict[str, Any]
    """The keyword arguments of ``Consumer.run``."""


def _instrument() -> Callable[[MQ | AsyncMQ], object]:
    """Return the function that connects an MQ to OpenTelemetry. Raises MissingDependencyError."""
    from sqlmq.opentelemetry import instrument

    return instrument


def _run_in_threads(
    settings: Settings, stop: Stop, handler: Callable[..., object], arguments: _RunArguments
) -> RunSummary:
    with settings.open(lease_seconds=arguments.lease_seconds) as mq:
        if arguments.instrument is not None:
            arguments.instrument(mq)
        consumer = mq.consumer(arguments.topic, arguments.group, start=arguments.start, on_evicted=arguments.on_evicted)
        # With the run's own handler above it, which has the signals then. This one has those before.
        with stop.calling(consumer.stop), _logged_when_interrupted():
            return consumer.run(handler, **arguments.terms)


def _run_in_loop(
    settings: Settings, stop: Stop, handler: Callable[..., object], arguments: _RunArguments
) -> RunSummary:
    # Imported here: no other command needs them.
    import asyncio

    from sqlmq.aio import AsyncMQ

    async def run_to_the_end() -> RunSummary:
        url, lease_seconds = settings.named_url(), arguments.lease_seconds
        async with AsyncMQ(url, schema=settings.schema, lease_seconds=lease_seconds) as mq:
            if arguments.instrument is not None:
                arguments.instrument(mq)
            consumer = await mq.consumer(
                arguments.topic, arguments.group, start=arguments.start, on_evicted=arguments.on_evicted
            )
            with stop.calling(consumer.stop):
                return await consumer.run(handler, **arguments.terms)

    with _logged_when_interrupted():
        return asyncio.run(run_to_the_end())


@contextmanager
def _logged_when_interrupted() -> Iterator[None]:
    """Log a second signal, and raise SignalInterrupt for it."""
    try:
        yield
    except SignalInterrupt:
        raise
    except KeyboardInterrupt as interrupt:
        log.warning("Ended at once; messages in flight are delivered again.", extra=log_fields("run cut off"))
        raise SignalInterrupt(*interrupt.args or (signal.SIGINT,)) from interrupt


def _terms(options: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of ``Consumer.run``."""
    given = dict(options)
    attempts = given.pop("max_attempts")
    given["retry"] = Retry(
        None if attempts == _UNLIMITED else int(attempts), given.pop("backoff_seconds"), given.pop("max_delay_seconds")
    )
    return given


def _arguments(ctx: click.Context) -> list[str]:
    """Return the arguments of one of several processes."""
    words = ["run"]
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        if value is None or value is False or param.name == "processes":
            continue
        if isinstance(param, click.Argument):
            words.append(str(value))
        else:
            words += [param.opts[-1]] if value is True else [param.opts[-1], str(value)]
    return words


def _how(options: dict[str, Any]) -> str:
    """Return in words how messages are handled."""
    size, attempts = options["batch_size"], options["max_attempts"]
    return ", ".join(
        [
            "one at a time" if size is None else f"lists of up to {size:,}",
            f"{count(options['concurrency'], 'partition')} in parallel",
            *(["in a transaction each"] if options["transaction"] else []),
            f"{attempts} attempts" if attempts != "1" else "1 attempt",
        ]
    )


def _counts(summary: RunSummary) -> str:
    """Return the counts of a run in words."""
    return (
        f"{count(summary.handled, 'message')} handled, {count(summary.failures, 'attempt')} failed, {summary.parked:,} "
        f"parked, {count(summary.dead, 'dead letter')}, {summary.skipped:,} skipped"
    )
